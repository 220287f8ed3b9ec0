//! `sluice explain` tells what then happens, and leaves no trace of having been asked.

use std::net::{SocketAddr, TcpStream};

use lb_userspace::{datapath::Reading, instance::Instance};
use serde_json::Value;
use sluice_tests::lab::{DEADLINE, Family, Plan, Sluice, dataplane, is_privileged, until};

use crate::{
    health::{until_health, web_on_three},
    scene::{Scene, VIP4, VIP6, address},
};

fn explain(sluice: &Sluice, client: SocketAddr, vip: &str, more: &[&str]) -> Value {
    let client = client.to_string();
    sluice.json(&[&["explain", &client, vip], more].concat()).unwrap()
}

fn text(sluice: &Sluice, client: SocketAddr, vip: &str) -> String {
    sluice.cli_ok(&["explain", &client.to_string(), vip]).unwrap()
}

/// Who answers a request from this port of the client.
fn answers(scene: &Scene, vip: &str, port: u16) -> String {
    let url = format!("http://{vip}/");
    let port = port.to_string();
    let arguments = ["-sS", "-i", "--max-time", "5", "--local-port", &port, &url];
    let answer = scene.lab.client().run("curl", &arguments).unwrap();
    let header = answer.lines().find_map(|line| line.strip_prefix("X-Backend: "));
    header.unwrap_or_else(|| panic!("nobody says who he is: {answer}")).trim().to_owned()
}

#[test]
fn who_is_named_answers() {
    if !is_privileged() {
        return;
    }
    let cases = [
        (VIP4, "l2", Family::V4),
        (VIP6, "l2", Family::V6),
        (VIP4, "ipip", Family::V6),
        (VIP4, "nat", Family::V4),
        (VIP6, "nat", Family::V6),
    ];
    for (vip, forwarding, family) in cases {
        println!("{vip} by {forwarding} over {family:?}");
        let (scene, sluice) = Scene::forwarding(Plan::default(), vip, forwarding, family);
        let client = scene.lab.client().address(Family::of(address(vip).ip()));
        for port in 41_000..41_030 {
            let told = explain(&sluice, SocketAddr::new(client, port), vip, &[]);
            assert_eq!(told["segment"]["kind"], "syn", "{told}");
            assert_eq!(told["verdict"]["becomes"], "forwarded", "{told}");
            assert_eq!(told["check"]["result"], "agrees", "{told}");
            assert_eq!(told["backend"]["forwarding"], forwarding, "{told}");
            assert_eq!(told["daemon"]["backend"]["name"], answers(&scene, vip, port), "{told}");
        }
        println!("{}", text(&sluice, SocketAddr::new(client, 41_030), vip));
    }
}

#[test]
fn a_known_flow_is_told_with_its_state_and_stays_as_it_is() {
    if !is_privileged() {
        return;
    }
    for forwarding in ["l2", "nat"] {
        let (scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, forwarding, Family::V4);
        let host = scene.lab.client();
        let stream = host.enter(|| TcpStream::connect(address(VIP4))).unwrap();
        let client = stream.local_addr().unwrap();
        let listed = until("the flow to be listed", DEADLINE, || {
            let flows = sluice.json(&["flows", "--client", &client.ip().to_string()]).unwrap();
            flows["flows"].as_array().unwrap().first().cloned()
        });
        let listed = listed.unwrap();
        let told = explain(&sluice, client, VIP4, &[]);
        assert_eq!(told["segment"]["kind"], "ack", "{told}");
        assert_eq!(told["flow"]["standing"], "known", "{told}");
        assert_eq!(told["flow"]["state"], listed["state"], "{told}");
        assert_eq!(told["daemon"]["backend"]["name"], listed["backend"], "{told}");
        let translated = told["flow"]["client_at_backend"].is_string();
        assert_eq!(translated, forwarding == "nat", "{told}");

        let instance: Instance = scene.lab.balancer().name().parse().unwrap();
        let reading =
            scene.lab.balancer().enter(|| Reading::open(&instance)).expect("it is attached");
        let trace = || {
            let groups = (0..).map_while(|index| reading.group(index)).flatten();
            let words: Vec<u64> = groups.collect();
            let records = (0..words.len() as u32).map(|word| reading.record(word));
            let records: Vec<_> = records.collect();
            let indices: Vec<u16> = (1..10).collect();
            (words, records, reading.maps.counters(&indices).unwrap())
        };
        let reasons = || {
            let all = reading.maps.reason_counts().unwrap();
            // Of what nobody asked for, ARP and neighbour discovery, there may be more.
            all.into_iter().enumerate().filter(|(reason, _)| *reason > 1).collect::<Vec<_>>()
        };
        let not_vip = || reading.maps.reason_counts().unwrap()[1];
        let before = (trace(), reasons(), not_vip());
        for flags in [&["--syn"][..], &["--ack"], &[]] {
            explain(&sluice, client, VIP4, flags);
            for port in 41_000..41_010 {
                explain(&sluice, SocketAddr::new(client.ip(), port), VIP4, flags);
                explain(&sluice, SocketAddr::new(client.ip(), port), "203.0.113.10:81", flags);
                let other = explain(&sluice, client, "192.0.2.1:80", flags);
                assert_eq!(other["verdict"]["reason"], "not_vip", "{other}");
                assert_eq!(other["verdict"]["becomes"], "passed", "{other}");
            }
        }
        assert!(trace() == before.0, "flows, records or counts have changed: {forwarding}");
        assert_eq!(reasons(), before.1);
        assert!(not_vip() - before.2 < 10, "30 were asked about");
        println!("{}", text(&sluice, client, VIP4));

        // Nobody but the kernel is needed; only names are missing.
        sluice.kill9().unwrap();
        let orphan = explain(&sluice, client, VIP4, &[]);
        assert_eq!(orphan["backend"], told["backend"], "{orphan}");
        assert_eq!(
            (&orphan["daemon"], &orphan["flow"]["word"]),
            (&Value::Null, &told["flow"]["word"])
        );
        assert!(text(&sluice, client, VIP4).contains("no daemon answers"));
    }
}

#[test]
fn why_a_backend_has_no_new_flows_is_told() {
    if !is_privileged() {
        return;
    }
    let (mut scene, sluice) = web_on_three();
    let host = scene.lab.client();
    let stream = host.enter(|| TcpStream::connect(address(VIP4))).unwrap();
    let client = stream.local_addr().unwrap();
    let told = until("the flow to be known", DEADLINE, || {
        let told = explain(&sluice, client, VIP4, &[]);
        (told["flow"]["standing"] == "known").then_some(told)
    });
    let owner = told.unwrap()["daemon"]["backend"]["name"].as_str().unwrap().to_owned();
    sluice.cli_ok(&["backend", "drain", "web", &owner]).unwrap();
    let known = text(&sluice, client, VIP4);
    assert!(known.contains("keeps its flows, takes no new flows: draining"), "{known}");
    assert!(known.contains(&format!("forwarded to {owner} by eth0")), "{known}");

    // Another one's service dies.
    let other = (0..3).find(|index| scene.lab.backends()[*index].role() != owner).unwrap();
    let name = scene.lab.backends()[other].role().to_owned();
    scene.nginx.remove(other);
    until_health(&sluice, ("web", &name), "unhealthy");
    let third = scene.backends().into_iter().find(|backend| *backend != owner && *backend != name);
    for port in 41_000..41_010 {
        let fresh = SocketAddr::new(client.ip(), port);
        let told = explain(&sluice, fresh, VIP4, &[]);
        assert_eq!(told["daemon"]["backend"]["name"], third.unwrap(), "{told}");
        let idle = told["daemon"]["without_new_flows"].as_array().unwrap();
        let why = |of: &str| idle.iter().find(|backend| backend["name"] == of).unwrap();
        assert_eq!(why(&owner)["why"], "draining", "{told}");
        assert_eq!(why(&name)["health"], "unhealthy", "{told}");
    }
    let told = text(&sluice, SocketAddr::new(client.ip(), 41_000), VIP4);
    assert!(told.contains("not for new flows: ") && told.contains(&name), "{told}");

    sluice.cli_ok(&["backend", "disable", "web", &owner, "--force"]).unwrap();
    let gone = explain(&sluice, client, VIP4, &["--ack"]);
    assert_eq!(gone["flow"]["standing"], "backend_gone", "{gone}");
    assert_eq!(
        (&gone["verdict"]["becomes"], &gone["verdict"]["reason"]),
        (&"reset".into(), &"backend_gone".into())
    );
    let told = text(&sluice, client, VIP4);
    assert!(told.contains("the client gets a RST"), "{told}");
    drop(stream);
}

#[test]
fn what_can_not_be_explained_is_refused_in_one_line() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    let refused = |arguments: &[&str], code: i32, says: &str| {
        let output = sluice.cli(&[&["explain"], arguments].concat()).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(says), "{arguments:?}: {error}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    };
    refused(&["198.18.1.2:1", VIP6], 2, "are of two families");
    refused(&["198.18.1.2:0", VIP4], 2, "nobody has port 0");
    refused(&["198.18.1.2", VIP4], 2, "no address and port");
    // From another network namespace, and as nobody.
    let instance = scene.lab.balancer().name();
    let mut elsewhere = scene.lab.client().command(sluice_tests::lab::sluice_binary().unwrap());
    let elsewhere = elsewhere.args(["--instance", instance, "explain", "198.18.1.2:1", VIP4]);
    let error = elsewhere.output().unwrap().stderr;
    let error = String::from_utf8_lossy(&error);
    assert!(error.contains("in another network namespace"), "{error}");
    sluice.cli_ok(&["detach"]).unwrap();
    refused(&["198.18.1.2:1", VIP4], 1, "is not attached to any interface");
}

#[test]
fn where_it_arrives_decides_how_it_leaves() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan { second_network: true, ..Plan::default() });
    scene.own(VIP4, "ipip");
    let config = dataplane(&["eth0", "eth1"]) + &scene.service("web", VIP4, "ipip", Family::V4);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let client = SocketAddr::new(scene.lab.client().address(Family::V4), 41_000);
    for (asked, arrives_on) in
        [(&[][..], "eth0"), (&["--interface", "eth0"], "eth0"), (&["--interface", "eth1"], "eth1")]
    {
        let told = explain(&sluice, client, VIP4, asked);
        assert_eq!(told["arrives_on"], arrives_on, "{told}");
        assert_eq!(told["leaves_by"], "eth1", "{told}");
        assert_eq!(told["check"]["result"], "agrees", "{told}");
    }
    let wrong = ["explain", &client.to_string(), VIP4, "--interface", "eth7"];
    let refused = sluice.cli(&wrong).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let says = String::from_utf8_lossy(&refused.stderr);
    assert!(says.contains("is not attached to eth7: it is to eth0, eth1"), "{says}");
}
