//! More than one network: VLAN tags, other interfaces, routers; and networks that change.

use sluice_tests::lab::{
    DEADLINE, Family, INNER_MTU, Plan, Tally, dataplane, is_privileged, until,
};

use crate::scene::{Scene, VIP4, VIP6, assert_flawless};

#[test]
fn frames_keep_their_vlan_tag() {
    if !is_privileged() {
        return;
    }
    let cases = [(VIP4, "l2", Family::V4), (VIP6, "ipip", Family::V6), (VIP6, "l2", Family::V6)];
    for (vip, forwarding, backends) in cases {
        let plan = Plan { vlan: Some(100), ..Plan::default() };
        let (scene, _sluice) = Scene::forwarding(plan, vip, forwarding, backends);
        let tally = scene.request(vip, 60);
        assert_flawless(&scene, &tally);
        assert_eq!(answered(&tally), scene.backends());
        // SYN, ACK, request, FIN: at least four frames a connection, and each of them came back
        // with the same tag.
        let (tagged_in, tagged_out) = scene.lab.tagged_frames();
        assert!(tagged_in >= 4 * 60, "{vip} {forwarding}: {tagged_in} tagged frames went in");
        assert_eq!(tagged_out, tagged_in, "{vip} {forwarding}");
    }
}

#[test]
fn backends_behind_another_interface_are_reached_by_redirect() {
    if !is_privileged() {
        return;
    }
    let cases = [
        (VIP4, "l2", Family::V4),
        (VIP6, "l2", Family::V6),
        (VIP4, "ipip", Family::V4),
        (VIP6, "ipip", Family::V4),
    ];
    for (vip, forwarding, backends) in cases {
        let plan = Plan { second_network: true, ..Plan::default() };
        let (scene, _sluice) = Scene::forwarding(plan, vip, forwarding, backends);
        let tally = scene.request(vip, 60);
        assert_flawless(&scene, &tally);
        assert_eq!(answered(&tally), scene.backends());
    }
}

/// A scene whose backends are reached by way of a router alone.
pub fn behind_a_router() -> Scene {
    let scene = Scene::start(Plan { second_network: true, ..Plan::default() });
    // The balancer's own leg in the backends' network is pulled out.
    let balancer = scene.lab.balancer();
    balancer.ip("link set eth1 down").unwrap();
    let router = scene.lab.router().unwrap();
    for interface in router.interfaces() {
        // What clients send must fit in a tunnel.
        router.ip(&format!("link set {} mtu {INNER_MTU}", interface.name())).unwrap();
    }
    for (family, back) in [(Family::V4, "198.18.2.0/24"), (Family::V6, "2001:db8:2::/64")] {
        balancer.ip(&format!("route add {back} via {}", router.address(family))).unwrap();
    }
    scene
}

#[test]
fn tunnels_reach_backends_behind_a_router() {
    if !is_privileged() {
        return;
    }
    let mut scene = behind_a_router();
    scene.own(VIP4, "ipip");
    let config = dataplane(&["eth0"]) + &scene.service("web", VIP4, "ipip", Family::V4);
    let _sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let tally = scene.request(VIP4, 60);
    assert_flawless(&scene, &tally);
    assert_eq!(answered(&tally), scene.backends());
}

#[test]
fn a_backend_that_is_not_there_gets_flows_when_it_comes() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, "l2");
    let late = scene.lab.backends()[2].clone();
    late.ip("link set eth0 down").unwrap();
    let config = dataplane(&["eth0"]) + &scene.service("web", VIP4, "l2", Family::V4);
    let _sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let tally = scene.request(VIP4, 60);
    assert_flawless(&scene, &tally);
    assert_eq!(answered(&tally), ["web-1", "web-2"]);

    late.ip("link set eth0 up").unwrap();
    comes_to_answer(&scene, "web-3");
}

#[test]
fn a_backend_that_announces_another_mac_is_found_at_once() {
    if !is_privileged() {
        return;
    }
    let (scene, _sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    let changed = &scene.lab.backends()[2];
    // As a moved virtual machine does; a silent one is found by the next refresh.
    changed.sysctl("net.ipv4.conf.eth0.arp_notify", "1").unwrap();
    changed.ip("link set eth0 address 02:00:00:00:77:77").unwrap();
    comes_to_answer(&scene, "web-3");
}

#[test]
fn forwarding_comes_back_with_the_balancers_link() {
    if !is_privileged() {
        return;
    }
    let (scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    scene.lab.balancer().ip("link set eth0 down").unwrap();
    scene.lab.balancer().ip("link set eth0 up").unwrap();
    for backend in scene.backends() {
        comes_to_answer(&scene, backend);
    }
    assert!(sluice.is_running());
}

/// Waits until `backend` answers; then all do, and nothing fails any more.
#[track_caller]
fn comes_to_answer(scene: &Scene, backend: &str) {
    until(&format!("{backend} to answer"), DEADLINE, || {
        scene.attempt(VIP4, 10).answers.get(VIP4)?.get(backend).copied()
    })
    .unwrap();
    let tally = scene.request(VIP4, 60);
    assert_eq!(tally.failed(), 0, "{}", tally.causes());
    assert_eq!(answered(&tally), scene.backends());
}

fn answered(tally: &Tally) -> Vec<&str> {
    tally.answers.values().flat_map(|answers| answers.keys()).map(String::as_str).collect()
}
