//! What control costs at scale: the time from a file, or a command, to the maps.

use std::{
    fmt, fs,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use aya::maps::MapInfo;
use serde::Serialize;

use super::Machine;
use crate::lab::{Family, Host, Lab, Plan, Sluice, dataplane};

/// Commands that are timed, for a median.
const CHANGES: u32 = 11;
/// Scrapes that are timed.
const SCRAPES: u32 = 11;
/// Where the default configuration serves them.
const METRICS: &str = "http://127.0.0.1:9180/metrics";

/// What was measured; seconds from the outside, with the start of the process that asks.
#[derive(Clone, Debug, Serialize)]
pub struct ControlReport {
    machine: Machine,
    services: usize,
    backends_of_each: usize,
    /// From nothing to ready.
    start: f64,
    /// Median of `sluice backend weight`, which returns when the maps are written.
    change: f64,
    /// The longest of them.
    change_worst: f64,
    /// A file in which one backend of each service weighs something else.
    apply: f64,
    /// The same file again.
    apply_unchanged: f64,
    /// What such a file would do.
    plan: f64,
    /// All of `sluice status --json`.
    status: f64,
    /// All of `/metrics`, by curl: the median of some, and the longest.
    scrape: f64,
    scrape_worst: f64,
    /// Its size, MB.
    scrape_megabytes: f64,
    /// Median of `sluice backend weight` while one scrape follows the other.
    change_while_scraped: f64,
    /// From SIGTERM to ready again.
    restart: f64,
    /// The daemon's memory at the end, and at most, MiB.
    resident_mib: f64,
    peak_mib: f64,
    /// Memory of the maps: the pinned ones, and a Maglev table for each service, MiB.
    maps_mib: f64,
}

/// Measures it in a laboratory of its own.
pub fn run(services: usize, backends: usize) -> Result<ControlReport> {
    ensure!(services <= 4096 && services * backends <= 65_535, "more than an instance holds");
    let lab = Lab::start(Plan { backends: 1, ..Plan::default() })?;
    let balancer = lab.balancer();
    let gateway = lab.backends()[0].address(Family::V4);
    balancer.ip(&format!("route add 10.0.0.0/8 via {gateway}"))?;

    let begun = Instant::now();
    let mut sluice = balancer.run_sluice(&config(services, backends, 100))?;
    let start = begun.elapsed();

    let changes = changes(&sluice, services, 50)?;
    let (scrapes, scrape_bytes) = scrapes(balancer)?;
    let while_scraped = changes_while_scraped(balancer, &sluice, services)?;

    let file = lab.directory().join("other.toml");
    fs::write(&file, config(services, backends, 77)).context("write a configuration")?;
    let file = file.to_str().context("a path of text")?;
    let plan = timed(|| sluice.cli_ok(&["plan", file]).map(drop))?;
    let apply = timed(|| sluice.cli_ok(&["apply", file]).map(drop))?;
    let apply_unchanged = timed(|| sluice.cli_ok(&["apply", file]).map(drop))?;
    let mut seen = serde_json::Value::Null;
    let status = timed(|| sluice.status().map(|status| seen = status))?;
    ensure!(
        seen["services"][0]["backends"][0]["weight"] == 77,
        "the file was not applied: {}",
        seen["services"][0]
    );
    let restart = timed(|| sluice.restart())?;
    let (resident, peak) = memory(&sluice)?;
    Ok(ControlReport {
        machine: Machine::here(),
        services,
        backends_of_each: backends,
        start: start.as_secs_f64(),
        change: median(&changes),
        change_worst: longest(&changes),
        apply: apply.as_secs_f64(),
        apply_unchanged: apply_unchanged.as_secs_f64(),
        plan: plan.as_secs_f64(),
        status: status.as_secs_f64(),
        scrape: median(&scrapes),
        scrape_worst: longest(&scrapes),
        scrape_megabytes: scrape_bytes as f64 / 1e6,
        change_while_scraped: median(&while_scraped),
        restart: restart.as_secs_f64(),
        resident_mib: resident,
        peak_mib: peak,
        maps_mib: maps(&sluice, services)?,
    })
}

/// One backend's weight, again and again, in services far apart; sorted.
fn changes(sluice: &Sluice, services: usize, weight: u32) -> Result<Vec<Duration>> {
    let change = |number: u32| {
        let service = format!("service-{}", number as usize * services / CHANGES as usize);
        let weight = (weight + number).to_string();
        let command = ["backend", "weight", &service, "backend-0", &weight];
        timed(|| sluice.cli_ok(&command).map(drop))
    };
    let mut changes = (0..CHANGES).map(change).collect::<Result<Vec<_>>>()?;
    changes.sort();
    Ok(changes)
}

/// The times of scrapes, sorted, and the size of one.
fn scrapes(balancer: &Host) -> Result<(Vec<Duration>, u64)> {
    let mut bytes = 0;
    let scrape = |_| timed(|| scrape(balancer).map(|size| bytes = size));
    let mut scrapes = (0..SCRAPES).map(scrape).collect::<Result<Vec<_>>>()?;
    scrapes.sort();
    Ok((scrapes, bytes))
}

/// Reads `/metrics` whole; its size.
fn scrape(balancer: &Host) -> Result<u64> {
    let curl = ["-sS", "--fail", "-o", "/dev/null", "-w", "%{size_download}", METRICS];
    balancer.run("curl", &curl)?.parse().context("read what curl says")
}

fn changes_while_scraped(
    balancer: &Host,
    sluice: &Sluice,
    services: usize,
) -> Result<Vec<Duration>> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                scrape(balancer)?;
            }
            anyhow::Ok(())
        });
        let changes = changes(sluice, services, 20);
        stop.store(true, Ordering::Relaxed);
        scraper.join().map_err(|_| anyhow!("the scraper has panicked"))??;
        changes
    })
}

/// Of sorted times; seconds.
fn median(times: &[Duration]) -> f64 {
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}

/// Of sorted times; seconds.
fn longest(times: &[Duration]) -> f64 {
    times.last().map_or(f64::NAN, Duration::as_secs_f64)
}

fn timed(what: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begun = Instant::now();
    what()?;
    Ok(begun.elapsed())
}

/// Services in 198.19.0.0/16, each with backends of its own in 10.0.0.0/8.
fn config(services: usize, backends: usize, weight: u16) -> String {
    let mut text = dataplane(&["eth0"]);
    for service in 0..services {
        let [high, low] = (service as u16 + 1).to_be_bytes();
        text += &format!(
            "[[service]]\nname = \"service-{service}\"\nvip = \"198.19.{high}.{low}:80\"\n\
             forwarding = \"ipip\"\nhealth = {{ check = \"none\" }}\nbackend = [\n"
        );
        for backend in 0..backends {
            let [_, a, b, c] = ((service * backends + backend) as u32 + 1).to_be_bytes();
            let weight = if backend == 0 { weight } else { 100 };
            text += &format!(
                "  {{ name = \"backend-{backend}\", address = \"10.{a}.{b}.{c}\", weight = {weight} }},\n"
            );
        }
        text += "]\n\n";
    }
    text
}

/// Resident now, and at most, MiB.
fn memory(sluice: &Sluice) -> Result<(f64, f64)> {
    let pid = sluice.pid().context("the daemon runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read /proc")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let mib = |name| field(name).map(|kib| kib / 1024.0).context("a field of /proc/PID/status");
    Ok((mib("VmRSS:")?, mib("VmHWM:")?))
}

/// What the kernel says the pinned maps take, and a Maglev table for each service.
fn maps(sluice: &Sluice, services: usize) -> Result<f64> {
    /// Slots of a service when nothing else is said, 2 bytes each.
    const TABLE: f64 = 65_537.0 * 2.0;
    let mut bytes = services as f64 * TABLE;
    for pin in fs::read_dir(sluice.pins().join("maps")).context("read the pins")? {
        let path = pin.context("read the pins")?.path();
        let map = MapInfo::from_pin(&path).context("ask about a map")?;
        let fd = map.fd().context("open a map")?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))
            .context("read /proc/self/fdinfo")?;
        let taken = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        bytes += taken.and_then(|taken| taken.trim().parse::<f64>().ok()).context("memlock")?;
    }
    Ok(bytes / f64::from(1 << 20))
}

impl fmt::Display for ControlReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, kernel, commit, .. } = &self.machine;
        writeln!(f, "{cpu}, Linux {kernel}, commit {commit}")?;
        writeln!(
            f,
            "{} services of {} backends; seconds, the process that asks included\n",
            self.services, self.backends_of_each
        )?;
        let rows = [
            ("start, from nothing to ready", self.start, Some(3.0)),
            ("one backend's weight, median", self.change, Some(0.1)),
            ("one backend's weight, longest", self.change_worst, None),
            ("plan of a file that changes every service", self.plan, None),
            ("apply of that file", self.apply, Some(3.0)),
            ("apply of the same file again", self.apply_unchanged, None),
            ("status --json", self.status, None),
            ("scrape of /metrics, median", self.scrape, Some(0.2)),
            ("scrape of /metrics, longest", self.scrape_worst, None),
            ("one backend's weight while scraped, median", self.change_while_scraped, None),
            ("restart, from SIGTERM to ready", self.restart, None),
        ];
        for (what, seconds, goal) in rows {
            let goal = match goal {
                Some(goal) if seconds > goal => format!("   goal {goal}: MISSED"),
                Some(goal) => format!("   goal {goal}"),
                None => String::new(),
            };
            writeln!(f, "{what:<44} {seconds:>7.3}{goal}")?;
        }
        writeln!(
            f,
            "\nmemory: daemon {:.0} MiB (at most {:.0}), maps {:.0} MiB; /metrics {:.1} MB",
            self.resident_mib, self.peak_mib, self.maps_mib, self.scrape_megabytes
        )
    }
}
