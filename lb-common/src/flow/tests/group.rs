//! A group: how a flow finds its word, and whose place a new one takes.

use core::cell::Cell;

use super::*;
use crate::host::Random;

#[test]
fn a_flow_is_found_in_either_line_and_its_primary_line_first() {
    for second_line in [false, true] {
        let wanted = hash(5, second_line);
        for place in 0..GROUP {
            let group = group();
            group[place].store(Entry::new(wanted, 3, NOW, State::Old).0, Ordering::Relaxed);
            let found = find(&group, wanted).expect("it is there");
            assert_eq!((found.index, found.entry.backend()), (place, 3));
            assert_eq!(find(&group, hash(4, second_line)), None);
        }
        // Twice in the group: two CPUs inserted it at once.
        let group = group();
        for (place, backend) in [(1, 1), (9, 2)] {
            group[place].store(Entry::new(wanted, backend, NOW, State::Old).0, Ordering::Relaxed);
        }
        let expected = if second_line { 2 } else { 1 };
        assert_eq!(find(&group, wanted).map(|found| found.entry.backend()), Some(expected));
    }
}

/// From its own place on, so that most flows are found at the first look.
#[test]
fn a_flow_tries_the_places_of_its_line_from_its_own_on() {
    let settings = settings();
    for own in 0..LINE as u64 {
        for second_line in [false, true] {
            let group = group();
            let flow = |number| hash(number, second_line) | own << START_SHIFT;
            let line = LINE * usize::from(second_line);
            for turn in 0..GROUP as u64 {
                let hash = flow(turn);
                let place = insert(&group, hash, 1, NOW, State::Old, &settings, |_| ());
                let expected = line ^ own as usize ^ turn as usize;
                assert_eq!(place, Some(expected), "own place {own}, turn {turn}");
                assert_eq!(find(&group, hash).map(|found| found.index), place);
            }
        }
    }
}

#[test]
fn a_free_word_is_nobodys_flow() {
    let group = group();
    assert_eq!(find(&group, hash(0, false)), None);
    group[0].store(Entry::new(hash(7, false), 3, NOW, State::Free).0, Ordering::Relaxed);
    assert_eq!(find(&group, hash(7, false)), None);
}

/// In a flood all entries are alike: who comes next takes one of them, not always the same one, or
/// two newcomers at once could never live.
#[test]
fn newcomers_to_a_full_group_leave_each_other_alone() {
    let settings = settings();
    let mut left = 0;
    let mut random = Random(1);
    for _ in 0..100 {
        let group = group();
        let put =
            |hash| insert(&group, hash, 1, NOW, State::Embryonic, &settings, |_| ()).is_some();
        assert!((0..100).all(|_| put(random.word())));
        let [first, second] = [random.word(), random.word()];
        assert!(put(first) && put(second));
        left += usize::from(find(&group, first).is_some());
    }
    // It is found in 15 of 16 cases; if both took the first of a line, it would be in a half.
    assert!(left > 80, "{left}");
}

/// A word in a drawing of a group: a state's first letter and ticks of silence, `-` is free.
fn draw(group: &[AtomicU64], drawing: &str) {
    let words: Vec<&str> = drawing.split_whitespace().filter(|word| *word != "|").collect();
    assert_eq!(words.len(), GROUP, "{drawing}");
    for (index, (place, word)) in group.iter().zip(words).enumerate() {
        let state = match word.as_bytes()[0] {
            b'e' => State::Embryonic,
            b'a' => State::Answered,
            b'y' => State::Young,
            b'o' => State::Old,
            b'c' => State::Closing,
            b'r' => State::Reset,
            _ => State::Free,
        };
        let silence: u8 = word[1..].parse().unwrap_or(0);
        let tick = NOW.wrapping_sub(silence);
        let entry = match state {
            State::Free => 0,
            _ => Entry::new(hash(1000 + index as u64, false), 1, tick, state).0,
        };
        place.store(entry, Ordering::Relaxed);
    }
}

/// Whom a new flow displaces. `^` stands under its place, in the row for a SYN and in the row
/// for a flow met in the middle; none: refused.
#[test]
fn the_least_worthy_entry_gives_way() {
    let cases = [
        (
            "the embryonic before the closing before the young; the old never",
            "o9 o9 y9 c1 e1 o9 o9 o9 | o9 o9 o9 o9 o9 o9 o9 o9",
            Some(4),
            Some(4),
        ),
        (
            "the answered after the embryonic, however silent",
            "o9 a9 y9 c1 e1 o9 o9 o9 | o9 o9 o9 o9 o9 o9 o9 o9",
            Some(4),
            Some(4),
        ),
        (
            "the answered before the closing",
            "o9 o9 y9 c1 y1 a1 o9 o9 | o9 o9 o9 o9 o9 o9 o9 o9",
            Some(5),
            Some(5),
        ),
        (
            "without embryonic ones a SYN is refused",
            "o9 o9 y9 c1 y1 o9 o9 o9 | o9 o9 o9 o9 o9 o9 o9 o9",
            None,
            Some(3),
        ),
        (
            "the young only for a flow met in the middle",
            "o9 o9 y1 y3 y2 o9 o9 o9 | o9 o9 o9 o9 o9 o9 o9 o9",
            None,
            Some(3),
        ),
        (
            "the old never, however silent",
            "o9 o9 o9 o9 o9 o9 o9 o221 | o9 o9 o9 o9 o9 o9 o9 o9",
            None,
            None,
        ),
        (
            "but when its time is over",
            "o9 o9 o9 o9 o9 o9 o9 o222 | o9 o9 o9 o9 o9 o9 o9 o9",
            Some(7),
            Some(7),
        ),
        (
            "of the embryonic the oldest",
            "e1 e2 e5 e4 e3 e0 e0 e0 | e9 e9 e9 e9 e9 e9 e9 e9",
            Some(2),
            Some(2),
        ),
        (
            "one reset is worth as little",
            "e1 r2 e1 e1 e1 e0 e0 e0 | e9 e9 e9 e9 e9 e9 e9 e9",
            Some(1),
            Some(1),
        ),
        (
            "of the closing the oldest",
            "c1 c2 c4 y9 y9 y9 y9 y9 | y9 y9 y9 y9 y9 y9 y9 y9",
            None,
            Some(2),
        ),
        (
            "a free place before any other",
            "e1 e2 e5 e4 - e0 e0 e0 | - - - - - - - -",
            Some(4),
            Some(4),
        ),
        (
            "a place in the buddy line rather than an embryonic one",
            "e1 e2 e5 e4 e1 e0 e0 e0 | o1 o1 o1 o1 - o1 o1 o1",
            Some(12),
            Some(12),
        ),
        (
            "an embryonic one in the buddy line rather than a closing one",
            "c1 c2 c3 c4 c1 c0 c0 c0 | o1 o1 e1 o1 o1 o1 o1 o1",
            Some(10),
            Some(10),
        ),
        (
            "expired is as good as free",
            "o1 o1 o1 e17 o1 o1 o1 o1 | - - - - - - - -",
            Some(3),
            Some(3),
        ),
        (
            "expired in the buddy line, too",
            "o1 o1 o1 y1 o1 o1 o1 o1 | o1 o1 o1 o1 o1 o1 e17 o1",
            Some(14),
            Some(14),
        ),
        (
            "rather than an embryonic one, too",
            "o1 o1 o1 e1 o1 o1 o1 o1 | o1 o1 o1 o1 o1 o1 e17 o1",
            Some(14),
            Some(14),
        ),
    ];
    let settings = settings();
    for (name, drawing, syn, middle) in cases {
        for second_line in [false, true] {
            for (state, expected) in
                [(State::Embryonic, syn), (State::Young, middle), (State::Closing, middle)]
            {
                let group = group();
                draw(&group, drawing);
                if second_line {
                    // The same group seen from the other side.
                    for index in 0..LINE {
                        let word = group.load(index);
                        let other = group[index ^ LINE].swap(word, Ordering::Relaxed);
                        group[index].store(other, Ordering::Relaxed);
                    }
                }
                let before: Vec<u64> = group.iter().map(|w| w.load(Ordering::Relaxed)).collect();
                let new = hash(1, second_line);
                let victim = Cell::new(None);
                let tell = |state| victim.set(Some(state));
                let place = insert(&group, new, 7, NOW, state, &settings, tell);
                let gives_way = |index| {
                    let entry = Entry(before[index]);
                    let is_free = entry.is_expired(NOW, &settings) || entry.0 & STATE_MASK == 0;
                    (!is_free).then(|| entry.state())
                };
                assert_eq!(victim.get(), place.map_or(Some(State::Free), gives_way), "{name}");
                let expected = expected.map(|i: usize| if second_line { i ^ LINE } else { i });
                assert_eq!(place, expected, "{name}: {drawing} for {state:?}");
                for (index, word) in group.iter().enumerate() {
                    let after = word.load(Ordering::Relaxed);
                    if Some(index) == place {
                        assert_eq!(after, Entry::new(new, 7, NOW, state).0);
                    } else {
                        assert_eq!(after, before[index], "{name}: word {index} was touched");
                    }
                }
            }
        }
    }
}

/// A group that another CPU changes under us: before our exchange, a word becomes another.
struct Contended {
    words: Vec<AtomicU64>,
    /// After so many loads this word is stored at this index.
    change: Cell<Option<(usize, usize, u64)>>,
    before_exchange: Cell<Option<(usize, u64)>>,
}

impl Words for Contended {
    fn load(&self, index: usize) -> u64 {
        if let Some((loads, at, word)) = self.change.get() {
            if loads == 0 {
                self.words[at].store(word, Ordering::Relaxed);
                self.change.set(None);
            } else {
                self.change.set(Some((loads - 1, at, word)));
            }
        }
        self.words.load(index)
    }

    fn replace(&self, index: usize, old: u64, new: u64) -> bool {
        if let Some((at, word)) = self.before_exchange.take() {
            self.words[at].store(word, Ordering::Relaxed);
        }
        self.words.replace(index, old, new)
    }
}

#[test]
fn an_entry_that_became_worthy_meanwhile_is_not_evicted() {
    let settings = settings();
    let promoted = Entry::new(hash(1004, false), 1, NOW, State::Old).0;
    let drawing = "o9 o9 o9 o9 e9 o9 o9 o9 | o9 o9 o9 o9 o9 o9 o9 o9";
    // Both lines are scored, 16 loads; then the chosen word is read again.
    let group =
        Contended { words: group(), change: Cell::default(), before_exchange: Cell::default() };
    draw(&group.words, drawing);
    group.change.set(Some((16, 4, promoted)));
    assert_eq!(insert(&group, hash(1, false), 7, NOW, State::Embryonic, &settings, |_| ()), None);
    assert_eq!(group.words.load(4), promoted);

    // And between that and the exchange.
    draw(&group.words, drawing);
    group.before_exchange.set(Some((4, promoted)));
    assert_eq!(insert(&group, hash(1, false), 7, NOW, State::Embryonic, &settings, |_| ()), None);
    assert_eq!(group.words.load(4), promoted);

    // Alone it goes well.
    draw(&group.words, drawing);
    assert_eq!(
        insert(&group, hash(1, false), 7, NOW, State::Embryonic, &settings, |_| ()),
        Some(4)
    );
}

#[test]
fn who_is_late_changes_nothing() {
    let group = group();
    let first = Entry::new(hash(1, false), 1, NOW, State::Embryonic);
    group[0].store(first.0, Ordering::Relaxed);
    let found = find(&group, hash(1, false)).expect("it is there");
    // Another flow takes the place before our touch.
    let second = Entry::new(hash(2, false), 2, NOW, State::Young);
    assert!(group.replace(0, first.0, second.0));
    let Step::Keep(touched) = found.entry.next(Kind::Ack, NOW, &settings()) else {
        panic!("an ACK keeps an embryonic flow");
    };
    assert!(!group.replace(found.index, found.entry.0, touched.0));
    assert_eq!(group.load(0), second.0);
}

#[test]
fn a_false_match_is_as_rare_as_the_fingerprint_is_long() {
    // A fingerprint of 37 bits: two flows that differ in one of them are two.
    let group = group();
    let flow = 0x1234_5678_9abc_def0u64;
    insert(&group, flow, 1, NOW, State::Embryonic, &settings(), |_| ());
    for bit in 0..64 {
        let found = find(&group, flow ^ 1 << bit).is_some();
        assert_eq!(found, bit < FINGERPRINT_SHIFT, "bit {bit}");
    }
}
