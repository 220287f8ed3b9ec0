//! What most tests begin with: machines, nginx on the backends, a VIP they own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use sluice_tests::lab::{
    Agent, Family, Host, Lab, Load, LoadPlan, Nginx, Plan, Sluice, Tally, Target, dataplane,
    service, service_with,
};

pub const VIP4: &str = "203.0.113.10:80";
pub const VIP6: &str = "[2001:db8:f00d::10]:80";

/// Dropped in this order.
pub struct Scene {
    pub agents: Vec<Agent>,
    pub nginx: Vec<Nginx>,
    pub lab: Lab,
}

impl Scene {
    /// Machines with nginx on port 80 of each backend.
    pub fn start(plan: Plan) -> Self {
        Self::serving(plan, &[80])
    }

    /// Machines with nginx on these ports of each backend.
    pub fn serving(plan: Plan, ports: &[u16]) -> Self {
        let lab = Lab::start(plan).unwrap();
        let nginx = lab.backends().iter().map(|host| Nginx::start(host, ports).unwrap()).collect();
        Self { agents: Vec::new(), nginx, lab }
    }

    /// A scene in which `vip` is forwarded by `forwarding` to three backends.
    pub fn forwarding(plan: Plan, vip: &str, forwarding: &str, backends: Family) -> (Self, Sluice) {
        let mut scene = Self::start(plan);
        scene.own(vip, forwarding);
        let interface = dataplane(&["eth0"]);
        let config = interface + &scene.service("web", vip, forwarding, backends);
        let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
        (scene, sluice)
    }

    /// Prepares each backend: for `l2` by hand, so that these tests need no agent; for `nat` there
    /// is nothing to prepare.
    pub fn own(&mut self, vip: &str, forwarding: &str) {
        let vip = address(vip).ip();
        for host in self.lab.backends() {
            match forwarding {
                "l2" => host.own_vip_quietly(vip).unwrap(),
                "nat" => {}
                _ => self.agents.push(host.run_agent(&[vip], &[]).unwrap()),
            }
        }
    }

    /// A service on all backends, for the configuration.
    pub fn service(&self, name: &str, vip: &str, forwarding: &str, backends: Family) -> String {
        service(name, address(vip), forwarding, self.lab.backends(), backends)
    }

    /// A service on all backends of the VIP's family, with these lines for its check and whatever
    /// else it has.
    pub fn service_with(&self, name: &str, vip: &str, forwarding: &str, lines: &str) -> String {
        let vip = address(vip);
        let family = Family::of(vip.ip());
        service_with(name, vip, forwarding, self.lab.backends(), family, lines)
    }

    /// Load on `vip` that ends after so many requests.
    pub fn request(&self, vip: &str, requests: u64) -> Tally {
        let plan = LoadPlan { requests: Some(requests), ..LoadPlan::on([target(vip)]) };
        Load::start(self.lab.client(), plan).unwrap().finish()
    }

    /// The same, of requests that may fail and shall do so soon.
    pub fn attempt(&self, vip: &str, requests: u64) -> Tally {
        let timeout = Duration::from_millis(300);
        let plan = LoadPlan { requests: Some(requests), timeout, ..LoadPlan::on([target(vip)]) };
        Load::start(self.lab.client(), plan).unwrap().finish()
    }

    /// Load on `vip` until it is stopped.
    pub fn load(&self, vip: &str) -> Load {
        Load::start(self.lab.client(), LoadPlan::on([target(vip)])).unwrap()
    }

    /// The names of the backends.
    pub fn backends(&self) -> Vec<&str> {
        self.lab.backends().iter().map(Host::role).collect()
    }
}

pub fn target(vip: &str) -> Target {
    Target { name: vip.into(), address: address(vip) }
}

pub fn address(vip: &str) -> SocketAddr {
    vip.parse().unwrap()
}

/// No request failed, and no SYN had to be sent twice.
#[track_caller]
pub fn assert_flawless(scene: &Scene, tally: &Tally) {
    assert_eq!(tally.failed(), 0, "of {}:\n{}", tally.requests, tally.causes());
    let again = scene.lab.client().syn_retransmissions().unwrap();
    assert_eq!(again, 0, "SYNs had to be sent twice; slowest request {:?}", tally.slowest);
}

/// How many frames ended for this reason.
pub fn reason(sluice: &Sluice, name: &str) -> u64 {
    let reasons = sluice.json(&["reasons"]).unwrap();
    let mut reasons = reasons["reasons"].as_array().unwrap().iter();
    reasons.find(|reason| reason["name"] == name).unwrap()["count"].as_u64().unwrap()
}

/// Flags of a TCP segment.
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// An Ethernet frame with a TCP segment to 203.0.113.10. The IP checksum is right; the TCP
/// checksum is not, so that backends need not answer.
pub fn segment(macs: &[u8], (client, from): (Ipv4Addr, u16), to: u16, flags: u8) -> Vec<u8> {
    let mut ip = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 203, 0, 113, 10];
    ip[12..16].copy_from_slice(&client.octets());
    let sum = ip.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = sum.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!folded as u16).to_be_bytes());
    let mut tcp = [0; 20];
    tcp[..2].copy_from_slice(&from.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = flags;
    [macs, &[0x08, 0x00], &ip, &tcp].concat()
}
