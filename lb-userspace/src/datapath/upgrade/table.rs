//! A flow table, word by word, as an upgrade needs it: to sample it, and to carry it from one
//! set of maps to another while packets change it.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use lb_common::{
    abi::{FlowRecord, Settings},
    flow::{Entry, GROUP, State},
};

use crate::datapath::{
    Maps,
    memory::{Mapping, read, write},
};

/// Words of one flow record.
const RECORD: usize = size_of::<FlowRecord>() / 8;

/// A flow table and its records, to read and write.
pub struct FlowTable {
    words: Mapping,
    records: Mapping,
}

/// A flow as it stands in a table.
#[derive(Clone, Copy, Debug)]
pub struct Sampled {
    /// Where: counts words of the table.
    pub index: usize,
    /// What.
    pub entry: Entry,
    /// Whose.
    pub record: FlowRecord,
}

impl FlowTable {
    /// The flow table of some maps.
    pub fn map(maps: &Maps, settings: &Settings) -> Result<Self> {
        let flows = (settings.flow_mask as usize + 1) * GROUP;
        let records = flows * size_of::<FlowRecord>();
        Ok(Self {
            words: Mapping::writable(maps.flows_fd(), flows * 8).context("map FLOWS")?,
            records: Mapping::writable(maps.flow_records_fd(), records)
                .context("map FLOW_RECORDS")?,
        })
    }

    /// The words as they are now.
    pub fn snapshot(&self) -> Vec<u64> {
        self.words.words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// At most `most` of the flows that have not expired, from all over the table.
    pub fn sample(&self, settings: &Settings, tick: u8, most: usize) -> Vec<Sampled> {
        let live: Vec<(usize, Entry)> = self
            .words
            .words()
            .iter()
            .map(|word| Entry(word.load(Ordering::Relaxed)))
            .enumerate()
            .filter(|(_, entry)| {
                !matches!(entry.state(), State::Free) && !entry.is_expired(tick, settings)
            })
            .collect();
        let step = live.len().div_ceil(most).max(1);
        live.into_iter()
            .step_by(step)
            .map(|(index, entry)| Sampled { index, entry, record: self.record(index) })
            .collect()
    }

    /// Puts a flow of another, larger table into its group here; tells whether there was room.
    /// The group's number is the lower bits of the one it had there.
    pub fn put(&self, flow: &Sampled) -> bool {
        let words = self.words.words();
        let group = flow.index / GROUP % (words.len() / GROUP) * GROUP;
        let place = (0..GROUP).map(|place| group + (flow.index ^ place) % GROUP);
        let Some(index) = { place }.find(|&index| words[index].load(Ordering::Relaxed) == 0) else {
            return false;
        };
        write(self.record_words(index), &flow.record);
        words[index].store(flow.entry.0, Ordering::Release);
        true
    }

    /// Takes over what `from` holds other than `base` did, where this table still is as `base`
    /// says: a word that a packet has changed here since is newer. A flow that ended there
    /// stays, for its time-out to end it here too. Tells how many were taken over.
    pub fn carry(&self, base: &[u64], from: &Self) -> u32 {
        carry(base, from.words.words(), self.words.words(), |index| {
            write(self.record_words(index), &from.record(index));
        })
    }

    fn record_words(&self, index: usize) -> &[AtomicU64] {
        &self.records.words()[index * RECORD..][..RECORD]
    }

    fn record(&self, index: usize) -> FlowRecord {
        read(self.record_words(index))
    }
}

/// `record` is called for each word just before it is taken over.
fn carry(base: &[u64], from: &[AtomicU64], to: &[AtomicU64], record: impl Fn(usize)) -> u32 {
    let mut carried = 0;
    for (index, ((&base, from), to)) in base.iter().zip(from).zip(to).enumerate() {
        let word = from.load(Ordering::Acquire);
        let is_news = word != base && !matches!(Entry(word).state(), State::Free);
        if is_news && to.load(Ordering::Relaxed) == base {
            record(index);
            let exchanged = to.compare_exchange(base, word, Ordering::AcqRel, Ordering::Relaxed);
            carried += u32::from(exchanged.is_ok());
        }
    }
    carried
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_carried_where_nothing_newer_stands() {
        let entry = |backend, tick| Entry::new(!0, backend, tick, State::Old).0;
        let base = [entry(1, 1), entry(2, 1), entry(3, 1), 0, 0, entry(6, 1)];
        // Unchanged; changed; changed, and here too; new; new, and another here; ended.
        let from = [entry(1, 1), entry(2, 2), entry(3, 2), entry(4, 2), entry(5, 2), 0];
        let to = [entry(1, 3), entry(2, 1), entry(3, 3), 0, entry(9, 3), entry(6, 1)];
        let (from, to) = (from.map(AtomicU64::new), to.map(AtomicU64::new));
        let recorded = std::cell::RefCell::new(Vec::new());
        assert_eq!(carry(&base, &from, &to, |index| recorded.borrow_mut().push(index)), 2);
        let wanted = [entry(1, 3), entry(2, 2), entry(3, 3), entry(4, 2), entry(9, 3), entry(6, 1)];
        assert_eq!(to.map(AtomicU64::into_inner), wanted);
        assert_eq!(recorded.into_inner(), [1, 3]);
    }
}
