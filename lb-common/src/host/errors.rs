//! ICMP: errors about what backends have sent, as routers send them, right ones and such as are no
//! error about a flow that is known; and pings.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::{vec, vec::Vec};

use super::sample::{self, BALANCER_MAC, ROUTER_MAC};
use crate::{frame::HostFrame, parse::Family, wire};

/// A router on the way, to either side.
pub fn router(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0xfe)),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An IP header without options, its checksum right, and what it carries.
fn packet(from: IpAddr, to: IpAddr, protocol: u8, hops: u8, content: &[u8]) -> Vec<u8> {
    let mut header = if from.is_ipv4() {
        let [a, b] = ((20 + content.len()) as u16).to_be_bytes();
        vec![0x45, 0, a, b, 0x12, 0x34, 0, 0, hops, protocol, 0, 0]
    } else {
        let [a, b] = (content.len() as u16).to_be_bytes();
        vec![0x60, 0, 0, 0, a, b, protocol, hops]
    };
    header.extend(octets(from));
    header.extend(octets(to));
    if from.is_ipv4() {
        let sum = sample::internet_checksum(&[&header]);
        header[10..12].copy_from_slice(&sum);
    }
    [&header, content].concat()
}

/// "Packet too big" about a packet with these ends, of which so much is quoted.
pub fn too_big(from: SocketAddr, to: SocketAddr, quoted: usize) -> HostFrame {
    about(if from.is_ipv4() { [3, 4] } else { [2, 0] }, from, to, quoted)
}

/// A router's error of this type and code about a segment with these ends, of which so many bytes are
/// quoted, to whom has sent it.
pub fn about(error: [u8; 2], from: SocketAddr, to: SocketAddr, quoted: usize) -> HostFrame {
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let tcp = [&ports[..], &[0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x10, 0xff, 0xff, 1, 2, 0, 0]].concat();
    let inner = packet(from.ip(), to.ip(), wire::TCP, 60, &tcp[..quoted]);
    let family = if from.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let icmp = [&error[..], &[0, 0, 0, 0, 0x05, 0x14], &inner].concat();
    message(router(family), from.ip(), &icmp)
}

/// Echo, asked or answered as `kind` says (RFC 792, RFC 4443 §4).
pub fn echo(from: IpAddr, to: IpAddr, kind: u8) -> HostFrame {
    message(from, to, &[kind, 0, 0, 0, 0, 1, 0, 1, b'p', b'i', b'n', b'g'])
}

/// An ICMP message, its checksum right, from behind the router.
fn message(from: IpAddr, to: IpAddr, icmp: &[u8]) -> HostFrame {
    let mut icmp = icmp.to_vec();
    let sum = checksum_of(from, to, &icmp);
    icmp[2..4].copy_from_slice(&sum);
    let (kind, protocol): ([u8; 2], u8) =
        if to.is_ipv4() { ([8, 0], wire::ICMP) } else { ([0x86, 0xdd], wire::ICMPV6) };
    let head = [&BALANCER_MAC[..], &ROUTER_MAC, &kind].concat();
    HostFrame::new([head, packet(from, to, protocol, 64, &icmp)].concat())
}

/// The checksum of an ICMP message between these two, its own field being zero (RFC 792, RFC 4443
/// §2.3); of a whole one, zero.
pub fn checksum_of(from: IpAddr, to: IpAddr, icmp: &[u8]) -> [u8; 2] {
    if from.is_ipv4() {
        return sample::internet_checksum(&[icmp]);
    }
    let length = (icmp.len() as u32).to_be_bytes();
    let pseudo = [&octets(from)[..], &octets(to), &length, &[0, 0, 0, wire::ICMPV6]].concat();
    sample::internet_checksum(&[&pseudo, icmp])
}

/// What is nearly an error about a packet with these ends, or one about another flow, each with what
/// is wrong with it: the kernel's.
pub fn strange(from: SocketAddr, to: SocketAddr) -> Vec<(&'static str, HostFrame)> {
    let is_v4 = from.is_ipv4();
    let whole = too_big(from, to, 8);
    let icmp = if is_v4 { 34 } else { 54 };
    let inner = icmp + 8;
    let with = |at: usize, byte: u8| {
        let mut frame = whole.clone();
        frame.bytes[at] = byte;
        frame
    };
    let cut = |len: usize| HostFrame::new(whole.bytes[..len].to_vec());
    let stranger = SocketAddr::new(to.ip(), to.port() ^ 1);
    vec![
        ("echo", with(icmp, if is_v4 { 8 } else { 128 })),
        ("about UDP", with(if is_v4 { inner + 9 } else { inner + 6 }, 17)),
        ("about another version", with(inner, 0x25)),
        ("to somebody else than the sender", with(inner + 15, 0x99)),
        ("about an unknown flow", too_big(from, stranger, 8)),
        // Found by fuzzing: in a tunnel, its outer header would have lied with it.
        ("longer than its frame", with(if is_v4 { 17 } else { 19 }, 200)),
        // Found by fuzzing: a quoted header of less than five words.
        ("with ports in its addresses", with(inner, if is_v4 { 0x44 } else { 0x50 })),
        ("without ports", cut(whole.bytes.len() - 8)),
        ("without a packet", cut(icmp + 8)),
    ]
}
