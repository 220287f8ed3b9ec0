//! What the flow table holds, counted; and what follows for who is draining.

use std::{collections::HashMap, time::Instant};

use anyhow::Result;
use lb_common::counters::Event;

use super::State;
use crate::{
    control::api::EventKind,
    drain::{Admin, Moment},
    intent::{Count, Progress},
    journal::Entry,
    model::{Backend, Identity},
};

impl State {
    /// Frees what has expired in the flow table, and counts the rest.
    ///
    /// # Errors
    /// If the kernel does not tell the time.
    pub fn sweep(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.sweep = self.datapath.sweep(&self.limits)?;
        self.swept = Some(begun);
        Ok(())
    }

    /// Tells the intent what the last sweep saw: drains come to their end by this.
    pub fn count(&mut self) {
        let is_newer = self.swept.is_some_and(|swept| swept > self.changed);
        if !is_newer || !self.intent.waits() {
            return;
        }
        let counts = self.counts();
        let progress =
            self.intent.counted(|identity| counts.get(&identity).copied(), Moment::now());
        match progress {
            Progress::None => {}
            Progress::Figures => self.desired = self.intent.desired(),
            Progress::States => {
                self.tell_ends();
                self.follow();
                self.keep();
            }
        }
    }

    /// Logs the drains that have ended; `desired` is what was before.
    fn tell_ends(&self) {
        let after = self.intent.desired();
        for service in &self.desired.services {
            for backend in &service.backends {
                let identity = service.identity(backend);
                let Admin::Draining(_) = backend.admin else { continue };
                let now = after
                    .services
                    .iter()
                    .flat_map(|service| service.backends.iter().map(move |b| (service, b)))
                    .find(|(service, backend)| service.identity(backend) == identity);
                if let Some((_, Backend { admin: Admin::Drained(end), .. })) = now {
                    let text = format!(
                        "drained: {} flows at the start, {} cut, {} new since",
                        end.flows_at_start, end.flows_cut, end.new_flows
                    );
                    let about = (Some(&*service.name), Some(&*backend.name));
                    self.journal.note(EventKind::Drained, Entry::new(text).about(about.0, about.1));
                }
            }
        }
    }

    /// What the last sweep saw of every backend of the maps.
    fn counts(&self) -> HashMap<Identity, Count> {
        let indices: Vec<u16> = self.image.backends.keys().copied().collect();
        let counters = self.datapath.maps.counters(&indices).unwrap_or_else(|error| {
            tracing::warn!("can't read the counters: {error:#}");
            vec![Default::default(); indices.len()]
        });
        let with = indices.into_iter().zip(counters);
        with.filter_map(|(index, counters)| {
            let count = Count {
                active: self.sweep.active[usize::from(index)],
                entries: self.sweep.entries[usize::from(index)],
                new_flows_total: counters.event(Event::NewFlow),
            };
            Some((self.identity(index)?, count))
        })
        .collect()
    }
}
