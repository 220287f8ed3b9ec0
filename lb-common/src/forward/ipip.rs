//! A packet in a packet: IPv4 or IPv6 outside, IPv4 or IPv6 inside (RFC 2003, RFC 2473, RFC 4213).
//!
//! The inner packet is untouched, its hop count too: to it the tunnel is a wire. DSCP and
//! ECN are copied outwards (RFC 6040, normal mode at the ingress). The outer IPv4 header
//! never allows fragmentation and has no identification (RFC 6864 §4.1): what is too big is
//! refused here, where it can be counted.

use zerocopy::{Immutable, IntoBytes};

use crate::{
    abi::{Backend, Egress},
    address::Address,
    checksum,
    forward::l2,
    frame::Frame,
    parse::{Family, Segment},
    reason::Reason,
    wire::{self, Ipv4, Ipv6, Macs, ethernet},
};

/// Puts the packet into another one addressed to the backend.
///
/// # Errors
/// `TooBig` if it would exceed the route's MTU, `NoHeadroom` if the driver left no room.
#[inline(always)]
pub fn rewrite<F: Frame>(
    frame: &mut F,
    segment: &Segment,
    backend: &Backend,
    egress: &Egress,
    macs: Macs,
    hash: u64,
) -> Result<(), Reason> {
    match backend.address.to_v4() {
        Some(destination) => {
            let header: [u32; Ipv4::LEN / 4] =
                zerocopy::transmute!(outer_v4(segment, egress, hash, destination));
            encapsulate(frame, segment, backend, macs, ethernet::IPV4, header)
        }
        None => {
            let header: [u32; Ipv6::LEN / 4] =
                zerocopy::transmute!(outer_v6(segment, egress, hash, backend.address));
            encapsulate(frame, segment, backend, macs, ethernet::IPV6, header)
        }
    }
}

/// What stands before the packet in an untagged frame.
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct Front<const WORDS: usize> {
    macs: l2::Words,
    kind: [u8; 2],
    header: [u32; WORDS],
}

#[inline(always)]
fn encapsulate<F: Frame, const WORDS: usize>(
    frame: &mut F,
    segment: &Segment,
    backend: &Backend,
    macs: Macs,
    kind: [u8; 2],
    header: [u32; WORDS],
) -> Result<(), Reason> {
    let more = size_of_val(&header);
    let mtu = usize::from(backend.mtu);
    if mtu != 0 && more + usize::from(segment.ip_length) > mtu {
        return Err(Reason::TooBig);
    }
    let l3 = usize::from(segment.l3);
    let end = l3 + more + usize::from(segment.ip_length);
    if l3 == ethernet::LEN {
        frame.grow_front(more).ok_or(Reason::NoHeadroom)?;
        cut_padding(frame, end)?;
        let front = Front { macs: macs.into(), kind, header };
        return frame.write(0, front).ok_or(Reason::Truncated);
    }
    // Two tags at most. What they overwrite if there are fewer is written after them.
    let tags: u64 = frame.read(ethernet::TYPE).ok_or(Reason::Truncated)?;
    frame.grow_front(more).ok_or(Reason::NoHeadroom)?;
    cut_padding(frame, end)?;
    l2::rewrite(frame, macs)
        .and_then(|()| frame.write(ethernet::TYPE, tags))
        .and_then(|()| frame.write(l3 - 2, kind))
        .and_then(|()| frame.write(l3, header))
        .ok_or(Reason::Truncated)
}

/// Cuts off what an Ethernet card has put behind a short packet (IEEE 802.3 §3.2.8): in the longer
/// frame it is only in the way, and some cards add it to the checksum they report.
#[inline(always)]
fn cut_padding<F: Frame>(frame: &mut F, end: usize) -> Result<(), Reason> {
    if frame.len() > end {
        return frame.truncate(end).ok_or(Reason::Truncated);
    }
    Ok(())
}

/// The protocol number of the inner packet.
#[inline(always)]
const fn inner_protocol(family: Family) -> u8 {
    match family {
        Family::Ipv4 => wire::IPV4_IN_IP,
        Family::Ipv6 => wire::IPV6_IN_IP,
    }
}

#[inline(always)]
fn outer_v4(segment: &Segment, egress: &Egress, hash: u64, destination: [u8; 4]) -> Ipv4 {
    let mut header = Ipv4 {
        version_length: 0x45,
        traffic_class: segment.traffic_class,
        length: segment.ip_length.wrapping_add(Ipv4::LEN as u16).to_be_bytes(),
        identification: [0; 2],
        fragment: [Ipv4::DONT_FRAGMENT, 0],
        ttl: wire::TTL,
        protocol: inner_protocol(segment.family),
        checksum: [0; 2],
        source: spread(egress.source_v4, egress.spread_v4, hash),
        destination,
    };
    header.checksum = checksum::of_ipv4(&header);
    header
}

#[inline(always)]
fn outer_v6(segment: &Segment, egress: &Egress, hash: u64, destination: Address) -> Ipv6 {
    // The flow label carries the flow's hash, so that routers on the way spread tunnelled
    // flows over equal paths (RFC 6438).
    let label = hash as u32 & 0x000f_ffff;
    let first = 6 << 28 | u32::from(segment.traffic_class) << 20 | label;
    let [a, b, c, d] = egress.source_v6.halves();
    let low = u32::from_ne_bytes(spread(d.to_ne_bytes(), egress.spread_v6, hash));
    Ipv6 {
        version_class_label: first.to_be_bytes(),
        payload_length: segment.ip_length.to_be_bytes(),
        next_header: inner_protocol(segment.family),
        hop_limit: wire::TTL,
        source: zerocopy::transmute!([a, b, c, low]),
        destination: destination.to_v6(),
    }
}

/// Fills the bits of `spread` in an address from the flow's hash.
#[inline(always)]
fn spread(address: [u8; 4], spread: [u8; 4], hash: u64) -> [u8; 4] {
    let bits = (hash >> 32) as u32 & u32::from_ne_bytes(spread);
    (u32::from_ne_bytes(address) | bits).to_ne_bytes()
}

#[cfg(test)]
mod tests;
