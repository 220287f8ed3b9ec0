//! `icmp.rs`: errors follow the flow that they quote; all else that is not TCP is the kernel's.

use lb_common::{
    host::{
        Counted, errors,
        sample::{self, BALANCER_MAC, ClientFrame, FAMILIES, Purpose},
    },
    parse::Family,
    reason::Reason,
    wire::Tcp,
};
use sluice_tests::kernel::Answer;

use crate::sides::{Sides, tables};

/// Opens a client's flow, which the first backend gets.
fn open(sides: &mut Sides, purpose: Purpose, family: Family) -> ClientFrame {
    let sent = ClientFrame::new(purpose, family, 7).with_flags(Tcp::SYN);
    assert_eq!(sides.run("SYN", &sent.frame()).0, Answer::Transmit);
    sent
}

/// IPv4's "fragmentation needed", IPv6's "packet too big".
#[test]
fn an_error_about_a_known_flow_goes_to_its_backend_untouched() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for family in FAMILIES {
        for (purpose, overhead) in [(Purpose::L2, 0), (Purpose::InIpv4, 20), (Purpose::InIpv6, 40)]
        {
            let client = open(&mut sides, purpose, family);
            let backend = sample::backend(purpose, family, 0);
            for quoted in [8, 20] {
                let error = errors::too_big(client.vip, client.client, quoted);
                let name = format!("{purpose:?} {family:?}, {quoted} bytes are quoted");
                let (answer, output, counted) = sides.run(&name, &error);
                assert_eq!(answer, Answer::Transmit, "{name}");
                assert_eq!(output.bytes[..6], sample::mac(backend), "{name}");
                assert_eq!(output.bytes[6..12], BALANCER_MAC, "{name}");
                assert_eq!(output.bytes[14 + overhead..], error.bytes[14..], "{name}");
                assert_eq!(counted.traffic[&backend].packets, 1, "{name}");
                assert_eq!(counted.reasons, [].into(), "{name}");
            }
        }
    }
}

#[test]
fn what_is_no_error_about_a_known_flow_is_passed_untouched() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for family in FAMILIES {
        for purpose in [Purpose::L2, Purpose::InIpv6, Purpose::Nat] {
            let client = open(&mut sides, purpose, family);
            for (what, frame) in errors::strange(client.vip, client.client) {
                let name = format!("{what}, {purpose:?} {family:?}");
                let counted = sides.expect(&name, &frame, Answer::Pass, &frame.bytes);
                let reasons = [(Reason::NotTcp.name(), 1)].into();
                assert_eq!(counted, Counted { reasons, ..Counted::default() }, "{name}");
            }
        }
    }
}

#[test]
fn a_ping_of_a_vip_that_is_to_be_silent_is_dropped() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for family in FAMILIES {
        let client = sample::client(family, 7, 0).ip();
        let kind = if family == Family::Ipv4 { 8 } else { 128 };
        for (purpose, reason, answer) in [
            (Purpose::Empty, Reason::EchoUnhealthy, Answer::Drop),
            (Purpose::L2, Reason::NotTcp, Answer::Pass),
        ] {
            let ping = errors::echo(client, sample::vip(purpose, family).ip(), kind);
            let name = format!("{purpose:?} {family:?}");
            let counted = sides.expect(&name, &ping, answer, &ping.bytes);
            let reasons = [(reason.name(), 1)].into();
            assert_eq!(counted, Counted { reasons, ..Counted::default() }, "{name}");
        }
        // What it answers to others' pings is nobody's to drop.
        let kind = if family == Family::Ipv4 { 0 } else { 129 };
        let reply = errors::echo(client, sample::vip(Purpose::Empty, family).ip(), kind);
        sides.expect("an answer", &reply, Answer::Pass, &reply.bytes);
    }
}
