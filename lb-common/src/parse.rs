//! Bytes become a [`Segment`] once; after that nobody asks whether the frame is valid.
//!
//! Two steps, because most frames of a host are not for a VIP: [`locate`] finds the IP header
//! and the destination; only if that is a VIP the rest is read. Before, nothing is dropped:
//! what nobody can prove to be ours is the kernel's to judge.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    address::Address,
    frame::Frame,
    reason::Reason,
    wire::{self, Ipv4, Ipv6, Tcp, ethernet},
};

/// IPv6 extension headers that are walked at most.
const MAX_EXTENSION_HEADERS: usize = 8;
/// Bytes of extension headers that are walked at most: keeps offsets small for the verifier.
const MAX_EXTENSION_BYTES: usize = 1024;

/// IP version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, IntoBytes, Immutable, PartialOrd, Ord)]
#[repr(u16)]
pub enum Family {
    /// RFC 791.
    Ipv4,
    /// RFC 8200.
    Ipv6,
}

/// An IP packet for somebody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Located {
    /// Offset of the IP header.
    pub l3: usize,
    /// Its version, by EtherType.
    pub family: Family,
    /// Its source.
    pub source: Address,
    /// Its destination.
    pub destination: Address,
}

/// A whole TCP segment in one IP packet. Small, because the kernel program's stack is, and in
/// this order without padding, because the verifier wants every access there aligned and every
/// byte written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct Segment {
    /// The client.
    pub source: Address,
    /// The VIP.
    pub destination: Address,
    /// The client's and the VIP's port.
    pub ports: Ports,
    /// Offset of the IP header: 14, 18 or 22.
    pub l3: u16,
    /// Offset of the TCP header.
    pub l4: u16,
    /// Bytes of the IP packet, its headers included.
    pub ip_length: u16,
    /// Bytes of TCP payload.
    pub payload: u16,
    /// IP version.
    pub family: Family,
    /// TCP flags.
    pub flags: u8,
    /// DSCP and ECN: IPv4's type of service, IPv6's traffic class.
    pub traffic_class: u8,
}

/// Ports, in network order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4))]
pub struct Ports {
    /// The client's.
    pub source: [u8; 2],
    /// The VIP's.
    pub destination: [u8; 2],
}

impl Ports {
    /// A header's.
    #[inline(always)]
    pub const fn of(header: &Tcp) -> Self {
        Self { source: header.source, destination: header.destination }
    }

    /// As one word in memory order: for hashing.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        u16::from_ne_bytes(self.source) as u32 | (u16::from_ne_bytes(self.destination) as u32) << 16
    }

    /// From such a word.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        let [a, b, c, d] = word.to_ne_bytes();
        Self { source: [a, b], destination: [c, d] }
    }
}

/// Finds the IP header and its addresses behind up to two VLAN tags.
///
/// # Errors
/// The reason to pass the frame to the kernel.
#[inline(always)]
pub fn locate<F: Frame>(frame: &F) -> Result<Located, Reason> {
    let (l3, family) = network(frame)?;
    let (source, destination) = match family {
        Family::Ipv4 => {
            let Ipv4 { source, destination, .. } = frame.read(l3).ok_or(Reason::Runt)?;
            (Address::v4(source), Address::v4(destination))
        }
        Family::Ipv6 => {
            let header: Ipv6 = frame.read(l3).ok_or(Reason::Runt)?;
            (Address::v6(header.source), ipv6_destination(&header)?)
        }
    };
    Ok(Located { l3, family, source, destination })
}

/// The headers of most frames, without VLAN tags and IP options; without the first two bytes,
/// so that all others are aligned.
#[derive(FromBytes)]
#[repr(C)]
struct Plain<H> {
    _macs: [u8; ethernet::TYPE - PLAIN],
    kind: [u8; 2],
    ip: H,
    /// Both ports, as [`Ports::word`]: read as two they would be put together again for the hash.
    ports: u32,
    _numbers: [u32; 2],
    offset: u8,
    flags: u8,
    _rest: [u8; 6],
}

/// Where [`Plain`] begins.
const PLAIN: usize = 2;

/// What one look at a frame tells.
pub enum Glance {
    /// All there is to know, in IPv4.
    Ipv4(Segment),
    /// All there is to know, in IPv6.
    Ipv6(Segment),
    /// It is not for a VIP.
    NotVip,
    /// Nothing: [`segment`] is to be asked.
    Odd,
}

/// Reads the TCP segment in a frame without VLAN tags and IP options which by source and
/// destination `is_ours`: one look at places that are known costs half of three looks at places to be found.
#[inline(always)]
pub fn glance<F: Frame>(frame: &F, is_ours: impl Fn(Address, Address) -> bool) -> Glance {
    let whole = |packet: Packet, ports, offset, flags| {
        packet.fits(frame.len())?;
        packet.segment(Ports::from_word(ports), offset, flags)
    };
    let found = if let Some(plain) = frame.read::<Plain<Ipv4>>(PLAIN)
        && plain.kind == ethernet::IPV4
        && plain.ip.version_length == 0x45
    {
        let packet = ipv4(&plain.ip, ethernet::LEN, is_ours);
        packet
            .and_then(|packet| whole(packet, plain.ports, plain.offset, plain.flags))
            .map(Glance::Ipv4)
    } else if let Some(plain) = frame.read::<Plain<Ipv6>>(PLAIN)
        && plain.kind == ethernet::IPV6
        && plain.ip.next_header == wire::TCP
    {
        let packet = ipv6(&plain.ip, ethernet::LEN, is_ours, |_| Ok(0));
        packet
            .and_then(|packet| whole(packet, plain.ports, plain.offset, plain.flags))
            .map(Glance::Ipv6)
    } else {
        return Glance::Odd;
    };
    match found {
        Ok(glance) => glance,
        Err(Reason::NotVip) => Glance::NotVip,
        Err(_) => Glance::Odd,
    }
}

/// Reads the TCP segment in any frame which by source and destination `is_ours`.
///
/// # Errors
/// The reason to pass or drop the frame, as its class says.
#[inline(always)]
pub fn segment<F: Frame>(
    frame: &F,
    is_ours: impl Fn(Address, Address) -> bool,
) -> Result<Segment, Reason> {
    let (l3, family) = network(frame)?;
    let packet = match family {
        Family::Ipv4 => ipv4(&frame.read(l3).ok_or(Reason::Runt)?, l3, is_ours)?,
        Family::Ipv6 => {
            let skip = |next_header| skip_extension_headers(frame, l3 + Ipv6::LEN, next_header);
            ipv6(&frame.read(l3).ok_or(Reason::Runt)?, l3, is_ours, skip)?
        }
    };
    // A glance takes a frame in several buffers for one that ends too early.
    packet.fits(frame.len()).or_else(|_| packet.fits(frame.whole_len()))?;
    let Tcp { source, destination, offset, flags, .. } =
        frame.read(packet.l4).ok_or(Reason::Truncated)?;
    packet.segment(Ports { source, destination }, offset, flags)
}

/// Offset and version of the IP header, by the EtherType behind up to two VLAN tags.
///
/// # Errors
/// The reason to pass the frame to the kernel.
#[inline(always)]
pub fn network<F: Frame>(frame: &F) -> Result<(usize, Family), Reason> {
    let mut offset = ethernet::TYPE;
    let mut kind: [u8; 2] = frame.read(offset).ok_or(Reason::Runt)?;
    for _ in 0..ethernet::MAX_TAGS {
        if kind != ethernet::VLAN && kind != ethernet::SERVICE_VLAN {
            break;
        }
        offset += ethernet::TAG_LEN;
        kind = frame.read(offset).ok_or(Reason::Runt)?;
    }
    match kind {
        ethernet::IPV4 => Ok((offset + 2, Family::Ipv4)),
        ethernet::IPV6 => Ok((offset + 2, Family::Ipv6)),
        _ => Err(Reason::NotIp),
    }
}

/// What both families tell of a packet.
#[derive(Clone, Copy)]
struct Packet {
    l3: usize,
    l4: usize,
    family: Family,
    source: Address,
    destination: Address,
    traffic_class: u8,
    length: u16,
}

#[inline(always)]
fn ipv4(
    header: &Ipv4,
    l3: usize,
    is_ours: impl Fn(Address, Address) -> bool,
) -> Result<Packet, Reason> {
    let (source, destination) = (Address::v4(header.source), Address::v4(header.destination));
    if !is_ours(source, destination) {
        return Err(Reason::NotVip);
    }
    // Version 4, and 5 to 15 words of header.
    if !matches!(header.version_length, 0x45..=0x4f) {
        return Err(Reason::BadIpHeader);
    }
    if header.protocol != wire::TCP {
        return Err(Reason::NotTcp);
    }
    if u16::from_be_bytes(header.fragment) & Ipv4::FRAGMENTED != 0 {
        return Err(Reason::Fragment);
    }
    Ok(Packet {
        l3,
        l4: l3 + usize::from(header.version_length & 0x0f) * 4,
        family: Family::Ipv4,
        source,
        destination,
        traffic_class: header.traffic_class,
        length: u16::from_be_bytes(header.length),
    })
}

/// `skip` tells how many bytes of extension headers follow, by what the first header is.
#[inline(always)]
fn ipv6(
    header: &Ipv6,
    l3: usize,
    is_ours: impl Fn(Address, Address) -> bool,
    skip: impl Fn(u8) -> Result<usize, Reason>,
) -> Result<Packet, Reason> {
    let (source, destination) = (Address::v6(header.source), ipv6_destination(header)?);
    if !is_ours(source, destination) {
        return Err(Reason::NotVip);
    }
    let [version_class, class_label, ..] = header.version_class_label;
    if version_class >> 4 != 6 {
        return Err(Reason::BadIpHeader);
    }
    let payload_length = u16::from_be_bytes(header.payload_length);
    let length = payload_length.checked_add(Ipv6::LEN as u16).ok_or(Reason::BadLength)?;
    Ok(Packet {
        l3,
        l4: l3 + Ipv6::LEN + skip(header.next_header)?,
        family: Family::Ipv6,
        source,
        destination,
        traffic_class: version_class << 4 | class_label >> 4,
        length,
    })
}

/// On the wire an IPv4-mapped address has no place (RFC 4291 §2.5.5.2, RFC 6890), and here it
/// would pass for the IPv4 VIP.
#[inline(always)]
fn ipv6_destination(header: &Ipv6) -> Result<Address, Reason> {
    let destination = Address::v6(header.destination);
    if destination.is_v4() { Err(Reason::NotVip) } else { Ok(destination) }
}

/// Bytes of extension headers between the fixed header and TCP.
#[inline(always)]
fn skip_extension_headers<F: Frame>(
    frame: &F,
    start: usize,
    mut next_header: u8,
) -> Result<usize, Reason> {
    if next_header == wire::TCP {
        return Ok(0);
    }
    let mut skipped = 0;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next_header {
            wire::TCP => return Ok(skipped),
            Ipv6::HOP_BY_HOP | Ipv6::ROUTING | Ipv6::DESTINATION_OPTIONS => {
                let [next, length]: [u8; 2] =
                    frame.read(start + skipped).ok_or(Reason::Truncated)?;
                next_header = next;
                // In units of 8 bytes, the first 8 not counted (RFC 8200 §4.3).
                skipped += 8 + usize::from(length) * 8;
                if skipped > MAX_EXTENSION_BYTES {
                    return Err(Reason::ExtensionHeaders);
                }
            }
            Ipv6::FRAGMENT => {
                let [next, _, offset_high, offset_low]: [u8; 4] =
                    frame.read(start + skipped).ok_or(Reason::Truncated)?;
                if u16::from_be_bytes([offset_high, offset_low]) & 0xfff9 != 0 {
                    // The kernel reassembles what is not TCP: a large ping to the VIP.
                    return Err(if next == wire::TCP { Reason::Fragment } else { Reason::NotTcp });
                }
                // An atomic fragment (RFC 6946) is whole.
                next_header = next;
                skipped += 8;
            }
            _ => return Err(Reason::NotTcp),
        }
    }
    if next_header == wire::TCP { Ok(skipped) } else { Err(Reason::ExtensionHeaders) }
}

impl Packet {
    /// Whether all of it is in its frame, which has so many bytes.
    #[inline(always)]
    fn fits(&self, frame_length: usize) -> Result<(), Reason> {
        if self.l3 + usize::from(self.length) > frame_length {
            return Err(Reason::BadLength);
        }
        Ok(())
    }

    /// The segment in it.
    #[inline(always)]
    fn segment(&self, ports: Ports, offset: u8, flags: u8) -> Result<Segment, Reason> {
        let Self { l3, l4, family, source, destination, traffic_class, length } = *self;
        let tcp_length = usize::from(offset >> 4) * 4;
        if tcp_length < Tcp::LEN {
            return Err(Reason::BadTcpHeader);
        }
        let headers = l4 - l3 + tcp_length;
        if headers > usize::from(length) {
            // The IP length leaves no room for the headers that stand there.
            return Err(if l4 - l3 + Tcp::LEN > usize::from(length) {
                Reason::BadLength
            } else {
                Reason::BadTcpHeader
            });
        }
        Ok(Segment {
            l3: l3 as u16,
            l4: l4 as u16,
            family,
            source,
            destination,
            ports,
            flags,
            traffic_class,
            ip_length: length,
            payload: length - headers as u16,
        })
    }
}

#[cfg(test)]
mod tests;
