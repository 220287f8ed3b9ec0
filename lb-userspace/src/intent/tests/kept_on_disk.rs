//! What was said outlives the daemon.

use std::fs;

use super::*;
use crate::intent::kept::Store;

fn restore(directory: &std::path::Path, text: &str) -> kept::Restored {
    Store::restore(directory, "lb.toml", text, at(0)).expect("a valid file")
}

/// Everything there can be.
fn much(intent: &Intent) -> Intent {
    let changes = [
        drain("web", "host-1"),
        Change::Weight { target: of("api", "host-2"), weight: 9 },
        Change::Disable { target: of("api", "host-1") },
        add("web", "host-3", "10.0.0.3"),
        Change::AddService {
            service: Box::new(ServiceSpec {
                name: "new".into(),
                vip: "[2001:db8::1]:80".into(),
                drain_deadline: Some("7s".into()),
                ..ServiceSpec::default()
            }),
        },
        add("new", "n-1", "2001:db8:1::1"),
    ];
    let mut intent = done(intent, &changes);
    intent.counted(count(3, 3), at(1));
    done(&intent, &[remove("web", "host-2")])
}

#[test]
fn everything_said_survives() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept::Restored { intent, store, notes } = restore(directory.path(), FILE);
    assert_eq!(notes, [""; 0]);
    let said = much(&intent);
    store.keep(&said).expect("written");
    let again = restore(directory.path(), FILE);
    assert_eq!(again.intent, said);
    assert_eq!(again.notes, [""; 0]);
    kept::forget(directory.path()).expect("removed");
    kept::forget(directory.path()).expect("there is nothing to remove");
    assert_eq!(picture(&restore(directory.path(), FILE).intent), ALL);
    assert!(!directory.path().join("state.json.new").exists());
}

#[test]
fn a_vip_of_any_port_survives_with_its_backends() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept::Restored { intent, store, .. } = restore(directory.path(), FILE);
    let service = ServiceSpec {
        name: "any".into(),
        vip: "203.0.113.30:*".into(),
        health: Some(HealthSpec { check: Some("none".into()), ..HealthSpec::default() }),
        ..ServiceSpec::default()
    };
    let changes = [
        Change::AddService { service: Box::new(service) },
        add("any", "any-1", "10.0.0.8"),
        add("any", "any-2", "10.0.0.9"),
        drain("any", "any-1"),
    ];
    let said = done(&done(&intent, &changes), &[remove("any", "any-1")]);
    store.keep(&said).expect("written");
    let again = restore(directory.path(), FILE);
    assert_eq!((again.intent, again.notes), (said, vec![]));
}

#[test]
fn another_file_that_was_applied_holds_until_ours_changes() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept::Restored { intent, store, .. } = restore(directory.path(), FILE);
    let other = Declared::parse("other.toml", OTHER).expect("valid");
    store.keep(&intent.declare(other, Take::Apply, at(0))).expect("written");

    let held = restore(directory.path(), FILE);
    assert_eq!(held.intent.declared().name(), "other.toml");
    assert!(held.notes[0].starts_with("other.toml was applied and holds"), "{:?}", held.notes);

    let changed = FILE.replace("weight = 50", "weight = 51");
    let taken = restore(directory.path(), &changed);
    assert_eq!(taken.intent.declared().name(), "lb.toml");
    assert_eq!(taken.intent.declared_weight("web", "host-2"), Some(51));
}

#[test]
fn what_the_changed_file_does_not_allow_is_given_up_and_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept::Restored { intent, store, .. } = restore(directory.path(), FILE);
    store.keep(&done(&intent, &[add("web", "host-3", "10.0.0.3")])).expect("written");
    let clash = FILE.replace("203.0.113.20:443", "10.0.0.3:443");
    let taken = restore(directory.path(), &clash);
    assert!(taken.notes[0].contains("given up"), "{:?}", taken.notes);
    assert!(taken.intent.desired().service("web").expect("there").backend("host-3").is_none());
}

#[test]
fn a_damaged_file_is_set_aside_and_stops_nothing() {
    let cases = [
        ("{\"version\":1,", "it is damaged"),
        ("", "it is damaged"),
        ("{\"version\":1}", "it is damaged"),
        ("{\"version\":2}", "a newer sluice wrote it (version 2, this one reads 1)"),
    ];
    for (text, expected) in cases {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("state.json"), text).expect("written");
        let kept::Restored { intent, notes, .. } = restore(directory.path(), FILE);
        assert_eq!(picture(&intent), ALL);
        assert!(notes[0].contains(expected), "{notes:?}");
        let left: Vec<String> = fs::read_dir(directory.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        assert!(left.len() == 1 && left[0].starts_with("state.json.damaged-"), "{left:?}");
    }
}

/// A service that is gone from the file takes its backends among those who leave, with what was said
/// of them: nothing that nobody could have said.
#[test]
fn a_weight_that_is_none_is_not_taken_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept::Restored { intent, store, .. } = restore(directory.path(), FILE);
    let weight = Change::Weight { target: of("web", "host-2"), weight: 999 };
    store.keep(&done(&intent, &[weight])).expect("written");
    let path = directory.path().join("state.json");
    let text = fs::read_to_string(&path).expect("a file");
    fs::write(&path, text.replace("999", "1001")).expect("written");
    let elsewhere = FILE.replace(":80\"", ":81\"");
    assert_ne!(elsewhere, FILE);
    let kept::Restored { intent, notes, .. } = restore(directory.path(), &elsewhere);
    assert!(notes[0].contains("weight 1001: it goes from 0 to 1000"), "{notes:?}");
    assert_eq!(intent.leaving.len(), 0);
}

#[test]
fn every_cut_of_the_file_is_survived() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept::Restored { intent, store, .. } = restore(directory.path(), FILE);
    store.keep(&much(&intent)).expect("written");
    let path = directory.path().join("state.json");
    let whole = fs::read(&path).expect("a file");
    for length in (0..whole.len()).step_by(37) {
        fs::write(&path, &whole[..length]).expect("written");
        assert_eq!(picture(&restore(directory.path(), FILE).intent), ALL);
    }
}

#[test]
fn a_disk_that_can_not_be_written_is_an_error_and_leaves_the_old_file() {
    let store = restore(std::path::Path::new("/proc/nowhere"), FILE).store;
    assert!(store.keep(&intent()).is_err());
}

#[test]
fn a_drains_deadline_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept::Restored { intent, store, .. } = restore(directory.path(), FILE);
    store.keep(&done(&intent, &[drain("web", "host-1")])).expect("written");
    let mut again = restore(directory.path(), FILE).intent;
    again.counted(count(1, 1), at(1));
    assert_eq!(picture(&again)[2], "web/host-1 draining");
    again.counted(count(1, 1), at(0).after(Duration::from_secs(60)));
    assert_eq!(picture(&again)[2], "web/host-1 drained");
}
