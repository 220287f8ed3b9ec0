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

use crate::{
    control::{
        api::EventKind,
        server::{self, Claim},
    },
    datapath, health,
    instance::Instance,
    intent::kept,
    journal::{Entry, Journal},
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
