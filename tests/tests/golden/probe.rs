//! `probe.rs`: health probes go the way of traffic, their answers to the prober, and nothing else
//! of this host does.

use lb_common::{
    abi::{PROBE_HOST_MAC, PROBE_PEER_MAC},
    frame::HostFrame,
    host::{
        HostTables,
        sample::{self, ClientFrame, FAMILIES, Purpose},
    },
    parse::Family,
    reason::Reason,
    service::BackendState,
    wire::Tcp,
};
use sluice_tests::kernel::{Answer, Program};

use crate::sides::{Sides, tables};

/// The backend that is probed.
fn probed(purpose: Purpose, family: Family) -> u16 {
    sample::backend(purpose, family, 1)
}

/// A SYN from the prober to a service, at its second backend.
pub fn probe(purpose: Purpose, family: Family) -> ClientFrame {
    let client = sample::prober(probed(purpose, family), family);
    ClientFrame { client, flags: Tcp::SYN, ..ClientFrame::new(purpose, family, 0) }
}

/// What that backend answers.
pub fn answer(purpose: Purpose, family: Family) -> ClientFrame {
    let ClientFrame { client, vip, .. } = probe(purpose, family);
    let flags = Tcp::SYN | Tcp::ACK;
    ClientFrame { client: vip, vip: client, flags, ..probe(purpose, family) }
}

/// An answer as the prober gets it: a frame without tags, from the other end of its veth pair.
fn handed_over(sent: &ClientFrame) -> Vec<u8> {
    let mut bytes = ClientFrame { tags: Vec::new(), ..sent.clone() }.frame().bytes;
    bytes[..6].copy_from_slice(&PROBE_PEER_MAC);
    bytes[6..12].copy_from_slice(&PROBE_HOST_MAC);
    bytes
}

impl Sides {
    /// Runs a frame; nothing may be counted but this reason, and no flow remembered.
    #[track_caller]
    fn without_trace(
        &mut self,
        program: Program,
        name: &str,
        frame: &HostFrame,
        reason: Option<Reason>,
    ) -> (Answer, HostFrame) {
        let (answer, output, counted) = self.run_through(program, name, frame);
        let expected = reason.map(|reason| (reason.name(), 1)).into_iter().collect();
        assert_eq!(counted.reasons, expected, "{name}\n{frame:?}");
        assert_eq!((counted.traffic.len(), counted.events.len()), (0, 0), "{name}\n{frame:?}");
        assert!(self.tables.records().is_empty(), "{name}\n{frame:?}");
        (answer, output)
    }
}

/// Whatever the flow table, the slots and the backend's state say.
#[test]
fn a_probe_goes_to_its_backend_as_traffic_does() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for family in FAMILIES {
        for purpose in Purpose::ALL {
            // Who is reached by translation is asked at its own address.
            if purpose == Purpose::Unresolved || Purpose::NAT.contains(&purpose) {
                continue;
            }
            let name = format!("{purpose:?} {family:?}");
            let probe = probe(purpose, family).frame();
            let probe = HostFrame { interface: sample::INTERFACE, ..probe };
            // As traffic from the same client would be forwarded, if all slots were its backend's.
            let mut as_traffic = sample::tables(16);
            let index = probed(purpose, family);
            let service = usize::from(sample::service(purpose, family));
            as_traffic.services[service].slots.fill(index);
            let mut forwarded = probe.clone();
            let expected = Program::Sluice.on_host(&mut forwarded, &as_traffic);

            for state in [BackendState::Forward, BackendState::Reset] {
                sides.tables.backends[usize::from(index)].state = state as u8;
                sides.refill();
                let (answer, output) = sides.without_trace(Program::Probe, &name, &probe, None);
                assert_eq!(answer, expected, "{name}");
                assert_eq!(output.bytes, forwarded.bytes, "{name}");
                assert_eq!(answer == Answer::Redirect, purpose == Purpose::Elsewhere, "{name}");
            }
        }
    }
}

#[test]
fn what_is_no_probe_does_not_leave_the_prober() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    type Prepare = fn(&mut HostTables);
    let l2 = || probe(Purpose::L2, Family::Ipv4);
    let with = |change: fn(&mut ClientFrame)| {
        let mut probe = l2();
        change(&mut probe);
        probe.frame()
    };
    let nothing: Prepare = |_| {};
    let cases: [(&str, HostFrame, Prepare); 11] = [
        ("from a port of no probe", with(|probe| probe.client.set_port(1)), nothing),
        ("to another port", with(|probe| probe.vip.set_port(81)), nothing),
        (
            "to another VIP",
            with(|probe| probe.vip = sample::vip(Purpose::InIpv4, Family::Ipv4)),
            nothing,
        ),
        ("with a VLAN tag", with(|probe| probe.tags.push([0x81, 0, 0, 7])), nothing),
        ("unresolved", probe(Purpose::Unresolved, Family::Ipv6).frame(), nothing),
        ("to who is reached by translation", probe(Purpose::Nat, Family::Ipv4).frame(), nothing),
        (
            "neighbour solicitation",
            HostFrame::new([&[0; 12][..], &[0x86, 0xdd], &[0x60; 60]].concat()),
            nothing,
        ),
        ("ARP", HostFrame::new([&[0xff; 12][..], &[8, 6], &[0; 28]].concat()), nothing),
        ("a backend that was removed", l2().frame(), |tables| {
            let index = usize::from(probed(Purpose::L2, Family::Ipv4));
            tables.backends[index] = lb_common::abi::Backend::default();
        }),
        // Without a check of the index, it would pass for a backend of service 0.
        ("of no backend, to service 0", l2().frame(), |tables| tables.probes.clear()),
        ("no settings", l2().frame(), |tables| tables.settings.abi_version = 0),
    ];
    for (name, frame, prepare) in cases {
        sides.tables = tables();
        prepare(&mut sides.tables);
        sides.refill();
        let reason = Some(Reason::ProbeUndelivered);
        let (answer, output) = sides.without_trace(Program::Probe, name, &frame, reason);
        assert_eq!(answer, Answer::Drop, "{name}");
        assert_eq!(output.bytes, frame.bytes, "{name}");
    }
}

/// As a client is, though nobody counts it.
#[test]
fn the_prober_is_told_what_is_too_big() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for family in FAMILIES {
        let payload = vec![0; 1450];
        let probe = ClientFrame { payload, ..probe(Purpose::InIpv4, family) }.frame();
        let (answer, output) = sides.without_trace(Program::Probe, "too big", &probe, None);
        assert_eq!(answer, Answer::Transmit, "{family:?}");
        assert_eq!(output.bytes, sample::too_big(&probe, 1480).bytes, "{family:?}");
    }
}

#[test]
fn an_answer_is_handed_to_the_prober() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    let tag = [0x81, 0, 0, 7];
    let provider = [0x88, 0xa8, 0, 8];
    for family in FAMILIES {
        for purpose in Purpose::ALL {
            for (name, tags) in
                [("plain", vec![]), ("tagged", vec![tag]), ("twice", vec![provider, tag])]
            {
                for flags in [Tcp::SYN | Tcp::ACK, Tcp::ACK, Tcp::FIN | Tcp::ACK, Tcp::RST] {
                    let name = format!("{name}, {purpose:?} {family:?}, {flags:#04x}");
                    let tags = tags.clone();
                    let answer = ClientFrame { tags, flags, ..answer(purpose, family) };
                    for program in [Program::Sluice, Program::Answers] {
                        let reason = Some(Reason::ProbeAnswer);
                        let (found, output) =
                            sides.without_trace(program, &name, &answer.frame(), reason);
                        assert_eq!(found, Answer::Redirect, "{name}");
                        let expected = HostFrame::new(handed_over(&answer));
                        assert_eq!(output.bytes, expected.bytes, "{name}\n{output:?}{expected:?}");
                    }
                }
            }
        }
    }
}

/// A probe's source is an address of this host, and the filter lets all frames for it through.
#[test]
fn all_else_for_a_probes_source_is_the_hosts() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    type Prepare = fn(&mut HostTables);
    let nothing: Prepare = |_| {};
    for family in FAMILIES {
        let with = |change: &dyn Fn(&mut ClientFrame)| {
            let mut answer = answer(Purpose::L2, family);
            change(&mut answer);
            answer.frame()
        };
        let to_own = |flags| ClientFrame {
            vip: sample::prober(0, family),
            flags,
            ..ClientFrame::new(Purpose::L2, family, 1)
        };
        let mut udp = with(&|_| {});
        udp.bytes[if family == Family::Ipv4 { 23 } else { 20 }] = 17;
        let mut cases: Vec<(&str, HostFrame, Prepare)> = vec![
            ("SSH", to_own(Tcp::ACK).frame(), nothing),
            ("a SYN", to_own(Tcp::SYN).frame(), nothing),
            ("a RST", to_own(Tcp::RST).frame(), nothing),
            ("UDP", udp, nothing),
            (
                "half a TCP header",
                {
                    let mut frame = with(&|_| {});
                    frame.bytes.truncate(frame.bytes.len() - 10);
                    frame
                },
                nothing,
            ),
            ("from another port of the VIP", with(&|answer| answer.client.set_port(81)), nothing),
            ("to a port of no probe", with(&|answer| answer.vip.set_port(22)), nothing),
            (
                "to the port of another service's probe",
                with(&|answer| {
                    answer.vip.set_port(sample::probe_port(probed(Purpose::InIpv4, family)));
                }),
                nothing,
            ),
            ("nobody probes", with(&|_| {}), |tables| tables.settings.probe_interface = 0),
            ("from no source of probes", with(&|_| {}), |tables| tables.probe_sources.clear()),
            ("of a backend that was removed", with(&|_| {}), |tables| {
                for family in FAMILIES {
                    tables.backends[usize::from(probed(Purpose::L2, family))].state = 0;
                }
            }),
        ];
        if family == Family::Ipv4 {
            let mut fragment = with(&|_| {});
            fragment.bytes[20] = 0x20;
            cases.push(("a fragment", fragment, nothing));
        }
        for (name, frame, prepare) in cases {
            sides.tables = tables();
            prepare(&mut sides.tables);
            sides.refill();
            let name = format!("{name}, {family:?}");
            for (program, reason) in
                [(Program::Sluice, Some(Reason::NotVip)), (Program::Answers, None)]
            {
                let (answer, output) = sides.without_trace(program, &name, &frame, reason);
                assert_eq!(answer, Answer::Pass, "{name}");
                assert_eq!(output.bytes, frame.bytes, "{name}");
            }
        }
    }
}
