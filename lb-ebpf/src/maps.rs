//! All maps. Their layouts and capacities are `lb_common::abi`'s.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuArray},
    macros::btf_map,
};
use lb_common::{
    abi::{
        BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, Backend, CarriedChunk, Egress, EventsChunk,
        EvictionCounts, FlowRecord, Globals, NatHop, ProbeLine, ReasonCounts, SLOT_FLAGS, Service,
        ServiceKey, SlotLine, capacity,
    },
    address::Address,
    flow::{GROUP, Group},
    limit::Bucket,
    maglev::DEFAULT_SLOTS,
    steer::Turn,
};

/// A service's Maglev table. Other lengths may stand in its place.
pub type SlotLines =
    Array<SlotLine, { (DEFAULT_SLOTS as usize).div_ceil(capacity::SLOTS_PER_LINE) }, SLOT_FLAGS>;

/// Traffic of backends in one direction.
pub type Carried = PerCpuArray<CarriedChunk, { capacity::COUNTER_CHUNKS }>;

#[btf_map]
pub static GLOBALS: Array<Globals, 1, BPF_F_MMAPABLE> = Array::new();

#[btf_map]
pub static VIPS: HashMap<Address, u32, { capacity::SERVICES }> = HashMap::new();

/// The daemon sets the number of elements of the flow table when it loads the program.
#[btf_map]
pub static FLOWS: Array<Group, { capacity::FLOWS / GROUP }, BPF_F_MMAPABLE> = Array::new();

#[btf_map]
pub static FLOW_RECORDS: Array<FlowRecord, { capacity::FLOWS }, BPF_F_MMAPABLE> = Array::new();

#[btf_map]
pub static SERVICE_INDEX: HashMap<ServiceKey, u32, { capacity::SERVICES }> = HashMap::new();

#[btf_map]
pub static SERVICES: Array<Service, { capacity::SERVICES }> = Array::new();

#[btf_map]
pub static SLOTS: ArrayOfMaps<SlotLines, { capacity::SERVICES }> = ArrayOfMaps::new();

#[btf_map]
pub static BACKENDS: Array<Backend, { capacity::BACKENDS }, BPF_F_MMAPABLE> = Array::new();

#[btf_map]
pub static EGRESSES: Array<Egress, { capacity::EGRESSES }> = Array::new();

#[btf_map]
pub static TRAFFIC: Carried = PerCpuArray::new();

#[btf_map]
pub static RETURNS: Carried = PerCpuArray::new();

#[btf_map]
pub static EVENTS: PerCpuArray<EventsChunk, { capacity::COUNTER_CHUNKS }> = PerCpuArray::new();

#[btf_map]
pub static REASONS: PerCpuArray<ReasonCounts, { capacity::PLACES }> = PerCpuArray::new();

#[btf_map]
pub static EVICTIONS: PerCpuArray<EvictionCounts, 1> = PerCpuArray::new();

#[btf_map]
pub static PROBES: Array<ProbeLine, { capacity::PROBE_LINES }, BPF_F_MMAPABLE> = Array::new();

#[btf_map]
pub static PROBE_SOURCES: HashMap<Address, u32, { capacity::PROBE_SOURCES }> = HashMap::new();

#[btf_map]
pub static NAT_ADDRESSES: Array<Address, { capacity::NAT_ADDRESSES }> = Array::new();

#[btf_map]
pub static NAT_ENDS: HashMap<
    ServiceKey,
    u32,
    { capacity::BACKENDS + capacity::NAT_ADDRESSES },
    BPF_F_NO_PREALLOC,
> = HashMap::new();

/// As many as flows.
#[btf_map]
pub static NAT_HOPS: Array<NatHop, { capacity::FLOWS }, BPF_F_MMAPABLE> = Array::new();

/// How many ICMP messages each CPU may send.
#[btf_map]
pub static ANSWERS_LEFT: PerCpuArray<Bucket, 1> = PerCpuArray::new();

/// What a CPU is at, and what it is at in a test run: see `stages.rs`.
#[btf_map]
pub static TURN: PerCpuArray<Turn, 2> = PerCpuArray::new();
