//! VIPs on this host's interfaces: a balancer's, so that the kernel answers ARP, neighbour
//! discovery and ping for them; a backend's, so that it takes the frames that come to it. A
//! balancer's NAT addresses, to which backends answer, are treated as its VIPs, and meant where
//! VIPs are spoken of here.
//!
//! The families differ. For an IPv4 address on loopback the kernel answers ARP on every
//! interface (until `arp_ignore` says otherwise). For an IPv6 address it answers neighbour
//! discovery only on the interface that has the address (`ndisc_recv_ns`, `net/ipv6/ndisc.c`),
//! so a balancer's IPv6 VIP belongs on the interfaces where its frames arrive, and a backend's
//! on loopback, where it is quiet.
//!
//! What Sluice adds carries a mark in the kernel itself (`IFA_PROTO`, needs 5.18), so no file
//! has to remember it and an operator's own address is never taken away.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
        AddressScope, CacheInfo,
    },
    link::{LinkFlags, LinkMessage},
};

use super::{
    Error, Failure,
    links::{self, Interface, Links},
    netlink::{CREATE_NEW, Netlink},
};
use crate::model::HostAddresses;

/// `IFA_PROTO` of the addresses that Sluice added: 'S'.
const MARK: AddressProtocol = AddressProtocol::Other(0x53);
/// A lifetime without end (`INFINITY_LIFE_TIME`, `include/uapi/linux/if_addr.h`), seconds.
const FOREVER: u32 = u32::MAX;

/// The loopback interface.
const LOOPBACK: &str = "lo";

/// Adds a VIP to the loopback interface, which is brought up if it is down. Returns false, and
/// changes nothing, if it is there already: on loopback, or an IPv4 address on any interface.
pub async fn add_vip(vip: IpAddr) -> Result<bool, Error> {
    Ok(!add(vec![(vip, LOOPBACK)]).await?.is_empty())
}

/// Has the kernel answer for these VIPs to those who ask on `interfaces`: all go on loopback,
/// IPv6 VIPs on each of `interfaces` too, because neighbour discovery is answered only where
/// the address is (`ndisc_recv_ns` in `net/ipv6/ndisc.c`), ARP wherever it is asked. Tries all,
/// then reports the first failure. Returns those that were not there before.
///
/// The kernel drops IPv6 addresses when their interface is taken down: say it again now and
/// then. Where nothing is missing it costs one listing of the addresses.
pub async fn own_vips(
    vips: &BTreeSet<IpAddr>,
    interfaces: &[String],
) -> Result<BTreeSet<IpAddr>, Error> {
    let mut places = Vec::with_capacity(vips.len());
    for vip in vips {
        places.push((*vip, LOOPBACK));
        if vip.is_ipv6() {
            places.extend(interfaces.iter().map(|name| (*vip, name.as_str())));
        }
    }
    add(places).await
}

/// Adds each address to the interface named beside it, where it is missing.
async fn add(places: Vec<(IpAddr, &str)>) -> Result<BTreeSet<IpAddr>, Error> {
    let netlink = Netlink::open()?;
    let links = links(&netlink).await?;
    bring_up(&netlink, &links.named(LOOPBACK)?).await?;
    let present: HashSet<_> = list(&netlink)
        .await?
        .iter()
        .filter_map(|message| Some((address(message)?, message.header.index)))
        .flat_map(|(address, index)| [(address, Some(index)), (address, None)])
        .collect();
    let (mut added, mut first_error) = (BTreeSet::new(), None);
    for (vip, name) in places {
        let interface = links.named(name)?;
        if present.contains(&(vip, vip.is_ipv6().then_some(interface.index))) {
            continue;
        }
        let message = RouteNetlinkMessage::NewAddress(host_address(vip, interface.index));
        match netlink.change(message, CREATE_NEW).await {
            Ok(()) => drop(added.insert(vip)),
            Err(Failure::Errno(libc::EEXIST)) => {}
            Err(failure) => {
                let error = failure.during(format!("add {vip} to {name}"));
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(added), Err)
}

/// Removes a VIP that Sluice added, from whichever interface. Returns false, and changes
/// nothing, if there is none.
pub async fn remove_vip(vip: IpAddr) -> Result<bool, Error> {
    Ok(!remove_vips(&BTreeSet::from([vip])).await?.is_empty())
}

/// Removes those of these VIPs that Sluice added, from whichever interface, and returns them.
pub async fn remove_vips(vips: &BTreeSet<IpAddr>) -> Result<BTreeSet<IpAddr>, Error> {
    let netlink = Netlink::open()?;
    let mut removed = BTreeSet::new();
    for message in list(&netlink).await? {
        let Some(vip) = address(&message).filter(|vip| marked(&message) && vips.contains(vip))
        else {
            continue;
        };
        match netlink.change(RouteNetlinkMessage::DelAddress(message), 0).await {
            Ok(()) => drop(removed.insert(vip)),
            Err(Failure::Errno(libc::EADDRNOTAVAIL)) => {}
            Err(failure) => return Err(failure.during(format!("remove {vip}"))),
        }
    }
    Ok(removed)
}

/// The VIPs that Sluice added and that are still there, on whichever interface.
pub async fn vips_added() -> Result<BTreeSet<IpAddr>, Error> {
    let netlink = Netlink::open()?;
    let addresses = list(&netlink).await?;
    Ok(addresses.iter().filter(|message| marked(message)).filter_map(address).collect())
}

/// The addresses that this host can be reached at, by the index of their interface, in the
/// kernel's order.
pub type OwnAddresses = BTreeMap<u32, Vec<IpAddr>>;

/// This host's own addresses: not those that Sluice added, nor of a link or of the host alone, nor
/// what is not to be used (yet, or any more).
///
/// # Errors
/// If the kernel does not list them.
pub async fn own_addresses() -> Result<OwnAddresses, Error> {
    let mut own = OwnAddresses::new();
    for message in list(&Netlink::open()?).await? {
        let unfit = AddressHeaderFlags::Tentative
            | AddressHeaderFlags::Dadfailed
            | AddressHeaderFlags::Deprecated;
        if message.header.scope == AddressScope::Universe
            && !message.header.flags.intersects(unfit)
            && !marked(&message)
            && let Some(address) = address(&message)
        {
            own.entry(message.header.index).or_default().push(address);
        }
    }
    Ok(own)
}

/// Addresses that interfaces of this host have otherwise than by Sluice, but for loopback, with the
/// interface's name: what is sent to them is the host's.
///
/// # Errors
/// If the kernel does not list them.
pub async fn host_addresses() -> Result<HostAddresses, Error> {
    let netlink = Netlink::open()?;
    let links = links(&netlink).await?;
    let loopback = links.named(LOOPBACK).map(|interface| interface.index).ok();
    let mut found = HostAddresses::new();
    for message in list(&netlink).await? {
        let index = message.header.index;
        if let Some(address) = address(&message)
            && Some(index) != loopback
            && !marked(&message)
        {
            let name = links.find(index).map_or_else(String::new, |link| link.name.to_string());
            found.insert(address, name);
        }
    }
    Ok(found)
}

pub(super) async fn list(netlink: &Netlink) -> Result<Vec<AddressMessage>, Error> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let dump = netlink.dump(question).await.map_err(|failure| failure.during("list addresses"))?;
    let addresses = dump.messages.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(address) => Some(address),
        _ => None,
    });
    Ok(addresses.collect())
}

async fn links(netlink: &Netlink) -> Result<Links, Error> {
    let dump = links::dump(netlink).await.map_err(|f| f.during("list the interfaces"))?;
    let mut links = Links::default();
    links.replace(&dump);
    Ok(links)
}

async fn bring_up(netlink: &Netlink, interface: &Interface) -> Result<(), Error> {
    if interface.up {
        return Ok(());
    }
    let name = &interface.name;
    tracing::info!("{name} is down, but needed for the VIPs; bringing it up");
    let mut message = LinkMessage::default();
    message.header.index = interface.index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink
        .change(RouteNetlinkMessage::SetLink(message), 0)
        .await
        .map_err(|failure| failure.during(format!("bring {name} up")))
}

/// An address alone, without its network, and with our mark. Without duplicate address detection:
/// usable at once, and by several balancers. An IPv6 one is "deprecated" from the start: answered
/// for, but never chosen as a source address (RFC 6724 §5 rule 3), for which all interfaces'
/// addresses compete.
pub(super) fn host_address(vip: IpAddr, interface: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = interface;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(vip),
        AddressAttribute::Address(vip),
        AddressAttribute::Protocol(MARK),
    ];
    match vip {
        IpAddr::V4(_) => {
            message.header.family = AddressFamily::Inet;
            message.header.prefix_len = 32;
        }
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.header.prefix_len = 128;
            let mut lifetimes = CacheInfo::default();
            lifetimes.ifa_preferred = 0;
            lifetimes.ifa_valid = FOREVER;
            message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
}

/// An interface's own address. On a point-to-point link `IFA_ADDRESS` is the peer's, and
/// `IFA_LOCAL` ours; IPv6 has `IFA_ADDRESS` alone.
pub(super) fn address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn marked(message: &AddressMessage) -> bool {
    message.attributes.contains(&AddressAttribute::Protocol(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::lab::{Namespace, block_on};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a literal address")
    }

    #[test]
    fn vips_come_and_go_and_an_operators_address_stays() {
        let Some(host) = Namespace::new() else { return };
        let (v4, v6, own) = (ip("192.0.2.10"), ip("2001:db8::10"), ip("192.0.2.1"));
        let vips = || host.run(|| block_on(vips_added())).expect("list");

        // The loopback interface of a new namespace is down.
        assert!(host.run(move || block_on(add_vip(v4))).expect("add IPv4"));
        assert!(host.run(move || block_on(add_vip(v6))).expect("add IPv6"));
        assert!(!host.run(move || block_on(add_vip(v4))).expect("add it twice"));
        assert_eq!(vips(), BTreeSet::from([v4, v6]));
        // Usable at once: an address under duplicate address detection can't be bound.
        for vip in [v4, v6] {
            host.run(move || std::net::TcpListener::bind((vip, 80))).expect("bind to the VIP");
        }

        host.ip("link add eth0 type veth peer name eth1");
        host.ip("address add 192.0.2.1/24 dev eth0");
        host.ip("link set eth0 up");
        assert!(!host.run(move || block_on(add_vip(own))).expect("leave the operator's"));
        assert!(!host.run(move || block_on(remove_vip(own))).expect("leave the operator's"));
        host.run(move || std::net::TcpListener::bind((own, 80))).expect("it is still there");

        assert!(host.run(move || block_on(remove_vip(v4))).expect("remove IPv4"));
        assert!(host.run(move || block_on(remove_vip(v6))).expect("remove IPv6"));
        assert!(!host.run(move || block_on(remove_vip(v4))).expect("remove it twice"));
        assert_eq!(vips(), BTreeSet::new());
        host.run(move || std::net::TcpListener::bind((v4, 80))).expect_err("it is gone");
    }

    /// Whether `there` gets an answer to a ping within 1 s.
    fn answers(there: &Namespace, address: IpAddr) -> bool {
        let address = address.to_string();
        let ping =
            move || std::process::Command::new("ping").args(["-c1", "-W1", &address]).output();
        there.run(ping).expect("`ping` is installed").status.success()
    }

    #[test]
    fn others_on_the_link_reach_the_vips_of_a_balancer() {
        let (Some(here), Some(there)) = (Namespace::new(), Namespace::new()) else { return };
        here.join(
            &there,
            ["198.18.0.1/24", "2001:db8::1/64"],
            ["198.18.0.2/24", "2001:db8::2/64"],
            [1, 2],
        );
        let vips = BTreeSet::from([ip("198.18.0.10"), ip("2001:db8::10")]);
        let own = |vips: &BTreeSet<IpAddr>| {
            let vips = vips.clone();
            here.run(move || block_on(own_vips(&vips, &["eth0".to_owned()])))
        };
        assert_eq!(own(&vips).expect("add them"), vips);
        assert_eq!(own(&vips).expect("nothing is missing"), BTreeSet::new());
        for vip in &vips {
            let asked = std::time::Instant::now();
            while !answers(&there, *vip) {
                assert!(asked.elapsed().as_secs() < 10, "{vip} does not answer");
            }
        }
        // Taken down, an interface loses its IPv6 addresses.
        here.ip("link set eth0 down");
        here.ip("link set eth0 up");
        assert_eq!(own(&vips).expect("add what is missing"), BTreeSet::from([ip("2001:db8::10")]));

        let gone = vips.clone();
        let removed = here.run(move || block_on(remove_vips(&gone)));
        assert_eq!(removed.expect("remove them"), vips);
        for vip in vips {
            assert!(!answers(&there, vip), "{vip} still answers");
        }
        let absent = here.run(move || {
            block_on(own_vips(&BTreeSet::from([ip("2001:db8::10")]), &["eth9".to_owned()]))
        });
        let error = absent.expect_err("there is no eth9").to_string();
        assert_eq!(error, "no interface named eth9; there are: eth0, lo");
    }

    #[test]
    fn without_the_privilege_the_error_names_it() {
        let failure = Failure::Errno(libc::EPERM).during("add 192.0.2.10");
        assert_eq!(
            failure.to_string(),
            "can't add 192.0.2.10: not permitted: run as root or with the capability CAP_NET_ADMIN"
        );
    }
}
