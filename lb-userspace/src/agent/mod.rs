//! `sluice agent`: the backend's side of direct server return.
//!
//! `run` puts the VIPs on the loopback interface, keeps ARP quiet and attaches a program that
//! unpacks tunnels ([`lb_common::decapsulate`]). All of it lives in the kernel, pinned beside
//! the balancer's things under `/sys/fs/bpf/sluice/<instance>/agent/`, and outlives the
//! process, which only looks after it: each second it mends what others undid. `detach`
//! undoes everything.
//!
//! What `run` found and changed is remembered in a pinned map (`record.rs`): like the settings
//! themselves it ends when the machine does, where a file would remember wrongly.
//!
//! Why nobody answers for the VIP but the balancer: Linux answers ARP for every address of the
//! host on every interface unless `arp_ignore` forbids it; neighbour discovery it answers only
//! for addresses of the asked interface (`ndisc_recv_ns` in `net/ipv6/ndisc.c` looks strictly),
//! so IPv6 needs no setting. The program drops both kinds of questions besides: then a
//! `sysctl --system` at a bad moment draws no frame here.

mod arp;
mod kernel;
mod record;
mod status;
mod upkeep;

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep},
};

use self::{
    kernel::Kernel,
    record::{Record, Watcher},
    upkeep::Wanted,
};
pub use self::{kernel::OBJECT, status::Status};
use crate::{
    datapath::{Pins, preflight},
    instance::Instance,
    network::{self, Interface, Ipv4Setting, Sysctl},
};

/// How often everything is looked at.
const ROUND: Duration = Duration::from_secs(1);
/// How long a command waits for another one to finish.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// What `sluice agent run` is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose pins.
    pub instance: Instance,
    /// Where the balancer's frames arrive.
    pub interface: String,
    /// The services' addresses.
    pub vips: Vec<IpAddr>,
    /// Outer sources that are accepted; none: all.
    pub from: Vec<IpNet>,
}

/// Makes this host a backend, and looks after it until SIGTERM or SIGINT. An agent that is
/// already set up is taken over and changed without losing a packet.
///
/// # Errors
/// If it can't be set up; nothing is left then, and what was set up before stays.
pub async fn run(options: Options) -> Result<()> {
    let Options { instance, interface, vips, from } = options;
    let wanted = Wanted::new(interface, vips, from)?;
    preflight()?;
    let interface = network::interface(&wanted.interface).await?;
    check(&interface)?;
    let watcher = Watcher::me();
    let signals = Signals::listen()?;
    set_up(&instance, &wanted, watcher).await?;
    for warning in warnings(&wanted) {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        interface = &*interface.name,
        vips = ?wanted.vips,
        "ready; what is set up stays when this process ends, `sluice agent detach` undoes it"
    );
    watch_over(&instance, &wanted, watcher, signals).await
}

/// Undoes all that `run` did; where there is nothing, says so and is content. A `run` that still
/// looks after it ends by itself.
///
/// # Errors
/// If it is of another network namespace, or something can't be undone; the rest is undone then.
pub async fn detach(instance: &Instance) -> Result<()> {
    preflight()?;
    if !Pins::of_agent(instance).exist() {
        // Nobody is left to tell that stderr is closed.
        let _ = writeln!(io::stderr(), "instance {instance} has no agent here: nothing to do");
        return Ok(());
    }
    let _turn = Turn::take(instance).await?;
    upkeep::undo(instance).await
}

/// What is set up, whether it is in place, and what was counted.
///
/// # Errors
/// If nothing is set up, or the kernel does not tell.
pub async fn status(instance: &Instance) -> Result<Status> {
    preflight()?;
    let pins = Pins::of_agent(instance);
    if !pins.exist() {
        bail!(
            "instance {instance} has no agent on this host: nothing is pinned at {}",
            pins.root().display()
        );
    }
    status::look(instance).await
}

fn check(interface: &Interface) -> Result<()> {
    if !interface.ethernet {
        bail!(
            "{} is of kind {}, not Ethernet: name the interface where the balancer's frames arrive",
            interface.name,
            interface.kind
        );
    }
    if !interface.up {
        tracing::warn!("{} is down: no frame arrives there", interface.name);
    }
    Ok(())
}

/// What an operator should know though it stops nothing.
fn warnings(wanted: &Wanted) -> Vec<String> {
    let mut warnings = Vec::new();
    if wanted.accepts_all() {
        warnings.push(format!(
            "tunnels are accepted from everywhere: whoever reaches {} can send packets to the VIPs \
             under any source address; name the balancers' addresses with --from",
            wanted.interface
        ));
    }
    // The greater of both counts (`IN_DEV_MAXCONF`); 1 is strict, 2 is loose.
    let filter = ["all", &wanted.interface]
        .map(|name| Sysctl::ipv4(name, Ipv4Setting::RpFilter).read().unwrap_or(0));
    if wanted.has_ipv4() && filter.into_iter().max() == Some(1) {
        warnings.push(format!(
            "rp_filter of {0} is strict: the kernel drops packets of clients whose way back is \
             not through {0}; if there are any, set it to 2",
            wanted.interface
        ));
    }
    warnings
}

/// From nothing, or from what is pinned, to what is wanted.
async fn set_up(instance: &Instance, wanted: &Wanted, watcher: Watcher) -> Result<()> {
    let _turn = Turn::take(instance).await?;
    let (mut kernel, mut record, is_new) = match Kernel::adopt(instance)? {
        Some((kernel, record)) => {
            tracing::info!("taking over the agent that is set up");
            (kernel, record, false)
        }
        None => (Kernel::create(instance)?, Record::new(watcher)?, true),
    };
    let result = async {
        // Before anything is changed on the host.
        kernel.set_record(&record)?;
        let changes = upkeep::mend(&mut kernel, &mut record, wanted).await?;
        // Only now: where this failed, who looked after it before sets it right.
        record.watcher = watcher;
        kernel.set_record(&record)?;
        Ok(changes)
    };
    match result.await {
        Ok(changes) => {
            for change in changes {
                tracing::info!("{change}");
            }
            Ok(())
        }
        Err(error) => {
            drop(kernel);
            if is_new && let Err(error) = upkeep::undo(instance).await {
                tracing::error!("can't clean up: {error:#}");
            }
            Err(error)
        }
    }
}

/// What ends `run`.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they no longer kill the process.
    fn listen() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
        })
    }
}

/// Keeps everything as wanted until a signal comes, or somebody else takes care of it.
async fn watch_over(
    instance: &Instance,
    wanted: &Wanted,
    watcher: Watcher,
    mut signals: Signals,
) -> Result<()> {
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trouble = None;
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = rounds.tick() => match round(instance, wanted, watcher).await {
                Ok(Next::GoOn) => {
                    if trouble.take().is_some() {
                        tracing::info!("everything is in place again");
                    }
                }
                Ok(Next::End(why)) => {
                    tracing::info!("{why}; nothing is left to do here");
                    return Ok(());
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if trouble.as_ref() != Some(&error) {
                        tracing::error!("{error}; trying again each second");
                    }
                    trouble = Some(error);
                }
            },
        }
    }
    tracing::info!("stopping; what is set up stays, `sluice agent detach` undoes it");
    Ok(())
}

/// What follows a round.
enum Next {
    /// Another one.
    GoOn,
    /// None, because of this.
    End(String),
}

async fn round(instance: &Instance, wanted: &Wanted, watcher: Watcher) -> Result<Next> {
    let _turn = Turn::take(instance).await?;
    let Some((mut kernel, mut record)) = Kernel::pinned(instance)? else {
        return Ok(Next::End("the agent was detached".to_owned()));
    };
    if record.watcher != watcher {
        let other = record.watcher.pid;
        return Ok(Next::End(format!("another `sluice agent run` (process {other}) took over")));
    }
    for change in upkeep::mend(&mut kernel, &mut record, wanted).await? {
        tracing::warn!("mended what somebody undid: {change}");
    }
    Ok(Next::GoOn)
}

/// One command at a time changes an agent: while this lives, it is ours.
struct Turn {
    /// Locked; closing it unlocks.
    _directory: File,
}

impl Turn {
    async fn take(instance: &Instance) -> Result<Self> {
        // Common to all instances, and never removed.
        let path = instance.pins();
        let path = path.parent().unwrap_or(&path);
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        let directory = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let deadline = Instant::now() + TURN_TIMEOUT;
        loop {
            match directory.try_lock() {
                Ok(()) => return Ok(Self { _directory: directory }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    sleep(Duration::from_millis(10)).await;
                }
                Err(TryLockError::WouldBlock) => bail!(
                    "another `sluice agent` command has held {} for {} s; `fuser` names it",
                    path.display(),
                    TURN_TIMEOUT.as_secs()
                ),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("lock {}", path.display()));
                }
            }
        }
    }
}
