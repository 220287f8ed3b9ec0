//! `reason.rs`: every reason there is, provoked.

use std::{collections::BTreeSet, net::SocketAddr, sync::atomic::Ordering};

use lb_common::{
    flow::{Entry, GROUP, State},
    frame::HostFrame,
    host::{
        HostTables, corpus, errors,
        sample::{self, ClientFrame, Purpose},
    },
    parse::Family,
    reason::{Class, Reason},
    service::BackendState,
    wire::Tcp,
};
use sluice_tests::kernel::{Answer, Program};

use crate::{
    probe,
    sides::{Sides, tables},
};

/// A frame that provokes a reason, and what has to be done to the tables first.
struct Provocation {
    reason: Reason,
    frame: HostFrame,
    prepare: fn(&mut HostTables),
    /// Sent first.
    before: Vec<HostFrame>,
    /// Through which program.
    program: Program,
}

fn by(reason: Reason, frame: HostFrame) -> Provocation {
    Provocation { reason, frame, prepare: |_| {}, before: Vec::new(), program: Program::Sluice }
}

/// The first frame of the corpus that has this outcome.
fn wild(reason: Reason) -> Provocation {
    let fits = |case: &corpus::Case| case.outcome == Err(reason) && case.frame.bytes.len() >= 14;
    let mut cases = corpus::cases().into_iter().chain(corpus::openings());
    by(reason, cases.find(fits).expect("the corpus has one").frame)
}

/// One for each reason: without `_ =>`, so that a new one does not go without.
fn provocation(reason: Reason) -> Provocation {
    let client = |purpose| ClientFrame::new(purpose, Family::Ipv4, 1);
    match reason {
        Reason::NotIp
        | Reason::NotVip
        | Reason::NotTcp
        | Reason::Runt
        | Reason::Truncated
        | Reason::BadIpHeader
        | Reason::BadLength
        | Reason::BadTcpHeader
        | Reason::Fragment
        | Reason::ExtensionHeaders
        | Reason::BadSource
        | Reason::BadPort
        | Reason::BadFlags => wild(reason),
        Reason::NotService => {
            let mut sent = client(Purpose::L2);
            sent.vip.set_port(81);
            by(reason, sent.frame())
        }
        Reason::NotReady => Provocation {
            prepare: |tables| tables.settings.abi_version = 0,
            ..by(reason, client(Purpose::L2).frame())
        },
        Reason::NoNextHop => by(reason, client(Purpose::Unresolved).frame()),
        Reason::TooBig => {
            let payload = vec![0; 1450];
            by(reason, ClientFrame { payload, ..client(Purpose::InIpv4) }.frame())
        }
        Reason::TooBigUnanswered => Provocation {
            prepare: |tables| {
                let narrow = sample::backend(Purpose::InIpv4, Family::Ipv6, 0);
                for backend in &mut tables.backends[usize::from(narrow)..][..3] {
                    backend.mtu = 1299;
                }
            },
            ..by(reason, {
                let payload = vec![0; 1280 - 60];
                let sent = ClientFrame::new(Purpose::InIpv4, Family::Ipv6, 1);
                ClientFrame { payload, ..sent }.frame()
            })
        },
        Reason::NoHeadroom => {
            by(reason, HostFrame { headroom: 16, ..client(Purpose::InIpv4).frame() })
        }
        Reason::RstUnknown => by(reason, client(Purpose::Empty).with_flags(Tcp::RST).frame()),
        Reason::NoBackend => by(reason, client(Purpose::Empty).with_flags(Tcp::SYN).frame()),
        Reason::BackendGone => Provocation {
            prepare: |tables| {
                let gone = sample::backend(Purpose::L2, Family::Ipv4, 0);
                tables.backends[usize::from(gone)].state = BackendState::Reset as u8;
            },
            before: vec![client(Purpose::L2).frame()],
            ..by(reason, client(Purpose::L2).frame())
        },
        Reason::ProbeAnswer => by(reason, probe::answer(Purpose::L2, Family::Ipv4).frame()),
        Reason::ProbeUndelivered => Provocation {
            program: Program::Probe,
            ..by(reason, probe::probe(Purpose::Unresolved, Family::Ipv4).frame())
        },
        Reason::NatNoMapping => by(reason, client(Purpose::Nat).frame()),
        Reason::NatNoReturn => {
            let from = sample::backend_address(
                sample::backend(Purpose::Nat, Family::Ipv4, 0),
                Family::Ipv4,
            );
            let sent = ClientFrame {
                client: SocketAddr::new(from, Purpose::Nat.port()),
                vip: SocketAddr::new(sample::prober(0, Family::Ipv4).ip(), sample::NAT_PORTS.0),
                ..client(Purpose::Nat)
            };
            by(reason, sent.frame())
        }
        Reason::NatPortsExhausted => Provocation {
            prepare: |tables| tables.settings.nat_port_count = 0,
            ..by(reason, client(Purpose::Nat).with_flags(Tcp::SYN).frame())
        },
        Reason::NatTableFull => Provocation {
            // One word is free, and a translated flow needs two.
            prepare: |tables| {
                tables.settings.flow_mask = 0;
                let other = sample::backend(Purpose::L2, Family::Ipv4, 0);
                for (number, word) in (1..GROUP as u64).zip(tables.flow_words()) {
                    let old = Entry::new(number << 40, other, 0, State::Old);
                    word.store(old.0, Ordering::Relaxed);
                }
            },
            ..by(reason, client(Purpose::Nat).with_flags(Tcp::SYN).frame())
        },
        Reason::EchoUnhealthy => {
            let vip = sample::vip(Purpose::Empty, Family::Ipv4).ip();
            by(reason, errors::echo(client(Purpose::L2).client.ip(), vip, 8))
        }
        Reason::HopLimit => {
            let mut frame = client(Purpose::Nat).with_flags(Tcp::SYN).frame();
            // Its checksum is nobody's business here.
            frame.bytes[14 + 8] = 1;
            by(reason, frame)
        }
    }
}

#[test]
fn every_reason_is_provoked_and_counted_alone() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    let mut provoked = BTreeSet::new();
    for &reason in Reason::ALL {
        let name = reason.name();
        let provocation = provocation(reason);
        assert_eq!(provocation.reason, reason);
        sides.tables = tables();
        sides.forget();
        for frame in &provocation.before {
            sides.run(name, frame);
        }
        (provocation.prepare)(&mut sides.tables);
        sides.refill();

        if reason == Reason::NoHeadroom && !sides.takes_little_headroom() {
            // On the host it is provoked in `lb_common::forward::ipip`.
            provoked.insert(name);
            continue;
        }
        let (answer, output, counted) =
            sides.run_through(provocation.program, name, &provocation.frame);
        assert_eq!(counted.reasons, [(name, 1)].into(), "{:?}", provocation.frame);
        assert_eq!(counted.packets(), 0, "{name}: it is not forwarded");
        match reason.class() {
            Class::Pass if reason == Reason::ProbeAnswer => {
                assert_eq!(answer, Answer::Redirect, "{name}");
                provoked.extend(counted.reasons.keys());
                continue;
            }
            Class::Pass => assert_eq!(answer, Answer::Pass, "{name}"),
            Class::Drop => assert_eq!(answer, Answer::Drop, "{name}"),
            Class::Answer => assert_eq!(answer, Answer::Transmit, "{name}"),
        }
        if reason.class() != Class::Answer {
            assert_eq!(output.bytes, provocation.frame.bytes, "{name}: it is left as it was");
        }
        provoked.extend(counted.reasons.keys());
    }
    let all: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(provoked, all);
}
