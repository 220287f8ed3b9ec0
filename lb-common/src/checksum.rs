//! The Internet checksum (RFC 1071), for headers that are made from nothing.

use crate::{address::Address, wire::Ipv4};

/// A running one's complement sum over 16-bit words in memory order: byte order does not
/// matter to it (RFC 1071 §2 B) as long as the result is stored the same way.
#[derive(Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds four bytes, read as one integer in memory order.
    #[inline(always)]
    pub const fn add(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds four bytes.
    #[inline(always)]
    pub const fn add_bytes(self, bytes: [u8; 4]) -> Self {
        self.add(u32::from_ne_bytes(bytes))
    }

    /// Adds an address: the 4 bytes of an IPv4 address, the 16 of an IPv6 one.
    #[inline(always)]
    pub fn add_address(self, address: Address) -> Self {
        match address.to_v4() {
            Some(v4) => self.add_bytes(v4),
            None => {
                let [a, b, c, d] = address.halves();
                self.add(a).add(b).add(c).add(d)
            }
        }
    }

    /// The checksum field's bytes. Three folds suffice for 2^16 words.
    #[inline(always)]
    pub const fn finish(self) -> [u8; 2] {
        let sum = (self.0 & 0xffff) + (self.0 >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        (!(sum as u16)).to_ne_bytes()
    }
}

/// The checksum of an IPv4 header without options, whose own checksum field is zero.
#[inline(always)]
pub fn of_ipv4(header: &Ipv4) -> [u8; 2] {
    let [a, b, c, d, e]: [u32; Ipv4::LEN / 4] = zerocopy::transmute!(*header);
    Sum::default().add(a).add(b).add(c).add(d).add(e).finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    /// RFC 1071 §4.1, word by word in network order.
    fn plain(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    fn sum(bytes: &[u8]) -> Sum {
        bytes.chunks(4).fold(Sum::default(), |sum, word| {
            sum.add_bytes(word.try_into().expect("a multiple of four bytes"))
        })
    }

    #[test]
    fn example_of_rfc_1071_section_3() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&bytes).finish(), [!0xdd, !0xf2]);
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_sum(a in any::<[u8; 20]>(), b in any::<[u8; 16]>()) {
            let all: Vec<u8> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(sum(&all).finish(), plain(&all));
        }

        #[test]
        fn agrees_at_the_carries(ones in 0usize..=36) {
            let mut bytes = [0u8; 36];
            bytes[..ones].fill(0xff);
            prop_assert_eq!(sum(&bytes).finish(), plain(&bytes));
        }
    }
}
