//! What is wanted, making it so, and undoing it.
//!
//! One function sets up, takes over and mends: it looks, and changes what differs.

use std::{
    collections::{BTreeSet, HashSet},
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use lb_common::decapsulate::{Source, capacity};

use super::{
    arp,
    kernel::{Kernel, sources_in},
    record::Record,
};
use crate::{datapath::Pins, instance::Instance, network};

/// Checked options.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the balancer's frames arrive.
    pub interface: String,
    /// The services' addresses; at least one.
    pub vips: BTreeSet<IpAddr>,
    sources: HashSet<Source>,
}

impl Wanted {
    /// # Errors
    /// If an address can't be a VIP, or there are too many things.
    pub fn new(interface: String, vips: Vec<IpAddr>, from: Vec<IpNet>) -> Result<Self> {
        let vips: BTreeSet<_> = vips.into_iter().collect();
        if let Some(vip) = vips.iter().find(|vip| !is_vip(**vip)) {
            bail!("{vip} can't be a VIP: no client connects to such an address");
        }
        if vips.is_empty() {
            bail!("no VIP: name the services' addresses with --vip");
        }
        let mut sources: HashSet<_> = from.into_iter().map(sources_in).collect();
        if sources.is_empty() {
            sources.insert(Source::ANY);
        }
        for (what, count, most) in
            [("VIPs", vips.len(), capacity::VIPS), ("prefixes", sources.len(), capacity::SOURCES)]
        {
            if count > most {
                bail!("{count} {what}: an agent has room for {most}");
            }
        }
        Ok(Self { interface, vips, sources })
    }

    /// Whether tunnels are accepted from everywhere.
    pub fn accepts_all(&self) -> bool {
        self.sources.contains(&Source::ANY)
    }

    /// Whether there is an IPv4 VIP.
    pub fn has_ipv4(&self) -> bool {
        self.vips.iter().any(IpAddr::is_ipv4)
    }
}

/// An address that clients can connect to.
fn is_vip(address: IpAddr) -> bool {
    let is_odd = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4 == Ipv4Addr::BROADCAST,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(is_odd || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// What was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Packets for a VIP are unpacked.
    Unpacks(IpAddr),
    /// They no longer are, and the host no longer has it.
    Dismissed(IpAddr),
    /// Other tunnels are accepted.
    Sources,
    /// An ARP setting.
    Arp(arp::Found),
    /// The program was attached to an interface.
    Attached(String),
    /// It was taken off an interface.
    TakenOff(String),
    /// A VIP was put on the loopback interface.
    Owned(IpAddr),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpacks(vip) => write!(f, "tunnelled packets for {vip} are unpacked"),
            Self::Dismissed(vip) => write!(f, "{vip} is no VIP here any more"),
            Self::Sources => f.write_str("the accepted tunnel sources changed"),
            Self::Arp(arp::Found { interface, setting, value }) => {
                write!(f, "{} set from {value} to {}", setting.name(interface), setting.wanted())
            }
            Self::Attached(interface) => write!(f, "attached to {interface}"),
            Self::TakenOff(interface) => write!(f, "taken off {interface}"),
            Self::Owned(vip) => write!(f, "{vip} added to the loopback interface"),
        }
    }
}

/// Makes everything as wanted, and tells what it changed for that.
///
/// First what is likeliest to be refused; then in an order in which nothing is half done: ARP
/// is quiet and tunnels are unpacked before the host has a VIP, and a VIP that goes, goes first
/// from the host.
pub async fn mend(
    kernel: &mut Kernel,
    record: &mut Record,
    wanted: &Wanted,
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let interface = network::interface(&wanted.interface).await?;
    if !kernel.is_on(&interface)? {
        kernel.attach(&interface)?;
        changes.push(Change::Attached(wanted.interface.clone()));
    }

    if wanted.has_ipv4() {
        let amiss = arp::amiss(&wanted.interface)?;
        if !amiss.is_empty() {
            record.arp.retain(|known| !amiss.iter().any(|found| found.is_like(known)));
            record.arp.extend(amiss.iter().cloned());
            kernel.set_record(record)?;
        }
        for found in amiss {
            found.change()?;
            changes.push(Change::Arp(found));
        }
    }

    let vips = kernel.vips()?;
    for vip in wanted.vips.difference(&vips) {
        kernel.add_vip(*vip)?;
        changes.push(Change::Unpacks(*vip));
    }
    if kernel.set_sources(&wanted.sources)? {
        changes.push(Change::Sources);
    }
    let owned = network::vips_added().await?;
    for vip in wanted.vips.difference(&owned) {
        // False: the operator put it there.
        if network::add_vip(*vip).await? {
            changes.push(Change::Owned(*vip));
        }
    }

    for vip in vips.difference(&wanted.vips) {
        network::remove_vip(*vip).await?;
        kernel.remove_vip(*vip)?;
        changes.push(Change::Dismissed(*vip));
    }
    for other in kernel.interfaces()?.into_iter().filter(|name| *name != wanted.interface) {
        kernel.take_off(&other)?;
        let (back, kept): (Vec<_>, _) =
            record.arp.drain(..).partition(|found| found.interface == other);
        record.arp = kept;
        set_back(&back)?;
        kernel.set_record(record)?;
        changes.push(Change::TakenOff(other));
    }
    Ok(changes)
}

/// Undoes everything: the program goes first, then the VIPs while ARP is still quiet.
///
/// # Errors
/// If it is of another network namespace: then nothing is changed. If something can't be
/// undone: the rest is undone all the same.
pub async fn undo(instance: &Instance) -> Result<()> {
    let pins = Pins::of_agent(instance);
    let pinned = Kernel::pinned(instance);
    if let Ok(Some((_, record))) = &pinned
        && !record.is_of_this_namespace()?
        && let Some(path) = record.way_to_its_namespace()
    {
        bail!(
            "the agent of instance {instance} is in another network namespace: run this there, by \
             `nsenter --net={}`",
            path.display()
        );
    }
    for interface in pins.links()? {
        pins.remove_link(&interface)?;
    }
    let undone = match pinned {
        Ok(Some((kernel, record))) if record.is_of_this_namespace()? => {
            leave_the_host(&kernel, &record).await
        }
        // With its namespace went all that it had changed there, or there never was anything.
        Ok(_) => Ok(()),
        Err(error) => Err(error.context(
            "which VIPs and ARP settings it changed can't be read: look with `ip address` for \
             those with `proto 0x53`",
        )),
    };
    pins.remove()?;
    let root = instance.pins();
    match fs::remove_dir(&root) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            return Err(error).with_context(|| format!("remove {}", root.display()));
        }
        _ => {}
    }
    undone.context("the program is off, but the rest of the agent is not undone")
}

async fn leave_the_host(kernel: &Kernel, record: &Record) -> Result<()> {
    let removed = network::remove_vips(&kernel.vips()?).await;
    set_back(&record.arp)?;
    removed?;
    Ok(())
}

/// Sets back what can be; the first error is told.
fn set_back(found: &[arp::Found]) -> Result<()> {
    let results: Vec<_> = found.iter().map(arp::Found::set_back).collect();
    Ok(results.into_iter().collect::<Result<_, _>>()?)
}
