//! NAT end to end: unmodified backends, on another port than the VIP's, real clients and servers.
//!
//! - `ways`: families, networks, addresses, VLAN tags, narrow paths.
//! - `programs`: curl, wrk, iperf3, ssh, and thousands of connections.
//! - `change`: what is done to the balancer and its backends while connections live.
//! - `ends`: backends that refuse, reset or die, and what is counted of it.
//! - `ports`: ports that run out and come back, and the flows that have them.

mod change;
mod ends;
mod ports;
mod programs;
mod ways;

use std::net::{IpAddr, TcpStream};

use serde_json::Value;
use sluice_tests::lab::{
    DEADLINE, Family, Lab, Plan, Sluice, dataplane, on_port, service_with, until,
};

use crate::scene::{Scene, address};

/// Where backends serve HTTP.
const WEB: u16 = 8080;

/// Where backends serve what is not HTTP, and its VIP.
const TALK: u16 = 7007;
const TALK_VIP: &str = "203.0.113.10:7";

/// All backends are healthy.
const UNCHECKED: &str = "health = { check = \"none\" }\n";

/// A translated service on this port of all backends, with these lines for its check and whatever
/// else it has.
fn nat(lab: &Lab, name: &str, (vip, port): (&str, u16), lines: &str) -> String {
    let vip = address(vip);
    let family = Family::of(vip.ip());
    on_port(&service_with(name, vip, "nat", lab.backends(), family, lines), port)
}

/// `web` on all backends of a plan, which is on two networks if they are.
fn web(plan: Plan, vip: &str, lines: &str) -> (Scene, Sluice) {
    let scene = Scene::serving(plan, &[WEB]);
    let service = nat(&scene.lab, "web", (vip, WEB), &format!("{UNCHECKED}{lines}"));
    let sluice = scene.lab.balancer().run_sluice(&(interfaces(plan) + &service)).unwrap();
    (scene, sluice)
}

fn interfaces(plan: Plan) -> String {
    dataplane(if plan.second_network { &["eth0", "eth1"] } else { &["eth0"] })
}

/// The balancer's address in the backends' network.
fn egress(lab: &Lab, family: Family) -> IpAddr {
    lab.balancer().interfaces().last().unwrap().address(family)
}

/// The backends of the first service.
fn backends(sluice: &Sluice) -> Vec<Value> {
    sluice.status().unwrap()["services"][0]["backends"].as_array().unwrap().clone()
}

/// The sum of one of their counts.
fn sum(sluice: &Sluice, name: &str) -> u64 {
    let backends = backends(sluice);
    backends.iter().map(|backend| backend[name].as_u64().unwrap()).sum()
}

/// The ports that their flows take.
fn ports_used(sluice: &Sluice) -> u64 {
    let backends = backends(sluice);
    backends.iter().map(|backend| backend["nat_ports"]["used"].as_u64().unwrap()).sum()
}

/// Waits until they take so many: they are counted each second.
#[track_caller]
fn until_ports_used(sluice: &Sluice, count: u64) {
    let taken = until(&format!("{count} ports to be taken"), DEADLINE, || {
        (ports_used(sluice) == count).then_some(())
    });
    taken.unwrap_or_else(|error| panic!("{error}: {}", sluice.status().unwrap()));
}

/// Its end will be a RST.
fn end_by_reset(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}
