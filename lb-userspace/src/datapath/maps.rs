//! Typed access to the maps.

#![expect(unsafe_code, reason = "aya wants its marker trait on map types")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::offset_of,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Pod,
    maps::{Array, ArrayOfMaps, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray},
};
use lb_common::{
    abi::{
        self, Backend, CarriedChunk, Egress, EventsChunk, EvictionCounts, FlowRecord, Globals,
        Interfaces, NatHop, ProbeLine, ReasonCounts, Service, ServiceKey, Settings, SlotLine,
        VipFilter, map,
    },
    address::Address,
    flow::Group,
    nat,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    batch, load,
    memory::{Mapping, read, write},
    pins::Pins,
    probes::Probes,
};

/// A map type of `lb_common::abi`, as aya takes it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

// SAFETY: `FromBytes` and `IntoBytes` say that every byte pattern is a `T` and that a `T` has
// no padding; both are derived, and so checked, in `lb_common::abi`.
unsafe impl<T: FromBytes + IntoBytes + Copy + 'static> Pod for Raw<T> {}

type Table<T> = Array<MapData, Raw<T>>;
type PerCpu<T> = PerCpuArray<MapData, Raw<T>>;

/// The maps of one instance.
pub struct Maps {
    /// Mapped, for its parts are written each by itself: another process may write another one
    /// meanwhile, an upgrade the settings and the daemon the filter.
    globals: Mapping,
    vips: HashMap<MapData, Raw<Address>, u32>,
    flows: Table<Group>,
    flow_records: Table<FlowRecord>,
    service_index: HashMap<MapData, Raw<ServiceKey>, u32>,
    services: Table<Service>,
    slots: ArrayOfMaps<MapData, Table<SlotLine>>,
    /// The same map: aya keeps the descriptor of an array of maps to itself.
    slots_data: MapData,
    backends: Table<Backend>,
    egresses: Table<Egress>,
    traffic: PerCpu<CarriedChunk>,
    returns: PerCpu<CarriedChunk>,
    events: PerCpu<EventsChunk>,
    reasons: PerCpu<ReasonCounts>,
    evictions: PerCpu<EvictionCounts>,
    probes: Table<ProbeLine>,
    probe_sources: HashMap<MapData, Raw<Address>, u32>,
    nat_addresses: Table<Address>,
    nat_ends: HashMap<MapData, Raw<ServiceKey>, u32>,
    nat_hops: Table<NatHop>,
}

impl Maps {
    /// The pinned maps of an instance.
    pub fn pinned(pins: &Pins) -> Result<Self> {
        Self::from(|name| pinned(pins, name))
    }

    /// Maps from wherever they are, by name.
    pub(super) fn from(mut map: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        macro_rules! open {
            ($name:expr) => {
                map($name)?
                    .try_into()
                    .with_context(|| format!("map {} has another layout", $name))?
            };
        }
        let slots = map(map::SLOTS)?;
        let slots_data = match &slots {
            Map::ArrayOfMaps(data) => data.info().and_then(|info| MapData::from_id(info.id())),
            _ => bail!("map {} has another layout", map::SLOTS),
        };
        let globals: Table<Globals> = open!(map::GLOBALS);
        Ok(Self {
            globals: Mapping::writable(fd(globals.map()), size_of::<Globals>())
                .context("map GLOBALS")?,
            vips: open!(map::VIPS),
            flows: open!(map::FLOWS),
            flow_records: open!(map::FLOW_RECORDS),
            service_index: open!(map::SERVICE_INDEX),
            services: open!(map::SERVICES),
            slots: slots
                .try_into()
                .with_context(|| format!("map {} has another layout", map::SLOTS))?,
            slots_data: slots_data.context("open SLOTS")?,
            backends: open!(map::BACKENDS),
            egresses: open!(map::EGRESSES),
            traffic: open!(map::TRAFFIC),
            returns: open!(map::RETURNS),
            events: open!(map::EVENTS),
            reasons: open!(map::REASONS),
            evictions: open!(map::EVICTIONS),
            probes: open!(map::PROBES),
            probe_sources: open!(map::PROBE_SOURCES),
            nat_addresses: open!(map::NAT_ADDRESSES),
            nat_ends: open!(map::NAT_ENDS),
            nat_hops: open!(map::NAT_HOPS),
        })
    }

    /// What every packet is told.
    pub fn settings(&self) -> Settings {
        read(self.part(offset_of!(Globals, settings)))
    }

    /// Writes it.
    pub fn set_settings(&mut self, settings: &Settings) {
        write(self.part(offset_of!(Globals, settings)), settings);
    }

    /// The VIP filter.
    pub fn filter(&self) -> VipFilter {
        read(self.part(offset_of!(Globals, filter)))
    }

    /// Writes it.
    pub fn set_filter(&mut self, filter: &VipFilter) {
        write(self.part(offset_of!(Globals, filter)), filter);
    }

    /// Where the frames of each interface are counted.
    pub fn interfaces(&self) -> Interfaces {
        read(self.part(offset_of!(Globals, interfaces)))
    }

    /// Writes it.
    pub fn set_interfaces(&mut self, interfaces: &Interfaces) {
        write(self.part(offset_of!(Globals, interfaces)), interfaces);
    }

    /// `GLOBALS` from this offset on.
    fn part(&self, offset: usize) -> &[AtomicU64] {
        &self.globals.words()[offset / 8..]
    }

    /// Adds a VIP to those that are known exactly, and says whether its pings go unanswered.
    pub fn set_vip(&mut self, vip: Address, silent: bool) -> Result<()> {
        let value = if silent { abi::SILENT } else { 0 };
        self.vips.insert(Raw(vip), value, 0).context("write VIPS")
    }

    /// Takes one away.
    pub fn remove_vip(&mut self, vip: Address) -> Result<()> {
        self.vips.remove(&Raw(vip)).context("delete from VIPS")
    }

    /// All VIPs.
    pub fn vips(&self) -> Result<BTreeSet<IpAddr>> {
        addresses(&self.vips).context("read VIPS")
    }

    /// Those whose pings go unanswered.
    pub fn silent_vips(&self) -> Result<BTreeSet<IpAddr>> {
        let silent =
            |entry: &Result<_, MapError>| !matches!(entry, Ok((_, value)) if *value != abi::SILENT);
        let vips = self.vips.iter().filter(silent);
        let vips = vips.map(|entry| entry.map(|(Raw(address), _)| address.into()));
        vips.collect::<Result<_, _>>().context("read VIPS")
    }

    /// Adds an address that probes are sent from.
    pub fn add_probe_source(&mut self, source: Address) -> Result<()> {
        self.probe_sources.insert(Raw(source), 0, 0).context("write PROBE_SOURCES")
    }

    /// Takes one away.
    pub fn remove_probe_source(&mut self, source: Address) -> Result<()> {
        self.probe_sources.remove(&Raw(source)).context("delete from PROBE_SOURCES")
    }

    /// The addresses that probes are sent from.
    pub fn probe_sources(&self) -> Result<BTreeSet<IpAddr>> {
        addresses(&self.probe_sources).context("read PROBE_SOURCES")
    }

    /// The addresses that translated packets are sent from, by index; what nobody has written is
    /// left out.
    pub fn nat_addresses(&self) -> Result<BTreeMap<u16, IpAddr>> {
        let all: Vec<Address> = read_array(&self.nat_addresses, abi::capacity::NAT_ADDRESSES)
            .context("read NAT_ADDRESSES")?;
        let written = (0..).zip(all).filter(|(_, address)| *address != Address::UNSPECIFIED);
        Ok(written.map(|(index, address)| (index, address.into())).collect())
    }

    /// Writes one.
    pub fn set_nat_address(&mut self, index: u16, address: Address) -> Result<()> {
        self.nat_addresses.set(index.into(), Raw(address), 0).context("write NAT_ADDRESSES")
    }

    /// Both ends of translated connections; NAT addresses with port 0.
    pub fn nat_ends(&self) -> Result<BTreeSet<SocketAddr>> {
        let key = |Raw(key): Raw<ServiceKey>| {
            SocketAddr::new(key.address.into(), u16::from_be_bytes(key.port))
        };
        self.nat_ends
            .keys()
            .map(|found| found.map(key))
            .collect::<Result<_, _>>()
            .context("read NAT_ENDS")
    }

    /// Adds one.
    pub fn add_nat_end(&mut self, end: SocketAddr) -> Result<()> {
        self.nat_ends.insert(Raw(nat_end(end)), 0, 0).context("write NAT_ENDS")
    }

    /// Takes one away.
    pub fn remove_nat_end(&mut self, end: SocketAddr) -> Result<()> {
        self.nat_ends.remove(&Raw(nat_end(end))).context("delete from NAT_ENDS")
    }

    /// Where the packets of the return entry in this word of the flow table go.
    pub fn nat_hop(&self, word: u32) -> Result<NatHop> {
        Ok(self.nat_hops.get(&word, 0).context("read NAT_HOPS")?.0)
    }

    /// The probes under way, by source port; what another daemon has left is forgotten.
    ///
    /// # Errors
    /// If the kernel does not map the array.
    pub fn probes(&self) -> Result<Probes> {
        Probes::map(fd(self.probes.map()))
    }

    /// Every service that can be found by its key, with its index.
    pub fn service_index(&self) -> Result<Vec<(ServiceKey, u32)>> {
        self.service_index
            .iter()
            .map(|entry| entry.map(|(Raw(key), index)| (key, index)))
            .collect::<Result<_, _>>()
            .context("read SERVICE_INDEX")
    }

    /// Lets a service be found.
    pub fn set_service_index(&mut self, key: &ServiceKey, index: u32) -> Result<()> {
        self.service_index.insert(Raw(*key), index, 0).context("write SERVICE_INDEX")
    }

    /// Lets a service no longer be found.
    pub fn remove_service_index(&mut self, key: &ServiceKey) -> Result<()> {
        self.service_index.remove(&Raw(*key)).context("delete from SERVICE_INDEX")
    }

    /// The services with an index below `count`.
    pub fn services(&self, count: usize) -> Result<Vec<Service>> {
        read_array(&self.services, count).context("read SERVICES")
    }

    /// Writes a service.
    pub fn set_service(&mut self, index: u32, service: &Service) -> Result<()> {
        self.services.set(index, Raw(*service), 0).context("write SERVICES")
    }

    /// The backends with an index below `count`.
    pub fn backends(&self, count: usize) -> Result<Vec<Backend>> {
        read_array(&self.backends, count).context("read BACKENDS")
    }

    /// Writes a backend.
    pub fn set_backend(&mut self, index: u32, backend: &Backend) -> Result<()> {
        self.backends.set(index, Raw(*backend), 0).context("write BACKENDS")
    }

    /// The ways out with an index below `count`.
    pub fn egresses(&self, count: usize) -> Result<Vec<Egress>> {
        read_array(&self.egresses, count).context("read EGRESSES")
    }

    /// Writes a way out.
    pub fn set_egress(&mut self, index: u32, egress: &Egress) -> Result<()> {
        self.egresses.set(index, Raw(*egress), 0).context("write EGRESSES")
    }

    /// Puts whole Maglev tables in the place of services' present ones, each in one step. Returns
    /// the ids of the maps that hold them now.
    pub fn set_slots(&mut self, tables: &[(u32, Vec<u16>)]) -> Result<Vec<u32>> {
        let maps: Vec<(u32, Table<SlotLine>)> = tables
            .iter()
            .map(|(service, slots)| Ok((*service, slot_table(slots)?)))
            .collect::<Result<_>>()?;
        let descriptors: Vec<_> =
            maps.iter().map(|(service, table)| (*service, fd(table.map()))).collect();
        // A single update has returned only when no program uses the old table any more, on every
        // kernel; a batch since 6.8.
        let at_once = match &descriptors[..] {
            [] | [_] => Err(io::ErrorKind::Unsupported.into()),
            many => batch::set_maps(fd(&self.slots_data), many),
        };
        match at_once {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                for (service, table) in &maps {
                    self.slots.set(*service, table, 0).context("write SLOTS")?;
                }
            }
            done => done.context("write SLOTS")?,
        }
        let id = |(_, table): &(u32, Table<SlotLine>)| Ok(table.map().info()?.id());
        maps.iter().map(id).collect::<Result<_>>().context("ask for a map's id")
    }

    /// Id of the map that holds a service's Maglev table; `None` if there is none.
    pub fn slots_id(&self, service: u32) -> Result<Option<u32>> {
        match self.slots.get(&service, 0) {
            Ok(table) => Ok(Some(table.map().info().context("ask for a map's id")?.id())),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("read SLOTS"),
        }
    }

    /// The Maglev table of a service, as it stands in the kernel.
    pub fn slots(&self, service: u32, count: u32) -> Result<Vec<u16>> {
        let table = self.slots.get(&service, 0).context("read SLOTS")?;
        let lines = (count as usize).div_ceil(abi::capacity::SLOTS_PER_LINE);
        let mapping = Mapping::readable(fd(table.map()), lines * size_of::<SlotLine>())
            .context("map a Maglev table")?;
        let mut slots: Vec<u16> = mapping
            .words()
            .iter()
            .flat_map(|word| {
                let [a, b, c, d, e, f, g, h] = word.load(Ordering::Relaxed).to_ne_bytes();
                [[a, b], [c, d], [e, f], [g, h]].map(u16::from_ne_bytes)
            })
            .collect();
        slots.truncate(count as usize);
        Ok(slots)
    }

    /// Id of the map that holds the backends' traffic.
    pub fn traffic_id(&self) -> Result<u32> {
        Ok(self.traffic.map().info().context("ask for a map's id")?.id())
    }

    /// Traffic to the backends of one chunk, a row for each CPU.
    pub(super) fn traffic(&self, chunk: u32) -> Result<Vec<CarriedChunk>> {
        rows(&self.traffic, chunk).context("read TRAFFIC")
    }

    /// Traffic from them.
    pub(super) fn returns(&self, chunk: u32) -> Result<Vec<CarriedChunk>> {
        rows(&self.returns, chunk).context("read RETURNS")
    }

    /// Events of the backends of one chunk, a row for each CPU.
    pub(super) fn events(&self, chunk: u32) -> Result<Vec<EventsChunk>> {
        rows(&self.events, chunk).context("read EVENTS")
    }

    /// Sets the counters of one chunk to zero for some places in it.
    pub(super) fn clear_counters(&mut self, chunk: u32, places: &[usize]) -> Result<()> {
        fn cleared<T: FromBytes + IntoBytes + Copy + 'static, const N: usize>(
            map: &mut PerCpu<[T; N]>,
            chunk: u32,
            places: &[usize],
        ) -> Result<()> {
            let mut values: Vec<Raw<[T; N]>> = map.get(&chunk, 0)?.to_vec();
            for Raw(row) in &mut values {
                places.iter().for_each(|place| row[*place] = T::new_zeroed());
            }
            map.set(chunk, values.try_into()?, 0)?;
            Ok(())
        }
        cleared(&mut self.traffic, chunk, places).context("write TRAFFIC")?;
        cleared(&mut self.returns, chunk, places).context("write RETURNS")?;
        cleared(&mut self.events, chunk, places).context("write EVENTS")
    }

    /// Counts of one place, a row for each CPU.
    pub(super) fn reasons(&self, place: u32) -> Result<Vec<ReasonCounts>> {
        // Before ABI 5 there was one.
        if place >= self.reasons.len() {
            return Ok(Vec::new());
        }
        rows(&self.reasons, place).context("read REASONS")
    }

    /// Flows that gave way, by state, a row for each CPU.
    pub(super) fn evictions(&self) -> Result<Vec<EvictionCounts>> {
        rows(&self.evictions, 0).context("read EVICTIONS")
    }

    /// The flow table's file descriptor.
    pub(super) fn flows_fd(&self) -> BorrowedFd<'_> {
        fd(self.flows.map())
    }

    /// The flow records' file descriptor.
    pub(super) fn flow_records_fd(&self) -> BorrowedFd<'_> {
        fd(self.flow_records.map())
    }
}

fn nat_end(end: SocketAddr) -> ServiceKey {
    nat::end(end.ip().into(), end.port().to_be_bytes())
}

/// A Maglev table of its own, not in use yet.
fn slot_table(slots: &[u16]) -> Result<Table<SlotLine>> {
    let lines = slots.len().div_ceil(abi::capacity::SLOTS_PER_LINE);
    let table = Table::<SlotLine>::create(lines as u32, abi::SLOT_FLAGS as u32)
        .context("create a Maglev table")?;
    let mapping = Mapping::writable(fd(table.map()), lines * size_of::<SlotLine>())
        .context("map a Maglev table")?;
    for (word, backends) in mapping.words().iter().zip(slots.chunks(4)) {
        let mut bytes = [0; 8];
        for (place, backend) in bytes.chunks_exact_mut(2).zip(backends) {
            place.copy_from_slice(&backend.to_ne_bytes());
        }
        word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }
    Ok(table)
}

fn pinned(pins: &Pins, name: &str) -> Result<Map> {
    let path = pins.map(name);
    MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .with_context(|| format!("open {}", path.display()))
}

/// What an instance leaves on its host besides what is pinned: the addresses that it may have put
/// there, and in which network namespace. Only the maps that tell are opened, for an instance of
/// another ABI has others with other layouts.
pub(super) fn left_behind(pins: &Pins) -> Result<(BTreeSet<IpAddr>, u32)> {
    let vips: HashMap<MapData, Raw<Address>, u32> = pinned(pins, map::VIPS)?
        .try_into()
        .with_context(|| format!("map {} has another layout", map::VIPS))?;
    let settings = load::settings(pins)?;
    Ok((addresses(&vips).context("read VIPS")?, settings.network_namespace))
}

fn addresses(map: &HashMap<MapData, Raw<Address>, u32>) -> Result<BTreeSet<IpAddr>, MapError> {
    map.keys().map(|key| key.map(|Raw(address)| address.into())).collect()
}

fn fd(map: &MapData) -> BorrowedFd<'_> {
    map.fd().as_fd()
}

fn read_array<T: FromBytes + IntoBytes + Copy + 'static>(
    map: &Table<T>,
    count: usize,
) -> io::Result<Vec<T>> {
    let mut values = vec![T::new_zeroed(); count];
    batch::read_array(fd(map.map()), &mut values)?;
    Ok(values)
}

fn rows<T: FromBytes + IntoBytes + Immutable + Copy + 'static>(
    map: &PerCpu<T>,
    index: u32,
) -> Result<Vec<T>> {
    Ok(map
        .get(&index, 0)
        .map_err(|error| anyhow!(error))?
        .iter()
        .map(|Raw(value)| *value)
        .collect())
}
