//! What is seen of the backends: gathered here, judged in `health`, and made to hold.

use std::{collections::HashMap, time::Instant};

use super::{State, status::last_probe};
use crate::{
    choice::Condition,
    control::api::EventKind,
    health::{Evidence, Probed, Seen},
    journal::Entry,
    model::{Backend, Service},
};

impl State {
    /// What is thought of a backend when new flows are given out.
    pub fn condition(&self, service: &Service, backend: &Backend) -> Condition {
        self.judge.standings().condition(service, backend)
    }

    /// Judges anew what is seen; tells whether anything follows from it.
    pub(super) fn judge(&mut self) -> bool {
        let restored = || {
            let kept = self.kept_health.iter();
            kept.map(|(identity, kept)| (*identity, Seen::restored(*kept))).collect()
        };
        let seen = self.probes.as_ref().map_or_else(restored, |probes| probes.snapshot());
        let probed: HashMap<_, _> =
            seen.iter().map(|(identity, seen)| (*identity, Probed::from(seen))).collect();
        let evidence = Evidence {
            desired: &self.desired,
            next_hops: &self.next_hops,
            probed: &probed,
            traffic: &self.traffic,
        };
        let before = self.judge.standings().clone();
        let notes = self.judge.judge(evidence, Instant::now());
        let entries = notes.into_iter().map(|note| {
            let probe = note.backend.as_ref().and_then(|backend| {
                let services = &self.desired.services;
                let service = services.iter().find(|service| service.name == note.service)?;
                let backend = service.backends.iter().find(|b| b.name == *backend)?;
                last_probe(service, seen.get(&service.identity(backend)))
            });
            let entry = Entry::new(note.text).seen_by(probe);
            entry.about(Some(&note.service), note.backend.as_deref())
        });
        self.journal.note_all(EventKind::Health, entries);
        self.judge.standings() != &before
    }

    /// Looks at the backends again, and makes the maps follow.
    pub fn look_at_backends(&mut self) {
        if self.judge() {
            self.try_reconcile();
        }
    }
}
