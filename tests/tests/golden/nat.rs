//! `nat.rs` and `forward/nat.rs`: connections by way of this host, frame by frame, both ways.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    counters::Event,
    frame::HostFrame,
    host::sample::{self, BALANCER_MAC, ClientFrame, FAMILIES, OTHER_MAC, Purpose, ROUTER_MAC},
    parse::{self, Family, Segment},
    reason::Reason,
    service::BackendState,
    wire::Tcp,
};
use sluice_tests::kernel::Answer;

use crate::sides::{Sides, tables};

const SYN: u8 = Tcp::SYN;
const SYN_ACK: u8 = Tcp::SYN | Tcp::ACK;
const ACK: u8 = Tcp::ACK;
const FIN: u8 = Tcp::FIN | Tcp::ACK;
const RST: u8 = Tcp::RST;

/// The MSS option between others, at an odd offset.
const OPTIONS: [u8; 8] = [1, 2, 4, 0xff, 0xff, 1, 1, 0];

fn backend(purpose: Purpose, family: Family) -> SocketAddr {
    let address = sample::backend_address(sample::backend(purpose, family, 0), family);
    SocketAddr::new(address, purpose.port())
}

fn tuple(frame: &HostFrame) -> (SocketAddr, SocketAddr) {
    let Segment { source, destination, ports, .. } =
        parse::segment(frame, |_, _| true).expect("well formed");
    (
        SocketAddr::new(source.into(), u16::from_be_bytes(ports.source)),
        SocketAddr::new(destination.into(), u16::from_be_bytes(ports.destination)),
    )
}

/// The same frame from one to the other, made anew: one hop later, with these MACs.
fn forwarded(
    sent: &ClientFrame,
    (from, to): (SocketAddr, SocketAddr),
    macs: [[u8; 6]; 2],
) -> Vec<u8> {
    let mut frame = ClientFrame { client: from, vip: to, ..sent.clone() }.frame();
    let segment = parse::segment(&frame, |_, _| true).expect("well formed");
    let l3 = usize::from(segment.l3);
    match segment.family {
        Family::Ipv4 => {
            frame.bytes[l3 + 8] = 62;
            frame.bytes[l3 + 10..l3 + 12].fill(0);
            let checksum = sample::internet_checksum(&[&frame.bytes[l3..usize::from(segment.l4)]]);
            frame.bytes[l3 + 10..l3 + 12].copy_from_slice(&checksum);
        }
        Family::Ipv6 => frame.bytes[l3 + 7] = 62,
    }
    frame.bytes[..12].copy_from_slice(&macs.concat());
    frame.bytes
}

/// Opens a connection on both sides; what its backend sends.
fn open(sides: &mut Sides, client: &ClientFrame) -> ClientFrame {
    let (_, output, counted) = sides.run("SYN", &client.clone().with_flags(SYN).frame());
    assert!(counted.reasons.is_empty(), "{:?}", counted.reasons);
    let (from, to) = tuple(&output);
    ClientFrame { client: to, vip: from, ..client.clone() }
}

/// What is sent, in the order of a connection's life, and what it becomes, made anew.
#[test]
fn a_connection_is_translated_both_ways() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for purpose in Purpose::NAT {
        for family in FAMILIES {
            sides.forget();
            let client = ClientFrame::new(purpose, family, 1);
            let back = open(&mut sides, &client);
            assert_eq!(back.client, backend(purpose, family));
            match purpose {
                Purpose::NatKeep => assert_eq!(back.vip, client.client),
                Purpose::Nat => assert_eq!(back.vip.ip(), sample::prober(0, family).ip()),
                _ => {
                    let own: [IpAddr; 2] = [0, 1].map(|n| sample::nat_address(n, family));
                    assert!(own.contains(&back.vip.ip()), "{}", back.vip);
                }
            }
            let mac = sample::mac(sample::backend(purpose, family, 0));
            // The backends of one are behind the other interface.
            let (ours, answer) = match purpose {
                Purpose::NatAddresses => (OTHER_MAC, Answer::Redirect),
                _ => (BALANCER_MAC, Answer::Transmit),
            };
            let tags = vec![[0x88, 0xa8, 0, 200], [0x81, 0, 0, 100]];
            let plain = |flags| ClientFrame { flags, ..client.clone() };
            let cases: [(&str, bool, ClientFrame); 12] = [
                ("a SYN again", false, plain(SYN)),
                (
                    "a SYN-ACK",
                    true,
                    ClientFrame { tcp_options: OPTIONS.to_vec(), ..plain(SYN_ACK) },
                ),
                ("an ACK", false, plain(ACK)),
                ("the same again", false, plain(ACK)),
                ("one byte", false, ClientFrame { payload: vec![0xff], ..plain(ACK) }),
                (
                    "a request",
                    false,
                    ClientFrame {
                        tags: tags.clone(),
                        payload: b"GET / HTTP/1.1\r\n".to_vec(),
                        padding: 3,
                        ..plain(ACK)
                    },
                ),
                ("its answer", true, ClientFrame { payload: vec![0x5a; 1400], ..plain(ACK) }),
                ("with IPv4 options", true, ClientFrame { ip_options: vec![1; 8], ..plain(ACK) }),
                (
                    "TCP options that look like an MSS",
                    true,
                    ClientFrame { tags, tcp_options: OPTIONS.to_vec(), ..plain(ACK) },
                ),
                ("the backend's FIN", true, plain(FIN)),
                ("the client's FIN", false, plain(FIN)),
                ("the last ACK", true, plain(ACK)),
            ];
            for (name, home, sent) in cases {
                let name = format!("{name}, {purpose:?} {family:?}");
                let (sent, to, macs, answer) = if home {
                    let sent = ClientFrame { client: back.client, vip: back.vip, ..sent };
                    (
                        sent,
                        (client.vip, client.client),
                        [ROUTER_MAC, BALANCER_MAC],
                        Answer::Transmit,
                    )
                } else {
                    (sent, (back.vip, back.client), [mac, ours], answer)
                };
                let mut expected = sent.clone();
                if sent.flags & SYN != 0 && !sent.tcp_options.is_empty() {
                    let mss = sample::MTU - if family == Family::Ipv4 { 40 } else { 60 };
                    expected.tcp_options[3..5].copy_from_slice(&mss.to_be_bytes());
                }
                let expected = forwarded(&expected, to, macs);
                let input = sent.frame();
                let counted = sides.expect(&name, &input, answer, &expected);
                let traffic = counted.traffic[&sample::backend(purpose, family, 0)];
                let length = input.bytes.len() as u64;
                let found = if home {
                    (traffic.return_packets, traffic.return_bytes, traffic.packets)
                } else {
                    (traffic.packets, traffic.bytes, traffic.return_packets)
                };
                assert_eq!(found, (1, length, 0), "{name}");
            }
        }
    }
}

/// What happens to translated flows, in this order, and what is counted: by its event or by its
/// reason.
#[test]
fn what_happens_to_translated_flows_is_counted() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    const NAT: Purpose = Purpose::Nat;
    let event = |event: Event| (Some(event), None);
    let reason = |reason: Reason| (None, Some(reason));
    let nothing = (None, None);
    let cases = [
        ("a SYN again", 1, false, SYN, event(Event::SynRetransmission)),
        ("its answer", 1, true, SYN_ACK, event(Event::Handshake)),
        ("the same again", 1, true, SYN_ACK, nothing),
        ("its ACK", 1, false, ACK, nothing),
        ("the backend's RST", 1, true, RST, event(Event::BackendReset)),
        ("a refusal", 2, true, RST | ACK, event(Event::Refusal)),
        ("a client's RST", 3, false, RST, event(Event::ClientReset)),
        ("a stranger's ACK", 100, false, ACK, reason(Reason::NatNoMapping)),
        ("a stranger's FIN", 100, false, FIN, reason(Reason::NatNoMapping)),
        ("a stranger's RST", 100, false, RST, reason(Reason::RstUnknown)),
        ("a backend's ACK for nobody", 100, true, ACK, reason(Reason::NatNoReturn)),
        ("a backend's SYN for nobody", 100, true, SYN, reason(Reason::NatNoReturn)),
    ];
    for family in FAMILIES {
        sides.forget();
        let index = sample::backend(NAT, family, 0);
        let client = |number| ClientFrame::new(NAT, family, number);
        let pairs: Vec<ClientFrame> =
            (1..4).map(|number| open(&mut sides, &client(number))).collect();
        for (name, number, home, flags, (event, reason)) in cases {
            let sent = if !home {
                client(number)
            } else if let Some(back) = pairs.get(usize::from(number) - 1) {
                back.clone()
            } else {
                let vip = SocketAddr::new(pairs[0].vip.ip(), 1024 + 31_743);
                ClientFrame { vip, ..pairs[0].clone() }
            };
            let (_, _, counted) = sides.run(name, &sent.with_flags(flags).frame());
            let events = event.map(|event| ((index, event.name()), 1)).into_iter().collect();
            let reasons = reason.map(|reason| (reason.name(), 1)).into_iter().collect();
            assert_eq!((counted.events, counted.reasons), (events, reasons), "{name}");
        }
    }
}

/// Silences, evictions, backends that go: both sides keep the same entries, records and hops.
#[test]
fn what_is_remembered_of_translated_flows_is_the_same_on_both_sides() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for purpose in Purpose::NAT {
        for family in FAMILIES {
            sides.tables = tables();
            sides.forget();
            let client = ClientFrame::new(purpose, family, 1);
            let mut back = open(&mut sides, &client);
            for (round, silence) in [0, 1, 17, 5, 222].into_iter().enumerate() {
                sides.pass(silence);
                for (home, flags) in
                    [(false, SYN), (true, SYN_ACK), (false, ACK), (true, ACK), (false, FIN)]
                {
                    let sent = if home { &back } else { &client };
                    sides.run("a life", &sent.clone().with_flags(flags).frame());
                    sides.expect_same_memory(&format!("{purpose:?}, round {round}, {flags:#04x}"));
                }
                sides.run("its end", &back.clone().with_flags(FIN).frame());
                back = open(&mut sides, &client);
            }
            let index = usize::from(sample::backend(purpose, family, 0));
            sides.tables.backends[index].state = BackendState::Reset as u8;
            sides.refill();
            for sent in [&back, &client] {
                let (answer, output, counted) = sides.run("gone", &sent.frame());
                assert_eq!(answer, Answer::Transmit);
                assert_eq!(counted.reason(Reason::BackendGone), 1);
                assert_eq!(tuple(&output), (sent.vip, sent.client), "a RST goes back");
            }
            sides.expect_same_memory("gone");
        }
    }
}

#[test]
fn every_port_is_used_once_and_then_new_flows_are_refused() {
    let mut prepared = tables();
    prepared.settings.nat_port_count = 32;
    let Some(mut sides) = Sides::start(prepared) else { return };
    let mut ports = std::collections::BTreeSet::new();
    let mut refused = 0;
    for number in 0..300 {
        let sent = ClientFrame::new(Purpose::Nat, Family::Ipv4, number).with_flags(SYN);
        let (_, output, counted) = sides.run("SYN", &sent.frame());
        if counted.reason(Reason::NatPortsExhausted) == 0 {
            assert!(ports.insert(tuple(&output).0.port()));
        } else {
            refused += 1;
        }
    }
    assert_eq!((ports, refused), ((1024..1056).collect(), 300 - 32));
    sides.expect_same_memory("exhausted");
}
