//! What NAT makes of a client's address, and the ports of this host that it needs for that.

use std::{fmt, net::IpAddr, slice};

use lb_common::forward::Forwarding;

use super::{Desired, Service};

/// Most NAT addresses that a service can name.
pub const MAX_NAT_ADDRESSES: usize = 16;

/// What the backends of a service with [`Forwarding::Nat`] see as their client's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAddress {
    /// One of this host's, with a port out of [`Dataplane::nat_ports`](super::Dataplane::nat_ports):
    /// answers come back here from wherever the backend is.
    Replaced {
        /// By these: of the VIP's family, unique, no VIP's and no backend's, at most
        /// [`MAX_NAT_ADDRESSES`]. None: by the one that the host sends from to the backend.
        by: Vec<IpAddr>,
    },
    /// The client's own, with its port: the backend must route its answers through this host.
    Kept,
}

impl Default for ClientAddress {
    fn default() -> Self {
        Self::Replaced { by: Vec::new() }
    }
}

impl ClientAddress {
    /// As the configuration has it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Replaced { .. } => "replace",
            Self::Kept => "keep",
        }
    }

    /// The addresses that the operator named.
    pub fn named(&self) -> &[IpAddr] {
        match self {
            Self::Replaced { by } => by,
            Self::Kept => &[],
        }
    }
}

impl Service {
    /// Whether its backends see addresses of this host in place of their clients'.
    pub fn replaces_clients(&self) -> bool {
        self.forwarding == Forwarding::Nat
            && matches!(self.client_address, ClientAddress::Replaced { .. })
    }

    /// The addresses that its flows have on the way to a backend: those that it names, else
    /// `egress`, the one that this host sends from to that backend
    /// ([`NextHop::source`](crate::network::NextHop::source)). None where clients keep theirs.
    pub fn nat_sources<'a>(&'a self, egress: &'a IpAddr) -> &'a [IpAddr] {
        match (self.replaces_clients(), self.client_address.named()) {
            (false, _) => &[],
            (true, []) => slice::from_ref(egress),
            (true, named) => named,
        }
    }
}

impl Desired {
    /// Whether ports of this host are needed for some service's flows.
    pub fn replaces_clients(&self) -> bool {
        self.services.iter().any(Service::replaces_clients)
    }
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest, not below `first`.
    pub last: u16,
}

impl PortRange {
    /// What NAT may use: the ports below are for servers (RFC 6335, §6).
    pub const USABLE: Self = Self { first: 1024, last: u16::MAX };
    /// What Linux gives to sockets unless something else is said (`inet_init_net`,
    /// `net/ipv4/af_inet.c`).
    const SOCKETS: Self = Self { first: 32_768, last: 60_999 };
    /// What NAT uses unless something else is said: all below the sockets'.
    pub const NAT: Self = Self { first: 1024, last: Self::SOCKETS.first - 1 };

    /// How many they are: 1 to 65,536.
    pub const fn count(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }

    /// Whether some port is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The longest range in it that is outside the other; the upper one of two as long.
    fn without(self, other: Self) -> Option<Self> {
        let below =
            other.first.checked_sub(1).map(|last| Self { last: last.min(self.last), ..self });
        let above =
            other.last.checked_add(1).map(|first| Self { first: first.max(self.first), ..self });
        let parts = [below, above].into_iter().flatten();
        parts.filter(|part| part.first <= part.last).max_by_key(|part| part.count())
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Ports that both NAT and the host's own sockets would use: answers to either could be taken for
/// the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "nat_ports {nat} and this host's net.ipv4.ip_local_port_range {host} overlap: NAT and the \
     host's own connections would use the same ports; {}", self.ways_out()
)]
pub struct PortClash {
    nat: PortRange,
    host: PortRange,
}

impl PortClash {
    /// Of what NAT uses with what the host gives to its sockets, if there is one.
    pub fn of(nat: PortRange, host: PortRange) -> Option<Self> {
        nat.overlaps(host).then_some(Self { nat, host })
    }

    fn ways_out(&self) -> String {
        let host = |range: PortRange| {
            let PortRange { first, last } = range;
            format!("`sysctl -w net.ipv4.ip_local_port_range=\"{first} {last}\"`")
        };
        let nat = |range: PortRange| format!("`nat_ports = \"{range}\"` in [dataplane]");
        let beside = |range: PortRange| PortRange::USABLE.without(range);
        match (beside(self.nat), beside(self.host)) {
            (Some(for_host), Some(for_nat)) => {
                format!("set {}, or {}", host(for_host), nat(for_nat))
            }
            (Some(for_host), None) => {
                format!("set {}, which leaves nat_ports its own", host(for_host))
            }
            (None, Some(for_nat)) => format!("set {}", nat(for_nat)),
            (None, None) => {
                format!("set {}, and {}", host(PortRange::SOCKETS), nat(PortRange::NAT))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn a_flow_comes_from_the_named_addresses_or_from_that_of_the_way_out() {
        let egress: IpAddr = [10, 0, 0, 1].into();
        let named: Vec<IpAddr> = vec![[198, 18, 0, 5].into(), [198, 18, 0, 6].into()];
        let sources = |forwarding, client_address| {
            let service = Service { forwarding, client_address, ..sample::service("web", 1) };
            service.nat_sources(&egress).to_vec()
        };
        let replaced = || ClientAddress::Replaced { by: named.clone() };
        assert_eq!(sources(Forwarding::Nat, ClientAddress::default()), [egress]);
        assert_eq!(sources(Forwarding::Nat, replaced()), named);
        assert_eq!(sources(Forwarding::Nat, ClientAddress::Kept), [] as [IpAddr; 0]);
        for forwarding in [Forwarding::L2, Forwarding::Ipip] {
            assert_eq!(sources(forwarding, ClientAddress::default()), [] as [IpAddr; 0]);
        }
    }

    #[test]
    fn ranges_overlap_if_a_port_is_in_both() {
        let nat = range(1024, 32_767);
        let cases = [
            (range(32_768, 60_999), false),
            (range(32_767, 60_999), true),
            (range(1, 1023), false),
            (range(1, 1024), true),
            (range(2000, 3000), true),
            (range(1, 65_535), true),
        ];
        for (host, expected) in cases {
            assert_eq!(nat.overlaps(host), expected, "{host}");
            assert_eq!(host.overlaps(nat), expected, "{host}");
            assert_eq!(PortClash::of(nat, host).is_some(), expected, "{host}");
        }
        assert_eq!(range(7, 7).count(), 1);
        assert_eq!(range(0, u16::MAX).count(), 65_536);
    }

    #[test]
    fn a_clash_names_both_ranges_and_ways_out_that_end_it() {
        let set_host = |host: &str| format!("`sysctl -w net.ipv4.ip_local_port_range=\"{host}\"`");
        let cases = [
            (
                range(1024, 32_767),
                range(20_000, 60_999),
                format!(
                    "set {}, or `nat_ports = \"1024-19999\"` in [dataplane]",
                    set_host("32768 65535")
                ),
            ),
            (
                range(1024, 32_767),
                range(1024, 65_535),
                format!("set {}, which leaves nat_ports its own", set_host("32768 65535")),
            ),
            (
                range(1024, 65_535),
                range(32_768, 60_999),
                "set `nat_ports = \"1024-32767\"` in [dataplane]".to_owned(),
            ),
            (
                range(40_000, 50_000),
                range(32_768, 60_999),
                format!(
                    "set {}, or `nat_ports = \"1024-32767\"` in [dataplane]",
                    set_host("1024 39999")
                ),
            ),
            (
                range(1024, 65_535),
                range(1, 65_535),
                format!(
                    "set {}, and `nat_ports = \"1024-32767\"` in [dataplane]",
                    set_host("32768 60999")
                ),
            ),
        ];
        for (nat, host, ways_out) in cases {
            let text = PortClash::of(nat, host).expect("they overlap").to_string();
            assert!(text.contains(&format!("nat_ports {nat} and")), "{text}");
            assert!(text.contains(&format!("ip_local_port_range {host} ")), "{text}");
            assert!(text.contains(&ways_out), "{text}\n{ways_out}");
        }
    }
}
