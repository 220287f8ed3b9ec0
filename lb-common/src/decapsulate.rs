//! The backend's side of DSR: a VIP's packet leaves its tunnel, and nobody is told that the
//! VIP lives here.
//!
//! The balancer sends `ipip` packets to the backend's own address; the program `agent` takes
//! the outer header off before the network stack sees the frame, for all four mixes of IPv4 and
//! IPv6 (RFC 2003, RFC 2473, RFC 4213). ARP requests and neighbour solicitations for a VIP are
//! dropped, so that only the balancer answers them whatever the kernel's settings say.
//!
//! What nobody can prove to be ours is passed to the kernel untouched. The outer destination is
//! not compared with this host's addresses, which change without telling us, nor is the outer
//! checksum: the inner destination and the outer source decide, and what the outer header
//! protected ends here.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    address::Address,
    frame::Frame,
    parse::Family,
    wire::{self, Ipv4, Ipv6, Macs, ethernet},
};

#[cfg(any(test, feature = "host"))]
pub mod corpus;
mod outcome;
#[cfg(test)]
mod tests;

pub use outcome::{Outcome, Verdict};

/// Changes with any change of a map's name, capacity, key or value below.
pub const ABI_VERSION: u32 = 1;

/// How many of each thing one agent can hold.
pub mod capacity {
    /// VIPs.
    pub const VIPS: usize = 4096;
    /// Prefixes of outer sources.
    pub const SOURCES: usize = 1024;
    /// Counters of outcomes: more than there are, so that newer ones fit.
    pub const OUTCOMES: usize = 32;
    /// Bytes of the record.
    pub const RECORD: usize = 4096;
}

/// Names of the agent's maps: in the object file, and of their pins.
pub mod map {
    /// Hash of [`Address`](crate::address::Address) to `u32` 1: written by `sluice agent run`.
    pub const VIPS: &str = "AGENT_VIPS";
    /// LPM trie of [`Source`](super::Source) to `u32` 1: outer sources that are accepted.
    pub const SOURCES: &str = "AGENT_SOURCES";
    /// Per-CPU array, one element: a count per [`Outcome`](super::Outcome).
    pub const OUTCOMES: &str = "AGENT_OUTCOMES";
    /// Hash of `u32` 0 to bytes that only `sluice agent` reads: what it found and changed.
    pub const RECORD: &str = "AGENT_RECORD";

    /// Every map of the agent.
    pub const ALL: [&str; 4] = [VIPS, SOURCES, OUTCOMES, RECORD];
}

/// The element of `AGENT_OUTCOMES`.
pub type OutcomeCounts = [u64; capacity::OUTCOMES];

/// Key of the trie of outer sources. Only the first `prefix_length` bits after the length
/// itself count: 0 matches every source, `FAMILY_BITS` every one of a family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Source {
    /// Bits that count, from `family` on; host order, as the kernel wants it.
    pub prefix_length: u32,
    /// 4 or 6 in the last byte: an IPv6 header may carry an address that looks like a mapped
    /// IPv4 one.
    pub family: [u8; 4],
    /// The address.
    pub address: Address,
}

impl Source {
    /// Bits before the address.
    pub const FAMILY_BITS: u32 = 32;
    /// Bits before the 32 of an IPv4 address.
    pub const IPV4_BITS: u32 = Self::FAMILY_BITS + 96;
    /// Matches every source of both families.
    pub const ANY: Self = Self { prefix_length: 0, family: [0; 4], address: Address::UNSPECIFIED };

    /// One IPv4 host.
    #[inline(always)]
    pub const fn v4(address: [u8; 4]) -> Self {
        Self {
            prefix_length: Self::IPV4_BITS + 32,
            family: [0, 0, 0, 4],
            address: Address::v4(address),
        }
    }

    /// One IPv6 host.
    #[inline(always)]
    pub const fn v6(address: [u8; 16]) -> Self {
        Self {
            prefix_length: Self::FAMILY_BITS + 128,
            family: [0, 0, 0, 6],
            address: Address::v6(address),
        }
    }
}

const _: () = assert!(size_of::<Source>() == 24);

/// What [`process`] asks the agent's maps, or a host test's memory.
pub trait Tables {
    /// Whether this address is a VIP.
    fn is_vip(&self, address: Address) -> bool;

    /// Whether tunnels from this host are accepted.
    fn accepts(&self, source: &Source) -> bool;

    /// Counts a frame.
    fn count(&self, outcome: Outcome);
}

/// EtherType of ARP (RFC 826).
const ARP: [u8; 2] = [0x08, 0x06];
/// Start of an ARP request for an IPv4 address on Ethernet: both types, both lengths, 1.
const ARP_REQUEST: [u8; 8] = [0, 1, 0x08, 0, 6, 4, 0, 1];
/// Next header of ICMPv6 (RFC 4443).
const ICMPV6: u8 = 58;
/// ICMPv6 type of a neighbour solicitation (RFC 4861 §4.3).
const NEIGHBOUR_SOLICITATION: u8 = 135;
/// A destination options header with nothing but a tunnel encapsulation limit (RFC 2473
/// §4.1.1) and padding: Linux's `ip6_tnl` sends it by default. Length in units of 8 bytes
/// beyond the first, option type, option length.
const ENCAPSULATION_LIMIT: [u8; 3] = [0, 4, 1];
/// Bytes of that header.
const ENCAPSULATION_LIMIT_LEN: usize = 8;

/// The ECN field in a traffic class (RFC 3168 §5).
mod ecn {
    pub const MASK: u8 = 0b11;
    pub const NOT_CAPABLE: u8 = 0b00;
    pub const ECT_1: u8 = 0b01;
    pub const ECT_0: u8 = 0b10;
    pub const CONGESTION_EXPERIENCED: u8 = 0b11;
}

/// The whole road: what is for a VIP is unpacked in place. Every frame is counted once.
#[inline(always)]
pub fn process<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Outcome {
    let outcome = match find(frame, tables).and_then(|found| unpack(frame, &found)) {
        Ok(()) => Outcome::Decapsulated,
        Err(outcome) => outcome,
    };
    tables.count(outcome);
    outcome
}

/// A tunnelled packet for a VIP, from an accepted source, with lengths that agree.
struct Tunnelled {
    /// Offset of the outer header: 14, 18 or 22.
    l3: usize,
    /// Bytes of the outer headers.
    outer: usize,
    /// The inner packet's version.
    family: Family,
    /// The inner packet's traffic class, as it arrived.
    traffic_class: u8,
    /// The ECN field it leaves with.
    ecn: u8,
}

/// What both families' outer headers tell.
struct Outer {
    /// Bytes of the headers before the inner packet.
    headers: usize,
    /// Bytes of the whole packet.
    length: usize,
    source: Source,
    traffic_class: u8,
    /// The inner packet's version, by protocol number.
    inner: Family,
}

/// What both families' inner headers tell.
struct Inner {
    destination: Address,
    /// Bytes of the whole packet.
    length: usize,
    traffic_class: u8,
    /// Its version is what the outer header promised, and its header fits its length.
    sound: bool,
}

#[inline(always)]
fn find<F: Frame, T: Tables>(frame: &F, tables: &T) -> Result<Tunnelled, Outcome> {
    let (l3, kind) = behind_tags(frame).ok_or(Outcome::Runt)?;
    let outer = if kind == ethernet::IPV4 {
        outer_v4(frame, l3)?
    } else if kind == ethernet::IPV6 {
        outer_v6(frame, l3, tables)?
    } else if kind == ARP {
        return Err(arp(frame, l3, tables));
    } else {
        return Err(Outcome::NotTunnel);
    };
    let inner = match outer.inner {
        Family::Ipv4 => inner_v4(frame, l3 + outer.headers),
        Family::Ipv6 => inner_v6(frame, l3 + outer.headers),
    }
    .ok_or(Outcome::Runt)?;
    if !tables.is_vip(inner.destination) {
        return Err(Outcome::NotVip);
    }
    if !tables.accepts(&outer.source) {
        return Err(Outcome::SourceRefused);
    }
    if !inner.sound {
        return Err(Outcome::BadIpHeader);
    }
    let end = l3 + outer.length;
    let is_cut = end > frame.len() && end > frame.whole_len();
    if is_cut || outer.headers + inner.length > outer.length {
        return Err(Outcome::BadLength);
    }
    Ok(Tunnelled {
        l3,
        outer: outer.headers,
        family: outer.inner,
        traffic_class: inner.traffic_class,
        ecn: ecn_out(outer.traffic_class, inner.traffic_class).ok_or(Outcome::Congested)?,
    })
}

/// Offset of what follows up to two VLAN tags, and its EtherType.
#[inline(always)]
fn behind_tags<F: Frame>(frame: &F) -> Option<(usize, [u8; 2])> {
    let mut offset = ethernet::TYPE;
    let mut kind: [u8; 2] = frame.read(offset)?;
    for _ in 0..ethernet::MAX_TAGS {
        if kind != ethernet::VLAN && kind != ethernet::SERVICE_VLAN {
            break;
        }
        offset += ethernet::TAG_LEN;
        kind = frame.read(offset)?;
    }
    Some((offset + 2, kind))
}

#[inline(always)]
fn outer_v4<F: Frame>(frame: &F, l3: usize) -> Result<Outer, Outcome> {
    let header: Ipv4 = frame.read(l3).ok_or(Outcome::Runt)?;
    let headers = usize::from(header.version_length & 0x0f) * 4;
    if header.version_length >> 4 != 4 || headers < Ipv4::LEN {
        return Err(Outcome::NotTunnel);
    }
    let inner = tunnelled(header.protocol).ok_or(Outcome::NotTunnel)?;
    if u16::from_be_bytes(header.fragment) & Ipv4::FRAGMENTED != 0 {
        return Err(Outcome::Fragment);
    }
    Ok(Outer {
        headers,
        length: usize::from(u16::from_be_bytes(header.length)),
        source: Source::v4(header.source),
        traffic_class: header.traffic_class,
        inner,
    })
}

#[inline(always)]
fn outer_v6<F: Frame, T: Tables>(frame: &F, l3: usize, tables: &T) -> Result<Outer, Outcome> {
    let header: Ipv6 = frame.read(l3).ok_or(Outcome::Runt)?;
    let [version_class, class_label, ..] = header.version_class_label;
    if version_class >> 4 != 6 {
        return Err(Outcome::NotTunnel);
    }
    let next = l3 + Ipv6::LEN;
    let (headers, inner) = match (tunnelled(header.next_header), header.next_header) {
        (Some(inner), _) => (Ipv6::LEN, inner),
        (None, Ipv6::DESTINATION_OPTIONS) => {
            let [kind, options @ ..]: [u8; 4] = frame.read(next).ok_or(Outcome::Runt)?;
            match tunnelled(kind) {
                Some(inner) if options == ENCAPSULATION_LIMIT => {
                    (Ipv6::LEN + ENCAPSULATION_LIMIT_LEN, inner)
                }
                _ => return Err(Outcome::NotTunnel),
            }
        }
        (None, Ipv6::FRAGMENT) => {
            let kind: u8 = frame.read(next).ok_or(Outcome::Runt)?;
            return Err(match (tunnelled(kind), kind) {
                (Some(_), _) | (None, Ipv6::DESTINATION_OPTIONS) => Outcome::Fragment,
                _ => Outcome::NotTunnel,
            });
        }
        (None, ICMPV6) => return Err(neighbour_solicitation(frame, next, tables)),
        (None, _) => return Err(Outcome::NotTunnel),
    };
    Ok(Outer {
        headers,
        length: Ipv6::LEN + usize::from(u16::from_be_bytes(header.payload_length)),
        source: Source::v6(header.source),
        traffic_class: version_class << 4 | class_label >> 4,
        inner,
    })
}

/// The version of the packet that a header with this protocol number is followed by.
#[inline(always)]
const fn tunnelled(protocol: u8) -> Option<Family> {
    match protocol {
        wire::IPV4_IN_IP => Some(Family::Ipv4),
        wire::IPV6_IN_IP => Some(Family::Ipv6),
        _ => None,
    }
}

#[inline(always)]
fn inner_v4<F: Frame>(frame: &F, offset: usize) -> Option<Inner> {
    let header: Ipv4 = frame.read(offset)?;
    let header_length = usize::from(header.version_length & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes(header.length));
    Some(Inner {
        destination: Address::v4(header.destination),
        length,
        traffic_class: header.traffic_class,
        sound: header.version_length >> 4 == 4
            && header_length >= Ipv4::LEN
            && header_length <= length,
    })
}

#[inline(always)]
fn inner_v6<F: Frame>(frame: &F, offset: usize) -> Option<Inner> {
    let header: Ipv6 = frame.read(offset)?;
    let [version_class, class_label, ..] = header.version_class_label;
    let destination = Address::v6(header.destination);
    Some(Inner {
        // A mapped address would pass for the IPv4 VIP; on the wire it has no place.
        destination: if destination.is_v4() { Address::UNSPECIFIED } else { destination },
        length: Ipv6::LEN + usize::from(u16::from_be_bytes(header.payload_length)),
        traffic_class: version_class << 4 | class_label >> 4,
        sound: version_class >> 4 == 6,
    })
}

/// An ARP message: the kernel's, unless it asks for a VIP.
#[inline(always)]
fn arp<F: Frame, T: Tables>(frame: &F, offset: usize, tables: &T) -> Outcome {
    // After sender's MAC and address and the target's MAC: the target's address.
    match (frame.read::<[u8; 8]>(offset), frame.read::<[u8; 4]>(offset + 24)) {
        (Some(ARP_REQUEST), Some(target)) if tables.is_vip(Address::v4(target)) => {
            Outcome::Solicitation
        }
        _ => Outcome::NotTunnel,
    }
}

/// An ICMPv6 message: the kernel's, unless it asks for a VIP.
#[inline(always)]
fn neighbour_solicitation<F: Frame, T: Tables>(frame: &F, offset: usize, tables: &T) -> Outcome {
    // After type, code, checksum and four reserved bytes: the target's address.
    match (frame.read::<u8>(offset), frame.read::<[u8; 16]>(offset + 8)) {
        (Some(NEIGHBOUR_SOLICITATION), Some(target)) if tables.is_vip(Address::v6(target)) => {
            Outcome::Solicitation
        }
        _ => Outcome::NotTunnel,
    }
}

/// The ECN field of a packet that leaves its tunnel, by those of both traffic classes; `None`:
/// it is to be dropped (RFC 6040 §4.2, figure 4).
#[inline(always)]
const fn ecn_out(outer: u8, inner: u8) -> Option<u8> {
    match (inner & ecn::MASK, outer & ecn::MASK) {
        (ecn::NOT_CAPABLE, ecn::CONGESTION_EXPERIENCED) => None,
        (ecn::NOT_CAPABLE, _) => Some(ecn::NOT_CAPABLE),
        (_, ecn::CONGESTION_EXPERIENCED) => Some(ecn::CONGESTION_EXPERIENCED),
        (ecn::ECT_0, ecn::ECT_1) => Some(ecn::ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Takes the outer headers off: MAC addresses, VLAN tags and the inner packet close ranks.
#[inline(always)]
fn unpack<F: Frame>(frame: &mut F, found: &Tunnelled) -> Result<(), Outcome> {
    let &Tunnelled { l3, outer, family, traffic_class, ecn } = found;
    if traffic_class & ecn::MASK != ecn {
        mark(frame, l3 + outer, family, traffic_class, ecn).ok_or(Outcome::BadLength)?;
    }
    let kind = match family {
        Family::Ipv4 => ethernet::IPV4,
        Family::Ipv6 => ethernet::IPV6,
    };
    strip(frame, l3, outer, kind).ok_or(Outcome::BadLength)
}

#[inline(always)]
fn strip<F: Frame>(frame: &mut F, l3: usize, outer: usize, kind: [u8; 2]) -> Option<()> {
    const ONE_TAG: usize = ethernet::LEN + ethernet::TAG_LEN;
    let macs: Macs = frame.read(0)?;
    match l3 {
        ethernet::LEN => frame.shrink_front(outer)?,
        ONE_TAG => {
            let tag: [u8; ethernet::TAG_LEN] = frame.read(ethernet::TYPE)?;
            frame.shrink_front(outer)?;
            frame.write(ethernet::TYPE, tag)?;
        }
        _ => {
            let tags: [u8; 2 * ethernet::TAG_LEN] = frame.read(ethernet::TYPE)?;
            frame.shrink_front(outer)?;
            frame.write(ethernet::TYPE, tags)?;
        }
    }
    frame.write(0, macs)?;
    frame.write(l3 - 2, kind)
}

/// Writes the ECN field of the inner packet at `offset`. Rare: only a congested router, or one
/// with two grades of congestion, makes the two fields differ.
#[inline(never)]
fn mark<F: Frame>(
    frame: &mut F,
    offset: usize,
    family: Family,
    traffic_class: u8,
    ecn: u8,
) -> Option<()> {
    let marked = traffic_class & !ecn::MASK | ecn;
    match family {
        Family::Ipv4 => {
            let header: Ipv4 = frame.read(offset)?;
            // RFC 1624 eqn. 3: HC' = ~(~HC + ~m + m'), of the one word that changes.
            let word = |class| u32::from(u16::from_be_bytes([header.version_length, class]));
            let sum = u32::from(!u16::from_be_bytes(header.checksum))
                + (!word(header.traffic_class) & 0xffff)
                + word(marked);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            let checksum = (!(sum as u16)).to_be_bytes();
            frame.write(offset, Ipv4 { traffic_class: marked, checksum, ..header })
        }
        Family::Ipv6 => {
            let [version_class, class_label]: [u8; 2] = frame.read(offset)?;
            frame.write(offset, [version_class, marked << 4 | class_label & 0x0f])
        }
    }
}
