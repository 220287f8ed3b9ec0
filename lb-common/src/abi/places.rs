//! Where the frames of each interface are counted.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::capacity;

/// Where in [`ReasonCounts`](super::ReasonCounts) an interface's forwarded frames are counted; not at [`ALONE`], where
/// they are all that are counted with backends and at no other place.
pub const FORWARDED: usize = 63;

/// The place of all frames of clients as long as the [`FIRST`] interface is the only one.
pub const ALONE: u32 = 0;
/// The place of the first interface of clients' that the instance was attached to, when it is not
/// the only one.
pub const FIRST: u32 = 1;
/// The place of frames that arrive on no interface of clients': what the prober sends, answers to
/// it on other interfaces; and of those for whose interface there is no place.
pub const ELSEWHERE: u32 = FIRST + capacity::INTERFACES as u32;
/// In [`Interfaces::place`]: each interface has its own.
pub const SEVERAL: u32 = u32::MAX;

/// Where in `REASONS` the frames of each interface are counted; one element. A place, once given to
/// an interface's name, is never another's while the instance lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Interfaces {
    /// [`ALONE`] or [`SEVERAL`].
    pub place: u32,
    /// The interfaces' indices, from the [`FIRST`] place on; 0: nobody's, or it is not attached.
    pub indices: [u32; capacity::INTERFACES],
    /// Their names, filled up with zeros; empty: nobody's.
    pub names: [[u8; 16]; capacity::INTERFACES],
    /// Zero.
    pub reserved: u32,
}

impl Interfaces {
    /// The place of the interface with this index, where there are several.
    #[inline(always)]
    pub fn place_of(&self, index: u32) -> u32 {
        for (place, known) in (FIRST..).zip(&self.indices) {
            if *known == index {
                return place;
            }
        }
        ELSEWHERE
    }
}
