//! The live maps as tables that are only read. What is written on them goes nowhere: decide over
//! [`Overlay`](super::overlay::Overlay).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use lb_common::{
    abi::{Backend, Egress, FlowRecord, NatHop, Service, ServiceKey, Settings},
    address::Address,
    counters::Event,
    flow::{GROUP, State, Words},
    reason::Reason,
    service,
    tables::Tables,
};

use crate::{
    datapath::Reading,
    reconcile::{self, Image},
};

/// All that a segment to one VIP may meet, read once; the flow table is looked at when it is asked.
pub struct Live<'r> {
    reading: &'r Reading,
    image: Image,
    /// Maglev tables of the services that have the VIP, by service index.
    slots: BTreeMap<u16, Vec<u16>>,
}

/// A group of the flow table, as it was at one moment.
pub struct Seen([u64; GROUP]);

impl<'r> Live<'r> {
    /// Reads the maps.
    ///
    /// # Errors
    /// If one can't be read.
    pub fn read(reading: &'r Reading, vip: SocketAddr) -> Result<Self> {
        let image = reconcile::read(&reading.maps)?;
        let mut slots = BTreeMap::new();
        for (index, found) in &image.services {
            let Service { slots: count, .. } = found.service;
            if service::is_at(&found.service.key(), vip.ip().into(), vip.port().to_be_bytes()) {
                slots.insert(*index, reading.maps.slots(u32::from(*index), count)?);
            }
        }
        Ok(Self { reading, image, slots })
    }
}

impl Words for Seen {
    fn load(&self, index: usize) -> u64 {
        self.0[index]
    }

    fn replace(&self, _index: usize, _old: u64, _new: u64) -> bool {
        false
    }
}

impl Tables for Live<'_> {
    type Group = Seen;

    fn settings(&self) -> Option<&Settings> {
        Some(self.reading.settings())
    }

    fn filter_word(&self, index: usize) -> u64 {
        self.image.filter_word(index)
    }

    fn filters_sources(&self) -> bool {
        self.image.filters_sources()
    }

    fn is_vip(&self, address: Address) -> bool {
        self.image.is_vip(address)
    }

    fn is_silent(&self, address: Address) -> bool {
        self.image.is_silent(address)
    }

    fn flow_group(&self, index: u32) -> Option<Seen> {
        self.reading.group(index).map(Seen)
    }

    fn record_flow(&self, _index: u32, _record: FlowRecord) {}

    fn flow_record(&self, index: u32) -> Option<FlowRecord> {
        self.reading.record(index)
    }

    fn record_hop(&self, _index: u32, _hop: NatHop) {}

    fn hop(&self, index: u32) -> Option<NatHop> {
        self.reading.maps.nat_hop(index).ok()
    }

    fn nat_address(&self, index: u16) -> Option<Address> {
        self.image.nat_address(index)
    }

    fn is_nat_end(&self, key: &ServiceKey) -> bool {
        let port = u16::from_be_bytes(key.port);
        self.image.nat_ends.contains(&SocketAddr::new(key.address.into(), port))
    }

    fn service_index(&self, key: &ServiceKey) -> Option<u16> {
        let mut services = self.image.services.iter();
        services
            .find(|(_, found)| found.listed && found.service.key() == *key)
            .map(|(index, _)| *index)
    }

    fn service(&self, index: u16) -> Option<&Service> {
        self.image.services.get(&index).map(|found| &found.service)
    }

    fn slot(&self, service: u16, slot: u32) -> u16 {
        let slots = self.slots.get(&service);
        slots.and_then(|slots| slots.get(slot as usize)).copied().unwrap_or(0)
    }

    fn backend(&self, index: u16) -> Option<&Backend> {
        self.image.backends.get(&index)
    }

    fn egress(&self, index: u16) -> Option<&Egress> {
        self.image.egresses.get(&index)
    }

    // Answers to our own probes go to addresses of this host, which nobody asks about.
    fn probe(&self, _port: u16) -> u16 {
        0
    }

    fn is_probe_source(&self, address: Address) -> bool {
        self.image.probe_sources.contains(&IpAddr::from(address))
    }

    fn may_answer(&self) -> bool {
        true
    }

    fn count_traffic(&self, _backend: u16, _bytes: u64) {}

    fn count_return(&self, _backend: u16, _bytes: u64) {}

    fn count_event(&self, _backend: u16, _event: Event) {}

    fn count_handshake(&self, _backend: u16, _jiffies: u64) {}

    fn count_eviction(&self, _victim: State) {}

    fn count_reason(&self, _reason: Reason) {}
}
