//! What happened in that minute: the flight recorder says so, with the daemon alive or dead.

use std::fs;

use serde_json::Value;
use sluice_tests::lab::{DEADLINE, Family, Plan, Sluice, is_privileged, until};

use crate::scene::{Scene, VIP4};

/// What was recorded in the last ten minutes.
fn recorded(sluice: &Sluice) -> Value {
    sluice.json(&["recorder", "--at", "10m ago", "--window", "20m"]).unwrap()
}

/// The sum of a count over all seconds; of answers, over those that were seen.
fn sum(story: &Value, count: &str) -> u64 {
    let seconds = story["seconds"].as_array().unwrap().iter();
    seconds.map(|second| second["total"][count].as_u64().unwrap_or(0)).sum()
}

/// Waits until so many flows are recorded; what is counted is in the file two seconds later.
fn until_recorded(sluice: &Sluice, flows: u64) -> Value {
    let what = format!("{flows} flows to be recorded");
    until(&what, DEADLINE, || Some(recorded(sluice)).filter(|s| sum(s, "new_flows") >= flows))
        .unwrap()
}

#[test]
fn the_recording_has_what_clients_saw_and_outlives_the_daemon() {
    if !is_privileged() {
        return;
    }
    let (scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    // The first look at the counters is where counting begins.
    until("the first second", DEADLINE, || {
        sluice.json(&["recorder"]).ok().filter(|story| story["seconds"][0].is_object())
    })
    .unwrap();
    let tally = scene.request(VIP4, 60);
    assert_eq!(tally.failed(), 0);
    let story = until_recorded(&sluice, 60);
    assert_eq!((sum(&story, "new_flows"), sum(&story, "handshakes")), (60, 60), "{story}");
    let status = sluice.status().unwrap();
    let packets = status["services"][0]["backends"].as_array().unwrap().iter();
    let packets = packets.map(|backend| backend["packets_total"].as_u64().unwrap()).sum::<u64>();
    assert!(sum(&story, "packets") <= packets, "{story}");
    assert!(story["backends"][0]["return_packets"].is_null(), "answered directly: {story}");
    for (name, requests) in &tally.answers[VIP4] {
        let one = sluice.json(&["recorder", "--window", "10m", "--backend", name]).unwrap();
        assert_eq!(sum(&one, "new_flows"), *requests, "{name}: {one}");
    }
    assert!(story["reasons"]["not_ip"].as_u64() > Some(0), "ARP: {story}");

    // Killed, it leaves all of it behind; what comes while it is dead is nobody's to count.
    sluice.kill9().unwrap();
    let dead = recorded(&sluice);
    assert_eq!(sum(&dead, "new_flows"), 60);
    assert_eq!(scene.request(VIP4, 30).failed(), 0);
    let picture = scene.lab.directory().join("minute.svg").display().to_string();
    sluice.cli_ok(&["recorder", "--window", "10m", "--plot", &picture]).unwrap();
    assert!(fs::read_to_string(&picture).unwrap().contains("new flows"));
    let refused = sluice.cli(&["recorder", "--plot", "minute.gif"]).unwrap();
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains("name the file *.svg or *.png"), "{complaint}");

    sluice.start().unwrap();
    sluice.cli_ok(&["backend", "disable", "web", "web-2"]).unwrap();
    assert_eq!(scene.request(VIP4, 20).failed(), 0);
    let story = until("the change to be recorded", DEADLINE, || {
        let story = recorded(&sluice);
        let seconds = story["seconds"].as_array().unwrap().iter();
        let mut lines = seconds.flat_map(|second| second["backends"].as_array().unwrap());
        let is_it = |line: &Value| line["backend"] == "web-2" && line["admin_before"] == "enabled";
        lines.any(is_it).then_some(story)
    })
    .unwrap();
    let text = sluice.cli_ok(&["recorder", "--window", "10m", "--service", "web"]).unwrap();
    assert!(text.contains("web/web-2: enabled -> disabled"), "{text}");
    assert!(text.contains("change web/web-2: enabled -> disabled (uid 0)"), "{text}");
    // One file all the time, and no more than it may have.
    assert!(sum(&story, "new_flows") < 60 + 30 + 20 + 1, "{story}");
    assert!(fs::metadata(sluice.state().join("recorder.bin")).unwrap().len() <= 5 << 20);
}

#[test]
fn of_a_translated_service_the_recording_has_the_answers_too() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "nat", Family::V4);
    until("the first second", DEADLINE, || {
        sluice.json(&["recorder"]).ok().filter(|story| story["seconds"][0].is_object())
    })
    .unwrap();
    assert_eq!(scene.request(VIP4, 60).failed(), 0);
    let story = until_recorded(&sluice, 60);
    let (packets, returned) = (sum(&story, "packets"), sum(&story, "return_packets"));
    // A handshake's answer, and the page.
    assert!(returned >= 2 * 60 && returned < packets, "{returned} of {packets}: {story}");
    assert!(sum(&story, "return_bytes") < sum(&story, "bytes"), "{story}");
    let text = sluice.cli_ok(&["recorder", "--window", "10m"]).unwrap();
    assert!(text.contains("RETURN BYTES  REFUSED  BACKEND RESETS"), "{text}");
}

#[test]
fn a_damaged_recording_is_told_and_begun_anew() {
    if !is_privileged() {
        return;
    }
    let (_scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    sluice.stop().unwrap();
    let file = sluice.state().join("recorder.bin");
    fs::write(&file, vec![7; 3 << 20]).unwrap();
    let refused = sluice.cli(&["recorder"]).unwrap();
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("recorder.bin is damaged"), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    sluice.start().unwrap();
    until("a new recording", DEADLINE, || {
        sluice.json(&["recorder"]).ok().filter(|story| story["seconds"][0].is_object())
    })
    .unwrap();
}
