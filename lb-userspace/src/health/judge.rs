//! Puts together what is seen of every backend: its next hop, its probes, its clients' packets.
//!
//! Nothing here looks or acts: who calls [`Judge::judge`] brings what was seen, and does what
//! follows from the [`Standings`].

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    Failure, Seen, State,
    pool::{Change, OwnSide, Pool, Sight, are_several_hosts},
    slow_start,
    standing::{Grounds, Standing, Standings},
};
use crate::{
    drain::Admin,
    model::{Backend, Desired, HealthCheck, Identity, Service, Vip},
    network::Snapshot,
};

/// What a backend's probes have come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// By the rule of its check.
    pub health: State,
    /// The last probe failed.
    pub failing: bool,
    /// All that is known is from a daemon before this one.
    pub stale: bool,
    /// Why the last probe failed, if it did, and the cause of that, if it is known.
    pub fault: Option<String>,
    /// The cause that was found last since it was well; the last probe may have failed otherwise.
    pub cause: Option<String>,
}

impl From<&Seen> for Probed {
    fn from(seen: &Seen) -> Self {
        let fault = |failure: &Failure| match seen.cause() {
            Some(cause) => format!("{failure}; {cause}"),
            None => failure.to_string(),
        };
        Self {
            health: seen.state,
            failing: seen.failures > 0,
            stale: seen.stale,
            fault: seen.last.as_ref().and_then(|probe| probe.outcome.as_ref().err()).map(fault),
            cause: seen.explanation.as_ref().map(|known| known.says.clone()),
        }
    }
}

/// What clients' packets say of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// SYNs go to it, and none is answered.
    pub is_suspect: bool,
    /// It completes far fewer handshakes than its pool, and is to be ejected.
    pub is_outlier: bool,
}

/// All that is seen, for one look.
#[derive(Clone, Copy)]
pub struct Evidence<'e> {
    /// What the operator wants.
    pub desired: &'e Desired,
    /// Where the backends are.
    pub next_hops: &'e Snapshot,
    /// What their probes have come to; who is not there has not been probed.
    pub probed: &'e HashMap<Identity, Probed>,
    /// What clients' packets say; who is not there is above suspicion.
    pub traffic: &'e HashMap<Identity, Traffic>,
}

/// Something that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The service's name.
    pub service: String,
    /// The backend's, if it is about one.
    pub backend: Option<String>,
    /// In words.
    pub text: String,
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub struct Judge {
    pools: BTreeMap<Vip, (Pool, OwnSide)>,
    /// Backends that were there at the first look, and of which nothing has been seen yet.
    presumed: HashSet<Identity>,
    /// Since when backends are ill.
    fallen: HashMap<Identity, Instant>,
    /// Since when backends have taken new flows, while their slow start lasts.
    ramps: HashMap<Identity, Instant>,
    standings: Standings,
    has_looked: bool,
}

impl Judge {
    /// What was made of every backend at the last look.
    pub const fn standings(&self) -> &Standings {
        &self.standings
    }

    /// Why a service's last good set is held, if it is.
    pub fn hold(&self, service: &Service) -> Option<String> {
        let (pool, _) = self.pools.get(&service.vip)?;
        pool.hold().map(ToString::to_string)
    }

    /// Looks at everything; tells what changed.
    pub fn judge(&mut self, evidence: Evidence<'_>, now: Instant) -> Vec<Note> {
        let mut notes = Vec::new();
        let mut seen: Vec<(&Service, Vec<View>)> =
            evidence.desired.services.iter().map(|s| (s, see(s, evidence))).collect();
        if !self.has_looked {
            let all = seen.iter().flat_map(|(_, backends)| backends);
            self.presumed = all.map(|seen| seen.identity).collect();
        }
        for (service, backends) in &mut seen {
            backends.iter_mut().for_each(|seen| self.date(service, seen, now));
        }
        let everything_falls = everything_falls(seen.iter().flat_map(|(_, backends)| backends));
        let vips: HashSet<Vip> = seen.iter().map(|(service, _)| service.vip).collect();
        self.pools.retain(|vip, _| vips.contains(vip));
        let mut standings = HashMap::new();
        for (service, backends) in &seen {
            self.hold_or_not(service, backends, everything_falls, now, &mut notes);
            for (backend, seen) in service.backends.iter().zip(backends) {
                let standing = self.stand(service, backend, seen, evidence, now);
                if self.has_looked {
                    notes.extend(self.note(service, backend, &standing));
                }
                standings.insert(seen.identity, standing);
            }
        }
        self.ramps.retain(|identity, _| standings.contains_key(identity));
        self.fallen.retain(|identity, _| standings.contains_key(identity));
        self.presumed.retain(|identity| standings.contains_key(identity));
        self.standings = standings.into_iter().collect();
        self.has_looked = true;
        notes
    }

    /// Tells whether a backend that fails was not taken out long ago.
    fn date(&mut self, service: &Service, seen: &mut View, now: Instant) {
        let identity = seen.identity;
        if matches!(seen.sight.health, State::Unhealthy | State::Unreachable) {
            let since = *self.fallen.entry(identity).or_insert(now);
            let is_held = self.pools.get(&service.vip).is_some_and(|(p, _)| p.is_held(&identity));
            seen.sight.falling = is_held || now.duration_since(since) <= round(service);
        } else {
            self.fallen.remove(&identity);
            seen.sight.falling = seen.sight.failing;
        }
    }

    fn hold_or_not(
        &mut self,
        service: &Service,
        backends: &[View],
        everything_falls: bool,
        now: Instant,
        notes: &mut Vec<Note>,
    ) {
        let (pool, own) = self.pools.entry(service.vip).or_default();
        let sights: BTreeMap<Identity, Sight> =
            backends.iter().map(|seen| (seen.identity, seen.sight)).collect();
        let fault = backends.iter().find_map(|seen| seen.own_fault.clone());
        let grace = grace(service);
        let own_fault = own.step(fault, grace, now);
        let name = |identity: &Identity| {
            let named = backends.iter().zip(&service.backends);
            named.into_iter().find(|(seen, _)| seen.identity == *identity).map(|(_, b)| &*b.name)
        };
        for change in pool.step(&sights, service.panic_threshold, everything_falls, own_fault) {
            let (backend, text) = match change {
                Change::Began(why) => {
                    (None, format!("{why}: backends that were well are kept as they are"))
                }
                Change::Ended => (None, "backends are taken for what they are again".to_owned()),
                Change::GaveUp(identity) => (
                    name(&identity).map(str::to_owned),
                    "neither probes nor clients are served there: given up".to_owned(),
                ),
            };
            notes.push(Note { service: service.name.clone(), backend, text });
        }
    }

    fn stand(
        &mut self,
        service: &Service,
        backend: &Backend,
        seen: &View,
        evidence: Evidence<'_>,
        now: Instant,
    ) -> Standing {
        let identity = seen.identity;
        if seen.sight.health != State::Unknown {
            self.presumed.remove(&identity);
        }
        let traffic = evidence.traffic.get(&identity).copied().unwrap_or_default();
        let pool = self.pools.get(&service.vip);
        let grounds = Grounds {
            is_presumed: seen.has_next_hop && self.presumed.contains(&identity)
                || pool.is_some_and(|(pool, _)| pool.was_well(&identity)),
            is_held: pool.is_some_and(|(pool, _)| pool.is_held(&identity)),
            is_outlier: traffic.is_outlier,
            is_suspect: traffic.is_suspect,
            is_stale: seen.is_stale,
        };
        let standing =
            Standing::new(service, seen.sight.health, seen.fault.clone(), grounds, backend.weight);
        let is_in = backend.admin == Admin::Enabled && standing.because.is_fit();
        let weight = self.ramped(service, backend, is_in, now);
        Standing { weight, cause: seen.cause.clone(), ..standing }
    }

    /// The weight at this stage of the slow start.
    fn ramped(&mut self, service: &Service, backend: &Backend, is_in: bool, now: Instant) -> u16 {
        let identity = service.identity(backend);
        let slow_start = service.slow_start;
        if !is_in {
            // From the whole of it, when it comes back.
            self.ramps.insert(identity, now);
            return backend.weight;
        }
        if !self.has_looked {
            return backend.weight;
        }
        if self.standings.of(service, backend).is_none() {
            self.ramps.insert(identity, now);
        }
        let Some(begun) = self.ramps.get(&identity) else { return backend.weight };
        let elapsed = now.duration_since(*begun);
        if elapsed >= slow_start {
            self.ramps.remove(&identity);
            return backend.weight;
        }
        slow_start::weight(backend.weight, slow_start, elapsed)
    }

    fn note(&self, service: &Service, backend: &Backend, now: &Standing) -> Option<Note> {
        let before = self.standings.of(service, backend)?;
        let text = turned(before, now).or_else(|| learned(before, now))?;
        Some(Note { service: service.name.clone(), backend: Some(backend.name.clone()), text })
    }
}

/// What became of a backend; what was held, and is so no longer, is told with the pool.
fn turned(before: &Standing, now: &Standing) -> Option<String> {
    if before.health == now.health {
        return (before.because != now.because).then(|| now.because.to_string());
    }
    let text = format!("{} -> {}", before.health.name(), now.health.name());
    let is_ill = matches!(now.health, State::Unhealthy | State::Unreachable);
    Some(match now.fault.as_ref().filter(|_| is_ill) {
        Some(fault) => format!("{text}: {fault}"),
        None => text,
    })
}

/// The cause, which is looked for when a backend has fallen, and known a moment later.
fn learned(before: &Standing, now: &Standing) -> Option<String> {
    let cause = now.cause.as_ref().filter(|_| before.cause != now.cause)?;
    Some(format!("{}: {cause}", now.health.name()))
}

/// What is seen of one backend.
struct View {
    identity: Identity,
    sight: Sight,
    has_next_hop: bool,
    /// Its health is what an earlier daemon saw.
    is_stale: bool,
    fault: Option<String>,
    cause: Option<String>,
    /// What is wrong on our side of the way to it.
    own_fault: Option<String>,
}

fn see(service: &Service, evidence: Evidence<'_>) -> Vec<View> {
    service.backends.iter().map(|backend| see_one(service, backend, evidence)).collect()
}

fn see_one(service: &Service, backend: &Backend, evidence: Evidence<'_>) -> View {
    let identity = service.identity(backend);
    let next_hop = evidence.next_hops.get(&backend.address);
    let probed = evidence.probed.get(&identity);
    let mut own_fault = None;
    let (health, failing, fault) = match (next_hop, probed) {
        (None, _) => (State::Unknown, false, Some("not resolved yet".to_owned())),
        (Some(Err(unresolved)), _) if unresolved.is_pending() => {
            (State::Unknown, false, Some(unresolved.to_string()))
        }
        (Some(Err(unresolved)), _) => {
            let fault = unresolved.to_string();
            own_fault = unresolved.is_ours().then(|| fault.clone());
            (State::Unreachable, true, Some(fault))
        }
        (Some(Ok(_)), _) if service.health.is_none() => (State::Healthy, false, None),
        (Some(Ok(_)), None) => (State::Unknown, false, None),
        (Some(Ok(_)), Some(probed)) => (probed.health, probed.failing, probed.fault.clone()),
    };
    let has_next_hop = next_hop.is_some_and(Result::is_ok);
    let cause = probed.filter(|_| has_next_hop && service.health.is_some());
    let unanswered = evidence.traffic.get(&identity).is_some_and(|traffic| traffic.is_suspect);
    let counts = backend.admin == Admin::Enabled && !backend.leaving && backend.weight > 0;
    View {
        identity,
        sight: Sight { health, failing, falling: false, unanswered, counts },
        has_next_hop,
        is_stale: has_next_hop && probed.is_some_and(|probed| probed.stale),
        fault,
        cause: cause.and_then(|probed| probed.cause.clone()),
        own_fault,
    }
}

/// By when every backend has been asked once more: an interval at its longest, and an answer.
fn round(service: &Service) -> Duration {
    let probe = |check: &HealthCheck| check.interval.mul_f64(1.1) + check.timeout;
    service.health.as_ref().map_or(Duration::ZERO, probe)
}

/// How long the probes need to see a backend well again.
fn grace(service: &Service) -> Duration {
    let probes = |check: &HealthCheck| check.interval * (check.rise + 1) + check.timeout;
    service.health.as_ref().map_or(Duration::ZERO, probes)
}

/// Whether every backend of the instance fails, and two hosts at least have only just begun to.
fn everything_falls<'s>(seen: impl Iterator<Item = &'s View> + Clone) -> bool {
    let counts = seen.filter(|seen| seen.sight.counts);
    counts.clone().all(|seen| seen.sight.failing)
        && are_several_hosts(counts.map(|seen| (&seen.identity, &seen.sight)))
}

#[cfg(test)]
mod tests;
