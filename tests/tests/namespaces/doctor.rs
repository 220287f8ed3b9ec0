//! `sluice doctor` finds what is wrong, and says what to do.

use serde_json::Value;
use sluice_tests::lab::{DEADLINE, Family, Plan, Sluice, is_privileged, until};

use crate::scene::{Scene, VIP4};

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
    let says = wrong(&sluice, "backend web/web-1");
    for part in ["1540", "too_big", "raise the MTU of eth0"] {
        assert!(says.contains(part), "{part}: {says}");
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
