//! A sample instance with services of every kind, and clients' frames field by field.
//!
//! Each service has three backends. All live on one Ethernet: the clients' frames come from a
//! router, and what is forwarded goes to a backend's MAC.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::{vec, vec::Vec};

use super::{HostTables, Random};
use crate::{
    abi::{Backend, Egress, KEEP_CLIENT, NextHop, Service, ServiceKey},
    address::Address,
    forward::Forwarding,
    maglev::{self, Member, Progress},
    parse::Family,
    service::{self, ANY_PORT, Affinity, BackendState, filter_position},
    wire,
};
pub use frames::{ClientFrame, internet_checksum, tcp_checksum, too_big};

mod frames;

/// Slots of each sample service: prime.
pub const SLOTS: u32 = 251;
/// Backends of each sample service.
pub const BACKENDS: u16 = 3;
/// Interface where the clients' frames arrive.
pub const INTERFACE: u32 = 1;
/// Interface behind which the backends of [`Purpose::Elsewhere`] are.
pub const OTHER_INTERFACE: u32 = 2;
/// The balancer's MAC on [`INTERFACE`].
pub const BALANCER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The balancer's MAC on [`OTHER_INTERFACE`].
pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The router's MAC, from which clients' frames come.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// The balancer's address: outer source of IPv4 tunnels.
pub const BALANCER_V4: [u8; 4] = [198, 18, 0, 1];
/// The balancer's address: outer source of IPv6 tunnels.
pub const BALANCER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// The host's end of the prober's veth pair.
pub const PROBE_INTERFACE: u32 = 3;
/// MTU of the backends' routes.
pub const MTU: u16 = 1500;
/// What the MSS is lowered to of clients of the services with affinity.
pub const CLAMP: u16 = 1200;

/// Both IP versions.
pub const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// What a sample service is there to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// New MAC addresses.
    L2,
    /// A tunnel over IPv4.
    InIpv4,
    /// A tunnel over IPv6.
    InIpv6,
    /// A tunnel over IPv4 whose outer source is spread over 198.19.0.0/16.
    SpreadIpv4,
    /// A tunnel over IPv6 whose outer source is spread over 2001:db8:2::/96.
    SpreadIpv6,
    /// Clients stay with one backend.
    SourceIp,
    /// The backends are behind another interface.
    Elsewhere,
    /// The backends' neighbours are not resolved.
    Unresolved,
    /// No backend takes new flows.
    Empty,
    /// Translated; the backends see an address of ours, and have a port of their own.
    Nat,
    /// The same, with two addresses of the service's own.
    NatAddresses,
    /// Translated; the backends see their clients' addresses.
    NatKeep,
    /// Of any port of its address, but for the one of [`Self::BesideAny`].
    AnyPort,
    /// One port of the address of [`Self::AnyPort`].
    BesideAny,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::L2,
        Self::InIpv4,
        Self::InIpv6,
        Self::SpreadIpv4,
        Self::SpreadIpv6,
        Self::SourceIp,
        Self::Elsewhere,
        Self::Unresolved,
        Self::Empty,
        Self::Nat,
        Self::NatAddresses,
        Self::NatKeep,
        Self::AnyPort,
        Self::BesideAny,
    ];

    /// What is translated.
    pub const NAT: [Self; 3] = [Self::Nat, Self::NatAddresses, Self::NatKeep];

    const fn forwarding(self) -> Forwarding {
        match self {
            Self::InIpv4 | Self::InIpv6 | Self::SpreadIpv4 | Self::SpreadIpv6 => Forwarding::Ipip,
            Self::Nat | Self::NatAddresses | Self::NatKeep => Forwarding::Nat,
            Self::L2
            | Self::SourceIp
            | Self::Elsewhere
            | Self::Unresolved
            | Self::Empty
            | Self::AnyPort
            | Self::BesideAny => Forwarding::L2,
        }
    }

    /// The backends' port; 0: the one that the client has asked for.
    pub const fn port(self) -> u16 {
        match (self, self.forwarding()) {
            (_, Forwarding::Nat) => 8080,
            (Self::AnyPort, _) => 0,
            (Self::BesideAny, _) => 443,
            (_, Forwarding::L2 | Forwarding::Ipip) => 80,
        }
    }

    /// Family of the backends' addresses.
    const fn backends(self, vip: Family) -> Family {
        match self {
            Self::InIpv4 | Self::SpreadIpv4 => Family::Ipv4,
            Self::InIpv6 | Self::SpreadIpv6 => Family::Ipv6,
            Self::L2
            | Self::SourceIp
            | Self::Elsewhere
            | Self::Unresolved
            | Self::Empty
            | Self::Nat
            | Self::NatAddresses
            | Self::NatKeep
            | Self::AnyPort
            | Self::BesideAny => vip,
        }
    }

    /// Index of the [`Egress`].
    const fn egress(self, vip: Family) -> u16 {
        match self {
            Self::Elsewhere | Self::NatAddresses => 2,
            Self::SpreadIpv4 | Self::SpreadIpv6 => 3,
            Self::Nat => 4 + vip as u16,
            Self::Unresolved => 0,
            Self::L2
            | Self::InIpv4
            | Self::InIpv6
            | Self::SourceIp
            | Self::Empty
            | Self::NatKeep
            | Self::AnyPort
            | Self::BesideAny => 1,
        }
    }
}

/// A VIP: 203.0.113.10 for L2, .20 and so on for the others; 2001:db8:f00d::10 and so on. Of
/// any port one of those that it has.
pub const fn vip(purpose: Purpose, family: Family) -> SocketAddr {
    let (place, port) = match purpose {
        Purpose::BesideAny => (Purpose::AnyPort, 443),
        _ => (purpose, 80),
    };
    let number = (place as u8 + 1) * 10;
    let address = match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, number)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(
            0x2001,
            0xdb8,
            0xf00d,
            0,
            0,
            0,
            0,
            // So that the decimal number can be read in it.
            (number / 10 * 16) as u16,
        )),
    };
    SocketAddr::new(address, port)
}

/// An IPv4 address that is none of ours, but shares the bit of a VIP in the filter.
pub fn behind_the_filter(purpose: Purpose) -> Ipv4Addr {
    let position = |address: IpAddr| filter_position(address.into());
    let wanted = position(vip(purpose, Family::Ipv4).ip());
    // One in 65,536 does.
    (0x0a00_0000..)
        .map(Ipv4Addr::from)
        .find(|ip| position(IpAddr::V4(*ip)) == wanted)
        .unwrap_or(Ipv4Addr::UNSPECIFIED)
}

/// A client with this number and port, 198.51.0.0 and 2001:db8:c:: onwards.
pub const fn client(family: Family, number: u16, port: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    let address = match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(198, 51, high, low)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, number)),
    };
    SocketAddr::new(address, port)
}

/// Index of a service.
pub const fn service(purpose: Purpose, family: Family) -> u16 {
    purpose as u16 * 2 + family as u16
}

/// Index of a service's backend; `number` is below [`BACKENDS`].
pub const fn backend(purpose: Purpose, family: Family, number: u16) -> u16 {
    1 + service(purpose, family) * BACKENDS + number
}

/// The MAC of a backend by index.
pub const fn mac(backend: u16) -> [u8; 6] {
    let [high, low] = backend.to_be_bytes();
    [2, 0, 0, 1, high, low]
}

/// The address of a backend by index.
pub const fn backend_address(backend: u16, family: Family) -> IpAddr {
    let [high, low] = backend.to_be_bytes();
    match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(198, 18, 1 + high, low)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, backend)),
    }
}

/// The source port of a backend's probe.
pub const fn probe_port(backend: u16) -> u16 {
    50_000 + backend
}

/// First and number of the source ports of translated packets.
pub const NAT_PORTS: (u16, u16) = (1024, 31_744);

/// An address of [`Purpose::NatAddresses`], 0 or 1.
pub const fn nat_address(number: u8, family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(198, 18, 0, 101 + number)),
        Family::Ipv6 => {
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x101 + number as u16))
        }
    }
}

/// Where a backend's probe comes from.
pub fn prober(backend: u16, family: Family) -> SocketAddr {
    let address = match family {
        Family::Ipv4 => IpAddr::from(BALANCER_V4),
        Family::Ipv6 => IpAddr::V6(BALANCER_V6),
    };
    SocketAddr::new(address, probe_port(backend))
}

/// The key of a service.
pub fn key(vip: SocketAddr) -> ServiceKey {
    ServiceKey {
        address: vip.ip().into(),
        port: vip.port().to_be_bytes(),
        protocol: wire::TCP,
        reserved: [0; 5],
    }
}

/// The key of a sample service.
pub fn service_key(purpose: Purpose, family: Family) -> ServiceKey {
    match purpose {
        Purpose::AnyPort => service::key_of(vip(purpose, family).ip().into(), ANY_PORT),
        _ => key(vip(purpose, family)),
    }
}

/// The sample instance, with so many words in its flow table.
pub fn tables(flows: usize) -> HostTables {
    let mut tables = HostTables::new(flows);
    let egress = Egress {
        source_v6: Address::v6(BALANCER_V6.octets()),
        source_v4: BALANCER_V4,
        ifindex: INTERFACE,
        source_mac: BALANCER_MAC,
        ..Egress::default()
    };
    tables.add_egress(egress);
    tables.add_egress(Egress { ifindex: OTHER_INTERFACE, source_mac: OTHER_MAC, ..egress });
    tables.add_egress(Egress {
        source_v6: Address::v6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0).octets()),
        source_v4: [198, 19, 0, 0],
        spread_v4: [0, 0, 255, 255],
        spread_v6: [255; 4],
        ..egress
    });
    tables.settings.nat_port_first = NAT_PORTS.0;
    tables.settings.nat_port_count = NAT_PORTS.1;
    for family in FAMILIES {
        let nat_address = tables.add_nat_address(prober(0, family).ip().into());
        tables.add_egress(Egress { nat_address, ..egress });
    }
    for family in FAMILIES {
        for number in 0..2 {
            tables.add_nat_address(nat_address(number, family).into());
        }
    }
    for purpose in Purpose::ALL {
        for family in FAMILIES {
            add_service(&mut tables, purpose, family);
        }
    }
    tables.silent.extend(FAMILIES.map(|family| Address::from(vip(Purpose::Empty, family).ip())));
    tables.settings.probe_interface = PROBE_INTERFACE;
    for family in FAMILIES {
        tables.add_probe_source(prober(0, family).ip().into());
    }
    tables.probes = (1..tables.backends.len() as u16).map(|i| (probe_port(i), i)).collect();
    tables
}

fn add_service(tables: &mut HostTables, purpose: Purpose, family: Family) {
    let mut members = Vec::new();
    for number in 0..BACKENDS {
        let index = backend(purpose, family, number);
        let egress = purpose.egress(family);
        let next_hop =
            if egress == 0 { NextHop::UNRESOLVED } else { NextHop::new(mac(index), egress) };
        let added = tables.add_backend(Backend {
            address: backend_address(index, purpose.backends(family)).into(),
            next_hop,
            service: service(purpose, family),
            mtu: MTU,
            port: purpose.port().to_be_bytes(),
            state: BackendState::Forward as u8,
            forwarding: purpose.forwarding() as u8,
        });
        assert_eq!(added, index, "the backends are added in the order of their indices");
        members.push(Member {
            backend: index,
            weight: u16::from(purpose != Purpose::Empty),
            hashes: Random(u64::from(index)).array(),
        });
    }
    let mut slots = vec![0; SLOTS as usize];
    maglev::fill(&members, &mut slots, &mut [Progress::default(); BACKENDS as usize]);
    let affinity = if purpose == Purpose::SourceIp { Affinity::SourceIp } else { Affinity::None };
    let service = Service {
        slots: SLOTS,
        affinity: affinity as u8,
        nat_count: 2 * u8::from(purpose == Purpose::NatAddresses),
        nat_first: match purpose {
            Purpose::NatKeep => KEEP_CLIENT,
            Purpose::NatAddresses => 3 + 2 * family as u16,
            _ => 0,
        },
        mss_clamp: if purpose == Purpose::SourceIp { CLAMP } else { 0 },
        ..Service::of(&service_key(purpose, family))
    };
    tables.add_service(service, slots);
    if purpose.forwarding() != Forwarding::Nat {
        return;
    }
    for number in 0..BACKENDS {
        let address = backend_address(backend(purpose, family, number), family);
        if purpose == Purpose::NatKeep {
            tables.add_return_source(address.into());
        } else {
            tables.nat_ends.push(key(SocketAddr::new(address, purpose.port())));
        }
    }
}
