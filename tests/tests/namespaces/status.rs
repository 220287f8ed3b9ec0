//! `sluice status` in states that an operator is called out of bed for: what is wrong, since when,
//! and what mends it.

use serde_json::Value;
use sluice_tests::lab::{DEADLINE, Sluice, is_privileged, until};

use crate::{
    health::{until_health, until_well, web_on_three},
    scene::{VIP4, address},
};

/// Waits until the status has a trouble of this kind about this, and tells it.
#[track_caller]
fn until_trouble(sluice: &Sluice, kind: &str, about: &str) -> Value {
    let found = until(&format!("the trouble {kind} about {about}"), DEADLINE, || {
        let status = sluice.status().unwrap();
        let mut troubles = status["troubles"].as_array().unwrap().iter();
        troubles.find(|trouble| trouble["kind"] == kind && trouble["about"] == about).cloned()
    });
    found.unwrap_or_else(|error| panic!("{error:#}: {}", sluice.status().unwrap()))
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn status_names_what_is_wrong_since_when_and_the_mend() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = web_on_three();
    let text = sluice.cli_ok(&["status"]).unwrap();
    assert!(text.starts_with("forwarding: yes\n"), "{text}");
    assert_says(&text, &["3 of 3", "healthy"]);

    let before = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    scene.lab.backends()[1].disown_vip(address(VIP4).ip()).unwrap();
    until_health(&sluice, ("web", "web-2"), "unreachable");
    let trouble = until_trouble(&sluice, "backend_down", "backend web/web-2");
    assert_eq!(trouble["severity"], "fault");
    assert!(*trouble["since"].as_str().unwrap() >= *before, "{trouble}");
    until("the cause to be found", DEADLINE, || {
        let text = sluice.cli_ok(&["status"]).unwrap();
        text.contains("-> 198.18.1.12 is up, but takes no frames").then_some(())
    })
    .unwrap();
    let text = sluice.cli_ok(&["status"]).unwrap();
    assert!(text.starts_with("forwarding: yes, 1 fault\n"), "{text}");
    assert_says(&text, &["FAULT   backend web/web-2 is unreachable: ", "sluice agent run"]);

    sluice.cli_ok(&["backend", "drain", "web", "web-1", "--wait"]).unwrap();
    let trouble = until_trouble(&sluice, "taken_out", "backend web/web-1");
    assert_eq!((&trouble["severity"], &trouble["says"]), (&"notice".into(), &"is drained".into()));
    let text = sluice.cli_ok(&["status"]).unwrap();
    assert_says(
        &text,
        &["NOTICE  backend web/web-1 is drained", "sluice backend enable web web-1"],
    );
    let problems = sluice.status().unwrap()["problems"].to_string();
    assert!(!problems.contains("web-1"), "what is wanted is no problem: {problems}");
}

#[test]
fn status_says_who_is_turned_away_and_that_the_link_is_down() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = web_on_three();
    for backend in scene.backends() {
        sluice.cli_ok(&["backend", "disable", "web", backend, "--force"]).unwrap();
    }
    until_trouble(&sluice, "refusing", "service web");
    let text = sluice.cli_ok(&["status"]).unwrap();
    assert!(text.starts_with("forwarding: NO\n"), "{text}");
    assert_says(
        &text,
        &[
            "OUTAGE  service web refuses new connections with a RST: no backend takes them",
            "-> `sluice backend enable web web-1`",
            "REFUSING",
        ],
    );
    for backend in scene.backends() {
        sluice.cli_ok(&["backend", "enable", "web", backend]).unwrap();
    }
    until_well(&sluice, "web");

    scene.lab.balancer().ip("link set eth0 down").unwrap();
    let trouble = until_trouble(&sluice, "link_down", "interface eth0");
    assert_eq!(trouble["severity"], "outage");
    assert!(trouble["since"].is_string(), "it is younger than the daemon: {trouble}");
    let text = sluice.cli_ok(&["status"]).unwrap();
    assert!(text.starts_with("forwarding: NO\n"), "{text}");
    assert_says(
        &text,
        &["OUTAGE  interface eth0 is down", "-> bring it up with `ip link set eth0 up`"],
    );
}

#[test]
fn without_a_daemon_status_tells_what_the_kernel_does() {
    if !is_privileged() {
        return;
    }
    let (scene, mut sluice) = web_on_three();
    let load = scene.load(VIP4);
    sluice.kill9().unwrap();
    load.run_for_requests(20, DEADLINE).unwrap();
    let output = sluice.cli(&["status"]).unwrap();
    assert_eq!(output.status.code(), Some(1), "as scripts know it");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("forwarding: yes, without a daemon\n"), "{text}");
    assert_says(
        &text,
        &["eth0 runs the program", "1 service and 3 backends", "its last word, ", "sluice run"],
    );
    assert!(!text.contains("; 0 packets forwarded"), "there is traffic: {text}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no daemon answers"));
    let json = sluice.cli(&["status", "--json"]).unwrap();
    assert_eq!((json.status.code(), json.stdout.as_slice()), (Some(1), &b""[..]));
    let tally = load.stop();
    assert_eq!(tally.failed(), 0, "of {}:\n{}", tally.requests, tally.causes());

    sluice.cli_ok(&["detach"]).unwrap();
    let output = sluice.cli(&["status"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("forwarding: NO\n"), "{text}");
    assert_says(&text, &["is not attached to any interface"]);
}
