use core::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};
use std::{println, sync::Barrier, thread, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::host::{HostTables, Random};

fn settings() -> Settings {
    HostTables::new(GROUP).settings
}

fn group() -> Vec<AtomicU64> {
    (0..GROUP).map(|_| AtomicU64::new(0)).collect()
}

/// A hash with this fingerprint, whose primary line is the first or the second.
fn hash(fingerprint: u64, second_line: bool) -> u64 {
    fingerprint << FINGERPRINT_SHIFT | u64::from(second_line) << 25
}

const NOW: u8 = 100;

/// Every state, kind of segment and length of silence: to which state the flow goes, at the
/// present tick; "same": the entry stays as it is, its tick too; "new": choose anew.
#[test]
fn every_transition_is_as_written_here() {
    // Ticks of silence: 0; 1; the last before, and the first at which a SYN is believed; the
    // last before, and the first after the state's time-out.
    const REUSE: u8 = 4;
    let table: [(State, u8, [&str; 4]); 28] = [
        //                       SYN          ACK          FIN        RST
        (State::Embryonic, 0, ["embryonic", "young", "closing", "reset"]),
        (State::Embryonic, 1, ["embryonic", "young", "closing", "reset"]),
        (State::Embryonic, 16, ["embryonic", "young", "closing", "reset"]),
        (State::Embryonic, 17, ["new", "new", "new", "new"]),
        (State::Young, 0, ["same", "young", "closing", "reset"]),
        (State::Young, 1, ["same", "old", "closing", "reset"]),
        (State::Young, REUSE, ["same", "old", "closing", "reset"]),
        (State::Young, REUSE + 1, ["new", "old", "closing", "reset"]),
        (State::Young, 221, ["new", "old", "closing", "reset"]),
        (State::Young, 222, ["new", "new", "new", "new"]),
        (State::Old, 0, ["same", "old", "closing", "reset"]),
        (State::Old, 1, ["same", "old", "closing", "reset"]),
        (State::Old, REUSE, ["same", "old", "closing", "reset"]),
        (State::Old, REUSE + 1, ["new", "old", "closing", "reset"]),
        (State::Old, 221, ["new", "old", "closing", "reset"]),
        (State::Old, 222, ["new", "new", "new", "new"]),
        (State::Closing, 0, ["new", "closing", "closing", "reset"]),
        (State::Closing, 4, ["new", "closing", "closing", "reset"]),
        (State::Closing, 5, ["new", "new", "new", "new"]),
        (State::Reset, 0, ["new", "young", "closing", "reset"]),
        (State::Reset, 3, ["new", "young", "closing", "reset"]),
        (State::Reset, 4, ["new", "new", "new", "new"]),
        (State::Answered, 0, ["answered", "answered", "closing", "reset"]),
        (State::Answered, 16, ["answered", "answered", "closing", "reset"]),
        (State::Answered, 17, ["new", "new", "new", "new"]),
        (State::TimeWait, 0, ["new", "time_wait", "time_wait", "reset"]),
        (State::TimeWait, 16, ["new", "time_wait", "time_wait", "reset"]),
        (State::TimeWait, 17, ["new", "new", "new", "new"]),
    ];
    let kinds = [Kind::Syn, Kind::Ack, Kind::Fin, Kind::Rst];
    let settings = settings();
    assert_eq!(settings.reuse_ticks, u32::from(REUSE));
    for (state, silence, expected) in table {
        let before = Entry::new(hash(9, false), 77, NOW.wrapping_sub(silence), state);
        for (kind, expected) in kinds.into_iter().zip(expected) {
            let found = match before.next(kind, NOW, &settings) {
                Step::Renew => "new",
                Step::Keep(after) if after == before && silence != 0 => "same",
                Step::Keep(after) => {
                    assert_eq!(after.backend(), 77);
                    assert!(after.is_marked(hash(9, false)));
                    assert_eq!(after.tick(), NOW);
                    after.state().name()
                }
            };
            // In the present tick an entry that stays as it is can't be told from one that goes
            // to the state it is in.
            let expected = if silence == 0 && expected == "same" { state.name() } else { expected };
            assert_eq!(found, expected, "{state:?} after {silence} ticks: {kind:?}");
        }
    }
    for state in State::ALL {
        let limit = settings.idle_ticks[state as usize];
        assert!(table.iter().any(|row| row.0 == state && row.1 == limit), "{state:?} at its limit");
    }
}

#[test]
fn a_free_word_binds_nothing() {
    for word in [0, hash(9, false), hash(9, true)] {
        let entry = Entry(word);
        assert_eq!(entry.state(), State::Free);
        for kind in [Kind::Syn, Kind::Ack, Kind::Fin, Kind::Rst] {
            assert_eq!(entry.next(kind, NOW, &settings()), Step::Renew, "{word:#x} {kind:?}");
        }
    }
}

#[test]
fn the_most_final_flag_names_a_segment() {
    let cases = [
        (Tcp::SYN, Kind::Syn),
        (Tcp::SYN | Tcp::FIN, Kind::Syn),
        (Tcp::SYN | Tcp::ACK, Kind::Ack),
        (Tcp::SYN | Tcp::ACK | Tcp::FIN, Kind::Fin),
        (Tcp::SYN | Tcp::RST, Kind::Rst),
        (Tcp::ACK, Kind::Ack),
        (Tcp::FIN, Kind::Fin),
        (Tcp::FIN | Tcp::ACK, Kind::Fin),
        (Tcp::RST, Kind::Rst),
        (Tcp::RST | Tcp::ACK | Tcp::FIN, Kind::Rst),
        (0, Kind::Ack),
        // Window scaling's and ECN's flags say nothing here: an ECN-capable SYN has both.
        (Tcp::SYN | 0xc0, Kind::Syn),
        (0xff, Kind::Rst),
    ];
    for (flags, kind) in cases {
        assert_eq!(Kind::of(flags), kind, "{flags:#04x}");
    }
}

#[test]
fn a_word_is_laid_out_as_documented() {
    let entry = Entry::new(!0, 0, 0, State::Free);
    assert_eq!(entry.0, 0xffff_ffff_f000_0000);
    assert_eq!(Entry::new(0, 0, 0, State::Free).of_return().0, 0x0800_0000);
    assert_eq!(Entry::new(0, 0xffff, 0, State::Free).0, 0x07ff_f800);
    assert_eq!(Entry::new(0, 0, 0xff, State::Free).0, 0x7f8);
    assert_eq!(Entry::new(0, 0, 0, State::Reset).0, 5);
    let entry = Entry::new(0x0123_4567_89ab_cdef, 0xbeef, 0x5a, State::Old);
    assert_eq!(entry.0, 0x0123_4567_8000_0000 | 0xbeef << 11 | 0x5a << 3 | 3);
    let of_return = entry.of_return();
    assert!(of_return.is_return() && !entry.is_return() && !entry.is_same(of_return));
    assert!(of_return.with(7, State::Closing).is_return() && of_return.moved_to(9).is_return());
}

#[test]
fn ticks_follow_the_jiffies() {
    let mut settings = settings();
    let tick = |settings: &Settings, now| tick_of(settings, now);
    assert_eq!((tick(&settings, 1023), tick(&settings, 1024)), (0, 1));
    assert_eq!(tick(&settings, 1024 * 256 + 5), 0);
    // Jiffies begin 300 s before their lower 32 bits wrap: the ticks go on.
    assert_eq!(tick(&settings, 0xffff_ffff), 0xff);
    assert_eq!(tick(&settings, 0x1_0000_0000), 0x00);
    settings.tick_shift = 40;
    assert_eq!(tick(&settings, 0x1_0000_0000), 0);
    settings.tick_shift = 64;
    assert_eq!(tick(&settings, 3), 3, "nonsense, but defined");
}

proptest! {
    #[test]
    fn a_word_gives_back_what_was_put_in(
        hash: u64,
        backend: u16,
        tick: u8,
        later: u8,
        state in prop::sample::select(State::ALL.to_vec()),
    ) {
        let entry = Entry::new(hash, backend, tick, state);
        prop_assert_eq!((entry.backend(), entry.tick(), entry.state()), (backend, tick, state));
        prop_assert!(entry.is_marked(hash));
        prop_assert!(!entry.is_marked(hash ^ 1 << FINGERPRINT_SHIFT));
        let age = if later < AHEAD { later } else { 0 };
        prop_assert_eq!(entry.age(tick.wrapping_add(later)), age);
    }

    /// The score's and the entry's idea of "expired" are one.
    #[test]
    fn what_is_expired_is_free_to_take(
        word: u64,
        tick: u8,
        idle_ticks: [u8; 8],
    ) {
        let settings = Settings { idle_ticks, ..settings() };
        let entry = Entry(word);
        let class = score(word, 0, 0, tick, &settings) >> SCORE_CLASS_SHIFT;
        if entry.is_expired(tick, &settings) {
            prop_assert_eq!(class, CLASS_FREE);
        } else {
            let expected = match entry.state() {
                State::Free => CLASS_FREE,
                State::Embryonic | State::Answered | State::Reset | State::TimeWait => {
                    CLASS_EMBRYONIC
                }
                State::Closing => 2,
                State::Young => CLASS_YOUNG,
                State::Old => 0,
            };
            prop_assert_eq!(class, expected);
        }
    }
}

/// A CPU, or the sweep, has read the time just before a new tick; another CPU's packet of the
/// flow came just after.
#[test]
fn a_flow_that_was_seen_in_a_later_tick_is_not_expired() {
    let settings = settings();
    for state in State::ALL {
        for ahead in 1..=8 {
            let entry = Entry::new(hash(9, false), 77, NOW + ahead, state);
            assert!(!entry.is_expired(NOW, &settings), "{state:?}, {ahead} ticks ahead");
            assert!(matches!(entry.next(Kind::Ack, NOW, &settings), Step::Keep(_)));
            let class = score(entry.0, 0, 0, NOW, &settings) >> SCORE_CLASS_SHIFT;
            assert_ne!(class, CLASS_FREE, "{state:?}, {ahead} ticks ahead");
        }
    }
}

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
    for round in 0..100u64 {
        let group = group();
        let put = |hash| insert(&group, hash, 1, NOW, State::Embryonic, &settings).is_some();
        let hashes = |first: u64| (first..).map(|number| crate::hash::next(round << 32 | number));
        assert!(hashes(1).take(100).all(put));
        let mut newcomers = hashes(1000);
        let [first, second] = [newcomers.next(), newcomers.next()].map(Option::unwrap);
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
                let place = insert(&group, new, 7, NOW, state, &settings);
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
    assert_eq!(insert(&group, hash(1, false), 7, NOW, State::Embryonic, &settings), None);
    assert_eq!(group.words.load(4), promoted);

    // And between that and the exchange.
    draw(&group.words, drawing);
    group.before_exchange.set(Some((4, promoted)));
    assert_eq!(insert(&group, hash(1, false), 7, NOW, State::Embryonic, &settings), None);
    assert_eq!(group.words.load(4), promoted);

    // Alone it goes well.
    draw(&group.words, drawing);
    assert_eq!(insert(&group, hash(1, false), 7, NOW, State::Embryonic, &settings), Some(4));
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

/// A flow table that is used as `steer` uses it, without the rest.
struct Table {
    words: Vec<Vec<AtomicU64>>,
    settings: Settings,
}

impl Table {
    fn new(groups: usize) -> Self {
        let settings = Settings { flow_mask: groups as u32 - 1, ..settings() };
        Self { words: (0..groups).map(|_| group()).collect(), settings }
    }

    fn group(&self, hash: u64) -> &Vec<AtomicU64> {
        &self.words[group_index(hash, &self.settings) as usize]
    }

    /// Sends a segment; tells the flow's backend if it is known afterwards.
    fn send(&self, hash: u64, kind: Kind, tick: u8, backend: u16) -> Option<u16> {
        let group = self.group(hash);
        let place = match find(group, hash) {
            Some(found) => match found.entry.next(kind, tick, &self.settings) {
                Step::Keep(entry) => {
                    group.replace(found.index, found.entry.0, entry.0);
                    return Some(entry.backend());
                }
                Step::Renew => Some(found),
            },
            None => None,
        };
        let state = if kind == Kind::Syn { State::Embryonic } else { State::Young };
        let inserted = match place {
            Some(found) => {
                let new = Entry::new(hash, backend, tick, state);
                group.replace(found.index, found.entry.0, new.0)
            }
            None => insert(group, hash, backend, tick, state, &self.settings).is_some(),
        };
        inserted.then_some(backend)
    }

    fn knows(&self, hash: u64) -> bool {
        find(self.group(hash), hash).is_some()
    }
}

/// Established flows for half of the table, of which those with a place are told.
fn half_full(random: &mut Random, groups: usize) -> (Table, Vec<u64>) {
    let table = Table::new(groups);
    let flows: Vec<u64> = (0..groups * GROUP / 2).map(|_| random.word()).collect();
    for (kind, tick) in [(Kind::Syn, 0), (Kind::Ack, 0), (Kind::Ack, 1)] {
        for &flow in &flows {
            table.send(flow, kind, tick, 1);
        }
    }
    let resident: Vec<u64> = flows.iter().copied().filter(|&flow| table.knows(flow)).collect();
    // FLOW_TABLE, §4: at a load of one half 0.08 % find no place.
    let share = resident.len() as f64 / flows.len() as f64;
    assert!(share > 0.998, "{:.3} % of the flows found a place", share * 100.0);
    (table, resident)
}

#[test]
fn established_flows_survive_ten_tables_of_spoofed_packets() {
    const GROUPS: usize = 1024;
    const ATTACK: usize = 10 * GROUPS * GROUP;
    let attacks: [(&str, &[Kind]); 4] = [
        ("SYN", &[Kind::Syn]),
        ("SYN, SYN", &[Kind::Syn, Kind::Syn]),
        ("SYN, ACK", &[Kind::Syn, Kind::Ack]),
        ("ACK", &[Kind::Ack]),
    ];
    for (name, kinds) in attacks {
        let mut random = Random(2);
        let (table, resident) = half_full(&mut random, GROUPS);
        let mut attackers_in = 0;
        for number in 0..ATTACK {
            // It goes on for 16 ticks, a minute, in which no established flow says a word.
            let tick = (2 + number * 16 / ATTACK) as u8;
            let flow = random.word();
            for &kind in kinds {
                attackers_in += u32::from(table.send(flow, kind, tick, 2).is_some());
            }
        }
        let survivors =
            resident.iter().filter(|&&flow| table.send(flow, Kind::Ack, 18, 2) == Some(1)).count();
        let share = survivors as f64 / resident.len() as f64 * 100.0;
        println!(
            "{name}: {survivors} of {} established flows survive ({share:.3} %), {attackers_in} \
             of {} packets of the attack found a place",
            resident.len(),
            ATTACK * kinds.len()
        );
        assert!(share >= 99.8, "{name}: {share:.3} % survive");
        assert!(attackers_in > 0, "{name}: no attack at all");
    }
}

/// The backend that belongs to a flow, so that an entry can be checked by itself.
fn backend_of(hash: u64) -> u16 {
    let fingerprint = hash >> FINGERPRINT_SHIFT;
    (fingerprint ^ fingerprint >> 16 ^ fingerprint >> 32) as u16
}

#[test]
fn no_entry_tears_under_two_writers_and_a_sweep() {
    const ROUNDS: usize = 200_000;
    let table = Table::new(16);
    // Five times what the table holds.
    let flows: Vec<u64> = (0..16 * GROUP * 5).scan(Random(3), |r, _| Some(r.word())).collect();
    let start = Barrier::new(3);
    let check = |word: u64| {
        let entry = Entry(word);
        if entry.state() != State::Free {
            assert_eq!(entry.backend(), backend_of(word), "torn: {word:#018x} {entry:?}");
        }
    };
    let hammer = |seed| {
        let mut random = Random(seed);
        let mut wrong = 0;
        start.wait();
        for round in 0..ROUNDS {
            let tick = (round * 300 / ROUNDS) as u8;
            let flow = *random.choose(&flows);
            let kind = *random.choose(&[Kind::Syn, Kind::Ack, Kind::Ack, Kind::Fin, Kind::Rst]);
            if let Some(backend) = table.send(flow, kind, tick, backend_of(flow)) {
                wrong += u32::from(backend != backend_of(flow));
            }
        }
        wrong
    };
    let sweep = || {
        start.wait();
        let mut freed = 0;
        for round in 0..200 {
            for word in table.words.iter().flatten() {
                let seen = word.load(Ordering::Relaxed);
                check(seen);
                let expired = Entry(seen).is_expired((round * 3 / 2) as u8, &table.settings);
                if seen != 0 && expired {
                    let swept = word.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
                    freed += u32::from(swept.is_ok());
                }
            }
            thread::yield_now();
        }
        freed
    };
    thread::scope(|scope| {
        let writers = [10, 11].map(|seed| scope.spawn(move || hammer(seed)));
        let freed = scope.spawn(sweep).join().expect("the sweep");
        let wrong: u32 = writers.map(|writer| writer.join().expect("a writer")).iter().sum();
        assert_eq!(wrong, 0, "flows went to another's backend");
        println!("{freed} entries swept");
    });
    table.words.iter().flatten().for_each(|word| check(word.load(Ordering::Relaxed)));
}

/// At loads of a quarter, a half and three quarters; analytic figures, FLOW_TABLE, §4.
#[test]
fn at_half_load_almost_every_flow_has_a_place() {
    const GROUPS: usize = 4096;
    for (load, percent) in [(4, 0.01), (8, 0.12), (12, 2.3)] {
        let mut random = Random(5);
        let table = Table::new(GROUPS);
        let flows: Vec<u64> = (0..GROUPS * load).map(|_| random.word()).collect();
        for tick in [0, 1] {
            for &flow in &flows {
                table.send(flow, Kind::Ack, tick, 1);
            }
        }
        let without = flows.iter().filter(|&&flow| !table.knows(flow)).count();
        let share = without as f64 / flows.len() as f64 * 100.0;
        println!("{load} flows a group: {share:.3} % without a place");
        assert!(share < percent, "{load} flows a group: {share:.3} % without a place");
    }
}

#[test]
fn a_false_match_is_as_rare_as_the_fingerprint_is_long() {
    // A fingerprint of 37 bits: two flows that differ in one of them are two.
    let group = group();
    let flow = 0x1234_5678_9abc_def0u64;
    insert(&group, flow, 1, NOW, State::Embryonic, &settings());
    for bit in 0..64 {
        let found = find(&group, flow ^ 1 << bit).is_some();
        assert_eq!(found, bit < FINGERPRINT_SHIFT, "bit {bit}");
    }
}
