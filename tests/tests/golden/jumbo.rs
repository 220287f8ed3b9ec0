//! Jumbo frames: they lie in several buffers, of which a program sees the first.

use lb_common::{
    frame::HostFrame,
    host::{
        HostTables,
        sample::{self, ClientFrame, FAMILIES, Purpose},
    },
    parse::Family,
    reason::Reason,
    wire::Tcp,
};
use sluice_tests::kernel::Answer;

use crate::sides::{Sides, tables};

/// The sample instance on a network with an MTU of 9,216 bytes.
fn jumbo_tables() -> HostTables {
    let mut tables = tables();
    for backend in &mut tables.backends {
        backend.mtu = 9216;
    }
    tables
}

fn jumbo(purpose: Purpose, family: Family) -> ClientFrame {
    let payload = (0..8900).map(|byte| (byte % 251) as u8).collect();
    ClientFrame { payload, ..ClientFrame::new(purpose, family, 1) }
}

/// That the bytes are right, the host says.
#[test]
fn they_are_forwarded_whole_in_every_way_and_counted_in_full() {
    let Some(mut sides) = Sides::start(jumbo_tables()) else { return };
    let ways = [Purpose::L2, Purpose::InIpv4, Purpose::InIpv6, Purpose::Nat, Purpose::Elsewhere];
    for (purpose, family) in ways.into_iter().flat_map(|way| FAMILIES.map(|family| (way, family))) {
        for tags in [vec![], vec![[0x81, 0, 0, 100]]] {
            let name = format!("{purpose:?} {family:?}, {} tags", tags.len());
            let sent = ClientFrame { tags, ..jumbo(purpose, family) };
            let short = ClientFrame { payload: vec![], ..sent.clone() }.with_flags(Tcp::SYN);
            sides.run(&name, &short.frame());
            let input = sent.frame();
            let (answer, output, counted) = sides.run(&name, &input);
            let elsewhere = purpose == Purpose::Elsewhere;
            let expected = if elsewhere { Answer::Redirect } else { Answer::Transmit };
            assert_eq!(answer, expected, "{name}: {counted:?}");
            assert!(output.bytes.ends_with(&sent.payload), "{name}");
            let traffic = counted.traffic[&sample::backend(purpose, family, 0)];
            assert_eq!((traffic.packets, traffic.bytes), (1, input.bytes.len() as u64), "{name}");
        }
    }
}

#[test]
fn one_that_lies_about_its_length_is_dropped_and_of_one_too_big_its_sender_is_told() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for family in FAMILIES {
        let mut frame = jumbo(Purpose::L2, family).frame();
        assert_eq!(frame.bytes.pop(), Some((8899 % 251) as u8));
        let counted = sides.expect("a byte is missing", &frame, Answer::Drop, &frame.bytes);
        assert_eq!(counted.reasons, [(Reason::BadLength.name(), 1)].into());
        let frame = jumbo(Purpose::InIpv4, family).frame();
        let told = sample::too_big(&frame, sample::MTU - 20);
        let counted = sides.expect("too big", &frame, Answer::Transmit, &told.bytes);
        assert_eq!(counted.reasons, [(Reason::TooBig.name(), 1)].into());
    }
}

/// The RST that answers it is short: the other buffers are given back.
#[test]
fn one_that_nobody_takes_is_answered() {
    let Some(mut sides) = Sides::start(jumbo_tables()) else { return };
    for (family, length) in [(Family::Ipv4, 54), (Family::Ipv6, 74)] {
        let input: HostFrame = jumbo(Purpose::Empty, family).frame();
        let (answer, output, counted) = sides.run("nobody takes it", &input);
        assert_eq!((answer, output.bytes.len()), (Answer::Transmit, length), "{counted:?}");
        assert_eq!(counted.reasons, [(Reason::NoBackend.name(), 1)].into());
    }
}
