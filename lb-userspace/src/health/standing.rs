//! What follows from all that is seen of a backend: whether it takes new flows, with which weight,
//! and what becomes of the flows it has.

use std::{collections::HashMap, fmt};

use lb_common::service::BackendState;

use super::State;
use crate::{
    choice::Condition,
    model::{Backend, Identity, Service},
};

/// What is made of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// By its probes and its next hop.
    pub health: State,
    /// What is wrong with it, in words; also of one that is only failing so far.
    pub fault: Option<String>,
    /// Why it does not answer by way of the VIP, and what to do about it, if that was found out.
    pub cause: Option<String>,
    /// Why it takes new flows all the same, or does not.
    pub because: Because,
    /// What becomes of the flows it has.
    pub flows: BackendState,
    /// Its weight in the slots, if it takes new flows.
    pub weight: u16,
}

/// Why a backend is thought fit for new flows, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// It is seen well.
    Healthy,
    /// Nobody has looked yet, and nothing speaks against it: the daemon has just started.
    Presumed,
    /// It is not well, but so many fail at once that the fault may be ours.
    Held,
    /// Its health.
    Ill,
    /// It completes far fewer handshakes than its pool (`outlier = "eject"`).
    Outlier,
}

impl Because {
    /// Whether it may have new flows.
    pub const fn is_fit(self) -> bool {
        match self {
            Self::Healthy | Self::Presumed | Self::Held => true,
            Self::Ill | Self::Outlier => false,
        }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Presumed => "not checked yet",
            Self::Held => "held: the fault may be ours",
            Self::Ill => "not healthy",
            Self::Outlier => "ejected: it completes far fewer handshakes than its pool",
        })
    }
}

/// What one backend is judged by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grounds {
    /// Nobody has looked at it since the daemon started, or it was well before its neighbour had
    /// to be asked for anew.
    pub is_presumed: bool,
    /// Its pool is held, and it was well before.
    pub is_held: bool,
    /// Its traffic goes far worse than its pool's.
    pub is_outlier: bool,
    /// Clients' SYNs go to it, and none is answered: their second try goes elsewhere.
    pub is_suspect: bool,
    /// What is seen of it was seen by a daemon before this one, perhaps long ago: reason enough to
    /// give it no new flows, but not to reset those that it has.
    pub is_stale: bool,
}

impl Standing {
    /// Judges a backend; `weight` is what it has at this stage of its slow start.
    pub fn new(
        service: &Service,
        health: State,
        fault: Option<String>,
        grounds: Grounds,
        weight: u16,
    ) -> Self {
        let because = match health {
            State::Healthy if grounds.is_outlier => Because::Outlier,
            State::Healthy => Because::Healthy,
            _ if grounds.is_held => Because::Held,
            State::Unknown if grounds.is_presumed => Because::Presumed,
            State::Unknown | State::Unhealthy | State::Unreachable => Because::Ill,
        };
        let is_lost = health == State::Unreachable && because == Because::Ill && !grounds.is_stale;
        let flows = if is_lost && service.reset_unreachable {
            BackendState::Reset
        } else if grounds.is_suspect {
            BackendState::Suspect
        } else {
            BackendState::Forward
        };
        Self { health, fault, cause: None, because, flows, weight }
    }

    /// What is thought of it when new flows are given out.
    pub fn condition(&self) -> Condition {
        if self.because.is_fit() {
            Condition::Well
        } else if self.health == State::Unreachable {
            Condition::Gone
        } else {
            Condition::Ill
        }
    }
}

/// What is made of every backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standings(HashMap<Identity, Standing>);

impl Standings {
    /// Of one backend; `None`: it was not there when the others were judged.
    pub fn of(&self, service: &Service, backend: &Backend) -> Option<&Standing> {
        self.0.get(&service.identity(backend))
    }

    /// What is thought of one backend when new flows are given out.
    pub fn condition(&self, service: &Service, backend: &Backend) -> Condition {
        self.of(service, backend).map_or(Condition::Ill, Standing::condition)
    }
}

impl FromIterator<(Identity, Standing)> for Standings {
    fn from_iter<I: IntoIterator<Item = (Identity, Standing)>>(standings: I) -> Self {
        Self(standings.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample;

    #[test]
    fn flows_are_reset_by_what_is_seen_now_alone() {
        let service = sample::service("web", 2);
        let flows = |health, grounds| Standing::new(&service, health, None, grounds, 100).flows;
        let now = Grounds::default();
        let stale = Grounds { is_stale: true, ..now };
        let held = Grounds { is_held: true, ..now };
        let suspect = Grounds { is_suspect: true, ..now };
        let cases = [
            (State::Unreachable, now, BackendState::Reset),
            (State::Unreachable, suspect, BackendState::Reset),
            (State::Unreachable, stale, BackendState::Forward),
            (State::Unreachable, held, BackendState::Forward),
            (State::Unhealthy, now, BackendState::Forward),
            (State::Healthy, suspect, BackendState::Suspect),
        ];
        for (health, grounds, expected) in cases {
            assert_eq!(flows(health, grounds), expected, "{health:?} {grounds:?}");
        }
        let keeps = Service { reset_unreachable: false, ..service.clone() };
        let kept = Standing::new(&keeps, State::Unreachable, None, now, 100);
        assert_eq!(kept.flows, BackendState::Forward);
        let remembered = Standing::new(&service, State::Unreachable, None, stale, 100);
        assert!(!remembered.because.is_fit(), "but it gets no new ones");
    }
}
