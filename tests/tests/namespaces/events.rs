//! What happened is told with its evidence, and found again.

use serde_json::Value;
use sluice_tests::lab::{DEADLINE, Plan, dataplane, is_privileged, until};

use crate::scene::{Scene, VIP4};

#[test]
fn a_turn_of_health_is_found_with_the_probe_it_rests_on() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, "l2");
    let check = "health = { check = \"tcp\", interval = \"200ms\", timeout = \"200ms\", rise = 1, fall = 2 }\n";
    let config = dataplane(&["eth0"]) + &scene.service_with("web", VIP4, "l2", check);
    let mut sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let fallen = scene.backends()[1].to_owned();
    let find = || -> Option<Value> {
        let asked =
            ["events", "--kind", "health", "--service", "web", "--backend", &fallen, "--json"];
        let lines = sluice.cli_ok(&asked).unwrap();
        let mut events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.find(|event| event["text"].as_str().unwrap().contains("healthy -> un"))
    };
    until("all to be well", DEADLINE, || {
        let status = sluice.status().unwrap();
        let mut backends = status["services"][0]["backends"].as_array().unwrap().iter();
        backends.all(|backend| backend["health"] == "healthy").then_some(())
    })
    .unwrap();
    drop(scene.nginx.remove(1));
    let event = until("its fall to be told", DEADLINE, find).unwrap();
    assert_eq!(event["probe"]["via"], "vip", "{event}");
    assert!(event["probe"]["error"].is_string(), "{event}");

    let at = event["at"].as_str().unwrap().to_owned();
    let asked = ["events", "--since", &at, "--backend", &fallen];
    let before = sluice.cli_ok(&asked).unwrap();
    assert!(before.contains("healthy -> un"), "{before}");
    let few = sluice.cli(&["events", "--limit", "1"]).unwrap();
    let told = String::from_utf8_lossy(&few.stderr).into_owned();
    assert!(told.starts_with("the latest 1 event only"), "{told}");
    assert_eq!(String::from_utf8_lossy(&few.stdout).lines().count(), 1);

    // The same is known when nobody is left to ask.
    sluice.kill9().unwrap();
    assert!(sluice.cli_ok(&asked).unwrap().starts_with(&before));
}
