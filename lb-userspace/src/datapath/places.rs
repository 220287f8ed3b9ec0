//! Which interface's frames are counted at which place of `REASONS`: pure decisions about
//! [`Interfaces`], which [`Maps`](super::Maps) holds.
//!
//! As long as only the first interface is attached, all frames are its: they are counted
//! [`ALONE`], and nobody looks where they come from. With others, each interface counts at its own
//! place, and one counter more where a frame is forwarded; what was counted before goes on being
//! the first one's. An instance that loses the first and keeps another goes on telling them apart.

use std::collections::BTreeMap;

use lb_common::abi::{ALONE, ELSEWHERE, FIRST, Interfaces, SEVERAL};

/// The place of an interface, if it has one.
pub fn place_of(interfaces: &Interfaces, name: &str) -> Option<u32> {
    named(interfaces).find(|(_, known)| known == name).map(|(place, _)| place)
}

/// Every place that was given away, with the interface's name.
pub fn named(interfaces: &Interfaces) -> impl Iterator<Item = (u32, String)> {
    let names = (FIRST..).zip(&interfaces.names).filter(|(_, name)| name[0] != 0);
    names.map(|(place, name)| {
        let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        (place, String::from_utf8_lossy(&name[..length]).into_owned())
    })
}

/// Where frames are counted once these interfaces are attached, and no others: each with its index,
/// or `None` where that is as it was. Who has no place gets one, as long as there are some.
pub fn with<'n>(
    before: &Interfaces,
    attached: impl IntoIterator<Item = (&'n str, Option<u32>)>,
) -> Interfaces {
    let mut after = Interfaces { place: ALONE, indices: [0; _], ..*before };
    for (name, index) in attached {
        let place = place_of(&after, name).or_else(|| give_place(&mut after, name));
        if place != Some(FIRST) {
            after.place = SEVERAL;
        }
        if let Some(slot) = place.map(|place| (place - FIRST) as usize) {
            after.indices[slot] = index.unwrap_or(before.indices[slot]);
        }
    }
    after
}

fn give_place(interfaces: &mut Interfaces, name: &str) -> Option<u32> {
    let free = |(_, name): &(u32, &mut [u8; 16])| name[0] == 0;
    let (place, slot) = (FIRST..).zip(&mut interfaces.names).find(free)?;
    // The kernel has no longer names (`IFNAMSIZ`).
    for (byte, from) in slot.iter_mut().zip(name.bytes()) {
        *byte = from;
    }
    Some(place)
}

/// Frames of one place, or of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Not forwarded, by reason, in the order of [`Reason::ALL`](lb_common::reason::Reason::ALL).
    pub by_reason: Vec<u64>,
    /// Forwarded, to backends and from them.
    pub forwarded: u64,
}

impl Frames {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.forwarded + self.by_reason.iter().sum::<u64>()
    }

    fn add(&mut self, other: &Self) {
        self.forwarded += other.forwarded;
        self.by_reason.resize(self.by_reason.len().max(other.by_reason.len()), 0);
        for (sum, count) in self.by_reason.iter_mut().zip(&other.by_reason) {
            *sum += count;
        }
    }
}

/// What was counted at all places.
#[derive(Clone, Debug)]
pub struct Verdicts {
    /// Whose they are.
    pub interfaces: Interfaces,
    /// By place.
    pub places: BTreeMap<u32, Frames>,
}

impl Verdicts {
    /// Whether interfaces are told apart.
    pub const fn are_several(&self) -> bool {
        self.interfaces.place == SEVERAL
    }

    /// Frames not forwarded, of all places, in the order of the reasons.
    pub fn by_reason(&self) -> Vec<u64> {
        let mut all = Frames::default();
        self.places.values().for_each(|frames| all.add(frames));
        all.by_reason
    }

    /// What became of the frames of the interface with this name, `forwarded` having been forwarded
    /// on all together just before; `None`: it has no place.
    ///
    /// While others count, what the first one has forwarded is what they have not: if frames came
    /// since `forwarded` was read it may be too little, never too much.
    pub fn of(&self, name: &str, forwarded: u64) -> Option<Frames> {
        let place = place_of(&self.interfaces, name)?;
        let mut frames = self.places.get(&place).cloned().unwrap_or_default();
        if place == FIRST {
            frames.add(&self.at(ALONE));
            let others = self.places.iter().filter(|(place, _)| ![ALONE, FIRST].contains(place));
            let others: u64 = others.map(|(_, frames)| frames.forwarded).sum();
            frames.forwarded = forwarded.saturating_sub(others);
        }
        Some(frames)
    }

    /// The verdicts about frames of the interface with this name, exactly, but from a number that is
    /// another one whenever [`Self::are_several`] changes.
    pub fn sum_of(&self, name: &str, forwarded: u64) -> Option<u64> {
        let place = place_of(&self.interfaces, name)?;
        let own = self.at(place).sum();
        let alone = if place == FIRST { self.at(ALONE).sum() } else { 0 };
        let forwarded = if place == FIRST && !self.are_several() { forwarded } else { 0 };
        Some(own + alone + forwarded)
    }

    fn at(&self, place: u32) -> Frames {
        self.places.get(&place).cloned().unwrap_or_default()
    }
}

/// The places that may hold counts.
pub(super) fn used(interfaces: &Interfaces) -> Vec<u32> {
    let named = named(interfaces).map(|(place, _)| place);
    [ALONE, ELSEWHERE].into_iter().chain(named).collect()
}

#[cfg(test)]
mod tests {
    use lb_common::abi::capacity;
    use zerocopy::FromZeros as _;

    use super::*;

    fn nothing() -> Interfaces {
        Interfaces::new_zeroed()
    }

    #[test]
    fn a_single_interface_is_not_told_from_others() {
        let alone = with(&nothing(), [("eth0", Some(7))]);
        assert_eq!((alone.place, place_of(&alone, "eth0")), (ALONE, Some(FIRST)));
        let both = with(&alone, [("eth0", None), ("eth1", Some(8))]);
        assert_eq!(both.place, SEVERAL);
        assert_eq!([7, 8, 9].map(|index| both.place_of(index)), [FIRST, FIRST + 1, ELSEWHERE]);
        // The first one again, the second one again; whose place was whose is never forgotten.
        let first = with(&both, [("eth0", None)]);
        assert_eq!((first.place, first.indices[..2].to_vec()), (ALONE, vec![7, 0]));
        let second = with(&both, [("eth1", None)]);
        assert_eq!((second.place, second.place_of(8), second.place_of(7)), (SEVERAL, 2, ELSEWHERE));
        assert_eq!(place_of(&second, "eth0"), Some(FIRST));
        assert_eq!(with(&second, [("eth0", Some(9)), ("eth1", None)]).place_of(9), FIRST);
        assert_eq!(with(&nothing(), []), nothing());
    }

    #[test]
    fn a_name_may_be_as_long_as_the_kernel_lets_it_and_places_run_out() {
        let long = "enp129s0f0np0.1";
        let named = with(&nothing(), [(long, Some(7))]);
        assert_eq!(place_of(&named, long), Some(FIRST));
        let names: Vec<String> = (0..=capacity::INTERFACES).map(|n| format!("eth{n}")).collect();
        let all = names.iter().zip(10..).map(|(name, index)| (&**name, Some(index)));
        let full = with(&nothing(), all);
        let last = 10 + capacity::INTERFACES as u32;
        assert_eq!(place_of(&full, &names[capacity::INTERFACES]), None);
        assert_eq!([full.place_of(last - 1), full.place_of(last)], [ELSEWHERE - 1, ELSEWHERE]);
    }

    #[test]
    fn what_was_counted_before_is_the_first_ones() {
        let frames = |forwarded, not_ip| Frames { by_reason: vec![not_ip, 0], forwarded };
        let interfaces = with(&nothing(), [("eth0", Some(7)), ("eth1", Some(8))]);
        let places = [
            (ALONE, frames(0, 100)),
            (FIRST, frames(5, 1)),
            (FIRST + 1, frames(20, 2)),
            (ELSEWHERE, frames(3, 4)),
        ];
        let verdicts = Verdicts { interfaces, places: places.into() };
        // 77 were forwarded while it was alone.
        let forwarded = 77 + 5 + 20 + 3;
        assert_eq!(verdicts.of("eth0", forwarded), Some(frames(82, 101)));
        assert_eq!(verdicts.of("eth1", forwarded), Some(frames(20, 2)));
        assert_eq!(verdicts.of("eth2", forwarded), None);
        assert_eq!(verdicts.by_reason(), [107, 0]);
        assert_eq!(verdicts.sum_of("eth0", forwarded), Some(5 + 1 + 100));
        assert_eq!(verdicts.sum_of("eth1", forwarded), Some(22));
        let alone = Verdicts { interfaces: with(&interfaces, [("eth0", None)]), ..verdicts };
        assert_eq!(alone.sum_of("eth0", forwarded), Some(5 + 1 + 100 + forwarded));
    }
}
