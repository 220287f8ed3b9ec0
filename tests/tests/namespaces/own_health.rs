//! The balancer's own health: what survives its daemon, and what it notices of itself.

use std::fs;

use lb_common::abi::ServiceKey;
use lb_userspace::{
    datapath::{Maps, Pins},
    instance::Instance,
};
use sluice_tests::lab::{
    Conversations, DEADLINE, Plan, Program, Sluice, dataplane, is_privileged, until,
};

use crate::{
    death::{ECHO, web_and_echo},
    health::{
        backend, until_backend, until_event, until_health, until_ill, until_well, web_on_three,
    },
    scene::{Scene, VIP4, address},
};

#[test]
fn what_was_seen_holds_as_stale_until_the_first_probe() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, "l2");
    // A SYN that is lost is sent again after one second, and then found answered.
    let lines = "health = { check = \"tcp\", interval = \"6s\", timeout = \"6s\", fall = 1 }\n";
    let config = dataplane(&["eth0"]) + &scene.service_with("web", VIP4, "l2", lines);
    scene.nginx.remove(2);
    let mut sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    for name in ["web-1", "web-2"] {
        until_health(&sluice, ("web", name), "healthy");
    }
    until_ill(&sluice, ("web", "web-3"), "unhealthy", "connection refused");
    let kept = sluice.state().join("health.json");
    until("that to be kept", DEADLINE, || {
        let text = fs::read_to_string(&kept).unwrap_or_default();
        (text.matches("\"healthy\"").count() == 2 && text.contains("\"unhealthy\"")).then_some(())
    })
    .unwrap();

    let muted = [0, 2].map(|index| scene.lab.mute(&scene.lab.backends()[index]).unwrap());
    sluice.kill9().unwrap();
    sluice.start().unwrap();
    let seen = [0, 2].map(|index: usize| backend(&sluice, "web", scene.backends()[index]));
    for (seen, health) in seen.iter().zip(["healthy", "unhealthy"]) {
        assert_eq!((&seen["stale"], &seen["health"]), (&true.into(), &health.into()), "{seen}");
        assert_eq!(seen["takes_new_flows"], health == "healthy", "{seen}");
    }
    until_backend(&sluice, ("web", "web-2"), "probed", |it| it["stale"] == false);
    drop(muted);
    for (name, health) in [("web-1", "healthy"), ("web-3", "unhealthy")] {
        let seen = until_backend(&sluice, ("web", name), "probed", |it| it["stale"] == false);
        assert_eq!(seen["health"], health, "{seen}");
    }
}

#[test]
fn killing_the_daemon_changes_nothing_for_clients() {
    if !is_privileged() {
        return;
    }
    let (_echoes, scene, mut sluice) = web_and_echo(r#"check = "http""#);
    let talks = Conversations::start(scene.lab.client(), address(ECHO), 12).unwrap();
    let load = scene.load(VIP4);
    load.run_for_requests(100, DEADLINE).unwrap();
    sluice.kill9().unwrap();
    load.run_for_requests(500, DEADLINE).unwrap();
    sluice.start().unwrap();
    ["web", "echo"].into_iter().for_each(|of| until_well(&sluice, of));
    load.run_for_requests(100, DEADLINE).unwrap();
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "of {}:\n{}", tally.requests, tally.causes());
    assert_eq!(talks.stop().broken, Vec::<String>::new());
}

/// Waits until the status names this problem.
#[track_caller]
fn until_problem(sluice: &Sluice, text: &str) {
    let named = until(&format!("the problem {text:?}"), DEADLINE, || {
        sluice.status().unwrap()["problems"].to_string().contains(text).then_some(())
    });
    named.unwrap_or_else(|error| panic!("{error:#}: {}", sluice.status().unwrap()));
}

/// Waits until the instance is ready again, with everybody well, and serves.
#[track_caller]
fn until_all_is_well(scene: &Scene, sluice: &Sluice) {
    let ready = until("it to be ready", DEADLINE, || {
        (sluice.status().unwrap()["ready"] == true).then_some(())
    });
    ready.unwrap_or_else(|error| panic!("{error:#}: {}", sluice.status().unwrap()));
    until_well(sluice, "web");
    assert_eq!(sluice.cli_ok(&["check-ready"]).unwrap(), "ready\n");
    let tally = scene.request(VIP4, 60);
    assert_eq!(tally.failed(), 0, "of {}:\n{}", tally.requests, tally.causes());
}

#[test]
fn a_program_taken_off_and_a_map_entry_destroyed_are_noticed_and_mended() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = web_on_three();
    fs::remove_file(sluice.pins().join("links/eth0")).unwrap();
    until_event(&sluice, "eth0 ran no program: attached");
    until_all_is_well(&scene, &sluice);

    let instance: Instance = scene.lab.balancer().name().parse().unwrap();
    let maps = || Maps::pinned(&Pins::of(&instance)).unwrap();
    let vip = address(VIP4);
    let port = vip.port().to_be_bytes();
    let key = ServiceKey { address: vip.ip().into(), port, protocol: 6, reserved: [0; 5] };
    maps().remove_service_index(&key).unwrap();
    until_event(&sluice, "was changed; written again");
    until_all_is_well(&scene, &sluice);
    assert!(sluice.status().unwrap()["drift_repairs_total"].as_u64().unwrap() > 0);
}

#[test]
fn another_program_on_the_interface_is_noticed() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = web_on_three();
    // As another tool would: ours is off, theirs is on before the daemon looks.
    let balancer = scene.lab.balancer();
    let pass = Program::pass().unwrap();
    let theirs = until("their program to be first", DEADLINE, || {
        // Not there: the daemon has not attached again yet.
        let _ = fs::remove_file(sluice.pins().join("links/eth0"));
        pass.attach(balancer.namespace(), "eth0").ok()
    });
    let theirs = theirs.unwrap();
    until_problem(&sluice, "eth0 does not run our program");
    assert_eq!(sluice.status().unwrap()["ready"], false);
    assert_eq!(sluice.cli(&["check-ready"]).unwrap().status.code(), Some(1));
    drop(theirs);
    until_all_is_well(&scene, &sluice);
}

#[test]
fn a_link_taken_down_and_a_card_made_anew_are_noticed_and_mended() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = web_on_three();
    let balancer = scene.lab.balancer();
    balancer.ip("link set eth0 down").unwrap();
    until_event(&sluice, "backends that were well are kept as they are");
    until_problem(&sluice, "eth0 is down: bring it up with `ip link set eth0 up`");
    balancer.ip("link set eth0 up").unwrap();
    until_all_is_well(&scene, &sluice);

    let _port = scene.lab.replace_card(balancer).unwrap();
    until_event(&sluice, "eth0 ran no program: attached");
    until_all_is_well(&scene, &sluice);
}
