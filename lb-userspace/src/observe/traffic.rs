//! What clients' packets say of the backends: their counters, read again and again, and judged in
//! `health::passive`.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use humantime::format_duration;
use lb_common::flow;

use super::State;
use crate::{
    choice::choose,
    control::api::EventKind,
    drain::Admin,
    health::{
        Because, Traffic,
        passive::{Change, Counts, Pool, Reading, Settings},
    },
    journal::Entry,
    model::{Identity, Service, Vip},
};

/// The pools of all services.
pub(super) type Pools = BTreeMap<Vip, Pool<Identity>>;

impl State {
    /// Reads the backends' counters, and takes in what they say.
    pub fn read_traffic(&mut self, now: Instant) {
        let indices: Vec<u16> = self.image.backends.keys().copied().collect();
        let maps = &self.datapath.maps;
        let read = || anyhow::Ok((maps.counters(&indices)?, maps.eviction_counts()?));
        let (counters, evictions) = match read() {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!("can't read the counters: {error:#}");
                return;
            }
        };
        let evicted = evictions[flow::State::Embryonic as usize];
        let totals: HashMap<Identity, Counts> = indices
            .iter()
            .zip(&counters)
            .filter_map(|(index, counters)| {
                Some((self.identity(*index)?, Counts::of(|event| counters.event(event), evicted)))
            })
            .collect();
        let mut pools = std::mem::take(&mut self.pools);
        pools.retain(|vip, _| self.desired.services.iter().any(|service| service.vip == *vip));
        self.traffic.clear();
        let mut entries = Vec::new();
        for service in &self.desired.services {
            let pool = pools.entry(service.vip).or_default();
            let settings = Settings {
                mode: service.outlier.with_affinity(service.affinity),
                ..Settings::default()
            };
            for (identity, change) in pool.observe(&self.readings(service, &totals), &settings, now)
            {
                entries.extend(tell(service, &identity, &change));
            }
            for identity in pool.suspects() {
                self.traffic.entry(*identity).or_default().is_suspect = true;
            }
            for identity in pool.ejected() {
                self.traffic.entry(*identity).or_default().is_outlier = true;
            }
        }
        self.pools = pools;
        self.recording.read(indices.into_iter().zip(counters).collect());
        self.journal.note_all(EventKind::Health, entries);
    }

    fn readings(
        &self,
        service: &Service,
        totals: &HashMap<Identity, Counts>,
    ) -> Vec<Reading<Identity>> {
        let takes = choose(service, |backend| self.condition(service, backend)).takes;
        let backends = service.backends.iter().zip(takes);
        backends
            .filter_map(|(backend, takes)| {
                let identity = service.identity(backend);
                let standing = self.judge.standings().of(service, backend)?;
                // Its share is its due though it is ejected: who else takes it is not asked.
                let is_ejected = standing.because == Because::Outlier
                    && backend.admin == Admin::Enabled
                    && !backend.leaving;
                Some(Reading {
                    backend: identity,
                    totals: *totals.get(&identity)?,
                    weight: if takes || is_ejected { standing.weight } else { 0 },
                })
            })
            .collect()
    }

    /// Whether a backend completes much less than its pool, or did so lately.
    pub(super) fn stands_out(&self, identity: &Identity) -> bool {
        let (vip, _) = identity;
        self.pools.get(vip).is_some_and(|pool| pool.stands_out(identity))
    }

    /// What clients' packets say of a backend.
    pub(super) fn traffic_of(&self, identity: &Identity) -> Traffic {
        self.traffic.get(identity).copied().unwrap_or_default()
    }
}

/// What of it an operator should know.
fn tell(service: &Service, identity: &Identity, change: &Change) -> Option<Entry> {
    let text = match change {
        Change::Suspect => {
            "clients' SYNs to it are not answered: who sends one again is tried elsewhere"
                .to_owned()
        }
        Change::Cleared => "no longer suspect".to_owned(),
        Change::Outlier { completed, ejected_for, .. } => {
            let share = completed * 100.0;
            let text = format!("completes {share:.0} % of the handshakes that are its due");
            match ejected_for {
                Some(time) => format!("{text}: no new flows for {}", format_duration(*time)),
                None => text,
            }
        }
        Change::Recovered => "completes its share of handshakes again".to_owned(),
        Change::Returned => "may take new flows again".to_owned(),
    };
    let mut backends = service.backends.iter();
    let backend = backends.find(|backend| service.identity(backend) == *identity)?;
    Some(Entry::new(text).about(Some(&service.name), Some(&backend.name)))
}
