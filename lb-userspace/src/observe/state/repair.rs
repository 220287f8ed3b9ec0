//! What somebody else has changed in the kernel, put right.

use anyhow::Result;

use super::State;
use crate::{control::api::EventKind, journal::Entry, reconcile};

/// Services whose Maglev tables are compared slot by slot in one look at the maps: some 10 ms.
const CLOSE_LOOKS: u16 = 8;

impl State {
    /// Looks whether the maps hold what we wrote, and mends what they don't.
    ///
    /// # Errors
    /// If they can't be read, or written.
    pub fn mend(&mut self) -> Result<()> {
        if !self.datapath.mend_settings()? {
            self.drift_repairs += 1;
            let text = "GLOBALS (settings) was changed; written again";
            self.journal.note(EventKind::Drift, Entry::new(text));
        }
        if !self.datapath.mend_interfaces()? {
            self.drift_repairs += 1;
            let text = "GLOBALS (interfaces) was changed; written again";
            self.journal.note(EventKind::Drift, Entry::new(text));
        }
        let services = self.image.services.keys().last().map_or(0, |last| last + 1);
        let from = if self.close_look < services { self.close_look } else { 0 };
        self.close_look = from.saturating_add(CLOSE_LOOKS);
        let seen = reconcile::look(&self.datapath.maps, &self.image, from..self.close_look)?;
        let repairs = reconcile::repairs(&self.image, &seen);
        let entries = repairs.iter().map(|repair| {
            Entry::new(format!("{} was changed; written again", reconcile::describe(repair)))
        });
        self.journal.note_all(EventKind::Drift, entries);
        reconcile::apply(&repairs, &mut self.datapath.maps, &mut self.image)?;
        self.reconciliations.maglev_builds_total += reconcile::tables(&repairs);
        self.drift_repairs += repairs.len() as u64;
        Ok(())
    }

    /// Puts the plain program back after a `sluice trace` that was killed.
    pub fn end_abandoned_trace(&self) {
        match self.datapath.end_abandoned_trace() {
            Ok(false) => {}
            Ok(true) => {
                let text = "a trace was killed: the plain program is back";
                self.journal.note(EventKind::Attach, Entry::new(text.to_owned()));
            }
            Err(error) => tracing::error!("{error:#}"),
        }
    }

    /// Attaches to the configured interfaces that run no program; tells whether it did. One that
    /// runs somebody else's is left alone.
    pub fn attach_again(&mut self) -> bool {
        let mut attached = false;
        let mut error = None;
        for interface in self.interfaces.iter().filter_map(|seen| seen.found.as_ref()) {
            if interface.xdp.is_some() {
                continue;
            }
            match self.datapath.attach(interface, self.desired.dataplane.xdp_mode) {
                Ok(()) => {
                    let text = format!("{} ran no program: attached", interface.name);
                    self.journal.note(EventKind::Attach, Entry::new(text));
                    attached = true;
                }
                Err(refused) => error = Some(format!("{refused:#}")),
            }
        }
        if error.is_some() && error != self.attach_error {
            self.trouble(error.as_deref().unwrap_or_default());
        }
        self.attach_error = error;
        attached
    }
}
