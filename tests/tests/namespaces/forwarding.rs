//! Each way of forwarding, with real clients and servers.

use std::{fs, io::ErrorKind, net::UdpSocket, time::Duration};

use sluice_tests::lab::{
    Failure, Family, Lab, Nginx, Plan, Tally, dataplane, fetch, is_privileged,
};

use crate::scene::{Scene, VIP4, VIP6, address, assert_flawless};

#[test]
fn l2_carries_ipv4() {
    carries(VIP4, "l2", Family::V4);
}

#[test]
fn l2_carries_ipv6() {
    carries(VIP6, "l2", Family::V6);
}

#[test]
fn ipip_carries_ipv4_in_ipv4() {
    carries(VIP4, "ipip", Family::V4);
}

#[test]
fn ipip_carries_ipv6_in_ipv6() {
    carries(VIP6, "ipip", Family::V6);
}

#[test]
fn ipip_carries_ipv4_in_ipv6() {
    carries(VIP4, "ipip", Family::V6);
}

#[test]
fn ipip_carries_ipv6_in_ipv4() {
    carries(VIP6, "ipip", Family::V4);
}

fn carries(vip: &str, forwarding: &str, backends: Family) {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), vip, forwarding, backends);
    let client = scene.lab.client();

    many_reach_all_backends(&scene, vip);

    // The balancer has counted them, and nothing else.
    let status = sluice.status().unwrap();
    let service = &status["services"][0];
    let counted = service["backends"].as_array().unwrap().iter().map(|backend| {
        assert!(backend["packets_total"].as_u64().unwrap() > 0, "{backend}");
        backend["new_flows_total"].as_u64().unwrap()
    });
    assert_eq!(counted.sum::<u64>(), 300, "{service}");

    // The client's fill its MTU before a tunnel header is added.
    whole_frames_go_both_ways(&scene, vip);

    // Direct server return: backends see the client's own address.
    let address = client.address(Family::of(address(vip).ip())).to_string();
    for nginx in &scene.nginx {
        assert!(nginx.access_log().lines().any(|line| line.starts_with(&format!("{address} "))));
    }
}

/// Many connections, over all backends: none fails, and each backend has its share.
#[track_caller]
pub fn many_reach_all_backends(scene: &Scene, vip: &str) -> Tally {
    let tally = scene.request(vip, 300);
    assert_flawless(scene, &tally);
    for (backend, answers) in &tally.answers[vip] {
        assert!((50..150).contains(answers), "{backend}: {answers} of 300");
    }
    assert_eq!(tally.answers[vip].keys().collect::<Vec<_>>(), scene.backends());
    tally
}

/// A file comes unchanged, and goes so: its frames fill the client's MTU.
#[track_caller]
pub fn whole_frames_go_both_ways(scene: &Scene, vip: &str) {
    let client = scene.lab.client();
    let path = scene.lab.directory().join("sent");
    fs::write(&path, Nginx::file()).unwrap();
    let path = path.display().to_string();
    let put = format!("http://{vip}/put/file");
    client.run("curl", &["-gsS", "--fail", "--max-time", "20", "-T", &path, &put]).unwrap();
    let kept = scene.nginx.iter().find_map(|nginx| nginx.kept("file"));
    assert!(kept.expect("a backend has the file") == Nginx::file(), "the upload came changed");
    let fetched = client.enter(|| fetch(address(vip), "/file", Duration::from_secs(20)));
    assert!(fetched.unwrap().body == Nginx::file(), "the download came changed");
}

#[test]
fn ipip_is_decapsulated_by_a_kernel_tunnel_device_too() {
    if !is_privileged() {
        return;
    }
    let cases = [
        ("ipip", VIP4, Family::V4, "link add tunnel0 type ipip external"),
        ("ip6tnl", VIP6, Family::V6, "link add tunnel0 type ip6tnl mode any external"),
    ];
    for (kind, vip, family, add) in cases {
        if Lab::start(Plan { backends: 0, ..Plan::default() }).unwrap().balancer().ip(add).is_err()
        {
            eprintln!("skipped: this kernel has no {kind} device");
            continue;
        }
        let scene = Scene::start(Plan::default());
        for host in scene.lab.backends() {
            host.ip(add).unwrap();
            host.ip("link set tunnel0 up").unwrap();
            host.sysctl("net.ipv4.conf.tunnel0.rp_filter", "0").unwrap();
            host.own_vip_quietly(address(vip).ip()).unwrap();
        }
        let config = dataplane(&["eth0"]) + &scene.service("web", vip, "ipip", family);
        let _sluice = scene.lab.balancer().run_sluice(&config).unwrap();
        let tally = scene.request(vip, 60);
        assert_flawless(&scene, &tally);
        assert_eq!(tally.answers[vip].keys().collect::<Vec<_>>(), scene.backends());
    }
}

#[test]
fn generic_xdp_forwards_too() {
    generically([("l2", VIP4, Family::V4), ("ipip", VIP6, Family::V4)]);
}

#[test]
fn generic_xdp_translates_too() {
    generically([("nat", VIP4, Family::V4), ("nat", VIP6, Family::V6)]);
}

fn generically(cases: [(&str, &str, Family); 2]) {
    if !is_privileged() {
        return;
    }
    for (forwarding, vip, family) in cases {
        let mut scene = Scene::start(Plan::default());
        scene.own(vip, forwarding);
        let config = dataplane(&["eth0"]).trim_end().to_owned()
            + "\nxdp_mode = \"generic\"\n"
            + &scene.service("web", vip, forwarding, family);
        let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
        assert_eq!(sluice.status().unwrap()["interfaces"][0]["xdp_mode"], "generic");
        let tally = scene.request(vip, 60);
        assert_flawless(&scene, &tally);
        assert_eq!(tally.answers[vip].keys().collect::<Vec<_>>(), scene.backends());
    }
}

/// Frames larger than a page lie in several buffers, also natively.
#[test]
fn jumbo_frames_are_forwarded_natively() {
    if !is_privileged() {
        return;
    }
    let ways = [("l2", VIP4, Family::V4), ("ipip", VIP6, Family::V4), ("nat", VIP4, Family::V4)];
    for (forwarding, vip, family) in ways {
        let mut scene = Scene::start(Plan::default());
        let lab = &scene.lab;
        // The tunnel's header fits on top of the clients' 9,000 bytes.
        let inner = lab.backends().iter().chain([lab.balancer()]).map(|host| (host, 9100));
        for (host, mtu) in inner.chain([(lab.client(), 9000)]) {
            lab.narrow(host, 9100).unwrap();
            host.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
        }
        scene.own(vip, forwarding);
        let mut config = dataplane(&["eth0"]).trim_end().to_owned();
        config += "\nxdp_mode = \"native\"\n";
        config += &scene.service("web", vip, forwarding, family);
        let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
        whole_frames_go_both_ways(&scene, vip);
        let traffic = sluice.status().unwrap()["services"][0]["backends"].take();
        let sum = |what: &str| {
            let backends = traffic.as_array().unwrap().iter();
            backends.map(|backend| backend[what].as_u64().unwrap()).sum::<u64>()
        };
        // One frame in so many is a large one: an average of Ethernet's is below 1,600.
        let (bytes, packets) = (sum("bytes_total"), sum("packets_total"));
        assert!(bytes / packets > 1600, "{forwarding}: {bytes} bytes in {packets} packets");
    }
}

#[test]
fn many_services_of_all_kinds_share_one_balancer() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    let services = [
        ("l2-ipv4", "203.0.113.11:80", "l2", Family::V4),
        ("l2-ipv6", "[2001:db8:f00d::11]:80", "l2", Family::V6),
        ("ipip-4in4", "203.0.113.12:80", "ipip", Family::V4),
        ("ipip-6in4", "[2001:db8:f00d::12]:80", "ipip", Family::V4),
        ("ipip-4in6", "203.0.113.13:80", "ipip", Family::V6),
        ("ipip-6in6", "[2001:db8:f00d::13]:80", "ipip", Family::V6),
        ("nat-ipv4", "203.0.113.14:80", "nat", Family::V4),
        ("nat-ipv6", "[2001:db8:f00d::14]:80", "nat", Family::V6),
    ];
    let vips = services.map(|(_, vip, ..)| address(vip).ip());
    scene.agents =
        scene.lab.backends().iter().map(|host| host.run_agent(&vips, &[]).unwrap()).collect();
    let config = services
        .iter()
        .map(|(name, vip, forwarding, family)| scene.service(name, vip, forwarding, *family));
    let config = dataplane(&["eth0"]) + &config.collect::<String>();
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    for (name, vip, ..) in services {
        let tally = scene.request(vip, 60);
        assert_flawless(&scene, &tally);
        assert_eq!(tally.answers[vip].keys().collect::<Vec<_>>(), scene.backends(), "{name}");
    }
    let status = sluice.status().unwrap();
    assert_eq!(status["services"].as_array().unwrap().len(), services.len());
    assert_eq!(status["interfaces"][0]["xdp_mode"], "native", "{status}");
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    if !is_privileged() {
        return;
    }
    let scene = Scene::start(Plan { backends: 0, ..Plan::default() });
    let config = dataplane(&["eth0"])
        + &scene.service("empty-4", VIP4, "l2", Family::V4)
        + &scene.service("empty-6", VIP6, "ipip", Family::V6);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    for vip in [VIP4, VIP6] {
        let answer =
            scene.lab.client().enter(|| fetch(address(vip), "/", Duration::from_millis(500)));
        assert_eq!(answer, Err(Failure::Refused), "{vip}");
    }
    let reasons = sluice.cli_ok(&["reasons"]).unwrap();
    assert!(reasons.contains("no_backend"), "{reasons}");
}

#[test]
fn what_is_not_a_services_reaches_the_balancers_own_kernel() {
    if !is_privileged() {
        return;
    }
    let (scene, _sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    let (client, balancer) = (scene.lab.client(), scene.lab.balancer());
    let _own = Nginx::start(balancer, &[22]).unwrap();
    for family in [Family::V4, Family::V6] {
        let ssh = std::net::SocketAddr::new(balancer.address(family), 22);
        let answer = client.enter(|| fetch(ssh, "/", Duration::from_secs(5))).unwrap();
        assert_eq!(answer.backend, "balancer");
    }
    // The VIP is the balancer's own, so it answers pings for it, and refuses other ports.
    client.run("ping", &["-c", "1", "-W", "5", &address(VIP4).ip().to_string()]).unwrap();
    let other = std::net::SocketAddr::new(address(VIP4).ip(), 81);
    let answer = client.enter(|| fetch(other, "/", Duration::from_millis(500)));
    assert_eq!(answer, Err(Failure::Refused));
    // And UDP to the service's own port: "port unreachable" (RFC 1122 §4.1.3.1).
    let refused = client.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect(address(VIP4)).unwrap();
        socket.send(b"anybody?").unwrap();
        socket.recv(&mut [0; 8]).unwrap_err().kind()
    });
    assert_eq!(refused, ErrorKind::ConnectionRefused);
}

#[test]
fn a_client_on_the_vips_own_network_finds_it_by_arp() {
    finds_on_link(VIP4, Family::V4, "203.0.113.0/24");
}

#[test]
fn a_client_on_the_vips_own_network_finds_it_by_neighbour_discovery() {
    finds_on_link(VIP6, Family::V6, "2001:db8:f00d::/48");
}

fn finds_on_link(vip: &str, family: Family, prefix: &str) {
    if !is_privileged() {
        return;
    }
    let (scene, _sluice) = Scene::forwarding(Plan::default(), vip, "l2", family);
    let client = scene.lab.client();
    client.ip(&format!("route del {prefix}")).unwrap();
    client.ip(&format!("route add {prefix} dev eth0")).unwrap();
    let ping = address(vip).ip().to_string();
    client.run("ping", &["-c", "1", "-W", "5", &ping]).unwrap();
    let tally = scene.request(vip, 60);
    assert_flawless(&scene, &tally);
    assert_eq!(tally.answers[vip].keys().collect::<Vec<_>>(), scene.backends());
}

#[test]
fn ports_that_clients_use_again_at_once_connect() {
    if !is_privileged() {
        return;
    }
    let (scene, _sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    // Each port some twenty times, while its last connection is still in the flow table.
    scene.lab.client().sysctl("net.ipv4.ip_local_port_range", "40000 40099").unwrap();
    let tally = scene.request(VIP4, 2000);
    assert_flawless(&scene, &tally);
}
