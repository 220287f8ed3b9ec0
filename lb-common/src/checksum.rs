//! The Internet checksum (RFC 1071): of headers that are made from nothing, and of such as change
//! (RFC 1624).

use crate::{address::Address, wire::Ipv4};

/// What a checksum becomes when some of what it covers is replaced: `HC' = ~(~HC + ~m + m')` (RFC
/// 1624 §3, equation 3). Of words of 32 bits: their complement is that of both their halves.
#[derive(Clone, Copy)]
pub struct Change(Sum);

impl Change {
    /// What is to be added to several checksums ([`Self::and`]).
    #[inline(always)]
    pub const fn shared() -> Self {
        Self(Sum(0))
    }

    /// All that another has seen changes here, too.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(Sum(self.0.0 + other.0.0))
    }

    /// From the checksum field's bytes.
    #[inline(always)]
    pub const fn of(checksum: [u8; 2]) -> Self {
        Self(Sum(!u16::from_ne_bytes(checksum) as u64))
    }

    /// Four bytes at an even offset become others.
    #[inline(always)]
    pub const fn word(self, old: u32, new: u32) -> Self {
        Self(self.0.add(!old).add(new))
    }

    /// Two bytes at an even offset become others.
    #[inline(always)]
    pub const fn pair(self, old: u16, new: u16) -> Self {
        Self(self.0.add(!old as u32).add(new as u32))
    }

    /// The checksum field's new bytes.
    #[inline(always)]
    pub const fn finish(self) -> [u8; 2] {
        self.0.finish()
    }
}

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
        fn a_change_gives_what_the_whole_would(
            before in any::<[u8; 20]>(), word in any::<[u8; 4]>(), pair in any::<[u8; 2]>(),
        ) {
            // No header is all zeros, whose sum has two forms.
            prop_assume!(before[..12].iter().any(|byte| *byte != 0));
            let mut after = before;
            after[12..16].copy_from_slice(&word);
            after[18..].copy_from_slice(&pair);
            let [old_word, new_word] = [before, after].map(|all| {
                u32::from_ne_bytes([all[12], all[13], all[14], all[15]])
            });
            let [old_pair, new_pair] = [before, after].map(|all| {
                u16::from_ne_bytes([all[18], all[19]])
            });
            let change = Change::of(plain(&before)).word(old_word, new_word);
            prop_assert_eq!(change.pair(old_pair, new_pair).finish(), plain(&after));
        }

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
