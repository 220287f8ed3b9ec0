//! From a route, a link and a neighbour to a next hop, or to the reason why there is none.

use std::{net::IpAddr, sync::Arc};

use super::{
    Mac,
    links::{Interface, interface_fault},
    neighbours::{Key, Neighbour},
    routes::Route,
};

/// How frames for a backend leave this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the interface they leave by.
    pub interface: u32,
    /// Its name.
    pub interface_name: Arc<str>,
    /// Its MAC.
    pub source_mac: Mac,
    /// The MAC of the gateway, or of the backend itself where it is on the same link.
    pub destination_mac: Mac,
    /// Largest IP packet, bytes: the least of the interface's MTU and the route's (path MTU
    /// discovery included), and at most 65,535.
    pub mtu: u16,
    /// The address of ours that the kernel prefers as source on that route.
    pub source: IpAddr,
    /// The gateway, if there is one; of the other family if the route says so (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// The MAC was set by an operator or another program: nobody has asked whose it is.
    pub is_given: bool,
}

impl NextHop {
    /// What to do if the MAC is another's, where it was set by somebody: the kernel does not ask
    /// then. `address` is the backend's.
    pub fn given_mac(&self, address: IpAddr) -> Option<String> {
        let next = self.gateway.unwrap_or(address);
        let Self { interface_name, destination_mac, .. } = self;
        let mac = destination_mac.map(|byte| format!("{byte:02x}")).join(":");
        self.is_given.then(|| {
            format!(
                "its MAC {mac} was set by hand (`ip neigh show {next}`): if that is not {next}'s, \
                 `ip neigh del {next} dev {interface_name}` lets the kernel ask for it"
            )
        })
    }
}

/// Why frames for a backend can't leave this host, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// The routing tables have nothing for it. That is also so when its interface is down.
    #[error("no route to {address}: add one with `ip route`, or bring its interface up")]
    NoRoute {
        /// The backend.
        address: IpAddr,
    },
    /// It is one of this host's own addresses.
    #[error("{address} is this host's own address: a backend must be another host")]
    Local {
        /// The backend.
        address: IpAddr,
    },
    /// It is a multicast, broadcast or anycast address.
    #[error("{address} is not the address of one host")]
    NotUnicast {
        /// The backend.
        address: IpAddr,
    },
    /// A route or rule forbids it.
    #[error(
        "the way to {address} is closed by a route or rule of type {kind}: see `ip route` and `ip rule`"
    )]
    Unreachable {
        /// The backend.
        address: IpAddr,
        /// `unreachable`, `prohibit` or `blackhole`.
        kind: &'static str,
    },
    /// The kernel can't say.
    #[error("can't look up the route to {address}: {}", std::io::Error::from_raw_os_error(*.errno))]
    Lookup {
        /// The backend.
        address: IpAddr,
        /// The kernel's error number.
        errno: i32,
    },
    /// The route wraps packets into a tunnel, which XDP does not.
    #[error("the route to {address} encapsulates (lwtunnel): Sluice can't follow it")]
    Encapsulated {
        /// The backend.
        address: IpAddr,
    },
    /// The route's interface has just been deleted.
    #[error("the interface of the route to {address} is gone (index {index})")]
    InterfaceGone {
        /// The backend.
        address: IpAddr,
        /// The index it had.
        index: u32,
    },
    /// The route's interface can't send.
    #[error("{interface}, on the way to {address}, {}", interface_fault(*.up))]
    InterfaceDown {
        /// The backend.
        address: IpAddr,
        /// The interface.
        interface: Arc<str>,
        /// It is switched on, but has no carrier.
        up: bool,
    },
    /// The route's interface has no Ethernet frames.
    #[error(
        "{interface}, on the way to {address}, is not Ethernet but {kind}: Sluice can't send by it"
    )]
    NotEthernet {
        /// The backend.
        address: IpAddr,
        /// The interface.
        interface: Arc<str>,
        /// What it is instead.
        kind: Arc<str>,
    },
    /// We have no address to send from.
    #[error("no source address on {interface} for {address}: add one with `ip address`")]
    NoSource {
        /// The backend.
        address: IpAddr,
        /// The interface.
        interface: Arc<str>,
    },
    /// Its MAC is unknown.
    #[error("{}", neighbour_fault(*.address, *.next, .interface, *.failed))]
    Neighbour {
        /// The backend.
        address: IpAddr,
        /// Who does not answer: the backend, or the gateway before it.
        next: IpAddr,
        /// The interface.
        interface: Arc<str>,
        /// The kernel has given up; false: it has only just been asked.
        failed: bool,
    },
    /// The kernel has no room to remember its MAC.
    #[error(
        "the kernel's neighbour table is full, so {next} can't be resolved: raise \
         net.{}.neigh.default.gc_thresh1, 2 and 3 (in the initial network namespace)",
        if next.is_ipv4() { "ipv4" } else { "ipv6" }
    )]
    NeighbourTableFull {
        /// The backend.
        address: IpAddr,
        /// The backend, or the gateway before it.
        next: IpAddr,
    },
}

impl Unresolved {
    /// Whether the fault is on this host's side, or on its gateway's: then it says nothing of the
    /// backend itself.
    pub fn is_ours(&self) -> bool {
        match self {
            Self::NoRoute { .. }
            | Self::Lookup { .. }
            | Self::InterfaceGone { .. }
            | Self::InterfaceDown { .. }
            | Self::NoSource { .. }
            | Self::NeighbourTableFull { .. } => true,
            Self::Neighbour { address, next, .. } => address != next,
            Self::Local { .. }
            | Self::NotUnicast { .. }
            | Self::Unreachable { .. }
            | Self::Encapsulated { .. }
            | Self::NotEthernet { .. } => false,
        }
    }

    /// Whether it has only just been asked for, so that nothing is known yet.
    pub const fn is_pending(&self) -> bool {
        matches!(self, Self::Neighbour { failed: false, .. })
    }
}

fn neighbour_fault(address: IpAddr, next: IpAddr, interface: &str, failed: bool) -> String {
    let question = if next.is_ipv4() { "ARP" } else { "neighbour discovery" };
    match (failed, next == address) {
        (false, _) => format!("waiting for {next} to answer {question} on {interface}"),
        (true, true) => format!(
            "{next} does not answer {question} on {interface}: is it up, on this network (VLAN)?"
        ),
        (true, false) => format!(
            "{next}, the gateway to {address}, does not answer {question} on {interface}: \
             is it up, on this network (VLAN)?"
        ),
    }
}

/// A usable route: all of a next hop but the neighbour's MAC.
pub(super) struct Egress<'a> {
    address: IpAddr,
    route: &'a Route,
    link: &'a Interface,
    source_mac: Mac,
    source: IpAddr,
}

impl<'a> Egress<'a> {
    /// `link` is the route's interface.
    pub(super) fn new(
        address: IpAddr,
        route: &'a Route,
        link: Option<&'a Interface>,
    ) -> Result<Self, Unresolved> {
        let Some(link) = link else {
            return Err(Unresolved::InterfaceGone { address, index: route.interface });
        };
        let interface = || Arc::clone(&link.name);
        if !link.running {
            return Err(Unresolved::InterfaceDown { address, interface: interface(), up: link.up });
        }
        let (true, Some(source_mac)) = (link.ethernet, link.mac) else {
            let kind = Arc::clone(&link.kind);
            return Err(Unresolved::NotEthernet { address, interface: interface(), kind });
        };
        let Some(source) = route.source else {
            return Err(Unresolved::NoSource { address, interface: interface() });
        };
        Ok(Self { address, route, link, source_mac, source })
    }

    /// Whose MAC is wanted: interface, and gateway or backend.
    pub(super) fn neighbour(&self) -> Key {
        (self.link.index, self.route.gateway.unwrap_or(self.address))
    }

    /// With what is known of [`Self::neighbour`].
    pub(super) fn resolve(&self, neighbour: Neighbour) -> Result<NextHop, Unresolved> {
        let address = self.address;
        let (_, next) = self.neighbour();
        let silent = |failed| {
            let interface = Arc::clone(&self.link.name);
            Err(Unresolved::Neighbour { address, next, interface, failed })
        };
        let destination_mac = match neighbour {
            Neighbour::Known(mac) | Neighbour::Given(mac) => mac,
            Neighbour::Asked => return silent(false),
            Neighbour::Silent => return silent(true),
            Neighbour::NoRoom => return Err(Unresolved::NeighbourTableFull { address, next }),
        };
        let mtu = self.route.mtu.map_or(self.link.mtu, |mtu| mtu.min(self.link.mtu));
        Ok(NextHop {
            interface: self.link.index,
            interface_name: Arc::clone(&self.link.name),
            source_mac: self.source_mac,
            destination_mac,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            source: self.source,
            gateway: self.route.gateway,
            is_given: matches!(neighbour, Neighbour::Given(_)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 2];

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a literal address")
    }

    fn link() -> Interface {
        Interface {
            index: 7,
            name: "eth1".into(),
            mac: Some(OURS),
            mtu: 1500,
            up: true,
            running: true,
            ethernet: true,
            xdp: None,
            kind: "ethernet".into(),
        }
    }

    fn route() -> Route {
        Route { interface: 7, gateway: None, source: Some(ip("192.0.2.1")), mtu: None }
    }

    fn hop() -> NextHop {
        NextHop {
            interface: 7,
            interface_name: "eth1".into(),
            source_mac: OURS,
            destination_mac: THEIRS,
            mtu: 1500,
            source: ip("192.0.2.1"),
            gateway: None,
            is_given: false,
        }
    }

    fn decide(
        address: IpAddr,
        route: &Route,
        link: Option<&Interface>,
        neighbour: Neighbour,
    ) -> Result<NextHop, Unresolved> {
        Egress::new(address, route, link)?.resolve(neighbour)
    }

    #[test]
    fn a_route_a_link_and_a_neighbour_make_a_next_hop() {
        let known = Neighbour::Known(THEIRS);
        let gateway = Some(ip("192.0.2.254"));
        let gateway_v6 = Some(ip("fe80::1"));
        let cases = [
            ("on the link", route(), link(), hop()),
            ("by a gateway", Route { gateway, ..route() }, link(), NextHop { gateway, ..hop() }),
            (
                "by an IPv6 gateway (RFC 5549)",
                Route { gateway: gateway_v6, ..route() },
                link(),
                NextHop { gateway: gateway_v6, ..hop() },
            ),
            (
                "the route's MTU is less",
                Route { mtu: Some(1400), ..route() },
                link(),
                NextHop { mtu: 1400, ..hop() },
            ),
            ("the link's MTU is less", Route { mtu: Some(9000), ..route() }, link(), hop()),
            (
                "an MTU beyond 16 bits",
                route(),
                Interface { mtu: 262_144, ..link() },
                NextHop { mtu: 65_535, ..hop() },
            ),
        ];
        for (case, route, link, expected) in cases {
            assert_eq!(
                decide(ip("192.0.2.11"), &route, Some(&link), known),
                Ok(expected),
                "{case}"
            );
        }
    }

    #[test]
    fn a_mac_that_somebody_has_set_is_told_with_the_way_to_be_rid_of_it() {
        let address = ip("192.0.2.11");
        let of = |route: &Route, neighbour| {
            let hop = decide(address, route, Some(&link()), neighbour).expect("resolved");
            assert_eq!(hop.destination_mac, THEIRS);
            hop.given_mac(address)
        };
        assert_eq!(of(&route(), Neighbour::Known(THEIRS)), None);
        let says = of(&route(), Neighbour::Given(THEIRS)).expect("it was set");
        assert!(says.contains("02:00:00:00:00:02 was set by hand"), "{says}");
        assert!(says.contains("`ip neigh del 192.0.2.11 dev eth1`"), "{says}");
        let via = Route { gateway: Some(ip("192.0.2.254")), ..route() };
        let says = of(&via, Neighbour::Given(THEIRS)).expect("its gateway's was set");
        assert!(says.contains("`ip neigh del 192.0.2.254 dev eth1`"), "{says}");
    }

    #[test]
    fn what_is_missing_is_said_with_the_way_out() {
        let known = Neighbour::Known(THEIRS);
        let via = Route { gateway: Some(ip("192.0.2.254")), ..route() };
        let down = Interface { up: false, running: false, ..link() };
        let unplugged = Interface { running: false, ..link() };
        let tunnel = Interface { ethernet: false, mac: None, kind: "tun".into(), ..link() };
        let nowhere = Route { source: None, ..route() };
        let cases = [
            (route(), None, known, "the interface of the route to 192.0.2.11 is gone (index 7)"),
            (
                route(),
                Some(down),
                known,
                "eth1, on the way to 192.0.2.11, is down: bring it up with `ip link set`",
            ),
            (
                route(),
                Some(unplugged),
                known,
                "eth1, on the way to 192.0.2.11, has no carrier: check the cable and the switch port",
            ),
            (
                route(),
                Some(tunnel),
                known,
                "eth1, on the way to 192.0.2.11, is not Ethernet but tun: Sluice can't send by it",
            ),
            (
                nowhere,
                Some(link()),
                known,
                "no source address on eth1 for 192.0.2.11: add one with `ip address`",
            ),
            (
                route(),
                Some(link()),
                Neighbour::Asked,
                "waiting for 192.0.2.11 to answer ARP on eth1",
            ),
            (
                route(),
                Some(link()),
                Neighbour::Silent,
                "192.0.2.11 does not answer ARP on eth1: is it up, on this network (VLAN)?",
            ),
            (
                via,
                Some(link()),
                Neighbour::Silent,
                "192.0.2.254, the gateway to 192.0.2.11, does not answer ARP on eth1: \
                 is it up, on this network (VLAN)?",
            ),
            (
                route(),
                Some(link()),
                Neighbour::NoRoom,
                "the kernel's neighbour table is full, so 192.0.2.11 can't be resolved: raise \
                 net.ipv4.neigh.default.gc_thresh1, 2 and 3 (in the initial network namespace)",
            ),
        ];
        for (route, link, neighbour, expected) in cases {
            let error = decide(ip("192.0.2.11"), &route, link.as_ref(), neighbour)
                .expect_err(expected)
                .to_string();
            assert_eq!(error, expected);
        }
    }
}
