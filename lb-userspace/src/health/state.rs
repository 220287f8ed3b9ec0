//! What a backend is, by its probes: one pure state machine.
//!
//! A backend that nothing is known of is well at its first success: a daemon that has just
//! started must become useful soon. After that, states change by streaks: `rise` successes in a
//! row, `fall` failures in a row. It is unreachable only if all of the last `fall` probes found
//! no TCP; a single answer, good or bad, ends that at once, for it proves that flows need not be
//! reset.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Class, Explanation, Failure};
use crate::drain::Moment;

/// What a backend is, as far as is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing has been seen, or not enough.
    Unknown,
    /// It answers as it should.
    Healthy,
    /// It answers, but not, or not often enough yet, as it should.
    Unhealthy,
    /// It does not answer at all.
    Unreachable,
}

/// One probe and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// When it ended.
    pub at: Moment,
    /// How long it took.
    pub duration: Duration,
    /// Whether it was well.
    pub outcome: Result<(), Failure>,
}

/// Results in a row that decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes that make a backend healthy; at least 1.
    pub rise: u32,
    /// Failures that make it ill; at least 1.
    pub fall: u32,
}

/// What outlives the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What it was.
    pub state: State,
    /// Since when.
    pub since: Moment,
}

/// Probes of one backend since this daemon began to watch it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// That were well.
    pub well: u64,
    /// That failed.
    pub failed: u64,
    /// That could not be made.
    pub not_made: u64,
}

/// All that is seen of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it is.
    pub state: State,
    /// Since when.
    pub since: Moment,
    /// Whether the state is from before this daemon, and no probe has said anything yet.
    pub stale: bool,
    /// Successes in a row.
    pub successes: u32,
    /// Failures in a row.
    pub failures: u32,
    /// How many of the last ones found no TCP; at most `failures`.
    pub unreachable: u32,
    /// The last probe, also one that could not be made.
    pub last: Option<Probe>,
    /// All probes.
    pub totals: Totals,
    /// Why probes by way of the VIP failed when that was last looked into; none since it was well.
    pub explanation: Option<Explanation>,
}

impl State {
    /// As commands and metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Unreachable => "unreachable",
        }
    }
}

impl Seen {
    /// Nothing yet.
    pub fn unknown(now: Moment) -> Self {
        Self::restored(Kept { state: State::Unknown, since: now })
    }

    /// What an earlier daemon saw.
    pub fn restored(kept: Kept) -> Self {
        Self {
            state: kept.state,
            since: kept.since,
            stale: kept.state != State::Unknown,
            successes: 0,
            failures: 0,
            unreachable: 0,
            last: None,
            totals: Totals::default(),
            explanation: None,
        }
    }

    /// What a later daemon needs.
    pub fn kept(&self) -> Kept {
        Kept { state: self.state, since: self.since }
    }

    /// After one more probe.
    #[must_use]
    pub fn next(self, probe: Probe, thresholds: Thresholds) -> Self {
        let class = probe.outcome.as_ref().err().map(Failure::class);
        let mut totals = self.totals;
        match class {
            None => totals.well += 1,
            Some(Class::Unhealthy | Class::Unreachable) => totals.failed += 1,
            Some(Class::Nothing) => totals.not_made += 1,
        }
        let (successes, failures, unreachable) = match class {
            Some(Class::Nothing) => return Self { last: Some(probe), totals, ..self },
            None => (self.successes.saturating_add(1), 0, 0),
            Some(Class::Unhealthy) => (0, self.failures.saturating_add(1), 0),
            Some(Class::Unreachable) => {
                (0, self.failures.saturating_add(1), self.unreachable.saturating_add(1))
            }
        };
        let risen = successes >= thresholds.rise;
        let fallen = failures >= thresholds.fall;
        let lost = unreachable >= thresholds.fall;
        let answered = unreachable == 0;
        let state = match self.state {
            State::Unknown if successes > 0 => State::Healthy,
            State::Unhealthy | State::Unreachable if risen => State::Healthy,
            State::Unknown | State::Healthy | State::Unhealthy if lost => State::Unreachable,
            State::Unknown | State::Healthy if fallen => State::Unhealthy,
            State::Unreachable if answered => State::Unhealthy,
            State::Unknown | State::Healthy | State::Unhealthy | State::Unreachable => self.state,
        };
        Self {
            state,
            since: if state == self.state { self.since } else { probe.at },
            stale: false,
            successes,
            failures,
            unreachable,
            last: Some(probe),
            totals,
            explanation: self.explanation.filter(|_| failures > 0),
        }
    }

    /// Whether a streak of failures has begun that some more would make another state: then the
    /// next probe is worth being made sooner.
    pub fn is_falling(&self, thresholds: Thresholds) -> bool {
        match self.state {
            State::Unknown | State::Healthy => self.failures > 0,
            State::Unhealthy => (1..thresholds.fall).contains(&self.unreachable),
            State::Unreachable => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOME: Thresholds = Thresholds { rise: 2, fall: 3 };

    /// `+` a success, `-` a wrong answer, `.` no answer, `!` a probe that could not be made.
    fn probe(letter: char, at: u64) -> Probe {
        let outcome = match letter {
            '+' => Ok(()),
            '-' => Err(Failure::Refused),
            '.' => Err(Failure::NoAnswer(Duration::from_secs(1))),
            _ => Err(Failure::NotMade("no file descriptor".to_owned())),
        };
        Probe { at: Moment(at), duration: Duration::from_millis(1), outcome }
    }

    fn after(letters: &str, from: Seen, thresholds: Thresholds) -> Seen {
        let probes = letters.chars().zip(1..).map(|(letter, at)| probe(letter, at));
        probes.fold(from, |seen, probe| seen.next(probe, thresholds))
    }

    #[test]
    fn streaks_decide() {
        use State::{Healthy, Unhealthy, Unknown, Unreachable};
        let cases = [
            ("", Unknown),
            ("+", Healthy),
            ("--", Unknown),
            ("---", Unhealthy),
            ("..", Unknown),
            ("...", Unreachable),
            (".-.", Unhealthy),
            ("-+", Healthy),
            ("+--", Healthy),
            ("+---", Unhealthy),
            ("+..-", Unhealthy),
            ("+...", Unreachable),
            ("+--+--", Healthy),
            ("+---+", Unhealthy),
            ("+---+-+", Unhealthy),
            ("+---++", Healthy),
            ("+---..", Unhealthy),
            ("+---...", Unreachable),
            ("+-..", Unhealthy),
            ("+-...", Unreachable),
            ("+...-", Unhealthy),
            ("+...+", Unhealthy),
            ("+...++", Healthy),
            ("+...+..", Unhealthy),
            ("+..!.", Unreachable),
            ("!!!!", Unknown),
            ("+!!!!", Healthy),
        ];
        for (letters, expected) in cases {
            let seen = after(letters, Seen::unknown(Moment(0)), SOME);
            assert_eq!(seen.state, expected, "{letters:?}");
        }
    }

    #[test]
    fn what_was_seen_before_holds_as_stale_until_a_probe_says_something() {
        let kept = Kept { state: State::Unhealthy, since: Moment(7) };
        let seen = Seen::restored(kept);
        assert!(seen.stale);
        let seen = after("!", seen, SOME);
        assert!(seen.stale && seen.last.is_some(), "{seen:?}");
        let seen = after("+", seen, SOME);
        assert!(!seen.stale);
        assert_eq!(seen.kept(), kept, "one success of two");
        assert_eq!(after("+", seen, SOME).state, State::Healthy);
        assert!(!Seen::unknown(Moment(0)).stale, "nothing is not old");
    }

    #[test]
    fn only_a_streak_that_is_not_decided_is_worth_a_sooner_probe() {
        let cases = [
            ("", false),
            ("-", true),
            ("+", false),
            ("+-", true),
            ("+--", true),
            ("+---", false),
            ("+---.", true),
            ("+---..", true),
            ("+---...", false),
            ("+---+", false),
        ];
        for (letters, expected) in cases {
            let seen = after(letters, Seen::unknown(Moment(0)), SOME);
            assert_eq!(seen.is_falling(SOME), expected, "{letters:?}");
        }
    }

    #[test]
    fn states_are_named_as_they_are_kept() {
        for state in [State::Unknown, State::Healthy, State::Unhealthy, State::Unreachable] {
            assert_eq!(serde_json::json!(state), state.name());
        }
    }

    proptest! {
        /// Against the words of the module, read off the whole history.
        #[test]
        fn a_state_is_what_its_history_says(
            letters in "[+.!-]{0,60}", rise in 1_u32..5, fall in 1_u32..5,
        ) {
            let thresholds = Thresholds { rise, fall };
            let mut seen = Seen::unknown(Moment(0));
            let mut made = String::new();
            for (letter, at) in letters.chars().zip(1..) {
                let before = seen.clone();
                seen = seen.next(probe(letter, at), thresholds);
                if letter == '!' {
                    prop_assert_eq!(seen.totals.not_made, before.totals.not_made + 1);
                    let same = Seen { last: before.last.clone(), totals: before.totals, ..seen.clone() };
                    prop_assert_eq!(same, before);
                    continue;
                }
                made.push(letter);
                let ends = |count: u32, letters: &str| {
                    let last: Vec<char> = made.chars().rev().take(count as usize).collect();
                    last.len() == count as usize && last.iter().all(|l| letters.contains(*l))
                };
                let state = seen.state;
                if ends(rise, "+") { prop_assert_eq!(state, State::Healthy); }
                if ends(fall, ".") { prop_assert_eq!(state, State::Unreachable); }
                if ends(fall, ".-") { prop_assert_ne!(state, State::Healthy); }
                if ends(fall, ".-") { prop_assert_ne!(state, State::Unknown); }
                if state == State::Unreachable { prop_assert!(ends(fall, ".")); }
                if state == State::Unknown { prop_assert!(!made.contains('+')); }
                if state != before.state {
                    match state {
                        State::Healthy => prop_assert!(
                            ends(rise, "+") || before.state == State::Unknown && ends(1, "+")
                        ),
                        State::Unhealthy => prop_assert!(
                            ends(fall, ".-") || before.state == State::Unreachable && ends(1, "+-")
                        ),
                        State::Unreachable => prop_assert!(ends(fall, ".")),
                        State::Unknown => prop_assert!(false, "nothing makes it unknown"),
                    }
                    prop_assert_eq!(seen.since, Moment(at));
                } else {
                    prop_assert_eq!(seen.since, before.since);
                }
                prop_assert!(!seen.stale);
            }
            let Totals { well, failed, not_made } = seen.totals;
            let count = |wanted: &str| letters.chars().filter(|l| wanted.contains(*l)).count() as u64;
            prop_assert_eq!([well, failed, not_made], [count("+"), count("-."), count("!")]);
        }

        /// A reload may change the thresholds in the middle of a streak.
        #[test]
        fn an_ill_backend_recovers_under_any_thresholds(
            letters in "[+.!-]{0,20}", rise in 1_u32..5, fall in 1_u32..5, other in 1_u32..5,
        ) {
            let first = Thresholds { rise, fall };
            let second = Thresholds { rise: other, fall: other };
            let seen = after(&letters, Seen::unknown(Moment(0)), first);
            let well = after(&"+".repeat(other as usize), seen.clone(), second);
            prop_assert_eq!(well.state, State::Healthy);
            let lost = after(&".".repeat(other as usize), seen, second);
            prop_assert_eq!(lost.state, State::Unreachable);
        }
    }
}
