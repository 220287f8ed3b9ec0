//! Direct routing: new MAC addresses, everything behind them untouched.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{frame::Frame, wire::Macs};

/// Both addresses as words: arrays of six bytes would be written byte by byte.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, packed)]
pub(crate) struct Words {
    pub(crate) first: u64,
    pub(crate) second: u32,
}

impl Words {
    /// Back to where the frame came from.
    #[inline(always)]
    pub(crate) const fn turned(self) -> Self {
        const { assert!(cfg!(target_endian = "little")) };
        let destination = self.first << 16 >> 16;
        let source = self.first >> 48 | (self.second as u64) << 16;
        Self { first: source | destination << 48, second: (destination >> 16) as u32 }
    }
}

impl From<Macs> for Words {
    #[inline(always)]
    fn from(macs: Macs) -> Self {
        let [a, b, c, d, e, f] = macs.destination;
        let [g, h, i, j, k, l] = macs.source;
        Self {
            first: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            second: u32::from_ne_bytes([i, j, k, l]),
        }
    }
}

/// Writes the frame's addresses. VLAN tags stay: the backend is on the client's VLAN, or the
/// switch sees to it.
#[inline(always)]
pub fn rewrite<F: Frame>(frame: &mut F, macs: Macs) -> Option<()> {
    frame.write(0, Words::from(macs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::corpus;

    #[test]
    fn what_is_turned_goes_back() {
        let macs = Macs { destination: [1, 2, 3, 4, 5, 6], source: [7, 8, 9, 10, 11, 12] };
        let back = Words::from(macs).turned();
        assert_eq!(back.as_bytes(), [7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn the_addresses_change_and_nothing_else() {
        let macs = Macs { destination: [1, 2, 3, 4, 5, 6], source: [7, 8, 9, 10, 11, 12] };
        for case in corpus::cases().into_iter().filter(|case| case.frame.bytes.len() >= 12) {
            let mut frame = case.frame.clone();
            assert_eq!(rewrite(&mut frame, macs), Some(()), "{case:?}");
            assert_eq!(frame.bytes[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
            assert_eq!(frame.bytes[12..], case.frame.bytes[12..], "{case:?}");
        }
    }
}
