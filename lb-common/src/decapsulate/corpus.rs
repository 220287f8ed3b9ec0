//! A sample agent, and the frames of its wild, each with what becomes of it: for tests on the
//! host and, through `BPF_PROG_TEST_RUN`, in the kernel. A frame that once broke something
//! joins it, with a line on what it broke.

use core::cell::RefCell;
use std::{vec, vec::Vec};

use zerocopy::IntoBytes as _;

use super::{
    ARP, ICMPV6,
    Outcome::{self, *},
    Source, Tables, ecn,
};
use crate::{
    address::Address,
    checksum,
    frame::HostFrame,
    host::Random,
    parse::Family::{self, Ipv4 as V4, Ipv6 as V6},
    wire::{self, Ipv4, Ipv6, ethernet},
};

/// The IPv4 VIP.
pub const VIP4: [u8; 4] = [203, 0, 113, 10];
/// The IPv6 VIP.
pub const VIP6: [u8; 16] = v6(10);
/// The balancer: its tunnels are accepted.
pub const BALANCER4: [u8; 4] = [198, 18, 0, 1];
/// The same.
pub const BALANCER6: [u8; 16] = v6(1);
/// Somebody else, whose tunnels are refused.
pub const STRANGER4: [u8; 4] = [198, 18, 1, 1];
/// The same.
pub const STRANGER6: [u8; 16] = v6(0xf1);
/// The agent's host.
pub const BACKEND4: [u8; 4] = [198, 18, 0, 11];
/// The same.
pub const BACKEND6: [u8; 16] = v6(11);
const CLIENT4: [u8; 4] = [192, 0, 2, 7];
const CLIENT6: [u8; 16] = v6(7);

/// Outer and inner version, all mixes.
pub const MIXES: [(Family, Family); 4] = [(V4, V4), (V4, V6), (V6, V4), (V6, V6)];

/// 2001:db8::/32 with this last byte.
const fn v6(last: u8) -> [u8; 16] {
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// What an agent knows, and what it counted.
pub struct Memory {
    vips: [Address; 2],
    from: Vec<Source>,
    counted: RefCell<Vec<Outcome>>,
}

impl Memory {
    /// The sample agent: `--vip` [`VIP4`] [`VIP6`] `--from 198.18.0.0/24 --from 2001:db8::/121`.
    pub fn sample() -> Self {
        Self::accepting(vec![
            Source { prefix_length: Source::IPV4_BITS + 24, ..Source::v4(BALANCER4) },
            Source { prefix_length: Source::FAMILY_BITS + 121, ..Source::v6(BALANCER6) },
        ])
    }

    /// With the sample's VIPs and these sources.
    pub fn accepting(from: Vec<Source>) -> Self {
        let vips = [Address::v4(VIP4), Address::v6(VIP6)];
        Self { vips, from, counted: RefCell::default() }
    }

    /// Its VIPs.
    pub fn vips(&self) -> &[Address] {
        &self.vips
    }

    /// The sources it accepts.
    pub fn sources(&self) -> &[Source] {
        &self.from
    }

    /// What was counted since the last time this was asked.
    pub fn take_counted(&self) -> Vec<Outcome> {
        self.counted.take()
    }
}

impl Tables for Memory {
    fn is_vip(&self, address: Address) -> bool {
        self.vips.contains(&address)
    }

    /// What the kernel's trie does, bit by bit.
    fn accepts(&self, source: &Source) -> bool {
        let bit = |source: &Source, n: u32| {
            let bytes = &source.as_bytes()[4..];
            bytes[n as usize / 8] >> (7 - n % 8) & 1
        };
        let matches =
            |prefix: &Source| (0..prefix.prefix_length).all(|n| bit(prefix, n) == bit(source, n));
        self.from.iter().any(matches)
    }

    fn count(&self, outcome: Outcome) {
        self.counted.borrow_mut().push(outcome);
    }
}

/// An IPv4 packet.
pub fn ipv4(
    source: [u8; 4],
    destination: [u8; 4],
    protocol: u8,
    class: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = Ipv4 {
        version_length: 0x45,
        traffic_class: class,
        length: ((Ipv4::LEN + payload.len()) as u16).to_be_bytes(),
        identification: [0x12, 0x34],
        fragment: [Ipv4::DONT_FRAGMENT, 0],
        ttl: 63,
        protocol,
        checksum: [0; 2],
        source,
        destination,
    };
    header.checksum = checksum::of_ipv4(&header);
    [header.as_bytes(), payload].concat()
}

/// An IPv6 packet.
pub fn ipv6(
    source: [u8; 16],
    destination: [u8; 16],
    next: u8,
    class: u8,
    payload: &[u8],
) -> Vec<u8> {
    let header = Ipv6 {
        version_class_label: (6 << 28 | u32::from(class) << 20 | 0xbeef).to_be_bytes(),
        payload_length: (payload.len() as u16).to_be_bytes(),
        next_header: next,
        hop_limit: 63,
        source,
        destination,
    };
    [header.as_bytes(), payload].concat()
}

/// A client's packet for the VIP, with this payload.
pub fn to_vip(family: Family, class: u8, payload: &[u8]) -> Vec<u8> {
    match family {
        V4 => ipv4(CLIENT4, VIP4, wire::TCP, class, payload),
        V6 => ipv6(CLIENT6, VIP6, wire::TCP, class, payload),
    }
}

/// A client's packet for the VIP, of 52 or 72 bytes.
pub fn inner(family: Family, class: u8) -> Vec<u8> {
    to_vip(family, class, &[0; 32])
}

/// A packet from balancer to backend.
pub fn outer(family: Family, protocol: u8, class: u8, payload: &[u8]) -> Vec<u8> {
    match family {
        V4 => ipv4(BALANCER4, BACKEND4, protocol, class, payload),
        V6 => ipv6(BALANCER6, BACKEND6, protocol, class, payload),
    }
}

/// The protocol number of a packet in a packet.
pub const fn protocol(inner: Family) -> u8 {
    match inner {
        V4 => wire::IPV4_IN_IP,
        V6 => wire::IPV6_IN_IP,
    }
}

/// The EtherType of a packet.
pub const fn ethertype(family: Family) -> [u8; 2] {
    match family {
        V4 => ethernet::IPV4,
        V6 => ethernet::IPV6,
    }
}

/// A frame to the backend, with up to two VLAN tags.
pub fn frame(tags: usize, kind: [u8; 2], payload: &[u8]) -> HostFrame {
    let mut bytes = vec![2, 0, 0, 0, 0, 11, 2, 0, 0, 0, 0, 1];
    for tag in [[0x88, 0xa8, 0, 10], [0x81, 0x00, 0, 20]].iter().skip(2 - tags) {
        bytes.extend(tag);
    }
    bytes.extend(kind);
    bytes.extend(payload);
    HostFrame::new(bytes)
}

/// A VIP's packet in its tunnel.
pub fn tunnel(tags: usize, outside: Family, inside: Family) -> HostFrame {
    let packet = outer(outside, protocol(inside), 0, &inner(inside, 0));
    frame(tags, ethertype(outside), &packet)
}

/// One frame and what becomes of it.
pub struct Case {
    /// What is odd about it.
    pub name: &'static str,
    /// The frame.
    pub frame: HostFrame,
    /// What becomes of it at the sample agent.
    pub outcome: Outcome,
}

/// The whole table: every outcome is there.
pub fn cases() -> Vec<Case> {
    let groups = [tunnels(), not_ours(), fragments(), short(), refused(), lengths(), questions()];
    let rows = groups.into_iter().flatten();
    rows.map(|(name, frame, outcome)| Case { name, frame, outcome }).collect()
}

/// A half-valid frame: one of the table or a good tunnel, with some bytes changed, cut or added.
pub fn half_valid(cases: &[Case], random: &mut Random) -> HostFrame {
    let mut frame = if random.one_in(3) {
        random.choose(cases).frame.clone()
    } else {
        let (outside, inside) = *random.choose(&MIXES);
        tunnel(random.below(3), outside, inside)
    };
    for _ in 0..random.below(4) {
        // Mostly in the headers.
        let end = if random.one_in(4) { frame.bytes.len() } else { frame.bytes.len().min(90) };
        let at = random.below(end);
        frame.bytes[at] = match random.below(3) {
            0 => random.word() as u8,
            1 => *random.choose(&[0, 4, 6, 41, 44, 58, 60, 0x45, 0x60, 0xff]),
            _ => frame.bytes[at] ^ 1 << random.below(8),
        };
    }
    if random.one_in(4) {
        frame.bytes.truncate(ethernet::LEN + random.below(100));
    }
    if random.one_in(4) {
        let padding = random.below(50);
        frame.bytes.extend(random.bytes(padding));
    }
    frame
}

type Row = (&'static str, HostFrame, Outcome);

/// With some bytes of its IP packet written over.
fn with(mut frame: HostFrame, at: usize, bytes: &[u8]) -> HostFrame {
    frame.bytes[ethernet::LEN + at..][..bytes.len()].copy_from_slice(bytes);
    frame
}

/// With so many bytes of its IP packet left.
fn cut(mut frame: HostFrame, len: usize) -> HostFrame {
    frame.bytes.truncate(ethernet::LEN + len);
    frame
}

/// A tunnel without VLAN tag.
fn plain(outside: Family, inside: Family) -> HostFrame {
    tunnel(0, outside, inside)
}

/// Options of an encapsulation limit as Linux sends it, after the next header.
const LIMIT: [u8; 7] = [0, 4, 1, 4, 1, 1, 0];

/// In IPv6 with a destination options header.
fn with_options(options: [u8; 7], kind: u8) -> HostFrame {
    let payload = [&[kind], &options[..], &inner(V4, 0)].concat();
    frame(0, ethernet::IPV6, &outer(V6, Ipv6::DESTINATION_OPTIONS, 0, &payload))
}

/// In IPv6 with a fragment header.
fn fragment_v6(kind: u8) -> HostFrame {
    let payload = [&[kind, 0, 0, 1, 0, 0, 0, 1], &inner(V4, 0)[..]].concat();
    frame(0, ethernet::IPV6, &outer(V6, Ipv6::FRAGMENT, 0, &payload))
}

fn in_ipv4(protocol: u8, packet: &[u8]) -> HostFrame {
    frame(0, ethernet::IPV4, &outer(V4, protocol, 0, packet))
}

fn tunnels() -> Vec<Row> {
    let outer_options = {
        let mut packet = outer(V4, wire::IPV4_IN_IP, 0, &inner(V4, 0));
        packet.splice(20..20, [1; 8]);
        packet[0] = 0x47;
        packet[3] += 8;
        frame(0, ethernet::IPV4, &packet)
    };
    let padded = {
        let mut frame = plain(V6, V4);
        frame.bytes.extend([0xee; 5]);
        frame
    };
    let spare = in_ipv4(wire::IPV4_IN_IP, &[&inner(V4, 0)[..], &[0xee; 3]].concat());
    let marked = |class| {
        let packet = outer(V4, wire::IPV4_IN_IP, class, &inner(V4, 0x50 | ecn::ECT_0));
        frame(0, ethernet::IPV4, &packet)
    };
    let marked_v6 = {
        let inner = inner(V6, 0x50 | ecn::ECT_1);
        let packet = outer(V6, wire::IPV6_IN_IP, ecn::CONGESTION_EXPERIENCED, &inner);
        frame(1, ethernet::IPV6, &packet)
    };
    vec![
        ("4in4", plain(V4, V4), Decapsulated),
        ("6in4", plain(V4, V6), Decapsulated),
        ("4in6", plain(V6, V4), Decapsulated),
        ("6in6", plain(V6, V6), Decapsulated),
        ("4in4, one tag", tunnel(1, V4, V4), Decapsulated),
        ("4in6, two tags", tunnel(2, V6, V4), Decapsulated),
        ("outer IPv4 options", outer_options, Decapsulated),
        ("tunnel encapsulation limit", with_options(LIMIT, wire::IPV4_IN_IP), Decapsulated),
        ("Ethernet padding", padded, Decapsulated),
        ("bytes after the inner packet", spare, Decapsulated),
        ("marked by a router", marked(ecn::CONGESTION_EXPERIENCED), Decapsulated),
        ("ECT(0) in ECT(1)", marked(ecn::ECT_1), Decapsulated),
        ("marked by a router, 6in6", marked_v6, Decapsulated),
        ("no payload", in_ipv4(wire::IPV6_IN_IP, &to_vip(V6, 0, &[])), Decapsulated),
    ]
}

fn not_ours() -> Vec<Row> {
    let three_tags = {
        let mut frame = frame(2, ethernet::VLAN, &[0, 30, 8, 0]);
        frame.bytes.extend(outer(V4, wire::IPV4_IN_IP, 0, &inner(V4, 0)));
        frame
    };
    let others = ipv4(CLIENT4, [192, 0, 2, 99], wire::TCP, 0, &[0; 20]);
    let others_from_a_stranger =
        ipv4(STRANGER4, BACKEND4, wire::IPV4_IN_IP, ecn::CONGESTION_EXPERIENCED, &others);
    let mapped = ipv6(CLIENT6, Address::v4(VIP4).to_v6(), wire::TCP, 0, &[0; 20]);
    let nested = in_ipv4(wire::IPV4_IN_IP, &outer(V4, wire::IPV4_IN_IP, 0, &inner(V4, 0)));
    vec![
        ("a VIP's packet without tunnel", frame(0, ethernet::IPV4, &inner(V4, 0)), NotTunnel),
        ("the same, IPv6", frame(0, ethernet::IPV6, &inner(V6, 0)), NotTunnel),
        ("limit, but no packet behind", with_options(LIMIT, wire::TCP), NotTunnel),
        ("another destination option", with_options([0, 5, 1, 4, 1, 1, 0], 4), NotTunnel),
        ("longer destination options", with_options([1, 4, 1, 4, 1, 1, 0], 4), NotTunnel),
        ("outer version 6 in IPv4", with(plain(V4, V4), 0, &[0x65]), NotTunnel),
        ("outer version 4 in IPv6", with(plain(V6, V4), 0, &[0x40]), NotTunnel),
        ("outer header of 16 bytes", with(plain(V4, V4), 0, &[0x44]), NotTunnel),
        ("LLDP", frame(0, [0x88, 0xcc], &[0; 46]), NotTunnel),
        ("a third tag", three_tags, NotTunnel),
        ("somebody else's tunnel", in_ipv4(wire::IPV4_IN_IP, &others), NotVip),
        ("the same, marked", frame(0, ethernet::IPV4, &others_from_a_stranger), NotVip),
        ("the IPv4 VIP as a mapped address", in_ipv4(wire::IPV6_IN_IP, &mapped), NotVip),
        ("a tunnel in a tunnel", nested, NotVip),
    ]
}

fn fragments() -> Vec<Row> {
    vec![
        ("first fragment", with(plain(V4, V4), 6, &[0x20, 0]), Fragment),
        ("last fragment", with(plain(V4, V4), 6, &[0, 9]), Fragment),
        ("a fragment of TCP", with(in_ipv4(wire::TCP, &[0; 20]), 6, &[0x20, 0]), NotTunnel),
        ("IPv6 fragment", fragment_v6(wire::IPV4_IN_IP), Fragment),
        ("IPv6 fragment with options", fragment_v6(Ipv6::DESTINATION_OPTIONS), Fragment),
        ("IPv6 fragment of TCP", fragment_v6(wire::TCP), NotTunnel),
        ("fragment of the inner packet", with(plain(V4, V4), 26, &[0x20, 0]), Decapsulated),
    ]
}

fn short() -> Vec<Row> {
    vec![
        ("no type", HostFrame::new([0; 13]), Runt),
        ("no second type", HostFrame::new(frame(1, [8, 0], &[]).bytes[..17].to_vec()), Runt),
        ("no outer IPv4 header", cut(plain(V4, V4), 19), Runt),
        ("no outer IPv6 header", cut(plain(V6, V4), 39), Runt),
        ("no options", cut(with_options(LIMIT, 4), 43), Runt),
        ("no fragment header", cut(fragment_v6(4), 40), Runt),
        ("no inner IPv4 header", cut(plain(V4, V4), 39), Runt),
        ("no inner IPv6 header", cut(plain(V4, V6), 59), Runt),
        ("ARP, cut", cut(arp_request(1, VIP4), 27), NotTunnel),
        ("ICMPv6, cut", cut(solicitation(135, VIP6), 63), NotTunnel),
    ]
}

fn refused() -> Vec<Row> {
    let stranger4 = ipv4(STRANGER4, BACKEND4, wire::IPV6_IN_IP, 0, &inner(V6, 0));
    let stranger6 = ipv6(STRANGER6, BACKEND6, wire::IPV4_IN_IP, 0, &inner(V4, 0));
    let mapped = Address::v4(BALANCER4).to_v6();
    let mapped = ipv6(mapped, BACKEND6, wire::IPV4_IN_IP, 0, &inner(V4, 0));
    let deaf = |outside, inside| {
        let class = ecn::CONGESTION_EXPERIENCED;
        let packet = outer(outside, protocol(inside), class, &inner(inside, 0xb8));
        frame(0, ethertype(outside), &packet)
    };
    vec![
        ("from a stranger, IPv4", frame(0, ethernet::IPV4, &stranger4), SourceRefused),
        ("from a stranger, IPv6", frame(0, ethernet::IPV6, &stranger6), SourceRefused),
        ("from the balancer's mapped address", frame(0, ethernet::IPV6, &mapped), SourceRefused),
        ("marked, to the deaf, IPv4", deaf(V6, V4), Congested),
        ("marked, to the deaf, IPv6", deaf(V4, V6), Congested),
        ("inner version 6, protocol 4", with(plain(V4, V4), 20, &[0x65]), BadIpHeader),
        ("inner version 4, protocol 41", with(plain(V6, V6), 40, &[0x45]), BadIpHeader),
        ("inner header of 16 bytes", with(plain(V4, V4), 20, &[0x44]), BadIpHeader),
        ("inner header beyond its packet", with(plain(V4, V4), 22, &[0, 19]), BadIpHeader),
    ]
}

fn lengths() -> Vec<Row> {
    vec![
        ("outer beyond the frame", cut(plain(V4, V4), 71), BadLength),
        ("outer IPv6 beyond the frame", cut(plain(V6, V4), 91), BadLength),
        ("inner beyond outer", with(plain(V4, V4), 22, &[0, 53]), BadLength),
        ("inner IPv6 beyond outer", with(plain(V6, V6), 44, &[0, 33]), BadLength),
        ("outer shorter than its headers", with(plain(V4, V4), 2, &[0, 10]), BadLength),
        ("outer IPv6 without length", with(plain(V6, V4), 4, &[0, 0]), BadLength),
        ("outer of 64 KiB", with(plain(V4, V4), 2, &[0xff, 0xff]), BadLength),
        ("both of 64 KiB", with(with(plain(V6, V6), 4, &[0xff; 2]), 44, &[0xff; 2]), BadLength),
    ]
}

fn arp_request(operation: u8, target: [u8; 4]) -> HostFrame {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, operation];
    message.extend([2, 0, 0, 0, 0, 1]);
    message.extend(BALANCER4);
    message.extend([0; 6]);
    message.extend(target);
    frame(0, ARP, &message)
}

fn solicitation(kind: u8, target: [u8; 16]) -> HostFrame {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target);
    frame(0, ethernet::IPV6, &ipv6(BALANCER6, VIP6, ICMPV6, 0, &message))
}

fn questions() -> Vec<Row> {
    vec![
        ("ARP request for the VIP", arp_request(1, VIP4), Solicitation),
        ("ARP reply for the VIP", arp_request(2, VIP4), NotTunnel),
        ("ARP request for the backend", arp_request(1, BACKEND4), NotTunnel),
        ("neighbour solicitation for the VIP", solicitation(135, VIP6), Solicitation),
        ("neighbour solicitation for the backend", solicitation(135, BACKEND6), NotTunnel),
        ("neighbour advertisement", solicitation(136, VIP6), NotTunnel),
    ]
}
