//! A path with a smaller MTU than its ends, or a tunnel in it, is found, and nothing stalls.

use std::fs;

use sluice_tests::lab::{Family, Host, Nginx, Plan, dataplane, is_privileged};

use crate::scene::{Scene, VIP4, VIP6, address, reason};

/// Bytes that go each way.
const MUCH: usize = 100_000_000;

/// Clients and backends have 1,500 bytes, and so has the network of the tunnel between them.
const NETWORK: u32 = 1500;

/// As much comes as goes, unchanged and at once.
#[track_caller]
fn much_goes_both_ways(scene: &Scene, client: &Host, vip: &str) {
    let body: Vec<u8> = Nginx::file().into_iter().cycle().take(MUCH).collect();
    let path = scene.lab.directory().join("sent");
    fs::write(&path, &body).unwrap();
    let path = path.display().to_string();
    let url = format!("http://{vip}/put/much");
    // What stalls, stalls for good.
    let patience = ["-gsS", "--fail", "--speed-limit", "1000", "--speed-time", "10"];
    client.run("curl", &[&patience[..], &["-T", &path, &url]].concat()).unwrap();
    assert!(scene.nginx[0].kept("much").unwrap() == body, "the upload came changed");
    let path = scene.lab.directory().join("fetched");
    let path = path.display().to_string();
    client.run("curl", &[&patience[..], &["-o", &path, &url]].concat()).unwrap();
    assert!(fs::read(&path).unwrap() == body, "the download came changed");
}

#[test]
fn a_tunnel_no_wider_than_the_clients_network_carries_much_both_ways() {
    if !is_privileged() {
        return;
    }
    for (vip, inside) in
        [(VIP4, Family::V4), (VIP4, Family::V6), (VIP6, Family::V4), (VIP6, Family::V6)]
    {
        let mut scene = Scene::start(Plan { backends: 1, ..Plan::default() });
        scene.own(vip, "ipip");
        let (balancer, backend) = (scene.lab.balancer(), &scene.lab.backends()[0]);
        for host in [balancer, backend] {
            host.ip(&format!("link set eth0 mtu {NETWORK}")).unwrap();
            scene.lab.narrow(host, NETWORK).unwrap();
        }
        let config = dataplane(&["eth0"]) + &scene.service("web", vip, "ipip", inside);
        let sluice = balancer.run_sluice(&config).unwrap();

        much_goes_both_ways(&scene, scene.lab.client(), vip);
        let told = reason(&sluice, "too_big");
        // Once, and the segments that were on their way by then.
        assert!((1..100).contains(&told), "{vip} in {inside:?}: told {told} times");
        assert_eq!(reason(&sluice, "too_big_unanswered"), 0);
        let client = scene.lab.client();
        let cached = client.run("ip", &["route", "get", &address(vip).ip().to_string()]).unwrap();
        let overhead = if inside == Family::V4 { 20 } else { 40 };
        assert!(cached.contains(&format!(" mtu {} ", NETWORK - overhead)), "{cached}");
    }
}

#[test]
fn a_client_behind_a_narrower_link_gets_much_both_ways() {
    if !is_privileged() {
        return;
    }
    for (vip, forwarding, family) in [
        (VIP4, "ipip", Family::V4),
        (VIP6, "ipip", Family::V6),
        (VIP4, "l2", Family::V4),
        (VIP6, "nat", Family::V6),
    ] {
        let mut scene = Scene::start(Plan { backends: 1, ..Plan::default() });
        scene.own(vip, forwarding);
        let (balancer, backend) = (scene.lab.balancer(), &scene.lab.backends()[0]);
        for host in [balancer, backend] {
            host.ip(&format!("link set eth0 mtu {NETWORK}")).unwrap();
            scene.lab.narrow(host, NETWORK).unwrap();
        }
        let far = scene.lab.behind_the_client(1400).unwrap();
        let config = dataplane(&["eth0"]) + &scene.service("web", vip, forwarding, family);
        let _sluice = balancer.run_sluice(&config).unwrap();

        much_goes_both_ways(&scene, &far, vip);
        // The backend has heard of it: the router's errors have found it by way of the VIP.
        let to = match family {
            Family::V4 => "198.18.9.2",
            Family::V6 => "2001:db8:9::2",
        };
        let from = address(vip).ip().to_string();
        let get = ["route", "get", to, "from", &from];
        let heard = backend.run("ip", &get).unwrap();
        assert!(forwarding == "nat" || heard.contains(" mtu 1400 "), "{heard}");
    }
}

#[test]
fn an_mss_clamp_serves_clients_whom_icmp_does_not_reach() {
    if !is_privileged() {
        return;
    }
    for (vip, forwarding, most) in [(VIP4, "l2", 1360), (VIP6, "ipip", 1340), (VIP4, "nat", 1360)] {
        let mut scene = Scene::start(Plan { backends: 1, ..Plan::default() });
        scene.own(vip, forwarding);
        let far = scene.lab.behind_the_client(1400).unwrap();
        // Their router tells nobody that its next link is narrower.
        let silent = "table inet silent { chain out { type filter hook output priority 0; \
                      icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }";
        scene.lab.client().run("nft", &[silent]).unwrap();
        let config = |lines: &str| {
            let service = scene.service_with("web", vip, forwarding, lines);
            dataplane(&["eth0"]) + &service
        };
        let mut sluice = scene.lab.balancer().run_sluice(&config("")).unwrap();
        let url = format!("http://{vip}/file");
        let fetch = ["-gsS", "--fail", "-o", "/dev/null", "--max-time", "3", &url];
        far.run("curl", &fetch).unwrap_err();

        sluice.reconfigure(&config(&format!("mss_clamp = {most}\n"))).unwrap();
        much_goes_both_ways(&scene, &far, vip);
        assert_eq!(reason(&sluice, "too_big"), 0);
    }
}
