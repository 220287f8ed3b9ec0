//! Self-tests: frames of the daemon's own run the road of traffic and leave nothing behind.

use lb_common::{
    abi::{ALONE, SELF_TEST_INTERFACE, SELF_TEST_PORT, SEVERAL},
    frame::HostFrame,
    host::{
        Counted, HostTables,
        sample::{self, ClientFrame, FAMILIES, OTHER_INTERFACE, Purpose},
    },
    parse::Family,
    reason::Reason,
    service::BackendState,
    wire::Tcp,
};
use sluice_tests::kernel::Answer;

use crate::sides::{Sides, tables};

fn self_test(purpose: Purpose, family: Family) -> HostFrame {
    let mut sent = ClientFrame::new(purpose, family, 1).with_flags(Tcp::SYN);
    sent.client.set_port(SELF_TEST_PORT);
    HostFrame { interface: SELF_TEST_INTERFACE, ..sent.frame() }
}

/// Runs one; nothing may be remembered, and nothing counted with a backend or a reason.
#[track_caller]
fn without_trace(sides: &mut Sides, name: &str, frame: &HostFrame) -> (Answer, HostFrame) {
    let (answer, output, counted) = sides.run(name, frame);
    let Counted { reasons, by_place, traffic, events, handshakes, evictions } = counted;
    assert!(evictions.is_empty(), "{name}: {evictions:?}");
    assert!(by_place.is_empty(), "{name}: {by_place:?}");
    assert!(reasons.is_empty() && events.is_empty(), "{name}: {reasons:?} {events:?}");
    assert!(handshakes.is_empty(), "{name}: {handshakes:?}");
    assert!(traffic.keys().all(|backend| *backend == 0), "{name}: {traffic:?}");
    assert!(sides.tables.records().is_empty(), "{name}");
    (answer, output)
}

#[test]
fn a_self_test_is_forwarded_as_a_client_and_leaves_no_trace() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    // Nor where each interface is counted by itself.
    for (family, place) in [(Family::Ipv4, ALONE), (Family::Ipv6, SEVERAL)] {
        sides.tables.interfaces.place = place;
        sides.refill();
        for purpose in Purpose::ALL {
            let name = format!("{purpose:?} {family:?}");
            let frame = self_test(purpose, family);
            let (answer, output) = without_trace(&mut sides, &name, &frame);
            let expected = match purpose {
                Purpose::Elsewhere | Purpose::NatAddresses => Answer::Redirect,
                Purpose::Unresolved | Purpose::Empty => Answer::Drop,
                _ => Answer::Transmit,
            };
            assert_eq!(answer, expected, "{name}");
            if answer == Answer::Drop {
                assert_eq!(output.bytes, frame.bytes, "{name}");
            } else {
                let mac = sample::mac(sample::backend(purpose, family, 0));
                assert_eq!(output.bytes[..6], mac, "{name}\n{output:?}");
            }
        }
    }
}

#[test]
fn a_self_test_that_fails_is_not_counted_either() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    type Damage = fn(&mut HostTables, Family);
    let cases: [(&str, Damage); 4] = [
        ("a service that is not listed", |tables, family| {
            tables.services[usize::from(sample::service(Purpose::L2, family))].listed = false;
        }),
        ("a backend that is gone", |tables, family| {
            let index = usize::from(sample::backend(Purpose::L2, family, 0));
            tables.backends[index].state = BackendState::Reset as u8;
        }),
        ("a backend that was removed", |tables, family| {
            tables.backends[usize::from(sample::backend(Purpose::L2, family, 0))].state = 0;
        }),
        ("empty slots", |tables, family| {
            tables.services[usize::from(sample::service(Purpose::L2, family))].slots.fill(0);
        }),
    ];
    for family in FAMILIES {
        for (name, damage) in cases {
            sides.tables = tables();
            damage(&mut sides.tables, family);
            sides.refill();
            let frame = self_test(Purpose::L2, family);
            let (answer, output) = without_trace(&mut sides, name, &frame);
            assert_eq!(answer, Answer::Drop, "{name}");
            assert_eq!(output.bytes, frame.bytes, "{name}");
        }
    }
}

/// From outside nobody can send what is not counted.
#[test]
fn a_clients_frame_from_port_0_is_no_self_test() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for family in FAMILIES {
        sides.forget();
        let frame = HostFrame { interface: OTHER_INTERFACE, ..self_test(Purpose::L2, family) };
        let (answer, _, counted) = sides.run("from port 0", &frame);
        assert_eq!(answer, Answer::Drop);
        assert_eq!(counted.reasons, [(Reason::BadPort.name(), 1)].into());
    }
}
