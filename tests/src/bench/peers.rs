//! Sluice beside what else balances TCP on Linux: nftables, HAProxy, nginx, and no balancer at all.
//!
//! Each sample is of one balancer in a laboratory of its own (`stage`): a client, the balancer and
//! three backends, each a network namespace on one switch. The clients are `wrk` and `iperf3`
//! (`load`), the servers nginx and `iperf3`. Rounds go through all balancers in turn, so that a
//! machine that is slower for a while is so for all of them; what is reported are medians.
//!
//! CPU time is the whole machine's, from `/proc/stat`: what XDP and netfilter do is no process's.
//! It holds the client's and the servers' work too, and nothing is subtracted; what `direct` takes
//! is what it can't be less than.

mod load;
mod report;
mod stage;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use self::report::{Figures, PeersReport};
use self::{
    load::{cpu_seconds, others},
    stage::Stage,
};
use super::Machine;
use crate::signals;

/// What stands between client and backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Nothing: each thread of the client has a backend of its own.
    Direct,
    /// Sluice, `forwarding = "l2"`.
    SluiceL2,
    /// Sluice, `forwarding = "ipip"`, and its agent on the backends.
    SluiceIpip,
    /// Sluice, `forwarding = "nat"`.
    SluiceNat,
    /// The kernel's own NAT: `dnat` to the backends in turn, and `masquerade`.
    NftDnat,
    /// The same where every frame goes by way of XDP, as Sluice's do: programs that pass everything.
    NftDnatXdp,
    /// HAProxy in `mode tcp`.
    Haproxy,
    /// nginx's `stream` module.
    NginxStream,
}

impl Peer {
    /// All of them, as they are listed.
    pub const ALL: [Self; 8] = [
        Self::Direct,
        Self::SluiceL2,
        Self::SluiceIpip,
        Self::SluiceNat,
        Self::NftDnat,
        Self::NftDnatXdp,
        Self::Haproxy,
        Self::NginxStream,
    ];

    /// As in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::SluiceL2 => "sluice-l2",
            Self::SluiceIpip => "sluice-ipip",
            Self::SluiceNat => "sluice-nat",
            Self::NftDnat => "nft-dnat",
            Self::NftDnatXdp => "nft-dnat-xdp",
            Self::Haproxy => "haproxy",
            Self::NginxStream => "nginx-stream",
        }
    }

    /// Sluice's `forwarding`, if it is Sluice.
    const fn forwarding(self) -> Option<&'static str> {
        match self {
            Self::SluiceL2 => Some("l2"),
            Self::SluiceIpip => Some("ipip"),
            Self::SluiceNat => Some("nat"),
            Self::Direct | Self::NftDnat | Self::NftDnatXdp | Self::Haproxy | Self::NginxStream => {
                None
            }
        }
    }

    /// Whether the balancer's card bears an XDP program, and thus the far ends of all, too.
    const fn has_xdp(self) -> bool {
        self.forwarding().is_some() || matches!(self, Self::NftDnatXdp)
    }
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct PeersPlan {
    /// Which ones.
    pub peers: Vec<Peer>,
    /// Samples of each.
    pub rounds: usize,
    /// How long each of a sample's three loads runs; whole seconds, at least one.
    pub time: Duration,
}

/// Measures it; `progress` is told what comes next.
///
/// # Errors
/// If a laboratory can't be had, if a balancer does not pass on what it should, or if a signal has
/// come.
pub fn run(plan: &PeersPlan, progress: &mut dyn FnMut(&str)) -> Result<PeersReport> {
    ensure!(plan.rounds > 0 && plan.time >= Duration::from_secs(1), "too short: {plan:?}");
    progress("what else this machine does");
    let before = others()?;
    let mut report = PeersReport::new(Machine::here(), plan);
    for peer in &plan.peers {
        if let Some(why) = stage::refused(*peer)? {
            report.leave_out(*peer, &why);
        }
    }
    for round in 1..=plan.rounds {
        for peer in report.measured() {
            progress(&format!("round {round} of {}: {}", plan.rounds, peer.name()));
            let figures = sample(peer, plan.time)
                .with_context(|| format!("{} in round {round}", peer.name()))?;
            report.add(peer, figures);
        }
    }
    report.others = before.max(others()?);
    Ok(report)
}

/// One of each figure, in a laboratory of its own.
fn sample(peer: Peer, time: Duration) -> Result<Figures> {
    let stage = Stage::build(peer)?;
    stage.check()?;
    let new = stage.request(time, false)?;
    let begun = cpu_seconds()?;
    let kept = stage.request(time, true)?;
    let cpu = cpu_seconds()? - begun;
    let bits = stage.send(time)?;
    ensure!(!signals::interrupted(), "interrupted");
    Ok(Figures {
        new_connections_per_s: new.per_second(),
        requests_per_s: kept.per_second(),
        gbit_per_s: bits / 1e9,
        cpu_s_per_million_requests: cpu / kept.requests as f64 * 1e6,
    })
}
