use std::collections::VecDeque;

use lb_common::{host::Random, service::Affinity};
use proptest::prelude::*;

use super::*;

const TICK: Duration = Duration::from_millis(250);

/// A pool's traffic: who completes what share of its handshakes, and who floods whom.
struct Traffic {
    random: Random,
    pool: Pool<usize>,
    settings: Settings,
    now: Instant,
    members: Vec<Member>,
    /// Real connections in a tick, spread by weight.
    clients: usize,
    /// Forged SYNs in a tick, spread by weight.
    forged: usize,
    /// Of 1000 flows so many find no place in the table, nor does their first ACK.
    untracked: usize,
    /// Each SYN drives out another.
    evicts: bool,
    /// So many ticks after its SYN comes the ACK that completes a handshake.
    round_trip: usize,
    /// Who completes handshakes in the coming ticks, the next one first.
    on_their_way: VecDeque<Vec<usize>>,
}

#[derive(Clone, Copy)]
struct Member {
    weight: u16,
    /// Of 1000 connections so many are completed.
    completes: usize,
    /// Forged SYNs in a tick, aimed at this one.
    aimed: u64,
    /// An attacker's own completed connections in a tick.
    owned: u64,
    totals: Counts,
}

impl Traffic {
    fn new(members: usize, clients: usize, mode: Outlier) -> Self {
        let member =
            Member { weight: 100, completes: 990, aimed: 0, owned: 0, totals: Counts::default() };
        Self {
            random: Random(3),
            pool: Pool::default(),
            settings: Settings { mode, ..Settings::default() },
            now: Instant::now(),
            members: vec![member; members],
            clients,
            forged: 0,
            untracked: 0,
            evicts: false,
            round_trip: 0,
            on_their_way: VecDeque::new(),
        }
    }

    fn choose(&mut self) -> usize {
        let ejected: Vec<usize> = self.pool.ejected().copied().collect();
        let weight = |(index, member): (usize, &Member)| {
            if ejected.contains(&index) { 0 } else { usize::from(member.weight) }
        };
        let weights: Vec<usize> = self.members.iter().enumerate().map(weight).collect();
        let mut at = self.random.below(weights.iter().sum());
        weights
            .iter()
            .position(|weight| {
                let here = at < *weight;
                at = at.saturating_sub(*weight);
                here
            })
            .expect("the weights' sum is above it")
    }

    fn tick(&mut self) -> Vec<(usize, Change)> {
        let mut answered = Vec::new();
        for number in 0..self.clients + self.forged {
            let index = self.choose();
            let completes = self.random.below(1000) < self.members[index].completes;
            let is_untracked = self.random.below(1000) < self.untracked;
            let totals = &mut self.members[index].totals;
            totals.syns += 1;
            if is_untracked {
                totals.untracked += 1 + u64::from(completes);
                continue;
            }
            if self.evicts {
                self.members.iter_mut().for_each(|member| member.totals.evicted += 1);
                continue;
            }
            match (number < self.clients, completes) {
                (true, true) => answered.push(index),
                (true, false) => totals.retransmissions += 1,
                (false, _) => {}
            }
        }
        self.on_their_way.push_back(answered);
        while self.on_their_way.len() > self.round_trip {
            for index in self.on_their_way.pop_front().unwrap_or_default() {
                self.members[index].totals.handshakes += 1;
            }
        }
        for Member { aimed, owned, totals, .. } in &mut self.members {
            totals.syns += *aimed + *owned;
            // Forged as well.
            totals.retransmissions += *aimed / 2;
            totals.handshakes += *owned;
        }
        self.now += TICK;
        let readings: Vec<_> = (0..)
            .zip(&self.members)
            .map(|(backend, m)| Reading { backend, totals: m.totals, weight: m.weight })
            .collect();
        self.pool.observe(&readings, &self.settings, self.now)
    }

    /// All that changes in a time, but suspicions.
    fn pass(&mut self, seconds: u32) -> Vec<(usize, Change)> {
        let changes = (0..seconds * 4).flat_map(|_| self.tick()).collect::<Vec<_>>();
        changes
            .into_iter()
            .filter(|(_, c)| !matches!(c, Change::Suspect | Change::Cleared))
            .collect()
    }

    fn ejected(&self) -> Vec<usize> {
        self.pool.ejected().copied().collect()
    }
}

fn ejections(changes: &[(usize, Change)]) -> Vec<(usize, u64)> {
    changes
        .iter()
        .filter_map(|(backend, change)| match change {
            Change::Outlier { ejected_for, .. } => Some((*backend, (*ejected_for)?.as_secs())),
            _ => None,
        })
        .collect()
}

#[test]
fn a_dead_backend_is_suspect_before_its_clients_try_again() {
    let mut traffic = Traffic::new(4, 40, Outlier::Report);
    traffic.pass(20);
    assert_eq!(traffic.pool.suspects().count(), 0);
    traffic.members[2].completes = 0;
    let changes: Vec<_> = (0..3).flat_map(|_| traffic.tick()).collect();
    assert_eq!(changes, [(2, Change::Suspect)], "within 750 ms");
    assert_eq!(traffic.pool.suspects().collect::<Vec<_>>(), [&2]);
    traffic.members[2].completes = 1000;
    assert_eq!(traffic.tick(), [(2, Change::Cleared)]);
    assert_eq!(traffic.pool.suspects().count(), 0);
}

#[test]
fn a_full_table_accuses_nobody_and_hides_no_dead_backend_when_it_has_room() {
    let mut traffic = Traffic::new(4, 40, Outlier::Report);
    traffic.pass(20);
    let all = |traffic: &mut Traffic| (0..80).flat_map(|_| traffic.tick()).collect::<Vec<_>>();
    traffic.untracked = 1000;
    assert_eq!(all(&mut traffic), [], "no flow finds a place");
    (traffic.untracked, traffic.evicts) = (0, true);
    assert_eq!(all(&mut traffic), [], "each is driven out by the next");
    (traffic.untracked, traffic.evicts) = (500, false);
    assert_eq!(all(&mut traffic), [], "half find a place");
    traffic.members[2].completes = 0;
    let changes = all(&mut traffic);
    assert_eq!(changes[0], (2, Change::Suspect), "{changes:?}");
    assert!(changes.iter().all(|(backend, _)| *backend == 2), "{changes:?}");
}

#[test]
fn a_dead_backend_is_ejected_for_longer_each_time_until_it_does_well() {
    let mut traffic = Traffic::new(5, 50, Outlier::Eject);
    assert_eq!(traffic.pass(20), []);
    traffic.members[3].completes = 0;
    assert_eq!(ejections(&traffic.pass(12)), [(3, 30)]);
    assert_eq!(traffic.ejected(), [3]);
    assert!(traffic.pool.ejected_until(&3).is_some_and(|until| until > traffic.now));
    // Back after 30 s, and judged by what comes then.
    let changes = traffic.pass(3 * 60);
    assert_eq!(ejections(&changes), [(3, 60), (3, 120)]);
    let returns = changes.iter().filter(|change| **change == (3, Change::Returned)).count();
    assert_eq!(returns, 2, "{changes:?}");
    assert_eq!(ejections(&traffic.pass(3600)).last(), Some(&(3, 600)), "the longest");
    traffic.members[3].completes = 990;
    let changes = traffic.pass(1300);
    assert_eq!(changes, [(3, Change::Returned), (3, Change::Recovered)]);
    traffic.members[3].completes = 0;
    assert_eq!(ejections(&traffic.pass(12)), [(3, 30)], "it had done well for as long");
}

/// A second, twice as long as by way of a satellite.
#[test]
fn who_begins_anew_is_not_judged_by_handshakes_still_on_their_way() {
    let mut traffic = Traffic::new(4, 800, Outlier::Eject);
    traffic.round_trip = 4;
    assert_eq!(traffic.pass(20), [], "the balancer has just started");
    traffic.members[1].weight = 0;
    assert_eq!(traffic.pass(20), []);
    traffic.members[1].weight = 100;
    assert_eq!(traffic.pass(20), [], "enabled again");
    traffic.members.push(Member { totals: Counts::default(), ..traffic.members[0] });
    assert_eq!(traffic.pass(20), [], "a new one");
    traffic.members[2].completes = 0;
    assert_eq!(ejections(&traffic.pass(20)), [(2, 30)]);
    traffic.members[2].completes = 990;
    assert_eq!(traffic.pass(60), [(2, Change::Returned), (2, Change::Recovered)]);
    assert_eq!(traffic.ejected(), [0; 0]);
}

#[test]
fn a_report_says_once_what_stands_out_and_ejects_nobody() {
    let mut traffic = Traffic::new(4, 60, Outlier::Report);
    traffic.pass(20);
    traffic.members[0].completes = 200;
    let changes = traffic.pass(60);
    let [(0, Change::Outlier { figures, completed, ejected_for: None })] = &changes[..] else {
        panic!("{changes:?}");
    };
    assert!(*completed < 0.5, "{completed}");
    assert!(figures.counts.retransmissions > 100, "{figures:?}");
    assert!(traffic.pool.stands_out(&0) && !traffic.pool.stands_out(&1));
    assert_eq!(traffic.ejected(), [0; 0]);
    traffic.members[0].completes = 990;
    assert_eq!(traffic.pass(30), [(0, Change::Recovered)]);
    assert!(!traffic.pool.stands_out(&0));

    traffic.members[0].completes = 0;
    traffic.settings.mode = Outlier::Off;
    assert_eq!(traffic.pass(60), []);
}

#[test]
fn ejections_end_when_they_are_no_longer_asked_for() {
    for mode in [Outlier::Report, Outlier::Off] {
        let mut traffic = Traffic::new(4, 60, Outlier::Eject);
        traffic.members[0].completes = 0;
        traffic.pass(20);
        assert_eq!(traffic.ejected(), [0]);
        traffic.settings.mode = mode;
        assert_eq!(traffic.tick(), [(0, Change::Returned)]);
    }
    assert_eq!(Outlier::Eject.with_affinity(Affinity::SourceIp), Outlier::Report);
    assert_eq!(Outlier::Eject.with_affinity(Affinity::None), Outlier::Eject);
    assert_eq!(Outlier::Off.with_affinity(Affinity::SourceIp), Outlier::Off);
}

#[test]
fn only_a_part_of_the_pool_is_ejected_and_never_the_last() {
    // Members, how many of them are dead, and how many are ejected.
    for (members, dead, ejected) in [(10, 4, 3), (10, 1, 1), (3, 1, 1), (2, 1, 1), (1, 1, 0)] {
        let mut traffic = Traffic::new(members, members * 15, Outlier::Eject);
        traffic.pass(12);
        traffic.members[..dead].iter_mut().for_each(|member| member.completes = 0);
        traffic.pass(25);
        assert_eq!(traffic.ejected().len(), ejected, "{dead} of {members}");
        assert!(traffic.ejected().iter().all(|index| *index < dead));
        // The others are taken away: somebody must come back.
        for member in &mut traffic.members[1..] {
            member.weight = 0;
        }
        traffic.clients = 0;
        traffic.tick();
        assert!(!traffic.ejected().contains(&0), "{dead} of {members}");
    }
}

#[test]
fn who_is_due_little_is_not_compared_with_who_is_due_much() {
    let mut traffic = Traffic::new(4, 100, Outlier::Eject);
    traffic.pass(15);
    // As slow start does it.
    for weight in (5..=100).step_by(5) {
        traffic.members[1].weight = weight;
        assert_eq!(traffic.pass(3), [], "at weight {weight}");
    }
    for member in 0..4 {
        traffic.members[member].weight = 0;
        assert_eq!(traffic.pass(4), [], "without {member}");
        traffic.members[member].weight = 100;
        assert_eq!(traffic.pass(4), [], "with {member} again");
    }
}

#[test]
fn counters_that_begin_anew_eject_nobody_and_free_nobody() {
    let mut traffic = Traffic::new(4, 60, Outlier::Eject);
    traffic.members[2].completes = 0;
    traffic.pass(15);
    assert_eq!(traffic.ejected(), [2]);
    for member in &mut traffic.members {
        member.totals = Counts::default();
    }
    assert_eq!(traffic.pass(10), []);
    assert_eq!(traffic.ejected(), [2]);
}

#[test]
fn who_is_gone_is_forgotten() {
    let mut traffic = Traffic::new(4, 60, Outlier::Eject);
    traffic.members[3].completes = 0;
    traffic.pass(15);
    traffic.members.pop();
    traffic.tick();
    assert_eq!(traffic.ejected(), [0; 0]);
    assert_eq!(traffic.pool.figures(&3), None);
    assert!(traffic.pool.figures(&0).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However large the flood, and whether or not real handshakes are still seen in it.
    #[test]
    fn a_flood_of_forged_syns_ejects_nobody(
        seed: u64,
        members in 2usize..12,
        clients in 1usize..120,
        forged in 0usize..1500,
        completes in prop::sample::select(vec![990usize, 500, 50, 0]),
        weights in prop::collection::vec(1u16..200, 12),
    ) {
        let mut traffic = Traffic::new(members, clients, Outlier::Eject);
        traffic.random = Random(seed);
        for (member, weight) in traffic.members.iter_mut().zip(weights) {
            member.weight = weight;
        }
        prop_assert_eq!(traffic.pass(12), []);
        traffic.forged = forged;
        traffic.members.iter_mut().for_each(|member| member.completes = completes);
        prop_assert_eq!(traffic.pass(25), []);
        traffic.forged = 0;
        traffic.members.iter_mut().for_each(|member| member.completes = 990);
        prop_assert_eq!(traffic.pass(15), []);
    }

    /// SYNs, new and sent again, for one backend alone; and who has addresses of his own completes
    /// connections with some of the others meanwhile, but with fewer than half of them.
    #[test]
    fn a_flood_aimed_at_one_backend_does_not_eject_it(
        seed: u64,
        members in 3usize..12,
        clients in 10usize..200,
        aimed in 1u64..100_000,
        owned in 0u64..1000,
    ) {
        let mut traffic = Traffic::new(members, clients, Outlier::Eject);
        traffic.random = Random(seed);
        traffic.pass(12);
        traffic.members[0].aimed = aimed;
        for member in &mut traffic.members[1..=(members - 2) / 2] {
            member.owned = owned;
        }
        let changes = traffic.pass(40);
        prop_assert_eq!(ejections(&changes), [], "{:?}", changes);
    }

    /// Whatever the counters say.
    #[test]
    fn there_is_always_one_left(
        mode in prop::sample::select(vec![Outlier::Off, Outlier::Report, Outlier::Eject]),
        max_ejected in prop::sample::select(vec![0.0, 0.1, 0.3, 0.5, 1.0, 7.0, -1.0, f64::NAN]),
        minimum_samples in 0u64..30,
        cool_down in 0u64..20,
        ticks in prop::collection::vec(
            (prop::collection::vec((0u16..3, 0u64..100, 0u64..100), 0..8), 0u64..20_000),
            1..60,
        ),
    ) {
        let settings = Settings {
            mode,
            max_ejected,
            minimum_samples,
            cool_down: Duration::from_secs(cool_down),
            ..Settings::default()
        };
        let mut pool = Pool::default();
        let mut totals = [Counts::default(); 8];
        let mut now = Instant::now();
        for (members, wait) in ticks {
            now += Duration::from_millis(wait);
            let readings: Vec<_> = members
                .into_iter()
                .enumerate()
                .map(|(backend, (weight, syns, handshakes))| {
                    let totals = &mut totals[backend];
                    if syns == 7 {
                        *totals = Counts::default();
                    }
                    totals.syns += syns;
                    totals.handshakes += handshakes * u64::from(backend % 2 == 0);
                    Reading { backend, totals: *totals, weight }
                })
                .collect();
            for (backend, change) in pool.observe(&readings, &settings, now) {
                prop_assert!(readings.iter().any(|reading| reading.backend == backend));
                if let Change::Outlier { ejected_for, completed, .. } = change {
                    prop_assert!(ejected_for.is_none() || mode == Outlier::Eject);
                    prop_assert!((0.0..settings.ratio).contains(&completed));
                }
            }
            let takes: Vec<_> =
                readings.iter().filter(|r| r.weight > 0).map(|r| r.backend).collect();
            let ejected: Vec<_> = pool.ejected().copied().collect();
            let away = takes.iter().filter(|backend| ejected.contains(backend)).count();
            prop_assert!(away <= allowed(takes.len(), max_ejected));
            prop_assert!(takes.is_empty() || away < takes.len());
            prop_assert!(mode == Outlier::Eject || ejected.is_empty());
        }
    }
}
