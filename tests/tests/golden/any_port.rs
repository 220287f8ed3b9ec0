//! A service of any port, and one of a port of its address.

use lb_common::{
    counters::Event,
    host::sample::{self, ClientFrame, FAMILIES, Purpose},
    reason::Reason,
    wire::Tcp,
};
use sluice_tests::kernel::Answer;

use crate::sides::{Sides, tables};

/// Who is meant to get a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum To {
    /// A backend of the service of any port.
    Any,
    /// A backend of the service of the one port.
    Beside,
    /// This host.
    Host,
}

#[test]
fn a_port_goes_to_its_own_service_and_all_others_to_the_one_of_any() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for family in FAMILIES {
        let cases = [
            (1, To::Any),
            (22, To::Any),
            (80, To::Any),
            (442, To::Any),
            (443, To::Beside),
            (444, To::Any),
            (65_535, To::Any),
            (0, To::Host),
        ];
        for (number, (port, to)) in cases.into_iter().enumerate() {
            let mut sent = ClientFrame::new(Purpose::AnyPort, family, number as u16);
            sent.vip.set_port(port);
            for flags in [Tcp::SYN, Tcp::ACK, Tcp::ACK, Tcp::FIN | Tcp::ACK, Tcp::RST] {
                let frame = sent.clone().with_flags(flags).frame();
                let name = format!("{family:?} port {port} flags {flags:#x}");
                let (answer, output, counted) = sides.run(&name, &frame);
                let purpose = match to {
                    To::Any => Purpose::AnyPort,
                    To::Beside => Purpose::BesideAny,
                    To::Host => {
                        assert_eq!((answer, output.bytes), (Answer::Pass, frame.bytes), "{name}");
                        assert_eq!(counted.reason(Reason::NotService), 1, "{name}");
                        continue;
                    }
                };
                assert_eq!(answer, Answer::Transmit, "{name}: {counted:?}");
                let mac = sample::mac(sample::backend(purpose, family, 0));
                assert_eq!(output.bytes[..6], mac, "{name}\n{output:?}");
                // Nothing of the packet is rewritten: the port is the one that was asked for.
                assert_eq!(output.bytes[14..], frame.bytes[14..], "{name}");
            }
        }
    }
}

#[test]
fn a_flow_stays_when_its_port_gets_a_service_of_its_own() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for family in FAMILIES {
        let beside = usize::from(sample::service(Purpose::BesideAny, family));
        sides.tables.services[beside].listed = false;
        sides.refill();
        let old = ClientFrame::new(Purpose::BesideAny, family, 1);
        let mut first = Vec::new();
        for flags in [Tcp::SYN, Tcp::ACK, Tcp::ACK] {
            first = sides.run("before", &old.clone().with_flags(flags).frame()).1.bytes;
        }
        sides.tables.services[beside].listed = true;
        sides.refill();
        let (_, output, counted) = sides.run("after", &old.frame());
        assert_eq!(output.bytes[..6], first[..6]);
        assert_eq!(counted.events.len(), 0, "{counted:?}");
        let new = ClientFrame::new(Purpose::BesideAny, family, 2).with_flags(Tcp::SYN);
        let (_, _, counted) = sides.run("a new one", &new.frame());
        let index = sample::backend(Purpose::BesideAny, family, 0);
        assert!(counted.events.contains_key(&(index, Event::NewFlow.name())), "{counted:?}");
    }
}
