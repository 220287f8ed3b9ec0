//! What the operator wants, once checked: the words every other room speaks.
//!
//! Nothing here does anything; the `config` room makes these values, and whoever holds one
//! need not ask again whether it is valid.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{abi::ServiceKey, address::Address, forward::Forwarding, service::Affinity};

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
    /// Put each VIP on the loopback interface, so that the kernel answers ARP, ND and ping.
    pub own_vips: bool,
    /// Prefixes from which outer source addresses of tunnels are taken, hashed by flow; at
    /// most one per family. Without one: the egress interface's own address.
    pub tunnel_sources: Vec<ipnet::IpNet>,
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
    pub vip: SocketAddr,
    /// How frames reach the backends.
    pub forwarding: Forwarding,
    /// What of a flow chooses its backend.
    pub affinity: Affinity,
    /// Slots of the Maglev table; a prime.
    pub slots: u32,
    /// How long a drain waits for flows to end.
    pub drain_deadline: Duration,
    /// How backends are checked.
    pub health: HealthCheck,
    /// Sorted by name; names and (address, port) are unique within the service.
    pub backends: Vec<Backend>,
}

/// One server of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Unique within the service.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
    /// The VIP's port; with `nat` another is possible.
    pub port: u16,
    /// Share of new flows, relative to the others': 0 to 1,000.
    pub weight: u16,
}

/// How a service's backends are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    /// What is asked.
    pub kind: CheckKind,
    /// Time between two probes of one backend.
    pub interval: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// Consecutive successes that make a backend healthy.
    pub rise: u32,
    /// Consecutive failures that make it unhealthy or unreachable.
    pub fall: u32,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    /// Nothing: the backend is taken for healthy.
    None,
    /// A TCP connection.
    Tcp,
    /// An HTTP GET of this path, which must answer 200 to 399.
    Http {
        /// Path and query.
        path: String,
    },
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: CheckKind::Tcp,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        }
    }
}

impl Service {
    /// Its identity in the kernel's maps.
    pub fn key(&self) -> ServiceKey {
        ServiceKey {
            address: Address::from(self.vip.ip()),
            port: self.vip.port().to_be_bytes(),
            protocol: lb_common::wire::TCP,
            reserved: [0; 5],
        }
    }
}
