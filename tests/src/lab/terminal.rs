//! A terminal of a given size with a program in it, and what it shows: tmux, on a server of its
//! own.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

use super::{DEADLINE, Host, check, sluice_binary, until};

/// A terminal; dropping it ends what runs in it.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
}

impl Host {
    /// Runs a shell's line in a terminal of so many columns and lines, here; `$SLUICE` in it is the
    /// program with this machine's instance.
    pub fn terminal(&self, (columns, lines): (u16, u16), line: &str) -> Result<Terminal> {
        let socket = self.directory("terminal")?.join(format!("{columns}x{lines}"));
        let sluice = format!("{} --instance {}", sluice_binary()?.display(), self.name());
        let mut command = self.command("tmux");
        command
            .args(["-u", "-f", "/dev/null", "-S"])
            .arg(&socket)
            .args(["new-session", "-d", "-x", &columns.to_string(), "-y", &lines.to_string()])
            // Stays when the line has ended, so that what it leaves behind can be seen.
            .arg(format!("{line}; exec cat"))
            .env("SLUICE", sluice)
            .env("LANG", "C.UTF-8")
            .env_remove("LC_ALL")
            .env_remove("NO_COLOR")
            .env_remove("TMUX")
            .stdin(Stdio::null());
        let output = command.output().context("run tmux: `cargo xtask setup` installs it")?;
        check(&output, "tmux new-session")?;
        Ok(Terminal { socket })
    }
}

impl Terminal {
    /// What is on the screen: a line for each of its lines, without blanks at their ends.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with colours, as escape sequences.
    pub fn coloured_screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Presses keys, by tmux's names for them.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Waits until the screen is as `is` wants it, which is `what`.
    pub fn until(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        until(&format!("{what} on the screen"), DEADLINE, || {
            last = self.screen().unwrap_or_else(|error| format!("{error:#}"));
            is(&last).then(|| last.clone())
        })
        .with_context(|| format!("it shows:\n{last}"))
    }

    /// The process that its shell waits for.
    pub fn program(&self) -> Result<Pid> {
        let shell = self.tmux(&["list-panes", "-F", "#{pane_pid}"])?;
        let children = format!("/proc/{0}/task/{0}/children", shell.trim());
        let children = fs::read_to_string(&children).with_context(|| format!("read {children}"))?;
        let child = children.split_whitespace().next().context("the shell runs nothing")?;
        Ok(Pid::from_raw(child.parse().context("a process id")?))
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.socket).args(arguments).stdin(Stdio::null());
        check(&command.output().context("run tmux")?, &format!("tmux {}", arguments.join(" ")))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Err(error) = self.tmux(&["kill-server"]) {
            eprintln!("{error:#}");
        }
    }
}
