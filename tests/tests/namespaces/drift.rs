//! Somebody changes the maps by hand: it is mended within moments, and counted.

use std::{process::Command, time::Duration};

use serde_json::Value;
use sluice_tests::lab::{DEADLINE, Plan, Sluice, is_privileged, until};

use crate::{
    drain::{ground, open},
    scene::{Scene, VIP4, assert_flawless},
};

fn bpftool(arguments: &[&str]) -> Value {
    let output = Command::new("bpftool").arg("-j").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "bpftool {}: {text}", arguments.join(" "));
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

/// Changes what `map` holds, by `change` to its first entries.
fn repaired(scene: &Scene, sluice: &Sluice, map: &str, change: impl Fn(&str, &Value)) {
    let repairs = || sluice.status().unwrap()["drift_repairs_total"].as_u64().unwrap();
    let before = repairs();
    let path = sluice.pins().join("maps").join(map).display().to_string();
    let held = bpftool(&["map", "dump", "pinned", &path]);
    change(&path, &held);
    // It may have been looked at in the middle of the changes: then two looks mend them.
    let is_mended = || bpftool(&["map", "dump", "pinned", &path]) == held;
    until(&format!("{map} to be what it was"), Duration::from_secs(3), || {
        (repairs() > before && is_mended()).then_some(())
    })
    .unwrap();
    assert_flawless(scene, &scene.request(VIP4, 50));
}

/// The bytes of `what`, as `bpftool -j` shows them and takes them.
fn bytes(entry: &Value, what: &str) -> Vec<String> {
    let bytes = entry[what].as_array().unwrap_or_else(|| panic!("no bytes: {entry}")).iter();
    bytes.map(|byte| byte.as_str().unwrap().to_owned()).collect()
}

fn delete(path: &str, entry: &Value) {
    let key = bytes(entry, "key");
    let key = key.iter().map(String::as_str);
    let command = ["map", "delete", "pinned", path, "key"].into_iter().chain(key);
    bpftool(&command.collect::<Vec<_>>());
}

fn zero(path: &str, entry: &Value) {
    let (key, value) = (bytes(entry, "key"), bytes(entry, "value"));
    let key = key.iter().map(String::as_str);
    let zeros = value.iter().map(|_| "0");
    let command = ["map", "update", "pinned", path, "key"].into_iter().chain(key);
    bpftool(&command.chain(["value"]).chain(zeros).collect::<Vec<_>>());
}

fn has_bpftool() -> bool {
    let has = Command::new("bpftool").arg("version").output().is_ok();
    if !has {
        eprintln!("skipped: bpftool is not installed (apt-get install bpftool)");
    }
    has
}

#[test]
fn a_service_deleted_by_hand_is_back_within_moments() {
    if !is_privileged() || !has_bpftool() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    let streams = open(&scene);
    for map in ["SERVICE_INDEX", "VIPS"] {
        repaired(&scene, &sluice, map, |path, held| {
            for entry in held.as_array().unwrap() {
                delete(path, entry);
            }
        });
    }
    // Those that were there did not notice.
    streams.advance(3, DEADLINE);
    assert_eq!(streams.close().len(), 0);
}

#[test]
fn a_backend_blanked_by_hand_is_back_within_moments() {
    if !is_privileged() || !has_bpftool() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    repaired(&scene, &sluice, "BACKENDS", |path, held| {
        let is_used = |entry: &&Value| bytes(entry, "value").iter().any(|byte| byte != "0x00");
        let used = held.as_array().unwrap().iter().filter(is_used).collect::<Vec<_>>();
        assert_eq!(used.len(), 6);
        used.into_iter().for_each(|entry| zero(path, entry));
    });
}

#[test]
fn a_slot_table_deleted_by_hand_is_back_within_moments() {
    if !is_privileged() || !has_bpftool() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    let repairs = || sluice.status().unwrap()["drift_repairs_total"].as_u64().unwrap();
    let path = sluice.pins().join("maps").join("SLOTS").display().to_string();
    let streams = open(&scene);
    for service in ["0", "1"] {
        let before = repairs();
        bpftool(&["map", "delete", "pinned", &path, "key", service, "0", "0", "0"]);
        until("SLOTS to be mended", Duration::from_secs(2), || (repairs() > before).then_some(()))
            .unwrap();
    }
    assert_flawless(&scene, &scene.request(VIP4, 50));
    streams.advance(3, DEADLINE);
    assert_eq!(streams.close().len(), 0);
}
