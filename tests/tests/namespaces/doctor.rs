//! `sluice doctor` finds what is wrong, and says what to do; so does the daemon of its probes.

use serde_json::Value;
use sluice_tests::lab::{DEADLINE, Family, Plan, Sluice, dataplane, is_privileged, until};

use crate::scene::{Scene, VIP4, address};

/// What it says, and whether it says that all is well.
fn examine(sluice: &Sluice) -> (bool, Value) {
    let output = sluice.cli(&["doctor", "--json"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    let code = output.status.code();
    assert_eq!(code, Some(if report["well"] == true { 0 } else { 1 }), "{report}");
    (code == Some(0), report)
}

/// What is wrong with `about`.
#[track_caller]
pub fn wrong(sluice: &Sluice, about: &str) -> String {
    let (is_well, report) = examine(sluice);
    assert!(!is_well, "{report}");
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|f| f["about"] == about && f["severity"] == "wrong");
    let found = found.unwrap_or_else(|| panic!("nothing about {about} in {report}"));
    format!("{} -> {}", found["says"], found["mend"])
}

#[test]
fn the_doctor_finds_nothing_where_nothing_is_wrong() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "ipip", Family::V6);
    let (is_well, report) = examine(&sluice);
    assert!(is_well, "{report}");
    let text = sluice.cli_ok(&["doctor"]).unwrap();
    for about in ["interface eth0", "backend web/web-3"] {
        assert!(text.contains(about), "{text}");
    }
    drop(scene);
}

#[test]
fn the_doctor_names_the_fault_and_the_mend() {
    if !is_privileged() {
        return;
    }
    let (scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "ipip", Family::V6);
    let balancer = scene.lab.balancer();

    balancer.ip("link set eth0 mtu 1500").unwrap();
    let text = sluice.cli_ok(&["doctor"]).unwrap();
    for part in ["doubt", "1540", "too_big", "raise the MTU of eth0"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    balancer.ip("link set eth0 mtu 1600").unwrap();

    scene.lab.unplug(&scene.lab.backends()[1]).unwrap();
    let gone = scene.lab.backends()[1].address(Family::V6);
    balancer.ip("neigh flush dev eth0").unwrap();
    until("the neighbour to be missed", DEADLINE, || {
        let (is_well, _) = examine(&sluice);
        (!is_well).then_some(())
    })
    .unwrap();
    let says = wrong(&sluice, "backend web/web-2");
    assert!(says.contains(&format!("{gone} does not answer neighbour discovery")), "{says}");

    sluice.stop().unwrap();
    let says = wrong(&sluice, "daemon");
    assert!(says.contains("no daemon answers"), "{says}");
}

#[test]
fn the_daemon_names_the_cause_of_silence_by_way_of_the_vip() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, "l2");
    let check = "{ check = \"tcp\", interval = \"200ms\", timeout = \"200ms\", fall = 2 }";
    let service = scene.service("web", VIP4, "l2", Family::V4);
    let config = dataplane(&["eth0"]) + &service.replace("{ check = \"none\" }", check);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let first = || sluice.status().unwrap()["services"][0]["backends"][0].take();
    let wait = |what: &str, is_so: &dyn Fn(&Value) -> bool| {
        until(what, DEADLINE, || Some(first()).filter(is_so))
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", first(), sluice.log()))
    };
    wait("all to be well", &|backend| backend["health"] == "healthy");

    let ill = &scene.lab.backends()[0];
    ill.disown_vip(address(VIP4).ip()).unwrap();
    let backend = wait("the cause", &|backend| backend["last_probe"]["cause"].is_string());
    let says = format!(
        "{} is up, but takes no frames for 203.0.113.10: the VIP is missing on its loopback \
         interface: run `sluice agent run --interface IF --vip 203.0.113.10` there",
        ill.address(Family::V4)
    );
    assert_eq!(backend["health"], "unreachable", "{backend}");
    assert_eq!(backend["last_probe"]["cause"], says, "{backend}");
    let told = until("the cause to be told", DEADLINE, || {
        let told = [&["status"][..], &["backend", "list"], &["events"]];
        let told = told.map(|command| sluice.cli_ok(command).unwrap());
        told.iter().all(|text| text.contains(&says)).then_some(told)
    });
    let [status, list, _] = told.unwrap();
    let why = format!("no new flows: no answer to SYN within 200ms; {says}");
    assert!(list.contains(&why), "{list}");
    assert!(status.contains(&format!("-> {says}\n")), "{status}");

    ill.own_vip_quietly(address(VIP4).ip()).unwrap();
    let backend = wait("it to be well again", &|backend| backend["health"] == "healthy");
    assert_eq!(backend["last_probe"]["cause"], Value::Null, "{backend}");
    let list = sluice.cli_ok(&["backend", "list"]).unwrap();
    assert!(!list.contains("no new flows"), "{list}");
}
