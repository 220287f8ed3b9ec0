//! The kernel's answer to "which way to this address?".
//!
//! The question is RTM_GETROUTE, so rules, tables, metrics, next-hop groups and learned path
//! MTUs are the kernel's business, not ours. It is asked as for a packet that this host sends:
//! rules that look at an input interface, a mark or a source address do not apply.

use std::net::IpAddr;

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
    },
};

use super::{
    netlink::{Failure, Netlink},
    next_hop::Unresolved,
};

/// A way out of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Interface index.
    pub(super) interface: u32,
    /// `None`: the destination is on the link itself.
    pub(super) gateway: Option<IpAddr>,
    /// The kernel's choice of source address, if we have one to choose.
    pub(super) source: Option<IpAddr>,
    /// The route's own MTU, bytes.
    pub(super) mtu: Option<u32>,
}

/// Asks for the route to `address`. The outer failure says that the socket is of no more use.
pub(super) async fn look_up(
    netlink: &Netlink,
    address: IpAddr,
) -> Result<Result<Route, Unresolved>, Failure> {
    match netlink.ask(RouteNetlinkMessage::GetRoute(question(address))).await {
        Ok(RouteNetlinkMessage::NewRoute(message)) => Ok(parse(address, &message)),
        Ok(_) => Ok(Err(Unresolved::NoRoute { address })),
        Err(Failure::Errno(errno)) => Ok(Err(refusal(address, errno))),
        // An answer that can't be decoded looks like none. It must not cost the others theirs.
        Err(Failure::NoAnswer) => Ok(Err(Unresolved::Lookup { address, errno: libc::ETIMEDOUT })),
        Err(Failure::Closed) => Err(Failure::Closed),
    }
}

fn question(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    (message.header.address_family, message.header.destination_prefix_length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message
}

fn parse(address: IpAddr, message: &RouteMessage) -> Result<Route, Unresolved> {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Unresolved::Local { address }),
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            return Err(Unresolved::NotUnicast { address });
        }
        RouteType::Unreachable => return Err(refusal(address, libc::EHOSTUNREACH)),
        RouteType::Prohibit => return Err(refusal(address, libc::EACCES)),
        RouteType::BlackHole => return Err(refusal(address, libc::EINVAL)),
        _ => return Err(Unresolved::NoRoute { address }),
    }
    let mut interface = None;
    let mut route = Route { interface: 0, gateway: None, source: None, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(gateway) => route.gateway = plain(gateway),
            RouteAttribute::Via(RouteVia::Inet(v4)) => route.gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => route.gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::PrefSource(source) => route.source = plain(source),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => {
                return Err(Unresolved::Encapsulated { address });
            }
            _ => {}
        }
    }
    match interface {
        Some(interface) => Ok(Route { interface, ..route }),
        None => Err(Unresolved::NoRoute { address }),
    }
}

/// A specified address, or none.
fn plain(address: &RouteAddress) -> Option<IpAddr> {
    let address = match address {
        RouteAddress::Inet(v4) => IpAddr::V4(*v4),
        RouteAddress::Inet6(v6) => IpAddr::V6(*v6),
        _ => return None,
    };
    (!address.is_unspecified()).then_some(address)
}

/// What a lookup's error means: `fib_props` in the kernel's `net/ipv4/fib_semantics.c`, and
/// `ip6_rt_init_dst` in `net/ipv6/route.c`.
fn refusal(address: IpAddr, errno: i32) -> Unresolved {
    match errno {
        libc::ENETUNREACH | libc::EAGAIN | libc::ESRCH => Unresolved::NoRoute { address },
        libc::EHOSTUNREACH => Unresolved::Unreachable { address, kind: "unreachable" },
        libc::EACCES => Unresolved::Unreachable { address, kind: "prohibit" },
        libc::EINVAL => Unresolved::Unreachable { address, kind: "blackhole" },
        _ => Unresolved::Lookup { address, errno },
    }
}

/// The addresses of a prefix: the first and the last.
pub(super) fn prefix_range(network: IpAddr, length: u8) -> (IpAddr, IpAddr) {
    match network {
        IpAddr::V4(v4) => {
            let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            let bits = v4.to_bits();
            (IpAddr::V4((bits & !host).into()), IpAddr::V4((bits | host).into()))
        }
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            let bits = v6.to_bits();
            (IpAddr::V6((bits & !host).into()), IpAddr::V6((bits | host).into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{RouteLwEnCapType, RouteProtocol};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a literal address")
    }

    fn answer(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = question(ip("192.0.2.11"));
        message.header.kind = kind;
        message.header.protocol = RouteProtocol::Unspec;
        message.attributes.extend(attributes);
        message
    }

    #[test]
    fn answers_become_routes_or_reasons() {
        use RouteAttribute as A;
        let address = ip("192.0.2.11");
        let direct = Route { interface: 7, gateway: None, source: None, mtu: None };
        let rejected = |kind| Err(Unresolved::Unreachable { address, kind });
        let cases = [
            ("on the link", RouteType::Unicast, vec![A::Oif(7)], Ok(direct.clone())),
            (
                "by a gateway, with source and MTU",
                RouteType::Unicast,
                vec![
                    A::Oif(7),
                    A::Gateway(ip("192.0.2.1").into()),
                    A::PrefSource(ip("192.0.2.2").into()),
                    A::Metrics(vec![RouteMetric::Hoplimit(3), RouteMetric::Mtu(1400)]),
                ],
                Ok(Route {
                    interface: 7,
                    gateway: Some(ip("192.0.2.1")),
                    source: Some(ip("192.0.2.2")),
                    mtu: Some(1400),
                }),
            ),
            (
                "by a gateway of the other family",
                RouteType::Unicast,
                vec![A::Oif(7), A::Via(RouteVia::Inet6("fe80::1".parse().expect("literal")))],
                Ok(Route { gateway: Some(ip("fe80::1")), ..direct.clone() }),
            ),
            (
                "unspecified gateway and source are none",
                RouteType::Unicast,
                vec![
                    A::Oif(7),
                    A::Gateway(ip("0.0.0.0").into()),
                    A::PrefSource(ip("0.0.0.0").into()),
                    A::Metrics(vec![RouteMetric::Mtu(0)]),
                ],
                Ok(direct),
            ),
            (
                "a tunnel",
                RouteType::Unicast,
                vec![A::Oif(7), A::EncapType(RouteLwEnCapType::Mpls)],
                Err(Unresolved::Encapsulated { address }),
            ),
            ("no interface", RouteType::Unicast, vec![], Err(Unresolved::NoRoute { address })),
            ("ours", RouteType::Local, vec![A::Oif(1)], Err(Unresolved::Local { address })),
            (
                "broadcast",
                RouteType::Broadcast,
                vec![A::Oif(7)],
                Err(Unresolved::NotUnicast { address }),
            ),
            ("unreachable", RouteType::Unreachable, vec![A::Oif(1)], rejected("unreachable")),
            ("prohibit", RouteType::Prohibit, vec![A::Oif(1)], rejected("prohibit")),
            ("blackhole", RouteType::BlackHole, vec![A::Oif(1)], rejected("blackhole")),
            ("unheard of", RouteType::Other(99), vec![], Err(Unresolved::NoRoute { address })),
        ];
        for (case, kind, attributes, expected) in cases {
            assert_eq!(parse(address, &answer(kind, attributes)), expected, "{case}");
        }
    }

    #[test]
    fn errors_become_reasons() {
        let address = ip("2001:db8::11");
        let cases = [
            (
                libc::ENETUNREACH,
                "no route to 2001:db8::11: add one with `ip route`, or bring its interface up",
            ),
            (
                libc::EACCES,
                "the way to 2001:db8::11 is closed by a route or rule of type prohibit: \
                 see `ip route` and `ip rule`",
            ),
            (
                libc::ENOMEM,
                "can't look up the route to 2001:db8::11: Cannot allocate memory (os error 12)",
            ),
        ];
        for (errno, expected) in cases {
            assert_eq!(refusal(address, errno).to_string(), expected);
        }
    }

    #[test]
    fn a_prefix_covers_its_addresses() {
        let cases = [
            ("192.0.2.99", 24, "192.0.2.0", "192.0.2.255"),
            ("192.0.2.99", 32, "192.0.2.99", "192.0.2.99"),
            ("192.0.2.99", 0, "0.0.0.0", "255.255.255.255"),
            ("192.0.2.99", 200, "192.0.2.99", "192.0.2.99"),
            ("2001:db8::1", 64, "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"),
            ("2001:db8::1", 128, "2001:db8::1", "2001:db8::1"),
        ];
        for (network, length, first, last) in cases {
            assert_eq!(
                prefix_range(ip(network), length),
                (ip(first), ip(last)),
                "{network}/{length}"
            );
        }
    }
}
