//! Which backend takes a new flow: Maglev hashing (Eisenbud et al., NSDI 2016, §3.4), with
//! weights.
//!
//! [`fill`] runs in the daemon, [`slot_of`] in the kernel program. The same members, weights
//! and table length give the same table on every machine, so two balancers that share a seed
//! choose the same backend for a flow.

/// Slots of a service's table where nothing else is said: a prime (§3.4; with 100 slots or
/// more for each backend the load differs by less than 1 %).
pub const DEFAULT_SLOTS: u32 = 65_537;

/// One who wants slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Index to be written into its slots; not 0.
    pub backend: u16,
    /// Its share, relative to the others'; 0: none.
    pub weight: u16,
    /// Two independent 64-bit hashes of its name: where its preference list starts, and how
    /// far apart its preferences are.
    pub hashes: [u64; 2],
}

/// How far one member's preference list is used up; scratch memory for [`fill`].
#[derive(Clone, Copy, Default, Debug)]
pub struct Progress {
    next: u32,
    skip: u32,
    credit: u32,
}

/// The slot of a flow.
#[inline(always)]
pub const fn slot_of(hash: u64, slots: u32) -> u32 {
    // The upper 32 bits, scaled: no division, and unbiased to 2^-12 for 2^20 slots.
    (((hash >> 32) * slots as u64) >> 32) as u32
}

/// Fills a table. Its length is a prime and at least 2; `progress` is as long as `members`. The order
/// of members decides who takes a slot that two want in the same turn: sort them by name.
/// Without members, or with weights of 0 only, every slot is 0.
///
/// A member with half of the largest weight takes a turn in every other round, and so on.
pub fn fill(members: &[Member], slots: &mut [u16], progress: &mut [Progress]) {
    slots.fill(0);
    let length = slots.len() as u32;
    let Some(largest) = members.iter().map(|m| u32::from(m.weight)).max().filter(|&w| w > 0) else {
        return;
    };
    for (member, progress) in members.iter().zip(progress.iter_mut()) {
        *progress = Progress {
            next: (member.hashes[0] % u64::from(length)) as u32,
            skip: (member.hashes[1] % u64::from(length - 1)) as u32 + 1,
            credit: 0,
        };
    }
    let mut free = length;
    loop {
        for (member, progress) in members.iter().zip(progress.iter_mut()) {
            progress.credit += u32::from(member.weight);
            if progress.credit < largest {
                continue;
            }
            progress.credit -= largest;
            // The length being prime, the list visits every slot once (§3.4).
            while slots[progress.next as usize] != 0 {
                progress.advance(length);
            }
            slots[progress.next as usize] = member.backend;
            progress.advance(length);
            free -= 1;
            if free == 0 {
                return;
            }
        }
    }
}

impl Progress {
    fn advance(&mut self, length: u32) {
        self.next += self.skip;
        if self.next >= length {
            self.next -= length;
        }
    }
}

#[cfg(test)]
mod tests;
