//! Counters: the kernel keeps a row for each CPU, here they are summed.

use std::collections::BTreeMap;

use anyhow::Result;
use lb_common::{
    abi::{EvictionCounts, FORWARDED, HandshakeTimes, capacity::COUNTERS_PER_CHUNK},
    counters::{EVENTS, Event, Traffic},
    reason::Reason,
};

use super::{
    Maps,
    places::{self, Frames, Verdicts},
};

/// What was counted of one backend, on all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    /// Packets and bytes forwarded to it, and from it to its clients.
    pub traffic: Traffic,
    /// Events, in the order of [`Event::ALL`].
    pub events: [u64; EVENTS],
    /// How long its handshakes took.
    pub handshakes: HandshakeTimes,
}

impl BackendCounters {
    /// How often something happened.
    pub const fn event(&self, event: Event) -> u64 {
        self.events[event as usize]
    }
}

impl Maps {
    /// The counters of some backends, in the order of the indices asked for. Indices that lie
    /// close together cost one read.
    pub fn counters(&self, indices: &[u16]) -> Result<Vec<BackendCounters>> {
        let mut counters = Vec::with_capacity(indices.len());
        let mut chunk: Option<(u32, [BackendCounters; COUNTERS_PER_CHUNK])> = None;
        for &index in indices {
            let number = u32::from(index) / COUNTERS_PER_CHUNK as u32;
            let sums = match &chunk {
                Some((held, sums)) if *held == number => sums,
                _ => &chunk.insert((number, self.chunk(number)?)).1,
            };
            counters.push(sums[usize::from(index) % COUNTERS_PER_CHUNK]);
        }
        Ok(counters)
    }

    /// Frames forwarded to some backends, and from them, together; indices that lie close together cost one read.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn packets(&self, indices: &[u16]) -> Result<u64> {
        let number = |index: &u16| usize::from(*index) / COUNTERS_PER_CHUNK;
        let mut packets = 0;
        for chunk in indices.chunk_by(|a, b| number(a) == number(b)) {
            let place = number(&chunk[0]) as u32;
            for row in self.traffic(place)?.iter().chain(&self.returns(place)?) {
                let of = |index: &u16| row[usize::from(*index) % COUNTERS_PER_CHUNK].packets;
                packets += chunk.iter().map(of).sum::<u64>();
            }
        }
        Ok(packets)
    }

    fn chunk(&self, number: u32) -> Result<[BackendCounters; COUNTERS_PER_CHUNK]> {
        let mut sums = [BackendCounters::default(); COUNTERS_PER_CHUNK];
        for (to, from) in self.traffic(number)?.iter().zip(&self.returns(number)?) {
            for (sum, (to, from)) in sums.iter_mut().zip(to.iter().zip(from)) {
                sum.traffic.add(to, from);
            }
        }
        for row in self.events(number)? {
            for (sum, events) in sums.iter_mut().zip(row) {
                for (sum, count) in sum.events.iter_mut().zip(events.counts) {
                    *sum += count;
                }
                let handshakes = &mut sum.handshakes;
                handshakes.jiffies += events.handshakes.jiffies;
                for (sum, count) in handshakes.buckets.iter_mut().zip(events.handshakes.buckets) {
                    *sum += count;
                }
            }
        }
        Ok(sums)
    }

    /// Starts backends' counters anew, when their indices get new owners.
    ///
    /// # Errors
    /// If a map can't be read or written.
    pub fn reset_counters(&mut self, indices: impl IntoIterator<Item = u16>) -> Result<()> {
        let mut chunks: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for index in indices.into_iter().map(usize::from) {
            let chunk = (index / COUNTERS_PER_CHUNK) as u32;
            chunks.entry(chunk).or_default().push(index % COUNTERS_PER_CHUNK);
        }
        chunks.into_iter().try_for_each(|(chunk, places)| self.clear_counters(chunk, &places))
    }

    /// Frames not forwarded, by reason, in the order of [`Reason::ALL`].
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn reason_counts(&self) -> Result<Vec<u64>> {
        Ok(self.verdicts()?.by_reason())
    }

    /// Flows that gave way to new ones, by [`State`](lb_common::flow::State); at `Free`, new ones to
    /// which none did.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn eviction_counts(&self) -> Result<EvictionCounts> {
        let rows = self.evictions()?;
        Ok(std::array::from_fn(|state| rows.iter().map(|row| row[state]).sum()))
    }

    /// What became of the frames of each interface.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn verdicts(&self) -> Result<Verdicts> {
        let interfaces = self.interfaces();
        let at = |place| {
            let rows = self.reasons(place)?;
            let count = |number: usize| rows.iter().map(|row| row[number]).sum();
            let by_reason = (0..Reason::ALL.len()).map(count).collect();
            Ok((place, Frames { by_reason, forwarded: count(FORWARDED) }))
        };
        let places = places::used(&interfaces).into_iter().map(at).collect::<Result<_>>()?;
        Ok(Verdicts { interfaces, places })
    }
}
