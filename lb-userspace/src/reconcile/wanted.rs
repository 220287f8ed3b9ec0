//! What the maps should hold, before anything is given an index.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::{
    abi::{Egress, ServiceKey},
    address::Address,
    forward::Forwarding,
    service::{Affinity, BackendState},
};

use crate::{
    choice::choose,
    health::{Standing, Standings},
    model::{self, ClientAddress, Desired, IcmpEcho},
    network::{NextHop, Unresolved},
    seed::Seed,
};

/// A service as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedService {
    /// Its identity.
    pub key: ServiceKey,
    /// Slots of its Maglev table.
    pub slots: u32,
    /// What of a flow chooses its backend.
    pub affinity: Affinity,
    /// How frames reach its backends.
    pub forwarding: Forwarding,
    /// What its clients' MSS is lowered to, bytes; 0: it stays.
    pub mss_clamp: u16,
    /// When pings of its address are answered.
    pub icmp_echo: IcmpEcho,
    /// What its backends see for their clients, where frames are translated.
    pub client_address: ClientAddress,
    /// Whether new flows may come in at all.
    pub listed: bool,
    /// In the order of their names.
    pub backends: Vec<WantedBackend>,
}

/// A backend as it should be. Its identity is its service, address and port: a new name for
/// the same server moves no flow of its own, though it may move slots.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedBackend {
    /// Where it is.
    pub address: Address,
    /// Its port, network order.
    pub port: [u8; 2],
    /// Its share of new flows; 0: it takes none.
    pub weight: u16,
    /// What becomes of the flows it has.
    pub state: BackendState,
    /// Of its name.
    pub hashes: [u64; 2],
    /// How to reach it; `None`: nobody knows, and what was known before stays in use.
    pub next_hop: Option<Resolved>,
}

/// A resolved next hop in the terms of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// To which MAC.
    pub mac: [u8; 6],
    /// Largest IP packet on the way, bytes.
    pub mtu: u16,
    /// Out of where, and from whom.
    pub egress: Egress,
    /// The address that this host sends from to there.
    pub source: IpAddr,
}

/// What the maps should hold, given what the operator wants, where the backends are, and what is
/// made of them. `client_mtu` is the smallest of the interfaces where clients' packets arrive, in
/// bytes of IP packet: what is translated passes there, too.
pub fn wanted(
    desired: &Desired,
    next_hops: &BTreeMap<IpAddr, Result<NextHop, Unresolved>>,
    standings: &Standings,
    seed: &Seed,
    client_mtu: Option<u16>,
) -> Vec<WantedService> {
    let sources = &desired.dataplane.tunnel_sources;
    let one = |service: &model::Service, backend: &model::Backend, takes_new_flows: bool| {
        let standing = standings.of(service, backend);
        let weight = standing.map_or(backend.weight, |standing| standing.weight);
        WantedBackend {
            address: Address::from(backend.address),
            port: backend.port.to_be_bytes(),
            weight: if takes_new_flows { weight } else { 0 },
            state: state(backend, standing, takes_new_flows),
            hashes: seed.name_hashes(&backend.name),
            next_hop: next_hops.get(&backend.address).and_then(|hop| hop.as_ref().ok()).map(
                |hop| {
                    let way = resolved(hop, sources);
                    let both = match service.forwarding {
                        Forwarding::Nat => client_mtu.unwrap_or(way.mtu).min(way.mtu),
                        Forwarding::L2 | Forwarding::Ipip => way.mtu,
                    };
                    Resolved { mtu: both, ..way }
                },
            ),
        }
    };
    desired
        .services
        .iter()
        .map(|service| WantedService {
            key: service.key(),
            slots: service.slots,
            affinity: service.affinity,
            forwarding: service.forwarding,
            mss_clamp: service.mss_clamp.unwrap_or(0),
            icmp_echo: service.icmp_echo,
            client_address: service.client_address.clone(),
            listed: !service.leaving,
            backends: service
                .backends
                .iter()
                .zip(choose(service, |backend| standings.condition(service, backend)).takes)
                .map(|(backend, takes)| one(service, backend, takes))
                .collect(),
        })
        .collect()
}

/// The VIPs whose pings go unanswered: of the services there that want it so, none has a backend that
/// takes flows.
pub(super) fn silent(wanted: &[WantedService]) -> BTreeSet<IpAddr> {
    let asking = || wanted.iter().filter(|service| service.icmp_echo == IcmpEcho::Healthy);
    let takes_flows = |service: &&WantedService| {
        service.listed && service.backends.iter().any(|backend| backend.weight > 0)
    };
    let address = |service: &WantedService| IpAddr::from(service.key.address);
    let speaking: BTreeSet<IpAddr> = asking().filter(takes_flows).map(address).collect();
    asking().map(address).filter(|vip| !speaking.contains(vip)).collect()
}

/// What becomes of a backend's flows: what the operator says, else what is seen.
fn state(
    backend: &model::Backend,
    standing: Option<&Standing>,
    takes_new_flows: bool,
) -> BackendState {
    match (backend.admin.backend_state(), standing.map(|standing| standing.flows)) {
        // As the last resort it gets new flows: then the others may go on trying, too.
        (BackendState::Forward, Some(BackendState::Reset)) if takes_new_flows => {
            BackendState::Forward
        }
        (BackendState::Forward, Some(seen)) => seen,
        (said, _) => said,
    }
}

fn resolved(hop: &NextHop, tunnel_sources: &[IpNet]) -> Resolved {
    let mut egress =
        Egress { ifindex: hop.interface, source_mac: hop.source_mac, ..Egress::default() };
    let own = IpNet::from(hop.source);
    for source in [&own].into_iter().chain(tunnel_sources) {
        match (source, hop.source) {
            (IpNet::V4(net), IpAddr::V4(_)) => {
                egress.source_v4 = net.network().octets();
                egress.spread_v4 = net.hostmask().octets();
            }
            (IpNet::V6(net), IpAddr::V6(_)) => {
                egress.source_v6 = Address::v6(net.network().octets());
                let [.., a, b, c, d] = net.hostmask().octets();
                egress.spread_v6 = [a, b, c, d];
            }
            _ => {}
        }
    }
    Resolved { mac: hop.destination_mac, mtu: hop.mtu, egress, source: hop.source }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn hop(source: IpAddr) -> NextHop {
        NextHop {
            interface: 7,
            interface_name: "eth0".into(),
            source_mac: [2; 6],
            destination_mac: [4; 6],
            mtu: 1500,
            source,
            gateway: None,
            is_given: false,
        }
    }

    #[test]
    fn a_tunnel_comes_from_our_address_or_from_the_prefix_of_its_family() {
        let v4 = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));
        let plain = resolved(&hop(v4), &[]).egress;
        assert_eq!((plain.source_v4, plain.spread_v4), ([198, 18, 0, 1], [0; 4]));

        let sources: Vec<IpNet> =
            ["198.19.0.0/16", "2001:db8:1::/96"].map(|net| net.parse().expect("a prefix")).into();
        let spread = resolved(&hop(v4), &sources).egress;
        assert_eq!((spread.source_v4, spread.spread_v4), ([198, 19, 0, 0], [0, 0, 255, 255]));

        let v6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
        let spread = resolved(&hop(v6), &sources).egress;
        assert_eq!(spread.spread_v6, [255; 4]);
        assert_eq!(spread.source_v4, [0; 4]);
    }
}
