//! One machine of the laboratory: a network namespace with Ethernet interfaces.

use std::{
    fs, io,
    io::Write,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use super::{Family, Namespace, Network, check};

/// A machine; clones are the same machine.
#[derive(Clone, Debug)]
pub struct Host {
    role: String,
    namespace: Arc<Namespace>,
    interfaces: Arc<[Interface]>,
    directory: Arc<TempDir>,
}

/// An Ethernet interface of a machine and the switch's port it hangs on.
#[derive(Clone, Debug)]
pub struct Interface {
    name: String,
    port: String,
    network: Network,
    number: u8,
}

/// What joins a machine to a network.
pub(super) struct Wire<'a> {
    pub network: Network,
    pub number: u8,
    /// Of the machine's end; the switch's is always the larger.
    pub mtu: u32,
    pub switch: &'a Namespace,
    /// Hang the far end on the network's bridge in `switch`.
    pub bridged: bool,
    /// What it is made of.
    pub cable: Cable,
}

/// What a [`Wire`] is made of.
#[derive(Clone, Debug)]
pub(super) enum Cable {
    /// A veth pair.
    Veth,
    /// Two cards that are joined outside of this machine: the switch's and the machine's.
    Cards([String; 2]),
}

impl Interface {
    /// `eth0`, `eth1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the other end, in the switch's namespace.
    pub fn port(&self) -> &str {
        &self.port
    }

    /// The hardware address, readable: network and number.
    pub fn mac(&self) -> [u8; 6] {
        self.network.mac(self.number)
    }

    /// The address in its network.
    pub fn address(&self, family: Family) -> IpAddr {
        self.network.address(self.number, family)
    }
}

impl Host {
    pub(super) fn create(
        lab: &str,
        role: &str,
        wires: &[Wire<'_>],
        directory: &Arc<TempDir>,
    ) -> Result<Self> {
        let namespace = Arc::new(Namespace::create(&format!("{lab}-{role}"))?);
        namespace.enter(|| quiet_ipv6(&["all", "default"]))?;
        let mut interfaces = Vec::new();
        for (index, wire) in wires.iter().enumerate() {
            let port = if index == 0 { role.to_owned() } else { format!("{role}-{index}") };
            let interface = Interface {
                name: format!("eth{index}"),
                port,
                network: wire.network,
                number: wire.number,
            };
            interface.plug(wire, &namespace)?;
            interfaces.push(interface);
        }
        namespace.enter(|| {
            // Debian's default of 2 would do; strict mode would drop what comes out of a tunnel.
            write_sysctl("net.ipv4.conf.all.rp_filter", "0")?;
            write_sysctl("net.ipv4.conf.default.rp_filter", "0")?;
            ip_batch("link set lo up\n")?;
            interfaces.iter().try_for_each(Interface::set_up)
        })?;
        Ok(Self {
            role: role.to_owned(),
            namespace,
            interfaces: interfaces.into(),
            directory: directory.clone(),
        })
    }

    /// `client`, `balancer`, `web-1`, …
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The name of its namespace; also of `sluice`'s instance on it. Unique on this machine.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// `eth0` first.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The address of `eth0`.
    pub fn address(&self, family: Family) -> IpAddr {
        self.interfaces[0].address(family)
    }

    /// A command that will run here: in this network namespace and no other kind of namespace,
    /// so that bpffs is what it is outside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.namespace.path());
        command.arg(net).arg("--").arg(program);
        command
    }

    /// Runs a program here to its end; its standard output, or an error with what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("run nsenter")?;
        check(&output, &format!("{program} {} on {}", arguments.join(" "), self.role))
    }

    /// Runs `work` here, in a thread of its own: see [`Namespace::enter`].
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.enter(work)
    }

    /// `ip` with `arguments`, here.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        self.enter(|| ip_batch(&format!("{arguments}\n")))
            .with_context(|| format!("ip {arguments} on {}", self.role))
    }

    /// Sets `net.…`, here.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.enter(|| write_sysctl(name, value))
    }

    /// Addresses on `interface`, without the link-local ones.
    pub fn addresses(&self, interface: &str) -> Result<Vec<IpAddr>> {
        let shown = self.run("ip", &["-json", "address", "show", "dev", interface])?;
        let shown: Value = serde_json::from_str(&shown).context("read ip -json")?;
        let addresses = shown[0]["addr_info"].as_array().into_iter().flatten();
        Ok(addresses
            .filter(|address| address["scope"] != "link")
            .filter_map(|address| address["local"].as_str()?.parse().ok())
            .collect())
    }

    /// The XDP program on `interface`, as `ip -json link` shows it.
    pub fn xdp(&self, interface: &str) -> Result<Option<Value>> {
        let shown = self.run("ip", &["-json", "-details", "link", "show", "dev", interface])?;
        let mut shown: Value = serde_json::from_str(&shown).context("read ip -json")?;
        Ok(shown[0].get_mut("xdp").map(Value::take).filter(|xdp| !xdp.is_null()))
    }

    /// SYNs this machine has sent again since it was built: a connection outlives a lost frame,
    /// and this tells that there was one. (Of lost data nothing tells so surely: a busy machine
    /// sends some again for being late.)
    pub fn syn_retransmissions(&self) -> Result<u64> {
        let netstat = self.enter(|| fs::read_to_string("/proc/thread-self/net/netstat"))?;
        let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
            anyhow::bail!("no TcpExt lines in /proc/net/netstat");
        };
        names
            .split(' ')
            .zip(values.split(' '))
            .find_map(|(name, value)| (name == "TCPSynRetrans").then(|| value.parse().ok())?)
            .context("no TCPSynRetrans in /proc/net/netstat")
    }

    /// What a backend of `l2` needs, done by hand: the VIP on loopback, ARP kept quiet about it.
    pub fn own_vip_quietly(&self, vip: IpAddr) -> Result<()> {
        for interface in ["all", "eth0"] {
            self.sysctl(&format!("net.ipv4.conf.{interface}.arp_ignore"), "1")?;
            self.sysctl(&format!("net.ipv4.conf.{interface}.arp_announce"), "2")?;
        }
        self.ip(&match vip {
            IpAddr::V4(vip) => format!("address add {vip}/32 dev lo"),
            IpAddr::V6(vip) => format!("address add {vip}/128 dev lo nodad"),
        })
    }

    /// A new directory of this machine's own, gone with the laboratory.
    pub(super) fn directory(&self, purpose: &str) -> Result<std::path::PathBuf> {
        for number in 1.. {
            let path = self.directory.path().join(format!("{}-{purpose}-{number}", self.role));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context("make a directory"),
            }
        }
        unreachable!("the numbers have no end")
    }
}

impl Interface {
    /// Lays the cable and plugs in its far end.
    fn plug(&self, wire: &Wire<'_>, host: &Namespace) -> Result<()> {
        let Self { name, port, network, number } = self;
        let (switch, bridge) = (wire.switch.name(), network.bridge());
        let [_, _, _, _, net, num] = network.mac(*number);
        let far = format!("mtu {} address 02:00:00:ff:{net:02x}:{num:02x}", super::INNER_MTU);
        let near = format!("mtu {} address 02:00:00:00:{net:02x}:{num:02x}", wire.mtu);
        let inside = host.name();
        match &wire.cable {
            Cable::Veth => ip_batch(&format!(
                "link add {port} netns {switch} {far} type veth peer name {name} netns {inside} {near}\n"
            ))?,
            Cable::Cards([outer, inner]) => {
                ip_batch(&format!(
                    "link set {outer} netns {switch} name {port}\n\
                     link set {inner} netns {inside} name {name}\n"
                ))?;
                wire.switch.enter(|| ip_batch(&format!("link set {port} {far}\n")))?;
                host.enter(|| ip_batch(&format!("link set {name} {near}\n")))?;
            }
        }
        host.enter(|| switch_offloads_off(name))?;
        wire.switch.enter(|| {
            switch_offloads_off(port)?;
            let master = if wire.bridged { format!("master {bridge}") } else { String::new() };
            ip_batch(&format!("link set {port} up {master}\n"))
        })
    }

    /// Gives it its addresses; from its machine's namespace.
    fn set_up(&self) -> Result<()> {
        let name = self.name();
        write_sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0")?;
        quiet_ipv6(&[name])?;
        let [v4, v6] = [Family::V4, Family::V6].map(|family| self.address(family));
        ip_batch(&format!(
            "link set {name} up\n\
             address add {v4}/24 dev {name}\n\
             address add {v6}/64 dev {name} nodad\n"
        ))
    }

    /// Puts another in its place, with the same name and addresses.
    pub(super) fn replace(&self, switch: &Namespace, host: &Namespace) -> Result<()> {
        let Self { network, number, .. } = *self;
        host.enter(|| ip_batch(&format!("link delete {}\n", self.name)))?;
        let (mtu, bridged, cable) = (super::INNER_MTU, true, Cable::Veth);
        self.plug(&Wire { network, number, mtu, switch, bridged, cable }, host)?;
        host.enter(|| self.set_up())
    }
}

/// With them on, veth carries super-frames and unfinished checksums that no card would deliver.
pub(super) fn switch_offloads_off(interface: &str) -> Result<()> {
    let features = ["tx", "tso", "gso", "gro", "rxvlan", "txvlan"];
    let output = Command::new("ethtool")
        .args(["-K", interface])
        .args(features.into_iter().flat_map(|feature| [feature, "off"]))
        .output()
        .context("run ethtool")?;
    check(&output, &format!("switch {interface}'s offloads off"))?;
    Ok(())
}

/// No waiting for duplicates, no asking for routers: addresses work at once.
pub(super) fn quiet_ipv6(interfaces: &[&str]) -> Result<()> {
    for interface in interfaces {
        for name in ["accept_dad", "dad_transmits", "accept_ra", "router_solicitations"] {
            write_sysctl(&format!("net.ipv6.conf.{interface}.{name}"), "0")?;
        }
    }
    Ok(())
}

/// For what only moves frames.
pub(super) fn no_ipv6() -> Result<()> {
    write_sysctl("net.ipv6.conf.default.disable_ipv6", "1")
}

fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::write(&path, value).with_context(|| format!("set {name}={value}"))
}

/// Many `ip` commands, one a line, in one process.
pub(super) fn ip_batch(commands: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip")?;
    if let Some(mut stdin) = ip.stdin.take() {
        stdin.write_all(commands.as_bytes()).context("write to ip")?;
    }
    check(&ip.wait_with_output().context("run ip")?, &format!("ip {}", commands.trim()))?;
    Ok(())
}
