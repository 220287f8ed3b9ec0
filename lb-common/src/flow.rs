//! The flow table: which backend has this connection?
//!
//! A set-associative cache of 8-byte words, 16 to a 128-byte group, two lines of 8: the
//! hash's bit 25 names a flow's primary line, the other ("buddy") takes its overflow.
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

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::Settings;

mod entry;

pub use entry::{AHEAD, Entry, Kind, State, Step, tick_of};
use entry::{FINGERPRINT_SHIFT, STATE_MASK, TICK_SHIFT, idle_limit};

/// Words in a group.
pub const GROUP: usize = 16;
/// Words in a line.
const LINE: usize = 8;

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

/// First word of a flow's primary line.
#[inline(always)]
const fn primary(hash: u64) -> usize {
    (hash >> 22) as usize & LINE
}

/// Which group a flow belongs to.
#[inline(always)]
pub const fn group_index(hash: u64, settings: &Settings) -> u32 {
    hash as u32 & settings.flow_mask
}

/// Whether another word of the group than this one has the flow's fingerprint.
#[inline(always)]
pub fn is_elsewhere<W: Words>(group: &W, hash: u64, index: usize) -> bool {
    // Without branches, as `best_of_line`: a mask is set where a number is below zero.
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
    let first = primary(hash);
    find_in_line(group, hash, first).or_else(|| find_in_line(group, hash, first ^ LINE))
}

/// Looks a flow up in one line, which begins at `first`.
#[inline(always)]
fn find_in_line<W: Words>(group: &W, hash: u64, first: usize) -> Option<Found> {
    for place in 0..LINE {
        let entry = Entry(group.load(first ^ place));
        if entry.is_marked(hash) {
            // Where it is free, it was taken for a flow whose fingerprint is zero: one in 2^36.
            return (entry.0 & STATE_MASK != 0).then_some(Found { index: first ^ place, entry });
        }
    }
    None
}

/// How willingly an entry is given up, four bits for each state, state 0 in the lowest; the
/// higher class first, and within a class the oldest.
///
/// | class | who | may be taken by |
/// |---|---|---|
/// | 5 | free, and all that is expired | every new flow |
/// | 4 | embryonic, reset, in time-wait | every new flow |
/// | 3 | answered | every new flow |
/// | 2 | closing | a flow met in the middle |
/// | 1 | young | a flow met in the middle |
/// | 0 | old | nobody |
const CLASS_BY_STATE: u64 = 0x4342_0145;
const CLASS_FREE: u64 = 5;
const CLASS_ANSWERED: u64 = 3;
const CLASS_YOUNG: u64 = 1;

const SCORE_CLASS_SHIFT: u32 = 12;
const SCORE_AGE_SHIFT: u32 = 4;
const OWN_PLACE_SHIFT: u32 = 61;

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

/// Class, age and index of a word, comparable as one number. Of free ones the first is best, so that
/// it is found soon; of others, alike, the first from the flow's own place on, so that in a flood not
/// all newcomers drive each other from the same.
#[inline(always)]
fn score(word: u64, index: usize, hash: u64, tick: u8, settings: &Settings) -> u64 {
    let age = u64::from(tick.wrapping_sub((word >> TICK_SHIFT) as u8));
    let age = age & !sign_mask(u64::from(AHEAD - 1).wrapping_sub(age));
    let expired = sign_mask(idle_limit(word, settings).wrapping_sub(age));
    let class = CLASS_BY_STATE >> ((word & STATE_MASK) * 4) & 0x7;
    let class = class & !expired | CLASS_FREE & expired;
    let place = (index ^ (GROUP - 1)) as u64 ^ own_place(hash, class);
    class << SCORE_CLASS_SHIFT | age << SCORE_AGE_SHIFT | place
}

/// By what a flow's order of places in a line differs from their own.
#[inline(always)]
fn own_place(hash: u64, class: u64) -> u64 {
    hash >> OWN_PLACE_SHIFT & (LINE as u64 - 1) & sign_mask(class.wrapping_sub(CLASS_FREE))
}

/// The best place for a new flow in one line.
#[inline(always)]
fn best_of_line<W: Words>(
    group: &W,
    first: usize,
    hash: u64,
    tick: u8,
    settings: &Settings,
) -> u64 {
    let mut best = 0u64;
    for place in 0..LINE {
        let index = first ^ place;
        let candidate = score(group.load(index), index, hash, tick, settings);
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
    let first = primary(hash);
    let mut best = best_of_line(group, first, hash, tick, settings);
    if best >> SCORE_CLASS_SHIFT < CLASS_FREE {
        let buddy = best_of_line(group, first ^ LINE, hash, tick, settings);
        if buddy >> SCORE_CLASS_SHIFT > best >> SCORE_CLASS_SHIFT {
            best = buddy;
        }
    }
    let place = best ^ own_place(hash, best >> SCORE_CLASS_SHIFT);
    let index = !place as usize & (GROUP - 1);
    // The word may have changed since it was scored: what counts is what the exchange finds.
    let seen = group.load(index);
    let class = score(seen, index, hash, tick, settings) >> SCORE_CLASS_SHIFT;
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
