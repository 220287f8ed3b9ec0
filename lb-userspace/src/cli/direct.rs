//! Break-glass commands: they work on the pins themselves and need no daemon.

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::status::{Front, Orphan, Unattended};
use crate::{
    control::{
        api::EventKind,
        server::{self, Claim},
    },
    datapath::{self, Maps, Pins},
    health,
    instance::Instance,
    intent::kept,
    journal::{self, Entry, Journal},
    network, reconcile,
};

/// How long a daemon may take to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes an instance off the machine. Its daemon is stopped first, or it would put things back
/// as fast as they are taken away.
///
/// # Errors
/// If the daemon does not stop, or something can't be removed.
pub async fn detach(instance: &Instance) -> Result<()> {
    let _claim = claim(instance).await?;
    if datapath::detach(instance).await? {
        Journal::of(&instance.state()).note(EventKind::Daemon, Entry::new("detached"));
    } else {
        // Nobody is left to tell that stderr is closed.
        let _ = writeln!(io::stderr(), "instance {instance} is not attached: nothing to do");
    }
    health::kept::forget(&instance.state()).context("forget what was seen of the backends")?;
    kept::forget(&instance.state()).with_context(|| {
        format!("forget what was said at run time, in {}", instance.state().display())
    })
}

/// How long traffic is watched to see whether there is some.
const WATCHED: Duration = Duration::from_millis(300);

/// What can be known of an instance whose daemon is gone. Nothing is changed.
pub async fn look(instance: &Instance) -> Orphan {
    let kernel = unattended(instance).await.map_err(|error| format!("{error:#}"));
    let last = journal::read(&instance.state()).pop();
    Orphan { instance: instance.name().to_owned(), kernel, last }
}

async fn unattended(instance: &Instance) -> Result<Unattended> {
    let mut interfaces = Vec::new();
    for (name, program) in datapath::linked(instance)? {
        let fault = match network::interface(&name).await {
            Err(error) => Some(format!("is gone: {error}")),
            Ok(found) if found.xdp.is_none_or(|xdp| xdp.id != program) => {
                Some("does not run the program any more".to_owned())
            }
            Ok(found) => found.fault().map(str::to_owned),
        };
        interfaces.push(Front { name, fault });
    }
    let (mut services, mut backends, mut packets) = (0, 0, 0);
    if !interfaces.is_empty() {
        let maps = Maps::pinned(&Pins::of(instance))?;
        let image = reconcile::read(&maps)?;
        services = image.services.len() as u64;
        backends = image.backends.len() as u64;
        let indices: Vec<u16> = image.backends.keys().copied().collect();
        let forwarded = || -> Result<u64> {
            let counters = maps.counters(&indices)?;
            Ok(counters.iter().map(|counters| counters.traffic.forwarded()).sum())
        };
        let before = forwarded()?;
        tokio::time::sleep(WATCHED).await;
        packets = forwarded()?.saturating_sub(before);
    }
    Ok(Unattended { interfaces, services, backends, packets, during: WATCHED })
}

/// Becomes the instance, in the place of a running daemon if there is one.
async fn claim(instance: &Instance) -> Result<Claim> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        match server::claim(instance).await {
            Ok(claim) => return Ok(claim),
            Err(server::Error::Running { pid: Some(pid), .. }) if Instant::now() < deadline => {
                if !told {
                    // Nobody is left to tell that stderr is closed.
                    let _ = writeln!(io::stderr(), "stopping the daemon (pid {pid})");
                    kill(Pid::from_raw(pid), Signal::SIGTERM)
                        .with_context(|| format!("stop the daemon (pid {pid})"))?;
                    told = true;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(server::Error::Running { pid: Some(pid), .. }) => {
                bail!("the daemon (pid {pid}) did not stop in {PATIENCE:?}; forwarding goes on")
            }
            // Between its lock and its socket, a daemon has no address yet.
            Err(server::Error::Running { pid: None, .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
