//! The ways of the kernel's own network stack that Sluice is compared with.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail};
use lb_common::parse::Family;

use crate::bench::{frame, link};

/// Where the stack sends what it forwards.
const OUTLET: &str = "outlet";

/// Backends of each.
const BACKENDS: u32 = 3;

/// What the stack does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StackRoad {
    /// Drops it when it comes (`raw` priority of `prerouting`): what it costs to hand it over.
    Drop,
    /// Routes it.
    Forward,
    /// IPVS, `rr`, direct routing.
    IpvsDr,
    /// nftables: `dnat` by a hash of source address and port; no way back, as with direct routing.
    NftDnat,
}

/// The device that swallows what is sent.
#[derive(Debug)]
pub(super) struct Outlet(());

/// What was set up for a road.
#[derive(Debug)]
pub(super) struct Set(StackRoad);

impl StackRoad {
    /// In the order in which they are measured: those with connection tracking last, because it
    /// stays.
    pub(super) const ALL: [Self; 4] = [Self::Drop, Self::Forward, Self::IpvsDr, Self::NftDnat];

    /// As in the report.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Drop => "floor/stack-drop",
            Self::Forward => "floor/forward",
            Self::IpvsDr => "ipvs-dr",
            Self::NftDnat => "nft-dnat",
        }
    }

    /// Makes the stack take it.
    pub(super) fn set(self) -> Result<Set> {
        let vip = vip();
        let port = frame::PORT;
        let backends = (0..BACKENDS).map(backend);
        match self {
            Self::Drop => nft("add table ip measure\n\
                 add chain ip measure early { type filter hook prerouting priority raw; }\n\
                 add rule ip measure early counter drop\n")?,
            Self::Forward => ip(&format!("route add {vip} dev {OUTLET} via {}", backend(0)))?,
            Self::IpvsDr => {
                // The VIP is its own, as a director's is.
                ip(&format!("address add {vip}/32 dev lo"))?;
                // This loads it.
                command("ipvsadm", "-C")?;
                // Segments without a SYN before them begin a connection too.
                sysctl("net/ipv4/vs/sloppy_tcp", "1")?;
                // Since 6.2 a thread finds out how fast it can count, for seconds.
                if Path::new("/proc/sys/net/ipv4/vs/run_estimation").exists() {
                    sysctl("net/ipv4/vs/run_estimation", "0")?;
                }
                command("ipvsadm", &format!("-A -t {vip}:{port} -s rr"))?;
                for backend in backends {
                    command("ipvsadm", &format!("-a -t {vip}:{port} -r {backend} -g"))?;
                }
            }
            Self::NftDnat => {
                let map: Vec<String> =
                    backends.enumerate().map(|(n, backend)| format!("{n} : {backend}")).collect();
                nft(&format!(
                    "add table ip measure\n\
                     add chain ip measure pre {{ type nat hook prerouting priority dstnat; }}\n\
                     add rule ip measure pre ip daddr {vip} tcp dport {port} \
                     dnat to jhash ip saddr . tcp sport mod {BACKENDS} map {{ {} }}\n",
                    map.join(", ")
                ))?;
                // The frames' TCP checksums are not what is measured.
                sysctl("net/netfilter/nf_conntrack_checksum", "0")?;
                sysctl("net/netfilter/nf_conntrack_tcp_loose", "1")?;
            }
        }
        Ok(Set(self))
    }
}

impl Set {
    /// Undoes what was set up.
    pub(super) fn undo(self) -> Result<()> {
        let vip = vip();
        match self.0 {
            StackRoad::Drop | StackRoad::NftDnat => nft("delete table ip measure\n"),
            StackRoad::Forward => ip(&format!("route del {vip}")),
            StackRoad::IpvsDr => {
                command("ipvsadm", "-C")?;
                ip(&format!("address del {vip}/32 dev lo"))
            }
        }
    }
}

impl Outlet {
    /// Makes the device, and the stack ready to forward into it what arrives at the generator.
    pub(super) fn create() -> Result<Self> {
        let ours = link::NEAR;
        ip(&format!("link add {OUTLET} type dummy"))?;
        ip(&format!("link set {OUTLET} addrgenmode none up"))?;
        ip("link set lo up")?;
        // Whom the frames are for.
        ip(&format!("link set {ours} address {}", frame::DESTINATION_MAC))?;
        for (name, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            (&*format!("net/ipv4/conf/{ours}/rp_filter"), "0"),
        ] {
            sysctl(name, value)?;
        }
        for number in 0..BACKENDS {
            let backend = backend(number);
            ip(&format!("route add {backend} dev {OUTLET}"))?;
            ip(&format!("neighbour add {backend} dev {OUTLET} lladdr 02:00:00:01:00:0{number}"))?;
        }
        // Where clients are: nothing is sent there.
        ip(&format!("route add {}/15 dev {ours}", IpAddr::from(frame::clients(Family::Ipv4))))?;
        Ok(Self(()))
    }

    /// Packets that it has swallowed.
    pub(super) fn sent(&self) -> Result<u64> {
        // sysfs shows the network namespace that it was mounted in; /proc/net is this thread's.
        let devices = fs::read_to_string("/proc/thread-self/net/dev").context("read net/dev")?;
        let line =
            devices.lines().find_map(|line| line.trim().strip_prefix(OUTLET)?.strip_prefix(':'));
        let packets = line.and_then(|line| line.split_whitespace().nth(9)?.parse().ok());
        packets.context("no outlet in net/dev")
    }
}

fn vip() -> IpAddr {
    frame::vip(Family::Ipv4, 0).into()
}

fn backend(number: u32) -> IpAddr {
    frame::backend(Family::Ipv4, number).into()
}

fn ip(arguments: &str) -> Result<()> {
    command("ip", arguments)
}

fn nft(commands: &str) -> Result<()> {
    commands.lines().try_for_each(|line| {
        let output = Command::new("nft").arg(line).output().context("run nft")?;
        check(&output, &format!("nft {line}"))
    })
}

fn command(program: &str, arguments: &str) -> Result<()> {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .with_context(|| format!("run {program}"))?;
    check(&output, &format!("{program} {arguments}"))
}

fn check(output: &Output, what: &str) -> Result<()> {
    if !output.status.success() {
        bail!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn sysctl(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("set {name}={value}"))
}
