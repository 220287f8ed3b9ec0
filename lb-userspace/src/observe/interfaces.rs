//! What interfaces count, and whether each of their frames got a verdict.

use std::collections::BTreeMap;

use lb_common::reason::Reason;

use super::State;
use crate::{
    conservation::{Reading, Residual},
    control::api::{self, EventKind},
    journal::Entry,
    network::Statistics,
};

/// All verdicts until one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdicts {
    all: u64,
    probe_answers: u64,
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
            let reasons = self.datapath.maps.reason_counts()?;
            let of = |reason: Reason| reasons.get(reason as usize).copied().unwrap_or(0);
            // What our own prober sends has not arrived anywhere.
            let received = reasons.iter().sum::<u64>() - of(Reason::ProbeUndelivered);
            Ok(Verdicts {
                all: forwarded + received,
                probe_answers: of(Reason::ProbeAnswer),
                epoch: self.counters_epoch,
            })
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
        if before.epoch != after.epoch {
            return;
        }
        let received: BTreeMap<u32, u64> = self
            .interfaces
            .iter()
            .filter(|seen| seen.xdp().is_some_and(|xdp| self.datapath.is_ours(xdp.id)))
            .filter_map(|seen| {
                let index = seen.found.as_ref()?.index;
                Some((index, self.counts.statistics.get(&index)?.received_frames))
            })
            .collect();
        let is_elsewhere = |index| !received.contains_key(&index);
        let answers_elsewhere =
            self.next_hops.values().flatten().any(|hop| is_elsewhere(hop.interface));
        let reading = Reading {
            received,
            verdicts_before: before.all,
            verdicts_after: after.all,
            elsewhere: if answers_elsewhere { after.probe_answers } else { 0 },
            epoch: after.epoch,
        };
        if let Some(residual) = self.ledger.take(reading, std::time::Instant::now()) {
            self.journal.note(EventKind::Trouble, Entry::new(tell(residual)));
        }
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

fn tell(Residual { frames, received }: Residual) -> String {
    let count = frames.unsigned_abs();
    if frames > 0 {
        format!(
            "{count} of {received} frames that our interfaces received got no verdict: their \
             driver dropped them before our program (the interface's counts in /metrics), or \
             another program has them"
        )
    } else {
        format!(
            "{count} verdicts are about frames that our interfaces do not tell of, which say that \
             they received {received}: a driver that does not count what XDP takes, or a defect"
        )
    }
}
