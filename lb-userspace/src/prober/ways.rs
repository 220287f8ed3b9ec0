//! Which way the probe of each backend goes, decided from what is known of the network.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    model::{Identity, Service},
    network::{NextHop, OwnAddresses, Unresolved},
};

/// The way of one backend's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Its index in the kernel's tables; not 0.
    pub backend: u16,
    /// Our address that they come from, and that the backend answers to.
    pub source: IpAddr,
}

/// Why a backend can't be probed by way of the VIP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    /// Nobody knows where it is.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// The next hops have not been looked up yet, or the kernel's tables don't have it yet.
    #[error("it is not in the kernel's tables yet")]
    NotYet,
    /// We have no address that it could answer to.
    #[error(
        "this host has no {family} address of its own to send probes to {vip} from: add one to \
         {interface}, or check the backend's own address (`via = \"backend\"`)"
    )]
    NoSource {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Whom the probe would ask.
        vip: IpAddr,
        /// Which interface leads to the backend.
        interface: Arc<str>,
    },
    /// Its answers would arrive where no program of ours can take them.
    #[error("answers from {backend} can't be seen: {error}")]
    Unheard {
        /// Its name.
        backend: String,
        /// What keeps our program off the interface that leads to it.
        error: String,
    },
}

/// The ways of all backends, and what they need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// By backend.
    pub ways: BTreeMap<Identity, Result<Way, NoWay>>,
    /// The addresses that probes are sent from.
    pub sources: BTreeSet<IpAddr>,
}

/// What is known of the network.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Where the backends are.
    pub next_hops: &'a BTreeMap<IpAddr, Result<NextHop, Unresolved>>,
    /// This host's addresses.
    pub own: &'a OwnAddresses,
    /// Indices of the interfaces where clients' frames arrive, in the config's order.
    pub dataplane: &'a [u32],
    /// Interfaces, by index, where answers can't be heard, and why.
    pub unheard: &'a BTreeMap<u32, String>,
}

/// The ways of these services' backends; `index` finds a backend in the kernel's tables.
pub fn ways<'s>(
    services: impl Iterator<Item = &'s Service> + Clone,
    around: &Surroundings<'_>,
    index: impl Fn(&Identity) -> Option<u16>,
) -> Ways {
    let vips: BTreeSet<IpAddr> = services.clone().map(|service| service.vip.ip()).collect();
    let mut all = Ways::default();
    for service in services {
        for backend in &service.backends {
            let identity = service.identity(backend);
            let way = around
                .next_hops
                .get(&backend.address)
                .ok_or(NoWay::NotYet)
                .and_then(|hop| hop.as_ref().map_err(|error| NoWay::Unresolved(error.clone())))
                .and_then(|hop| {
                    if let Some(error) = around.unheard.get(&hop.interface) {
                        let (backend, error) = (backend.name.clone(), error.clone());
                        return Err(NoWay::Unheard { backend, error });
                    }
                    let source = source(service.vip.ip(), hop, around, &vips)?;
                    let backend = index(&identity).filter(|index| *index != 0);
                    Ok(Way { backend: backend.ok_or(NoWay::NotYet)?, source })
                });
            if let Ok(Way { source, .. }) = way {
                all.sources.insert(source);
            }
            all.ways.insert(identity, way);
        }
    }
    all
}

/// The address that a backend behind `hop` can answer to, as it answers clients: of the VIP's
/// family. The kernel's own choice, if it has one; else the first of that interface, or of one
/// where clients' frames arrive. A VIP is none: other balancers may have it too.
fn source(
    vip: IpAddr,
    hop: &NextHop,
    around: &Surroundings<'_>,
    vips: &BTreeSet<IpAddr>,
) -> Result<IpAddr, NoWay> {
    let fits = |address: &&IpAddr| address.is_ipv4() == vip.is_ipv4() && !vips.contains(address);
    let on = |interface: &u32| around.own.get(interface).into_iter().flatten();
    let interfaces = [hop.interface];
    std::iter::once(&hop.source)
        .chain(interfaces.iter().chain(around.dataplane).flat_map(on))
        .find(fits)
        .copied()
        .ok_or_else(|| NoWay::NoSource {
            family: if vip.is_ipv4() { "IPv4" } else { "IPv6" },
            vip,
            interface: hop.interface_name.clone(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a literal address")
    }

    fn hop(interface: u32, source: &str) -> NextHop {
        NextHop {
            interface,
            interface_name: format!("eth{interface}").into(),
            source_mac: [2; 6],
            destination_mac: [4; 6],
            mtu: 1500,
            source: ip(source),
            gateway: None,
            is_given: false,
        }
    }

    /// The way of the one backend (10.0.0.11) of a service with this VIP.
    fn way(vip: &str, hop: Result<NextHop, Unresolved>, own: &[(u32, &str)]) -> Result<Way, NoWay> {
        let mut service = sample::service("web", 1);
        service.vip = vip.parse().expect("a literal VIP");
        let mut addresses = OwnAddresses::new();
        for (interface, address) in own {
            addresses.entry(*interface).or_default().push(ip(address));
        }
        let around = Surroundings {
            next_hops: &BTreeMap::from([(ip("10.0.0.11"), hop)]),
            own: &addresses,
            dataplane: &[8],
            unheard: &BTreeMap::from([(9, "eth9 runs another XDP program (id 5)".to_owned())]),
        };
        let ways = ways([&service].into_iter(), &around, |_| Some(3));
        let way = ways.ways.into_values().next().expect("the backend's");
        assert_eq!(ways.sources, way.iter().map(|way| way.source).collect());
        way
    }

    #[test]
    fn the_source_is_an_address_that_the_backend_can_answer_to() {
        let (v4, v6) = ("203.0.113.10:80", "[2001:db8:f00d::10]:80");
        let cases = [
            ("the kernel's choice", v4, "10.0.0.1", &[][..], Some("10.0.0.1")),
            (
                "a tunnel's other family: of that interface",
                v6,
                "10.0.0.1",
                &[(8, "2001:db8:8::1"), (7, "10.0.0.1"), (7, "2001:db8:7::1")],
                Some("2001:db8:7::1"),
            ),
            (
                "or of a data-plane interface",
                v6,
                "10.0.0.1",
                &[(6, "2001:db8:6::1"), (8, "2001:db8:8::1")],
                Some("2001:db8:8::1"),
            ),
            ("not of any other", v6, "10.0.0.1", &[(6, "2001:db8:6::1")], None),
            (
                "never a VIP",
                v4,
                "203.0.113.10",
                &[(7, "203.0.113.10"), (7, "10.0.0.2")],
                Some("10.0.0.2"),
            ),
        ];
        for (case, vip, source, own, expected) in cases {
            let found = way(vip, Ok(hop(7, source)), own);
            assert_eq!(found.ok().map(|way| way.source), expected.map(ip), "{case}");
        }
    }

    #[test]
    fn who_can_not_be_probed_is_told_why() {
        let gone = Unresolved::NoRoute { address: ip("10.0.0.11") };
        let vip = "[2001:db8:f00d::10]:80";
        let cases = [
            (
                Err(gone.clone()),
                "no route to 10.0.0.11: add one with `ip route`, or bring its interface up",
            ),
            (
                Ok(hop(7, "10.0.0.1")),
                "this host has no IPv6 address of its own to send probes to 2001:db8:f00d::10 \
                 from: add one to eth7, or check the backend's own address (`via = \"backend\"`)",
            ),
            (
                Ok(hop(9, "10.0.0.1")),
                "answers from web-1 can't be seen: eth9 runs another XDP program (id 5)",
            ),
        ];
        for (hop, expected) in cases {
            assert_eq!(way(vip, hop, &[]).expect_err("no way").to_string(), expected);
        }
    }
}
