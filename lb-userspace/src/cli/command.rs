//! What can be asked: every command with its help, and nothing of what it does.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use super::{Output, agent, change, events, explain, flows, log, recorder, top, trace, upgrade};
use crate::instance::Instance;

/// A layer-4 TCP load balancer for Linux: XDP forwards, this daemon and CLI look after it.
#[derive(Parser)]
#[command(
    name = "sluice",
    version,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 3 done but \
                  connections were cut.\n\
                  Forwarding needs no daemon: only `sluice detach` ends it.\n\
                  Limits of this version: TCP only."
)]
pub(super) struct Cli {
    /// Which instance: chooses /run/sluice/NAME, /sys/fs/bpf/sluice/NAME and /var/lib/sluice/NAME
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "SLUICE_INSTANCE",
        default_value = "default"
    )]
    pub(super) instance: Instance,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Be the daemon: attach or adopt, fill the maps, answer the CLI
    ///
    /// Runs in the foreground until SIGTERM or SIGINT and logs to stderr, or to systemd's journal
    /// (RUST_LOG=debug for more). Stopping it, even with kill -9, leaves forwarding as it is; the next run adopts it.
    /// SIGHUP takes up the config again, as `sluice apply` does. What was said at run time
    /// (drains, weights, added backends) is kept in /var/lib/sluice/NAME/state.json and holds
    /// after a restart.
    #[command(after_help = "Example: sluice run --config /etc/sluice/sluice.toml")]
    Run {
        /// The config; see sluice.example.toml
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// How the log is written
        #[arg(long, value_name = "FORMAT", default_value = "auto")]
        log: log::Format,
    },
    /// Check a config file; touches nothing else
    ///
    /// Whether interfaces exist and backends can be reached is seen by `run`.
    Check {
        /// The config; see sluice.example.toml
        file: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// What would `apply` change, and how many live flows would it touch?
    Plan {
        /// The config; see sluice.example.toml
        file: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Make the running instance what a config file says
    ///
    /// All of it or nothing. A backend that the file no longer has is drained, then removed;
    /// backends and weights given at run time yield to the file; who is drained or disabled stays
    /// so. Applying a file twice changes nothing.
    Apply {
        /// The config; see sluice.example.toml
        file: PathBuf,
        #[command(flatten)]
        force: change::Force,
        #[command(flatten)]
        output: Output,
    },
    /// Print what is wanted now as a config file
    #[command(after_help = "Example: sluice export > /etc/sluice/sluice.toml")]
    Export(Output),
    /// Does it forward, what is wrong, since when, and what mends it?
    ///
    /// One screen: outages (clients are turned away), faults (they are served, with less to
    /// spare) and notices (an operator wants it so), each with its age and what to do about it;
    /// then each backend. Without a daemon the kernel is asked what it does by itself.
    #[command(
        after_help = "Exit codes: 0 a daemon answered; 1 none did. `sluice check-ready` tells \
                            by its exit code whether it forwards."
    )]
    Status(Output),
    /// Watch services and backends live, and drain or enable them
    ///
    /// Rates, flows, health and drops, read anew each second. Needs a terminal of 80 by 24 or
    /// more; NO_COLOR is heeded. Press ? there for the keys.
    Top(top::Arguments),
    /// Exit 0 if the instance is attached and forwards, else 1 with the reason
    ///
    /// For keepalived, a route announcer, or a script: it asks this host alone, nobody remote. If
    /// no daemon answers, it is 1 as well, though forwarding goes on without one.
    CheckReady,
    /// Services
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Backends
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Flows in the table: which client is served by which backend
    ///
    /// All matching flows are counted, `--limit` of them listed: the first that are found, or
    /// those that `--sort` puts first. What the filters name must exist. A flow that found no
    /// place in the table is not listed; `backend list` counts those.
    #[command(
        after_help = "Examples: sluice flows --service web --client 198.51.100.0/24\n          \
                            sluice flows --backend web-1 --sort age --limit 10\n          \
                            sluice flows --count"
    )]
    Flows(flows::Arguments),
    /// What becomes of a client's packet, step by step, and why?
    ///
    /// The code that the kernel program is made of decides on the live maps: filter, flow, service,
    /// slot, backend, next hop, headers, verdict. Nothing is sent, and no flow or count is left
    /// behind. Without --syn or --ack it is a SYN if the flow is not known, and an ACK if it is.
    /// Needs root, and no daemon; names and health come from the daemon where one runs.
    #[command(
        after_help = "Examples: sluice explain 198.51.100.7:40001 203.0.113.10:80\n          \
                            sluice explain '[2001:db8:7::1]:40001' '[2001:db8::10]:443' --ack"
    )]
    Explain(explain::Arguments),
    /// Which packets come, and what becomes of each?
    ///
    /// tcpdump does not see what XDP forwards; this does: frames as they came and as they went, with
    /// verdict, reason and backend. While it runs, a build of the kernel program that tells what it
    /// does stands in the place of the other one, on the same tables, swapped in and out without
    /// losing a frame; at other times tracing costs nothing. It copies --rate KiB a second at most,
    /// and shows headers alone unless --pcap asks for whole frames. Needs root, and no daemon. One
    /// trace at a time; a trace that is killed ends within a second, where a daemon runs.
    #[command(
        after_help = "Examples: sluice trace --client 198.51.100.7 --flags syn,rst\n          \
                            sluice trace --verdict drop,answer --for 1m --json\n          \
                            sluice trace --service web --count 1000 --pcap web.pcapng\n          \
                            sluice trace --pcap - | tshark -r -"
    )]
    Trace(trace::Arguments),
    /// What is wrong, here and on the way to each backend, and what to do about it?
    ///
    /// Looks at interfaces, routes, neighbours, MTUs and addresses of this host, and compares a
    /// connection to each backend's own address with the daemon's last probe by way of the VIP.
    #[command(after_help = "Exit codes: 0 nothing is wrong; 1 something is.")]
    Doctor(Output),
    /// What became of every frame, and why
    Reasons {
        /// Also what never happened
        #[arg(long)]
        all: bool,
        /// Only of frames that arrived on this interface
        #[arg(long, value_name = "NAME")]
        interface: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Put this build's kernel program in the place of the running one, if it is not worse
    ///
    /// Loads it beside the running one, rehearses golden frames and packets of live flows through
    /// both, swaps it in without losing a frame, watches it, and rolls back if more frames are
    /// dropped or fewer are served than before. The daemon runs on, or need not run at all; a
    /// newer build's `run` does the same by itself.
    #[command(after_help = "Exit codes: 0 upgraded, or nothing to do; 1 refused or rolled back.")]
    Upgrade(upgrade::Arguments),
    /// What happened, and who asked for it
    ///
    /// Changes, drains, health, drift, upgrades, troubles; bounded to the latest some 40,000.
    /// --json has the probe that a change of health rests on. Without a daemon, what it left
    /// behind is read.
    #[command(after_help = "Examples: sluice events --since 10m --follow\n          \
                            sluice events --kind health --service web --since 14:03")]
    Events(events::Arguments),
    /// What happened in that minute: what was counted, second by second, and what was done
    ///
    /// New flows, handshakes, SYNs sent again, resets, active flows, packets and bytes of each
    /// backend, frames not forwarded by reason, changes of state, and the events. Kept for an hour
    /// at least, for days where there is little traffic, in a file of bounded size in
    /// /var/lib/sluice/NAME: 5 MiB for up to 19 services and backends, 118 MiB for 1,000 services
    /// with 20 backends each. Reads the files of that directory alone, as root, so it works without
    /// a daemon; what came while no daemon ran is not in it.
    #[command(after_help = "Examples: sluice recorder --at 14:03 --window 2m\n          \
                            sluice recorder --at '10m ago' --service web --plot minute.svg")]
    Recorder(recorder::Arguments),
    /// Stop forwarding: take off programs, maps, pins and the VIPs that `run` added
    ///
    /// Works without a daemon. Connections through this instance break, and what was said at run
    /// time is forgotten: `sluice export` first, to keep it.
    Detach,
    /// The backend's side: unpack tunnels, answer for the VIP
    #[command(subcommand)]
    Agent(agent::Command),
    /// Print a completion script for a shell
    #[command(after_help = "Example: sluice completions bash > /etc/bash_completion.d/sluice")]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Subcommand)]
pub(super) enum ServiceCommand {
    /// One line for each service
    List(Output),
    /// Add a service, without backends
    #[command(after_help = "Example: sluice service add api 203.0.113.20:443 --forwarding ipip")]
    Add(Box<change::NewService>),
    /// Remove a service: no new flows; it is gone when its backends are drained
    Remove {
        /// Its name
        name: String,
        /// Reset its flows at once
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Subcommand)]
pub(super) enum BackendCommand {
    /// One line for each backend
    List {
        /// Only this service's
        service: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Add a backend to a service
    #[command(after_help = "Example: sluice backend add web web-3 10.0.0.13 --weight 50")]
    Add(change::NewBackend),
    /// Remove a backend: it drains first
    ///
    /// With --force its flows are reset at once, and min_available is not asked.
    Remove {
        #[command(flatten)]
        which: change::Which,
        #[command(flatten)]
        force: change::Force,
        #[command(flatten)]
        output: Output,
    },
    /// Take a backend out of service without cutting connections
    ///
    /// It gets no new flows from now on and keeps those it has. When the last one has ended it is
    /// drained; what is left at the deadline is reset. `enable` ends a drain, or undoes it.
    #[command(after_help = "Examples: sluice backend drain web web-1 --wait\n          \
                            sluice backend drain --all-services host-7 --deadline 10m --wait\n\
                            Exit codes with --wait: 0 drained, 3 drained but connections were cut.")]
    Drain(change::NewDrain),
    /// Let a backend take new flows
    Enable {
        #[command(flatten)]
        which: change::Which,
        #[command(flatten)]
        output: Output,
    },
    /// Let a backend have no flows: those it has are reset at once
    Disable {
        #[command(flatten)]
        which: change::Which,
        #[command(flatten)]
        force: change::Force,
        #[command(flatten)]
        output: Output,
    },
    /// Change a backend's share of new flows
    Weight {
        /// The service
        service: String,
        /// The backend
        backend: String,
        /// Relative to the others', 0 to 1000
        weight: u16,
        #[command(flatten)]
        force: change::Force,
        #[command(flatten)]
        output: Output,
    },
}
