//! The whole table: under attack, under contention and under load.

use std::{println, sync::Barrier, thread};

use super::*;
use crate::host::Random;

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
            None => insert(group, hash, backend, tick, state, &self.settings, |_| ()).is_some(),
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
    let is_at_home = |flow: &&u64| {
        find(table.group(**flow), **flow).map(|found| found.index) == Some(place(**flow, 0))
    };
    let at_home = resident.iter().filter(is_at_home).count() as f64 / resident.len() as f64;
    assert!(at_home > 0.7, "{:.1} % of the flows are in their own places", at_home * 100.0);
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
