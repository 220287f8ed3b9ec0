//! `cargo xtask vm`: the tests on the kernels that we claim, each in a virtual machine that is made
//! for the occasion.
//!
//! [`kernels`] fetches Debian's and [`emulator`] QEMU, [`initramfs`] packs what the guest needs,
//! [`machine`] runs it, [`suite`] says what is done there and judges it, [`instructions`] compares
//! what was measured, [`report`] tells. Nothing here needs root, and all that is made lies in
//! `target/vm`.

mod emulator;
mod initramfs;
mod instructions;
mod kernels;
mod machine;
mod report;
mod suite;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub use self::kernels::Series;
use self::{
    emulator::Emulator,
    instructions::Accepted,
    kernels::{Kernel, Kernels},
    machine::Machine,
    report::{Outcome, Report},
    suite::Suite,
};
use crate::{
    process::target_dir,
    setup::{self, Purpose},
    start,
};

/// The kernels that are claimed, and the one that is refused.
pub const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.x"];

/// After so long a machine is killed: ten times what one takes on a quiet computer of two cores.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// What is asked for.
#[derive(Clone, Debug, clap::Args)]
pub struct Request {
    /// Only these, as 6.1,6.12 or 7.x for the newest 7.
    #[arg(long = "kernel", value_name = "SERIES", value_delimiter = ',', default_values = KERNELS)]
    kernels: Vec<Series>,
    /// Only these steps: golden, agent, agreement, namespaces, virtio.
    #[arg(long, value_name = "STEP", value_delimiter = ',', conflicts_with = "icount")]
    only: Vec<String>,
    /// Measure instructions per packet in place of the tests, and compare them with the accepted
    /// ones in xtask/instructions.toml.
    #[arg(long)]
    icount: bool,
    /// Write what was measured there: it is accepted.
    #[arg(long, requires = "icount")]
    accept: bool,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
    /// Machines at a time; by default, as many as there are CPUs.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

/// A guest that can start.
struct Guest {
    kernel: Kernel,
    suite: Suite,
    initramfs: PathBuf,
}

/// Does what is asked for.
///
/// # Errors
/// If a kernel has failed, or the tests can't be built. That a kernel can't be had is no error, and
/// no success: it is told.
pub fn vm(request: &Request) -> Result<()> {
    setup::ensure(&[Purpose::Build, Purpose::Machine])?;
    println!("vm: building the tests …");
    let binaries = start::tests(&suite::BINARIES, &suite::PROGRAMS)?;
    let directory = target_dir().join("vm");
    let programs = initramfs::programs(&directory, &binaries)?;
    let mut accepted = Accepted::read()?;

    let mut report = Report::default();
    let mut guests = VecDeque::new();
    let emulator = Emulator::get(&directory.join("qemu"));
    let kernels = Kernels::in_directory(&directory.join("kernels"));
    for (place, series) in request.kernels.iter().enumerate() {
        let guest = emulator
            .as_ref()
            .map_err(|error| format!("{error:#}"))
            .and_then(|_| kernels.get(series).map_err(|error| format!("{error:#}")));
        let outcome = match guest {
            Ok(kernel) => {
                let suite = if request.icount {
                    Suite::figures()
                } else {
                    Suite::of(series).only(&request.only)?
                };
                guests.push_back((place, prepare(kernel, suite, &programs)?));
                None
            }
            Err(why) => Some(Outcome::not_run(why)),
        };
        report.0.push((series.to_string(), outcome));
    }
    if let Ok(emulator) = &emulator {
        let jobs = request.jobs.or_else(|| thread::available_parallelism().ok().map(Into::into));
        for (place, outcome) in run_all(emulator, guests, jobs.unwrap_or(1), &accepted)? {
            report.0[place].1 = Some(outcome);
        }
    }
    print!("\n{report}");
    if request.accept {
        for outcome in report.outcomes() {
            accepted.take(outcome);
        }
        accepted.write()?;
    }
    if request.json {
        println!("{}", report.json()?);
    }
    match report.failed() {
        failed if failed.is_empty() || request.accept => Ok(()),
        failed => bail!("failed on {}", failed.join(", ")),
    }
}

/// Makes what a guest starts from.
fn prepare(kernel: Kernel, suite: Suite, programs: &Path) -> Result<Guest> {
    let modules = initramfs::modules(&kernel)?;
    let initramfs = initramfs::whole(&kernel.directory, &suite.plan(), [programs, &modules])?;
    Ok(Guest { kernel, suite, initramfs })
}

/// Runs guests, so many at a time; outcomes by their places.
fn run_all(
    emulator: &Emulator,
    guests: VecDeque<(usize, Guest)>,
    jobs: usize,
    accepted: &Accepted,
) -> Result<Vec<(usize, Outcome)>> {
    let jobs = jobs.clamp(1, guests.len().max(1));
    let waiting = Mutex::new(guests);
    // A worker that panicked has taken its guest with it.
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || -> Result<Vec<(usize, Outcome)>> {
        let mut outcomes = Vec::new();
        while let Some((place, guest)) = next() {
            outcomes.push((place, guest.run(emulator, accepted)?));
        }
        Ok(outcomes)
    };
    let results = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let mut outcomes = Vec::new();
    for result in results {
        outcomes.extend(result.map_err(|_| anyhow::anyhow!("a worker has panicked"))??);
    }
    Ok(outcomes)
}

impl Guest {
    fn run(&self, emulator: &Emulator, accepted: &Accepted) -> Result<Outcome> {
        let Self { kernel, suite, initramfs } = self;
        let name = format!("Linux {} ({})", kernel.release, kernel.version);
        println!("vm: {name} starts; what it says is in {}", kernel.directory.display());
        let start = Instant::now();
        let ran = Machine {
            emulator,
            image: &kernel.image,
            initramfs,
            directory: &kernel.directory,
            patience: PATIENCE,
        }
        .run()
        .with_context(|| name.clone())?;
        let (verdict, figures) = suite.judge(&ran, |figures| accepted.judge(kernel, figures));
        println!("vm: {name} has ended: {}", verdict.name());
        Ok(Outcome { kernel: Some(kernel.clone()), verdict, figures, time: start.elapsed() })
    }
}
