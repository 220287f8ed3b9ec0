//! An ICMP error follows the flow that it quotes: to the backend that has sent what could not be
//! delivered, or, of a translated flow, to the client.
//!
//! So a path with a smaller MTU is found (RFC 1191, RFC 8201) though backends answer from an address
//! that this host owns, too. Errors come with the packet that they are about: its IP header and at
//! least the ports (RFC 792, RFC 4443 §3). Turned around, that is the tuple of the flow's own
//! entry.
//!
//! Of a translated flow the quoted packet is translated back to what its sender knows, as RFC 5508
//! §4 wants it; the error then comes from where the sender has sent to, or, to the backend, from
//! whom it was. The quoted TCP checksum is left as it is: most errors don't quote that far.

use crate::{
    address::Address,
    checksum::Change,
    flow::{self, GROUP},
    forward::{self, Action, l2, leave_by, way},
    frame::Frame,
    nat::{self, Tuple},
    parse::{self, Family, Ports, Segment},
    reason::Reason,
    service::{self, BackendState},
    steer::Stages,
    tables::Tables,
    wire::{self, Icmp, Ipv4, Ipv6},
};

/// An error and what it quotes. Offsets count from the frame's first byte.
#[derive(Clone, Copy)]
struct Error {
    family: Family,
    l3: usize,
    icmp: usize,
    ports_at: usize,
    checksum: [u8; 2],
    quoted: Tuple,
}

/// The flow that an error quotes, in one word: the word of its entry in the upper half, the index of
/// its backend in the lower, and whose the error is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quoted(u64);

impl Quoted {
    const TRANSLATED: u64 = 1 << 17;
    const RETURN: u64 = 1 << 18;
    const IPV6: u64 = 1 << 19;

    /// From the number; see [`Self::number`].
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// As a number, whose bit 16 is always zero.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The packet's IP version.
    #[inline(always)]
    pub const fn family(self) -> Family {
        if self.is(Self::IPV6) { Family::Ipv6 } else { Family::Ipv4 }
    }

    #[inline(always)]
    const fn is(self, what: u64) -> bool {
        self.0 & what != 0
    }

    #[inline(always)]
    const fn backend(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    const fn word(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Sends an ICMP error where it belongs, and counts it.
///
/// # Errors
/// `NotTcp` or `NotVip` for what is no error about a flow that is known, which is the kernel's;
/// otherwise the reason to drop it: `EchoUnhealthy` for a ping that is not to be answered.
#[inline(always)]
pub fn follow<F: Frame, T: Stages<F>>(frame: &mut F, tables: &T) -> Result<Action, Reason> {
    let quoted = tables.quoted(frame)?;
    let bytes = frame.len() as u64;
    let action = if quoted.is(Quoted::TRANSLATED) {
        tables.translate_error(frame, quoted)?
    } else {
        tables.forward_error(frame, quoted)?
    };
    if quoted.is(Quoted::RETURN) {
        tables.count_return(quoted.backend(), bytes);
    } else {
        tables.count_traffic(quoted.backend(), bytes);
    }
    Ok(action)
}

/// Which flow a frame is an ICMP error about. What [`Stages::quoted`] does.
///
/// # Errors
/// `NotTcp` or `NotVip` if it is none, `EchoUnhealthy` if it is a ping that is not to be answered.
#[inline(always)]
pub fn quoted<F: Frame, T: Tables>(frame: &F, tables: &T) -> Result<Quoted, Reason> {
    // Each family by itself to the end: where both meet again the verifier finds fields unwritten.
    let (l3, family) = parse::network(frame)?;
    match family {
        Family::Ipv4 => {
            let header: Ipv4 = frame.read(l3).ok_or(Reason::Runt)?;
            let destination = Address::v4(header.destination);
            let end = l3 + usize::from(u16::from_be_bytes(header.length));
            // What is cut short would lie about its length in a tunnel, too.
            let error = if end <= frame.len() { ipv4(frame, l3, &header) } else { None };
            let found = error.and_then(|e| find(tables, &e, destination));
            found.ok_or_else(|| others(frame, l3, family, tables, destination))
        }
        Family::Ipv6 => {
            let header: Ipv6 = frame.read(l3).ok_or(Reason::Runt)?;
            let destination = Address::v6(header.destination);
            let end = l3 + Ipv6::LEN + usize::from(u16::from_be_bytes(header.payload_length));
            let error = if end <= frame.len() { ipv6(frame, l3, &header) } else { None };
            let found = error.and_then(|e| find(tables, &e, destination));
            found.ok_or_else(|| others(frame, l3, family, tables, destination))
        }
    }
}

/// Why what is not ours is left to the kernel, or is not to be answered.
#[inline(always)]
fn others<F: Frame, T: Tables>(
    frame: &F,
    l3: usize,
    family: Family,
    tables: &T,
    destination: Address,
) -> Reason {
    if !tables.is_vip(destination) {
        Reason::NotVip
    } else if tables.is_silent(destination) && is_echo(frame, l3, family) == Some(true) {
        Reason::EchoUnhealthy
    } else {
        Reason::NotTcp
    }
}

/// Whether a packet is a ping, or the first fragment of one, without which nobody puts together the
/// others. Behind other extension headers nobody looks for it.
#[inline(always)]
fn is_echo<F: Frame>(frame: &F, l3: usize, family: Family) -> Option<bool> {
    match family {
        Family::Ipv4 => {
            let header: Ipv4 = frame.read(l3)?;
            let is_first = u16::from_be_bytes(header.fragment) & Ipv4::OFFSET == 0;
            let kind: u8 = frame.read(l3 + usize::from(header.version_length & 0x0f) * 4)?;
            Some(header.protocol == wire::ICMP && is_first && kind == Icmp::ECHO_V4)
        }
        Family::Ipv6 => {
            let header: Ipv6 = frame.read(l3)?;
            let mut at = l3 + Ipv6::LEN;
            let mut next = header.next_header;
            if next == Ipv6::FRAGMENT {
                let [behind, _, high, low]: [u8; 4] = frame.read(at)?;
                if u16::from_be_bytes([high, low]) & Ipv6::OFFSET != 0 {
                    return Some(false);
                }
                next = behind;
                at += Ipv6::FRAGMENT_LEN;
            }
            let kind: u8 = frame.read(at)?;
            Some(next == wire::ICMPV6 && kind == Icmp::ECHO_V6)
        }
    }
}

#[inline(always)]
fn find<T: Tables>(tables: &T, error: &Error, destination: Address) -> Option<Quoted> {
    // Who sends an error sends it to who has sent the packet.
    if error.quoted.source != destination {
        return None;
    }
    let settings = tables.settings()?;
    let sent = error.quoted.turned();
    let hash = sent.hash(error.family, settings);
    let group_index = flow::group_index(hash, settings);
    let found = flow::find(&tables.flow_group(group_index)?, hash)?;
    let index = found.entry.backend();
    let backend = tables.backend(index)?;
    if !BackendState::from_number(backend.state).forwards() {
        return None;
    }
    let word = group_index * GROUP as u32 + found.index as u32;
    let family = match error.family {
        Family::Ipv4 => 0,
        Family::Ipv6 => Quoted::IPV6,
    };
    let place = u64::from(word) << 32 | u64::from(index) | family;
    if found.entry.is_return() {
        return Some(Quoted(place | Quoted::TRANSLATED | Quoted::RETURN));
    }
    let vip = service::of_backend(tables, backend)?;
    if !service::is_at(&vip, sent.destination, sent.ports.destination) {
        return None;
    }
    let translated = if nat::translates(backend) { Quoted::TRANSLATED } else { 0 };
    Some(Quoted(place | translated))
}

/// Forwards an error as its flow's packets are. What [`Stages::forward_error`] does.
///
/// # Errors
/// The reason to drop it.
#[inline(always)]
pub fn forward_error<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    quoted: Quoted,
) -> Result<Action, Reason> {
    let backend = tables.backend(quoted.backend()).ok_or(Reason::NoBackend)?;
    let (l3, family) = parse::network(frame)?;
    let (ip_length, traffic_class) = match family {
        Family::Ipv4 => {
            let header: Ipv4 = frame.read(l3).ok_or(Reason::Runt)?;
            (u16::from_be_bytes(header.length), header.traffic_class)
        }
        Family::Ipv6 => {
            let header: Ipv6 = frame.read(l3).ok_or(Reason::Runt)?;
            let [version_class, class_label, ..] = header.version_class_label;
            let length = u16::from_be_bytes(header.payload_length);
            (length.saturating_add(Ipv6::LEN as u16), version_class << 4 | class_label >> 4)
        }
    };
    let segment = Segment {
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        ports: Ports { source: [0; 2], destination: [0; 2] },
        l3: l3 as u16,
        l4: 0,
        ip_length,
        payload: 0,
        family,
        flags: 0,
        traffic_class,
    };
    // What is spread over a tunnel's sources is spread by flows; the word is as good.
    let hash = u64::from(quoted.word()) << 32;
    forward::rewrite(frame, &segment, tables, backend, hash).map_err(|reason| match reason {
        // Of an error nobody is told by another (RFC 1122 §3.2.2).
        Reason::TooBig => Reason::TooBigUnanswered,
        _ => reason,
    })
}

/// Translates an error as its flow's packets are. What [`Stages::translate_error`] does: a function
/// for each family, which has less to lay out on the stack.
///
/// # Errors
/// The reason to drop it.
#[inline(always)]
pub fn translate_ipv4<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    quoted: Quoted,
) -> Result<Action, Reason> {
    let (l3, _) = parse::network(frame)?;
    let header: Ipv4 = frame.read(l3).ok_or(Reason::Runt)?;
    let error = ipv4(frame, l3, &header).ok_or(Reason::NatNoReturn)?;
    send(frame, tables, &error, quoted)
}

/// The same.
///
/// # Errors
/// The reason to drop it.
#[inline(always)]
pub fn translate_ipv6<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    quoted: Quoted,
) -> Result<Action, Reason> {
    let (l3, _) = parse::network(frame)?;
    let header: Ipv6 = frame.read(l3).ok_or(Reason::Runt)?;
    let error = ipv6(frame, l3, &header).ok_or(Reason::NatNoReturn)?;
    send(frame, tables, &error, quoted)
}

#[inline(always)]
fn send<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    error: &Error,
    quoted: Quoted,
) -> Result<Action, Reason> {
    let settings = tables.settings().ok_or(Reason::NotReady)?;
    let backend = tables.backend(quoted.backend()).ok_or(Reason::NatNoReturn)?;
    let sent = error.quoted.turned();
    let hash = sent.hash(error.family, settings);
    if quoted.is(Quoted::RETURN) {
        let to = nat::homeward(&sent, tables, backend, quoted.word(), hash)
            .ok_or(Reason::NatNoReturn)?;
        let hop = tables.hop(quoted.word()).ok_or(Reason::NatNoReturn)?;
        // Who has answered the client is the VIP.
        translate(frame, error, &to, true)?;
        let macs = l2::Words { first: hop.first, second: hop.second };
        frame.write(0, macs).ok_or(Reason::Truncated)?;
        return Ok(leave_by(frame, hop.ifindex));
    }
    let to =
        nat::outward(&sent, tables, backend, quoted.word(), hash).ok_or(Reason::NatNoReturn)?;
    let (egress, macs) = way(tables, backend)?;
    translate(frame, error, &to, false)?;
    l2::rewrite(frame, macs).ok_or(Reason::Truncated)?;
    Ok(leave_by(frame, egress.ifindex))
}

/// The error that an IPv4 packet is, if it is one about TCP.
#[inline(always)]
fn ipv4<F: Frame>(frame: &F, l3: usize, header: &Ipv4) -> Option<Error> {
    let icmp_at = l3 + usize::from(header.version_length & 0x0f) * 4;
    if header.protocol != wire::ICMP || u16::from_be_bytes(header.fragment) & Ipv4::FRAGMENTED != 0
    {
        return None;
    }
    let icmp: Icmp = frame.read(icmp_at)?;
    let inner_at = icmp_at + Icmp::LEN;
    let inner: Ipv4 = frame.read(inner_at)?;
    let is_first = u16::from_be_bytes(inner.fragment) & Ipv4::OFFSET == 0;
    // Version 4, and a header that does not end within itself: ports would be read off addresses.
    let is_v4 = matches!(inner.version_length, 0x45..=0x4f);
    if !icmp.is_error_v4() || !is_v4 || inner.protocol != wire::TCP {
        return None;
    }
    let ports_at = inner_at + usize::from(inner.version_length & 0x0f) * 4;
    let ports: Ports = frame.read(ports_at)?;
    if !is_first {
        return None;
    }
    Some(Error {
        family: Family::Ipv4,
        l3,
        icmp: icmp_at,
        ports_at,
        checksum: icmp.checksum,
        quoted: Tuple {
            source: Address::v4(inner.source),
            destination: Address::v4(inner.destination),
            ports,
        },
    })
}

/// The same of IPv6; errors behind extension headers, or about packets with such, are the kernel's.
#[inline(always)]
fn ipv6<F: Frame>(frame: &F, l3: usize, header: &Ipv6) -> Option<Error> {
    let icmp_at = l3 + Ipv6::LEN;
    if header.next_header != wire::ICMPV6 {
        return None;
    }
    let icmp: Icmp = frame.read(icmp_at)?;
    let inner_at = icmp_at + Icmp::LEN;
    let inner: Ipv6 = frame.read(inner_at)?;
    let is_v6 = inner.version_class_label[0] >> 4 == 6;
    if !icmp.is_error_v6() || !is_v6 || inner.next_header != wire::TCP {
        return None;
    }
    let ports_at = inner_at + Ipv6::LEN;
    let ports: Ports = frame.read(ports_at)?;
    Some(Error {
        family: Family::Ipv6,
        l3,
        icmp: icmp_at,
        ports_at,
        checksum: icmp.checksum,
        quoted: Tuple {
            source: Address::v6(inner.source),
            destination: Address::v6(inner.destination),
            ports,
        },
    })
}

/// Makes of an error about what we have sent one about what we were sent, whose tuple on its way
/// is `to`; and it comes from there, or from where it came.
#[inline(always)]
fn translate<F: Frame>(
    frame: &mut F,
    error: &Error,
    to: &Tuple,
    comes_from_there: bool,
) -> Result<(), Reason> {
    let quoted = to.turned();
    let old = error.quoted;
    let inner_at = error.icmp + Icmp::LEN;
    let ports = Change::shared().word(old.ports.word(), quoted.ports.word());
    let change = match error.family {
        Family::Ipv4 => {
            let outer: Ipv4 = frame.read(error.l3).ok_or(Reason::Truncated)?;
            let inner: Ipv4 = frame.read(inner_at).ok_or(Reason::Truncated)?;
            let source = if comes_from_there { to.source.low() } else { outer.source };
            let outer = fewer_hops(outer).ok_or(Reason::HopLimit)?;
            let outer = readdressed(&outer, source, to.destination.low());
            let new = readdressed(&inner, quoted.source.low(), quoted.destination.low());
            frame.write(error.l3, outer).ok_or(Reason::Truncated)?;
            frame.write(inner_at, new).ok_or(Reason::Truncated)?;
            ports
                .and(addresses(&inner, &new))
                .pair(u16::from_ne_bytes(inner.checksum), u16::from_ne_bytes(new.checksum))
        }
        Family::Ipv6 => {
            let hops_at = error.l3 + Ipv6::HOP_LIMIT;
            let hops: u8 = frame.read(hops_at).ok_or(Reason::Truncated)?;
            if hops <= 1 {
                return Err(Reason::HopLimit);
            }
            let came_from: Address = frame.read(error.l3 + Ipv6::ADDRESSES).ok_or(Reason::Runt)?;
            let source = if comes_from_there { to.source } else { came_from };
            frame.write(hops_at, hops - 1).ok_or(Reason::Truncated)?;
            write_ipv6(frame, error.l3, source, to.destination).ok_or(Reason::Truncated)?;
            write_ipv6(frame, inner_at, quoted.source, quoted.destination)
                .ok_or(Reason::Truncated)?;
            // Its checksum covers the addresses of the packet, too (RFC 4443 §2.3). It was
            // addressed to whom it quotes.
            let outer = moved(moved(ports, came_from, source), old.source, to.destination);
            moved(moved(outer, old.source, quoted.source), old.destination, quoted.destination)
        }
    };
    frame.write(error.ports_at, quoted.ports).ok_or(Reason::Truncated)?;
    let checksum = Change::of(error.checksum).and(change).finish();
    frame.write(error.icmp + Icmp::CHECKSUM, checksum).ok_or(Reason::Truncated)
}

/// One hop less, if there is one.
#[inline(always)]
fn fewer_hops(header: Ipv4) -> Option<Ipv4> {
    let ttl = header.ttl.checked_sub(1).filter(|ttl| *ttl > 0)?;
    let word = |ttl| u16::from_ne_bytes([ttl, header.protocol]);
    let checksum = Change::of(header.checksum).pair(word(header.ttl), word(ttl)).finish();
    Some(Ipv4 { ttl, checksum, ..header })
}

/// With other addresses, and the checksum that goes with them.
#[inline(always)]
fn readdressed(header: &Ipv4, source: [u8; 4], destination: [u8; 4]) -> Ipv4 {
    let new = Ipv4 { source, destination, ..*header };
    let checksum = Change::of(header.checksum).and(addresses(header, &new)).finish();
    Ipv4 { checksum, ..new }
}

#[inline(always)]
const fn addresses(old: &Ipv4, new: &Ipv4) -> Change {
    let word = u32::from_ne_bytes;
    Change::shared()
        .word(word(old.source), word(new.source))
        .word(word(old.destination), word(new.destination))
}

/// Writes both addresses of an IPv6 header.
#[inline(always)]
fn write_ipv6<F: Frame>(frame: &mut F, at: usize, from: Address, to: Address) -> Option<()> {
    frame.write(at + Ipv6::ADDRESSES, from)?;
    frame.write(at + Ipv6::ADDRESSES + size_of::<Address>(), to)
}

/// An IPv6 address becomes another.
#[inline(always)]
const fn moved(change: Change, old: Address, new: Address) -> Change {
    let ([a, b, c, d], [e, f, g, h]) = (old.halves(), new.halves());
    change.word(a, e).word(b, f).word(c, g).word(d, h)
}

#[cfg(test)]
mod tests;
