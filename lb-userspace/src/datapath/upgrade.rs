//! From one program to the next without losing a frame.
//!
//! `sluice upgrade`, and the `run` of another build, go the same way:
//!
//! 1. `decide`: adopt, replace, migrate or refuse, by the instance's settings alone.
//! 2. Load the new program on the live maps, attached to nothing: the verifier's word.
//! 3. `rehearse`: golden frames and packets of live flows through both programs, on maps of
//!    their own; any other answer is a refusal.
//! 4. Swap it in, link by link (`bpf_link_update`): each frame runs through one program or
//!    through the other.
//! 5. `watch`: drops, frames that nobody counts (what an exception in the program looks like),
//!    handshakes and forgotten flows, against a window just before. If it got worse, the old
//!    program is swapped in again.
//!
//! Until the end of the watch the old program stays pinned as `programs/before`, and the settings name
//! it as the one that runs. A process that dies half-way leaves that pin behind, and whoever
//! comes next puts the old program back before anything else (`settle`): nobody has judged
//! the new one. One process at a time does this, by a lock on the instance's directory.
//!
//! Another ABI takes new maps as well: `migrate`.

mod decide;
mod frames;
mod kept;
mod migrate;
mod rehearse;
mod table;
mod watch;

use std::{
    fs::File,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::{Ebpf, programs::Xdp};
use lb_common::{
    abi::{Settings, capacity},
    flow::tick_of,
    service::BackendState,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::Serialize;

pub use self::decide::TWIN;
pub(super) use self::{
    decide::{Decision, decide},
    kept::keep,
    migrate::migrate,
};
use self::{
    rehearse::{Difference, Rehearsed, Scenery, rehearse},
    watch::{Sample, Window, Worse, judge},
};
use super::{CLOCK, Maps, OBJECT, PROGRAM, PROGRAMS, clock, load, network_namespace, pins::Pins};
use crate::instance::Instance;

/// The pin of the program before, while the one after it is watched.
const BEFORE: &str = "before";
/// The pin of a program on its way to its name.
const COMING: &str = "coming";

/// How long is counted before the swap, to compare with.
const BASELINE: Duration = Duration::from_secs(1);
/// How often the watch looks.
const LOOK: Duration = Duration::from_millis(100);
/// How long another process's upgrade is waited for: longer than it watches by default.
const PATIENCE: Duration = Duration::from_secs(20);

/// How to go about it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long the new program is watched.
    pub watch: Duration,
    /// Swap it in even if the rehearsal shows other answers than before, as a release that means
    /// to give them needs. The watch still judges.
    pub force: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { watch: Duration::from_secs(5), force: false }
    }
}

/// What became of an upgrade.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The object file that ran.
    pub from: String,
    /// The object file that was to run.
    pub to: String,
    /// Golden frames rehearsed.
    pub rehearsed_frames: u32,
    /// Live flows whose next packet was rehearsed.
    pub rehearsed_flows: u32,
    /// Seconds for which the new program was watched.
    pub watched_seconds: f64,
    /// The end of it.
    pub result: Outcome,
    /// Why it was refused or rolled back.
    pub reason: Option<String>,
}

/// How an upgrade ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new program runs.
    Upgraded,
    /// It ran already.
    Unchanged,
    /// It ran, was worse, and the old one runs again.
    RolledBack,
    /// It never ran.
    Refused,
}

impl Report {
    /// What became of it, in one sentence.
    pub fn sentence(&self) -> String {
        let Self { from, to, .. } = self;
        let reason = self.reason.as_deref().unwrap_or("no reason");
        match self.result {
            Outcome::Upgraded => format!("kernel program {from} replaced by {to}"),
            Outcome::Unchanged => format!("kernel program {to} runs already"),
            Outcome::RolledBack => {
                format!("kernel program {to} was worse than {from}, which runs again: {reason}")
            }
            Outcome::Refused => format!("kernel program {to} refused, {from} stays: {reason}"),
        }
    }

    fn new(from: u64, to: u64) -> Self {
        Self {
            from: format!("{from:016x}"),
            to: format!("{to:016x}"),
            rehearsed_frames: 0,
            rehearsed_flows: 0,
            watched_seconds: 0.0,
            result: Outcome::Refused,
            reason: None,
        }
    }

    fn refused(self, reason: &impl ToString) -> Self {
        Self { result: Outcome::Refused, reason: Some(reason.to_string()), ..self }
    }
}

/// Whoever tells people what happens, a line at a time.
pub type Say<'a> = &'a mut dyn FnMut(&str);

/// Puts the program of an object file in the place of the one that runs, if it is not worse.
/// Needs no daemon, and disturbs none.
///
/// # Errors
/// If there is nothing to upgrade or the kernel does not do what it should; the old program runs
/// on. That the new one is refused or rolled back is no error, but in the report.
pub fn upgrade(
    instance: &Instance,
    object: &[u8],
    options: &Options,
    say: Say<'_>,
) -> Result<Report> {
    let pins = Pins::of(instance);
    if pins.links()?.is_empty() {
        bail!("instance {instance} is not attached: there is nothing to upgrade");
    }
    let _lock = lock(&pins)?;
    settle(&pins)?;
    let settings = load::settings(&pins)?;
    let object_id = load::object_id(object);
    let report = Report::new(settings.object_id, object_id);
    match decide(&settings, object_id, network_namespace()?) {
        Decision::Adopt => {
            say("this build's program runs already");
            Ok(Report { result: Outcome::Unchanged, ..report })
        }
        Decision::Replace => replace(instance, &pins, object, options, report, say),
        Decision::Migrate(_) => Ok(report.refused(
            &"the instance speaks another ABI and needs new maps: stop its daemon and start \
             `sluice run` of this build, which migrates it and keeps its flows",
        )),
        Decision::Refuse(refusal) => Ok(report.refused(&refusal)),
    }
}

/// The same for a daemon that has just adopted another build's program: in a thread of its own,
/// logged, so that the daemon is ready meanwhile. `done` is told what became of it. A daemon that
/// ends leaves an upgrade half done, for the next one to undo and repeat.
pub fn beside(instance: &Instance, done: impl FnOnce(Result<Report>) + Send + 'static) {
    let instance = instance.clone();
    let work = move || {
        let mut say = |line: &str| tracing::info!("upgrade: {line}");
        done(upgrade(&instance, OBJECT, &Options::default(), &mut say));
    };
    if let Err(error) = thread::Builder::new().name("upgrade".to_owned()).spawn(work) {
        tracing::error!("can't start a thread for the upgrade: {error}");
    }
}

/// Steps 2 to 5, on the maps as they are.
fn replace(
    instance: &Instance,
    pins: &Pins,
    object: &[u8],
    options: &Options,
    mut report: Report,
    say: Say<'_>,
) -> Result<Report> {
    say(&format!("program {} -> {}", report.from, report.to));
    let mut candidate = match load::beside(pins, object, &PROGRAMS) {
        Ok(candidate) => candidate,
        Err(error) => return Ok(report.refused(&format!("{error:#}"))),
    };
    let mut maps = Maps::pinned(pins)?;
    if let Err(difference) = rehearsal(instance, pins, &maps, object, &mut report, say)? {
        if !options.force {
            let reason = format!("{difference} (if that is meant so: sluice upgrade --force)");
            return Ok(report.refused(&reason));
        }
        say(&format!("going on all the same: {difference}"));
    }

    let view = View::of(&maps, pins)?;
    let before = view.window(&maps, BASELINE.min(options.watch))?;
    let swapped = view.sample(&maps)?;
    if let Err(error) = swap_in(pins, &mut candidate) {
        roll_back(pins).context("put the old program back")?;
        return Err(error);
    }
    say(&format!("swapped on {}", view.interfaces.join(", ")));
    match view.watch(&maps, &before, &swapped, options.watch, &mut report, say) {
        Ok(Ok(())) => {}
        Ok(Err(worse)) => {
            roll_back(pins).context("put the old program back")?;
            say("rolled back");
            let reason = Some(worse.to_string());
            return Ok(Report { result: Outcome::RolledBack, reason, ..report });
        }
        Err(error) => {
            roll_back(pins).context("put the old program back")?;
            return Err(error.context("watch the new program (the old one runs again)"));
        }
    }
    for name in PROGRAMS.into_iter().filter(|name| *name != PROGRAM) {
        load::pin_program(load::program(&mut candidate, name)?, pins, name)?;
    }
    // In this order: dead in between, the next one finds the new program under the old name, and
    // upgrades it to itself.
    pins.remove_program(BEFORE)?;
    let settings = Settings { object_id: load::object_id(object), ..maps.settings() };
    maps.set_settings(&settings);
    keep(instance, object);
    say("upgraded");
    Ok(Report { result: Outcome::Upgraded, ..report })
}

/// Step 3, on copies of the instance's maps.
fn rehearsal(
    instance: &Instance,
    pins: &Pins,
    maps: &Maps,
    object: &[u8],
    report: &mut Report,
    say: Say<'_>,
) -> Result<Result<(), Difference>> {
    let settings = maps.settings();
    let interfaces = pins.links()?;
    let index = interfaces
        .iter()
        .find_map(|name| nix::net::if_::if_nametoindex(name.as_str()).ok())
        .with_context(|| format!("none of its interfaces is there: {}", interfaces.join(", ")))?;
    let now = clock::now(&load::pinned_program(pins, CLOCK)?)?;
    let scenery = Scenery::read(maps, &settings, tick_of(&settings, u64::from(now)), index)?;
    let running = kept::find(instance, settings.object_id);
    let Rehearsed { frames, flows, compared } = match rehearse(&scenery, running.as_deref(), object)
    {
        Ok(rehearsed) => rehearsed,
        Err(error) => return Ok(Err(error.downcast::<Difference>()?)),
    };
    (report.rehearsed_frames, report.rehearsed_flows) = (frames, flows);
    say(&format!(
        "rehearsed {frames} golden frames and packets of {flows} live flows: {}",
        if compared {
            "the same verdicts and bytes as before"
        } else {
            "as the maps want them (the running program's object file is not kept, so its own \
             answers are not known)"
        }
    ));
    Ok(Ok(()))
}

/// Step 4.
fn swap_in(pins: &Pins, candidate: &mut Ebpf) -> Result<()> {
    let mut running = load::pinned_program(pins, PROGRAM)?;
    load::pin_program(&mut running, pins, BEFORE)?;
    let program: &mut Xdp = load::program(candidate, PROGRAM)?;
    load::pin_program(program, pins, COMING)?;
    load::swap(program, pins)?;
    pins.rename_program(COMING, PROGRAM)
}

/// The old program on all links; can be repeated.
fn roll_back(pins: &Pins) -> Result<()> {
    if is_under_way(pins) {
        load::swap(&mut load::pinned_program(pins, BEFORE)?, pins)?;
        pins.rename_program(BEFORE, PROGRAM)?;
    }
    pins.remove_program(COMING)
}

/// Whether a new program is being watched, or was when its process died.
pub(super) fn is_under_way(pins: &Pins) -> bool {
    pins.program(BEFORE).exists()
}

/// Ends what a process that died has left half done: an upgrade or migration whose watch had
/// not ended is undone, one that was accepted is finished. Under the [`lock`].
pub(super) fn settle(pins: &Pins) -> Result<()> {
    if is_under_way(pins) {
        tracing::warn!("an upgrade was interrupted: putting the program before it back");
    }
    migrate::settle(pins)
        .and_then(|()| roll_back(pins))
        .context("end an upgrade that was interrupted")
}

/// The right to swap programs; others wait for it, and it dies with its holder.
pub(super) fn lock(pins: &Pins) -> Result<Flock<File>> {
    let path = pins.root();
    let mut directory = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => directory = back,
            Err((_, Errno::EWOULDBLOCK)) => {
                bail!("another process is upgrading this instance: wait until it has ended")
            }
            Err((_, errno)) => {
                return Err(errno).with_context(|| format!("lock {}", path.display()));
            }
        }
        thread::sleep(LOOK);
    }
}

/// Where the watch looks.
struct View {
    backends: Vec<u16>,
    interfaces: Vec<String>,
}

impl View {
    fn of(maps: &Maps, pins: &Pins) -> Result<Self> {
        let records = (0..=u16::MAX).zip(maps.backends(capacity::BACKENDS)?);
        let present = records.filter(|(_, record)| record.state != BackendState::Absent as u8);
        let backends = present.map(|(index, _)| index).collect();
        Ok(Self { backends, interfaces: pins.links()? })
    }

    fn sample(&self, maps: &Maps) -> Result<Sample> {
        Sample::take(maps, &self.backends, &self.interfaces)
    }

    fn window(&self, maps: &Maps, time: Duration) -> Result<Window> {
        let start = self.sample(maps)?;
        thread::sleep(time);
        Ok(self.sample(maps)?.since(&start))
    }

    /// Step 5. It ends as soon as there is something to complain about.
    fn watch(
        &self,
        maps: &Maps,
        before: &Window,
        swapped: &Sample,
        time: Duration,
        report: &mut Report,
        say: Say<'_>,
    ) -> Result<Result<(), Worse>> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            thread::sleep(left.min(LOOK));
            let after = self.sample(maps)?.since(swapped);
            report.watched_seconds = (after.time.as_secs_f64() * 10.0).round() / 10.0;
            let verdict = judge(before, &after);
            if verdict.is_err() || left.is_zero() {
                let frames = |window: &Window| {
                    format!(
                        "{} frames, {} forwarded, {} dropped or reset",
                        window.counted(),
                        window.forwarded(),
                        window.refused()
                    )
                };
                say(&format!(
                    "watched for {:.1} s: {} (in {:.1} s before: {})",
                    after.time.as_secs_f64(),
                    frames(&after),
                    before.time.as_secs_f64(),
                    frames(before)
                ));
                if let Err(worse) = &verdict {
                    say(&format!("worse: {worse}"));
                }
                return Ok(verdict);
            }
        }
    }
}
