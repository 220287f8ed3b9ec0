//! Bytes become a [`Segment`] once; after that nobody asks whether the frame is valid.
//!
//! Two steps, because most frames of a host are not for a VIP: [`locate`] finds the IP header
//! and the destination; only if that is a VIP the rest is read. Before, nothing is dropped:
//! what nobody can prove to be ours is the kernel's to judge.

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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    /// Its destination.
    pub destination: Address,
}

/// A whole TCP segment in one IP packet. Small, because the kernel program's stack is, and in
/// this order, because the verifier wants every access there aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    /// IP version.
    pub family: Family,
    /// TCP flags.
    pub flags: u8,
    /// DSCP and ECN: IPv4's type of service, IPv6's traffic class.
    pub traffic_class: u8,
    /// Bytes of the IP packet, its headers included.
    pub ip_length: u16,
    /// Bytes of TCP payload.
    pub payload: u16,
}

/// Ports, in network order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(4))]
pub struct Ports {
    /// The client's.
    pub source: [u8; 2],
    /// The VIP's.
    pub destination: [u8; 2],
}

impl Ports {
    /// As one word in memory order: for hashing.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        u16::from_ne_bytes(self.source) as u32 | (u16::from_ne_bytes(self.destination) as u32) << 16
    }
}

/// Finds the IP header and its destination behind up to two VLAN tags.
///
/// # Errors
/// The reason to pass the frame to the kernel.
#[inline(always)]
pub fn locate<F: Frame>(frame: &F) -> Result<Located, Reason> {
    let mut offset = ethernet::TYPE;
    let mut kind: [u8; 2] = frame.read(offset).ok_or(Reason::Runt)?;
    for _ in 0..ethernet::MAX_TAGS {
        if kind != ethernet::VLAN && kind != ethernet::SERVICE_VLAN {
            break;
        }
        offset += ethernet::TAG_LEN;
        kind = frame.read(offset).ok_or(Reason::Runt)?;
    }
    let l3 = offset + 2;
    if kind == ethernet::IPV4 {
        let header: Ipv4 = frame.read(l3).ok_or(Reason::Runt)?;
        Ok(Located { l3, family: Family::Ipv4, destination: Address::v4(header.destination) })
    } else if kind == ethernet::IPV6 {
        let header: Ipv6 = frame.read(l3).ok_or(Reason::Runt)?;
        let destination = Address::v6(header.destination);
        // On the wire an IPv4-mapped address has no place (RFC 4291 §2.5.5.2, RFC 6890), and
        // here it would pass for the IPv4 VIP.
        if destination.is_v4() {
            return Err(Reason::NotVip);
        }
        Ok(Located { l3, family: Family::Ipv6, destination })
    } else {
        Err(Reason::NotIp)
    }
}

/// Reads the TCP segment in a frame whose destination `is_vip`.
///
/// # Errors
/// The reason to pass or drop the frame, as its class says.
#[inline(always)]
pub fn segment<F: Frame>(
    frame: &F,
    is_vip: impl FnOnce(Address) -> bool,
) -> Result<Segment, Reason> {
    let located = locate(frame)?;
    if !is_vip(located.destination) {
        return Err(Reason::NotVip);
    }
    match located.family {
        Family::Ipv4 => segment_in_ipv4(frame, located),
        Family::Ipv6 => segment_in_ipv6(frame, located),
    }
}

#[inline(always)]
fn segment_in_ipv4<F: Frame>(frame: &F, located: Located) -> Result<Segment, Reason> {
    let l3 = located.l3;
    let header: Ipv4 = frame.read(l3).ok_or(Reason::Runt)?;
    let header_length = usize::from(header.version_length & 0x0f) * 4;
    if header.version_length >> 4 != 4 || header_length < Ipv4::LEN {
        return Err(Reason::BadIpHeader);
    }
    if header.protocol != wire::TCP {
        return Err(Reason::NotTcp);
    }
    if u16::from_be_bytes(header.fragment) & Ipv4::FRAGMENTED != 0 {
        return Err(Reason::Fragment);
    }
    let ip = IpPart {
        l4: l3 + header_length,
        source: Address::v4(header.source),
        traffic_class: header.traffic_class,
        ip_length: u16::from_be_bytes(header.length),
    };
    segment_at(frame, located, ip)
}

#[inline(always)]
fn segment_in_ipv6<F: Frame>(frame: &F, located: Located) -> Result<Segment, Reason> {
    let l3 = located.l3;
    let header: Ipv6 = frame.read(l3).ok_or(Reason::Runt)?;
    let [version_class, class_label, ..] = header.version_class_label;
    if version_class >> 4 != 6 {
        return Err(Reason::BadIpHeader);
    }
    let payload_length = u16::from_be_bytes(header.payload_length);
    let Some(ip_length) = payload_length.checked_add(Ipv6::LEN as u16) else {
        return Err(Reason::BadLength);
    };
    let start = l3 + Ipv6::LEN;
    let ip = IpPart {
        l4: start + skip_extension_headers(frame, start, header.next_header)?,
        source: Address::v6(header.source),
        traffic_class: version_class << 4 | class_label >> 4,
        ip_length,
    };
    segment_at(frame, located, ip)
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

/// What both families tell of a packet.
#[derive(Clone, Copy)]
struct IpPart {
    l4: usize,
    source: Address,
    traffic_class: u8,
    ip_length: u16,
}

#[inline(always)]
fn segment_at<F: Frame>(frame: &F, located: Located, ip: IpPart) -> Result<Segment, Reason> {
    let IpPart { l4, source, traffic_class, ip_length } = ip;
    let l3 = located.l3;
    if l3 + usize::from(ip_length) > frame.len() {
        return Err(Reason::BadLength);
    }
    let header: Tcp = frame.read(l4).ok_or(Reason::Truncated)?;
    let tcp_length = usize::from(header.offset >> 4) * 4;
    if tcp_length < Tcp::LEN {
        return Err(Reason::BadTcpHeader);
    }
    let headers = l4 - l3 + tcp_length;
    if headers > usize::from(ip_length) {
        // The IP length leaves no room for the headers that stand there.
        return Err(if l4 - l3 + Tcp::LEN > usize::from(ip_length) {
            Reason::BadLength
        } else {
            Reason::BadTcpHeader
        });
    }
    Ok(Segment {
        l3: l3 as u16,
        l4: l4 as u16,
        family: located.family,
        source,
        destination: located.destination,
        ports: Ports { source: header.source, destination: header.destination },
        flags: header.flags,
        traffic_class,
        ip_length,
        payload: ip_length - headers as u16,
    })
}

#[cfg(test)]
mod tests;
