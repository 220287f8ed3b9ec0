use core::net::SocketAddr;
use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    frame::HostFrame,
    host::{
        HostTables,
        sample::{
            self, BALANCER_MAC, ClientFrame, FAMILIES, INTERFACE, MTU, OTHER_INTERFACE, OTHER_MAC,
            Purpose, ROUTER_MAC, internet_checksum,
        },
    },
    parse, steer,
};

const SYN: u8 = Tcp::SYN;
const SYN_ACK: u8 = Tcp::SYN | Tcp::ACK;
const ACK: u8 = Tcp::ACK;
const TAGS: [[u8; 4]; 2] = [[0x88, 0xa8, 0, 200], [0x81, 0, 0, 100]];
/// What `ClientFrame` writes.
const HOPS: u8 = 63;

/// One connection through the tables: what it is on either side.
struct Connection {
    tables: HostTables,
    purpose: Purpose,
    /// From the client to the VIP.
    outside: [SocketAddr; 2],
    /// From what the backend sees to the backend.
    inside: [SocketAddr; 2],
    backend: u16,
}

impl Connection {
    fn open(purpose: Purpose, family: Family, number: u16) -> Self {
        let tables = sample::tables(1024);
        let sent = ClientFrame::new(purpose, family, number);
        let mut frame = sent.clone().with_flags(SYN).frame();
        let _ = steer::process(&mut frame, &tables, 0);
        let (backend, traffic) = tables.take_counted().traffic.pop_first().expect("it is opened");
        assert_eq!(traffic.packets, 1);
        let tuple = Tuple::of(&parse::segment(&frame, |_, _| true).expect("well formed"));
        let socket =
            |address: Address, port| SocketAddr::new(address.into(), u16::from_be_bytes(port));
        let inside = [
            socket(tuple.source, tuple.ports.source),
            socket(tuple.destination, tuple.ports.destination),
        ];
        Self { tables, purpose, outside: [sent.client, sent.vip], inside, backend }
    }

    fn set_mtu(&mut self, mtu: u16) {
        self.tables.backends[usize::from(self.backend)].mtu = mtu;
    }

    /// A frame of this connection, and what it becomes if it is translated: made anew, with
    /// checksums over every byte.
    fn frames(&self, like: &ClientFrame, home: bool, hops: u8) -> [HostFrame; 2] {
        let [client, vip] = self.outside;
        let [seen, server] = self.inside;
        let (sent, becomes) =
            if home { ([server, seen], [vip, client]) } else { ([client, vip], [seen, server]) };
        let made = |[from, to]: [SocketAddr; 2], hops| {
            let mut frame = ClientFrame { client: from, vip: to, ..like.clone() }.frame();
            set_hops(&mut frame, hops);
            frame
        };
        let mut becomes = made(becomes, hops.wrapping_sub(1));
        let macs = match (home, self.purpose) {
            (true, _) => [ROUTER_MAC, BALANCER_MAC],
            (false, Purpose::NatAddresses) => [sample::mac(self.backend), OTHER_MAC],
            (false, _) => [sample::mac(self.backend), BALANCER_MAC],
        };
        becomes.bytes[..12].copy_from_slice(&macs.concat());
        [made(sent, hops), becomes]
    }

    /// Runs a frame; the reason, if it is not sent on.
    fn run(&self, frame: &HostFrame) -> (HostFrame, Option<Reason>) {
        let mut frame = frame.clone();
        let action = steer::process(&mut frame, &self.tables, 0);
        let counted = self.tables.take_counted();
        let reason = Reason::ALL.iter().copied().find(|&reason| counted.reason(reason) != 0);
        let is_sent = matches!(action, Action::Transmit | Action::Redirect(_))
            && reason != Some(Reason::TooBig);
        assert_eq!((is_sent, counted.packets()), (reason.is_none(), u64::from(reason.is_none())));
        (frame, reason)
    }
}

fn located(frame: &HostFrame) -> Segment {
    parse::segment(frame, |_, _| true).expect("well formed")
}

fn set_hops(frame: &mut HostFrame, hops: u8) {
    let segment = located(frame);
    let (l3, l4) = (usize::from(segment.l3), usize::from(segment.l4));
    match segment.family {
        Family::Ipv4 => {
            frame.bytes[l3 + 8] = hops;
            frame.bytes[l3 + 10..l3 + 12].fill(0);
            let checksum = internet_checksum(&[&frame.bytes[l3..l4]]);
            frame.bytes[l3 + 10..l3 + 12].copy_from_slice(&checksum);
        }
        Family::Ipv6 => frame.bytes[l3 + 7] = hops,
    }
}

/// The options of a SYN as they must be, option by option (RFC 9293 §3.1, §3.2).
fn clamped(options: &[u8], most: u16) -> Vec<u8> {
    let mut clamped = options.to_vec();
    let mut at = 0;
    while at < options.len() {
        match options[at] {
            0 => break,
            1 => at += 1,
            kind => {
                let Some(&length) = options.get(at + 1) else { break };
                if length < 2 {
                    break;
                }
                if kind == 2 && length == 4 {
                    if let Some(value) = clamped.get_mut(at + 2..at + 4) {
                        let mss = u16::from_be_bytes([value[0], value[1]]);
                        value.copy_from_slice(&mss.min(most).to_be_bytes());
                    }
                    break;
                }
                at += usize::from(length);
            }
        }
    }
    clamped
}

fn most(family: Family, mtu: u16) -> u16 {
    mtu - if family == Family::Ipv4 { 40 } else { 60 }
}

#[test]
fn a_syns_mss_is_lowered_wherever_it_stands_and_nothing_else_is() {
    // MSS 65,535; `L` is where the lower one stands.
    let cases: [(&str, &[u8], Option<usize>); 16] = [
        ("none", &[], None),
        ("alone", &[2, 4, 0xff, 0xff], Some(2)),
        ("before others", &[2, 4, 0xff, 0xff, 1, 1, 4, 2], Some(2)),
        ("after a NOP, at an odd offset", &[1, 2, 4, 0xff, 0xff, 0, 0, 0], Some(3)),
        ("after two", &[1, 1, 2, 4, 0xff, 0xff, 0, 0], Some(4)),
        ("after another of odd length", &[3, 3, 7, 2, 4, 0xff, 0xff, 0], Some(5)),
        ("after a timestamp", &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 2, 4, 0xff, 0xff], Some(14)),
        ("at the end, after NOPs", [&[1; 36][..], &[2, 4, 0xff, 0xff]].concat().leak(), Some(38)),
        ("small enough", &[2, 4, 0x02, 0x00], None),
        ("of no size", &[2, 4, 0, 0], None),
        ("behind the end of the list", &[0, 2, 4, 0xff, 0xff, 0, 0, 0], None),
        ("of another length", &[2, 6, 0xff, 0xff, 0xff, 0xff, 1, 1], None),
        ("of length 2", &[2, 2, 2, 4, 0xff, 0xff, 1, 1], Some(4)),
        ("behind an option of length 0", &[9, 0, 2, 4, 0xff, 0xff, 0, 0], None),
        ("behind one of length 1", &[9, 1, 2, 4, 0xff, 0xff, 0, 0], None),
        ("cut by the end of the header", &[1, 1, 2, 4], None),
    ];
    for family in FAMILIES {
        for mtu in [MTU, 600] {
            let mut connection = Connection::open(Purpose::Nat, family, 1);
            connection.set_mtu(mtu);
            for (name, options, lower) in cases {
                // What follows looks like the option's rest; with and without it.
                for payload in [vec![], vec![0xff, 0xff, 2, 4, 0xff, 0xff]] {
                    for (flags, home) in [(SYN, false), (SYN_ACK, true), (ACK, false), (ACK, true)]
                    {
                        let mut like = ClientFrame {
                            tcp_options: options.to_vec(),
                            payload: payload.clone(),
                            ..ClientFrame::new(Purpose::Nat, family, 1).with_flags(flags)
                        };
                        let [sent, _] = connection.frames(&like, home, HOPS);
                        if let Some(at) = lower
                            && flags & SYN != 0
                        {
                            let most = most(family, mtu).to_be_bytes();
                            like.tcp_options[at..at + 2].copy_from_slice(&most);
                        }
                        let [_, expected] = connection.frames(&like, home, HOPS);
                        let (found, reason) = connection.run(&sent);
                        assert_eq!(reason, None, "{name}");
                        assert_eq!(
                            found.bytes, expected.bytes,
                            "{name}, {flags:#04x}\n{sent:?}became\n{found:?}and not\n{expected:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn without_a_known_mtu_the_mss_stays() {
    for family in FAMILIES {
        for mtu in [0, 20, 40] {
            let mut connection = Connection::open(Purpose::Nat, family, 1);
            connection.set_mtu(mtu);
            let like = ClientFrame {
                tcp_options: vec![2, 4, 0xff, 0xff],
                ..ClientFrame::new(Purpose::Nat, family, 1).with_flags(SYN)
            };
            let [sent, expected] = connection.frames(&like, false, HOPS);
            let (found, reason) = connection.run(&sent);
            if mtu == 0 {
                assert_eq!((found.bytes, reason), (expected.bytes, None));
            } else {
                // Who shall be told that not even a SYN fits?
                let expected = match family {
                    Family::Ipv4 => (sample::too_big(&sent, mtu).bytes, Some(Reason::TooBig)),
                    Family::Ipv6 => (sent.bytes, Some(Reason::TooBigUnanswered)),
                };
                assert_eq!((found.bytes, reason), expected);
            }
        }
    }
}

#[test]
fn who_sends_what_exceeds_the_mtu_is_told() {
    for family in FAMILIES {
        let headers = if family == Family::Ipv4 { 40 } else { 60 };
        for purpose in Purpose::NAT {
            let mut connection = Connection::open(purpose, family, 1);
            connection.set_mtu(1400);
            for home in [false, true] {
                for (length, reason) in [(1400, None), (1401, Some(Reason::TooBig))] {
                    let like = ClientFrame {
                        payload: vec![7; length - headers],
                        padding: 4,
                        ..ClientFrame::new(purpose, family, 1)
                    };
                    let [sent, expected] = connection.frames(&like, home, HOPS);
                    let told = || sample::too_big(&sent, 1400);
                    let expected = if reason.is_none() { expected } else { told() };
                    assert_eq!(connection.run(&sent), (expected, reason));
                }
            }
        }
    }
}

#[test]
fn every_packet_has_one_hop_less_and_the_last_hop_ends_here() {
    for family in FAMILIES {
        for home in [false, true] {
            let connection = Connection::open(Purpose::Nat, family, 1);
            for hops in 0..=u8::MAX {
                let like = ClientFrame::new(Purpose::Nat, family, 1);
                let [sent, expected] = connection.frames(&like, home, hops);
                let expected = match hops {
                    0 | 1 => (sent.clone(), Some(Reason::HopLimit)),
                    _ => (expected, None),
                };
                assert_eq!(connection.run(&sent), expected, "{family:?}, {hops} hops");
            }
        }
    }
}

#[test]
fn frames_leave_by_the_interface_of_the_other_side() {
    for family in FAMILIES {
        for purpose in Purpose::NAT {
            let like = ClientFrame::new(purpose, family, 1);
            let behind = if purpose == Purpose::NatAddresses { OTHER_INTERFACE } else { INTERFACE };
            for (home, to) in [(false, behind), (true, INTERFACE)] {
                for from in [INTERFACE, OTHER_INTERFACE] {
                    let connection = Connection::open(purpose, family, 1);
                    let [mut sent, _] = connection.frames(&like, home, HOPS);
                    sent.interface = from;
                    let action = steer::process(&mut sent, &connection.tables, 0);
                    let expected = if from == to { Action::Transmit } else { Action::Redirect(to) };
                    assert_eq!(action, expected, "{purpose:?}, {home}, from {from}");
                }
            }
        }
    }
}

#[test]
fn without_a_next_hop_nothing_goes_to_the_backend() {
    for egress in [0, 77] {
        let mut connection = Connection::open(Purpose::Nat, Family::Ipv4, 1);
        let index = usize::from(connection.backend);
        connection.tables.backends[index].next_hop = crate::abi::NextHop::new([2; 6], egress);
        let like = ClientFrame::new(Purpose::Nat, Family::Ipv4, 1);
        let [sent, _] = connection.frames(&like, false, HOPS);
        assert_eq!(connection.run(&sent), (sent.clone(), Some(Reason::NoNextHop)));
        // What it still has under way reaches the client.
        let [sent, expected] = connection.frames(&like, true, HOPS);
        assert_eq!(connection.run(&sent), (expected, None));
    }
}

/// A sum of zero has two forms, and RFC 1624 §3 is about mistaking one for the other.
#[test]
fn checksums_of_zero_are_those_of_a_full_recomputation() {
    for family in FAMILIES {
        for purpose in Purpose::NAT {
            for home in [false, true] {
                let connection = Connection::open(purpose, family, 1);
                let mut like =
                    ClientFrame { payload: vec![0; 2], ..ClientFrame::new(purpose, family, 1) };
                for side in [0, 1] {
                    // With its checksum for payload, a segment's sum is all ones.
                    like.payload.fill(0);
                    let frame = &connection.frames(&like, home, HOPS)[side];
                    let at = usize::from(located(frame).l4) + Tcp::CHECKSUM;
                    like.payload = frame.bytes[at..at + 2].to_vec();
                    let [sent, expected] = connection.frames(&like, home, HOPS);
                    let frames = [&sent, &expected];
                    assert_eq!(frames[side].bytes[at..at + 2], [0, 0]);
                    assert_eq!(connection.run(&sent), (expected, None), "{purpose:?} {side}");
                }
            }
        }
    }
}

/// What is added to make a sum all ones, of what the frame's TCP checksum covers and of its own:
/// zero, in either form, if nothing was damaged.
fn residue(frame: &HostFrame) -> u16 {
    let segment = located(frame);
    let (l3, l4) = (usize::from(segment.l3), usize::from(segment.l4));
    let (addresses, length) = match segment.family {
        Family::Ipv4 => {
            let total = u16::from_be_bytes([frame.bytes[l3 + 2], frame.bytes[l3 + 3]]);
            (&frame.bytes[l3 + 12..l3 + 20], l3 + usize::from(total) - l4)
        }
        Family::Ipv6 => {
            let payload = u16::from_be_bytes([frame.bytes[l3 + 4], frame.bytes[l3 + 5]]);
            (&frame.bytes[l3 + 8..l3 + 40], l3 + 40 + usize::from(payload) - l4)
        }
    };
    let [a, b] = (length as u16).to_be_bytes();
    let tcp = &frame.bytes[l4..l4 + length];
    u16::from_be_bytes(internet_checksum(&[addresses, &[0, 6, a, b], tcp])) % 0xffff
}

prop_compose! {
    fn any_like()(
        tags in 0usize..=2,
        traffic_class: u8,
        ip_options in prop::collection::vec(any::<[u8; 4]>(), 0..=10),
        extensions in prop::collection::vec(0usize..3, 0..3),
        numbers: [u32; 2],
        tcp_options in prop::collection::vec(any::<[u8; 4]>(), 0..=10),
        mss in prop::option::of((0usize..37, any::<u16>())),
        payload in prop::collection::vec(any::<u8>(), 0..600),
        padding in 0usize..20,
    ) -> ClientFrame {
        let mut tcp_options = tcp_options.concat();
        if let Some((before, [a, b])) = mss.map(|(before, mss)| (before, mss.to_be_bytes())) {
            // Where the parser comes to it, at any offset.
            if let Some(place) = tcp_options.get_mut(..before + 4) {
                place[..before].fill(1);
                place[before..].copy_from_slice(&[2, 4, a, b]);
            }
        }
        ClientFrame {
            tags: TAGS[..tags].to_vec(),
            traffic_class,
            ip_options: ip_options.concat(),
            extensions: extensions
                .into_iter()
                .map(|more| (60, [&[more as u8][..], &vec![1; 6 + 8 * more]].concat()))
                .collect(),
            sequence: numbers[0],
            acknowledgement: numbers[1],
            tcp_options,
            payload,
            padding,
            ..ClientFrame::new(Purpose::Nat, Family::Ipv4, 1)
        }
    }
}

proptest! {
    /// Checksums as a full recomputation has them; all that is not meant to change as it was.
    #[test]
    fn a_translated_frame_is_the_one_that_would_have_been_sent(
        like in any_like(),
        which in 0usize..3,
        ipv6: bool,
        home: bool,
        number in 0u16..2000,
        hops in 2u8..,
        has_syn: bool,
        mtu in prop::sample::select(vec![0, 1280, MTU, 9000]),
    ) {
        let (purpose, family) = (Purpose::NAT[which], FAMILIES[usize::from(ipv6)]);
        let mut connection = Connection::open(purpose, family, number);
        connection.set_mtu(mtu);
        let flags = match (has_syn, home) {
            (true, true) => SYN_ACK,
            (true, false) => SYN,
            (false, _) => ACK,
        };
        let mut like = ClientFrame { flags, ..like };
        let [sent, _] = connection.frames(&like, home, hops);
        if has_syn && mtu != 0 {
            like.tcp_options = clamped(&like.tcp_options, most(family, mtu));
        }
        let [_, expected] = connection.frames(&like, home, hops);
        let (found, reason) = connection.run(&sent);
        prop_assert_eq!(reason, None);
        prop_assert_eq!(&found.bytes, &expected.bytes, "{:?}became\n{:?}and not\n{:?}", sent, found, expected);
        prop_assert_eq!(residue(&found), 0);
    }

    #[test]
    fn what_was_damaged_on_its_way_here_stays_so(
        like in any_like(), ipv6: bool, home: bool, at in 4usize..20, damage in 1u8..,
        mss: bool,
    ) {
        let family = FAMILIES[usize::from(ipv6)];
        let connection = Connection::open(Purpose::Nat, family, 1);
        let flags = match (mss, home) {
            (true, true) => SYN_ACK,
            (true, false) => SYN,
            (false, _) => ACK,
        };
        let like = ClientFrame { flags, ..like };
        let [mut sent, _] = connection.frames(&like, home, HOPS);
        let segment = located(&sent);
        // Anything behind the ports but what says how long the header is and what it means.
        prop_assume!(at != 12 && at != 13);
        sent.bytes[usize::from(segment.l4) + at] ^= damage;
        let before = residue(&sent);
        prop_assert!(before != 0);
        let (found, reason) = connection.run(&sent);
        prop_assert_eq!(reason, None);
        prop_assert_eq!(residue(&found), before);
    }
}
