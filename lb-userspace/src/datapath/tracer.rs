//! The traced build of the kernel program in the place of the other one, while somebody watches.
//!
//! It runs on the same maps and decides the same, so it is swapped in and out as an upgrade is:
//! link by link, each frame through one or the other. While it runs it is pinned as
//! `programs/traced`; who traces holds a lock on that directory, which dies with him, and a daemon
//! that finds the pin without the lock puts the plain program back.

use std::fs::File;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, RingBuf},
};
use lb_common::trace::{Filter, Tally, map};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{OBJECT, PROGRAM, Raw, load, network_namespace, pins::Pins, upgrade};
use crate::instance::Instance;

/// The object file of the traced build, made by `build.rs`.
pub static TRACED_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/traced.o"));

/// Name of the program in it, and of its pin.
pub const TRACED: &str = "traced";

/// The traced program, attached. Ends with [`stop`](Self::stop), or when it is dropped.
pub struct Tracer {
    pins: Pins,
    program: u32,
    ring: RingBuf<MapData>,
    tokens: Array<MapData, i64>,
    tally: PerCpuArray<MapData, Raw<Tally>>,
    /// Keeps program and maps.
    _object: Ebpf,
    /// Nobody else traces.
    _lock: Flock<File>,
    is_over: bool,
    #[cfg(feature = "kernel-log")]
    log: aya_log::EbpfLogger<Stderr>,
}

/// Where the kernel program's log lines go: beside what is traced.
#[cfg(feature = "kernel-log")]
struct Stderr;

#[cfg(feature = "kernel-log")]
impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        use std::io::Write as _;
        // Nobody is left to tell that stderr is closed.
        let _ = writeln!(std::io::stderr(), "kernel: {}", record.args());
    }

    fn flush(&self) {}
}

impl Tracer {
    /// Puts the traced program in the place of the running one. Nothing is told before it gets
    /// [bytes to tell with](Self::grant).
    ///
    /// # Errors
    /// If the instance is not attached here or is another build's, if somebody else traces it, or
    /// the kernel refuses; then the plain program runs on.
    pub fn start(instance: &Instance, filter: &Filter) -> Result<Self> {
        let pins = Pins::of(instance);
        if pins.links()?.is_empty() {
            bail!(
                "instance {instance} is not attached to any interface: `sluice run --config FILE` \
                 attaches it"
            );
        }
        let settings = load::settings(&pins)?;
        if settings.object_id != load::object_id(OBJECT) {
            bail!(
                "instance {instance} runs another build's kernel program: trace with the binary \
                 that runs it, or `sluice upgrade` first"
            );
        }
        if settings.network_namespace != network_namespace()? {
            bail!("instance {instance} is attached in another network namespace: trace there");
        }
        let Some(lock) = lock(&pins)? else {
            bail!("somebody else traces instance {instance}: one trace at a time");
        };
        let mut object = load::beside(&pins, TRACED_OBJECT, &[TRACED])?;
        let program = load::program(&mut object, TRACED)?.info();
        let program = program.context("ask the kernel about the program")?.id();
        let mut filters: Array<_, Raw<Filter>> = take(&mut object, map::FILTER)?;
        filters.set(0, Raw(*filter), 0).context("write the trace's filter")?;
        let tracer = Self {
            program,
            ring: take(&mut object, map::RING)?,
            tokens: take(&mut object, map::TOKENS)?,
            tally: take(&mut object, map::TALLY)?,
            #[cfg(feature = "kernel-log")]
            log: aya_log::EbpfLogger::init_with_logger(&mut object, Stderr)
                .context("read the kernel program's log")?,
            pins,
            _object: object,
            _lock: lock,
            is_over: false,
        };
        tracer.swap_in()
    }

    fn swap_in(mut self) -> Result<Self> {
        let _swapping = upgrade::lock(&self.pins)?;
        if upgrade::is_under_way(&self.pins) {
            self.is_over = true;
            bail!("an upgrade of this instance is under way: trace when it has ended");
        }
        let program = load::program(&mut self._object, TRACED)?;
        load::pin_program(program, &self.pins, TRACED)?;
        load::swap(program, &self.pins)?;
        Ok(self)
    }

    /// Lets so many bytes be told until the next call.
    ///
    /// # Errors
    /// If the kernel refuses the write.
    pub fn grant(&mut self, bytes: u32) -> Result<()> {
        self.tokens.set(0, i64::from(bytes), 0).context("write the trace's limit")
    }

    /// Hands over all that was told since the last call, until it says no more.
    ///
    /// # Errors
    /// What it says.
    pub fn drain(&mut self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        #[cfg(feature = "kernel-log")]
        self.log.flush();
        while let Some(told) = self.ring.next() {
            each(&told)?;
        }
        Ok(())
    }

    /// How many frames were told, and how many were not.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn tally(&self) -> Result<Tally> {
        let cpus = self.tally.get(&0, 0).context("read the trace's tally")?;
        let sum = |field: fn(&Tally) -> u64| cpus.iter().map(|Raw(tally)| field(tally)).sum();
        Ok(Tally {
            told: sum(|tally| tally.told),
            over_limit: sum(|tally| tally.over_limit),
            ring_full: sum(|tally| tally.ring_full),
        })
    }

    /// Whether the traced program still runs: an upgrade or `sluice detach` ends a trace.
    ///
    /// # Errors
    /// If the links can't be looked at.
    pub fn is_attached(&self) -> Result<bool> {
        Ok(load::linked(&self.pins)?.contains_key(&self.program))
    }

    /// Puts the plain program back.
    ///
    /// # Errors
    /// If the kernel refuses; the traced program then runs on, and tells nothing.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.is_over = true;
        put_back(&self.pins)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if !self.is_over
            && let Err(error) = self.end()
        {
            tracing::error!("can't put the plain program back: {error:#}");
        }
    }
}

/// Puts the plain program back after a trace whose process died; tells whether there was one.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn end_abandoned(pins: &Pins) -> Result<bool> {
    if !pins.program(TRACED).exists() {
        return Ok(false);
    }
    // Held: somebody traces.
    let Some(_lock) = lock(pins)? else {
        return Ok(false);
    };
    put_back(pins).context("put the plain program back after a trace that was killed")?;
    Ok(true)
}

/// On every link, unless an upgrade has put another one there already.
fn put_back(pins: &Pins) -> Result<()> {
    if !pins.program(TRACED).exists() {
        return Ok(());
    }
    let _swapping = upgrade::lock(pins)?;
    let traced = load::pinned_program(pins, TRACED)?;
    if load::is_attached(&traced, pins)? {
        load::swap(&mut load::pinned_program(pins, PROGRAM)?, pins)?;
    }
    pins.remove_program(TRACED)
}

/// The right to trace; `None`: somebody has it.
fn lock(pins: &Pins) -> Result<Option<Flock<File>>> {
    let path = pins.programs();
    let directory = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", path.display())),
    }
}

fn take<M>(object: &mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = object.take_map(name).ok_or_else(|| anyhow!("the object file has no map {name}"))?;
    map.try_into().with_context(|| format!("map {name} has another layout"))
}
