//! One address type for both families, so that one road serves both.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv6 address, or an IPv4 address as IPv4-mapped IPv6 (`::ffff:a.b.c.d`, RFC 4291
/// §2.5.5.2). In memory its bytes stand in network order; two words, because that is how the
/// packet path hashes and compares it.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Address([u64; 2]);

/// The half word before the IPv4 address: `00 00 ff ff` in memory.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Address {
    /// `::`, which no host has.
    pub const UNSPECIFIED: Self = Self([0; 2]);

    /// From an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        Self([0, join(MAPPED, u32::from_ne_bytes(bytes))])
    }

    /// From an IPv6 address in network byte order.
    #[inline(always)]
    pub const fn v6(bytes: [u8; 16]) -> Self {
        Self(zerocopy::transmute!(bytes))
    }

    /// The IPv4 address, in network byte order, if this is one.
    #[inline(always)]
    pub const fn to_v4(self) -> Option<[u8; 4]> {
        if self.is_v4() { Some(self.low()) } else { None }
    }

    /// All 16 bytes, in network order.
    #[inline(always)]
    pub const fn to_v6(self) -> [u8; 16] {
        zerocopy::transmute!(self.0)
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && split(self.0[1])[0] == MAPPED
    }

    /// The last four bytes: the IPv4 address where this is one.
    #[inline(always)]
    pub const fn low(self) -> [u8; 4] {
        split(self.0[1])[1].to_ne_bytes()
    }

    /// As two words in memory order: for hashing and comparing, never for arithmetic.
    #[inline(always)]
    pub const fn words(self) -> [u64; 2] {
        self.0
    }

    /// As four half words in memory order: for checksums.
    #[inline(always)]
    pub const fn halves(self) -> [u32; 4] {
        let [a, b] = split(self.0[0]);
        let [c, d] = split(self.0[1]);
        [a, b, c, d]
    }
}

/// Two halves as they follow each other in memory.
#[inline(always)]
const fn join(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        (first as u64) << 32 | second as u64
    }
}

/// The reverse of [`join`].
#[inline(always)]
const fn split(word: u64) -> [u32; 2] {
    if cfg!(target_endian = "little") {
        [word as u32, (word >> 32) as u32]
    } else {
        [(word >> 32) as u32, word as u32]
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address.to_v4() {
            Some(v4) => IpAddr::V4(Ipv4Addr::from(v4)),
            None => IpAddr::V6(Ipv6Addr::from(address.to_v6())),
        }
    }
}

impl core::fmt::Debug for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["203.0.113.10", "0.0.0.0", "2001:db8::10", "::1"] {
            let ip: IpAddr = text.parse().expect("a literal address");
            assert_eq!(IpAddr::from(Address::from(ip)), ip);
        }
        assert!(Address::v4([203, 0, 113, 10]).is_v4());
        assert!(!Address::UNSPECIFIED.is_v4());
    }

    #[test]
    fn an_ipv4_address_lies_in_memory_as_a_mapped_one() {
        let mapped = Ipv4Addr::new(203, 0, 113, 10).to_ipv6_mapped().octets();
        assert_eq!(Address::v4([203, 0, 113, 10]).as_bytes(), mapped);
        assert_eq!(Address::v4([203, 0, 113, 10]).to_v6(), mapped);
    }
}
