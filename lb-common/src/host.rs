//! The tables in host memory: what stands in the place of the kernel's maps in tests.
//!
//! [`sample`] has an instance with services of every kind, and frames for it field by field;
//! [`corpus`] the frames of the wild, each with what becomes of it. The kernel's maps can be
//! filled from the same [`HostTables`], so both sides decide on the same grounds.

pub mod corpus;
pub mod errors;
pub mod sample;

use core::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};
use std::{boxed::Box, cell::RefCell, collections::BTreeMap, sync::Arc, vec, vec::Vec};

use zerocopy::FromZeros as _;

use crate::{
    abi::{
        ABI_VERSION, ALONE, Backend, Egress, FlowRecord, HandshakeTimes, Interfaces, NatHop,
        SEVERAL, Service, ServiceKey, Settings, VipFilter,
    },
    address::Address,
    counters::{Event, HANDSHAKE_BUCKETS, Traffic},
    flow::{self, Entry, GROUP, State, Words},
    frame::Frame,
    hash, limit, nat,
    parse::Segment,
    reason::Reason,
    service,
    steer::Stages,
    tables::Tables,
};

/// In [`Counted::by_place`]: what has no reason.
pub const FORWARDED: &str = "forwarded";

/// Everything the data plane knows and remembers.
pub struct HostTables {
    /// What every packet needs to know; `abi_version` 0: not written yet.
    pub settings: Settings,
    /// The VIP filter.
    pub filter: Box<VipFilter>,
    /// Where the frames of each interface are counted.
    pub interfaces: Box<Interfaces>,
    /// Where the next frame is counted; see [`Self::arrives`].
    pub place: Cell<u32>,
    /// By service index.
    pub services: Vec<HostService>,
    /// By backend index; nobody has index 0.
    pub backends: Vec<Backend>,
    /// By index; 0 is none.
    pub egresses: Vec<Egress>,
    /// By source port, the index of the backend that the probe is for.
    pub probes: BTreeMap<u16, u16>,
    /// Where probes come from; see [`Self::add_probe_source`].
    pub probe_sources: Vec<Address>,
    /// By index; 0 is none.
    pub nat_addresses: Vec<Address>,
    /// Both ends of translated connections; see [`Tables::is_nat_end`].
    pub nat_ends: Vec<ServiceKey>,
    /// VIPs whose pings are not answered.
    pub silent: Vec<Address>,
    /// How many more ICMP messages may be sent.
    pub answers_left: Cell<u64>,
    flows: Arc<[AtomicU64]>,
    records: RefCell<BTreeMap<u32, FlowRecord>>,
    hops: RefCell<BTreeMap<u32, NatHop>>,
    counted: RefCell<Counted>,
}

/// A service and its Maglev table.
pub struct HostService {
    /// Its record.
    pub service: Service,
    /// Whether it is found by its key.
    pub listed: bool,
    /// Backend indices; 0: none.
    pub slots: Vec<u16>,
}

/// All that was counted, without what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// By the reason's name.
    pub reasons: BTreeMap<&'static str, u64>,
    /// By the interface's place and the reason's name, and as `forwarded`, all that is not counted
    /// [`ALONE`].
    pub by_place: BTreeMap<(u32, &'static str), u64>,
    /// By backend index.
    pub traffic: BTreeMap<u16, Traffic>,
    /// By backend index and the event's name.
    pub events: BTreeMap<(u16, &'static str), u64>,
    /// By backend index.
    pub handshakes: BTreeMap<u16, HandshakeTimes>,
    /// Flows that gave way, by the name of their state; `free`, new ones to which none did.
    pub evictions: BTreeMap<&'static str, u64>,
}

impl Counted {
    /// How often a reason was given.
    pub fn reason(&self, reason: Reason) -> u64 {
        self.reasons.get(reason.name()).copied().unwrap_or(0)
    }

    /// How often something happened to a backend's flows.
    pub fn event(&self, backend: u16, event: Event) -> u64 {
        self.events.get(&(backend, event.name())).copied().unwrap_or(0)
    }

    /// The same, but of handshakes only how many: the time is another on each side.
    #[must_use]
    pub fn timeless(mut self) -> Self {
        for times in self.handshakes.values_mut() {
            let mut buckets = [0; HANDSHAKE_BUCKETS];
            buckets[0] = times.buckets.iter().sum();
            *times = HandshakeTimes { jiffies: 0, buckets };
        }
        self
    }

    /// Frames that were forwarded.
    pub fn packets(&self) -> u64 {
        self.traffic.values().map(Traffic::forwarded).sum()
    }
}

impl HostTables {
    /// Empty tables; `flows` words in the flow table, a power of two and at least a group.
    pub fn new(flows: usize) -> Self {
        assert!(flows.is_power_of_two() && flows >= GROUP, "{flows} flows");
        let mut idle_ticks = [0; 8];
        // As the daemon sets them at 250 Hz: 60, 900, 900, 10, 5, 60 and 60 seconds.
        for (state, ticks) in State::ALL.into_iter().zip([16, 221, 221, 4, 3, 16, 16]) {
            idle_ticks[state as usize] = ticks;
        }
        Self {
            settings: Settings {
                abi_version: ABI_VERSION,
                hz: 250,
                tick_shift: 10,
                flow_mask: (flows / GROUP - 1) as u32,
                idle_ticks,
                reuse_ticks: 4,
                hash_keys: Random(7).array(),
                ..Settings::new_zeroed()
            },
            filter: Box::new(VipFilter::new_zeroed()),
            interfaces: Box::new(Interfaces::new_zeroed()),
            place: Cell::new(ALONE),
            services: Vec::new(),
            backends: vec![Backend::default()],
            egresses: vec![Egress::default()],
            probes: BTreeMap::new(),
            probe_sources: Vec::new(),
            nat_addresses: vec![Address::UNSPECIFIED],
            nat_ends: Vec::new(),
            silent: Vec::new(),
            answers_left: Cell::new(limit::PER_SECOND),
            flows: (0..flows).map(|_| AtomicU64::new(0)).collect(),
            records: RefCell::default(),
            hops: RefCell::default(),
            counted: RefCell::default(),
        }
    }

    /// Adds a way out; tells its index.
    pub fn add_egress(&mut self, egress: Egress) -> u16 {
        self.egresses.push(egress);
        (self.egresses.len() - 1) as u16
    }

    /// Adds a backend; tells its index.
    pub fn add_backend(&mut self, backend: Backend) -> u16 {
        self.backends.push(backend);
        (self.backends.len() - 1) as u16
    }

    /// Adds a service that can be found; tells its index.
    pub fn add_service(&mut self, service: Service, slots: Vec<u16>) -> u16 {
        self.let_through(service.address);
        self.services.push(HostService { service, listed: true, slots });
        (self.services.len() - 1) as u16
    }

    /// Adds an address that probes are sent from.
    pub fn add_probe_source(&mut self, address: Address) {
        self.let_through(address);
        self.probe_sources.push(address);
    }

    /// Adds an address that translated packets are sent from; tells its index.
    pub fn add_nat_address(&mut self, address: Address) -> u16 {
        self.let_through(address);
        self.nat_addresses.push(address);
        self.nat_ends.push(nat::end(address, [0; 2]));
        (self.nat_addresses.len() - 1) as u16
    }

    /// Adds a backend that sees its clients' own addresses.
    pub fn add_return_source(&mut self, address: Address) {
        self.let_through(address);
        self.filter.sources = 1;
    }

    /// What comes next has arrived on the interface with this index, which is clients'.
    pub fn arrives(&self, interface: u32) {
        let Interfaces { place, .. } = *self.interfaces;
        let place = if place == SEVERAL { self.interfaces.place_of(interface) } else { place };
        self.place.set(place);
    }

    fn count_at_place(&self, name: &'static str) {
        let place = self.place.get();
        if place != ALONE {
            *self.counted.borrow_mut().by_place.entry((place, name)).or_default() += 1;
        }
    }

    fn let_through(&mut self, address: Address) {
        let (word, mask) = service::filter_position(address);
        self.filter.words[word] |= mask;
    }

    /// Every word of the flow table.
    pub fn flow_words(&self) -> &[AtomicU64] {
        &self.flows
    }

    /// Index of the word that holds a flow, if one does.
    pub fn position(&self, segment: &Segment) -> Option<usize> {
        let hash = hash::of_flow(segment, &self.settings.hash_keys);
        let index = flow::group_index(hash, &self.settings);
        let found = flow::find(&self.flow_group(index)?, hash)?;
        Some(index as usize * GROUP + found.index)
    }

    /// What is known of a flow.
    pub fn entry(&self, segment: &Segment) -> Option<Entry> {
        Some(Entry(self.flows[self.position(segment)?].load(Ordering::Relaxed)))
    }

    /// What was recorded of flows, by the index of their words.
    pub fn records(&self) -> BTreeMap<u32, FlowRecord> {
        self.records.borrow().clone()
    }

    /// Where the packets of return entries go, by the index of their words.
    pub fn hops(&self) -> BTreeMap<u32, NatHop> {
        self.hops.borrow().clone()
    }

    /// What was counted since the last call of [`Self::take_counted`].
    pub fn counted(&self) -> Counted {
        self.counted.borrow().clone()
    }

    /// What was counted since the last call.
    pub fn take_counted(&self) -> Counted {
        self.counted.take()
    }
}

/// Lets so many ticks pass: the last packet of every entry is as much longer ago. Of a table
/// that others write meanwhile, an entry that changes just then stays as it is.
pub fn pass(words: &[AtomicU64], ticks: u8) {
    for word in words {
        let seen = word.load(Ordering::Relaxed);
        let aged = aged(seen, ticks);
        if aged != seen {
            let _ = word.compare_exchange(seen, aged, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// A word of the flow table as it is so many ticks later.
pub fn aged(word: u64, ticks: u8) -> u64 {
    let entry = Entry(word);
    match entry.state() {
        State::Free => word,
        state => entry.with(entry.tick().wrapping_sub(ticks), state).0,
    }
}

/// A group of a table on the host.
pub struct HostGroup {
    flows: Arc<[AtomicU64]>,
    first: usize,
}

impl Words for HostGroup {
    fn load(&self, index: usize) -> u64 {
        self.flows[self.first + index].load(Ordering::Relaxed)
    }

    fn replace(&self, index: usize, old: u64, new: u64) -> bool {
        self.flows[self.first + index]
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

impl<F: Frame> Stages<F> for HostTables {}

impl Tables for HostTables {
    type Group = HostGroup;

    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings).filter(|settings| settings.abi_version != 0)
    }

    fn filter_word(&self, index: usize) -> u64 {
        self.filter.words[index]
    }

    fn filters_sources(&self) -> bool {
        self.filter.sources != 0
    }

    fn is_vip(&self, address: Address) -> bool {
        self.services.iter().any(|service| service.service.address == address)
    }

    fn is_silent(&self, address: Address) -> bool {
        self.is_vip(address) && self.silent.contains(&address)
    }

    fn flow_group(&self, index: u32) -> Option<HostGroup> {
        let first = index as usize * GROUP;
        (first < self.flows.len()).then(|| HostGroup { flows: Arc::clone(&self.flows), first })
    }

    fn record_flow(&self, index: u32, record: FlowRecord) {
        self.records.borrow_mut().insert(index, record);
    }

    fn flow_record(&self, index: u32) -> Option<FlowRecord> {
        // As in the kernel: what nobody has written is zero.
        let inside = (index as usize) < self.flows.len();
        inside.then(|| self.records.borrow().get(&index).copied().unwrap_or_default())
    }

    fn record_hop(&self, index: u32, hop: NatHop) {
        self.hops.borrow_mut().insert(index, hop);
    }

    fn hop(&self, index: u32) -> Option<NatHop> {
        let inside = (index as usize) < self.flows.len();
        inside.then(|| self.hops.borrow().get(&index).copied().unwrap_or_default())
    }

    fn nat_address(&self, index: u16) -> Option<Address> {
        self.nat_addresses.get(usize::from(index)).copied()
    }

    fn is_nat_end(&self, key: &ServiceKey) -> bool {
        self.nat_ends.contains(key)
    }

    fn service_index(&self, key: &ServiceKey) -> Option<u16> {
        self.services
            .iter()
            .position(|service| service.listed && service.service.key() == *key)
            .map(|index| index as u16)
    }

    fn service(&self, index: u16) -> Option<&Service> {
        let service = &self.services.get(usize::from(index))?.service;
        Some(service).filter(|service| service.slots != 0)
    }

    fn slot(&self, service: u16, slot: u32) -> u16 {
        let slots = self.services.get(usize::from(service)).map(|service| &service.slots);
        slots.and_then(|slots| slots.get(slot as usize)).copied().unwrap_or(0)
    }

    fn backend(&self, index: u16) -> Option<&Backend> {
        self.backends.get(usize::from(index))
    }

    fn egress(&self, index: u16) -> Option<&Egress> {
        self.egresses.get(usize::from(index))
    }

    fn probe(&self, port: u16) -> u16 {
        self.probes.get(&port).copied().unwrap_or(0)
    }

    fn is_probe_source(&self, address: Address) -> bool {
        self.probe_sources.contains(&address)
    }

    fn may_answer(&self) -> bool {
        let left = self.answers_left.get();
        self.answers_left.set(left.saturating_sub(1));
        left > 0
    }

    fn count_traffic(&self, backend: u16, bytes: u64) {
        let mut counted = self.counted.borrow_mut();
        let traffic = counted.traffic.entry(backend).or_default();
        traffic.packets += 1;
        traffic.bytes += bytes;
        drop(counted);
        // What goes to nobody is a self-test.
        if backend != 0 {
            self.count_at_place(FORWARDED);
        }
    }

    fn count_return(&self, backend: u16, bytes: u64) {
        let mut counted = self.counted.borrow_mut();
        let traffic = counted.traffic.entry(backend).or_default();
        traffic.return_packets += 1;
        traffic.return_bytes += bytes;
        drop(counted);
        self.count_at_place(FORWARDED);
    }

    fn count_event(&self, backend: u16, event: Event) {
        *self.counted.borrow_mut().events.entry((backend, event.name())).or_default() += 1;
    }

    fn count_handshake(&self, backend: u16, jiffies: u64) {
        self.count_event(backend, Event::Handshake);
        self.counted.borrow_mut().handshakes.entry(backend).or_default().add(jiffies);
    }

    fn count_eviction(&self, victim: State) {
        *self.counted.borrow_mut().evictions.entry(victim.name()).or_default() += 1;
    }

    fn count_reason(&self, reason: Reason) {
        *self.counted.borrow_mut().reasons.entry(reason.name()).or_default() += 1;
        self.count_at_place(reason.name());
    }
}

/// Numbers that look random and are the same on every machine: SplitMix64 (Steele, Lea and
/// Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn choose<'c, T>(&mut self, among: &'c [T]) -> &'c T {
        &among[self.below(among.len())]
    }

    /// The next numbers.
    pub fn array<const N: usize>(&mut self) -> [u64; N] {
        core::array::from_fn(|_| self.word())
    }

    /// Bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.word() as u8).collect()
    }
}
