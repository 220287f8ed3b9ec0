//! The kernel's program over tables of a test's own, run frame by frame.
//!
//! The object is the one that `sluice` embeds; its maps are filled from a [`HostTables`], so
//! that host and kernel decide on the same grounds. Nothing is pinned and nothing attached: it
//! all goes with the process, however that ends.

use std::{
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _,
    maps::{Array, ArrayOfMaps, HashMap, IterableMap as _, MapData, PerCpuArray},
    programs::{TestRunOptions, Xdp},
};
use lb_common::{
    abi::{
        ALONE, Backend, CarriedChunk, Egress, EventsChunk, EvictionCounts, FORWARDED, FlowRecord,
        Globals, HandshakeTimes, NatHop, ProbeLine, ReasonCounts, SLOT_FLAGS, Service, ServiceKey,
        SlotLine,
        capacity::{COUNTERS_PER_CHUNK, PLACES, PROBES_PER_LINE, SLOTS_PER_LINE},
        map,
    },
    address::Address,
    counters::{Event, Traffic},
    flow::{GROUP, State},
    frame::HostFrame,
    host::{self, Counted, HostTables},
    reason::Reason,
    tables::Tables as _,
    trace::{self, Filter, Tally},
};
use lb_userspace::datapath::{Mapping, OBJECT, Raw, TRACED, TRACED_OBJECT};
use zerocopy::{FromBytes as _, IntoBytes as _};

pub use self::answer::{Answer, Program};
use crate::lab;

mod answer;

/// Shortest frame the kernel takes for a test run: an Ethernet header (`ETH_HLEN`).
pub const SHORTEST: usize = 14;

/// Longest that fits into the one page of a test run beside its headroom and the kernel's
/// `struct skb_shared_info`.
pub const LONGEST: usize = 3000;

/// Longest that golden frames have: as a card with an MTU of 9,216 bytes has them, in several buffers.
pub const JUMBO: usize = 14 + 9216;

/// The interface of test runs that name none: loopback, always the first.
const LOOPBACK: u32 = 1;

/// Parts of the counters that the backends of a test lie in.
const CHUNKS: u32 = 2;

/// Program and maps.
pub struct Kernel {
    object: Ebpf,
    globals: Array<MapData, Raw<Globals>>,
    vips: HashMap<MapData, Raw<Address>, u32>,
    service_index: HashMap<MapData, Raw<ServiceKey>, u32>,
    services: Array<MapData, Raw<Service>>,
    slots: ArrayOfMaps<MapData, Array<MapData, Raw<SlotLine>>>,
    backends: Array<MapData, Raw<Backend>>,
    egresses: Array<MapData, Raw<Egress>>,
    traffic: PerCpuArray<MapData, Raw<CarriedChunk>>,
    returns: PerCpuArray<MapData, Raw<CarriedChunk>>,
    events: PerCpuArray<MapData, Raw<EventsChunk>>,
    reasons: PerCpuArray<MapData, Raw<ReasonCounts>>,
    evictions: PerCpuArray<MapData, Raw<EvictionCounts>>,
    probes: Array<MapData, Raw<ProbeLine>>,
    probe_sources: HashMap<MapData, Raw<Address>, u32>,
    nat_addresses: Array<MapData, Raw<Address>>,
    nat_ends: HashMap<MapData, Raw<ServiceKey>, u32>,
    hops: Array<MapData, Raw<NatHop>>,
    flows: Mapping,
    records: Mapping,
    /// What stands in `SLOTS`: each write there waits until no CPU reads the old table
    /// (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`), some 20 ms.
    tables_written: Vec<Vec<u16>>,
    /// What the counters stood at when they were last read.
    before: Counted,
    /// Name of the program that frames run through.
    sluice: &'static str,
    /// What the traced program counts.
    tally: Option<PerCpuArray<MapData, Raw<Tally>>>,
}

impl Kernel {
    /// Loads the program and fills its maps from `tables`; `None` where that takes a privilege
    /// this process has not: it says so, and it fails where `CI=true`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn start(tables: &HostTables) -> Result<Option<Self>> {
        Self::load(tables, OBJECT, &Program::ALL.map(Program::name))
    }

    /// The same with the build of the program that `sluice trace` puts in its place, told to trace
    /// every frame. There is no other program then.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn start_traced(tables: &HostTables) -> Result<Option<Self>> {
        let Some(mut kernel) = Self::load(tables, TRACED_OBJECT, &[TRACED])? else {
            return Ok(None);
        };
        kernel.sluice = TRACED;
        let map = |kernel: &mut Self, name| {
            kernel.object.take_map(name).with_context(|| format!("the object has no map {name}"))
        };
        let mut filter: Array<_, Raw<Filter>> = map(&mut kernel, trace::map::FILTER)?.try_into()?;
        filter.set(0, Raw(Filter::ALL), 0)?;
        let mut tokens: Array<_, i64> = map(&mut kernel, trace::map::TOKENS)?.try_into()?;
        tokens.set(0, i64::MAX, 0)?;
        kernel.tally = Some(map(&mut kernel, trace::map::TALLY)?.try_into()?);
        Ok(Some(kernel))
    }

    /// Frames that the traced program told of, or would have if its ring had been read.
    ///
    /// # Errors
    /// If the kernel does not say, or it is not the traced program.
    pub fn traced(&self) -> Result<u64> {
        let tally = self.tally.as_ref().context("this program traces nothing")?.get(&0, 0)?;
        Ok(tally.iter().map(|Raw(tally)| tally.told + tally.ring_full).sum())
    }

    fn load(tables: &HostTables, object: &[u8], programs: &[&str]) -> Result<Option<Self>> {
        if !lab::is_root() {
            let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            ensure!(!ci, "loading a BPF program needs root, and in CI no test is skipped");
            eprintln!("skipped: loading a BPF program needs root");
            return Ok(None);
        }
        let flows = tables.flow_words().len();
        let mut object = EbpfLoader::new()
            .map_max_entries(map::FLOWS, (flows / GROUP) as u32)
            .map_max_entries(map::FLOW_RECORDS, flows as u32)
            .map_max_entries(map::NAT_HOPS, flows as u32)
            .load(object)
            .context("load the object")?;
        for &name in programs {
            let program: &mut Xdp = object
                .program_mut(name)
                .with_context(|| format!("the object has no program {name}"))?
                .try_into()?;
            program.load().with_context(|| format!("load program {name}"))?;
        }
        macro_rules! take {
            ($name:expr) => {
                object
                    .take_map($name)
                    .ok_or_else(|| anyhow!("the object has no map {}", $name))?
                    .try_into()
                    .with_context(|| format!("map {} has another layout", $name))?
            };
        }
        let words: Array<MapData, Raw<[u64; GROUP]>> = take!(map::FLOWS);
        let records: Array<MapData, Raw<FlowRecord>> = take!(map::FLOW_RECORDS);
        let record_bytes = flows * size_of::<FlowRecord>();
        let mut kernel = Self {
            globals: take!(map::GLOBALS),
            vips: take!(map::VIPS),
            service_index: take!(map::SERVICE_INDEX),
            services: take!(map::SERVICES),
            slots: take!(map::SLOTS),
            backends: take!(map::BACKENDS),
            egresses: take!(map::EGRESSES),
            traffic: take!(map::TRAFFIC),
            returns: take!(map::RETURNS),
            events: take!(map::EVENTS),
            reasons: take!(map::REASONS),
            evictions: take!(map::EVICTIONS),
            probes: take!(map::PROBES),
            probe_sources: take!(map::PROBE_SOURCES),
            nat_addresses: take!(map::NAT_ADDRESSES),
            nat_ends: take!(map::NAT_ENDS),
            hops: take!(map::NAT_HOPS),
            flows: Mapping::writable(words.map().fd().as_fd(), flows * 8).context("map FLOWS")?,
            records: Mapping::readable(records.map().fd().as_fd(), record_bytes)
                .context("map FLOW_RECORDS")?,
            object,
            tables_written: Vec::new(),
            before: Counted::default(),
            sluice: "sluice",
            tally: None,
        };
        kernel.fill(tables)?;
        Ok(Some(kernel))
    }

    /// Makes the maps, the flow table too, what `tables` are. Of services and VIPs there may
    /// be less than before, of other things not.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn fill(&mut self, tables: &HostTables) -> Result<()> {
        let globals = Globals {
            settings: tables.settings,
            interfaces: *tables.interfaces,
            filter: *tables.filter,
        };
        self.globals.set(0, Raw(globals), 0).context("write GLOBALS")?;
        for key in self.vips.keys().collect::<Result<Vec<_>, _>>()? {
            self.vips.remove(&key)?;
        }
        for key in self.service_index.keys().collect::<Result<Vec<_>, _>>()? {
            self.service_index.remove(&key)?;
        }
        for (index, service) in (0..).zip(&tables.services) {
            let key = service.service.key();
            self.services.set(index, Raw(service.service), 0).context("write SERVICES")?;
            self.set_slots(index, &service.slots)?;
            self.vips
                .insert(Raw(key.address), u32::from(tables.is_silent(key.address)), 0)
                .context("write VIPS")?;
            if service.listed {
                self.service_index.insert(Raw(key), index, 0).context("write SERVICE_INDEX")?;
            }
        }
        for (line, ports) in (0..=u16::MAX).collect::<Vec<_>>().chunks(PROBES_PER_LINE).enumerate()
        {
            let mut places = [0; PROBES_PER_LINE];
            for (place, port) in places.iter_mut().zip(ports) {
                *place = tables.probes.get(port).copied().unwrap_or(0);
            }
            let line = line as u32;
            if self.probes.get(&line, 0).context("read PROBES")?.0 != places {
                self.probes.set(line, Raw(places), 0).context("write PROBES")?;
            }
        }
        for key in self.probe_sources.keys().collect::<Result<Vec<_>, _>>()? {
            self.probe_sources.remove(&key)?;
        }
        for source in &tables.probe_sources {
            self.probe_sources.insert(Raw(*source), 0, 0).context("write PROBE_SOURCES")?;
        }
        for key in self.nat_ends.keys().collect::<Result<Vec<_>, _>>()? {
            self.nat_ends.remove(&key)?;
        }
        for end in &tables.nat_ends {
            self.nat_ends.insert(Raw(*end), 0, 0).context("write NAT_ENDS")?;
        }
        set_all(&mut self.nat_addresses, &tables.nat_addresses).context("write NAT_ADDRESSES")?;
        set_all(&mut self.backends, &tables.backends).context("write BACKENDS")?;
        set_all(&mut self.egresses, &tables.egresses).context("write EGRESSES")?;
        for (ours, theirs) in self.flows.words().iter().zip(tables.flow_words()) {
            ours.store(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.take_counted().map(drop)
    }

    fn set_slots(&mut self, service: u32, slots: &[u16]) -> Result<()> {
        let written = service as usize;
        if self.tables_written.get(written).is_some_and(|written| written == slots) {
            return Ok(());
        }
        let lines: Vec<SlotLine> = slots
            .chunks(SLOTS_PER_LINE)
            .map(|slots| {
                let mut line = [0; SLOTS_PER_LINE];
                line[..slots.len()].copy_from_slice(slots);
                line
            })
            .collect();
        let mut table = Array::create(lines.len() as u32, SLOT_FLAGS as u32)
            .context("create a Maglev table")?;
        set_all(&mut table, &lines).context("write a Maglev table")?;
        self.slots.set(service, &table, 0).context("write SLOTS")?;
        self.tables_written.resize_with(self.tables_written.len().max(written + 1), Vec::new);
        self.tables_written[written] = slots.to_vec();
        Ok(())
    }

    /// Runs a frame through the program; the answer, and the frame as it is afterwards.
    ///
    /// # Errors
    /// If the kernel does not take the frame: it is too short or too long, its interface does
    /// not exist, or it asks for little headroom where [`takes_little_headroom`] is false.
    ///
    /// [`takes_little_headroom`]: Self::takes_little_headroom
    pub fn run(&self, frame: &HostFrame) -> Result<(Answer, HostFrame)> {
        self.run_through(Program::Sluice, frame)
    }

    /// The same for another program.
    ///
    /// # Errors
    /// See [`run`](Self::run).
    pub fn run_through(&self, program: Program, frame: &HostFrame) -> Result<(Answer, HostFrame)> {
        // Headroom can't be chosen, but metadata takes of it (`bpf_prog_test_run_xdp`).
        let metadata = HostFrame::HEADROOM.saturating_sub(frame.headroom);
        let data_in = [&vec![0; metadata], &frame.bytes[..]].concat();
        let mut data_out = vec![0; data_in.len() + HostFrame::HEADROOM];
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let context = [metadata as u32, data_in.len() as u32, 0, frame.interface, 0, 0];
        let special = metadata != 0 || frame.interface != LOOPBACK;
        let result = self
            .program(program)?
            .test_run(TestRunOptions {
                data_in: Some(&data_in),
                data_out: Some(&mut data_out),
                ctx_in: special.then(|| context.as_bytes()),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("run the frame\n{frame:?}"))?;
        data_out.truncate(result.data_size_out as usize);
        let bytes = data_out.split_off(metadata);
        Ok((Answer::from_number(result.return_value)?, HostFrame { bytes, ..frame.clone() }))
    }

    /// Whether [`run`](Self::run) takes frames that ask for little headroom; if not, says so.
    /// It needs more than the 32 bytes of metadata that older kernels allow
    /// (`xdp_metalen_invalid` in `include/net/xdp.h`).
    ///
    /// # Errors
    /// If the counters can't be read.
    pub fn takes_little_headroom(&mut self) -> Result<bool> {
        let takes = self.run(&HostFrame { headroom: 0, ..HostFrame::new([0; 60]) }).is_ok();
        if !takes {
            eprintln!("not run in the kernel: this one allows too little metadata");
        }
        // It was counted like any other.
        self.take_counted()?;
        Ok(takes)
    }

    /// The same for tests that count by the million: nothing of the frame comes back.
    ///
    /// # Errors
    /// If the kernel does not take the frame.
    pub fn send(&self, frame: &[u8]) -> Result<Answer> {
        let result = self
            .program(Program::Sluice)?
            .test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() })?;
        Answer::from_number(result.return_value)
    }

    fn program(&self, program: Program) -> Result<&Xdp> {
        let name = match program {
            Program::Sluice => self.sluice,
            Program::Probe | Program::Answers => program.name(),
        };
        let program = self.object.program(name).context("it was not loaded")?;
        Ok(program.try_into()?)
    }

    /// Every word of the flow table.
    pub fn flow_words(&self) -> &[AtomicU64] {
        self.flows.words()
    }

    /// What was recorded of the flow in this word.
    pub fn record(&self, index: u32) -> FlowRecord {
        let words = size_of::<FlowRecord>() / 8;
        let record = &self.records.words()[index as usize * words..][..words];
        let bytes: Vec<u8> =
            record.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
        FlowRecord::read_from_bytes(&bytes).unwrap_or_default()
    }

    /// Where the packets of the return entry in this word go.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn hop(&self, index: u32) -> Result<NatHop> {
        Ok(self.hops.get(&index, 0).context("read NAT_HOPS")?.0)
    }

    /// What was counted since the last call.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn take_counted(&mut self) -> Result<Counted> {
        let now = self.counted()?;
        let before = std::mem::replace(&mut self.before, now.clone());
        let mut counted = now;
        for (reason, count) in &mut counted.reasons {
            *count -= before.reasons.get(reason).unwrap_or(&0);
        }
        for (state, count) in &mut counted.evictions {
            *count -= before.evictions.get(state).unwrap_or(&0);
        }
        for (place, count) in &mut counted.by_place {
            *count -= before.by_place.get(place).unwrap_or(&0);
        }
        for (backend, traffic) in &mut counted.traffic {
            let before = before.traffic.get(backend).copied().unwrap_or_default();
            traffic.packets -= before.packets;
            traffic.bytes -= before.bytes;
            traffic.return_packets -= before.return_packets;
            traffic.return_bytes -= before.return_bytes;
        }
        for (event, count) in &mut counted.events {
            *count -= before.events.get(event).unwrap_or(&0);
        }
        for (backend, times) in &mut counted.handshakes {
            let before = before.handshakes.get(backend).copied().unwrap_or_default();
            times.jiffies -= before.jiffies;
            for (count, before) in times.buckets.iter_mut().zip(before.buckets) {
                *count -= before;
            }
        }
        counted.reasons.retain(|_, count| *count != 0);
        counted.by_place.retain(|_, count| *count != 0);
        counted.evictions.retain(|_, count| *count != 0);
        counted.traffic.retain(|_, traffic| *traffic != Traffic::default());
        counted.events.retain(|_, count| *count != 0);
        counted.handshakes.retain(|_, times| *times != HandshakeTimes::default());
        Ok(counted)
    }

    /// What was counted since the maps were made, all CPUs together.
    fn counted(&self) -> Result<Counted> {
        let mut counted = Counted::default();
        for Raw(row) in self.evictions.get(&0, 0).context("read EVICTIONS")?.iter() {
            for state in State::ALL.into_iter().chain([State::Free]) {
                *counted.evictions.entry(state.name()).or_default() += row[state as usize];
            }
        }
        for place in 0..PLACES as u32 {
            for Raw(row) in self.reasons.get(&place, 0).context("read REASONS")?.iter() {
                let reasons = Reason::ALL.iter().map(|reason| (reason.name(), *reason as usize));
                for (name, number) in reasons.clone() {
                    *counted.reasons.entry(name).or_default() += row[number];
                }
                if place != ALONE {
                    for (name, number) in reasons.chain([(host::FORWARDED, FORWARDED)]) {
                        *counted.by_place.entry((place, name)).or_default() += row[number];
                    }
                }
            }
        }
        // A test has a few backends.
        for chunk in 0..CHUNKS {
            let first = (chunk as usize * COUNTERS_PER_CHUNK) as u16;
            let to = self.traffic.get(&chunk, 0).context("read TRAFFIC")?;
            let from = self.returns.get(&chunk, 0).context("read RETURNS")?;
            for (Raw(to), Raw(from)) in to.iter().zip(from.iter()) {
                for (backend, (to, from)) in (first..).zip(to.iter().zip(from)) {
                    counted.traffic.entry(backend).or_default().add(to, from);
                }
            }
            for Raw(row) in self.events.get(&chunk, 0).context("read EVENTS")?.iter() {
                for (backend, events) in (first..).zip(row) {
                    for event in Event::ALL {
                        let sum = counted.events.entry((backend, event.name())).or_default();
                        *sum += events.counts[event as usize];
                    }
                    let sum = counted.handshakes.entry(backend).or_default();
                    sum.jiffies += events.handshakes.jiffies;
                    for (sum, count) in sum.buckets.iter_mut().zip(events.handshakes.buckets) {
                        *sum += count;
                    }
                }
            }
        }
        Ok(counted)
    }
}

fn set_all<T: Copy>(map: &mut Array<MapData, Raw<T>>, values: &[T]) -> Result<()>
where
    Raw<T>: Pod,
{
    for (index, value) in (0..).zip(values) {
        map.set(index, Raw(*value), 0)?;
    }
    Ok(())
}
