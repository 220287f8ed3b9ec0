//! What an agent has set up, for people and for scripts.

use std::{
    fmt,
    net::{IpAddr, UdpSocket},
};

use anyhow::{Result, bail};
use ipnet::IpNet;
use lb_common::decapsulate::Outcome;
use serde::Serialize;

use super::{
    arp,
    kernel::{Kernel, prefix_of},
};
use crate::{instance::Instance, network};

/// What is set up, whether it is in place, and what was counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whose.
    pub instance: String,
    /// Where the balancer's frames arrive; `None`: it is attached nowhere.
    pub interface: Option<String>,
    /// Whether frames of that interface run through the program.
    pub attached: bool,
    /// `native` or `generic`, if attached.
    pub xdp_mode: Option<&'static str>,
    /// The `sluice agent run` that mends it; `None`: none, and it works all the same.
    pub watched_by: Option<u32>,
    /// Accepted tunnel sources; none: all.
    pub from: Vec<IpNet>,
    /// The services' addresses.
    pub vips: Vec<Vip>,
    /// ARP settings; none without an IPv4 VIP.
    pub arp: Vec<arp::Seen>,
    /// Every outcome, and how many frames had it.
    pub outcomes: Vec<Count>,
}

/// A service's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vip {
    /// It.
    pub address: IpAddr,
    /// The host has it.
    pub in_place: bool,
    /// The agent put it there, and `detach` removes it.
    pub added: bool,
}

/// How often something became of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// What.
    pub outcome: &'static str,
    /// `unpack`, `pass` or `drop`.
    pub verdict: &'static str,
    /// How often.
    pub frames: u64,
    /// What it means.
    pub help: &'static str,
}

/// Asks the kernel.
pub async fn look(instance: &Instance) -> Result<Status> {
    let Some((kernel, record)) = Kernel::pinned(instance)? else {
        bail!(
            "the agent of instance {instance} is only half set up, its start was interrupted: run \
             it again, or `sluice agent detach`"
        );
    };
    if !record.is_of_this_namespace()? {
        bail!(
            "the agent of instance {instance} was set up in another network namespace: ask there"
        );
    }
    let interface = kernel.interfaces()?.pop();
    let seen = match &interface {
        // An error: it is gone, and with it what was attached.
        Some(name) => network::interface(name).await.ok(),
        None => None,
    };
    let xdp = match &seen {
        Some(interface) if kernel.is_on(interface)? => interface.xdp,
        _ => None,
    };
    let added = network::vips_added().await?;
    let vips: Vec<_> = kernel
        .vips()?
        .into_iter()
        .map(|address| {
            let added = added.contains(&address);
            Vip { address, in_place: added || is_local(address), added }
        })
        .collect();
    let has_ipv4 = vips.iter().any(|vip| vip.address.is_ipv4());
    let mut from: Vec<_> = kernel.sources()?.iter().filter_map(prefix_of).collect();
    from.sort_unstable();
    let counts = kernel.outcomes()?;
    Ok(Status {
        instance: instance.name().to_owned(),
        attached: xdp.is_some(),
        xdp_mode: xdp.map(|xdp| if xdp.native { "native" } else { "generic" }),
        watched_by: record.watcher.is_alive().then_some(record.watcher.pid),
        from,
        vips,
        arp: interface.as_ref().filter(|_| has_ipv4).map_or_else(Vec::new, |name| arp::look(name)),
        interface,
        outcomes: Outcome::ALL
            .into_iter()
            .zip(counts)
            .map(|(outcome, frames)| Count {
                outcome: outcome.name(),
                verdict: outcome.verdict().name(),
                frames,
                help: outcome.help(),
            })
            .collect(),
    })
}

/// Whether this host has an address, whoever put it there: only then can it be bound.
fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "agent {}: ", self.instance)?;
        match (&self.interface, self.xdp_mode) {
            (Some(interface), Some(mode)) => write!(f, "attached to {interface} ({mode})")?,
            (Some(interface), None) => write!(f, "NOT ATTACHED to {interface}")?,
            (None, _) => f.write_str("NOT ATTACHED")?,
        }
        match self.watched_by {
            Some(pid) => writeln!(f, ", looked after by process {pid}")?,
            None => writeln!(f, ", looked after by nobody: no `sluice agent run` mends it")?,
        }
        if self.from.is_empty() {
            writeln!(f, "accepts tunnels from everywhere")?;
        } else {
            let from: Vec<_> = self.from.iter().map(ToString::to_string).collect();
            writeln!(f, "accepts tunnels from {}", from.join(", "))?;
        }
        writeln!(f)?;
        for vip in &self.vips {
            let state = match (vip.in_place, vip.added) {
                (false, _) => "MISSING on this host",
                (true, true) => "on the loopback interface",
                (true, false) => "this host's already; detach leaves it",
            };
            writeln!(f, "{:<39}  {state}", vip.address.to_string())?;
        }
        for seen in &self.arp {
            let value = seen.value.map_or_else(|| "?".to_owned(), |value| value.to_string());
            let state = if seen.in_place { "" } else { "  NOT IN PLACE" };
            writeln!(f, "{:<39}  {value}{state}", seen.setting)?;
        }
        writeln!(f, "\n{:<16}{:<8}{:>12}", "OUTCOME", "VERDICT", "FRAMES")?;
        for count in &self.outcomes {
            writeln!(f, "{:<16}{:<8}{:>12}", count.outcome, count.verdict, count.frames)?;
        }
        Ok(())
    }
}
