//! Implements `Tables` over the maps.

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

use aya_ebpf::helpers::bpf_jiffies64;
use lb_common::{
    abi::{
        self, ALONE, Backend, Egress, EvictionCounts, FORWARDED, FlowRecord, Globals, NatHop,
        ReasonCounts, SEVERAL, Service, ServiceKey, Settings, capacity,
    },
    address::Address,
    counters::{EVENTS, Event},
    flow::{GROUP, State, Words},
    frame::Frame as _,
    reason::Reason,
    tables::Tables,
};

use crate::{
    frame::{XdpFrame, opaque},
    maps, notes, stages,
};

/// The time of this packet: one load, where the clocks cost 13 to 30 ns.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: no arguments, no memory.
    unsafe { bpf_jiffies64() }
}

/// Counts in an element of `REASONS`.
const REASONS: usize = size_of::<ReasonCounts>() / size_of::<u64>();

/// Counts in the element of `EVICTIONS`.
const EVICTIONS: usize = size_of::<EvictionCounts>() / size_of::<u64>();

/// Words of a flow's record.
const RECORD: usize = size_of::<FlowRecord>() / size_of::<u64>();

/// The kernel's maps, and where in `REASONS` a frame is counted.
pub struct Kernel {
    place: u32,
    /// Looked up once: place, filter and settings are asked for one after the other.
    globals: Option<&'static Globals>,
}

impl Kernel {
    /// For what is decided when the filter has spoken, and counts no frame.
    pub const BEHIND_FILTER: Self = Self { place: abi::ELSEWHERE, globals: None };

    /// For a frame that arrived where clients' do.
    #[inline(always)]
    pub fn of_clients(frame: &XdpFrame) -> Self {
        let globals = maps::GLOBALS.get(0);
        let place = match globals.map(|globals| globals.interfaces.place) {
            Some(SEVERAL) => stages::place_of(frame.interface()),
            // `ALONE`, but nothing that LLVM or the verifier could make two programs of.
            Some(place) => place,
            None => abi::ELSEWHERE,
        };
        Self { place, globals }
    }

    /// For a frame that arrived on another interface.
    #[inline(always)]
    pub fn elsewhere() -> Self {
        Self { place: abi::ELSEWHERE, globals: maps::GLOBALS.get(0) }
    }

    #[inline(always)]
    fn count_at_place(&self, number: usize) {
        if let Some(counts) = maps::REASONS.get_ptr_mut(self.place) {
            // A reason that a function has returned is a number like any other to the verifier.
            let number = opaque(number) % REASONS;
            // SAFETY: no other CPU has this element.
            unsafe { (*counts)[number] += 1 };
        }
    }
}

/// Counts a frame of this many bytes to or from a backend.
#[inline(always)]
fn count(carried: &maps::Carried, backend: u16, bytes: u64) {
    let index = usize::from(backend);
    let per_chunk = capacity::COUNTERS_PER_CHUNK;
    if let Some(chunk) = carried.get_ptr_mut((index / per_chunk) as u32) {
        // SAFETY: the index is below the chunk's length, and no other CPU has this chunk.
        let carried = unsafe { &mut (*chunk)[index % per_chunk] };
        carried.packets += 1;
        carried.bytes += bytes;
    }
}

/// A group of the flow table, shared with all CPUs and with the daemon.
pub struct Group(*mut u64);

impl Group {
    #[inline(always)]
    fn word(&self, index: usize) -> *mut u64 {
        // SAFETY: the element holds `GROUP` words.
        unsafe { self.0.add(index & (GROUP - 1)) }
    }
}

impl Words for Group {
    #[inline(always)]
    fn load(&self, index: usize) -> u64 {
        // SAFETY: the word is one of the element's, aligned to 8. A volatile load of an aligned
        // word is one 64-bit access; LLVM can't emit an atomic one before `-C target-cpu=v4`.
        unsafe { self.word(index).read_volatile() }
    }

    #[inline(always)]
    fn replace(&self, index: usize, old: u64, new: u64) -> bool {
        // SAFETY: as above. `AtomicU64` has no exchange on this target, its intrinsic does.
        unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                self.word(index),
                old,
                new,
            )
            .1
        }
    }
}

impl Tables for Kernel {
    type Group = Group;

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        let globals = self.globals.or_else(|| maps::GLOBALS.get(0))?;
        Some(&globals.settings).filter(|settings| settings.abi_version != 0)
    }

    #[inline(always)]
    fn filter_word(&self, index: usize) -> u64 {
        match self.globals {
            Some(globals) => globals.filter.words[index % capacity::FILTER_WORDS],
            None => 0,
        }
    }

    #[inline(always)]
    fn filters_sources(&self) -> bool {
        self.globals.is_some_and(|globals| globals.filter.sources != 0)
    }

    #[inline(always)]
    fn is_vip(&self, address: Address) -> bool {
        // SAFETY: only the pointer counts, the value is not read.
        unsafe { maps::VIPS.get(address) }.is_some()
    }

    #[inline(always)]
    fn is_silent(&self, address: Address) -> bool {
        // SAFETY: a word, which is written whole.
        unsafe { maps::VIPS.get(address) }.is_some_and(|value| *value == abi::SILENT)
    }

    #[inline(always)]
    fn flow_group(&self, index: u32) -> Option<Group> {
        maps::FLOWS.get_ptr_mut(index).map(|group| Group(group.cast()))
    }

    #[inline(always)]
    fn record_flow(&self, index: u32, record: FlowRecord) {
        if let Some(place) = maps::FLOW_RECORDS.get_ptr_mut(index) {
            // SAFETY: the element is a `FlowRecord`; a reader in userspace may see a mixture
            // of two records, and lists one flow oddly.
            unsafe { place.write_volatile(record) };
        }
    }

    #[inline(always)]
    fn expect_record(&self, index: u32) {
        if let Some(record) = maps::FLOW_RECORDS.get_ptr(index) {
            // SAFETY: the element is a `FlowRecord`, which begins with an aligned word.
            unsafe { record.cast::<u64>().read_volatile() };
        }
    }

    #[inline(always)]
    fn expect_hop(&self, index: u32) {
        if let Some(hop) = maps::NAT_HOPS.get_ptr(index) {
            // SAFETY: the element is a `NatHop`, which begins with an aligned word.
            unsafe { hop.cast::<u64>().read_volatile() };
        }
    }

    #[inline(always)]
    fn flow_record(&self, index: u32) -> Option<FlowRecord> {
        let record = maps::FLOW_RECORDS.get_ptr(index)?.cast::<[u64; RECORD]>();
        // SAFETY: the element is a `FlowRecord`, of so many words. Volatile, because who reads it
        // looks at the flow's word before and after; in words, because its ports would be read byte
        // by byte.
        Some(zerocopy::transmute!(unsafe { record.read_volatile() }))
    }

    #[inline(always)]
    fn record_hop(&self, index: u32, hop: NatHop) {
        if let Some(place) = maps::NAT_HOPS.get_ptr_mut(index) {
            // SAFETY: the element is a `NatHop`.
            unsafe { place.write(hop) };
        }
    }

    #[inline(always)]
    fn hop(&self, index: u32) -> Option<NatHop> {
        maps::NAT_HOPS.get(index).copied()
    }

    #[inline(always)]
    fn nat_address(&self, index: u16) -> Option<Address> {
        maps::NAT_ADDRESSES.get(u32::from(index)).copied()
    }

    #[inline(always)]
    fn is_nat_end(&self, key: &ServiceKey) -> bool {
        // SAFETY: only the pointer counts, the value is not read.
        unsafe { maps::NAT_ENDS.get(key) }.is_some()
    }

    #[inline(always)]
    fn service_index(&self, key: &ServiceKey) -> Option<u16> {
        // SAFETY: the daemon never deletes and reuses an element while it is read: the value
        // is one aligned word.
        unsafe { maps::SERVICE_INDEX.get(key) }.map(|index| *index as u16)
    }

    #[inline(always)]
    fn service(&self, index: u16) -> Option<&Service> {
        maps::SERVICES.get(u32::from(index)).filter(|service| service.slots != 0)
    }

    #[inline(always)]
    fn slot(&self, service: u16, slot: u32) -> u16 {
        let per_line = capacity::SLOTS_PER_LINE as u32;
        match maps::SLOTS.get_value(u32::from(service), &(slot / per_line)) {
            Some(line) => line[(slot % per_line) as usize],
            None => 0,
        }
    }

    #[inline(always)]
    fn backend(&self, index: u16) -> Option<&Backend> {
        maps::BACKENDS.get(u32::from(index))
    }

    #[inline(always)]
    fn egress(&self, index: u16) -> Option<&Egress> {
        maps::EGRESSES.get(u32::from(index))
    }

    #[inline(always)]
    fn probe(&self, port: u16) -> u16 {
        let per_line = capacity::PROBES_PER_LINE as u16;
        match maps::PROBES.get(u32::from(port / per_line)) {
            Some(line) => line[usize::from(port % per_line)],
            None => 0,
        }
    }

    #[inline(always)]
    fn is_probe_source(&self, address: Address) -> bool {
        // SAFETY: only the pointer counts, the value is not read.
        unsafe { maps::PROBE_SOURCES.get(address) }.is_some()
    }

    #[inline(always)]
    fn may_answer(&self) -> bool {
        let (Some(settings), Some(bucket)) = (self.settings(), maps::ANSWERS_LEFT.get_ptr_mut(0))
        else {
            return false;
        };
        // SAFETY: no other CPU has this element.
        unsafe { (*bucket).take(jiffies(), settings.hz) }
    }

    #[inline(always)]
    fn count_traffic(&self, backend: u16, bytes: u64) {
        count(&maps::TRAFFIC, backend, bytes);
        // What goes to nobody is a self-test.
        if self.place != ALONE && backend != 0 {
            self.count_at_place(FORWARDED);
        }
        notes::take(|notes| notes.traffic(backend));
    }

    #[inline(always)]
    fn count_return(&self, backend: u16, bytes: u64) {
        count(&maps::RETURNS, backend, bytes);
        if self.place != ALONE {
            self.count_at_place(FORWARDED);
        }
        notes::take(|notes| notes.answer(backend));
    }

    #[inline(always)]
    fn count_event(&self, backend: u16, event: Event) {
        let index = usize::from(backend);
        let per_chunk = capacity::COUNTERS_PER_CHUNK;
        if let Some(chunk) = maps::EVENTS.get_ptr_mut((index / per_chunk) as u32) {
            // SAFETY: as in `count`; an event's number is below `EVENTS`.
            let counts = unsafe { &mut (*chunk)[index % per_chunk].counts };
            counts[event as usize % EVENTS] += 1;
        }
        notes::take(|notes| notes.event(backend, event));
    }

    #[inline(always)]
    fn count_handshake(&self, backend: u16, jiffies: u64) {
        let index = usize::from(backend);
        let per_chunk = capacity::COUNTERS_PER_CHUNK;
        if let Some(chunk) = maps::EVENTS.get_ptr_mut((index / per_chunk) as u32) {
            // SAFETY: as in `count`.
            let events = unsafe { &mut (*chunk)[index % per_chunk] };
            events.counts[Event::Handshake as usize] += 1;
            events.handshakes.add(jiffies);
        }
        notes::take(|notes| notes.event(backend, Event::Handshake));
    }

    #[inline(always)]
    fn count_eviction(&self, victim: State) {
        if let Some(counts) = maps::EVICTIONS.get_ptr_mut(0) {
            let number = opaque(victim as usize) % EVICTIONS;
            // SAFETY: no other CPU has this element.
            unsafe { (*counts)[number] += 1 };
        }
    }

    #[inline(always)]
    fn count_reason(&self, reason: Reason) {
        self.count_at_place(reason as usize);
        notes::take(|notes| notes.reason(reason));
    }
}
