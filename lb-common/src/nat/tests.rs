//! Translated flows over host tables, frame by frame.

use core::{net::SocketAddr, sync::atomic::Ordering};
use std::{collections::BTreeSet, format, string::String, vec, vec::Vec};

use super::*;
use crate::{
    counters::Event,
    flow::{self, Found, State},
    forward::Action,
    frame::HostFrame,
    host::{
        Counted, HostTables,
        sample::{self, ClientFrame, FAMILIES, Purpose},
    },
    parse,
    reason::{Class, Reason},
    service::BackendState,
    steer::{self, Turn},
    wire::Tcp,
};

mod exact;
mod life;
mod ports;
mod stories;

const V4: Family = Family::Ipv4;
const SYN: u8 = Tcp::SYN;
const SYN_ACK: u8 = Tcp::SYN | Tcp::ACK;
const ACK: u8 = Tcp::ACK;
const FIN: u8 = Tcp::FIN | Tcp::ACK;
const RST: u8 = Tcp::RST;

/// Segments that end a connection, or begin one: whether it is the backend that sends, and flags.
type Segments = &'static [(bool, u8)];

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Said {
    /// Sent on, with these addresses and ports.
    Through { from: SocketAddr, to: SocketAddr },
    /// Its sender got a RST.
    Reset(Reason),
    /// Passed or dropped, as the reason's class says.
    Left(Reason),
}

/// What both ends of a translated connection send: the client to the VIP, the backend to what it
/// sees.
#[derive(Clone, Debug)]
struct Pair {
    client: ClientFrame,
    backend: ClientFrame,
}

/// Tables in which all flows of a service go to its first backend, and a clock.
struct Scene {
    tables: HostTables,
    purpose: Purpose,
    family: Family,
    tick: u64,
}

fn parsed(frame: &HostFrame) -> Segment {
    parse::segment(frame, |_, _| true).expect("well formed")
}

fn socket(address: Address, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address.into(), u16::from_be_bytes(port))
}

impl Scene {
    fn new(purpose: Purpose, family: Family) -> Self {
        Self::with_flows(purpose, family, 1024)
    }

    fn with_flows(purpose: Purpose, family: Family, flows: usize) -> Self {
        let mut scene = Self { tables: sample::tables(flows), purpose, family, tick: 0 };
        scene.all_slots_to(0);
        scene
    }

    /// The same service with these many ports only.
    fn with_ports(purpose: Purpose, ports: u16) -> Self {
        let mut scene = Self::new(purpose, V4);
        scene.tables.settings.nat_port_count = ports;
        scene
    }

    fn all_slots_to(&mut self, number: u16) {
        let service = sample::service(self.purpose, self.family);
        let index = self.backend(number);
        self.tables.services[usize::from(service)].slots.fill(index);
    }

    fn backend(&self, number: u16) -> u16 {
        sample::backend(self.purpose, self.family, number)
    }

    fn set_state(&mut self, number: u16, state: BackendState) {
        let index = usize::from(self.backend(number));
        self.tables.backends[index].state = state as u8;
    }

    /// Where that backend listens.
    fn server(&self, number: u16) -> SocketAddr {
        let address = sample::backend_address(self.backend(number), self.family);
        SocketAddr::new(address, self.purpose.port())
    }

    fn vip(&self) -> SocketAddr {
        sample::vip(self.purpose, self.family)
    }

    fn client(&self, number: u16) -> ClientFrame {
        ClientFrame::new(self.purpose, self.family, number)
    }

    fn now(&self) -> u64 {
        (1000 + self.tick) << self.tables.settings.tick_shift
    }

    /// Sends a segment; what was counted stays.
    fn send(&self, sent: &ClientFrame, flags: u8) -> Said {
        let mut frame = sent.clone().with_flags(flags).frame();
        let reasons = |counted: &Counted| counted.reasons.values().sum::<u64>();
        let before = self.tables.counted();
        let action = steer::process(&mut frame, &self.tables, self.now());
        let after = self.tables.counted();
        if reasons(&after) == reasons(&before) {
            assert_eq!(after.packets(), before.packets() + 1, "{sent:?}");
            let is_sent = matches!(action, Action::Transmit | Action::Redirect(_));
            assert!(is_sent, "{action:?}: {sent:?}");
            let tuple = Tuple::of(&parsed(&frame));
            return Said::Through {
                from: socket(tuple.source, tuple.ports.source),
                to: socket(tuple.destination, tuple.ports.destination),
            };
        }
        let is_given = |reason: &&Reason| after.reason(**reason) > before.reason(**reason);
        let reason = *Reason::ALL.iter().find(is_given).expect("one reason");
        assert_eq!(after.packets(), before.packets(), "{sent:?}");
        match (reason.class(), action) {
            (Class::Answer, Action::Transmit) => Said::Reset(reason),
            (Class::Pass, Action::Pass) | (Class::Drop | Class::Answer, Action::Drop) => {
                Said::Left(reason)
            }
            other => panic!("{other:?}: {sent:?}"),
        }
    }

    /// Sends a client's SYN, which must be forwarded; what its backend sends back.
    fn open(&self, number: u16) -> Pair {
        self.try_to_open(&self.client(number)).expect("it is forwarded")
    }

    fn try_to_open(&self, client: &ClientFrame) -> Result<Pair, Said> {
        match self.send(client, SYN) {
            Said::Through { from, to } => Ok(Pair {
                client: client.clone(),
                backend: ClientFrame { client: to, vip: from, ..client.clone() },
            }),
            said => Err(said),
        }
    }

    /// An open connection over which data has gone both ways.
    fn establish(&self, number: u16) -> Pair {
        let pair = self.open(number);
        self.goes_on(&pair, true);
        pair
    }

    /// Whether what both ends send is translated as it must be: all of it, or nothing.
    #[track_caller]
    fn goes_on(&self, pair: &Pair, expected: bool) {
        for (flags, home) in [(SYN_ACK, true), (ACK, false), (ACK, true), (ACK, false)] {
            let (sent, back) =
                if home { (&pair.backend, &pair.client) } else { (&pair.client, &pair.backend) };
            let said = self.send(sent, flags);
            let through = Said::Through { from: back.vip, to: back.client };
            assert_eq!(said == through, expected, "{flags:#04x} of {sent:?}: {said:?}");
            assert!(expected || !matches!(said, Said::Through { .. }), "{sent:?}: {said:?}");
        }
    }

    /// The states of the client's entry and of the return entry.
    fn states(&self, pair: &Pair) -> [&'static str; 2] {
        [&pair.client, &pair.backend].map(|sent| {
            let entry = self.tables.entry(&parsed(&sent.frame()));
            entry.map_or("free", |entry| entry.state().name())
        })
    }

    fn position(&self, sent: &ClientFrame) -> usize {
        self.tables.position(&parsed(&sent.frame())).expect("it is in the table")
    }

    fn forget(&self, sent: &ClientFrame) {
        self.tables.flow_words()[self.position(sent)].store(0, Ordering::Relaxed);
    }

    /// Entries in the table.
    fn entries(&self) -> usize {
        let is_taken = |word: &u64| Entry(*word).state() != State::Free;
        self.words().iter().filter(|word| is_taken(word)).count()
    }

    fn words(&self) -> Vec<u64> {
        self.tables.flow_words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    fn events(&self, number: u16) -> Vec<(&'static str, u64)> {
        let index = self.backend(number);
        let counted = self.tables.counted();
        let own = counted.events.iter().filter(|((backend, _), _)| *backend == index);
        own.map(|((_, name), count)| (*name, *count)).collect()
    }
}
