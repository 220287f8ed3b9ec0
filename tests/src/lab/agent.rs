//! `sluice agent` on a backend: VIPs on loopback, ARP kept quiet, tunnels opened.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{DEADLINE, Host, Process, Stopped, sluice::remove_instance, until};

/// A running agent. Dropping it ends it, detaches and removes all files.
#[derive(Debug)]
pub struct Agent {
    pub(super) host: Host,
    process: Option<Process>,
}

impl Host {
    /// Starts `sluice agent run` on `eth0` and waits until the VIPs are up and its program is
    /// attached; the instance goes by [`Host::name`].
    pub fn run_agent(&self, vips: &[IpAddr], from: &[&str]) -> Result<Agent> {
        let mut command = self.sluice()?;
        command.args(["agent", "run", "--interface", "eth0"]);
        for vip in vips {
            command.arg("--vip").arg(vip.to_string());
        }
        for prefix in from {
            command.args(["--from", prefix]);
        }
        let log = self.directory("agent")?.join("log");
        let process = Process::start("sluice agent run", command, &log)?;
        let mut agent = Agent { host: self.clone(), process: Some(process) };
        agent.wait(vips)?;
        Ok(agent)
    }
}

impl Agent {
    fn wait(&mut self, vips: &[IpAddr]) -> Result<()> {
        let process = self.process.as_mut().context("the agent does not run")?;
        let (host, mut ended) = (&self.host, false);
        let ready = until("the agent to be ready", DEADLINE, || {
            ended = !process.is_running();
            let owned = host.addresses("lo").unwrap_or_default();
            let ready = vips.iter().all(|vip| owned.contains(vip))
                && host.xdp("eth0").is_ok_and(|xdp| xdp.is_some());
            (ended || ready).then_some(())
        });
        if ended {
            bail!("sluice agent run on {} ended at once:\n{}", host.role(), process.log());
        }
        ready.with_context(|| format!("sluice agent run on {}:\n{}", host.role(), process.log()))
    }

    /// Where its program, maps and link are pinned.
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/sluice").join(self.host.name()).join("agent")
    }

    /// What it has written.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// SIGTERM; what it has set up stays.
    pub fn stop(&mut self) -> Result<Stopped> {
        self.process.take().context("the agent does not run")?.stop()
    }

    /// SIGKILL; what it has set up stays.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.take().context("the agent does not run")?.kill9()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process = None;
        remove_instance(&self.host, &["agent", "detach"]);
    }
}
