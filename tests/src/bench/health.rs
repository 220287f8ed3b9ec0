//! What probes cost the daemon: the engine on one thread, with thousands of backends.
//!
//! The servers are one thread on the loopback interface, whose whole network 127.0.0.0/8 it
//! listens on. There the kernel works a segment's way up to the server in the time of who sends
//! it, so the figures hold more than what a network card would leave to the daemon.

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use lb_common::forward::Forwarding;
use lb_userspace::{
    health::{Direct, Engine, Paths, State, Target, places},
    model::{CheckKind, HealthCheck, HttpCheck, Via},
};
use nix::sched::{CloneFlags, unshare};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    runtime::Builder,
    time::sleep,
};

use super::{Machine, machine::cpu_time};
use crate::lab::check;

/// Before it is measured, all have been probed.
const WARM_UP: Duration = Duration::from_secs(5);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const PORT: u16 = 80;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct HealthReport {
    machine: Machine,
    targets: usize,
    interval: f64,
    cases: Vec<Case>,
}

/// One kind of probe, over all targets.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    name: &'static str,
    /// Probes begun in a second.
    probes_per_second: f64,
    /// CPU time of the engine's thread, seconds in a second: 1 is a whole core.
    cpu: f64,
    /// Share of the probes that began more than 100 ms after they were due.
    late: f64,
    /// The longest that one began after it was due, since the start, seconds.
    latest: f64,
    /// The process's memory, MiB.
    resident_mib: f64,
}

/// Measures probes of servers that are well, by TCP and HTTP, and of hosts that are dead.
///
/// # Errors
/// Without root, or if the targets are not what they should be.
pub fn run(targets: usize, interval: Duration, time: Duration) -> Result<HealthReport> {
    ensure!((1..=60_000).contains(&targets), "from 1 to 60,000 targets");
    let cases = [
        ("tcp", CheckKind::Tcp, 127, State::Healthy),
        ("http", CheckKind::Http(HttpCheck::default()), 127, State::Healthy),
        ("tcp, dead hosts", CheckKind::Tcp, 10, State::Unreachable),
    ];
    let measured = thread::spawn(move || {
        prepare()?;
        let one = |(name, kind, network, expected)| {
            let check = HealthCheck {
                kind,
                via: Via::Backend,
                interval,
                timeout: interval / 2,
                ..HealthCheck::default()
            };
            let targets = (0..targets).map(|number| target(number, network, &check)).collect();
            // A thread of its own, whose CPU time is the engine's.
            let case = thread::spawn(move || measure(name, targets, expected, time));
            case.join().map_err(|_| anyhow!("the engine panicked"))?
        };
        cases.into_iter().map(one).collect::<Result<Vec<Case>>>()
    });
    let cases = measured.join().map_err(|_| anyhow!("a measurement panicked"))??;
    let interval = interval.as_secs_f64();
    Ok(HealthReport { machine: Machine::here(), targets, interval, cases })
}

/// A network namespace for this thread and those it starts: servers on 127.0.0.0/8, and a
/// network 10.0.0.0/8 where everything vanishes.
fn prepare() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    for words in [
        "link set lo up",
        "link add sink type veth peer name drain",
        "address add 10.255.255.254/8 dev sink",
        "link set sink arp off up",
        "link set drain up",
    ] {
        let output = Command::new("ip").args(words.split(' ')).output().context("run ip")?;
        check(&output, &format!("ip {words}"))?;
    }
    let (ready, listens) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().context("a runtime")?;
        runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().context("open a socket")?;
            socket.bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT)).context("bind")?;
            let listener = socket.listen(4096).context("listen")?;
            ready.send(()).context("tell that it listens")?;
            serve(listener).await
        })
    });
    listens.recv().context("start the servers")
}

async fn serve(listener: TcpListener) -> Result<()> {
    loop {
        // A probe that is over already is an error here.
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let mut request = [0; 1024];
            if matches!(stream.read(&mut request).await, Ok(1..)) {
                // Who was asked and is not heard to the end has no need to know.
                let _ = stream.write_all(ANSWER).await;
                let _ = stream.read(&mut request).await;
            }
        });
    }
}

fn target(number: usize, network: u8, check: &HealthCheck) -> Target {
    let [_, _, high, low] = (number as u32 + 1).to_be_bytes();
    let address = IpAddr::V4(Ipv4Addr::new(network, 1, high, low));
    Target {
        id: (SocketAddr::from(([203, 0, 113, 10], PORT)).into(), (address, PORT).into()),
        service: "bench".to_owned(),
        backend: format!("backend-{number}"),
        check: Arc::new(check.clone()),
        forwarding: Forwarding::L2,
        fills_segment: false,
    }
}

fn measure(
    name: &'static str,
    targets: Vec<Target>,
    expected: State,
    time: Duration,
) -> Result<Case> {
    let runtime = Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    runtime.block_on(async {
        let paths = Paths { vip: Arc::new(Direct), backend: Arc::new(Direct) };
        let engine = Engine::start(paths, places());
        let settled = WARM_UP.max(3 * targets[0].check.interval);
        engine.watch(targets, &BTreeMap::new());
        sleep(settled).await;
        let (before, cpu, begun) = (engine.figures(), cpu_time()?, Instant::now());
        sleep(time).await;
        let (after, cpu, seconds) =
            (engine.figures(), cpu_time()? - cpu, begun.elapsed().as_secs_f64());
        let seen = engine.snapshot();
        let mut others = seen.values().filter(|seen| seen.state != expected);
        if let Some(other) = others.next() {
            let count = 1 + others.count();
            bail!("{name}: {count} of {} targets are not {expected:?}: {other:?}", seen.len());
        }
        let probes = (after.probes_total - before.probes_total) as f64;
        Ok(Case {
            name,
            probes_per_second: probes / seconds,
            cpu: cpu.as_secs_f64() / seconds,
            late: (after.late_total - before.late_total) as f64 / probes.max(1.0),
            latest: after.latest.as_secs_f64(),
            resident_mib: resident()?,
        })
    })
}

fn resident() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("a field of /proc/self/status")? / 1024.0)
}

impl fmt::Display for HealthReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, kernel, commit, .. } = &self.machine;
        writeln!(f, "{cpu}, Linux {kernel}, commit {commit}")?;
        writeln!(f, "{} backends, each every {} s\n", self.targets, self.interval)?;
        writeln!(
            f,
            "{:<18} {:>10} {:>14} {:>8} {:>10} {:>12}",
            "", "probes/s", "CPU (goal 1)", "late", "latest", "memory"
        )?;
        for case in &self.cases {
            let missed = if case.cpu > 1.0 { "   MISSED" } else { "" };
            writeln!(
                f,
                "{:<18} {:>10.0} {:>14.2} {:>6.2} % {:>8.0} ms {:>8.0} MiB{missed}",
                case.name,
                case.probes_per_second,
                case.cpu,
                case.late * 100.0,
                case.latest * 1000.0,
                case.resident_mib
            )?;
        }
        Ok(())
    }
}
