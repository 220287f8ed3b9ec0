//! A flow's two entries in the table: how one is put there, and how from one the other is found.

use super::{Tuple, record_of, seen_address};
use crate::{
    abi::{Backend, FlowRecord, Settings},
    flow::{self, Entry, Found, GROUP, State, Words},
    service,
    steer::Turn,
    tables::Tables,
};

/// Puts an entry and its record into the table; tells the word. In three steps, so that nobody
/// follows it before it is whole: the place is claimed in the flow's name without a backend, then
/// the record is written, then the entry.
#[inline(always)]
pub(super) fn put<T: Tables>(
    tables: &T,
    settings: &Settings,
    hash: u64,
    entry: Entry,
    tick: u8,
    record: &FlowRecord,
    gives_way: impl FnOnce(Found) -> bool,
) -> Option<u32> {
    let group_index = flow::group_index(hash, settings);
    let group = tables.flow_group(group_index)?;
    let claim = Entry::new(hash, 0, tick, State::Embryonic);
    let index = match flow::find(&group, hash) {
        None => {
            let evicted = |victim| tables.count_eviction(victim);
            flow::insert(&group, hash, 0, tick, State::Embryonic, settings, evicted)?
        }
        Some(found) if gives_way(found) => {
            group.replace(found.index, found.entry.0, claim.0).then_some(found.index)?
        }
        Some(_) => return None,
    };
    let index = index & (GROUP - 1);
    if flow::is_elsewhere(&group, hash, index) {
        // Another CPU wants the same at the same moment: neither gets it.
        group.replace(index, claim.0, 0);
        return None;
    }
    let word = group_index * GROUP as u32 + index as u32;
    tables.record_flow(word, *record);
    let whole = entry.with(tick, entry.state());
    group.replace(index, claim.0, whole.0).then_some(word)
}

/// Whether two records are of one flow and one port. When it began does not matter.
#[inline(always)]
fn is_same(one: FlowRecord, other: FlowRecord) -> bool {
    let [a, b, _, c]: [u64; 4] = zerocopy::transmute!(one);
    let [d, e, _, f]: [u64; 4] = zerocopy::transmute!(other);
    (a ^ d) | (b ^ e) | (c ^ f) == 0
}

/// A flow's entry in the other direction; none, if it is free.
#[derive(Clone, Copy)]
pub(super) struct Partner {
    pub(super) word: u32,
    pub(super) found: Found,
    /// What was found is of another flow: one that has this one's port now, or of the same client
    /// a newer one.
    pub(super) is_anothers: bool,
}

impl Partner {
    const NOBODY: Self = Self { word: 0, found: Found::NOTHING, is_anothers: false };

    /// Looks by the hash of that direction's tuple for the entry of a flow to this backend with
    /// this record.
    #[inline(always)]
    pub(super) fn find<T: Tables>(
        tables: &T,
        settings: &Settings,
        hash: u64,
        is_return: bool,
        backend: u16,
        record: FlowRecord,
    ) -> Self {
        let group_index = flow::group_index(hash, settings);
        let Some(group) = tables.flow_group(group_index) else { return Self::NOBODY };
        let Some(found) = flow::find(&group, hash) else { return Self::NOBODY };
        if found.entry.is_return() != is_return || found.entry.backend() == 0 {
            return Self::NOBODY;
        }
        let word = group_index * GROUP as u32 + found.index as u32;
        let Some(theirs) = tables.flow_record(word) else { return Self::NOBODY };
        if found.entry.backend() == backend && is_same(theirs, record) {
            Self { word, found, is_anothers: false }
        } else {
            Self { is_anothers: true, ..Self::NOBODY }
        }
    }

    #[inline(always)]
    pub(super) const fn state(&self) -> State {
        self.found.entry.state()
    }

    /// Makes it another, unless it has changed meanwhile.
    #[inline(always)]
    pub(super) fn replace<T: Tables>(&self, tables: &T, entry: Entry) {
        if let Some(group) = tables.flow_group(self.word / GROUP as u32) {
            group.replace(self.word as usize % GROUP, self.found.entry.0, entry.0);
        }
    }
}

/// A flow as one of its entries tells.
pub(super) struct Half {
    pub(super) record: FlowRecord,
    /// Of the other's tuple.
    pub(super) hash: u64,
}

impl Turn {
    /// The word of the entry that was found, and its group.
    #[inline(always)]
    pub(super) fn place<T: Tables>(
        &self,
        tables: &T,
        settings: &Settings,
    ) -> Option<(u32, T::Group)> {
        let group_index = flow::group_index(self.hash, settings);
        let word = group_index * GROUP as u32 + self.found.index as u32;
        Some((word, tables.flow_group(group_index)?))
    }

    /// The flow of the entry in a word, if the segment is its: sent by the backend, or the client.
    #[inline(always)]
    pub(super) fn half<T: Tables>(
        &self,
        tables: &T,
        settings: &Settings,
        backend: &Backend,
        word: u32,
        is_return: bool,
    ) -> Option<Half> {
        let sent = Tuple::of(&self.segment);
        let family = self.segment.family;
        if is_return {
            let is_of = |record: &FlowRecord| sent.is_of_return(record, tables);
            let record = record_of(tables, word, self.hash, is_of)?;
            let vip = service::of_backend(tables, backend)?;
            let hash = Tuple::of_client(&record, &vip).hash(family, settings);
            Some(Half { record, hash })
        } else {
            let is_of = |record: &FlowRecord| sent.is_of_client(record);
            let record = record_of(tables, word, self.hash, is_of)?;
            let seen = seen_address(&record, tables);
            let hash = Tuple::of_return(&record, backend, seen).hash(family, settings);
            Some(Half { record, hash })
        }
    }
}
