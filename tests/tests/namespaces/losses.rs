//! What is lost after the program's decision is told.

use std::{net::Ipv4Addr, time::Duration};

use lb_common::losses::Loss;
use lb_userspace::datapath::Losses;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sluice_tests::lab::{DEADLINE, Family, Host, Lab, Plan, Program, is_privileged, until};

use crate::scene::{SYN, Scene, VIP4, segment};

const SENT: u16 = 100;

#[test]
fn redirects_to_an_interface_that_is_down_are_counted_and_told() {
    if !is_privileged() {
        return;
    }
    let plan = Plan { second_network: true, ..Plan::default() };
    let (scene, sluice) = Scene::forwarding(plan, VIP4, "l2", Family::V4);
    let balancer = scene.lab.balancer();
    let metrics = || {
        let get = ["-sS", "--fail", "--max-time", "5", "http://127.0.0.1:9180/metrics"];
        balancer.run("curl", &get).unwrap()
    };
    let text = metrics();
    assert!(text.contains("\nsluice_losses_watched 1\n"), "{}", sluice.log());
    assert!(!text.contains("\nsluice_interface_redirect_errors_total"), "{text}");

    // While the daemon does nothing, the program goes on with what it knows.
    let daemon = Pid::from_raw(sluice.pid().unwrap() as i32);
    kill(daemon, Signal::SIGSTOP).unwrap();
    balancer.ip("link set eth1 down").unwrap();
    let before = received(balancer);
    let eth0 = &balancer.interfaces()[0];
    let macs = [eth0.mac(), scene.lab.client().interfaces()[0].mac()];
    let socket = scene.lab.wire(eth0).unwrap();
    for port in 0..SENT {
        let client = (Ipv4Addr::new(198, 18, 1, 2), 40_000 + port);
        socket.send(&segment(macs.as_flattened(), client, 80, SYN)).unwrap();
    }
    let arrived = until("the frames to arrive", DEADLINE, || {
        (received(balancer) >= before + u64::from(SENT)).then_some(())
    });
    kill(daemon, Signal::SIGCONT).unwrap();
    arrived.unwrap();

    let labels = r#"error="ENETDOWN",interface="eth0",target="eth1""#;
    let line = format!("\nsluice_interface_redirect_errors_total{{{labels}}} {SENT}\n");
    until("the losses to be counted", DEADLINE, || metrics().contains(&line).then_some(()))
        .unwrap_or_else(|error| panic!("{error:#}: no {line} in {}", metrics()));
    let status = sluice.status().unwrap();
    let trouble = status["troubles"].as_array().unwrap().iter();
    let trouble: Vec<_> = trouble.filter(|trouble| trouble["kind"] == "losses").collect();
    assert_eq!(trouble.len(), 1, "{status}");
    assert_eq!(trouble[0]["about"], "interface eth0", "{status}");
    assert_eq!(trouble[0]["mend"], "`ip link set eth1 up`", "{status}");
    let says = "eth0 loses frames that it should redirect to eth1 (ENETDOWN";
    let events = sluice.cli_ok(&["events"]).unwrap();
    assert_eq!(events.matches(says).count(), 1, "{events}");

    balancer.ip("link set eth1 up").unwrap();
    until("it to be over", 3 * DEADLINE, || {
        let status = sluice.status().unwrap();
        let kinds = status["troubles"].as_array().unwrap().iter().map(|trouble| &trouble["kind"]);
        { kinds }.all(|kind| kind != "losses").then_some(())
    })
    .unwrap();
}

/// Frames that have come in by `eth0`.
fn received(host: &Host) -> u64 {
    let text = host.run("ip", &["-json", "-statistics", "link", "show", "eth0"]).unwrap();
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

#[test]
fn what_a_program_fails_on_is_counted_with_the_program() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 0, ..Plan::default() }).unwrap();
    let mut losses = Losses::watch().unwrap();
    let program = Program::abort().unwrap();
    let balancer = lab.balancer();
    let _attached = program.attach(balancer.namespace(), "eth0").unwrap();
    let program = balancer.xdp("eth0").unwrap().unwrap()["prog"]["id"].as_u64().unwrap() as u32;
    let socket = lab.wire(&balancer.interfaces()[0]).unwrap();
    let macs = [balancer.interfaces()[0].mac(), lab.client().interfaces()[0].mac()];
    for port in 0..SENT {
        let frame = segment(macs.as_flattened(), (Ipv4Addr::LOCALHOST, port), 80, SYN);
        socket.send(&frame).unwrap();
    }
    let interface = balancer.enter(|| nix::net::if_::if_nametoindex("eth0").unwrap());
    let aborted = Loss { program, interface, ..Loss::default() };
    // Neighbour discovery may be among them.
    let enough = |count: &u64| *count >= u64::from(SENT);
    until("all to be counted", Duration::from_secs(5), || {
        let ours = losses.read(|id| id == program).unwrap();
        assert!(ours.keys().all(|loss| *loss == aborted), "{ours:?}");
        ours.get(&aborted).filter(|count| enough(count)).map(|_| ())
    })
    .unwrap();
    assert!(losses.read(|_| false).unwrap().is_empty(), "others are nobody's business");
}
