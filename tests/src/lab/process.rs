//! A program that runs on a machine until it is stopped, with its log in a file.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::until;

/// A running program; dropping it stops it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// How a program ended that was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// By itself, with this status.
    Exited(ExitStatus),
    /// It did not heed SIGTERM in time.
    Killed,
}

/// How long a program may take to heed SIGTERM.
const PATIENCE: Duration = Duration::from_secs(5);

impl Process {
    /// Starts `command` with standard output and error appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log")?)
            .stderr(file)
            // Ctrl-C is for us: we stop our programs in our order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map_or_else(
            |error| format!("{}: {error}", self.log.display()),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running()
            && let Ok(id) = self.child.id().try_into()
        {
            // Not reaped yet, so the id is still its own.
            let _ = kill(Pid::from_raw(id), signal);
        }
    }

    /// SIGTERM, then SIGKILL if need be; reaps it.
    pub fn stop(&mut self) -> Result<Stopped> {
        self.signal(Signal::SIGTERM);
        let ended = until("it to end", PATIENCE, || self.child.try_wait().transpose());
        match ended {
            Ok(status) => Ok(Stopped::Exited(status.context("wait for it")?)),
            Err(_) => {
                self.kill9()?;
                Ok(Stopped::Killed)
            }
        }
    }

    /// SIGKILL; reaps it.
    pub fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL);
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        match self.stop() {
            Ok(Stopped::Exited(_)) => {}
            Ok(Stopped::Killed) => eprintln!("{} did not heed SIGTERM: killed", self.name),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}
