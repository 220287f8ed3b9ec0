//! What interfaces count, and whether each of their frames got a verdict.

use std::collections::BTreeMap;

use super::State;
use crate::{
    conservation::{Ledger, Reading, Residual},
    control::api::{self, EventKind},
    datapath,
    journal::Entry,
    network::Statistics,
};

/// All verdicts until one moment.
#[derive(Clone, Debug)]
pub struct Verdicts {
    /// All frames that were forwarded; read before the others.
    forwarded: u64,
    others: datapath::Verdicts,
    epoch: u64,
}

/// What interfaces count, by index.
#[derive(Clone, Debug, Default)]
pub struct InterfaceCounts {
    /// What the kernel counts.
    pub statistics: BTreeMap<u32, Statistics>,
    /// What the drivers count of XDP.
    pub xdp: BTreeMap<u32, BTreeMap<String, u64>>,
}

impl State {
    /// All verdicts that our program has given; `None`: they can't be read, which is logged.
    pub fn verdicts(&self) -> Option<Verdicts> {
        let counted = self.forwarded().and_then(|forwarded| {
            let others = self.datapath.maps.verdicts()?;
            // Where interfaces begin or cease to be told apart, their sums begin anew.
            let epoch = self.counters_epoch * 2 + u64::from(others.are_several());
            Ok(Verdicts { forwarded, others, epoch })
        });
        counted.inspect_err(|error| tracing::warn!("can't read the verdicts: {error:#}")).ok()
    }

    /// Frames sent to backends, those that are gone included.
    ///
    /// # Errors
    /// If the counters can't be read.
    pub(super) fn forwarded(&self) -> anyhow::Result<u64> {
        let present: Vec<u16> = self.image.backends.keys().copied().collect();
        Ok(self.retired.packets() + self.datapath.maps.packets(&present)?)
    }

    /// Takes in what interfaces count, and compares it with the verdicts before it was read, and
    /// with those of now.
    pub fn take_counts(&mut self, before: Option<Verdicts>, counts: InterfaceCounts) {
        self.counts = counts;
        let (Some(before), Some(after)) = (before, self.verdicts()) else { return };
        self.take_frames(&after);
        if before.epoch != after.epoch {
            return;
        }
        let now = std::time::Instant::now();
        for seen in &self.interfaces {
            let Some(found) = seen.found.as_ref() else { continue };
            let received = self.counts.statistics.get(&found.index).map(|s| s.received_frames);
            let sum = |verdicts: &Verdicts| verdicts.others.sum_of(&seen.name, verdicts.forwarded);
            let (Some(received), Some(verdicts_before), Some(verdicts_after)) =
                (received, sum(&before), sum(&after))
            else {
                continue;
            };
            if !seen.xdp().is_some_and(|xdp| self.datapath.is_ours(xdp.id)) {
                continue;
            }
            let reading = Reading {
                interface: found.index,
                received,
                verdicts_before,
                verdicts_after,
                epoch: after.epoch,
            };
            let ledger = self.ledgers.entry(seen.name.clone()).or_default();
            if let Some(residual) = ledger.take(reading, now) {
                self.journal.note(EventKind::Trouble, Entry::new(tell(&seen.name, residual)));
            }
        }
    }

    /// What became of each interface's frames.
    fn take_frames(&mut self, verdicts: &Verdicts) {
        for seen in &self.interfaces {
            if let Some(mut frames) = verdicts.others.of(&seen.name, verdicts.forwarded) {
                let last = self.frames.get(&seen.name).map_or(0, |last| last.forwarded);
                frames.forwarded = frames.forwarded.max(last);
                self.frames.insert(seen.name.clone(), frames);
            }
        }
    }

    /// What became of the frames of each configured interface, a second ago at most.
    pub(super) fn frames_by_interface(&self) -> Vec<api::InterfaceReasons> {
        let names = self.interfaces.iter().map(|seen| &seen.name);
        let known = names.filter_map(|name| Some((name, self.frames.get(name)?)));
        known
            .map(|(name, frames)| {
                let unexplained = self.ledgers.get(name).map_or(0, Ledger::unexplained);
                api::InterfaceReasons::new(name, frames.forwarded, &frames.by_reason, unexplained)
            })
            .collect()
    }

    /// What the drivers counted of XDP when they were asked last.
    pub fn xdp_counts(&self) -> &BTreeMap<u32, BTreeMap<String, u64>> {
        &self.counts.xdp
    }

    /// What an interface counts, for those who ask.
    pub(super) fn interface_counts(&self, index: u32) -> Option<api::InterfaceCounts> {
        let statistics = self.counts.statistics.get(&index)?;
        let xdp = self.counts.xdp.get(&index).cloned().unwrap_or_default();
        Some(api::InterfaceCounts::new(statistics, xdp))
    }
}

fn tell(interface: &str, Residual { frames, received }: Residual) -> String {
    let count = frames.unsigned_abs();
    if frames > 0 {
        format!(
            "{count} of {received} frames that {interface} received got no verdict: its driver \
             dropped them before our program (the interface's counts in /metrics), or another \
             program has them"
        )
    } else {
        format!(
            "{count} verdicts are about frames that {interface} does not tell of, which says that \
             it received {received}: a driver that does not count what XDP takes, or a defect"
        )
    }
}
