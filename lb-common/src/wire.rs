//! Header layouts and numbers, by the documents that define them.
//!
//! Fields wider than a byte are byte arrays in network order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// IP protocol number of TCP (RFC 9293).
pub const TCP: u8 = 6;
/// IP protocol number of ICMP (RFC 792).
pub const ICMP: u8 = 1;
/// Next header number of ICMPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;
/// IP protocol number of IPv4 in IP (RFC 2003).
pub const IPV4_IN_IP: u8 = 4;
/// IP protocol number of IPv6 in IP (RFC 4213, RFC 2473).
pub const IPV6_IN_IP: u8 = 41;
/// Hops that packets made here may take (RFC 1700, IPDEFTTL).
pub const TTL: u8 = 64;

/// The addresses at the start of an Ethernet frame.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Macs {
    /// To whom.
    pub destination: [u8; 6],
    /// From whom.
    pub source: [u8; 6],
}

/// IEEE 802.3 with 802.1Q tags.
pub mod ethernet {
    /// Length of an untagged header.
    pub const LEN: usize = 14;
    /// Length of one 802.1Q tag.
    pub const TAG_LEN: usize = 4;
    /// Tags that are looked through: a customer's and a provider's.
    pub const MAX_TAGS: usize = 2;
    /// Offset of the first type field: after both addresses.
    pub const TYPE: usize = 12;
    /// EtherType of IPv4.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// EtherType of IPv6.
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
    /// EtherType of a customer VLAN tag (802.1Q).
    pub const VLAN: [u8; 2] = [0x81, 0x00];
    /// EtherType of a service VLAN tag (802.1ad).
    pub const SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];
}

/// IPv4 without options (RFC 791 §3.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Ipv4 {
    /// Version, 4, and header length in units of 4 bytes.
    pub version_length: u8,
    /// DSCP and ECN (RFC 2474, RFC 3168).
    pub traffic_class: u8,
    /// Bytes of the whole packet.
    pub length: [u8; 2],
    /// For reassembly.
    pub identification: [u8; 2],
    /// Flags and fragment offset.
    pub fragment: [u8; 2],
    /// Hops left.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Of the header.
    pub checksum: [u8; 2],
    /// From whom.
    pub source: [u8; 4],
    /// To whom.
    pub destination: [u8; 4],
}

impl Ipv4 {
    /// Length without options.
    pub const LEN: usize = size_of::<Self>();
    /// Flag "don't fragment", in the first byte of `fragment`.
    pub const DONT_FRAGMENT: u8 = 0x40;
    /// Flag "more fragments" and the offset, in `fragment`.
    pub const FRAGMENTED: u16 = 0x3fff;
    /// The offset, in `fragment`.
    pub const OFFSET: u16 = 0x1fff;
}

/// IPv6's fixed header (RFC 8200 §3).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Ipv6 {
    /// Version, 6; traffic class; flow label.
    pub version_class_label: [u8; 4],
    /// Bytes after this header.
    pub payload_length: [u8; 2],
    /// What follows.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// From whom.
    pub source: [u8; 16],
    /// To whom.
    pub destination: [u8; 16],
}

impl Ipv6 {
    /// Length of the fixed header.
    pub const LEN: usize = size_of::<Self>();
    /// Offset of the hop limit.
    pub const HOP_LIMIT: usize = 7;
    /// Offset of the addresses, source first.
    pub const ADDRESSES: usize = 8;
    /// Next header: hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Next header: routing.
    pub const ROUTING: u8 = 43;
    /// Next header: fragment.
    pub const FRAGMENT: u8 = 44;
    /// Length of that header.
    pub const FRAGMENT_LEN: usize = 8;
    /// The offset, in its second half-word.
    pub const OFFSET: u16 = 0xfff8;
    /// Next header: destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// ICMP, of both versions (RFC 792, RFC 4443 §2.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4))]
pub struct Icmp {
    /// What it is about.
    pub kind: u8,
    /// That more closely.
    pub code: u8,
    /// Of all of it, in ICMPv6 with a pseudo header.
    pub checksum: [u8; 2],
    /// By kind.
    pub rest: [u8; 4],
}

impl Icmp {
    /// Length of the header.
    pub const LEN: usize = size_of::<Self>();
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 2;
    /// Kind: echo request, a ping.
    pub const ECHO_V4: u8 = 8;
    /// The same of ICMPv6 (RFC 4443 §4.1).
    pub const ECHO_V6: u8 = 128;

    /// Whether it is an error: destination unreachable, time exceeded, parameter problem (RFC 792).
    #[inline(always)]
    pub const fn is_error_v4(&self) -> bool {
        matches!(self.kind, 3 | 11 | 12)
    }

    /// The same in ICMPv6, and packet too big (RFC 4443 §3).
    #[inline(always)]
    pub const fn is_error_v6(&self) -> bool {
        matches!(self.kind, 1..=4)
    }

    /// "Fragmentation needed": no more than so many bytes fit (RFC 1191 §4). Without its checksum.
    #[inline(always)]
    pub const fn fragmentation_needed(mtu: u16) -> Self {
        let [high, low] = mtu.to_be_bytes();
        Self { kind: 3, code: 4, checksum: [0; 2], rest: [0, 0, high, low] }
    }

    /// "Packet too big" (RFC 4443 §3.2). Without its checksum.
    #[inline(always)]
    pub const fn packet_too_big(mtu: u16) -> Self {
        let [high, low] = mtu.to_be_bytes();
        Self { kind: 2, code: 0, checksum: [0; 2], rest: [0, 0, high, low] }
    }
}

/// TCP without options (RFC 9293 §3.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Tcp {
    /// From which port.
    pub source: [u8; 2],
    /// To which port.
    pub destination: [u8; 2],
    /// Number of the first byte.
    pub sequence: [u8; 4],
    /// Number of the next byte expected.
    pub acknowledgement: [u8; 4],
    /// Header length in units of 4 bytes, in the upper four bits.
    pub offset: u8,
    /// `FIN`, `SYN`, …
    pub flags: u8,
    /// Receive window.
    pub window: [u8; 2],
    /// Of pseudo header, header and payload.
    pub checksum: [u8; 2],
    /// End of urgent data.
    pub urgent: [u8; 2],
}

impl Tcp {
    /// Length without options.
    pub const LEN: usize = size_of::<Self>();
    /// Length with as many options as fit.
    pub const MAX_LEN: usize = 60;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}
