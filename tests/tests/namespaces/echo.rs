//! `icmp_echo`: who pings a VIP learns whether it is served.

use std::time::Duration;

use sluice_tests::lab::{Plan, dataplane, is_privileged, until};

use crate::scene::{Scene, VIP4, VIP6, address, reason};

/// Of a service that wants its pings answered whatever becomes of it.
const PLAIN: &str = "203.0.113.11:80";

#[test]
fn a_vip_without_backends_is_silent_where_it_is_to_be() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan { backends: 2, ..Plan::default() });
    // What it answers is to fit the client's network.
    scene.lab.balancer().ip("link set eth0 mtu 1500").unwrap();
    for vip in [VIP4, VIP6] {
        scene.own(vip, "l2");
    }
    let asking = "icmp_echo = \"healthy\"\nfail_open = false\npanic_threshold = 1.0\n\
                  health = { check = \"tcp\", interval = \"200ms\", fall = 2 }\n";
    let config = dataplane(&["eth0"])
        + &scene.service_with("four", VIP4, "l2", asking)
        + &scene.service_with("six", VIP6, "l2", asking)
        + &scene.service_with("plain", PLAIN, "l2", "health = { check = \"none\" }\n");
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let ping = |to: &str, large: bool| {
        let to = address(to).ip().to_string();
        let size = if large { "4000" } else { "56" };
        let asked = ["-c", "1", "-W", "1", "-s", size, &to];
        scene.lab.client().run("ping", &asked).is_ok()
    };
    let all = [(VIP4, "four"), (VIP6, "six"), (PLAIN, "plain")];
    let of_all = |verb, force: &[&str]| {
        for (_, service) in all {
            for backend in scene.backends() {
                sluice.cli_ok(&[&["backend", verb, service, backend], force].concat()).unwrap();
            }
        }
    };
    let soon = |is: bool| {
        for (vip, _) in &all[..2] {
            let asked = || (ping(vip, false) == is).then_some(());
            until("the VIP's silence to change", Duration::from_secs(20), asked).unwrap();
        }
    };

    for (vip, _) in all {
        assert!(ping(vip, false), "{vip}");
        assert!(ping(vip, true), "{vip}, large");
    }
    of_all("disable", &["--force"]);
    for (vip, _) in &all[..2] {
        assert!(!ping(vip, false) && !ping(vip, true), "{vip}");
    }
    assert_eq!(reason(&sluice, "echo_unhealthy"), 4);
    assert!(ping(PLAIN, false), "it is not to be silent");
    of_all("enable", &[]);
    soon(true);
    // What is seen of backends counts as what is said of them.
    scene.nginx.clear();
    soon(false);
    assert!(ping(PLAIN, true));
}
