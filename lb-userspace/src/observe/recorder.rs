//! What the flight recorder is given each second.

use std::{
    collections::HashMap,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use lb_common::{counters::Traffic, forward::Forwarding};

use super::State;
use crate::{
    datapath::BackendCounters,
    health,
    instance::Instance,
    journal::Journal,
    model::{Backend, Desired, Identity, Service},
    recorder::{Condition, Figures, Reading, Recorder, Returned, Tally},
};

/// The recorder, and what it was given last.
pub(super) struct Recording {
    recorder: Recorder,
    tally: Tally,
    /// The second in which it was given something: since 1970.
    second: Option<u64>,
    /// Backends' counters as they were just read, by index.
    counters: Vec<(u16, BackendCounters)>,
}

impl Recording {
    pub fn start(instance: &Instance, journal: &Journal, desired: &Desired) -> Self {
        let backends = desired.services.iter().map(|service| service.backends.len());
        let parties = desired.services.len() + backends.sum::<usize>();
        Self {
            recorder: Recorder::start(&instance.state(), journal.clone(), parties),
            tally: Tally::default(),
            second: None,
            counters: Vec::new(),
        }
    }

    /// What was just read of the maps.
    pub fn read(&mut self, counters: Vec<(u16, BackendCounters)>) {
        self.counters = counters;
    }

    /// Why the last seconds are not recorded, if they are not.
    pub fn error(&self) -> Option<String> {
        self.recorder.error()
    }
}

impl State {
    /// Records the second before this one, once: what was counted until now. Wants
    /// [`Self::read_traffic`] to have come just before.
    pub fn record(&mut self, wall: SystemTime, now: Instant) {
        let second = wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.recording.second.replace(second) == Some(second) {
            return;
        }
        let counters = std::mem::take(&mut self.recording.counters);
        let reasons = match self.datapath.maps.reason_counts() {
            Ok(reasons) if !counters.is_empty() || self.image.backends.is_empty() => reasons,
            // The next second has this one's counts too.
            Ok(_) => return,
            Err(error) => {
                tracing::warn!("can't read the reasons: {error:#}");
                return;
            }
        };
        let named: HashMap<Identity, (&Service, &Backend)> = self
            .desired
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
            .map(|(service, backend)| (service.identity(backend), (service, backend)))
            .collect();
        let mut tally = std::mem::take(&mut self.recording.tally);
        let readings = counters.iter().filter_map(|(index, counters)| {
            let identity = self.identity(*index)?;
            let active = self.sweep.active[usize::from(*index)];
            let totals = figures(counters, active, self.translates(*index));
            Some(match named.get(&identity) {
                Some((service, backend)) => Reading {
                    identity,
                    service: (&*service.name).into(),
                    backend: (&*backend.name).into(),
                    totals,
                    condition: Some(self.stands(service, backend)),
                },
                // In no configuration: it goes by its address.
                None => Reading {
                    identity,
                    service: identity.0.to_string().into(),
                    backend: identity.1.ip().to_string().into(),
                    totals,
                    condition: None,
                },
            })
        });
        let tallied = tally.second(second.saturating_sub(1), now, reasons, readings);
        self.recording.tally = tally;
        if let Some(tallied) = tallied {
            let parties = self.desired.services.len() + counters.len();
            self.recording.recorder.record(tallied, parties);
        }
    }

    /// Whether the packets of a backend of the maps are translated, both ways.
    fn translates(&self, index: u16) -> bool {
        let backend = self.image.backends.get(&index);
        backend.is_some_and(|backend| backend.forwarding == Forwarding::Nat as u8)
    }

    fn stands(&self, service: &Service, backend: &Backend) -> Condition {
        let standing = self.judge.standings().of(service, backend);
        let health = standing.map_or(health::State::Unknown, |standing| standing.health);
        Condition { admin: backend.admin.into(), health: health.into() }
    }
}

fn figures(counters: &BackendCounters, active: u32, translated: bool) -> Figures {
    let Traffic { bytes, return_packets, return_bytes, .. } = counters.traffic;
    Figures {
        packets: counters.traffic.forwarded(),
        bytes: bytes + return_bytes,
        returned: translated.then_some(Returned { packets: return_packets, bytes: return_bytes }),
        active: active.into(),
        events: counters.events,
    }
}
