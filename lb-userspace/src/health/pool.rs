//! "It is me": when so much of a pool fails at once that the fault is more likely ours, the last
//! good set is held.
//!
//! A backend that falls alone is taken out. But when more than `panic_threshold` of a service's
//! backends fail together, or our own side is at fault, then what fails is rather the checker than
//! the checked: those that were good stay in, until
//!
//! - enough of them are seen well again: then the others go, or
//! - clients' own packets say otherwise: a held backend that is seen ill, and completes no
//!   handshake though SYNs come in, be it silent or refusing them, is of no use to new flows,
//!   whatever the others are.
//!
//! With the first that falls, those are counted whose last probe failed: they would fall a moment
//! later, and by then the first one's flows would have been reset. It may fall before the others
//! are asked at all, for who has failed once is asked again sooner: who was taken out within one
//! round of probes before so many fail is held with them.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use super::State;
use crate::model::Identity;

/// What is seen of one backend now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// By its probes and its next hop.
    pub health: State,
    /// Its last probe failed, though perhaps not often enough yet.
    pub failing: bool,
    /// It is ill, and was not yet one round of probes ago.
    pub fell_now: bool,
    /// Clients' SYNs go to it, and none is answered.
    pub unanswered: bool,
    /// The operator lets it take new flows: only such are counted as the pool.
    pub counts: bool,
}

impl Sight {
    fn fails(&self) -> bool {
        self.failing || self.is_ill()
    }

    const fn is_ill(&self) -> bool {
        match self.health {
            State::Unhealthy | State::Unreachable => true,
            State::Unknown | State::Healthy => false,
        }
    }

    const fn is_useless(&self) -> bool {
        self.is_ill() && self.unanswered
    }
}

/// Why a pool is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// This many of that many fail together.
    Together(usize, usize),
    /// All that this instance has fail together.
    Everything,
    /// Our own side is at fault: how.
    OwnSide(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Together(failing, all) => {
                write!(f, "{failing} of {all} backends fail at once, so the fault may be ours")
            }
            Self::Everything => {
                f.write_str("all backends of all services fail at once, so the fault may be ours")
            }
            Self::OwnSide(fault) => f.write_str(fault),
        }
    }
}

/// What became of a hold in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It began.
    Began(Why),
    /// It is over.
    Ended,
    /// One backend is no longer held: clients' packets say that nobody serves there.
    GaveUp(Identity),
}

/// What is remembered of one service's backends.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    members: BTreeMap<Identity, Member>,
    hold: Option<Why>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    /// Never seen well.
    New,
    /// Well when last seen.
    Good,
    /// Not well, and taken so: it never was, or clients too find nobody there.
    Ill,
    /// Not well, and taken so, since it was last seen well.
    Out,
    /// Not well, but kept.
    Held,
}

impl Pool {
    /// Why the last good set is held, if it is.
    pub const fn hold(&self) -> Option<&Why> {
        self.hold.as_ref()
    }

    /// Whether a backend that is not well is kept nevertheless.
    pub fn is_held(&self, identity: &Identity) -> bool {
        self.members.get(identity) == Some(&Member::Held)
    }

    /// Whether a backend was well when last seen.
    pub fn was_well(&self, identity: &Identity) -> bool {
        self.members.get(identity) == Some(&Member::Good)
    }

    /// Takes in what is seen of all the service's backends; tells what changed about the hold.
    ///
    /// `threshold` is the share of the pool, 0 to 1, above which failing together is our own
    /// fault; one backend is no pool. `everything_fails` says that all backends of all services
    /// do, `own_fault` what is wrong with our own side.
    pub fn step(
        &mut self,
        seen: &BTreeMap<Identity, Sight>,
        threshold: f64,
        everything_fails: bool,
        own_fault: Option<&str>,
    ) -> Vec<Change> {
        let failing = seen.values().filter(|sight| sight.counts && sight.fails()).count();
        let all = seen.values().filter(|sight| sight.counts).count();
        let together = failing >= 2 && failing as f64 > threshold * all as f64;
        let why = match own_fault {
            Some(fault) => Some(Why::OwnSide(fault.to_owned())),
            None if everything_fails => Some(Why::Everything),
            None => together.then_some(Why::Together(failing, all)),
        };
        let mut changes = Vec::new();
        self.members = seen
            .iter()
            .map(|(identity, sight)| {
                let was = self.members.get(identity).copied().unwrap_or(Member::New);
                let gives_up = was == Member::Held && sight.is_useless() && own_fault.is_none();
                let is = match (sight.health, was) {
                    (State::Healthy, _) => Member::Good,
                    // Nobody knows just now: its neighbour is being asked for.
                    (State::Unknown, was) => was,
                    (State::Unhealthy | State::Unreachable, Member::New | Member::Ill) => {
                        Member::Ill
                    }
                    (State::Unhealthy | State::Unreachable, _) if gives_up => Member::Ill,
                    (State::Unhealthy | State::Unreachable, Member::Good | Member::Held) => {
                        if why.is_some() { Member::Held } else { Member::Out }
                    }
                    (State::Unhealthy | State::Unreachable, Member::Out) => {
                        let is_late = why.is_some() && sight.fell_now && !sight.is_useless();
                        if is_late { Member::Held } else { Member::Out }
                    }
                };
                if gives_up && why.is_some() {
                    changes.push(Change::GaveUp(*identity));
                }
                (*identity, is)
            })
            .collect();
        let holds = self.members.values().any(|member| *member == Member::Held);
        let hold = why.filter(|_| holds);
        match (&self.hold, &hold) {
            (None, Some(why)) => changes.push(Change::Began(why.clone())),
            (Some(_), None) => changes.push(Change::Ended),
            (None, None) | (Some(_), Some(_)) => {}
        }
        self.hold = hold;
        changes
    }
}

/// Our own side: at fault, and for a while after it, until the probes have had the time to see
/// the pools well again.
#[derive(Clone, Debug, Default)]
pub struct OwnSide {
    last: Option<(Instant, String)>,
}

impl OwnSide {
    /// Takes in what is wrong now, if anything is; tells what the pools are to be judged by.
    /// `grace` is how long the probes need to see a backend well.
    pub fn step(&mut self, fault: Option<String>, grace: Duration, now: Instant) -> Option<&str> {
        if let Some(fault) = fault {
            self.last = Some((now, fault));
        }
        let is_over = |(since, _): &(Instant, String)| now.duration_since(*since) > grace;
        if self.last.as_ref().is_some_and(is_over) {
            self.last = None;
        }
        self.last.as_ref().map(|(_, fault)| &**fault)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HALF: f64 = 0.5;

    fn identity(number: u16) -> Identity {
        let backend = ([10, 0, 0, 1], number).into();
        ("203.0.113.10:80".parse().expect("a VIP"), backend)
    }

    fn sight(health: State) -> Sight {
        let failing = matches!(health, State::Unhealthy | State::Unreachable);
        Sight { health, failing, fell_now: false, unanswered: false, counts: true }
    }

    fn seen(sights: &[Sight]) -> BTreeMap<Identity, Sight> {
        (1..).map(identity).zip(sights.iter().copied()).collect()
    }

    fn good(backends: usize) -> Pool {
        let mut pool = Pool::default();
        let all = seen(&vec![sight(State::Healthy); backends]);
        assert_eq!(pool.step(&all, HALF, false, None), []);
        pool
    }

    fn held(pool: &Pool, backends: u16) -> Vec<u16> {
        (1..=backends).filter(|number| pool.is_held(&identity(*number))).collect()
    }

    #[test]
    fn half_of_a_pool_may_fall_but_not_more() {
        let (up, down) = (sight(State::Healthy), sight(State::Unreachable));
        let mut pool = good(4);
        assert_eq!(pool.step(&seen(&[down, up, up, up]), HALF, false, None), []);
        assert_eq!(pool.step(&seen(&[down, down, up, up]), HALF, false, None), []);
        assert_eq!(held(&pool, 4), [0; 0]);
        // The third is one too many; the first two were out before.
        let began = pool.step(&seen(&[down, down, down, up]), HALF, false, None);
        assert_eq!(began, [Change::Began(Why::Together(3, 4))]);
        assert_eq!(held(&pool, 4), [3]);
        let ended = pool.step(&seen(&[down, up, down, up]), HALF, false, None);
        assert_eq!((ended, held(&pool, 4)), (vec![Change::Ended], vec![]));
    }

    #[test]
    fn who_falls_first_is_held_because_the_others_are_failing_too() {
        let failing = Sight { failing: true, ..sight(State::Healthy) };
        let mut pool = good(3);
        let first = seen(&[sight(State::Unhealthy), failing, sight(State::Healthy)]);
        assert_eq!(pool.step(&first, HALF, false, None), [Change::Began(Why::Together(2, 3))]);
        assert_eq!(held(&pool, 3), [1]);
    }

    #[test]
    fn who_fell_before_the_others_were_asked_is_held_with_them() {
        let (up, down) = (sight(State::Healthy), sight(State::Unhealthy));
        let now = Sight { fell_now: true, ..down };
        for (first, expected) in [(now, vec![1, 2]), (down, vec![2])] {
            let mut pool = good(3);
            assert_eq!(pool.step(&seen(&[now, up, up]), HALF, false, None), []);
            assert_eq!(held(&pool, 3), [0; 0]);
            pool.step(&seen(&[first, now, up]), HALF, false, None);
            assert_eq!(held(&pool, 3), expected);
            // And stays so.
            pool.step(&seen(&[down, down, up]), HALF, false, None);
            assert_eq!(held(&pool, 3), expected);
        }
    }

    #[test]
    fn one_backend_is_no_pool_but_our_own_fault_holds_it() {
        let down = seen(&[sight(State::Unreachable)]);
        assert_eq!(good(1).step(&down, HALF, false, None), []);
        let mut pool = good(1);
        let fault = "eth0 has no carrier";
        assert_eq!(
            pool.step(&down, HALF, false, Some(fault)),
            [Change::Began(Why::OwnSide(fault.to_owned()))]
        );
        assert!(pool.is_held(&identity(1)));
        assert_eq!(pool.step(&down, HALF, false, None), [Change::Ended]);
        assert!(!pool.is_held(&identity(1)));
    }

    #[test]
    fn what_was_never_well_is_not_held() {
        let mut pool = Pool::default();
        let down = seen(&[sight(State::Unreachable); 3]);
        assert_eq!(pool.step(&down, HALF, false, None), []);
        assert_eq!(held(&pool, 3), [0; 0]);
    }

    #[test]
    fn clients_packets_end_the_hold_of_who_serves_nobody() {
        let dead = Sight { unanswered: true, ..sight(State::Unreachable) };
        let refusing = Sight { unanswered: true, ..sight(State::Unhealthy) };
        let (silent, wrong) = (sight(State::Unreachable), sight(State::Unhealthy));
        let mut pool = good(3);
        pool.step(&seen(&[silent, wrong, wrong]), HALF, false, None);
        assert_eq!(held(&pool, 3), [1, 2, 3]);
        let gave_up = pool.step(&seen(&[dead, refusing, wrong]), HALF, false, None);
        assert_eq!(gave_up, [1, 2].map(|number| Change::GaveUp(identity(number))));
        assert_eq!(held(&pool, 3), [3]);
        // Without our link no SYN is answered by anybody.
        let mut pool = good(3);
        pool.step(&seen(&[dead; 3]), HALF, false, Some("eth0 has no carrier"));
        assert_eq!(held(&pool, 3), [1, 2, 3]);
        pool.step(&seen(&[dead; 3]), HALF, false, Some("eth0 has no carrier"));
        assert_eq!(held(&pool, 3), [1, 2, 3]);
    }

    #[test]
    fn who_takes_no_new_flows_is_not_counted() {
        let out = Sight { counts: false, ..sight(State::Unhealthy) };
        let mut pool = good(4);
        let up = sight(State::Healthy);
        assert_eq!(pool.step(&seen(&[out, out, out, up]), HALF, false, None), []);
    }

    #[test]
    fn our_fault_counts_for_a_while_after_it_is_gone() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut own = OwnSide::default();
        assert_eq!(own.step(None, 5 * second, start), None);
        assert_eq!(own.step(Some("no carrier".into()), 5 * second, start), Some("no carrier"));
        assert_eq!(own.step(None, 5 * second, start + 5 * second), Some("no carrier"));
        assert_eq!(own.step(None, 5 * second, start + 6 * second), None);
    }

    fn any_sight() -> impl Strategy<Value = Sight> {
        let health = prop_oneof![
            Just(State::Unknown),
            Just(State::Healthy),
            Just(State::Unhealthy),
            Just(State::Unreachable)
        ];
        let bools = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        (health, bools).prop_map(|(health, (failing, fell_now, unanswered, counts))| Sight {
            health,
            failing,
            fell_now,
            unanswered,
            counts,
        })
    }

    proptest! {
        /// Whoever is seen well is never held, and nobody is held without a reason.
        #[test]
        fn only_the_ill_are_held_and_only_with_a_reason(
            steps in prop::collection::vec(prop::collection::vec(any_sight(), 1..6), 1..20),
            threshold in 0.0..1.0f64,
        ) {
            let mut pool = Pool::default();
            for sights in steps {
                let seen = seen(&sights);
                pool.step(&seen, threshold, false, None);
                for (identity, sight) in &seen {
                    if pool.is_held(identity) && sight.health != State::Unknown {
                        prop_assert!(sight.is_ill());
                        prop_assert!(pool.hold().is_some());
                    }
                }
            }
        }
    }
}
