//! Lowers the MSS that a SYN announces (RFC 9293 §3.7.1), so that who gets it sends no larger
//! segments: where a way is too narrow for more and ICMP can't tell, and, of what is translated,
//! wherever the way is known to be.

use crate::{abi::Service, checksum::Change, frame::Frame, steer::Stages, wire::Tcp};

/// Option kinds (RFC 9293 §3.1).
mod option {
    pub const END: u8 = 0;
    pub const NO_OPERATION: u8 = 1;
    pub const MAXIMUM_SEGMENT_SIZE: u8 = 2;
}

/// Set in what [`next_option`] tells when the option that it has looked at is the MSS.
const IS_MSS: u64 = 1 << 32;

/// One step along TCP options, from the one at the offset `at` in the frame: the offset of the next,
/// or of this one's value and `IS_MSS`; 0 after the last. What [`Stages::next_option`] does: the
/// verifier would follow each way through ten options.
#[inline(always)]
pub fn next_option<F: Frame>(frame: &F, at: u64) -> u64 {
    let Some([kind, length]) = frame.read::<[u8; 2]>(at as usize) else { return 0 };
    match kind {
        option::END => 0,
        option::NO_OPERATION => at + 1,
        option::MAXIMUM_SEGMENT_SIZE if length == 4 => IS_MSS | (at + 2),
        _ if length < 2 => 0,
        _ => at + u64::from(length),
    }
}

/// The lesser of two sizes of which 0 is none.
#[inline(always)]
pub const fn least(one: u16, other: u16) -> u16 {
    if one == 0 || other != 0 && other < one { other } else { one }
}

/// What a service's clients may announce at most; 0: anything.
#[inline(always)]
pub fn most(service: Option<&Service>) -> u16 {
    service.map_or(0, |service| service.mss_clamp)
}

/// Two bytes of the segment as its checksum sees them.
pub(super) struct Lowered {
    pub(super) old: u16,
    pub(super) new: u16,
}

/// Lowers a SYN's MSS option, if it has one that is larger. The checksum is the caller's.
#[inline(always)]
pub(super) fn lower<F: Frame, T: Stages<F>>(
    frame: &mut F,
    tables: &T,
    l4: usize,
    header: &Tcp,
    most: u16,
) -> Option<Lowered> {
    let end = l4 + usize::from(header.offset >> 4) * 4;
    let mut next = (l4 + Tcp::LEN) as u64;
    // So many options have room in a header.
    for _ in 0..Tcp::MAX_LEN - Tcp::LEN {
        if next == 0 || next & IS_MSS != 0 {
            break;
        }
        next = tables.next_option(frame, next);
    }
    let at = (next & !IS_MSS) as usize;
    if next & IS_MSS == 0 || at + 2 > end {
        return None;
    }
    let value: [u8; 2] = frame.read(at)?;
    if u16::from_be_bytes(value) <= most {
        return None;
    }
    let lower = most.to_be_bytes();
    frame.write(at, lower)?;
    let (old, new) = (u16::from_ne_bytes(value), u16::from_ne_bytes(lower));
    // At an odd offset its bytes stand in two words, each in the other half.
    Some(if (at - l4).is_multiple_of(2) {
        Lowered { old, new }
    } else {
        Lowered { old: old.swap_bytes(), new: new.swap_bytes() }
    })
}

/// Lowers the MSS of the SYN at the offset `l4`, and its checksum with it. What [`Stages::clamp`]
/// does.
#[inline(always)]
pub fn clamp<F: Frame, T: Stages<F>>(frame: &mut F, tables: &T, l4: u16, most: u16) {
    let l4 = usize::from(l4);
    let Some(header) = frame.read::<Tcp>(l4) else { return };
    if let Some(Lowered { old, new }) = lower(frame, tables, l4, &header, most) {
        let checksum = Change::of(header.checksum).pair(old, new).finish();
        // Where the header was read it is written.
        let _ = frame.write(l4 + Tcp::CHECKSUM, checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::least;

    #[test]
    fn of_two_sizes_none_is_no_size() {
        for (one, other, expected) in [(0, 0, 0), (0, 5, 5), (5, 0, 5), (4, 5, 4), (5, 4, 4)] {
            assert_eq!(least(one, other), expected);
        }
    }
}
