//! `flow.rs`, `service.rs` and `steer.rs`: who gets a flow's segments, over its life.

use lb_common::{
    counters::Event,
    flow::GROUP,
    host::sample::{self, ClientFrame, Purpose},
    parse::Family,
    reason::Reason,
    service::BackendState,
    wire::Tcp,
};
use sluice_tests::kernel::Answer;

use crate::sides::{Sides, all_slots_to, tables};

const L2: Purpose = Purpose::L2;
const SYN: u8 = Tcp::SYN;
const ACK: u8 = Tcp::ACK;
const FIN: u8 = Tcp::FIN | Tcp::ACK;
const RST: u8 = Tcp::RST;

/// What becomes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum To {
    /// The backend that the flow began with.
    First,
    /// The one that has had all slots since.
    Second,
    /// A RST to the client.
    Refused,
}

impl Sides {
    /// Sends a segment; which backend got it.
    #[track_caller]
    fn steer(&mut self, name: &str, sent: &ClientFrame) -> To {
        let (answer, output, counted) = self.run(name, &sent.frame());
        assert_eq!(answer, Answer::Transmit, "{name}: {counted:?}");
        let family = if sent.vip.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        let mac = |number| sample::mac(sample::backend(L2, family, number));
        match output.bytes[..6] {
            ref to if *to == mac(0) => To::First,
            ref to if *to == mac(1) => To::Second,
            ref to if *to == sample::ROUTER_MAC => To::Refused,
            _ => panic!("{name}: went elsewhere\n{output:?}"),
        }
    }
}

/// What happened to the first backend meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Since {
    /// It lost its slots: drained.
    Drained,
    /// It is gone.
    Gone,
    /// It was removed.
    Removed,
    /// It has answered nobody for a while.
    Suspect,
}

#[test]
fn a_flows_segments_go_where_its_state_says() {
    use Since::{Drained, Gone, Removed, Suspect};
    use To::{First, Refused, Second};
    let Some(mut sides) = Sides::start(tables()) else { return };
    // Its life until then, one tick apart; what became of its backend; ticks of silence; the
    // next segments, and where they go.
    let established: &[u8] = &[SYN, ACK, ACK];
    type Next<'a> = &'a [(u8, To)];
    let stories: [(&str, &[u8], Since, u8, Next<'_>); 27] = [
        ("an established flow stays", established, Drained, 1, &[(ACK, First), (ACK, First)]),
        ("for as long as it may be silent", established, Drained, 221, &[(ACK, First)]),
        ("and no longer", established, Drained, 222, &[(ACK, Second)]),
        ("a SYN is sent again", &[SYN], Drained, 1, &[(SYN, First), (ACK, First)]),
        ("a SYN is forgotten after a minute", &[SYN], Drained, 17, &[(SYN, Second)]),
        ("its ACK too", &[SYN], Drained, 17, &[(ACK, Second)]),
        ("a spoofed SYN moves nobody", established, Drained, 4, &[(SYN, First), (ACK, First)]),
        ("a port is used again", established, Drained, 5, &[(SYN, Second), (ACK, Second)]),
        ("after a FIN at once", &[SYN, ACK, FIN], Drained, 0, &[(SYN, Second)]),
        ("after a RST at once", &[SYN, ACK, RST], Drained, 0, &[(SYN, Second)]),
        ("half-closed it goes on", &[SYN, ACK, FIN], Drained, 4, &[(ACK, First), (ACK, First)]),
        ("but not for ever", &[SYN, ACK, FIN], Drained, 5, &[(ACK, Second)]),
        ("a forged RST is no end", &[SYN, ACK, RST], Drained, 3, &[(ACK, First)]),
        ("a real one is", &[SYN, ACK, RST], Drained, 4, &[(ACK, Second)]),
        ("a stranger's ACK is adopted", &[ACK], Drained, 1, &[(ACK, First)]),
        ("a stranger's RST is not remembered", &[RST], Drained, 0, &[(ACK, Second)]),
        ("of one that is gone", established, Gone, 1, &[(ACK, Refused), (ACK, Second)]),
        ("a FIN to it", established, Gone, 1, &[(FIN, Refused), (SYN, Second)]),
        ("a SYN to it", established, Gone, 0, &[(SYN, Second), (ACK, Second)]),
        ("a SYN sent again to it", &[SYN], Gone, 0, &[(SYN, Second)]),
        ("of one that was removed", established, Removed, 1, &[(ACK, Second)]),
        ("a SYN to one that was removed", established, Removed, 1, &[(SYN, Second)]),
        ("a SYN sent again to a suspect", &[SYN], Suspect, 1, &[(SYN, Second), (ACK, Second)]),
        ("and again", &[SYN], Suspect, 0, &[(SYN, Second), (SYN, Second), (ACK, Second)]),
        ("the ACK of a suspect's answer", &[SYN], Suspect, 1, &[(ACK, First), (SYN, First)]),
        ("an established flow of a suspect", established, Suspect, 1, &[(ACK, First)]),
        ("a spoofed SYN to a suspect", established, Suspect, 1, &[(SYN, First), (FIN, First)]),
    ];
    for family in [Family::Ipv4, Family::Ipv6] {
        for (name, life, since, silence, next) in stories {
            sides.tables = tables();
            sides.forget();
            let client = ClientFrame::new(L2, family, 1);
            for (tick, &flags) in life.iter().enumerate() {
                sides.pass(u8::from(tick != 0));
                assert_eq!(sides.steer(name, &client.clone().with_flags(flags)), First, "{name}");
            }
            all_slots_to(&mut sides.tables, L2, family, 1);
            let first = &mut sides.tables.backends[usize::from(sample::backend(L2, family, 0))];
            match since {
                Drained => {}
                Gone => first.state = BackendState::Reset as u8,
                Suspect => first.state = BackendState::Suspect as u8,
                Removed => *first = lb_common::abi::Backend::default(),
            }
            sides.refill();
            sides.pass(silence);
            for (number, &(flags, to)) in next.iter().enumerate() {
                let found = sides.steer(name, &client.clone().with_flags(flags));
                assert_eq!(found, to, "{name}: {family:?}, segment {number}, {flags:#04x}");
            }
        }
    }
}

#[test]
fn what_happens_to_flows_is_counted() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    let client = |number| ClientFrame::new(L2, Family::Ipv4, number);
    let first = sample::backend(L2, Family::Ipv4, 0);
    for (name, sent, event) in [
        ("a SYN", client(1).with_flags(SYN), Some(Event::NewFlow)),
        ("the same again", client(1).with_flags(SYN), Some(Event::SynRetransmission)),
        ("its ACK", client(1), Some(Event::Handshake)),
        ("its next ACK", client(1), None),
        ("its RST", client(1).with_flags(RST), Some(Event::ClientReset)),
        ("a stranger's ACK", client(2), Some(Event::Adopted)),
        ("a stranger's FIN", client(3).with_flags(FIN), Some(Event::Adopted)),
        ("a stranger's RST", client(4).with_flags(RST), None),
    ] {
        let (_, _, counted) = sides.run(name, &sent.frame());
        let expected = event.map(|event| ((first, event.name()), 1)).into_iter().collect();
        assert_eq!(counted.events, expected, "{name}");
        assert_eq!(counted.traffic[&first].packets, 1, "{name}");
        let handshakes = counted.timeless().handshakes;
        assert_eq!(handshakes.contains_key(&first), event == Some(Event::Handshake), "{name}");
    }
    sides.tables.backends[usize::from(first)].state = BackendState::Reset as u8;
    sides.refill();
    let (_, _, counted) = sides.run("reset", &client(1).frame());
    assert_eq!(counted.event(first, Event::Reset), 1);
    assert_eq!((counted.reason(Reason::BackendGone), counted.packets()), (1, 0));
}

#[test]
fn a_full_table_drops_nobody() {
    let mut tables = tables();
    // A table of one group, full of old flows.
    tables.settings.flow_mask = 0;
    let Some(mut sides) = Sides::start(tables) else { return };
    for flags in [SYN, ACK, ACK] {
        for number in 0..GROUP as u16 {
            let sent = ClientFrame::new(L2, Family::Ipv4, number).with_flags(flags);
            assert_eq!(sides.steer("fill", &sent), To::First);
        }
        sides.pass(1);
    }
    let mut untracked = 0;
    for (number, flags) in (1000..1100).flat_map(|number| [SYN, ACK].map(|f| (number, f))) {
        let sent = ClientFrame::new(L2, Family::Ipv4, number).with_flags(flags);
        let (answer, _, counted) = sides.run("in the full table", &sent.frame());
        assert_eq!(answer, Answer::Transmit);
        untracked += counted.event(sample::backend(L2, Family::Ipv4, 0), Event::Untracked);
    }
    assert_eq!(untracked, 200);
}

#[test]
fn a_client_with_affinity_stays_with_one_backend() {
    let mut tables = sample::tables(1024);
    tables.settings.tick_shift = 40;
    let Some(mut sides) = Sides::start(tables) else { return };
    for family in [Family::Ipv4, Family::Ipv6] {
        for (purpose, expected) in [(Purpose::SourceIp, 1), (L2, usize::from(sample::BACKENDS))] {
            let mut macs = std::collections::BTreeSet::new();
            for port in 0..100 {
                let mut sent = ClientFrame::new(purpose, family, 5).with_flags(SYN);
                sent.client.set_port(3000 + port);
                macs.insert(sides.run("affinity", &sent.frame()).1.bytes[..6].to_vec());
            }
            assert_eq!(macs.len(), expected, "{purpose:?} {family:?}");
        }
    }
}

#[test]
fn a_syn_announces_what_its_service_lets_it_and_stays_so() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for family in [Family::Ipv4, Family::Ipv6] {
        let announcing = |mss: u16| {
            let [high, low] = mss.to_be_bytes();
            let tcp_options = vec![4, 2, 1, 2, 4, high, low, 0];
            ClientFrame {
                tcp_options,
                ..ClientFrame::new(Purpose::SourceIp, family, 1).with_flags(SYN)
            }
        };
        let mac = sample::mac(sample::backend(Purpose::SourceIp, family, 0));
        for (mss, lowered) in [(1460, sample::CLAMP), (sample::CLAMP, sample::CLAMP), (536, 536)] {
            // Its checksums are those of a frame that announces as much to begin with.
            let mut expected = announcing(lowered).frame();
            expected.bytes[..12].copy_from_slice(&[mac, sample::BALANCER_MAC].concat());
            for name in ["sent", "sent again"] {
                let sent = announcing(mss).frame();
                sides.expect(name, &sent, Answer::Transmit, &expected.bytes);
            }
            sides.forget();
        }
    }
}
