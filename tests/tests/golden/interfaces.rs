//! Verdicts are counted with the interface where the frame arrived.

use lb_common::{
    abi::{ALONE, ELSEWHERE, FIRST, SEVERAL},
    frame::HostFrame,
    host::{
        FORWARDED,
        sample::{self, ClientFrame, INTERFACE, Purpose},
    },
    parse::Family,
    reason::Reason,
    wire::Tcp,
};
use sluice_tests::kernel::Program;

use crate::sides::{Sides, tables};

/// A frame of each verdict, by the program that gets it, and as what it is counted.
fn frames() -> Vec<(Program, HostFrame, &'static str)> {
    let client = |purpose| ClientFrame::new(purpose, Family::Ipv4, 1).with_flags(Tcp::SYN);
    let mut stranger = client(Purpose::L2);
    stranger.vip.set_ip([192, 0, 2, 7].into());
    // To a probe.
    let answer = |number| {
        let backend = sample::backend(Purpose::L2, Family::Ipv4, number);
        let mut answer = client(Purpose::L2).with_flags(Tcp::SYN | Tcp::ACK);
        answer.client = sample::prober(backend, Family::Ipv4);
        std::mem::swap(&mut answer.client, &mut answer.vip);
        answer.frame()
    };
    let mut undelivered = client(Purpose::Unresolved);
    let unresolved = sample::backend(Purpose::Unresolved, Family::Ipv4, 0);
    undelivered.client = sample::prober(unresolved, Family::Ipv4);
    vec![
        (Program::Sluice, client(Purpose::L2).frame(), FORWARDED),
        (Program::Sluice, client(Purpose::InIpv6).frame(), FORWARDED),
        (Program::Sluice, stranger.frame(), Reason::NotVip.name()),
        (Program::Sluice, client(Purpose::Unresolved).frame(), Reason::NoNextHop.name()),
        (Program::Sluice, client(Purpose::Empty).frame(), Reason::NoBackend.name()),
        (Program::Sluice, answer(0), Reason::ProbeAnswer.name()),
        (Program::Answers, answer(0), Reason::ProbeAnswer.name()),
        (Program::Probe, undelivered.frame(), Reason::ProbeUndelivered.name()),
    ]
}

#[test]
fn each_verdict_is_counted_at_the_place_of_the_frames_interface() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for (mode, indices, place) in [
        (ALONE, vec![], ALONE),
        (ALONE, vec![7, INTERFACE], ALONE),
        (SEVERAL, vec![INTERFACE], FIRST),
        (SEVERAL, vec![7, 8, INTERFACE], FIRST + 2),
        (SEVERAL, vec![7, 8], ELSEWHERE),
    ] {
        sides.tables = tables();
        sides.tables.interfaces.place = mode;
        sides.tables.interfaces.indices[..indices.len()].copy_from_slice(&indices);
        sides.forget();
        for (program, frame, name) in frames() {
            let case = format!("{name} of {program:?}, {indices:?}");
            let (_, _, counted) = sides.run_through(program, &case, &frame);
            let place = if program == Program::Sluice { place } else { ELSEWHERE };
            let expected = if place == ALONE { vec![] } else { vec![((place, name), 1)] };
            assert_eq!(counted.by_place.into_iter().collect::<Vec<_>>(), expected, "{case}");
        }
    }
}
