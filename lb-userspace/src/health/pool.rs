//! "It is me": when so much of a pool fails at once that the fault is more likely ours, the last
//! good set is held.
//!
//! A backend that falls alone is taken out. But when more than `panic_threshold` of a service's
//! backends fall within one round of probes, or all that this instance has do, or our own side is
//! at fault, then what fails is rather the checker than the checked: those that were good stay in,
//! until
//!
//! - enough of them are seen well again: then the others go, or
//! - clients' own packets say otherwise: a held backend that is seen ill, and completes no
//!   handshake though SYNs come in, be it silent or refusing them, is of no use to new flows,
//!   whatever the others are.
//!
//! With the first that falls, those are counted whose last probe failed: they would fall a moment
//! later, and by then the first one's flows would have been reset. It may fall before the others
//! are asked at all, for who has failed once is asked again sooner: who was taken out within one
//! round of probes before so many fall is held with them. Who has been out for longer says nothing
//! about us, and one host that dies says nothing either, however many services it has.

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
    /// Its last probe failed, though perhaps not often enough yet, or there is no way to it.
    pub failing: bool,
    /// It is failing, and was not taken out longer than one round of probes ago.
    pub falling: bool,
    /// Clients' SYNs go to it, and none is answered.
    pub unanswered: bool,
    /// The operator lets it take new flows: only such are counted as the pool.
    pub counts: bool,
}

impl Sight {
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
    /// `threshold` is the share of the pool, 0 to 1, above which falling together is our own
    /// fault: 1 means never. `everything_falls` says that all backends of all services do,
    /// `own_fault` what is wrong with our own side.
    pub fn step(
        &mut self,
        seen: &BTreeMap<Identity, Sight>,
        threshold: f64,
        everything_falls: bool,
        own_fault: Option<&str>,
    ) -> Vec<Change> {
        let falling = seen.values().filter(|sight| sight.counts && sight.falling).count();
        let all = seen.values().filter(|sight| sight.counts).count();
        let together = falling as f64 > threshold * all as f64 && are_several_hosts(seen);
        let why = match own_fault {
            Some(fault) => Some(Why::OwnSide(fault.to_owned())),
            None if together => Some(Why::Together(falling, all)),
            // Who would see all of a pool fall and take it so means it.
            None => (everything_falls && threshold < 1.0).then_some(Why::Everything),
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
                        let is_late = why.is_some() && sight.falling && !sight.is_useless();
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

/// Whether those that fall are on two hosts at least.
pub fn are_several_hosts<'s>(seen: impl IntoIterator<Item = (&'s Identity, &'s Sight)>) -> bool {
    let falling = seen.into_iter().filter(|(_, sight)| sight.counts && sight.falling);
    let mut hosts = falling.map(|((_, backend), _)| backend.ip());
    hosts.next().is_some_and(|first| hosts.any(|host| host != first))
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
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    const HALF: f64 = 0.5;

    fn identity(number: u16) -> Identity {
        let [_, last] = number.to_be_bytes();
        ("203.0.113.10:80".parse().expect("a VIP"), ([10, 0, 0, last], 80).into())
    }

    fn sight(health: State) -> Sight {
        let failing = matches!(health, State::Unhealthy | State::Unreachable);
        Sight { health, failing, falling: failing, unanswered: false, counts: true }
    }

    /// Taken out longer than a round of probes ago.
    fn out(health: State) -> Sight {
        Sight { falling: false, ..sight(health) }
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
        // The third is one too many.
        let began = pool.step(&seen(&[down, down, down, up]), HALF, false, None);
        assert_eq!(began, [Change::Began(Why::Together(3, 4))]);
        assert_eq!(held(&pool, 4), [1, 2, 3]);
        let ended = pool.step(&seen(&[down, up, down, up]), HALF, false, None);
        assert_eq!((ended, held(&pool, 4)), (vec![Change::Ended], vec![]));
    }

    #[test]
    fn who_has_been_out_for_long_does_not_hold_the_next_that_falls() {
        let (up, down) = (sight(State::Healthy), sight(State::Unreachable));
        let out = out(State::Unreachable);
        let mut pool = good(3);
        assert_eq!(pool.step(&seen(&[down, up, up]), HALF, false, None), []);
        assert_eq!(pool.step(&seen(&[out, down, up]), HALF, false, None), []);
        assert_eq!(pool.step(&seen(&[out, out, down]), HALF, false, None), []);
        assert_eq!(held(&pool, 3), [0; 0]);
    }

    #[test]
    fn one_host_that_dies_with_all_its_ports_is_no_fault_of_ours() {
        let vip = "203.0.113.10:80".parse().expect("a VIP");
        let on = |port| (vip, SocketAddr::from(([10, 0, 0, 1], port)));
        let both = |sight| BTreeMap::from([8081, 8082].map(|port| (on(port), sight)));
        let mut pool = Pool::default();
        pool.step(&both(sight(State::Healthy)), HALF, false, None);
        assert_eq!(pool.step(&both(sight(State::Unreachable)), HALF, false, None), []);
    }

    #[test]
    fn a_threshold_of_one_holds_nobody_but_for_a_fault_that_is_known_to_be_ours() {
        let down = seen(&[sight(State::Unreachable); 3]);
        let mut pool = good(3);
        assert_eq!(pool.step(&down, 1.0, true, None), []);
        let mut pool = good(3);
        pool.step(&down, 1.0, true, Some("eth0 has no carrier"));
        assert_eq!(held(&pool, 3), [1, 2, 3]);
    }

    #[test]
    fn who_falls_first_is_held_because_the_others_are_failing_too() {
        let failing = Sight { failing: true, falling: true, ..sight(State::Healthy) };
        let mut pool = good(3);
        let first = seen(&[sight(State::Unhealthy), failing, sight(State::Healthy)]);
        assert_eq!(pool.step(&first, HALF, false, None), [Change::Began(Why::Together(2, 3))]);
        assert_eq!(held(&pool, 3), [1]);
    }

    #[test]
    fn who_fell_before_the_others_were_asked_is_held_with_them() {
        let (up, down) = (sight(State::Healthy), sight(State::Unhealthy));
        let mut pool = good(3);
        assert_eq!(pool.step(&seen(&[down, up, up]), HALF, false, None), []);
        assert_eq!(held(&pool, 3), [0; 0]);
        pool.step(&seen(&[down, down, up]), HALF, false, None);
        assert_eq!(held(&pool, 3), [1, 2]);
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
        (health, bools).prop_map(|(health, (failing, falling, unanswered, counts))| Sight {
            health,
            failing,
            falling,
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
