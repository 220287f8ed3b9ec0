//! What `steer` asks the tables: the kernel's maps (`lb-ebpf/src/tables.rs`) or a host
//! test's memory.

use crate::{
    abi::{Backend, Egress, FlowRecord, NatHop, Service, ServiceKey, Settings},
    address::Address,
    counters::Event,
    flow::{State, Words},
    reason::Reason,
};

/// Everything the data plane remembers.
pub trait Tables {
    /// A group of the flow table.
    type Group: Words;

    /// What every packet needs to know.
    fn settings(&self) -> Option<&Settings>;

    /// One word of the VIP filter; `index` is below
    /// [`FILTER_WORDS`](crate::abi::capacity::FILTER_WORDS).
    fn filter_word(&self, index: usize) -> u64;

    /// Whether packets are also told by their source.
    fn filters_sources(&self) -> bool;

    /// Whether some service has this address, exactly.
    fn is_vip(&self, address: Address) -> bool;

    /// Whether this is the address of a service, and pings of it are not answered now.
    fn is_silent(&self, address: Address) -> bool;

    /// A group of the flow table.
    fn flow_group(&self, index: u32) -> Option<Self::Group>;

    /// Writes a flow's record; `index` counts words of the flow table.
    fn record_flow(&self, index: u32, record: FlowRecord);

    /// Begins to fetch this record into the cache; whoever reads or writes it later then waits less.
    /// A wrong guess costs time and nothing else.
    #[inline(always)]
    fn expect_record(&self, _index: u32) {}

    /// The same with what [`Self::hop`] tells.
    #[inline(always)]
    fn expect_hop(&self, _index: u32) {}

    /// The record of the flow in this word; of a word that others write meanwhile it may be another
    /// flow's, or a mixture.
    fn flow_record(&self, index: u32) -> Option<FlowRecord>;

    /// Writes where the packets of the return entry in this word go.
    fn record_hop(&self, index: u32, hop: NatHop);

    /// Where the packets of the return entry in this word go.
    fn hop(&self, index: u32) -> Option<NatHop>;

    /// An address that translated packets are sent from, by index; 0 has none.
    fn nat_address(&self, index: u16) -> Option<Address>;

    /// Whether this is the address and port of a backend that sees a NAT address for its client, or
    /// such a NAT address, with port 0.
    fn is_nat_end(&self, key: &ServiceKey) -> bool;

    /// Index of the service with this very key; see [`service::index_of`](crate::service::index_of).
    fn service_index(&self, key: &ServiceKey) -> Option<u16>;

    /// A service by index.
    fn service(&self, index: u16) -> Option<&Service>;

    /// The backend index in a slot of a service's Maglev table; 0: none.
    fn slot(&self, service: u16, slot: u32) -> u16;

    /// A backend by index.
    fn backend(&self, index: u16) -> Option<&Backend>;

    /// A way out by index.
    fn egress(&self, index: u16) -> Option<&Egress>;

    /// The backend index that the probe from this source port is for; 0: there is no such probe.
    fn probe(&self, port: u16) -> u16;

    /// Whether probes are sent from this address of ours.
    fn is_probe_source(&self, address: Address) -> bool;

    /// Whether one more ICMP message may be sent; see [`limit::Bucket`](crate::limit::Bucket).
    fn may_answer(&self) -> bool;

    /// Counts a frame forwarded to a backend, and with the interface where it arrived, as all that is
    /// counted of frames.
    fn count_traffic(&self, backend: u16, bytes: u64);

    /// Counts a frame forwarded from a backend to its client.
    fn count_return(&self, backend: u16, bytes: u64);

    /// Counts what happened to a flow of a backend.
    fn count_event(&self, backend: u16, event: Event);

    /// Counts a completed handshake of a backend, and its time in jiffies.
    fn count_handshake(&self, backend: u16, jiffies: u64);

    /// Counts a flow in this state that gave way to a new one; [`State::Free`]: a new one to which
    /// none gave way, the group being full of worthier ones.
    fn count_eviction(&self, victim: State);

    /// Counts a frame that was not forwarded.
    fn count_reason(&self, reason: Reason);
}
