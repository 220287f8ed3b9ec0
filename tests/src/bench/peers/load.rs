//! The clients: `wrk` for requests, `iperf3` for data; and what the machine's CPUs did meanwhile.

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{SysconfVar, sysconf};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    lab::{Host, Lab, Process, Stopped},
    signals,
};

/// The client's threads and, over all of them, connections at a time.
const THREADS: usize = 3;
const CONNECTIONS: usize = 48;

/// Connections that carry data at a time.
const STREAMS: usize = 4;

/// A client that has not ended so long after its time never will.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the machine is watched while nothing runs here.
const IDLE: Duration = Duration::from_secs(1);

/// What came of requests: the last line that `wrk`'s script prints.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Requests {
    /// Answered, well.
    pub requests: u64,
    /// Not, or not well.
    pub failed: u64,
    microseconds: u64,
}

impl Requests {
    pub(super) fn per_second(&self) -> f64 {
        self.requests as f64 / self.microseconds as f64 * 1e6
    }
}

/// `wrk`'s script: threads take the places in turn.
fn script(places: &[SocketAddr]) -> String {
    let places = places.iter().map(|to| format!("{{\"{}\", \"{}\"}},", to.ip(), to.port()));
    format!(
        "local places, threads = {{ {} }}, 0\n\
         function setup(thread)\n\
         local place = places[threads % #places + 1]\n\
         thread.addr = wrk.lookup(place[1], place[2])[1]\n\
         threads = threads + 1\n\
         end\n\
         function done(summary)\n\
         local e = summary.errors\n\
         local failed = e.connect + e.read + e.write + e.status + e.timeout\n\
         io.write(string.format('{{\"requests\":%d,\"failed\":%d,\"microseconds\":%d}}\\n',\n\
         summary.requests - e.status, failed, summary.duration))\n\
         end\n",
        places.collect::<String>()
    )
}

/// Requests for so long, over connections that stay, or each over its own.
pub(super) fn run_wrk(
    client: &Host,
    lab: &Lab,
    places: &[SocketAddr],
    time: Duration,
    keep_alive: bool,
) -> Result<Requests> {
    let file = lab.directory().join("wrk.lua");
    fs::write(&file, script(places)).context("write wrk.lua")?;
    let first = places.first().context("a place to ask")?;
    let mut command = client.command("wrk");
    command
        .args(["--threads", &THREADS.to_string(), "--connections", &CONNECTIONS.to_string()])
        .args(["--timeout", "5s", "--duration", &format!("{}s", time.as_secs())])
        .arg("--script")
        .arg(file);
    if !keep_alive {
        command.args(["--header", "Connection: close"]);
    }
    command.arg(format!("http://{first}/"));
    let name = if keep_alive { "wrk" } else { "wrk-close" };
    let output = run(lab, name, command, time)?;
    let last = output.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("{name} says:\n{output}"))
}

/// Data for so long; bits a second that arrived.
pub(super) fn run_iperf3(
    client: &Host,
    lab: &Lab,
    place: SocketAddr,
    time: Duration,
) -> Result<f64> {
    let mut command = client.command("iperf3");
    command
        .args(["--client", &place.ip().to_string(), "--port", &place.port().to_string()])
        .args(["--time", &time.as_secs().to_string(), "--parallel", &STREAMS.to_string()])
        .arg("--json");
    let output = run(lab, "iperf3", command, time)?;
    let report: Value =
        serde_json::from_str(&output).with_context(|| format!("iperf3 says:\n{output}"))?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    bits.filter(|bits| *bits > 0.0).with_context(|| format!("nothing arrived: {}", report["error"]))
}

/// Runs a client to its end, and no longer than it should take; what it has written.
fn run(lab: &Lab, name: &str, command: Command, time: Duration) -> Result<String> {
    let mut process = Process::start(name, command, &lab.directory().join(format!("{name}.log")))?;
    let latest = Instant::now() + time + PATIENCE;
    while process.is_running() {
        ensure!(!signals::interrupted(), "interrupted");
        ensure!(Instant::now() < latest, "{name} does not end:\n{}", process.log());
        thread::sleep(Duration::from_millis(5));
    }
    match process.stop()? {
        Stopped::Exited(status) if status.success() => Ok(process.log()),
        ended => bail!("{name} {ended:?}:\n{}", process.log()),
    }
}

/// What all CPUs have worked since the machine started, seconds: proc_stat(5), of which idleness,
/// waiting for disks and what the host took away are no part.
pub(super) fn cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let ticks = sysconf(SysconfVar::CLK_TCK).context("ask for the clock's ticks")?;
    let worked = worked(&stat).context("no line `cpu` in /proc/stat")?;
    Ok(worked as f64 / ticks.context("the clock has no ticks")? as f64)
}

/// user, nice, system, irq, softirq of all CPUs, ticks.
fn worked(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Option<Vec<u64>> =
        line.split_whitespace().map(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields?[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

/// CPUs that others keep busy now: 1 is a whole one.
pub(super) fn others() -> Result<f64> {
    let (before, begun) = (cpu_seconds()?, Instant::now());
    thread::sleep(IDLE);
    Ok((cpu_seconds()? - before) / begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cpus_worked_leaves_out_idleness() {
        let stat = "cpu  100 20 30 5000 600 7 80 900 1 1\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(worked(stat), Some(100 + 20 + 30 + 7 + 80));
        for bad in ["", "cpu  1 2 3\n", "cpu  a b c d e f g\n"] {
            assert_eq!(worked(bad), None, "{bad}");
        }
        assert!(cpu_seconds().is_ok_and(|seconds| seconds > 0.0));
    }
}
