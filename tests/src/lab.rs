//! A laboratory of network namespaces: clients, a balancer and backends on one bridge, all on
//! one machine, with real programs in them.
//!
//! ```text
//!   client ──┐                 ┌── web-1
//!            ├──[ switch/br0 ]─┼── web-2        front: 198.18.1.0/24, 2001:db8:1::/64
//! balancer ──┘                 └── web-3
//!     │            ┌── web-1 …
//!     └─[ switch/br1 ]─── router                back:  198.18.2.0/24, 2001:db8:2::/64
//! ```
//!
//! The second row exists only with [`Plan::second_network`]: the backends are there alone, and
//! a router takes their answers to the clients. With [`Plan::second_balancer`] a gateway stands
//! between the clients and two balancers, which [`Lab::route_vips`] spreads the flows over. With [`Plan::vlan`] a trunk sits between the
//! switch and the balancer that tags the VIPs' frames.
//!
//! Everything a laboratory makes goes when its last handle is dropped, also on a panic; what a
//! killed process left, the next laboratory removes (`lab/leftovers.rs`).
//!
//! Three traps of veth it knows about: `XDP_TX` and a redirect need an XDP program on the veth's
//! other end ([`Host`]'s switch ports have one where a balancer hangs); offloads make frames no
//! card would ever deliver, so they are off; `ip netns exec` hides bpffs, so programs enter the
//! network namespace alone.

mod agent;
mod beyond;
mod browser;
pub mod builds;
mod cards;
mod client;
mod conversation;
mod faults;
mod health;
mod host;
mod kernel;
mod leftovers;
mod load;
mod namespace;
mod needs;
mod nginx;
mod numbers;
mod process;
mod prometheus;
mod raw;
mod sluice;
mod ssh;
mod stream;
mod terminal;
mod trunk;
mod wait;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

pub use self::{
    agent::Agent,
    browser::{Seen, View},
    client::{Answer, Failure, fetch},
    conversation::{Conversations, EchoServer, Report},
    health::HealthServer,
    host::{Host, Interface},
    kernel::{Attached, Program, REFLECT_UDP},
    load::{FailedRequest, Load, LoadPlan, Tally, Target},
    namespace::Namespace,
    needs::{is_privileged, is_root},
    nginx::Nginx,
    numbers::{Arrived, Numbers},
    process::{Process, Stopped},
    prometheus::{Prometheus, promtool},
    raw::{RawSocket, Received},
    sluice::{Sluice, dataplane, on_port, service, service_with, sluice_binary},
    ssh::SshServer,
    stream::{BrokenStream, StreamPlan, StreamServer, Streams, allow_many_files},
    terminal::Terminal,
    wait::{DEADLINE, until},
};
use self::{
    host::{Cable, Wire},
    trunk::Trunk,
};

/// Frames of this many bytes of IP pass between balancer and backends: room for an outer IPv6
/// header (40 bytes) around a client's 1,500.
pub const INNER_MTU: u32 = 1600;

/// What clients see, as the world does.
pub const CLIENT_MTU: u32 = 1500;

/// Where VIPs are taken from; every client has a route to them through the balancer.
pub const VIPS: [&str; 2] = ["203.0.113.0/24", "2001:db8:f00d::/48"];

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One of the two Ethernet networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Clients, the balancer and, with one network, the backends.
    Front = 1,
    /// With two networks: the balancer and the backends.
    Back = 2,
}

impl Network {
    /// The address of machine `number` in this network.
    pub fn address(self, number: u8, family: Family) -> IpAddr {
        let network = self as u8;
        // The decimal number reads the same in all three: 198.18.1.11, 2001:db8:1::11, …:01:11.
        let digits = decimal_as_hex(number);
        match family {
            Family::V4 => Ipv4Addr::new(198, 18, network, number).into(),
            Family::V6 => {
                Ipv6Addr::new(0x2001, 0xdb8, network.into(), 0, 0, 0, 0, digits.into()).into()
            }
        }
    }

    fn mac(self, number: u8) -> [u8; 6] {
        [0x02, 0, 0, 0, self as u8, decimal_as_hex(number)]
    }

    fn bridge(self) -> &'static str {
        match self {
            Self::Front => "br0",
            Self::Back => "br1",
        }
    }
}

fn decimal_as_hex(number: u8) -> u8 {
    debug_assert!(number < 100, "two digits at most");
    ((number / 10) << 4) | (number % 10)
}

const BALANCER: u8 = 1;
const FIRST_CLIENT: u8 = 2;
const FIRST_BACKEND: u8 = 11;
const ROUTER: u8 = 99;
const SECOND_BALANCER: u8 = 98;
const GATEWAY: u8 = 97;

/// What a laboratory shall consist of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// 1 to 9: `client`, `client-2`, …
    pub clients: u8,
    /// 0 to 88: `web-1`, `web-2`, …
    pub backends: u8,
    /// Put the backends on a network of their own, which the balancer reaches by `eth1`.
    pub second_network: bool,
    /// Put a second balancer beside the first, and a gateway before both.
    pub second_balancer: bool,
    /// Tag frames for the [`VIPS`] with this VLAN on their way into the balancer.
    pub vlan: Option<u16>,
    /// Leave the switch's ends of the balancers' cables without an XDP program: for balancers that
    /// send nothing from XDP, and would pay for it.
    pub plain_ports: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            clients: 1,
            backends: 3,
            second_network: false,
            second_balancer: false,
            vlan: None,
            plain_ports: false,
        }
    }
}

/// A laboratory. Dropping it removes all of it.
#[derive(Debug)]
pub struct Lab {
    /// Stops before the interfaces it listens to go.
    trunk: Option<Trunk>,
    clients: Vec<Host>,
    balancer: Host,
    second_balancer: Option<Host>,
    gateway: Option<Host>,
    backends: Vec<Host>,
    router: Option<Host>,
    /// The XDP programs on the switch's ends of the balancers' veths.
    ports: Vec<Attached>,
    switch: Arc<Namespace>,
    directory: Arc<TempDir>,
    name: String,
}

impl Lab {
    /// Builds the machines and joins them; nothing runs in them yet.
    pub fn start(plan: Plan) -> Result<Self> {
        needs::check()?;
        ensure!((1..=9).contains(&plan.clients) && plan.backends <= 88, "too large: {plan:?}");
        leftovers::remove();
        needs::mount_bpffs()?;

        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}-{number}", leftovers::PREFIX, std::process::id());
        let directory = Arc::new(
            tempfile::Builder::new()
                .prefix(&format!("{name}."))
                .tempdir()
                .context("lab's files")?,
        );
        let switch = Arc::new(Namespace::create(&format!("{name}-switch"))?);
        let networks: &[Network] =
            if plan.second_network { &[Network::Front, Network::Back] } else { &[Network::Front] };
        build_switch(&switch, networks)?;

        let trunk = plan.vlan.map(|vlan| Trunk::create(&name, vlan)).transpose()?;
        let host = |role: &str, wires: &[Wire<'_>]| {
            Host::create(&name, role, wires, &directory).with_context(|| format!("build {role}"))
        };
        let wire = |network, number, mtu| {
            let (switch, cable) = (&switch, Cable::Veth);
            Wire { network, number, mtu, switch, bridged: true, cable }
        };
        let backends_network = if plan.second_network { Network::Back } else { Network::Front };

        let mut balancer_wires =
            networks.iter().map(|&network| wire(network, BALANCER, INNER_MTU)).collect::<Vec<_>>();
        if let Some(cards) = cards::joined()? {
            balancer_wires[0].cable = Cable::Cards(cards);
        }
        if let Some(trunk) = &trunk {
            balancer_wires[0].switch = trunk.namespace();
            balancer_wires[0].bridged = false;
        }
        let lab = Self {
            clients: (0..plan.clients)
                .map(|index| {
                    let role =
                        if index == 0 { "client".into() } else { format!("client-{}", index + 1) };
                    host(&role, &[wire(Network::Front, FIRST_CLIENT + index, CLIENT_MTU)])
                })
                .collect::<Result<_>>()?,
            balancer: host("balancer", &balancer_wires)?,
            second_balancer: plan
                .second_balancer
                .then(|| {
                    let wires =
                        networks.iter().map(|&network| wire(network, SECOND_BALANCER, INNER_MTU));
                    host("balancer-2", &wires.collect::<Vec<_>>())
                })
                .transpose()?,
            gateway: plan
                .second_balancer
                .then(|| host("gateway", &[wire(Network::Front, GATEWAY, CLIENT_MTU)]))
                .transpose()?,
            backends: (0..plan.backends)
                .map(|index| {
                    let number = FIRST_BACKEND + index;
                    host(
                        &format!("web-{}", index + 1),
                        &[wire(backends_network, number, INNER_MTU)],
                    )
                })
                .collect::<Result<_>>()?,
            router: plan
                .second_network
                .then(|| {
                    let wires =
                        [Network::Front, Network::Back].map(|n| wire(n, ROUTER, CLIENT_MTU));
                    host("router", &wires)
                })
                .transpose()?,
            ports: Vec::new(),
            trunk,
            switch,
            directory,
            name,
        };
        let lab = lab.join()?;
        if plan.plain_ports { Ok(lab) } else { lab.open_ports(networks) }
    }

    /// Routes between the networks, and the trunk's relay.
    fn join(mut self) -> Result<Self> {
        let first_hop = if self.gateway.is_some() { GATEWAY } else { BALANCER };
        for client in &self.clients {
            for (vips, family) in VIPS.into_iter().zip([Family::V4, Family::V6]) {
                let first_hop = Network::Front.address(first_hop, family);
                client.ip(&format!("route add {vips} via {first_hop}"))?;
            }
        }
        if let Some(gateway) = &self.gateway {
            for family in ["ipv4", "ipv6"] {
                // By ports too, not by addresses alone.
                gateway.sysctl(&format!("net.{family}.fib_multipath_hash_policy"), "1")?;
                // It sends on to where clients could go by themselves.
                for client in &self.clients {
                    client.sysctl(&format!("net.{family}.conf.eth0.accept_redirects"), "0")?;
                }
            }
            gateway.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
            gateway.sysctl("net.ipv4.conf.eth0.send_redirects", "0")?;
            gateway.sysctl("net.ipv4.ip_forward", "1")?;
            gateway.sysctl("net.ipv6.conf.all.forwarding", "1")?;
            self.route_vips(&self.balancers())?;
        }
        if let Some(router) = &self.router {
            router.sysctl("net.ipv4.ip_forward", "1")?;
            router.sysctl("net.ipv6.conf.all.forwarding", "1")?;
            for (family, length) in [(Family::V4, 24), (Family::V6, 64)] {
                let back = Network::Back.address(0, family);
                let router = Network::Front.address(ROUTER, family);
                for client in &self.clients {
                    client.ip(&format!("route add {back}/{length} via {router}"))?;
                }
                let router = Network::Back.address(ROUTER, family);
                for backend in &self.backends {
                    backend.ip(&format!("route add default via {router}"))?;
                }
            }
        }
        if let Some(trunk) = &mut self.trunk {
            trunk.join(&self.switch, Network::Front.bridge())?;
        }
        Ok(self)
    }

    /// Lets what balancers send from XDP into the switch.
    fn open_ports(mut self, networks: &[Network]) -> Result<Self> {
        let pass = Program::pass()?;
        for (index, network) in networks.iter().enumerate() {
            let port = self.balancer.interfaces()[index].port().to_owned();
            let namespace = match &self.trunk {
                Some(trunk) if *network == Network::Front => trunk.namespace(),
                _ => &self.switch,
            };
            self.ports.push(pass.attach(namespace, &port)?);
        }
        for interface in self.second_balancer.iter().flat_map(Host::interfaces) {
            self.ports.push(pass.attach(&self.switch, interface.port())?);
        }
        Ok(self)
    }

    /// Unique on this machine; namespaces, instances and files begin with it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first client.
    pub fn client(&self) -> &Host {
        &self.clients[0]
    }

    /// All clients.
    pub fn clients(&self) -> &[Host] {
        &self.clients
    }

    /// The machine that `sluice` runs on.
    pub fn balancer(&self) -> &Host {
        &self.balancer
    }

    /// Both of them, with [`Plan::second_balancer`].
    pub fn balancers(&self) -> Vec<&Host> {
        std::iter::once(&self.balancer).chain(&self.second_balancer).collect()
    }

    /// Makes the gateway spread the flows to [`VIPS`] over these balancers, by equal-cost routes.
    pub fn route_vips(&self, balancers: &[&Host]) -> Result<()> {
        let gateway = self.gateway.as_ref().context("no gateway: Plan::second_balancer")?;
        for (vips, family) in VIPS.into_iter().zip([Family::V4, Family::V6]) {
            let hops =
                balancers.iter().map(|host| format!(" nexthop via {}", host.address(family)));
            gateway.ip(&format!("route replace {vips}{}", hops.collect::<String>()))?;
        }
        Ok(())
    }

    /// `web-1`, `web-2`, …
    pub fn backends(&self) -> &[Host] {
        &self.backends
    }

    /// Frames the VLAN trunk has carried: (tagged towards the balancer, tagged away from it).
    /// Zero without [`Plan::vlan`].
    pub fn tagged_frames(&self) -> (u64, u64) {
        self.trunk.as_ref().map_or((0, 0), Trunk::tagged_frames)
    }

    /// The other end of the cable in a machine's interface: what is sent there arrives as it is,
    /// whatever a switch would say to it.
    pub fn wire(&self, interface: &Interface) -> Result<RawSocket> {
        RawSocket::open(&self.switch, interface.port(), DEADLINE)
    }

    /// Takes a backend's cable out of the switch: it is gone without a word.
    pub fn unplug(&self, host: &Host) -> Result<()> {
        self.set_port(host, "down")
    }

    /// Puts it back.
    pub fn plug(&self, host: &Host) -> Result<()> {
        self.set_port(host, "up")
    }

    fn set_port(&self, host: &Host, state: &str) -> Result<()> {
        let port = host.interfaces()[0].port();
        self.switch.enter(|| host::ip_batch(&format!("link set {port} {state}\n")))
    }

    /// The router between the two networks, with [`Plan::second_network`].
    pub fn router(&self) -> Option<&Host> {
        self.router.as_ref()
    }

    /// Where programs' files and logs are while the laboratory lives.
    pub fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }
}

fn build_switch(switch: &Namespace, networks: &[Network]) -> Result<()> {
    switch.enter(host::no_ipv6)?;
    let bridges = networks.iter().map(|network| {
        let bridge = network.bridge();
        format!(
            "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set {bridge} up\n"
        )
    });
    switch.enter(|| host::ip_batch(&bridges.collect::<String>())).context("build the switch")
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `ipv4` or `ipv6`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// `Err` with the output when the program failed.
pub(crate) fn check(output: &std::process::Output, what: &str) -> Result<String> {
    if !output.status.success() {
        bail!("{what}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
