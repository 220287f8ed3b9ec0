//! `sluice doctor`: looks at this host and at the way to each backend, and says what is wrong and
//! what to do about it.
//!
//! `host`, `nat`, `room` and `cause` decide from what was seen, purely; here it is looked at. What goes by
//! the VIP is the daemon's last probe (nobody else can send one); what goes directly is tried at
//! once. `reported` has what the daemon alone can know.

mod cause;
mod host;
mod nat;
mod reported;
mod room;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

pub use self::cause::{Cause, Met, cause};
pub(crate) use self::room::{CLIENT_MTU, Narrow, narrow};
use crate::{
    config,
    control::{api, client::Client},
    datapath::preflight,
    health::Failure,
    model::{Backend, Desired, Identity, Service, Via},
    network::{self, Interface, NextHops, OwnAddresses, Snapshot, Unresolved},
    prober::{NoWay, Surroundings, ways},
};

/// How long a connection to a backend may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the backends' neighbours may take to answer: the kernel asks three times, a second
/// apart, before it gives up.
const RESOLVING: Duration = Duration::from_secs(6);
/// Connections under way at once.
const AT_ONCE: usize = 64;

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing is wrong; what is doubtful does not count.
    pub well: bool,
    /// This host first, then backend by backend.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What: `interface eth0`, `backend web/web-1`.
    pub about: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, in one sentence.
    pub says: String,
    /// What to do about it, if anything can be said.
    pub mend: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Well,
    /// It works, but not as well as it might.
    Doubt,
    /// Clients may notice.
    Wrong,
}

impl Finding {
    fn well(about: String, says: impl Into<String>) -> Self {
        Self { about, severity: Severity::Well, says: says.into(), mend: None }
    }

    fn doubt(about: String, says: impl Into<String>, mend: String) -> Self {
        Self { severity: Severity::Doubt, ..Self::wrong(about, says, mend) }
    }

    fn wrong(about: String, says: impl Into<String>, mend: String) -> Self {
        let mend = Some(mend).filter(|mend| !mend.is_empty());
        Self { about, severity: Severity::Wrong, says: says.into(), mend }
    }
}

/// Looks at everything.
///
/// # Errors
/// If this host's network can't be looked at, or the daemon answers garbage. That there is no
/// daemon is a finding.
pub async fn examine(client: &Client) -> Result<Report> {
    let mut findings = Vec::new();
    if let Err(error) = preflight() {
        findings.push(Finding::wrong("this host".to_owned(), format!("{error:#}"), String::new()));
    }
    match client.status().await {
        Ok(status) => {
            let exported = client.export().await?;
            let desired = config::parse(&exported.text, "the running config")
                .context("read the running config")?;
            findings.extend(look(&status, &desired).await?);
        }
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            findings.push(Finding::wrong("daemon".to_owned(), error, String::new()));
        }
    }
    let well = findings.iter().all(|finding| finding.severity != Severity::Wrong);
    Ok(Report { well, findings })
}

async fn look(status: &api::Status, desired: &Desired) -> Result<Vec<Finding>> {
    let mut findings = vec![match status.ready {
        true => Finding::well("daemon".to_owned(), "attached and forwarding"),
        false => Finding::wrong("daemon".to_owned(), status.problems.join("; "), String::new()),
    }];
    findings.extend(reported::reported(&status.troubles, "instance"));
    let mut front: Vec<Interface> = Vec::new();
    for seen in &status.interfaces {
        let found = network::interface(&seen.name).await;
        let found = found.map_err(|error| error.to_string());
        findings.push(host::interface(
            &seen.name,
            seen.attached,
            found.as_ref().map_err(Clone::clone),
        ));
        front.extend(found);
        findings.extend(reported::reported(&status.troubles, &format!("interface {}", seen.name)));
    }
    let vips: BTreeSet<IpAddr> = desired.services.iter().map(|service| service.vip.ip()).collect();
    for address in desired.own_addresses() {
        // Only an address that this host has can be bound, whoever put it there.
        if UdpSocket::bind((address, 0)).await.is_err() {
            let what = if vips.contains(&address) { "VIP" } else { "NAT address" };
            findings.push(Finding::wrong(
                format!("{what} {address}"),
                "this host does not own it: nobody answers ARP, neighbour discovery and ping for it",
                "the daemon puts it back within a second; see `sluice status` if it does not"
                    .to_owned(),
            ));
        }
    }

    if desired.replaces_clients() {
        findings.push(nat::ports(network::port_clash(desired.dataplane.nat_ports)));
    }
    findings.extend(desired.services.iter().filter_map(nat::backends_route));

    let next_hops = resolve(desired).await?;
    let own = network::own_addresses().await?;
    let unasked = unasked(desired, &next_hops, &own, &front);
    let client_mtu = front.iter().map(|interface| interface.mtu).fold(CLIENT_MTU, u32::min);
    let backends: Vec<_> =
        desired.services.iter().flat_map(|s| s.backends.iter().map(move |b| (s, b))).collect();
    let direct = stream::iter(&backends)
        .map(|(service, backend)| connect(service.asked(backend).1))
        .buffered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    for ((service, backend), direct) in backends.into_iter().zip(direct) {
        let about = format!("backend {}/{}", service.name, backend.name);
        let before = findings.len();
        findings.extend(reported::reported(&status.troubles, &about));
        let hop = next_hops.get(&backend.address);
        findings.extend(host::way(about.clone(), service, backend, hop, client_mtu));
        if let Some(Ok(hop)) = hop {
            findings.extend(nat::answers(about.clone(), service, hop, &front));
        }
        let no_way = unasked.get(&service.identity(backend));
        if hop.is_some_and(Result::is_ok) {
            findings.extend(
                no_way.map(|why| Finding::wrong(about.clone(), why.to_string(), String::new())),
            );
            let seen = status.service(&service.name).and_then(|s| s.backend(&backend.name)).ok();
            let seen = seen.and_then(|backend| backend.last_probe.as_ref());
            let given = hop.and_then(|hop| hop.as_ref().ok()?.given_mac(backend.address));
            findings.extend(illness(about.clone(), service, backend, seen, direct, given));
        }
        if findings.len() == before {
            findings.push(Finding::well(about, "it can be reached, and answers"));
        }
    }
    Ok(findings)
}

/// What is wrong with a backend that can be reached. `given_mac` is what to do if the MAC that
/// somebody has set for it is another's.
fn illness(
    about: String,
    service: &Service,
    backend: &Backend,
    seen: Option<&api::LastProbe>,
    direct: Met,
    given_mac: Option<String>,
) -> Option<Finding> {
    let (vip, own) = service.asked(backend);
    if own.port() == 0 {
        // Of any port, and not checked: nobody knows where it should answer.
        return None;
    }
    let by_vip = seen.filter(|probe| probe.via == Via::Vip.name()).map(|probe| probe.met);
    // What is asked directly by the daemon is asked for more than a connection.
    let direct = match seen {
        Some(probe) if by_vip.is_none() && probe.met != Met::Well => probe.met,
        _ => direct,
    };
    let cause = cause(by_vip, direct)?;
    let error = seen.and_then(|probe| probe.error.clone());
    let mut says = match (cause, error) {
        // The failure's own words name the cause.
        (Cause::Narrow, Some(error)) => format!("its last probe: {error}"),
        (cause, Some(error)) => format!("{}; its last probe: {error}", cause.says(vip, own)),
        (cause, None) => cause.says(vip, own),
    };
    let given_mac = given_mac.filter(|_| cause == Cause::HostDown);
    let mend = given_mac.or_else(|| cause.mend(service.forwarding, vip, own)).unwrap_or_default();
    if seen.is_none() && cause != Cause::NoWay {
        // Its service may listen on the VIP alone, a firewall protect its own address.
        says = format!("{says}; by way of {vip} it is not probed, so that may be well");
        return Some(Finding::doubt(about, says, mend));
    }
    Some(Finding::wrong(about, says, mend))
}

/// Where the backends are, asked of the kernel anew.
async fn resolve(desired: &Desired) -> Result<Snapshot> {
    let backends = desired.services.iter().flat_map(|service| &service.backends);
    let addresses: BTreeSet<IpAddr> = backends.map(|backend| backend.address).collect();
    if addresses.is_empty() {
        return Ok(Snapshot::default());
    }
    let next_hops = NextHops::start().await?;
    next_hops.watch(addresses);
    let mut snapshots = next_hops.snapshots();
    let is_open = |hop: &Result<_, Unresolved>| {
        matches!(hop, Err(Unresolved::Neighbour { failed: false, .. }))
    };
    let decided = snapshots.wait_for(|found| !found.is_empty() && !found.values().any(is_open));
    // A time-out: the snapshot says of some that they are waited for.
    let _ = timeout(RESOLVING, decided).await;
    Ok(snapshots.borrow().clone())
}

/// The backends that can't be asked by way of the VIP, though they should be.
fn unasked(
    desired: &Desired,
    next_hops: &Snapshot,
    own: &OwnAddresses,
    front: &[Interface],
) -> BTreeMap<Identity, NoWay> {
    let is_by_vip =
        |service: &&Service| service.health.as_ref().is_some_and(|check| check.via == Via::Vip);
    let dataplane: Vec<u32> = front.iter().map(|interface| interface.index).collect();
    let unheard = BTreeMap::new();
    let around = Surroundings { next_hops, own, dataplane: &dataplane, unheard: &unheard };
    // The daemon knows their indices; any will do here.
    let ways = ways(desired.services.iter().filter(is_by_vip), &around, |_| Some(1)).ways;
    ways.into_iter().filter_map(|(identity, way)| Some((identity, way.err()?))).collect()
}

/// A connection to a backend's own address.
async fn connect(backend: SocketAddr) -> Met {
    match timeout(PATIENCE, TcpStream::connect(backend)).await {
        Err(_) => Met::Silence,
        Ok(Ok(_)) => Met::Well,
        Ok(Err(error)) => Met::by(&Err(Failure::of_connect(&error, PATIENCE))),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::forward::Forwarding;

    use super::*;
    use crate::model::sample;

    #[test]
    fn a_way_that_is_too_narrow_is_told_once() {
        let service = Service { forwarding: Forwarding::Ipip, ..sample::service("web", 1) };
        let error = Failure::PathMtu { segment: 1448 }.to_string();
        let seen = api::LastProbe {
            via: Via::Vip.name().to_owned(),
            met: Met::Narrow,
            error: Some(error.clone()),
            cause: None,
            age_seconds: 0.5,
            seconds: 1.0,
        };
        let about = "backend web/web-1".to_owned();
        let backend = &service.backends[0];
        let finding = illness(about, &service, backend, Some(&seen), Met::Well, None);
        let finding = finding.expect("a full segment does not arrive");
        assert_eq!(finding.says, format!("its last probe: {error}"));
        assert!(finding.mend.expect("a mend").starts_with("raise the MTU on the whole way"));
    }

    #[test]
    fn a_backend_that_is_well_but_for_the_vip_is_found() {
        let service = sample::service("web", 1);
        let ill = |seen: Option<(Via, Met)>, direct| {
            let seen = seen.map(|(via, met)| api::LastProbe {
                via: via.name().to_owned(),
                met,
                error: (met != Met::Well).then(|| "no answer to SYN within 1s".to_owned()),
                cause: None,
                age_seconds: 0.5,
                seconds: 1.0,
            });
            let backend = &service.backends[0];
            let given = Some("`ip neigh del`".to_owned());
            illness("backend web/web-1".to_owned(), &service, backend, seen.as_ref(), direct, given)
        };
        let finding = ill(Some((Via::Vip, Met::Silence)), Met::Well).expect("no VIP there");
        assert_eq!(finding.severity, Severity::Wrong);
        assert_eq!(
            finding.says,
            "10.0.0.11 is up, but takes no frames for 203.0.113.10; its last probe: no answer to \
             SYN within 1s"
        );
        assert!(finding.mend.expect("a mend").contains("sluice agent run"));

        assert_eq!(ill(Some((Via::Vip, Met::Well)), Met::Refused), None, "it listens on the VIP");
        assert_eq!(ill(Some((Via::Backend, Met::Well)), Met::Well), None);
        let finding = ill(Some((Via::Backend, Met::Ill)), Met::Well).expect("the daemon saw it");
        assert_eq!(finding.severity, Severity::Wrong);
        let finding = ill(Some((Via::Vip, Met::Silence)), Met::Silence).expect("nothing comes");
        assert_eq!(finding.mend.as_deref(), Some("`ip neigh del`"), "its MAC was set by hand");
        // Nobody has tried the VIP.
        assert_eq!(ill(None, Met::Well), None);
        let finding = ill(None, Met::Refused).expect("its own address refuses");
        assert_eq!(finding.severity, Severity::Doubt);
    }
}
