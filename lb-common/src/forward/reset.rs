//! Turns a client's segment into the RST that answers it (RFC 9293 §3.10.7.1).

use crate::{
    checksum::{self, Sum},
    frame::Frame,
    parse::{Family, Segment},
    wire::{self, Ipv4, Ipv6, Macs, Tcp},
};

/// Rewrites the frame in place; it only ever gets shorter. VLAN tags stay.
#[inline(never)]
pub fn rewrite<F: Frame>(frame: &mut F, segment: &Segment) -> Option<()> {
    let theirs: Tcp = frame.read(usize::from(segment.l4))?;
    let Macs { destination, source } = frame.read(0)?;
    frame.write(0, Macs { destination: source, source: destination })?;
    let l3 = usize::from(segment.l3);
    let l4 = match segment.family {
        Family::Ipv4 => {
            frame.write(l3, ipv4_header(segment))?;
            l3 + Ipv4::LEN
        }
        Family::Ipv6 => {
            frame.write(l3, ipv6_header(segment))?;
            l3 + Ipv6::LEN
        }
    };
    frame.write(l4, tcp_header(segment, &theirs))?;
    frame.truncate(l4 + Tcp::LEN)
}

#[inline(always)]
fn tcp_header(segment: &Segment, theirs: &Tcp) -> Tcp {
    let (sequence, acknowledgement, flags) = if theirs.flags & Tcp::ACK != 0 {
        // From the number the client expects next, or it would not believe it (RFC 5961 §3).
        (theirs.acknowledgement, [0; 4], Tcp::RST)
    } else {
        let length = u32::from(segment.payload)
            + u32::from(theirs.flags & Tcp::SYN != 0)
            + u32::from(theirs.flags & Tcp::FIN != 0);
        let next = u32::from_be_bytes(theirs.sequence).wrapping_add(length);
        ([0; 4], next.to_be_bytes(), Tcp::RST | Tcp::ACK)
    };
    let offset = (Tcp::LEN as u8 / 4) << 4;
    // With the pseudo header: both addresses, protocol, length (RFC 9293 §3.1).
    let checksum = Sum::default()
        .add_address(segment.source)
        .add_address(segment.destination)
        .add_bytes([0, wire::TCP, 0, Tcp::LEN as u8])
        .add(segment.ports.word())
        .add_bytes(sequence)
        .add_bytes(acknowledgement)
        .add_bytes([offset, flags, 0, 0])
        .finish();
    Tcp {
        source: segment.ports.destination,
        destination: segment.ports.source,
        sequence,
        acknowledgement,
        offset,
        flags,
        window: [0; 2],
        checksum,
        urgent: [0; 2],
    }
}

#[inline(always)]
fn ipv4_header(segment: &Segment) -> Ipv4 {
    let mut header = Ipv4 {
        version_length: 0x45,
        traffic_class: 0,
        length: ((Ipv4::LEN + Tcp::LEN) as u16).to_be_bytes(),
        identification: [0; 2],
        fragment: [Ipv4::DONT_FRAGMENT, 0],
        ttl: wire::TTL,
        protocol: wire::TCP,
        checksum: [0; 2],
        source: segment.destination.low(),
        destination: segment.source.low(),
    };
    header.checksum = checksum::of_ipv4(&header);
    header
}

#[inline(always)]
fn ipv6_header(segment: &Segment) -> Ipv6 {
    Ipv6 {
        version_class_label: [0x60, 0, 0, 0],
        payload_length: (Tcp::LEN as u16).to_be_bytes(),
        next_header: wire::TCP,
        hop_limit: wire::TTL,
        source: segment.destination.to_v6(),
        destination: segment.source.to_v6(),
    }
}

#[cfg(test)]
mod tests;
