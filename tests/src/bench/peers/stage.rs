//! A laboratory with one balancer in it, ready for load.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Peer,
    load::{Requests, run_iperf3, run_wrk},
};
use crate::lab::{
    Agent, Attached, DEADLINE, Family, Host, Lab, Plan, Process, Program, Sluice, dataplane, fetch,
    service, until,
};

/// Where clients connect to: requests, and a stream of data.
const VIP: &str = "203.0.113.10";
const WEB: u16 = 80;
const BULK: u16 = 5201;

/// As many as the client has threads: without a balancer each thread has its own.
const BACKENDS: u8 = 3;

/// One after the other all backends must have answered, in so many requests at most.
const ASKED: usize = 200;

/// A file of its package; nginx finds it by no other name.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Dropped in this order, so that nothing outlives what it stands on.
pub(super) struct Stage {
    balancer: Balancer,
    _servers: Vec<Process>,
    lab: Lab,
    peer: Peer,
}

/// What runs as the balancer.
enum Balancer {
    /// Nothing, or what the kernel does by itself.
    Nobody,
    /// The same, behind a program that passes every frame.
    UnderXdp {
        _pass: Attached,
    },
    Program(Process),
    Sluice {
        sluice: Sluice,
        _agents: Vec<Agent>,
    },
}

impl Balancer {
    /// What it has written.
    fn log(&self) -> String {
        match self {
            Self::Nobody | Self::UnderXdp { .. } => String::new(),
            Self::Program(process) => process.log(),
            Self::Sluice { sluice, .. } => sluice.log(),
        }
    }
}

/// Why this `sluice` can't be measured, if it does not take the configuration.
pub(super) fn refused(peer: Peer) -> Result<Option<String>> {
    let Some(forwarding) = peer.forwarding() else { return Ok(None) };
    let lab = Lab::start(Plan { backends: BACKENDS, ..Plan::default() })?;
    let file = lab.directory().join("sluice.toml");
    fs::write(&file, config(&lab, forwarding)?).context("write sluice.toml")?;
    let output = lab.balancer().sluice()?.arg("check").arg(&file).output();
    let output = output.context("run sluice check")?;
    let said = String::from_utf8_lossy(&output.stderr);
    // Where the file was is of no use: it is gone.
    let why = said.rsplit_once("sluice.toml:").map_or(&*said, |(_, why)| why).trim();
    Ok((!output.status.success()).then(|| format!("`sluice check` refuses it: {why}")))
}

fn vip() -> Result<IpAddr> {
    VIP.parse().context("the VIP")
}

fn config(lab: &Lab, forwarding: &str) -> Result<String> {
    let [web, bulk] = [WEB, BULK].map(|port| vip().map(|vip| SocketAddr::new(vip, port)));
    let backends = lab.backends();
    Ok(dataplane(&["eth0"])
        + &service("web", web?, forwarding, backends, Family::V4)
        + &service("bulk", bulk?, forwarding, &backends[..1], Family::V4))
}

impl Stage {
    pub(super) fn build(peer: Peer) -> Result<Self> {
        let plain_ports = !peer.has_xdp();
        let lab = Lab::start(Plan { backends: BACKENDS, plain_ports, ..Plan::default() })?;
        let mut servers = Vec::new();
        for host in lab.backends() {
            servers.push(web_server(host, &lab)?);
        }
        for host in lab.backends() {
            let place = (host.address(Family::V4), WEB);
            until("a web server", DEADLINE, || host.enter(|| TcpStream::connect(place).ok()))?;
        }
        let mut iperf3 = lab.backends()[0].command("iperf3");
        iperf3.args(["--server", "--port", &BULK.to_string()]);
        servers.push(start(&lab, "iperf3-server", iperf3)?);
        let balancer = match peer {
            Peer::Direct => Balancer::Nobody,
            Peer::SluiceL2 | Peer::SluiceIpip | Peer::SluiceNat => sluice(peer, &lab)?,
            Peer::NftDnat => nftables(&lab).map(|()| Balancer::Nobody)?,
            Peer::NftDnatXdp => {
                nftables(&lab)?;
                let balancer = lab.balancer().namespace();
                Balancer::UnderXdp { _pass: Program::pass()?.attach(balancer, "eth0")? }
            }
            Peer::Haproxy => haproxy(&lab)?,
            Peer::NginxStream => nginx_stream(&lab)?,
        };
        Ok(Self { balancer, _servers: servers, lab, peer })
    }

    /// Where requests go; with no balancer there are several places.
    fn web(&self) -> Result<Vec<SocketAddr>> {
        self.places(WEB)
    }

    fn places(&self, port: u16) -> Result<Vec<SocketAddr>> {
        if self.peer == Peer::Direct {
            let backends = self.lab.backends().iter();
            Ok(backends.map(|host| SocketAddr::new(host.address(Family::V4), port)).collect())
        } else {
            Ok(vec![SocketAddr::new(vip()?, port)])
        }
    }

    /// Each backend answers, and nothing fails; then the data's server is there too.
    pub(super) fn check(&self) -> Result<()> {
        let places = self.web()?;
        let ask = |place| self.lab.client().enter(|| fetch(place, "/", Duration::from_secs(5)));
        // A proxy may still be about to listen.
        until("the first answer", DEADLINE, || ask(places[0]).ok())
            .with_context(|| self.balancer.log())?;
        let mut missing: Vec<&str> = self.lab.backends().iter().map(Host::role).collect();
        for place in places.iter().cycle().take(ASKED) {
            let answer = ask(*place).with_context(|| format!("ask {place}"))?;
            missing.retain(|role| *role != answer.backend);
            if missing.is_empty() {
                return Ok(());
            }
        }
        bail!("{missing:?} answered none of {ASKED} requests");
    }

    /// Requests for so long; each on a connection of its own, or all on a few.
    pub(super) fn request(&self, time: Duration, keep_alive: bool) -> Result<Requests> {
        let requests = run_wrk(self.lab.client(), &self.lab, &self.web()?, time, keep_alive)?;
        let (answered, failed) = (requests.requests, requests.failed);
        ensure!(answered > 0, "no request was answered");
        ensure!(failed * 1000 <= answered, "{failed} requests failed, {answered} did not");
        Ok(requests)
    }

    /// Data from the client to a backend for so long; bits a second that arrived.
    pub(super) fn send(&self, time: Duration) -> Result<f64> {
        let places = self.places(BULK)?;
        run_iperf3(self.lab.client(), &self.lab, places[0], time)
    }
}

fn start(lab: &Lab, name: &str, command: std::process::Command) -> Result<Process> {
    Process::start(name, command, &lab.directory().join(format!("{name}.log")))
}

/// The balancer's program, with this configuration.
fn program(lab: &Lab, name: &str, config: &str, command: &[&str]) -> Result<Balancer> {
    let file = lab.directory().join(format!("{name}.conf"));
    fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
    // It listens on the VIP.
    lab.balancer().ip(&format!("address add {VIP}/32 dev lo"))?;
    let mut started = lab.balancer().command(command[0]);
    started.args(&command[1..]).arg(&file);
    Ok(Balancer::Program(start(lab, name, started)?))
}

fn addresses(lab: &Lab) -> impl Iterator<Item = IpAddr> {
    lab.backends().iter().map(|host| host.address(Family::V4))
}

/// One process that answers from memory, logs nothing, and closes no connection by itself.
fn web_server(host: &Host, lab: &Lab) -> Result<Process> {
    let name = format!("nginx-{}", host.role());
    let at = lab.directory().join(&name);
    fs::create_dir(&at).context("make nginx's directory")?;
    let at = at.display();
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 1000000000;\n\
         {}server {{ listen {WEB} backlog=4096; add_header X-Backend {role} always;\n\
         location / {{ return 200 \"{role}\\n\"; }} }} }}\n",
        temporary_paths(&at),
        role = host.role(),
    );
    let file = format!("{at}/nginx.conf");
    fs::write(&file, config).context("write nginx.conf")?;
    let mut command = host.command("nginx");
    command.args(["-e", &format!("{at}/error.log"), "-c", &file]);
    start(lab, &name, command)
}

fn temporary_paths(at: impl std::fmt::Display) -> String {
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    kinds.map(|kind| format!("{kind}_temp_path {at}/{kind};\n")).concat()
}

fn sluice(peer: Peer, lab: &Lab) -> Result<Balancer> {
    let forwarding = peer.forwarding().context("it is Sluice")?;
    let mut agents = Vec::new();
    for host in lab.backends() {
        match peer {
            Peer::SluiceL2 => host.own_vip_quietly(vip()?)?,
            Peer::SluiceIpip => agents.push(host.run_agent(&[vip()?], &[])?),
            _ => {}
        }
    }
    let sluice = lab.balancer().run_sluice(&config(lab, forwarding)?)?;
    Ok(Balancer::Sluice { sluice, _agents: agents })
}

/// Both ways through the kernel's connection tracking, as its users write it.
fn nftables(lab: &Lab) -> Result<()> {
    let places = addresses(lab).enumerate().map(|(index, to)| format!("{index} : {to}"));
    let places = places.collect::<Vec<_>>();
    let (count, map) = (places.len(), places.join(", "));
    let bulk = lab.backends()[0].address(Family::V4);
    let rules = format!(
        "table ip peers {{\n\
         chain to {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {VIP} tcp dport {WEB} dnat to numgen inc mod {count} map {{ {map} }}\n\
         ip daddr {VIP} tcp dport {BULK} dnat to {bulk}\n\
         }}\n\
         chain from {{ type nat hook postrouting priority srcnat;\n\
         masquerade\n\
         }}\n\
         }}\n"
    );
    let file = lab.directory().join("nft.conf");
    fs::write(&file, rules).context("write nft.conf")?;
    let balancer = lab.balancer();
    balancer.sysctl("net.ipv4.ip_forward", "1")?;
    // In and out by one interface: it would tell the client to go there by itself.
    balancer.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
    balancer.sysctl("net.ipv4.conf.eth0.send_redirects", "0")?;
    balancer.run("nft", &["-f", text(&file)?])?;
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of text")
}

fn haproxy(lab: &Lab) -> Result<Balancer> {
    let servers = addresses(lab).enumerate();
    let servers = servers.map(|(index, to)| format!("  server web-{index} {to}:{WEB}\n"));
    let config = format!(
        "global\n  maxconn 4096\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
         listen web\n  bind {VIP}:{WEB} backlog 4096\n  balance roundrobin\n{}\
         listen bulk\n  bind {VIP}:{BULK}\n  server web-0 {}:{BULK}\n",
        servers.collect::<String>(),
        lab.backends()[0].address(Family::V4),
    );
    program(lab, "haproxy", &config, &["haproxy", "-db", "-f"])
}

fn nginx_stream(lab: &Lab) -> Result<Balancer> {
    let at = lab.directory();
    let (at, log) = (at.display(), at.join("nginx-stream.error.log"));
    let servers = addresses(lab).map(|to| format!("server {to}:{WEB};"));
    let config = format!(
        "load_module {STREAM_MODULE};\n\
         daemon off; worker_processes auto; pid {at}/nginx-stream.pid; error_log {log};\n\
         events {{ worker_connections 4096; }}\n\
         stream {{ upstream web {{ {} }}\n\
         server {{ listen {VIP}:{WEB} reuseport backlog=4096; proxy_pass web; }}\n\
         server {{ listen {VIP}:{BULK} reuseport; proxy_pass {}:{BULK}; }} }}\n",
        servers.collect::<String>(),
        lab.backends()[0].address(Family::V4),
        log = log.display(),
    );
    program(lab, "nginx-stream", &config, &["nginx", "-e", text(&log)?, "-c"])
}
