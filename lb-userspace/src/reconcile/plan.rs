//! What must be written so that the maps hold what is wanted, in an order in which no packet
//! meets a half-made service.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use anyhow::{Result, anyhow};
use lb_common::{
    abi::{Backend, Egress, NextHop, Service, ServiceKey, capacity},
    address::Address,
    maglev::Member,
    service::BackendState,
};

use super::{
    Image, WantedService,
    image::{ServiceImage, filter_words},
    wanted::Resolved,
};

/// One change of the maps.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A backend index has a new owner: its counters start at zero.
    ClearCounters(u16),
    /// A way out.
    Egress(u16, Egress),
    /// A backend's record.
    Backend(u16, Backend),
    /// A service's Maglev table, whole.
    Slots {
        /// Whose.
        service: u16,
        /// How many.
        slots: u32,
        /// Who shares them.
        members: Vec<Member>,
    },
    /// A service's record.
    Service(u16, Service),
    /// From here on the service is found by its key.
    List(ServiceKey, u16),
    /// From here on it is not: known flows go on, new ones are the kernel's.
    Unlist(ServiceKey, u16),
    /// An address is a VIP.
    AddVip(IpAddr),
    /// It no longer is.
    RemoveVip(IpAddr),
    /// Probes are sent from this address of ours.
    AddProbeSource(IpAddr),
    /// They no longer are.
    RemoveProbeSource(IpAddr),
    /// The words of the VIP filter.
    Filter(Vec<u64>),
    /// Nobody wants this backend any more; it stays until its last flow has ended.
    Orphan(u16),
    /// The service is gone, its last flow too.
    RemoveService(u16),
    /// The backend is gone, its last flow too.
    RemoveBackend(u16),
}

/// Plans the way from `image` to `wanted`, with probes sent from `probe_sources`. `is_idle` tells
/// of an orphan whether its last flow has ended.
///
/// # Errors
/// If there are more things than the maps hold.
pub fn plan(
    image: &Image,
    wanted: &[WantedService],
    probe_sources: &BTreeSet<IpAddr>,
    is_idle: impl Fn(u16) -> bool,
) -> Result<Vec<Write>> {
    let mut planner = Planner::new(image);
    let mut wanted_indices = BTreeSet::new();
    for service in wanted {
        wanted_indices.insert(planner.service(service)?);
    }
    planner.addresses(probe_sources);
    planner.unwanted(&wanted_indices, is_idle);
    planner.addresses(probe_sources);
    Ok(planner.writes.into_iter().flatten().collect())
}

/// When a write is made: all of one stage come before all of the next, so that the writers of
/// Maglev tables, which wait for the kernel, are side by side.
#[derive(Clone, Copy)]
enum Stage {
    /// Counters of indices that get a new owner; many share one element of a map.
    Counters,
    /// What tables and services refer to.
    Parts,
    /// Maglev tables.
    Slots,
    /// Backends whose flows are reset: a new flow that met one in its slot would be refused.
    Resets,
    /// What makes services known, what takes them away.
    Doors,
}

struct Planner {
    /// What the maps will hold after `writes`.
    image: Image,
    /// By [`Stage`].
    writes: [Vec<Write>; 5],
    /// Backends that are wanted.
    kept: BTreeSet<u16>,
    /// Services by what they are.
    services: HashMap<ServiceKey, u16>,
    /// Backends by what they are: service, address, port.
    backends: HashMap<(u16, Address, [u8; 2]), u16>,
    /// Ways out by what they are.
    egresses: HashMap<Egress, u16>,
    /// No index below is free: there is no need to look there again.
    lowest_free_backend: u16,
}

impl Planner {
    fn new(image: &Image) -> Self {
        Self {
            image: image.clone(),
            writes: Default::default(),
            kept: BTreeSet::new(),
            services: image.services.iter().map(|(i, s)| (s.service.key, *i)).collect(),
            backends: image
                .backends
                .iter()
                .map(|(i, record)| ((record.service, record.address, record.port), *i))
                .collect(),
            egresses: image.egresses.iter().map(|(i, egress)| (*egress, *i)).collect(),
            lowest_free_backend: 1,
        }
    }

    fn write(&mut self, stage: Stage, write: Write) {
        self.image.record(&write);
        self.writes[stage as usize].push(write);
    }

    fn service(&mut self, wanted: &WantedService) -> Result<u16> {
        let index = match self.services.get(&wanted.key) {
            Some(index) => *index,
            None => free_index(0, capacity::SERVICES, |i| self.image.services.contains_key(&i))
                .ok_or_else(|| too_many("services", capacity::SERVICES))?,
        };
        let before: Option<ServiceImage> = self.image.services.get(&index).cloned();

        let is_listed = before.as_ref().is_some_and(|image| image.listed);
        if is_listed && !wanted.listed {
            self.write(Stage::Parts, Write::Unlist(wanted.key, index));
        }
        let mut members = Vec::with_capacity(wanted.backends.len());
        for backend in &wanted.backends {
            let number = self.backend(index, wanted, backend)?;
            if backend.weight > 0 {
                let (weight, hashes) = (backend.weight, backend.hashes);
                members.push(Member { backend: number, weight, hashes });
            }
        }

        let record = Service {
            key: wanted.key,
            slots: wanted.slots,
            affinity: wanted.affinity as u8,
            reserved: [0; 3],
        };
        let slots_before = before.as_ref().map_or(0, |image| image.service.slots);
        let same_slots = before.as_ref().is_some_and(|image| {
            image.members.as_ref() == Some(&members) && slots_before == wanted.slots
        });
        let same_record = before.as_ref().is_some_and(|image| image.service == record);
        // A table that gets shorter is written after its length, a longer one before: no
        // packet looks behind the end.
        let record_first = wanted.slots < slots_before || before.is_none();
        if record_first && !same_record {
            self.write(Stage::Parts, Write::Service(index, record));
        }
        if !same_slots {
            let slots = wanted.slots;
            self.write(Stage::Slots, Write::Slots { service: index, slots, members });
        }
        if !record_first && !same_record {
            self.write(Stage::Doors, Write::Service(index, record));
        }
        if wanted.listed && !is_listed {
            self.write(Stage::Doors, Write::List(wanted.key, index));
        }
        Ok(index)
    }

    fn backend(
        &mut self,
        service: u16,
        wanted: &WantedService,
        backend: &super::WantedBackend,
    ) -> Result<u16> {
        let index = match self.backends.get(&(service, backend.address, backend.port)) {
            Some(index) => *index,
            None => {
                let is_taken = |i| self.image.backends.contains_key(&i);
                let index = free_index(self.lowest_free_backend, capacity::BACKENDS, is_taken)
                    .ok_or_else(|| too_many("backends", capacity::BACKENDS - 1))?;
                self.lowest_free_backend = index;
                self.write(Stage::Counters, Write::ClearCounters(index));
                index
            }
        };
        let before = self.image.backends.get(&index).copied();
        let (next_hop, mtu) = match &backend.next_hop {
            Some(hop) => (NextHop::new(hop.mac, self.egress(hop)?), hop.mtu),
            // The last one known is better than none.
            None => before.map_or((NextHop::UNRESOLVED, 0), |record| (record.next_hop, record.mtu)),
        };
        let record = Backend {
            address: backend.address,
            next_hop,
            service,
            mtu,
            port: backend.port,
            state: backend.state as u8,
            forwarding: wanted.forwarding as u8,
        };
        if before != Some(record) || self.image.orphans.contains(&index) {
            let stage = match backend.state {
                BackendState::Reset => Stage::Resets,
                BackendState::Absent | BackendState::Forward | BackendState::Suspect => {
                    Stage::Parts
                }
            };
            self.write(stage, Write::Backend(index, record));
        }
        self.kept.insert(index);
        Ok(index)
    }

    fn egress(&mut self, hop: &Resolved) -> Result<u16> {
        if let Some(index) = self.egresses.get(&hop.egress) {
            return Ok(*index);
        }
        let in_use: BTreeSet<u16> =
            self.image.backends.values().map(|record| record.next_hop.egress()).collect();
        let index = free_index(1, capacity::EGRESSES, |i| in_use.contains(&i))
            .ok_or_else(|| too_many("ways out", capacity::EGRESSES - 1))?;
        // What stood there is nobody's any more.
        self.egresses.retain(|_, other| *other != index);
        self.egresses.insert(hop.egress, index);
        self.write(Stage::Parts, Write::Egress(index, hop.egress));
        Ok(index)
    }

    /// Those that frames for us are addressed to.
    fn addresses(&mut self, probe_sources: &BTreeSet<IpAddr>) {
        let vips: BTreeSet<IpAddr> =
            self.image.services.values().map(|image| image.service.key.address.into()).collect();
        for vip in vips.difference(&self.image.vips.clone()) {
            self.write(Stage::Doors, Write::AddVip(*vip));
        }
        for vip in self.image.vips.clone().difference(&vips) {
            self.write(Stage::Doors, Write::RemoveVip(*vip));
        }
        for source in probe_sources.difference(&self.image.probe_sources.clone()) {
            self.write(Stage::Doors, Write::AddProbeSource(*source));
        }
        for source in self.image.probe_sources.clone().difference(probe_sources) {
            self.write(Stage::Doors, Write::RemoveProbeSource(*source));
        }
        let words = filter_words(vips.union(probe_sources));
        if self.image.filter.as_ref() != Some(&words) {
            self.write(Stage::Doors, Write::Filter(words));
        }
    }

    /// What nobody wants is first made unreachable for new flows, and removed when its last
    /// flow has ended.
    fn unwanted(&mut self, wanted: &BTreeSet<u16>, is_idle: impl Fn(u16) -> bool) {
        let unwanted: Vec<u16> =
            self.image.services.keys().copied().filter(|i| !wanted.contains(i)).collect();
        for &index in &unwanted {
            let image = &self.image.services[&index];
            if image.listed {
                self.write(Stage::Doors, Write::Unlist(image.service.key, index));
            }
        }
        let orphans: Vec<u16> =
            self.image.backends.keys().copied().filter(|i| !self.kept.contains(i)).collect();
        for index in orphans {
            if !self.image.orphans.contains(&index) {
                self.write(Stage::Doors, Write::Orphan(index));
            } else if is_idle(index) {
                self.write(Stage::Doors, Write::RemoveBackend(index));
            }
        }
        for index in unwanted {
            if !self.image.backends.values().any(|record| record.service == index) {
                self.write(Stage::Doors, Write::RemoveService(index));
            }
        }
    }
}

fn free_index(from: u16, end: usize, is_taken: impl Fn(u16) -> bool) -> Option<u16> {
    (usize::from(from)..end).map(|i| i as u16).find(|i| !is_taken(*i))
}

fn too_many(what: &str, limit: usize) -> anyhow::Error {
    anyhow!("more than {limit} {what}: that is what one instance holds")
}

#[cfg(test)]
mod tests;
