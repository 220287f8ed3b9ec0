//! Answers a packet that does not fit the way to its backend with the ICMP error that tells its
//! sender so: "fragmentation needed" (RFC 1191 §4) or "packet too big" (RFC 4443 §3.2), with the
//! size that would have fitted.
//!
//! It comes from whom the packet was for, the VIP, and quotes as much of it as a router may (RFC
//! 1812 §4.3.2.3, RFC 4443 §2.4 (c)). An IPv4 packet that may be fragmented is answered, too: there
//! is nobody here who would do it. To IPv6 no less than 1,280 bytes are told, below which nobody
//! goes (RFC 2473 §7.1, RFC 8201 §4); what is no larger than that is not answered.

use crate::{
    abi::Backend,
    address::Address,
    checksum::{self, Sum},
    forward::{Forwarding, l2},
    frame::Frame,
    parse::{self, Family},
    reason::Reason,
    tables::Tables,
    wire::{self, Icmp, Ipv4, Ipv6, Macs, ethernet},
};

/// The smallest MTU of IPv6 (RFC 8200 §5).
const IPV6_LEAST: u16 = 1280;
/// DSCP of the answer: internetwork control (RFC 1812 §4.3.2.5, RFC 2474 §4.2.2).
const TRAFFIC_CLASS: u8 = 0xc0;
/// Bytes of the packet that are quoted at a time.
const STEP: usize = 16;
/// Bytes that are quoted at most: with its headers the answer stays within what every host takes,
/// 576 bytes of IPv4, 1,280 of IPv6.
const QUOTED_V4: usize = 544;
const QUOTED_V6: usize = 1232;

/// As what a frame is counted that for this reason could not be sent to the backend with this index.
/// Of one that was too big, and is counted as that, the frame has become the answer to its sender;
/// otherwise it is as it was.
#[inline(always)]
pub fn unsent<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    backend: u16,
    reason: Reason,
) -> Reason {
    match reason {
        Reason::TooBig if answer(frame, tables, backend).is_none() => Reason::TooBigUnanswered,
        _ => reason,
    }
}

/// Makes of a frame whose packet is too big for its backend the answer to its sender. `None` if there
/// is none to give, or no room.
#[inline(always)]
fn answer<F: Frame, T: Tables>(frame: &mut F, tables: &T, backend: u16) -> Option<()> {
    let mtu = room(tables.backend(backend)?);
    // Each family by itself to the end: where both meet again the verifier finds fields unwritten.
    match parse::network(frame).ok()? {
        (l3, Family::Ipv4) => ipv4(frame, tables, l3, mtu),
        (l3, Family::Ipv6) => ipv6(frame, tables, l3, mtu),
    }
}

/// The largest packet that fits the way to a backend, bytes.
#[inline(always)]
pub fn room(backend: &Backend) -> u16 {
    let overhead = if backend.forwarding != Forwarding::Ipip as u8 {
        0
    } else if backend.address.is_v4() {
        Ipv4::LEN
    } else {
        Ipv6::LEN
    };
    backend.mtu.saturating_sub(overhead as u16)
}

#[inline(always)]
fn ipv4<F: Frame, T: Tables>(frame: &mut F, tables: &T, l3: usize, mtu: u16) -> Option<()> {
    let sent: Ipv4 = frame.read(l3)?;
    let length = u16::from_be_bytes(sent.length);
    if length <= mtu || !tables.may_answer() {
        return None;
    }
    let quoted = quoted(length, QUOTED_V4);
    let sum = sum(frame, l3, quoted, QUOTED_V4)?;
    let icmp = with_checksum(Icmp::fragmentation_needed(mtu), sum);
    let mut header = Ipv4 {
        version_length: 0x45,
        traffic_class: TRAFFIC_CLASS,
        length: ((Ipv4::LEN + Icmp::LEN + quoted) as u16).to_be_bytes(),
        identification: [0; 2],
        fragment: [Ipv4::DONT_FRAGMENT, 0],
        ttl: wire::TTL,
        protocol: wire::ICMP,
        checksum: [0; 2],
        source: sent.destination,
        destination: sent.source,
    };
    header.checksum = checksum::of_ipv4(&header);
    make_room(frame, l3, Ipv4::LEN + Icmp::LEN)?;
    frame.write(l3, header)?;
    frame.write(l3 + Ipv4::LEN, icmp)?;
    frame.truncate(l3 + Ipv4::LEN + Icmp::LEN + quoted)
}

#[inline(always)]
fn ipv6<F: Frame, T: Tables>(frame: &mut F, tables: &T, l3: usize, mtu: u16) -> Option<()> {
    let sent: Ipv6 = frame.read(l3)?;
    let length = u16::from_be_bytes(sent.payload_length).saturating_add(Ipv6::LEN as u16);
    let mtu = if mtu < IPV6_LEAST { IPV6_LEAST } else { mtu };
    if length <= mtu || !tables.may_answer() {
        return None;
    }
    let quoted = quoted(length, QUOTED_V6);
    let payload = (Icmp::LEN + quoted) as u16;
    // With a pseudo header (RFC 8200 §8.1).
    let sum = sum(frame, l3, quoted, QUOTED_V6)?
        .add_address(Address::v6(sent.source))
        .add_address(Address::v6(sent.destination))
        .add(u32::from(payload.to_be()))
        .add_bytes([0, 0, 0, wire::ICMPV6]);
    let icmp = with_checksum(Icmp::packet_too_big(mtu), sum);
    let header = Ipv6 {
        version_class_label: [0x60 | TRAFFIC_CLASS >> 4, TRAFFIC_CLASS << 4, 0, 0],
        payload_length: payload.to_be_bytes(),
        next_header: wire::ICMPV6,
        hop_limit: wire::TTL,
        source: sent.destination,
        destination: sent.source,
    };
    make_room(frame, l3, Ipv6::LEN + Icmp::LEN)?;
    frame.write(l3, header)?;
    frame.write(l3 + Ipv6::LEN, icmp)?;
    frame.truncate(l3 + Ipv6::LEN + Icmp::LEN + quoted)
}

/// How many bytes of a packet are quoted.
#[inline(always)]
fn quoted(length: u16, most: usize) -> usize {
    let length = usize::from(length) & !(STEP - 1);
    if length < most { length } else { most }
}

/// The sum over what is quoted.
#[inline(always)]
fn sum<F: Frame>(frame: &F, l3: usize, quoted: usize, most: usize) -> Option<Sum> {
    let mut sum = Sum::default();
    for step in 0..most / STEP {
        if step * STEP >= quoted {
            break;
        }
        let [a, b, c, d]: [u32; STEP / 4] = frame.read(l3 + step * STEP)?;
        sum = sum.add(a).add(b).add(c).add(d);
    }
    Some(sum)
}

/// The header before what has this sum.
#[inline(always)]
fn with_checksum(icmp: Icmp, sum: Sum) -> Icmp {
    let [a, b]: [u32; Icmp::LEN / 4] = zerocopy::transmute!(icmp);
    Icmp { checksum: sum.add(a).add(b).finish(), ..icmp }
}

/// Makes room for so many bytes before the packet, and turns the frame to whom it came from. Tags
/// stay.
#[inline(always)]
fn make_room<F: Frame>(frame: &mut F, l3: usize, bytes: usize) -> Option<()> {
    let Macs { destination, source } = frame.read(0)?;
    // Two tags at most, and what is overwritten if there are fewer; then the packet's own type.
    let tags: u64 = frame.read(ethernet::TYPE)?;
    let kind: [u8; 2] = frame.read(l3 - 2)?;
    frame.grow_front(bytes)?;
    l2::rewrite(frame, Macs { destination: source, source: destination })?;
    frame.write(ethernet::TYPE, tags)?;
    frame.write(l3 - 2, kind)
}

#[cfg(test)]
mod tests;
