//! What an operator says of a backend, and how far a drain has come: one state machine.
//!
//! It knows nothing of packets: the daemon tells it what a pass over the flow table counted, and
//! writes into the maps what follows.

use std::{fmt, time::Duration};

use lb_common::service::BackendState;
use serde::{Deserialize, Serialize};

/// A moment: milliseconds since 1970. Of the wall clock, because a drain outlives the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since_1970.map_or(0, |time| time.as_millis() as u64))
    }

    /// So much later.
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time.as_millis() as u64))
    }

    /// From then to now; zero if the clock was set back.
    pub fn until(self, now: Self) -> Duration {
        Duration::from_millis(now.0.saturating_sub(self.0))
    }
}

/// RFC 3339, UTC, to the second; the last moment that can be written so, if that is before.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The end of the year 9999; what was kept may say more.
        const LAST: u64 = 253_402_300_799_999;
        let time = std::time::UNIX_EPOCH + Duration::from_millis(self.0.min(LAST));
        humantime::format_rfc3339_seconds(time).fmt(f)
    }
}

/// What the operator wants of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Admin {
    /// It takes its share of new flows.
    #[default]
    Enabled,
    /// It keeps its flows and takes no new ones.
    Draining(Drain),
    /// As before, and none is left.
    Drained(Drained),
    /// No flows: those it has are reset.
    Disabled,
}

/// A drain that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// When it began.
    pub since: Moment,
    /// When what is left will be reset.
    pub deadline: Moment,
    /// What was there when new flows had been stopped; `None`: not counted yet.
    pub start: Option<Start>,
    /// Flows left at the last count.
    pub flows_left: u32,
    /// Flows that chose the backend since it began.
    pub new_flows: u64,
}

/// The first count of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Flows that there were.
    pub flows: u32,
    /// How many had chosen the backend, in all its life.
    pub new_flows_total: u64,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// When it began.
    pub since: Moment,
    /// When it had ended.
    pub until: Moment,
    /// Flows at the start.
    pub flows_at_start: u32,
    /// Flows that the deadline cut.
    pub flows_cut: u32,
    /// Flows that chose the backend meanwhile.
    pub new_flows: u64,
}

/// What happens to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The operator drains it.
    Drain {
        /// How long flows may take to end.
        deadline: Duration,
        /// Whether a drain that goes on gets this deadline too, counted from now.
        again: bool,
    },
    /// The operator lets it take new flows.
    Enable,
    /// The operator lets it have no flows.
    Disable,
    /// The flow table was counted, after the last change of its slots.
    Counted {
        /// Its flows.
        flows: u32,
        /// How many have chosen it, in all its life.
        new_flows_total: u64,
    },
}

impl Admin {
    /// What an event, now, makes of it.
    pub fn next(self, event: Event, now: Moment) -> Self {
        match (self, event) {
            (Self::Draining(drain), Event::Drain { deadline, again: true }) => {
                Self::Draining(Drain { deadline: now.after(deadline), ..drain })
            }
            (Self::Enabled, Event::Drain { deadline, .. }) => Self::Draining(Drain {
                since: now,
                deadline: now.after(deadline),
                start: None,
                flows_left: 0,
                new_flows: 0,
            }),
            // Asked for what is so; a disabled backend has no flows to wait for.
            (Self::Draining(_) | Self::Drained(_) | Self::Disabled, Event::Drain { .. }) => self,
            (
                Self::Enabled | Self::Draining(_) | Self::Drained(_) | Self::Disabled,
                Event::Enable,
            ) => Self::Enabled,
            (
                Self::Enabled | Self::Draining(_) | Self::Drained(_) | Self::Disabled,
                Event::Disable,
            ) => Self::Disabled,
            (Self::Draining(drain), Event::Counted { flows, new_flows_total }) => {
                drain.counted(flows, new_flows_total, now)
            }
            (Self::Enabled | Self::Drained(_) | Self::Disabled, Event::Counted { .. }) => self,
        }
    }

    /// What the kernel does with the flows it has.
    pub const fn backend_state(&self) -> BackendState {
        match self {
            Self::Enabled | Self::Draining(_) | Self::Drained(Drained { flows_cut: 0, .. }) => {
                BackendState::Forward
            }
            Self::Drained(_) | Self::Disabled => BackendState::Reset,
        }
    }

    /// Whether nothing more is to be waited for.
    pub const fn is_over(&self) -> bool {
        matches!(self, Self::Drained(_) | Self::Disabled)
    }

    /// The name used by JSON, metrics and CLI.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Draining(_) => "draining",
            Self::Drained(_) => "drained",
            Self::Disabled => "disabled",
        }
    }
}

impl Drain {
    fn counted(mut self, flows: u32, new_flows_total: u64, now: Moment) -> Admin {
        let start = *self.start.get_or_insert(Start { flows, new_flows_total });
        self.flows_left = flows;
        // The counters begin at zero again after a reboot.
        self.new_flows = new_flows_total.saturating_sub(start.new_flows_total);
        if flows > 0 && now < self.deadline {
            return Admin::Draining(self);
        }
        Admin::Drained(Drained {
            since: self.since,
            until: now,
            flows_at_start: start.flows,
            flows_cut: flows,
            new_flows: self.new_flows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_beyond_the_calendar_is_its_end() {
        assert_eq!(Moment(1_777_620_600_999).to_string(), "2026-05-01T07:30:00Z");
        // Found by fuzzing state.json: the daemon would have panicked over its own status.
        assert_eq!(Moment(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    const MINUTE: Duration = Duration::from_secs(60);
    const DRAIN: Event = Event::Drain { deadline: MINUTE, again: false };

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1000)
    }

    fn counted(flows: u32, new_flows_total: u64) -> Event {
        Event::Counted { flows, new_flows_total }
    }

    fn after(events: &[(u64, Event)]) -> Admin {
        events.iter().fold(Admin::Enabled, |admin, (second, event)| admin.next(*event, at(*second)))
    }

    #[test]
    fn a_drain_ends_when_the_last_flow_has_ended() {
        let draining = after(&[(0, DRAIN), (0, counted(3, 10)), (5, counted(1, 10))]);
        let Admin::Draining(drain) = draining else { panic!("{draining:?}") };
        assert_eq!((drain.flows_left, drain.start.map(|s| s.flows)), (1, Some(3)));
        assert_eq!(draining.backend_state(), BackendState::Forward);
        let drained = draining.next(counted(0, 10), at(9));
        let expected =
            Drained { since: at(0), until: at(9), flows_at_start: 3, flows_cut: 0, new_flows: 0 };
        assert_eq!(drained, Admin::Drained(expected));
        assert_eq!(drained.backend_state(), BackendState::Forward);
    }

    #[test]
    fn a_backend_without_flows_is_drained_at_the_first_count() {
        let drained = after(&[(0, DRAIN), (0, counted(0, 7))]);
        assert!(
            matches!(drained, Admin::Drained(Drained { flows_at_start: 0, .. })),
            "{drained:?}"
        );
    }

    #[test]
    fn the_deadline_cuts_what_is_left() {
        let before = after(&[(0, DRAIN), (0, counted(3, 10)), (59, counted(2, 10))]);
        assert!(matches!(before, Admin::Draining(_)), "{before:?}");
        let cut = before.next(counted(2, 11), at(60));
        let Admin::Drained(end) = cut else { panic!("{cut:?}") };
        assert_eq!((end.flows_at_start, end.flows_cut, end.new_flows), (3, 2, 1));
        assert_eq!(cut.backend_state(), BackendState::Reset);
    }

    #[test]
    fn a_deadline_of_zero_cuts_at_once() {
        let drain = Event::Drain { deadline: Duration::ZERO, again: false };
        let cut = after(&[(5, drain), (5, counted(4, 4))]);
        assert!(matches!(cut, Admin::Drained(Drained { flows_cut: 4, .. })), "{cut:?}");
    }

    #[test]
    fn every_command_does_the_same_twice() {
        let draining = after(&[(0, DRAIN), (0, counted(3, 10))]);
        assert_eq!(draining.next(DRAIN, at(30)), draining);
        let drained = draining.next(counted(0, 10), at(40));
        assert_eq!(drained.next(DRAIN, at(50)), drained);
        assert_eq!(drained.next(counted(2, 12), at(50)), drained);
        for state in [Admin::Enabled, draining, drained, Admin::Disabled] {
            assert_eq!(state.next(Event::Enable, at(50)), Admin::Enabled);
            assert_eq!(state.next(Event::Disable, at(50)), Admin::Disabled);
        }
        assert_eq!(Admin::Disabled.next(DRAIN, at(50)), Admin::Disabled);
        assert_eq!(Admin::Disabled.backend_state(), BackendState::Reset);
        assert_eq!(Admin::Enabled.next(counted(9, 9), at(1)), Admin::Enabled);
    }

    #[test]
    fn a_new_deadline_counts_from_now_and_keeps_what_was_counted() {
        let draining = after(&[(0, DRAIN), (0, counted(3, 10))]);
        let again = Event::Drain { deadline: Duration::from_secs(5), again: true };
        let Admin::Draining(drain) = draining.next(again, at(30)) else { panic!() };
        assert_eq!(drain.deadline, at(35));
        assert_eq!((drain.since, drain.start.map(|s| s.flows)), (at(0), Some(3)));
    }

    #[test]
    fn states_survive_their_file() {
        let draining = after(&[(0, DRAIN), (0, counted(3, 10))]);
        let drained = draining.next(counted(0, 10), at(9));
        for state in [Admin::Enabled, draining, drained, Admin::Disabled] {
            let json = serde_json::to_string(&state).expect("JSON");
            assert!(json.contains(state.name()), "{json}");
            assert_eq!(serde_json::from_str::<Admin>(&json).expect("a state"), state);
        }
    }
}
