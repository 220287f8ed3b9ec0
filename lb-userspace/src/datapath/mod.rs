//! The kernel side of an instance: the only room that knows `aya`.
//!
//! An instance's programs, maps and links are pinned under `/sys/fs/bpf/sluice/<instance>/`
//! and live there without the daemon. [`Datapath::adopt`] takes up what is pinned,
//! [`Datapath::create`] loads it anew; neither attaches anything before it is complete.
//! [`upgrade`](upgrade::upgrade) puts one program in the place of another.

pub(crate) mod attach;
mod batch;
mod clock;
mod counters;
pub(crate) mod diagnose;
mod flows;
pub(crate) mod load;
mod losses;
mod maps;
mod memory;
mod pins;
mod places;
mod prober;
mod probes;
mod reading;
pub(crate) mod run;
pub(crate) mod segment;
#[cfg(test)]
mod stack;
mod tracer;
pub mod upgrade;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use aya::programs::{Xdp, xdp::XdpMode as AyaMode};
use lb_common::abi::{ABI_VERSION, Interfaces, Settings};

use self::upgrade::{Decision, Outcome};
pub use self::{
    attach::detach,
    clock::Timing,
    counters::BackendCounters,
    diagnose::preflight,
    flows::{FlowView, IdleLimits, Sweep},
    losses::Losses,
    maps::{Maps, Raw},
    memory::Mapping,
    pins::Pins,
    places::{Frames, Verdicts},
    prober::{Held, ProberParts, ProberProgram},
    probes::Probes,
    reading::Reading,
    tracer::{TRACED, TRACED_OBJECT, Tracer},
};
use crate::{
    instance::Instance,
    model::{Dataplane, IdleTimeouts},
    seed::Seed,
};

/// The object file of the kernel program, made by `build.rs`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice.o"));

/// Name of the program that frames run through, in the object file and of its pin.
pub(crate) const PROGRAM: &str = "sluice";
/// Name of the program that tells the time.
pub(crate) const CLOCK: &str = "clock";
/// Name of the program that forwards health probes: for the host's end of the prober's veth pair.
pub const PROBE: &str = "probe";
/// Name of the program that finds answers to health probes: for interfaces that lead to backends
/// but where no clients' frames arrive.
pub const ANSWERS: &str = "answers";
/// Name of the program that lets everything through: for the prober's end of the pair.
pub const PASS: &str = "pass";
/// Every program, in the order in which they are loaded.
pub(crate) const PROGRAMS: [&str; 5] = [PROGRAM, CLOCK, PROBE, ANSWERS, PASS];

/// Programs and maps of one instance.
pub struct Datapath {
    pins: Pins,
    /// The maps.
    pub maps: Maps,
    clock: Xdp,
    /// Ids of the pinned program, and of the one before it.
    programs: Mutex<[u32; 2]>,
    settings: Settings,
    interfaces: Interfaces,
    flows: Arc<flows::FlowMemory>,
}

/// The flow table, to be read without the rest of the instance: a long list holds up nobody.
pub struct FlowTable {
    memory: Arc<flows::FlowMemory>,
    settings: Settings,
    now: u32,
}

impl Datapath {
    /// Takes up a pinned instance that is attached somewhere; `None` if there is none.
    ///
    /// If another build's program runs, it goes on: [`is_outdated`](Self::is_outdated) says so,
    /// and [`upgrade`](upgrade::upgrade) replaces it. If it speaks another ABI, and one that we
    /// know, it is migrated at once.
    ///
    /// # Errors
    /// If what is pinned speaks an ABI that we don't know, or is damaged: then it is left as it
    /// is, and it goes on forwarding.
    pub fn adopt(instance: &Instance) -> Result<Option<Self>> {
        let pins = Pins::of(instance);
        if pins.links()?.is_empty() {
            return Ok(None);
        }
        let _lock = upgrade::lock(&pins)?;
        upgrade::settle(&pins)?;
        let running = load::settings(&pins).with_context(|| damaged(&pins))?;
        match upgrade::decide(&running, load::object_id(OBJECT), network_namespace()?) {
            Decision::Adopt => upgrade::keep(instance, OBJECT),
            Decision::Replace => {}
            Decision::Migrate(known) => {
                let mut say = |line: &str| tracing::info!("{line}");
                let report = upgrade::migrate(instance, &pins, known, OBJECT, &mut say)?;
                if report.result != Outcome::Upgraded {
                    bail!(
                        "can't migrate instance {instance}, which goes on forwarding as it was: {}",
                        report.reason.unwrap_or_default()
                    );
                }
            }
            Decision::Refuse(refusal) => {
                bail!("can't adopt instance {instance}, which goes on forwarding: {refusal}")
            }
        }
        let maps = Maps::pinned(&pins).with_context(|| damaged(&pins))?;
        let settings = maps.settings();
        let mut datapath = Self::assemble(pins, maps, settings)?;
        // The prober of the daemon before has ended with it.
        datapath.set_probe_interface(0)?;
        Ok(Some(datapath))
    }

    /// Whether the running program is not this build's.
    pub fn is_outdated(&self) -> bool {
        self.settings.object_id != load::object_id(OBJECT)
    }

    /// Loads programs and maps, and pins them. Nothing is attached yet: [`detach`] undoes it.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is left.
    pub fn create(instance: &Instance, dataplane: &Dataplane, seed: &Seed) -> Result<Self> {
        let pins = Pins::of(instance);
        // Left by a start that was killed half-way: with no link, nothing runs on it.
        pins.remove()?;
        let datapath = Self::load(pins.clone(), dataplane, seed).inspect_err(|_| {
            if let Err(error) = pins.remove() {
                tracing::error!("can't clean up: {error:#}");
            }
        })?;
        upgrade::keep(instance, OBJECT);
        Ok(datapath)
    }

    fn load(pins: Pins, dataplane: &Dataplane, seed: &Seed) -> Result<Self> {
        load::load(&pins, OBJECT, dataplane.flow_capacity)?;
        let timing = clock::measure(&load::pinned_program(&pins, CLOCK)?, &dataplane.longest_idle)?;
        let settings = Settings {
            abi_version: ABI_VERSION,
            hz: timing.hz,
            tick_shift: timing.tick_shift,
            flow_mask: dataplane.flow_capacity / lb_common::flow::GROUP as u32 - 1,
            idle_ticks: timing.idle_ticks,
            reuse_ticks: timing.reuse_ticks,
            network_namespace: network_namespace()?,
            probe_interface: 0,
            nat_port_first: dataplane.nat_ports.first,
            nat_port_count: dataplane.nat_ports.count() as u16,
            object_id: load::object_id(OBJECT),
            seed: seed.bytes(),
            hash_keys: seed.hash_keys(),
        };
        let mut maps = Maps::pinned(&pins)?;
        maps.set_settings(&settings);
        Self::assemble(pins, maps, settings)
    }

    fn assemble(pins: Pins, maps: Maps, settings: Settings) -> Result<Self> {
        let flows = Arc::new(flows::FlowMemory::map(&maps, &settings)?);
        let clock = load::pinned_program(&pins, CLOCK)?;
        let programs = Mutex::new([pinned_id(&pins, PROGRAM)?; 2]);
        let interfaces = maps.interfaces();
        Ok(Self { pins, maps, clock, programs, settings, interfaces, flows })
    }

    /// Attaches to an interface, unless the pinned link to it is alive.
    ///
    /// # Errors
    /// If the interface takes no XDP program in this mode; it gets no frame then.
    pub fn attach(
        &mut self,
        interface: &crate::network::Interface,
        mode: crate::model::XdpMode,
    ) -> Result<()> {
        // While an upgrade is under way its links are in its hands, and what was just seen on the
        // interface may be the program before.
        if upgrade::is_under_way(&self.pins) && self.pins.link(&interface.name).exists() {
            return Ok(());
        }
        // Its first frame is to be counted where it belongs.
        let linked = self.pins.links()?;
        let others = linked.iter().filter(|name| **name != *interface.name);
        let others = others.map(|name| (&**name, None));
        let wanted = places::with(
            &self.maps.interfaces(),
            others.chain([(&*interface.name, Some(interface.index))]),
        );
        self.maps.set_interfaces(&wanted);
        self.interfaces = wanted;
        attach::attach(&mut load::pinned_program(&self.pins, PROGRAM)?, &self.pins, interface, mode)
    }

    /// Takes the program off every interface that is not among `keep`.
    pub fn detach_others(&self, keep: &[String]) -> Result<()> {
        for name in self.pins.links()? {
            if !keep.contains(&name) {
                tracing::info!(interface = name, "no longer configured: detaching");
                self.pins.remove_link(&name)?;
            }
        }
        Ok(())
    }

    /// Whether a program that was seen on an interface is ours, traced or not. The one before is
    /// too: an upgrade by another process may have come since it was seen.
    pub fn is_ours(&self, program_id: u32) -> bool {
        let mut known = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&program_id)
            && [PROGRAM, TRACED]
                .iter()
                .any(|name| pinned_id(&self.pins, name).is_ok_and(|pinned| pinned == program_id))
        {
            *known = [program_id, known[0]];
        }
        known.contains(&program_id)
    }

    /// Whether a program is one of those that frames run through here.
    pub fn runs(&self, program_id: u32) -> bool {
        let is_pinned = |name| pinned_id(&self.pins, name).is_ok_and(|id| id == program_id);
        self.is_ours(program_id) || [PROBE, ANSWERS].into_iter().any(is_pinned)
    }

    /// Puts the plain program back after a trace whose process died; tells whether there was one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn end_abandoned_trace(&self) -> Result<bool> {
        tracer::end_abandoned(&self.pins)
    }

    /// The programs that the pinned links run now, ours or not, each with the names of its
    /// interfaces.
    ///
    /// # Errors
    /// If a link can't be looked at, or its program can't be opened.
    pub(crate) fn attached(&self) -> Result<Vec<(Vec<String>, Xdp)>> {
        load::attached(&self.pins)
    }

    /// What every packet is told.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The seed that hash keys and Maglev tables derive from.
    pub const fn seed(&self) -> Seed {
        Seed::new(self.settings.seed)
    }

    /// Entries of the flow table.
    pub const fn flow_capacity(&self) -> u32 {
        (self.settings.flow_mask + 1) * lb_common::flow::GROUP as u32
    }

    /// Makes the flow table's time-outs the longest of any service; the sweep keeps the shorter
    /// ones. Tells whether the table's clock, made for those of the start, can count them.
    ///
    /// # Errors
    /// If the kernel refuses the write.
    pub fn set_idle(&mut self, longest: &IdleTimeouts) -> Result<bool> {
        let Settings { hz, tick_shift, .. } = self.settings;
        let fitting = Timing::from_hz(hz, longest).tick_shift <= tick_shift;
        let idle_ticks = clock::idle_ticks(longest, hz, tick_shift);
        self.change(Settings { idle_ticks, ..self.settings })?;
        Ok(fitting)
    }

    /// From now on probes are sent by way of the VIPs: answers to them go out of the interface
    /// with this index, the host's end of the prober's veth pair. 0: no more.
    ///
    /// # Errors
    /// If the kernel refuses the write.
    pub fn set_probe_interface(&mut self, index: u32) -> Result<()> {
        self.change(Settings { probe_interface: index, ..self.settings })
    }

    /// Writes other settings, if they are others.
    fn change(&mut self, settings: Settings) -> Result<()> {
        if settings != self.settings {
            let Settings { object_id, .. } = self.maps.settings();
            let settings = Settings { object_id, ..settings };
            self.maps.set_settings(&settings);
            self.settings = settings;
        }
        Ok(())
    }

    /// One of the pinned programs, to be attached: [`PROBE`], [`ANSWERS`] or [`PASS`].
    ///
    /// # Errors
    /// If it is not there.
    pub fn program(&self, name: &str) -> Result<Xdp> {
        load::pinned_program(&self.pins, name)
    }

    /// Writes the settings again if they are not what we wrote; tells whether they were. Which
    /// object file runs is an upgrade's word, and that may be another process.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn mend_settings(&mut self) -> Result<bool> {
        let seen = self.maps.settings();
        let upgraded = Settings { object_id: seen.object_id, ..self.settings };
        let intact = seen == upgraded;
        if intact {
            self.settings = upgraded;
        } else {
            self.maps.set_settings(&self.settings);
        }
        Ok(intact)
    }

    /// Makes interfaces count where they should, now that some may not be attached any more; tells
    /// whether it was as we wrote it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn mend_interfaces(&mut self) -> Result<bool> {
        let seen = self.maps.interfaces();
        let linked = self.pins.links()?;
        let wanted = places::with(&self.interfaces, linked.iter().map(|name| (&**name, None)));
        if wanted != seen {
            self.maps.set_interfaces(&wanted);
        }
        let intact = seen == self.interfaces;
        self.interfaces = wanted;
        Ok(intact)
    }

    /// The time-outs of single backends' flows, for [`Self::sweep`].
    pub fn idle_limits<'i>(
        &self,
        idle: impl Iterator<Item = (u16, &'i IdleTimeouts)>,
    ) -> IdleLimits {
        let Settings { hz, tick_shift, idle_ticks, .. } = self.settings;
        IdleLimits::new(
            idle_ticks,
            idle.map(|(backend, idle)| (backend, clock::idle_ticks(idle, hz, tick_shift))),
        )
    }

    /// The kernel's jiffies now, their lower 32 bits.
    pub fn now(&self) -> Result<u32> {
        clock::now(&self.clock)
    }

    /// Frees expired flows and counts the others. Milliseconds for a million entries.
    pub fn sweep(&self, limits: &IdleLimits) -> Result<Sweep> {
        Ok(self.flows.sweep(&self.settings, limits, self.now()?))
    }

    /// Every flow of the backends that `of` names, as `each` is handed them; it returns whether to
    /// go on.
    ///
    /// # Errors
    /// If the kernel does not tell the time.
    pub fn each_flow(
        &self,
        of: impl Fn(u16) -> bool,
        each: impl FnMut(&FlowView) -> bool,
    ) -> Result<()> {
        self.flow_table()?.each(of, each);
        Ok(())
    }

    /// The flow table, for those who take their time; ages are told as of now.
    ///
    /// # Errors
    /// If the kernel does not tell the time.
    pub fn flow_table(&self) -> Result<FlowTable> {
        let now = self.now()?;
        Ok(FlowTable { memory: Arc::clone(&self.flows), settings: self.settings, now })
    }
}

impl FlowTable {
    /// As [`Datapath::each_flow`].
    pub fn each(&self, of: impl Fn(u16) -> bool, each: impl FnMut(&FlowView) -> bool) {
        self.memory.each(&self.settings, self.now, of, each);
    }
}

/// The interfaces that an instance's links hold, each with the id of the program there: what can be
/// known without a daemon.
///
/// # Errors
/// If a link can't be looked at.
pub fn linked(instance: &Instance) -> Result<Vec<(String, u32)>> {
    let linked = load::linked(&Pins::of(instance))?.into_iter();
    Ok(linked.flat_map(|(id, names)| names.into_iter().map(move |name| (name, id))).collect())
}

/// Id of a pinned program.
fn pinned_id(pins: &Pins, name: &str) -> Result<u32> {
    let program = load::pinned_program(pins, name)?;
    Ok(program.info().context("ask the kernel about the program")?.id())
}

fn damaged(pins: &Pins) -> String {
    format!(
        "the instance pinned under {} is damaged; it goes on forwarding. `sluice detach` removes it",
        pins.root().display()
    )
}

/// The network namespace we are in.
fn network_namespace() -> Result<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let path = "/proc/thread-self/ns/net";
    let inode = std::fs::metadata(path).with_context(|| format!("look at {path}"))?.ino();
    u32::try_from(inode).with_context(|| format!("{path} has inode {inode}"))
}

/// The kernel's name for an XDP mode.
const fn aya_mode(native: bool) -> AyaMode {
    if native { AyaMode::Driver } else { AyaMode::Skb }
}
