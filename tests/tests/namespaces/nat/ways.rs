//! Each way that translated packets go: families, networks, addresses, tags and narrow paths.

use std::{fs, net::IpAddr};

use sluice_tests::lab::{
    DEADLINE, Family, Host, Nginx, Plan, dataplane, fetch, is_privileged, until,
};

use super::{UNCHECKED, WEB, backends, egress, nat, sum, web};
use crate::{
    forwarding::{many_reach_all_backends, whole_frames_go_both_ways},
    scene::{Scene, VIP4, VIP6, address, assert_flawless},
};

const ONE_NETWORK: Plan = Plan {
    clients: 1,
    backends: 3,
    second_network: false,
    second_balancer: false,
    vlan: None,
    plain_ports: false,
};
const TWO_NETWORKS: Plan = Plan { second_network: true, ..ONE_NETWORK };

#[test]
fn nat_carries_ipv4() {
    carries(ONE_NETWORK, VIP4);
}

#[test]
fn nat_carries_ipv6() {
    carries(ONE_NETWORK, VIP6);
}

#[test]
fn nat_carries_ipv4_between_two_interfaces() {
    carries(TWO_NETWORKS, VIP4);
}

#[test]
fn nat_carries_ipv6_between_two_interfaces() {
    carries(TWO_NETWORKS, VIP6);
}

fn carries(plan: Plan, vip: &str) {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = web(plan, vip, "");

    // Many connections, over all backends, each of them counted both ways.
    let tally = many_reach_all_backends(&scene, vip);
    for backend in backends(&sluice) {
        let name = backend["name"].as_str().unwrap();
        let count = |name: &str| backend[name].as_u64().unwrap();
        let answers = tally.answers[vip][name];
        assert_eq!(count("new_flows_total"), answers, "{backend}");
        // SYN, ACK, request, FIN; SYN-ACK, answer, FIN.
        assert!(count("packets_total") >= 4 * answers, "{backend}");
        assert!(count("return_packets_total") >= 3 * answers, "{backend}");
        assert!(count("return_bytes_total") > count("bytes_total"), "{backend}");
    }

    whole_frames_go_both_ways(&scene, vip);
    let seen = egress(&scene.lab, Family::of(address(vip).ip()));
    assert_eq!(clients_seen(&scene.nginx), [seen], "the backends' clients");
}

/// Whose requests the backends have answered, sorted, without those of the lab itself.
fn clients_seen(nginx: &[Nginx]) -> Vec<IpAddr> {
    let logs = nginx.iter().map(Nginx::access_log).collect::<String>();
    let lines = logs.lines().filter(|line| !line.contains("/healthz"));
    let mut seen: Vec<IpAddr> =
        lines.map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    seen.sort();
    seen.dedup();
    seen
}

#[test]
fn backends_see_exactly_the_nat_addresses() {
    if !is_privileged() {
        return;
    }
    let scene = Scene::serving(ONE_NETWORK, &[WEB]);
    let named: [[IpAddr; 2]; 2] = [
        ["198.18.1.51", "198.18.1.52"].map(|text| text.parse().unwrap()),
        ["2001:db8:1::51", "2001:db8:1::52"].map(|text| text.parse().unwrap()),
    ];
    let lines = named.map(|named| {
        let named = named.map(|address| address.to_string());
        format!("{UNCHECKED}nat_addresses = {named:?}\n")
    });
    let config = dataplane(&["eth0"])
        + &nat(&scene.lab, "four", (VIP4, WEB), &lines[0])
        + &nat(&scene.lab, "six", (VIP6, WEB), &lines[1]);
    let balancer = scene.lab.balancer();
    let own =
        |balancer: &Host| ["lo", "eth0"].map(|name| balancer.addresses(name).unwrap()).concat();
    let before = own(balancer);
    let sluice = balancer.run_sluice(&config).unwrap();
    for vip in [VIP4, VIP6] {
        let tally = scene.request(vip, 100);
        assert_flawless(&scene, &tally);
        assert_eq!(tally.answers[vip].keys().collect::<Vec<_>>(), scene.backends());
    }
    assert_eq!(clients_seen(&scene.nginx), named.concat());
    // Who is on their network finds them.
    for nat in named.as_flattened() {
        let nat = nat.to_string();
        scene.lab.backends()[0].run("ping", &["-c", "1", "-W", "5", &nat]).unwrap();
    }
    sluice.cli_ok(&["detach"]).unwrap();
    until("the addresses to go", DEADLINE, || (own(balancer) == before).then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {:?}, {before:?} before", own(balancer)));
}

#[test]
fn who_keeps_clients_addresses_shows_them_to_backends() {
    if !is_privileged() {
        return;
    }
    for plan in [ONE_NETWORK, TWO_NETWORKS] {
        let scene = Scene::serving(Plan { clients: 2, ..plan }, &[WEB]);
        let lab = &scene.lab;
        // The way home is the balancer; its kernel forwards nothing.
        for (family, length) in [(Family::V4, 32), (Family::V6, 128)] {
            for client in lab.clients() {
                let (client, balancer) = (client.address(family), egress(lab, family));
                for backend in lab.backends() {
                    backend.ip(&format!("route add {client}/{length} via {balancer}")).unwrap();
                }
            }
        }
        let lines = format!("{UNCHECKED}nat = {{ client_address = \"keep\" }}\n");
        let config = super::interfaces(plan)
            + &nat(lab, "four", (VIP4, WEB), &lines)
            + &nat(lab, "six", (VIP6, WEB), &lines);
        let sluice = lab.balancer().run_sluice(&config).unwrap();
        for vip in [VIP4, VIP6] {
            let tally = scene.request(vip, 100);
            assert_flawless(&scene, &tally);
            assert_eq!(tally.answers[vip].keys().collect::<Vec<_>>(), scene.backends());
            whole_frames_go_both_ways(&scene, vip);
            let second = lab.clients()[1].enter(|| fetch(address(vip), "/", DEADLINE));
            assert!(second.is_ok(), "{second:?}");
        }
        let of = |family| lab.clients().iter().map(move |client| client.address(family));
        let clients = of(Family::V4).chain(of(Family::V6)).collect::<Vec<_>>();
        assert_eq!(clients_seen(&scene.nginx), clients);
        // They take no port of this host.
        assert!(backends(&sluice).iter().all(|backend| backend["nat_ports"].is_null()));
        // The load's, curl's, and one from each client.
        assert_eq!(sum(&sluice, "new_flows_total"), 103);
    }
}

#[test]
fn translated_frames_keep_their_vlan_tag() {
    if !is_privileged() {
        return;
    }
    let plan = Plan { vlan: Some(100), ..ONE_NETWORK };
    // Where the VIPs are, so that the laboratory's trunk tags what backends send there, too.
    for (vip, named) in [(VIP4, "203.0.113.77"), (VIP6, "2001:db8:f00d::77")] {
        let scene = Scene::serving(plan, &[WEB]);
        let family = Family::of(address(vip).ip());
        let balancer = scene.lab.balancer();
        for backend in scene.lab.backends() {
            backend.ip(&format!("route add {named} via {}", balancer.address(family))).unwrap();
        }
        let lines = format!("{UNCHECKED}nat_addresses = [\"{named}\"]\n");
        let config = dataplane(&["eth0"]) + &nat(&scene.lab, "web", (vip, WEB), &lines);
        let _sluice = balancer.run_sluice(&config).unwrap();
        let tally = scene.request(vip, 60);
        assert_flawless(&scene, &tally);
        assert_eq!(tally.answers[vip].keys().collect::<Vec<_>>(), scene.backends());
        let (tagged_in, tagged_out) = scene.lab.tagged_frames();
        assert!(tagged_in >= 7 * 60, "{vip}: {tagged_in} tagged frames went in");
        assert_eq!(tagged_out, tagged_in, "{vip}");
    }
}

/// Bytes that go by a narrow path.
const MUCH: usize = 20_000_000;

#[test]
fn segments_fit_the_narrower_of_two_networks() {
    if !is_privileged() {
        return;
    }
    for vip in [VIP4, VIP6] {
        let scene = Scene::serving(Plan { backends: 1, ..TWO_NETWORKS }, &[WEB]);
        let (client, balancer) = (scene.lab.client(), scene.lab.balancer());
        // The client does not know: it offers segments for 1,500 bytes, as the backend does.
        balancer.ip("link set eth0 mtu 1400").unwrap();
        balancer.ip("link set eth1 mtu 1500").unwrap();
        scene.lab.backends()[0].ip("link set eth0 mtu 1500").unwrap();
        scene.lab.narrow(balancer, 1400).unwrap();
        let config = dataplane(&["eth0", "eth1"]) + &nat(&scene.lab, "web", (vip, WEB), UNCHECKED);
        let sluice = balancer.run_sluice(&config).unwrap();

        let body: Vec<u8> = Nginx::file().into_iter().cycle().take(MUCH).collect();
        let path = scene.lab.directory().join("sent");
        fs::write(&path, &body).unwrap();
        let path = path.display().to_string();
        let url = format!("http://{vip}/put/much");
        client.run("curl", &["-gsS", "--fail", "--max-time", "60", "-T", &path, &url]).unwrap();
        assert!(scene.nginx[0].kept("much").unwrap() == body, "the upload came changed");
        let path = scene.lab.directory().join("fetched");
        let path = path.display().to_string();
        client.run("curl", &["-gsS", "--fail", "--max-time", "60", "-o", &path, &url]).unwrap();
        assert!(fs::read(&path).unwrap() == body, "the download came changed");
        assert_eq!(crate::scene::reason(&sluice, "too_big"), 0);
    }
}
