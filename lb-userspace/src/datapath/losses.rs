//! Frames that are lost after our program's decision, counted by a small program of its own on two
//! tracepoints (`lb_common::losses`). The daemon holds it: when it goes, nobody reads it any more.

use std::{collections::BTreeMap, path::Path, thread};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuHashMap},
    programs::TracePoint,
};
use lb_common::losses::{self, Loss};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{Raw, diagnose};

/// The object file, made by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/losses.o"));
/// The tracepoints, by which the programs are called too.
const TRACEPOINTS: [&str; 2] = ["xdp_exception", "xdp_redirect_err"];
/// Where tracefs belongs: the kernel makes the directory.
const TRACEFS: &str = "/sys/kernel/tracing";
/// Where it may be as well.
const IN_DEBUGFS: &str = "/sys/kernel/debug/tracing";

/// The watch over losses; it ends when this is dropped.
pub struct Losses {
    /// Holds the programs and where they are attached.
    _object: Ebpf,
    counts: PerCpuHashMap<MapData, Raw<Loss>, u64>,
}

impl Losses {
    /// Begins to count, of all programs on this machine.
    ///
    /// # Errors
    /// If the kernel has no tracepoints, or refuses.
    pub fn watch() -> Result<Self> {
        let mut object = EbpfLoader::new().load(OBJECT).map_err(diagnose::load_error)?;
        let counts = object.take_map(losses::MAP).context("the object file has no map")?;
        let has_tracefs =
            [TRACEFS, IN_DEBUGFS].iter().any(|at| Path::new(at).join("events/xdp").exists());
        if has_tracefs {
            attach(&mut object)?;
        } else {
            // Nobody has mounted it, and nobody else shall see it mounted.
            let attached = thread::scope(|scope| {
                let attach = || mount_for_this_thread().and_then(|()| attach(&mut object));
                scope.spawn(attach).join()
            });
            attached.map_err(|_| anyhow!("the thread that attaches has panicked"))??;
        }
        Ok(Self { _object: object, counts: counts.try_into().context("its map is another")? })
    }

    /// What has been counted of the programs that `is_ours` names. Of others it is forgotten before
    /// there is no room.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn read(&mut self, is_ours: impl Fn(u32) -> bool) -> Result<BTreeMap<Loss, u64>> {
        let all: Vec<(Raw<Loss>, u64)> = self
            .counts
            .iter()
            .map(|entry| entry.map(|(loss, counts)| (loss, counts.iter().sum())))
            .collect::<Result<_, _>>()
            .context("read the losses")?;
        let is_crowded = all.len() > losses::CAPACITY / 2;
        let mut ours = BTreeMap::new();
        for (key, count) in all {
            if is_ours(key.0.program) {
                ours.insert(key.0, count);
            } else if is_crowded {
                self.counts.remove(&key).context("forget another's losses")?;
            }
        }
        Ok(ours)
    }
}

fn attach(object: &mut Ebpf) -> Result<()> {
    for name in TRACEPOINTS {
        let program: &mut TracePoint = object
            .program_mut(name)
            .with_context(|| format!("the object file has no program {name}"))?
            .try_into()?;
        program.load().map_err(|error| diagnose::verifier_error(name, error))?;
        // The link lives as long as the object.
        program.attach("xdp", name).with_context(|| format!("attach to xdp:{name}"))?;
    }
    Ok(())
}

/// Gives this thread, and no other, a tracefs where it belongs: in a mount namespace of its own,
/// which goes with it.
fn mount_for_this_thread() -> Result<()> {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NOTHING, "/", NOTHING, private, NOTHING).context("make its mounts its own")?;
    mount(Some("tracefs"), TRACEFS, Some("tracefs"), MsFlags::empty(), NOTHING)
        .with_context(|| format!("mount tracefs on {TRACEFS}"))
}
