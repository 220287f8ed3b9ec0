//! What must be written so that the maps hold what is wanted, in an order in which no packet
//! meets a half-made service.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, anyhow};
use lb_common::{
    abi::{Backend, Egress, KEEP_CLIENT, NextHop, Service, ServiceKey, capacity},
    address::Address,
    forward::Forwarding,
    maglev::Member,
    service::BackendState,
};

use super::{
    Image, WantedService,
    image::{Filter, ServiceImage},
    wanted::{Resolved, silent},
};
use crate::model::ClientAddress;

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
    /// An address is a VIP; whether its pings go unanswered.
    Vip(IpAddr, bool),
    /// It no longer is.
    RemoveVip(IpAddr),
    /// Probes are sent from this address of ours.
    AddProbeSource(IpAddr),
    /// They no longer are.
    RemoveProbeSource(IpAddr),
    /// An address that translated packets are sent from.
    NatAddress(u16, IpAddr),
    /// One end of translated connections.
    AddNatEnd(SocketAddr),
    /// It no longer is.
    RemoveNatEnd(SocketAddr),
    /// The filter.
    Filter(Filter),
    /// Nobody wants this backend any more; it stays until its last flow has ended.
    Orphan(u16),
    /// The service is gone, its last flow too.
    RemoveService(u16),
    /// The backend is gone, its last flow too.
    RemoveBackend(u16),
}

/// How many of these writes put a Maglev table in place.
pub fn tables(writes: &[Write]) -> u64 {
    writes.iter().filter(|write| matches!(write, Write::Slots { .. })).count() as u64
}

/// Whether some of these writes begin counters anew.
pub fn clears_counters(writes: &[Write]) -> bool {
    writes.iter().any(|write| matches!(write, Write::ClearCounters(_)))
}

/// Indices of the backends that these writes remove, sorted.
pub fn backends_removed(writes: &[Write]) -> Vec<u16> {
    let index = |write: &Write| match write {
        Write::RemoveBackend(index) => Some(*index),
        _ => None,
    };
    let mut indices: Vec<u16> = writes.iter().filter_map(index).collect();
    indices.sort_unstable();
    indices
}

/// What the flow table says of what nobody wants any more.
pub trait InUse {
    /// Whether the last flow of a backend has ended.
    fn is_idle(&self, backend: u16) -> bool;
    /// Whether flows are translated to this address, by its index.
    fn uses_nat_address(&self, index: u16) -> bool;
}

/// Nothing is known: whatever there is may be in use.
impl InUse for () {
    fn is_idle(&self, _backend: u16) -> bool {
        false
    }

    fn uses_nat_address(&self, _index: u16) -> bool {
        true
    }
}

/// Plans the way from `image` to `wanted`, with probes sent from `probe_sources`.
///
/// # Errors
/// If there are more things than the maps hold.
pub fn plan(
    image: &Image,
    wanted: &[WantedService],
    probe_sources: &BTreeSet<IpAddr>,
    in_use: &impl InUse,
) -> Result<Vec<Write>> {
    let mut planner = Planner::new(image);
    let mut wanted_indices = BTreeSet::new();
    for service in wanted {
        wanted_indices.insert(planner.service(service)?);
    }
    planner.addresses(wanted, probe_sources, in_use);
    planner.unwanted(&wanted_indices, in_use);
    planner.addresses(wanted, probe_sources, in_use);
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
            services: image.services.iter().map(|(i, s)| (s.service.key(), *i)).collect(),
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
        let (nat_first, nat_count) = self.nat(wanted)?;
        let mut members = Vec::with_capacity(wanted.backends.len());
        for backend in &wanted.backends {
            let number = self.backend(index, wanted, backend)?;
            if backend.weight > 0 {
                let (weight, hashes) = (backend.weight, backend.hashes);
                members.push(Member { backend: number, weight, hashes });
            }
        }

        let record = Service {
            mss_clamp: wanted.mss_clamp,
            slots: wanted.slots,
            affinity: wanted.affinity as u8,
            nat_count,
            nat_first,
            ..Service::of(&wanted.key)
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
            Some(hop) => (NextHop::new(hop.mac, self.egress(hop, wanted)?), hop.mtu),
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

    /// First and number of the addresses that a service's packets are sent from, as its record has
    /// them.
    fn nat(&mut self, wanted: &WantedService) -> Result<(u16, u8)> {
        match (wanted.forwarding, &wanted.client_address) {
            (Forwarding::Nat, ClientAddress::Kept) => Ok((KEEP_CLIENT, 0)),
            (Forwarding::Nat, ClientAddress::Replaced { by }) if !by.is_empty() => {
                Ok((self.nat_addresses(by)?, by.len() as u8))
            }
            _ => Ok((0, 0)),
        }
    }

    /// The index from which on these addresses follow each other.
    fn nat_addresses(&mut self, wanted: &[IpAddr]) -> Result<u16> {
        let is_there = |first: &u16| {
            let there = wanted.iter().zip(*first..);
            there.into_iter().all(|(ip, i)| self.image.nat_addresses.get(&i) == Some(ip))
        };
        if let Some(first) = self.image.nat_addresses.keys().copied().find(is_there) {
            return Ok(first);
        }
        let first = self.image.nat_addresses.keys().last().map_or(1, |last| last + 1);
        if usize::from(first) + wanted.len() > capacity::NAT_ADDRESSES {
            return Err(anyhow!(
                "more than {} NAT addresses since the instance was started, those that are no \
                 longer used included: `sluice detach` and a new start forget them",
                capacity::NAT_ADDRESSES - 1
            ));
        }
        for (index, address) in (first..).zip(wanted) {
            self.write(Stage::Parts, Write::NatAddress(index, *address));
        }
        Ok(first)
    }

    fn egress(&mut self, hop: &Resolved, wanted: &WantedService) -> Result<u16> {
        let is_from_here = wanted.forwarding == Forwarding::Nat
            && matches!(&wanted.client_address, ClientAddress::Replaced { by } if by.is_empty());
        let nat_address = if is_from_here { self.nat_addresses(&[hop.source])? } else { 0 };
        let hop = Resolved { egress: Egress { nat_address, ..hop.egress }, ..*hop };
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

    /// Those that frames for us are addressed to, or come from.
    fn addresses(
        &mut self,
        wanted: &[WantedService],
        probe_sources: &BTreeSet<IpAddr>,
        in_use: &impl InUse,
    ) {
        let mut vips: BTreeSet<IpAddr> =
            self.image.services.values().map(|image| image.service.address.into()).collect();
        // What the operator names is ours alone, as a VIP is, and stays so until the last flow that
        // was translated to it has ended.
        let named = wanted.iter().filter(|service| service.forwarding == Forwarding::Nat);
        vips.extend(named.flat_map(|service| service.client_address.named()));
        let lasting = self.image.nat_addresses.iter().filter(|(index, address)| {
            self.image.vips.contains(address) && in_use.uses_nat_address(**index)
        });
        vips.extend(lasting.map(|(_, address)| *address));
        let silent = silent(wanted);
        for vip in &vips {
            let silent = silent.contains(vip);
            if !self.image.vips.contains(vip) || self.image.silent.contains(vip) != silent {
                self.write(Stage::Doors, Write::Vip(*vip, silent));
            }
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
        let (ends, clients) = self.nat_ends();
        for end in ends.difference(&self.image.nat_ends.clone()) {
            self.write(Stage::Doors, Write::AddNatEnd(*end));
        }
        for end in self.image.nat_ends.clone().difference(&ends) {
            self.write(Stage::Doors, Write::RemoveNatEnd(*end));
        }
        let to = vips.iter().chain(probe_sources).chain(self.image.nat_addresses.values());
        let filter = Filter::of(to, &clients);
        if self.image.filter.as_ref() != Some(&filter) {
            self.write(Stage::Doors, Write::Filter(filter));
        }
    }

    /// Both ends of connections with replaced clients, and the addresses of the backends that see
    /// their clients' own.
    fn nat_ends(&self) -> (BTreeSet<SocketAddr>, BTreeSet<IpAddr>) {
        let addresses = self.image.nat_addresses.values();
        let mut ends: BTreeSet<_> = addresses.map(|ip| SocketAddr::new(*ip, 0)).collect();
        let mut clients = BTreeSet::new();
        let translated = |record: &&Backend| record.forwarding == Forwarding::Nat as u8;
        for record in self.image.backends.values().filter(translated) {
            let address = IpAddr::from(record.address);
            let service = self.image.services.get(&record.service);
            if service.is_some_and(|image| image.service.nat_first == KEEP_CLIENT) {
                clients.insert(address);
            } else {
                ends.insert(SocketAddr::new(address, u16::from_be_bytes(record.port)));
            }
        }
        (ends, clients)
    }

    /// What nobody wants is first made unreachable for new flows, and removed when its last
    /// flow has ended.
    fn unwanted(&mut self, wanted: &BTreeSet<u16>, in_use: &impl InUse) {
        let unwanted: Vec<u16> =
            self.image.services.keys().copied().filter(|i| !wanted.contains(i)).collect();
        for &index in &unwanted {
            let image = &self.image.services[&index];
            if image.listed {
                self.write(Stage::Doors, Write::Unlist(image.service.key(), index));
            }
        }
        let orphans: Vec<u16> =
            self.image.backends.keys().copied().filter(|i| !self.kept.contains(i)).collect();
        for index in orphans {
            if !self.image.orphans.contains(&index) {
                self.write(Stage::Doors, Write::Orphan(index));
            } else if in_use.is_idle(index) {
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
