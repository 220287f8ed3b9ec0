//! What the operator wants, once checked: the words every other room speaks.
//!
//! Nothing here does anything; the `config` room makes these values, and whoever holds one
//! need not ask again whether it is valid.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{abi::ServiceKey, forward::Forwarding, service::Affinity};

pub use self::check::{
    BODY_BYTES, CheckKind, GrpcCheck, HealthCheck, HttpCheck, Method, StatusRange, TlsCheck, Via,
};
pub use self::{
    nat::{ClientAddress, MAX_NAT_ADDRESSES, PortClash, PortRange},
    vip::{NoVip, Vip},
};
use crate::drain::Admin;

mod check;
mod nat;
mod vip;

/// Everything one instance is asked to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The `[dataplane]` table.
    pub dataplane: Dataplane,
    /// Where `/metrics`, `/livez` and `/readyz` are served; `None`: nowhere.
    pub http: Option<SocketAddr>,
    /// Services, sorted by name; names and VIPs are unique.
    pub services: Vec<Service>,
}

/// How the instance attaches and sizes itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataplane {
    /// Interfaces where clients' frames arrive; at least one, unique.
    pub interfaces: Vec<String>,
    /// Which XDP hook to use.
    pub xdp_mode: XdpMode,
    /// Entries of the flow table: a power of two, 1,024 to 2^28.
    pub flow_capacity: u32,
    /// Shared between balancers of one VIP, so that both choose the same backend.
    pub hash_seed: Option<String>,
    /// Put each VIP and each named NAT address on the loopback interface, so that the kernel
    /// answers ARP, ND and ping.
    pub own_vips: bool,
    /// Prefixes from which outer source addresses of tunnels are taken, hashed by flow; at
    /// most one per family. Without one: the egress interface's own address.
    pub tunnel_sources: Vec<ipnet::IpNet>,
    /// Source ports that are NAT's alone, within [`PortRange::USABLE`].
    pub nat_ports: PortRange,
    /// The longest time-out of any service, state by state: what the flow table's clock is made
    /// for when the instance is created.
    pub longest_idle: IdleTimeouts,
}

/// Which XDP hook to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// The driver's, else the generic one, with a warning.
    #[default]
    Auto,
    /// The driver's or none.
    Native,
    /// The network stack's: works on every interface, slower.
    Generic,
}

/// A VIP and those who serve it.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique in the instance.
    pub name: String,
    /// Address and port clients connect to; unique in the instance.
    pub vip: Vip,
    /// How frames reach the backends.
    pub forwarding: Forwarding,
    /// What its backends see as their client's address; the default where it is not NAT.
    pub client_address: ClientAddress,
    /// What of a flow chooses its backend.
    pub affinity: Affinity,
    /// When pings of its address are answered.
    pub icmp_echo: IcmpEcho,
    /// What the MSS that its clients announce is lowered to, bytes; `None`: it stays.
    pub mss_clamp: Option<u16>,
    /// Slots of the Maglev table; a prime.
    pub slots: u32,
    /// How long a drain waits for flows to end.
    pub drain_deadline: Duration,
    /// How backends are checked; `None`: they are taken for healthy.
    pub health: Option<HealthCheck>,
    /// A change that would leave fewer backends than this to new flows is refused.
    pub min_available: u16,
    /// If no backend is healthy: whether all that are enabled get new flows, or none.
    pub fail_open: bool,
    /// Whether flows of an unreachable backend are reset on their next packet.
    pub reset_unreachable: bool,
    /// When a larger share of the backends than this fails within one check interval, the fault
    /// is taken to be the balancer's own and the last good set is kept: 0 to 1; 1: never.
    pub panic_threshold: f64,
    /// How long a backend that has become healthy or enabled takes to reach its full weight;
    /// zero: at once.
    pub slow_start: Duration,
    /// What becomes of a backend whose traffic goes worse than its pool's.
    pub outlier: Outlier,
    /// Silence after which its flows are forgotten.
    pub idle: IdleTimeouts,
    /// Sorted by name; names and (address, port) are unique within the service, but for those
    /// that are leaving, which stand behind the others.
    pub backends: Vec<Backend>,
    /// Taken away by the operator: no new flows; it goes with its last backend.
    pub leaving: bool,
}

/// When the kernel is let answer pings of a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IcmpEcho {
    /// Whenever this host owns the address.
    #[default]
    Always,
    /// While a service of the address that says so has a backend that takes flows.
    Healthy,
}

impl IcmpEcho {
    /// As the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Healthy => "healthy",
        }
    }
}

/// One server of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Unique within the service.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
    /// The VIP's port; with `nat` another is possible. 0: the VIP's is any, and this one is
    /// whichever the client has asked for.
    pub port: u16,
    /// Share of new flows, relative to the others': 0 to 1,000.
    pub weight: u16,
    /// Whether it gets new flows only when no other can.
    pub backup: bool,
    /// What the operator has said of it, at run time.
    pub admin: Admin,
    /// Taken away by the operator: it goes when its flows have ended.
    pub leaving: bool,
}

/// Silence after which a flow is forgotten. Its packets then go by slot: to the same backend
/// as long as the backends stay the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleTimeouts {
    /// Only SYNs were seen. A client sends its SYN again after up to 32 s, and gives up after
    /// a minute or two.
    pub embryonic: Duration,
    /// More than a SYN was seen. As LVS: long enough for most keep-alives, short enough for
    /// the table.
    pub established: Duration,
    /// The client has sent its FIN. Half-closed, yet the server may be sending: the client's
    /// ACKs keep the flow.
    pub closing: Duration,
}

impl Default for IdleTimeouts {
    fn default() -> Self {
        Self {
            embryonic: Duration::from_secs(60),
            established: Duration::from_secs(15 * 60),
            closing: Duration::from_secs(8),
        }
    }
}

impl IdleTimeouts {
    /// Those of a service that names none. Where frames are translated, a flow that is forgotten is
    /// a connection that breaks: a half-closed one may then be silent for longer.
    pub fn of(forwarding: Forwarding) -> Self {
        let default = Self::default();
        match forwarding {
            Forwarding::Nat => Self { closing: Duration::from_secs(60), ..default },
            Forwarding::L2 | Forwarding::Ipip => default,
        }
    }

    /// The longer of both, state by state.
    pub fn max(self, other: Self) -> Self {
        Self {
            embryonic: self.embryonic.max(other.embryonic),
            established: self.established.max(other.established),
            closing: self.closing.max(other.closing),
        }
    }
}

/// What becomes of a backend that completes far fewer handshakes than its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Outlier {
    /// Nothing; it is not looked for.
    Off,
    /// It is told in status, events and metrics.
    #[default]
    Report,
    /// It gets no new flows for a while, too.
    Eject,
}

impl Outlier {
    /// What is possible where clients are bound to backends: a report at most.
    #[must_use]
    pub const fn with_affinity(self, affinity: Affinity) -> Self {
        match (self, affinity) {
            (Self::Eject, Affinity::SourceIp) => Self::Report,
            (mode, Affinity::None | Affinity::SourceIp) => mode,
        }
    }

    /// As the configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Report => "report",
            Self::Eject => "eject",
        }
    }
}

impl Desired {
    /// The service of this name that is not leaving.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name && !service.leaving)
    }

    /// The first service of any port of an address that is this host's own.
    pub fn host_clash(&self, host: &HostAddresses) -> Option<HostClash> {
        let mut any = self.services.iter().filter(|service| service.vip.port().is_none());
        any.find_map(|service| {
            let (service, address) = (&service.name, service.vip.ip());
            let interface = host.get(&address)?.clone();
            Some(HostClash { service: service.clone(), address, interface })
        })
    }

    /// The addresses that this host shall own: every VIP and every NAT address that is named,
    /// those of services that are leaving too. None if the operator sees to that.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let services = self.services.iter().filter(|_| self.dataplane.own_vips);
        services
            .flat_map(|service| {
                let named = service.client_address.named().iter().copied();
                named.chain([service.vip.ip()])
            })
            .collect()
    }
}

/// A host's own addresses, and the name of an interface that has each.
pub type HostAddresses = BTreeMap<IpAddr, String>;

/// A VIP of any port where the host itself is reached.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "service {service:?} would have every port of {address}, which is this host's own address on \
     {interface}: SSH and all else to it would go to the backends; take an address that no \
     interface has but `lo`"
)]
pub struct HostClash {
    service: String,
    address: IpAddr,
    interface: String,
}

/// A backend's identity in the kernel's maps: whose it is, its address and port.
pub type Identity = (Vip, SocketAddr);

/// A backend's address as people read it: with its port, where it has one.
pub fn place(own: SocketAddr) -> String {
    if own.port() == 0 { own.ip().to_string() } else { own.to_string() }
}

impl Service {
    /// The backend of this name that is not leaving.
    pub fn backend(&self, name: &str) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.name == name && !backend.leaving)
    }

    /// What makes a backend of this service the same one, whatever it is called.
    pub fn identity(&self, backend: &Backend) -> Identity {
        (self.vip, SocketAddr::new(backend.address, backend.port))
    }

    /// The VIP and the backend's own address, each with the port that is asked where one has to be
    /// chosen: of a VIP of any port the check's; 0 if it has none.
    pub fn asked(&self, backend: &Backend) -> (SocketAddr, SocketAddr) {
        let checked = self.health.as_ref().and_then(|check| check.port).unwrap_or(0);
        let own = if self.vip.port().is_some() { backend.port } else { checked };
        (self.vip.at(checked), SocketAddr::new(backend.address, own))
    }

    /// Its identity in the kernel's maps.
    pub fn key(&self) -> ServiceKey {
        self.vip.key()
    }
}

/// Services for tests.
#[cfg(test)]
pub(crate) mod sample {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    /// A service with backends NAME-1 to NAME-N.
    pub fn service(name: &str, backends: u8) -> Service {
        Service {
            name: name.to_owned(),
            vip: "203.0.113.10:80".parse().expect("a VIP"),
            forwarding: Forwarding::L2,
            client_address: ClientAddress::default(),
            affinity: Affinity::None,
            icmp_echo: IcmpEcho::Always,
            mss_clamp: None,
            slots: 251,
            drain_deadline: Duration::from_secs(300),
            health: None,
            min_available: 1,
            fail_open: true,
            reset_unreachable: true,
            panic_threshold: 0.5,
            slow_start: Duration::ZERO,
            outlier: Outlier::Report,
            idle: IdleTimeouts::default(),
            backends: (1..=backends).map(|number| backend(name, number)).collect(),
            leaving: false,
        }
    }

    fn backend(service: &str, number: u8) -> Backend {
        Backend {
            name: format!("{service}-{number}"),
            address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10 + number)),
            port: 80,
            weight: 100,
            backup: false,
            admin: Admin::Enabled,
            leaving: false,
        }
    }
}
