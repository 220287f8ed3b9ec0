//! `sluice agent`: the backend's side.

use std::time::Duration;

use sluice_tests::lab::{Failure, Family, Host, Plan, dataplane, fetch, is_privileged};

use crate::scene::{Scene, VIP4, VIP6, address, assert_flawless};

#[test]
fn what_an_agent_has_set_up_outlives_it() {
    if !is_privileged() {
        return;
    }
    let (mut scene, _sluice) = Scene::forwarding(Plan::default(), VIP4, "ipip", Family::V6);
    let load = scene.load(VIP4);
    load.run_for_requests(100, Duration::from_secs(20)).unwrap();
    for agent in &mut scene.agents {
        agent.kill9().unwrap();
    }
    load.run_for_requests(200, Duration::from_secs(20)).unwrap();
    let agents = scene.lab.backends().iter();
    let again = agents.map(|host| host.run_agent(&[address(VIP4).ip()], &[]).unwrap());
    let again = again.collect::<Vec<_>>();
    load.run_for_requests(200, Duration::from_secs(20)).unwrap();
    assert_flawless(&scene, &load.stop());
    drop(again);
}

#[test]
fn detach_leaves_nothing_of_an_agent() {
    if !is_privileged() {
        return;
    }
    let scene = Scene::start(Plan { backends: 1, ..Plan::default() });
    let host = &scene.lab.backends()[0];
    let before = trace(host);
    let vips = [address(VIP4).ip(), address(VIP6).ip()];
    let mut agent = host.run_agent(&vips, &[]).unwrap();
    assert_ne!(trace(host), before);
    agent.stop().unwrap();
    assert_ne!(trace(host), before, "only detach undoes it");
    let detached = host.sluice().unwrap().args(["agent", "detach"]).output().unwrap();
    assert!(detached.status.success(), "{}", String::from_utf8_lossy(&detached.stderr));
    assert_eq!(trace(host), before);
    let pins = std::path::Path::new("/sys/fs/bpf/sluice").join(host.name());
    assert!(!pins.exists(), "{}", pins.display());
}

#[test]
fn a_tunnel_from_elsewhere_than_allowed_is_dropped() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan { backends: 2, ..Plan::default() });
    let vip = address(VIP4).ip();
    let from = ["198.18.1.0/24", "192.0.2.0/24"];
    let agents = scene.lab.backends().iter().zip(from);
    scene.agents = agents.map(|(host, from)| host.run_agent(&[vip], &[from]).unwrap()).collect();
    let config = dataplane(&["eth0"]) + &scene.service("web", VIP4, "ipip", Family::V4);
    let _sluice = scene.lab.balancer().run_sluice(&config).unwrap();

    let tally = scene.attempt(VIP4, 40);
    assert_eq!(tally.answers[VIP4].keys().collect::<Vec<_>>(), ["web-1"]);
    assert!(tally.failures.iter().all(|failed| failed.cause == Failure::NotConnected));
    assert!(tally.failed() > 0, "the other backend's share");
}

#[test]
fn a_backends_own_addresses_work_beside_an_agent() {
    if !is_privileged() {
        return;
    }
    let scene = Scene::start(Plan { backends: 1, ..Plan::default() });
    let host = &scene.lab.backends()[0];
    let _agent = host.run_agent(&[address(VIP4).ip()], &[]).unwrap();
    for family in [Family::V4, Family::V6] {
        let own = std::net::SocketAddr::new(host.address(family), 80);
        let answer = scene.lab.client().enter(|| fetch(own, "/", Duration::from_secs(5))).unwrap();
        assert_eq!(answer.backend, "web-1");
        let own = own.ip().to_string();
        scene.lab.client().run("ping", &["-c", "1", "-W", "5", &own]).unwrap();
    }
}

/// What an agent changes on a machine.
fn trace(host: &Host) -> (Vec<std::net::IpAddr>, bool, String) {
    let arp = ["all", "eth0"]
        .map(|interface| format!("net.ipv4.conf.{interface}.arp_ignore"))
        .into_iter()
        .chain(["all", "eth0"].map(|interface| format!("net.ipv4.conf.{interface}.arp_announce")))
        .map(|name| format!("/proc/sys/{}", name.replace('.', "/")))
        .map(|path| host.run("cat", &[&path]).unwrap());
    let arp = arp.collect();
    (host.addresses("lo").unwrap(), host.xdp("eth0").unwrap().is_some(), arp)
}
