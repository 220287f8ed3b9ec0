//! The kernel side of an instance: the only room that knows `aya`.
//!
//! An instance's programs, maps and links are pinned under `/sys/fs/bpf/sluice/<instance>/`
//! and live there without the daemon. [`Datapath::adopt`] takes up what is pinned,
//! [`Datapath::create`] loads it anew; neither attaches anything before it is complete.

pub(crate) mod attach;
mod batch;
mod clock;
mod counters;
pub(crate) mod diagnose;
mod flows;
pub(crate) mod load;
mod maps;
mod memory;
mod pins;

use anyhow::{Context as _, Result, bail};
use aya::programs::{Xdp, xdp::XdpMode as AyaMode};
use lb_common::abi::{ABI_VERSION, Settings};

pub use self::{
    attach::detach,
    clock::Timing,
    counters::BackendCounters,
    diagnose::preflight,
    flows::{FlowView, IdleLimits, Sweep},
    maps::{Maps, Raw},
    memory::Mapping,
    pins::Pins,
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

/// Programs and maps of one instance.
pub struct Datapath {
    pins: Pins,
    /// The maps.
    pub maps: Maps,
    program: Xdp,
    clock: Xdp,
    settings: Settings,
    flows: flows::FlowMemory,
}

impl Datapath {
    /// Takes up a pinned instance that is attached somewhere; `None` if there is none.
    ///
    /// If it was made by another build, this build's program is loaded beside the running one,
    /// on the same maps, and takes its place in one step.
    ///
    /// # Errors
    /// If what is pinned speaks another ABI, or is damaged: then it is left as it is, and it
    /// goes on forwarding.
    pub fn adopt(instance: &Instance) -> Result<Option<Self>> {
        let pins = Pins::of(instance);
        if pins.links()?.is_empty() {
            return Ok(None);
        }
        let mut maps = Maps::pinned(&pins).with_context(|| {
            format!(
                "the instance pinned under {} is damaged; it goes on forwarding. `sluice detach` \
                 removes it",
                pins.root().display()
            )
        })?;
        let mut settings = maps.settings()?;
        if settings.abi_version != ABI_VERSION {
            bail!(
                "instance {} runs ABI {}, this binary speaks {ABI_VERSION}; it goes on forwarding. \
                 `sluice detach` removes it, then `sluice run` starts anew",
                instance.name(),
                settings.abi_version
            );
        }
        if settings.network_namespace != network_namespace()? {
            bail!(
                "instance {} is attached in another network namespace: run it there, or choose \
                 another --instance",
                instance.name()
            );
        }
        if settings.object_id != load::object_id() {
            tracing::info!("replacing the kernel program with this build's");
            load::replace(&pins)?;
            settings.object_id = load::object_id();
            maps.set_settings(&settings)?;
        }
        Self::assemble(pins, maps, settings).map(Some)
    }

    /// Loads programs and maps, and pins them. Nothing is attached yet: [`detach`] undoes it.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is left.
    pub fn create(instance: &Instance, dataplane: &Dataplane, seed: &Seed) -> Result<Self> {
        let pins = Pins::of(instance);
        // Left by a start that was killed half-way: with no link, nothing runs on it.
        pins.remove()?;
        Self::load(pins.clone(), dataplane, seed).inspect_err(|_| {
            if let Err(error) = pins.remove() {
                tracing::error!("can't clean up: {error:#}");
            }
        })
    }

    fn load(pins: Pins, dataplane: &Dataplane, seed: &Seed) -> Result<Self> {
        load::load(&pins, dataplane.flow_capacity)?;
        let timing = clock::measure(&load::pinned_program(&pins, CLOCK)?, &dataplane.longest_idle)?;
        let settings = Settings {
            abi_version: ABI_VERSION,
            hz: timing.hz,
            tick_shift: timing.tick_shift,
            flow_mask: dataplane.flow_capacity / lb_common::flow::GROUP as u32 - 1,
            idle_ticks: timing.idle_ticks,
            reuse_ticks: timing.reuse_ticks,
            network_namespace: network_namespace()?,
            object_id: load::object_id(),
            seed: seed.bytes(),
            hash_keys: seed.hash_keys(),
        };
        let mut maps = Maps::pinned(&pins)?;
        maps.set_settings(&settings)?;
        Self::assemble(pins, maps, settings)
    }

    fn assemble(pins: Pins, maps: Maps, settings: Settings) -> Result<Self> {
        let flows = flows::FlowMemory::map(&maps, &settings)?;
        let program = load::pinned_program(&pins, PROGRAM)?;
        let clock = load::pinned_program(&pins, CLOCK)?;
        Ok(Self { pins, maps, program, clock, settings, flows })
    }

    /// Attaches to an interface, unless the pinned link to it is alive.
    ///
    /// # Errors
    /// If the interface takes no XDP program in this mode; nothing is changed then.
    pub fn attach(
        &mut self,
        interface: &crate::network::Interface,
        mode: crate::model::XdpMode,
    ) -> Result<()> {
        attach::attach(&mut self.program, &self.pins, interface, mode)
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

    /// Id of the program that frames run through.
    pub fn program_id(&self) -> Result<u32> {
        Ok(self.program.info().context("ask the kernel about the program")?.id())
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
        if idle_ticks != self.settings.idle_ticks {
            let settings = Settings { idle_ticks, ..self.settings };
            self.maps.set_settings(&settings)?;
            self.settings = settings;
        }
        Ok(fitting)
    }

    /// Writes the settings again if they are not what we wrote; tells whether they were.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn mend_settings(&mut self) -> Result<bool> {
        let intact = self.maps.settings()? == self.settings;
        if !intact {
            self.maps.set_settings(&self.settings)?;
        }
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

    /// Frees expired flows and counts the others. Milliseconds for a million entries.
    pub fn sweep(&self, limits: &IdleLimits) -> Result<Sweep> {
        Ok(self.flows.sweep(&self.settings, limits, clock::now(&self.clock)?))
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
        self.flows.each(&self.settings, clock::now(&self.clock)?, of, each);
        Ok(())
    }
}

/// The network namespace we are in.
fn network_namespace() -> Result<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let path = "/proc/self/ns/net";
    let inode = std::fs::metadata(path).with_context(|| format!("look at {path}"))?.ino();
    u32::try_from(inode).with_context(|| format!("{path} has inode {inode}"))
}

/// The kernel's name for an XDP mode.
const fn aya_mode(native: bool) -> AyaMode {
    if native { AyaMode::Driver } else { AyaMode::Skb }
}
