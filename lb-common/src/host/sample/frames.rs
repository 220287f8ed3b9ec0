//! Frames of clients, field by field, and what their senders are told; with checksums that are
//! computed here, over every byte.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::{vec, vec::Vec};

use super::{BALANCER_MAC, Purpose, ROUTER_MAC, client, vip};
use crate::{
    frame::HostFrame,
    parse::{self, Family},
    wire::{self, Tcp},
};

/// A client's frame, field by field.
#[derive(Clone, Debug)]
pub struct ClientFrame {
    /// VLAN tags: EtherType and tag control information.
    pub tags: Vec<[u8; 4]>,
    /// From whom.
    pub client: SocketAddr,
    /// To whom; of the client's family.
    pub vip: SocketAddr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// IPv4 options, a multiple of four bytes.
    pub ip_options: Vec<u8>,
    /// IPv6 extension headers: the number of each, and what follows its "next header" field.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// TCP flags.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// TCP options, a multiple of four bytes.
    pub tcp_options: Vec<u8>,
    /// What TCP carries.
    pub payload: Vec<u8>,
    /// Bytes behind the packet.
    pub padding: usize,
}

impl ClientFrame {
    /// An ACK of the client with this number for a sample service.
    pub fn new(purpose: Purpose, family: Family, number: u16) -> Self {
        Self {
            tags: Vec::new(),
            client: client(family, number, 40_000),
            vip: vip(purpose, family),
            traffic_class: 0,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            flags: Tcp::ACK,
            sequence: 1000,
            acknowledgement: 2000,
            tcp_options: Vec::new(),
            payload: Vec::new(),
            padding: 0,
        }
    }

    /// With other flags.
    pub fn with_flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    /// The frame.
    pub fn frame(&self) -> HostFrame {
        let mut bytes = Vec::new();
        bytes.extend(BALANCER_MAC);
        bytes.extend(ROUTER_MAC);
        bytes.extend(self.tags.iter().flatten());
        match (self.client.ip(), self.vip.ip()) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => self.ipv4(&mut bytes, client, vip),
            (IpAddr::V6(client), IpAddr::V6(vip)) => self.ipv6(&mut bytes, client, vip),
            _ => panic!("{} and {} are of different families", self.client, self.vip),
        }
        bytes.extend((0..self.padding).map(|i| 0xe0 | i as u8));
        HostFrame::new(bytes)
    }

    fn ipv4(&self, bytes: &mut Vec<u8>, client: Ipv4Addr, vip: Ipv4Addr) {
        let header_length = 20 + self.ip_options.len();
        let tcp = self.tcp(&client.octets(), &vip.octets());
        let mut header = vec![0x40 | (header_length / 4) as u8, self.traffic_class];
        header.extend(((header_length + tcp.len()) as u16).to_be_bytes());
        header.extend([0x12, 0x34, 0x40, 0x00, 63, 6, 0, 0]);
        header.extend(client.octets());
        header.extend(vip.octets());
        header.extend(&self.ip_options);
        let checksum = internet_checksum(&[&header]);
        header[10..12].copy_from_slice(&checksum);
        bytes.extend([0x08, 0x00]);
        bytes.extend(header);
        bytes.extend(tcp);
    }

    fn ipv6(&self, bytes: &mut Vec<u8>, client: Ipv6Addr, vip: Ipv6Addr) {
        let tcp = self.tcp(&client.octets(), &vip.octets());
        let mut payload = Vec::new();
        let mut kinds = self.extensions.iter().map(|(kind, _)| *kind).chain([6]);
        let first = kinds.next().unwrap_or(6);
        for ((_, content), next) in self.extensions.iter().zip(kinds) {
            payload.push(next);
            payload.extend(content);
        }
        payload.extend(tcp);
        bytes.extend([0x86, 0xdd]);
        bytes.extend((6 << 28 | u32::from(self.traffic_class) << 20 | 0xbeef).to_be_bytes());
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend([first, 63]);
        bytes.extend(client.octets());
        bytes.extend(vip.octets());
        bytes.extend(payload);
    }

    fn tcp(&self, client: &[u8], vip: &[u8]) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.client.port().to_be_bytes());
        tcp.extend(self.vip.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([((5 + self.tcp_options.len() / 4) << 4) as u8, self.flags]);
        tcp.extend([0xfa, 0xf0, 0, 0, 0, 0]);
        tcp.extend(&self.tcp_options);
        tcp.extend(&self.payload);
        let checksum = tcp_checksum(client, vip, &tcp);
        tcp[16..18].copy_from_slice(&checksum);
        tcp
    }
}

/// What a whole frame is answered whose packet is larger than so many bytes: "fragmentation needed"
/// (RFC 1191 §4) or "packet too big" (RFC 4443 §3.2), quoting all that fits 576 or 1,280 bytes, in
/// steps of 16.
pub fn too_big(sent: &HostFrame, mtu: u16) -> HostFrame {
    let (l3, _) = parse::network(sent).expect("a whole frame");
    let (head, packet) = sent.bytes.split_at(l3);
    let is_v4 = packet[0] >> 4 == 4;
    let (length, most) = if is_v4 {
        (u16::from_be_bytes([packet[2], packet[3]]), 544)
    } else {
        (40 + u16::from_be_bytes([packet[4], packet[5]]), 1232)
    };
    let quoted = &packet[..(usize::from(length) / 16 * 16).min(most)];
    let mut icmp = if is_v4 { vec![3, 4, 0, 0, 0, 0] } else { vec![2, 0, 0, 0, 0, 0] };
    icmp.extend(mtu.to_be_bytes());
    icmp.extend(quoted);
    let [a, b] = (icmp.len() as u16).to_be_bytes();
    let mut header = if is_v4 {
        let [a, b] = (icmp.len() as u16 + 20).to_be_bytes();
        let mut header = vec![0x45, 0xc0, a, b, 0, 0, 0x40, 0, 64, wire::ICMP, 0, 0];
        header.extend([&packet[16..20], &packet[12..16]].concat());
        let checksum = internet_checksum(&[&header]);
        header[10..12].copy_from_slice(&checksum);
        header
    } else {
        let mut header = vec![0x6c, 0, 0, 0, a, b, wire::ICMPV6, 64];
        header.extend([&packet[24..40], &packet[8..24]].concat());
        header
    };
    let checksum = if is_v4 {
        internet_checksum(&[&icmp])
    } else {
        internet_checksum(&[&header[8..], &[0, 0, a, b, 0, 0, 0, wire::ICMPV6], &icmp])
    };
    icmp[2..4].copy_from_slice(&checksum);
    let mut bytes = [&head[6..12], &head[..6], &head[12..]].concat();
    bytes.append(&mut header);
    bytes.append(&mut icmp);
    let headroom = sent.headroom + l3 + quoted.len() - bytes.len();
    HostFrame { bytes, headroom, ..sent.clone() }
}

/// The checksum of a TCP segment and its pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
pub fn tcp_checksum(source: &[u8], destination: &[u8], tcp: &[u8]) -> [u8; 2] {
    let [a, b] = (tcp.len() as u16).to_be_bytes();
    internet_checksum(&[source, destination, &[0, wire::TCP, a, b], tcp])
}

/// The Internet checksum as RFC 1071 §4.1 has it, word by word in network order: slow, and
/// plainly right. Of several parts, all but the last have an even length.
pub fn internet_checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
