//! The flow table as a whole.

use std::collections::BTreeMap;

use lb_common::{abi::EvictionCounts, flow::State};
use serde::{Deserialize, Serialize};

/// The flow table's load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowTable {
    /// How many flows it can hold.
    pub capacity: u64,
    /// How much of that is taken: a translated flow takes twice what another does.
    pub used: u64,
    /// How many it holds, by state: `embryonic`, `young`, `old`, `closing`, `reset`, `answered`,
    /// `time_wait`.
    pub by_state: BTreeMap<String, u64>,
    /// Flows that gave way to new ones before their time, by the state they were in.
    pub evicted_total: BTreeMap<String, u64>,
    /// New flows to which none gave way: they went by slot, or, translated, were refused.
    pub overflows_total: u64,
}

impl FlowTable {
    /// From what a sweep counted, and the packets.
    pub fn new(
        capacity: u64,
        used: u64,
        count: impl Fn(State) -> u64,
        evictions: &EvictionCounts,
    ) -> Self {
        Self {
            capacity,
            used,
            by_state: by_state(count),
            evicted_total: by_state(|state| evictions[state as usize]),
            overflows_total: evictions[State::Free as usize],
        }
    }
}

/// Counts under the states' names.
pub fn by_state(count: impl Fn(State) -> u64) -> BTreeMap<String, u64> {
    State::ALL.into_iter().map(|state| (state.name().to_owned(), count(state))).collect()
}
