//! Pools that fail, wholly or in part: what is held, what is given up, who stands in.

use std::time::Duration;

use sluice_tests::lab::{
    Conversations, DEADLINE, EchoServer, Failure, Family, HealthServer, Host, Nginx, Plan, Sluice,
    dataplane, is_privileged, until,
};

use crate::{
    death::{ECHO, web_and_echo},
    health::{
        backend, check, service, until_backend, until_event, until_health, until_ill, until_well,
        web,
    },
    networks::behind_a_router,
    scene::{Scene, VIP4, address},
};

/// Waits until a service's last good set is held; tells why.
#[track_caller]
fn until_held(sluice: &Sluice, of: &str) -> String {
    let held = until(&format!("{of} to be held"), DEADLINE, || {
        service(sluice, of)["held"].as_str().map(str::to_owned)
    });
    held.unwrap_or_else(|error| panic!("{error:#}: {}", sluice.status().unwrap()))
}

/// Everybody takes new flows, and says that it is held.
#[track_caller]
fn assert_all_held(sluice: &Sluice, of: &str) {
    let service = service(sluice, of);
    for backend in service["backends"].as_array().unwrap() {
        assert_eq!(backend["takes_new_flows"], true, "{service}");
        assert!(backend["why"].as_str().unwrap().starts_with("held: "), "{service}");
    }
}

/// Waits until the fault of ours is over for `web` and `echo`: no connection was lost to it.
#[track_caller]
fn until_over_without_loss(scene: &Scene, sluice: &Sluice, talks: Conversations) {
    ["web", "echo"].into_iter().for_each(|of| until_well(sluice, of));
    talks.run_for_messages(60).unwrap();
    assert_eq!(talks.stop().broken, Vec::<String>::new());
    assert_eq!(scene.request(VIP4, 60).failed(), 0);
    for of in ["web", "echo"] {
        for host in scene.backends() {
            assert_eq!(backend(sluice, of, host)["reset_flows_total"], 0, "{of}/{host}");
        }
    }
    until_event(sluice, "backends are taken for what they are again");
}

/// Waits until all that have answered in a round of requests are these, and none failed.
#[track_caller]
fn until_served_by(scene: &Scene, sluice: &Sluice, names: &[&str]) {
    let mut last = String::new();
    let served = until(&format!("{names:?} to serve alone"), DEADLINE, || {
        let tally = scene.attempt(VIP4, 40);
        last = format!("{:?}\n{}", tally.per_backend(), tally.causes());
        (tally.failed() == 0 && tally.per_backend().keys().eq(names)).then_some(())
    });
    served.unwrap_or_else(|error| panic!("{error:#}: {last}\n{}", sluice.status().unwrap()));
}

#[test]
fn a_balancer_without_its_cable_takes_nobody_for_dead() {
    if !is_privileged() {
        return;
    }
    let (_echoes, scene, sluice) = web_and_echo(r#"check = "http""#);
    let talks = Conversations::start(scene.lab.client(), address(ECHO), 12).unwrap();
    let balancer = scene.lab.balancer();
    scene.lab.unplug(balancer).unwrap();
    for of in ["web", "echo"] {
        let why = until_held(&sluice, of);
        assert!(why.contains("eth0"), "{why}");
        for host in scene.backends() {
            let ill = |it: &serde_json::Value| it["health"] != "healthy";
            until_backend(&sluice, (of, host), "missed", ill);
        }
        assert_all_held(&sluice, of);
    }
    let status = sluice.status().unwrap();
    let problems = status["problems"].to_string();
    assert!(problems.contains("those that were well are kept as they are"), "{problems}");

    scene.lab.plug(balancer).unwrap();
    until_over_without_loss(&scene, &sluice, talks);
}

#[test]
fn a_gateway_that_is_gone_is_no_fault_of_the_backends_behind_it() {
    if !is_privileged() {
        return;
    }
    let mut scene = behind_a_router();
    scene.own(VIP4, "ipip");
    let start = |host| EchoServer::start(host, address(ECHO).port()).unwrap();
    let _echoes: Vec<EchoServer> = scene.lab.backends().iter().map(start).collect();
    // The one is probed, of the other only the way is known.
    let config = dataplane(&["eth0"])
        + &scene.service_with("web", VIP4, "ipip", &check(r#"check = "http""#))
        + &scene.service("echo", ECHO, "ipip", Family::V4);
    let balancer = scene.lab.balancer();
    // So that the kernel asks its three times within a second.
    balancer.sysctl("net.ipv4.neigh.eth0.retrans_time_ms", "200").unwrap();
    let sluice = balancer.run_sluice(&config).unwrap();
    ["web", "echo"].into_iter().for_each(|of| until_well(&sluice, of));
    let talks = Conversations::start(scene.lab.client(), address(ECHO), 12).unwrap();

    let router = scene.lab.router().unwrap();
    scene.lab.unplug(router).unwrap();
    // As if the kernel had not used it for long.
    balancer.ip("neigh flush dev eth0").unwrap();
    let gateway = router.address(Family::V4);
    let says = format!("{gateway}, the gateway to 198.18.2.11, does not answer ARP on eth0");
    for of in ["web", "echo"] {
        let named = until(&format!("{of} to be held for its gateway"), DEADLINE, || {
            service(&sluice, of)["held"].as_str()?.contains(&says).then_some(())
        });
        named.unwrap_or_else(|error| panic!("{error:#}: {}", sluice.status().unwrap()));
        for host in scene.backends() {
            until_health(&sluice, (of, host), "unreachable");
        }
        assert_all_held(&sluice, of);
    }
    until_event(&sluice, &says);
    until_event(&sluice, "backends that were well are kept as they are");
    let problems = sluice.status().unwrap()["problems"].to_string();
    assert!(problems.contains(&says), "{problems}");
    assert!(sluice.cli_ok(&["status"]).unwrap().contains(&says));

    scene.lab.plug(router).unwrap();
    until_over_without_loss(&scene, &sluice, talks);
}

#[test]
fn health_endpoints_that_all_fail_at_once_take_no_service_down() {
    if !is_privileged() {
        return;
    }
    // The control panel of 2020-08: nothing is wrong but what is asked.
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, "l2");
    let start = |host| HealthServer::http(host, HealthServer::everywhere(8081)).unwrap();
    let endpoints: Vec<HealthServer> = scene.lab.backends().iter().map(start).collect();
    let lines = check(r#"check = "http", via = "backend", port = 8081"#);
    let config = dataplane(&["eth0"]) + &scene.service_with("web", VIP4, "l2", &lines);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    until_well(&sluice, "web");

    let load = scene.load(VIP4);
    endpoints.iter().for_each(|endpoint| endpoint.set_well(false));
    for host in scene.backends() {
        until_health(&sluice, ("web", host), "unhealthy");
    }
    let why = until_held(&sluice, "web");
    assert_eq!(why, "3 of 3 backends fail at once, so the fault may be ours");
    assert_all_held(&sluice, "web");
    until_event(&sluice, "so the fault may be ours: backends that were well are kept as they are");
    until_served_by(&scene, &sluice, &["web-1", "web-2", "web-3"]);

    // All but one are well: now that one is ill.
    endpoints[1..].iter().for_each(|endpoint| endpoint.set_well(true));
    until_ill(&sluice, ("web", "web-1"), "unhealthy", "status 503");
    until_served_by(&scene, &sluice, &["web-2", "web-3"]);
    endpoints[0].set_well(true);
    until_well(&sluice, "web");
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "of {}:\n{}", tally.requests, tally.causes());
}

/// `web` on four backends, well.
fn four() -> (Scene, Sluice) {
    web(Plan { backends: 4, ..Plan::default() }, &check(r#"check = "tcp""#))
}

#[test]
fn half_of_a_pool_that_is_cut_off_is_left_out() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = four();
    let cut = [&scene.lab.backends()[0], &scene.lab.backends()[1]];
    cut.into_iter().for_each(|host| scene.lab.unplug(host).unwrap());
    until_served_by(&scene, &sluice, &["web-3", "web-4"]);
    for host in cut {
        until_health(&sluice, ("web", host.role()), "unreachable");
    }
    assert_eq!(service(&sluice, "web")["held"], serde_json::Value::Null);
    cut.into_iter().for_each(|host| scene.lab.plug(host).unwrap());
    until_well(&sluice, "web");
    until_served_by(&scene, &sluice, &["web-1", "web-2", "web-3", "web-4"]);
}

#[test]
fn most_of_a_pool_is_held_until_its_clients_too_find_nobody() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = four();
    let mute = |host: &Host| scene.lab.mute(host).unwrap();
    let muted: Vec<_> = scene.lab.backends()[..3].iter().map(mute).collect();
    until_held(&sluice, "web");
    for name in ["web-1", "web-2", "web-3"] {
        // No client has asked yet.
        let seen = until_health(&sluice, ("web", name), "unreachable");
        assert_eq!(seen["takes_new_flows"], true, "{seen}");
    }
    until_served_by(&scene, &sluice, &["web-4"]);
    until_event(&sluice, "neither probes nor clients are served there: given up");
    drop(muted);
    until_well(&sluice, "web");
    until_served_by(&scene, &sluice, &["web-1", "web-2", "web-3", "web-4"]);
}

#[test]
fn a_backup_takes_over_and_hands_back() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, "l2");
    let lines = check(r#"check = "http""#);
    let config = dataplane(&["eth0"]) + &scene.service_with("web", VIP4, "l2", &lines);
    let config = config.replace(r#"name = "web-3""#, r#"name = "web-3", backup = true"#);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    until_well(&sluice, "web");
    assert_eq!(backend(&sluice, "web", "web-3")["why"], "backup: others are healthy");
    until_served_by(&scene, &sluice, &["web-1", "web-2"]);

    scene.nginx.remove(0);
    until_served_by(&scene, &sluice, &["web-2"]);
    // Two of three are ill now, but clients find nobody there either.
    scene.nginx.remove(0);
    until_served_by(&scene, &sluice, &["web-3"]);
    let of = service(&sluice, "web");
    assert_eq!((&of["new_flows"], &of["held"]), (&"backup".into(), &serde_json::Value::Null));

    scene.nginx.push(Nginx::start(&scene.lab.backends()[0], &[80]).unwrap());
    until_served_by(&scene, &sluice, &["web-1"]);
}

#[test]
fn nobody_well_means_everybody_or_nobody_as_the_service_has_it() {
    if !is_privileged() {
        return;
    }
    const CLOSED: &str = "203.0.113.20:80";
    let mut scene = Scene::start(Plan::default());
    [VIP4, CLOSED].into_iter().for_each(|vip| scene.own(vip, "l2"));
    // Another answer than nginx gives.
    let lines = check(r#"check = "http", status = 204"#);
    let config = dataplane(&["eth0"])
        + &scene.service_with("open", VIP4, "l2", &lines)
        + &scene.service_with("closed", CLOSED, "l2", &(lines + "fail_open = false\n"));
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    for of in ["open", "closed"] {
        for name in scene.backends() {
            until_backend(&sluice, (of, name), "ill, and asked or not", |it| {
                it["health"] == "unhealthy" && it["takes_new_flows"] == (of == "open")
            });
        }
    }
    until_served_by(&scene, &sluice, &["web-1", "web-2", "web-3"]);
    let why = backend(&sluice, "open", "web-1")["why"].to_string();
    assert!(why.contains("nobody is healthy (fail_open): GET /: status 200"), "{why}");
    let tally = scene.attempt(CLOSED, 10);
    assert_eq!(tally.failed(), 10);
    assert!(tally.failures.iter().all(|it| it.cause == Failure::Refused), "{}", tally.causes());
}

#[test]
fn who_is_enabled_gets_its_share_by_steps() {
    if !is_privileged() {
        return;
    }
    let lines = check(r#"check = "tcp""#) + "slow_start = \"3s\"\n";
    let (scene, sluice) = web(Plan::default(), &lines);
    sluice.cli_ok(&["backend", "disable", "web", "web-1"]).unwrap();
    let load = scene.load(VIP4);

    sluice.cli_ok(&["backend", "enable", "web", "web-1"]).unwrap();
    let mut weights: Vec<u64> = Vec::new();
    until_backend(&sluice, ("web", "web-1"), "in with its whole weight", |it| {
        let why = it["why"].as_str().unwrap();
        if let Some(step) = why.strip_prefix("healthy; slow start: weight ") {
            weights.push(step.strip_suffix(" of 100").unwrap().parse().unwrap());
        }
        why == "healthy"
    });
    weights.dedup();
    assert!(weights.len() >= 3 && weights.is_sorted() && weights[0] < 50, "{weights:?}");
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "{}", tally.causes());
    assert!(tally.per_backend()["web-1"] > 0);
    assert!(tally.slowest < Duration::from_secs(1), "no SYN was lost: {:?}", tally.slowest);
}
