//! Tables that can be decided on without a trace: what is read comes from others, what is written
//! or counted stays here, and goes when this goes.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use lb_common::{
    abi::{Backend, Egress, FlowRecord, NatHop, Service, ServiceKey, Settings},
    address::Address,
    counters::Event,
    flow::{GROUP, State, Words},
    frame::Frame,
    reason::Reason,
    steer::Stages,
    tables::Tables,
};

/// Other tables, and over them what was written here.
pub struct Overlay<'t, T> {
    base: &'t T,
    groups: RefCell<BTreeMap<u32, Group>>,
    records: RefCell<BTreeMap<u32, FlowRecord>>,
    hops: RefCell<BTreeMap<u32, NatHop>>,
    counted: RefCell<Counted>,
}

/// A group of the flow table as it was when it was first looked at, and as it was changed since.
#[derive(Clone)]
pub struct Group(Rc<[Cell<u64>; GROUP]>);

/// What one frame was counted as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Index of the backend that it is forwarded to, or comes from.
    pub backend: Option<u16>,
    /// It comes from there.
    pub is_return: bool,
    /// Why it is not forwarded.
    pub reason: Option<Reason>,
    /// What happened to its flow, with the index of the backend.
    pub events: Vec<(u16, Event)>,
}

impl<'t, T> Overlay<'t, T> {
    /// Nothing written yet.
    pub fn over(base: &'t T) -> Self {
        Self {
            base,
            groups: RefCell::default(),
            records: RefCell::default(),
            hops: RefCell::default(),
            counted: RefCell::default(),
        }
    }

    /// What was counted.
    pub fn counted(&self) -> Counted {
        self.counted.borrow().clone()
    }
}

impl Words for Group {
    fn load(&self, index: usize) -> u64 {
        self.0[index].get()
    }

    fn replace(&self, index: usize, old: u64, new: u64) -> bool {
        let is_unchanged = self.0[index].get() == old;
        if is_unchanged {
            self.0[index].set(new);
        }
        is_unchanged
    }
}

impl<F: Frame, T: Tables> Stages<F> for Overlay<'_, T> {}

impl<T: Tables> Tables for Overlay<'_, T> {
    type Group = Group;

    fn settings(&self) -> Option<&Settings> {
        self.base.settings()
    }

    fn filter_word(&self, index: usize) -> u64 {
        self.base.filter_word(index)
    }

    fn filters_sources(&self) -> bool {
        self.base.filters_sources()
    }

    fn is_vip(&self, address: Address) -> bool {
        self.base.is_vip(address)
    }

    fn is_silent(&self, address: Address) -> bool {
        self.base.is_silent(address)
    }

    fn flow_group(&self, index: u32) -> Option<Group> {
        let mut groups = self.groups.borrow_mut();
        if let Some(group) = groups.get(&index) {
            return Some(group.clone());
        }
        let words = self.base.flow_group(index)?;
        let group = Group(Rc::new(std::array::from_fn(|place| Cell::new(words.load(place)))));
        groups.insert(index, group.clone());
        Some(group)
    }

    fn record_flow(&self, index: u32, record: FlowRecord) {
        self.records.borrow_mut().insert(index, record);
    }

    fn flow_record(&self, index: u32) -> Option<FlowRecord> {
        let written = self.records.borrow().get(&index).copied();
        written.or_else(|| self.base.flow_record(index))
    }

    fn record_hop(&self, index: u32, hop: NatHop) {
        self.hops.borrow_mut().insert(index, hop);
    }

    fn hop(&self, index: u32) -> Option<NatHop> {
        let written = self.hops.borrow().get(&index).copied();
        written.or_else(|| self.base.hop(index))
    }

    fn nat_address(&self, index: u16) -> Option<Address> {
        self.base.nat_address(index)
    }

    fn is_nat_end(&self, key: &ServiceKey) -> bool {
        self.base.is_nat_end(key)
    }

    fn service_index(&self, key: &ServiceKey) -> Option<u16> {
        self.base.service_index(key)
    }

    fn service(&self, index: u16) -> Option<&Service> {
        self.base.service(index)
    }

    fn slot(&self, service: u16, slot: u32) -> u16 {
        self.base.slot(service, slot)
    }

    fn backend(&self, index: u16) -> Option<&Backend> {
        self.base.backend(index)
    }

    fn egress(&self, index: u16) -> Option<&Egress> {
        self.base.egress(index)
    }

    fn probe(&self, port: u16) -> u16 {
        self.base.probe(port)
    }

    fn is_probe_source(&self, address: Address) -> bool {
        self.base.is_probe_source(address)
    }

    fn may_answer(&self) -> bool {
        self.base.may_answer()
    }

    fn count_traffic(&self, backend: u16, _bytes: u64) {
        self.counted.borrow_mut().backend = Some(backend);
    }

    fn count_return(&self, backend: u16, _bytes: u64) {
        let mut counted = self.counted.borrow_mut();
        counted.backend = Some(backend);
        counted.is_return = true;
    }

    fn count_event(&self, backend: u16, event: Event) {
        self.counted.borrow_mut().events.push((backend, event));
    }

    fn count_handshake(&self, backend: u16, _jiffies: u64) {
        self.count_event(backend, Event::Handshake);
    }

    fn count_eviction(&self, _victim: State) {}

    fn count_reason(&self, reason: Reason) {
        self.counted.borrow_mut().reason = Some(reason);
    }
}
