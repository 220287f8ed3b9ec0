//! `cargo xtask bench`: what a packet costs in the kernel, beside what it can't cost less than.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use lb_userspace::datapath;
use sluice_tests::{
    bench::{
        self, Extent, Report,
        peers::{Peer, PeersPlan},
    },
    lab::is_root,
    signals,
};

/// Measures nanoseconds per packet with `BPF_PROG_TEST_RUN`: established flows, new ones into a
/// full table, what is passed; beside floors that no program can undercut and the usual LRU hash
/// map. Needs root. Figures are worth something on a machine that does nothing else.
#[derive(Parser)]
struct Arguments {
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
    /// Fewer and shorter samples: half a minute, rough figures.
    #[arg(long)]
    quick: bool,
    /// Measure only cases whose name contains this, as `established/ipv4` (and the floors).
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// What the daemon needs to start, change and apply at scale, in place of packets
    Control {
        /// End with one line of JSON.
        #[arg(long)]
        json: bool,
        /// How many services.
        #[arg(long, default_value_t = 1000)]
        services: usize,
        /// Backends of each.
        #[arg(long, default_value_t = 20)]
        backends: usize,
    },
    /// What probes of many backends cost the daemon, in place of packets
    Health {
        /// End with one line of JSON.
        #[arg(long)]
        json: bool,
        /// How many backends, up to 60,000.
        #[arg(long, default_value_t = 10_000)]
        targets: usize,
        /// From one probe of a backend to the next.
        #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
        interval: Duration,
        /// How long each case is measured.
        #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
        time: Duration,
    },
    /// Instructions per packet, of Sluice, IPVS and nftables, where one takes a nanosecond
    ///
    /// In a guest of `cargo xtask vm --icount`; elsewhere the figures are nanoseconds. Ends with one
    /// line of JSON.
    Instructions,
    /// Sluice beside nftables, HAProxy, nginx and no balancer, in place of packets
    Peers {
        /// End with one line of JSON.
        #[arg(long)]
        json: bool,
        /// One short sample of each: half a minute, rough figures.
        #[arg(long)]
        quick: bool,
        /// Measure only those whose name contains this, as `sluice`.
        #[arg(long, value_name = "PATTERN")]
        only: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !is_root() {
        eprintln!("the bench loads XDP programs: run it as root (sudo)");
        return ExitCode::FAILURE;
    }
    let done = match arguments.what {
        Some(What::Control { json, services, backends }) => control(services, backends, json),
        Some(What::Health { json, targets, interval, time }) => {
            health(targets, interval, time, json)
        }
        Some(What::Instructions) => instructions(),
        Some(What::Peers { json, quick, only }) => {
            signals::watch().and_then(|()| peers(quick, only.as_deref(), json))
        }
        None => measure(&arguments).and_then(|report| show(&arguments, &report)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            if signals::interrupted() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

fn control(services: usize, backends: usize, json: bool) -> Result<()> {
    let report = bench::control::run(services, backends)?;
    print!("{report}");
    if json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

fn health(targets: usize, interval: Duration, time: Duration, json: bool) -> Result<()> {
    let report = bench::health::run(targets, interval, time)?;
    print!("{report}");
    if json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

fn instructions() -> Result<()> {
    datapath::preflight()?;
    println!("{}", serde_json::to_string(&bench::instructions::run()?)?);
    Ok(())
}

fn peers(quick: bool, only: Option<&str>, json: bool) -> Result<()> {
    let (rounds, seconds) = if quick { (1, 1) } else { (5, 4) };
    let is_meant = |peer: &Peer| only.is_none_or(|pattern| peer.name().contains(pattern));
    let peers: Vec<Peer> = Peer::ALL.into_iter().filter(is_meant).collect();
    ensure!(
        !peers.is_empty(),
        "nobody's name contains that: {}",
        Peer::ALL.map(Peer::name).join(", ")
    );
    let plan = PeersPlan { peers, rounds, time: Duration::from_secs(seconds) };
    let report = bench::peers::run(&plan, &mut progress);
    clear();
    let report = report?;
    print!("{report}");
    if json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Report> {
    datapath::preflight()?;
    let (rounds, packets) = if arguments.quick { (11, 50_000) } else { (21, 250_000) };
    let extent = Extent { rounds, packets, only: arguments.only.clone() };
    let report = bench::run(&extent, &mut progress);
    clear();
    report
}

/// Shows what is being measured.
fn progress(what: &str) {
    let mut stderr = stderr();
    let line = if stderr.is_terminal() { format!("\r\x1b[K{what} …") } else { String::new() };
    // Where it can't be shown, it is not missed.
    let _ = stderr.write_all(line.as_bytes()).and_then(|()| stderr.flush());
}

/// Makes room for what is to stay.
fn clear() {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

fn show(arguments: &Arguments, report: &Report) -> Result<()> {
    print!("{report}");
    if arguments.json {
        println!("{}", serde_json::to_string(report)?);
    }
    Ok(())
}
