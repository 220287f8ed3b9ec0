//! The flow table: which backend has this connection?
//!
//! A set-associative cache of 8-byte words, 16 to a 128-byte group, two lines of 8: the hash's bits
//! 27..24, between those of group and fingerprint, name a flow's own place, and the highest of them
//! so its primary line; the other ("buddy") takes what overflows.
//!
//! ```text
//! bits 63..28 fingerprint (of the keyed hash)   27 return   26..11 backend   10..3 tick   2..0 state
//! ```
//!
//! Every change is one 64-bit compare-and-exchange of one word, so nothing tears and nothing
//! locks; who loses a race simply goes on, and the flow's next packet tries again. What is
//! not in the table is forwarded by slot, so a lost entry costs something only while the
//! backends change. At a load of one half, 0.08 % of the flows find no place.
//!
//! A 36-bit fingerprint among 16 words takes a *new* flow for a known one once in 4.3 billion
//! lookups: it is then placed not by Maglev but beside that flow. `steer` compares the
//! service, so it can't leave its service, but for one of any port, whose flows may go on at a port
//! that another service has by now. Of a translated flow the whole tuple is compared
//! ([`nat`](crate::nat)); it has a second entry, marked "return", for what its backend sends.

use core::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::Settings;

mod entry;

pub use entry::{AHEAD, Entry, Kind, State, Step, tick_of};
use entry::{FINGERPRINT_SHIFT, STATE_MASK, TICK_SHIFT, idle_limit};

/// Words in a group.
pub const GROUP: usize = 16;
/// Words in a line.
const LINE: usize = 8;
const START_SHIFT: u32 = 24;

/// One element of the flow table: two cache lines.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Group {
    /// The words; see the module's page.
    pub words: [u64; GROUP],
}

/// Access to the words of one group, by atomic loads and exchanges.
pub trait Words {
    /// One word; `index` is below [`GROUP`].
    fn load(&self, index: usize) -> u64;

    /// Stores `new` if the word is still `old`; tells whether it was.
    fn replace(&self, index: usize, old: u64, new: u64) -> bool;
}

/// A flow found in its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct Found {
    /// Where: below [`GROUP`].
    pub index: usize,
    /// What.
    pub entry: Entry,
}

impl Found {
    /// No flow: its entry is free.
    pub const NOTHING: Self = Self { index: 0, entry: Entry(0) };
}

/// Where a flow is looked for: first, at turn 0, in its own place; then in those whose index differs by
/// 1, 2, 3, ... 15 from that by `xor`: its line, then the buddy.
#[inline(always)]
const fn place(hash: u64, turn: usize) -> usize {
    ((hash >> START_SHIFT) as usize ^ turn) & (GROUP - 1)
}

/// The index of a place, in a loop: Linux 6.1 knows no bounds of a `xor` of two registers, so that the
/// mask, which LLVM takes out of the loop, must come after it.
#[inline(always)]
fn masked(place: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut index = place;
        // SAFETY: an operation on one register: no memory, no stack, no flags.
        #[expect(unsafe_code, reason = "inline assembly is the only way past the optimiser")]
        unsafe {
            core::arch::asm!("{0} &= 15", inout(reg) index, options(pure, nomem, nostack));
        }
        index
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        place & (GROUP - 1)
    }
}

/// Which group a flow belongs to.
#[inline(always)]
pub const fn group_index(hash: u64, settings: &Settings) -> u32 {
    hash as u32 & settings.flow_mask
}

/// The word where a flow is looked for first: three of four are there in a table that is half full, and
/// a new flow gets it unless another of its line is worth less.
#[inline(always)]
pub const fn first_word(hash: u64, settings: &Settings) -> u32 {
    group_index(hash, settings) * GROUP as u32 + place(hash, 0) as u32
}

/// Whether another word of the group than this one has the flow's fingerprint.
#[inline(always)]
pub fn is_elsewhere<W: Words>(group: &W, hash: u64, index: usize) -> bool {
    // Without branches, as `best_of`: a mask is set where a number is below zero.
    let mut found = 0u64;
    for place in 0..GROUP {
        let word = group.load(place);
        let is_marked = sign_mask(((word ^ hash) >> FINGERPRINT_SHIFT).wrapping_sub(1));
        let is_taken = sign_mask(0u64.wrapping_sub(word & STATE_MASK));
        let is_another = sign_mask(0u64.wrapping_sub((place ^ index) as u64));
        found |= is_marked & is_taken & is_another;
    }
    found != 0
}

/// Looks a flow up in its group.
#[inline(always)]
pub fn find<W: Words>(group: &W, hash: u64) -> Option<Found> {
    find_marked(group, hash).filter(|found| !found.entry.is_free())
}

/// The first word with a flow's fingerprint: the flow's, or a free one that was taken for a flow whose
/// fingerprint is zero, one in 2^36.
#[inline(always)]
pub fn find_marked<W: Words>(group: &W, hash: u64) -> Option<Found> {
    for turn in 0..GROUP {
        let index = place(hash, turn);
        let entry = Entry(group.load(index));
        if entry.is_marked(hash) {
            return Some(Found { index, entry });
        }
    }
    None
}

/// How willingly an entry is given up, a byte for each state, state 0 in the lowest; the
/// higher class first, and within a class the oldest.
///
/// | class | who | may be taken by |
/// |---|---|---|
/// | 7 | free, and all that is expired | every new flow |
/// | 4 | embryonic, reset, in time-wait | every new flow |
/// | 3 | answered | every new flow |
/// | 2 | closing | a flow met in the middle |
/// | 1 | young | a flow met in the middle |
/// | 0 | old | nobody |
const CLASS_BY_STATE: u64 = 0x0403_0402_0001_0407;
/// All bits of a class are set.
const CLASS_FREE: u64 = 7;
const CLASS_ANSWERED: u64 = 3;
const CLASS_YOUNG: u64 = 1;

const SCORE_CLASS_SHIFT: u32 = 12;
const SCORE_AGE_SHIFT: u32 = 4;

/// All ones if the top bit is set, else zero.
///
/// The victim is chosen without branches, or the verifier follows 2^16 paths through a group
/// and gives up. LLVM turns every mask it understands back into a branch, BPF having no
/// conditional move; so it must not understand this one.
#[inline(always)]
fn sign_mask(x: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut y = x;
        // SAFETY: an arithmetic shift of one register: no memory, no stack, no flags.
        #[expect(unsafe_code, reason = "inline assembly is the only way past the optimiser")]
        unsafe {
            core::arch::asm!("{0} s>>= 63", inout(reg) y, options(pure, nomem, nostack));
        }
        y
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        ((x as i64) >> 63) as u64
    }
}

/// Class, age and turn of a word, comparable as one number: of words that are alike, the first that
/// a flow comes by is best. Then it is found soon, and in a flood not all newcomers drive each other from
/// the same place.
#[inline(always)]
fn score(word: u64, turn: usize, tick: u8, settings: &Settings) -> u64 {
    // Counted from the earliest tick that is still ahead, so that those are the least.
    const BEHIND: u64 = 256 - AHEAD as u64;
    let age = (u64::from(tick) + BEHIND).wrapping_sub(word >> TICK_SHIFT) & 0xff;
    let expired = sign_mask((idle_limit(word, settings) + BEHIND).wrapping_sub(age));
    let class = CLASS_BY_STATE >> ((word & STATE_MASK) * 8) & CLASS_FREE;
    let class = class | expired & CLASS_FREE;
    class << SCORE_CLASS_SHIFT | age << SCORE_AGE_SHIFT | (GROUP - 1 - turn) as u64
}

/// The best place for a new flow among those whose turns these are.
#[inline(always)]
fn best_of<W: Words>(
    group: &W,
    turns: Range<usize>,
    own: usize,
    tick: u8,
    settings: &Settings,
) -> u64 {
    let mut best = 0u64;
    for turn in turns {
        let word = group.load(masked(own ^ turn));
        let candidate = score(word, turn, tick, settings);
        let difference = best.wrapping_sub(candidate);
        best = best.wrapping_sub(difference & sign_mask(difference));
    }
    best
}

/// Puts a flow into its group, over the least worthy entry; tells where, or `None` if the
/// group is full of worthier ones: then the flow goes by slot, untracked. `evicted` is told the
/// state of a flow that gave way before its time, or [`State::Free`] if none did and it should have.
#[inline(always)]
pub fn insert<W: Words>(
    group: &W,
    hash: u64,
    backend: u16,
    tick: u8,
    state: State,
    settings: &Settings,
    evicted: impl FnOnce(State),
) -> Option<usize> {
    // A flood of SYNs may only take from its own kind.
    let lowest = if state as u8 == State::Embryonic as u8 { CLASS_ANSWERED } else { CLASS_YOUNG };
    let own = place(hash, 0);
    let mut best = best_of(group, 0..LINE, own, tick, settings);
    let class = best >> SCORE_CLASS_SHIFT;
    if class < CLASS_FREE {
        let buddy = best_of(group, LINE..GROUP, own, tick, settings);
        if buddy >> SCORE_CLASS_SHIFT > class {
            best = buddy;
        }
    }
    let index = masked(own ^ !best as usize);
    // The word may have changed since it was scored: what counts is what the exchange finds.
    let seen = group.load(index);
    let class = score(seen, 0, tick, settings) >> SCORE_CLASS_SHIFT;
    if class < lowest {
        evicted(State::Free);
        return None;
    }
    if !group.replace(index, seen, Entry::new(hash, backend, tick, state).0) {
        return None;
    }
    if class < CLASS_FREE {
        evicted(Entry(seen).state());
    }
    Some(index)
}

#[cfg(any(test, feature = "host"))]
impl Words for std::vec::Vec<core::sync::atomic::AtomicU64> {
    fn load(&self, index: usize) -> u64 {
        self[index].load(core::sync::atomic::Ordering::Relaxed)
    }

    fn replace(&self, index: usize, old: u64, new: u64) -> bool {
        use core::sync::atomic::Ordering::{AcqRel, Relaxed};
        self[index].compare_exchange(old, new, AcqRel, Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests;
