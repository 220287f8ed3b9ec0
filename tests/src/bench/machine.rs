//! What the figures were measured on, and how quiet it is made.
#![expect(unsafe_code, reason = "sched_setscheduler(2) has no safe wrapper")]

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use serde::Serialize;

/// Where and what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor, and how many of it.
    pub cpu: String,
    /// `uname -r`.
    pub kernel: String,
    /// The kernel's answer to Spectre 2: with retpolines every helper call costs more.
    pub spectre_v2: String,
    /// Of this source tree.
    pub commit: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown CPU", |(_, model)| model);
        let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        Self {
            cpu: format!("{model}, {count} CPUs"),
            kernel: read("/proc/sys/kernel/osrelease"),
            spectre_v2: read("/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
        }
    }
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        // Root looks at somebody else's tree when started by sudo.
        .args(["-c", "safe.directory=*", "-C", env!("CARGO_MANIFEST_DIR")])
        .args(["describe", "--always", "--dirty"])
        .output()
        .ok()?;
    let commit = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| commit.trim().to_owned())
}

/// Keeps this thread on one CPU, ahead of ordinary programs where that is permitted; tells
/// whether it was.
pub fn settle() -> Result<bool> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).context("ask which CPUs are allowed")?;
    let last = (0..CpuSet::count()).rev().find(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.unwrap_or(0)).context("name a CPU")?;
    sched_setaffinity(this, &one).context("stay on one CPU")?;

    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: of the calling thread, with parameters that live through the call.
    Ok(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } == 0)
}

/// CPU time of this thread so far.
pub fn cpu_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read the CPU time")?;
    Ok(time.into())
}
