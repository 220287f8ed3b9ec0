//! Changes at run time: what keeps them, and what they must not do.

use std::{fs, path::PathBuf, process::Command, thread};

use sluice_tests::lab::{DEADLINE, Plan, Sluice, is_privileged, until};

use crate::{
    drain::{backend, config, ground, open},
    scene::{Scene, VIP4, assert_flawless},
};

fn state(scene: &Scene) -> PathBuf {
    PathBuf::from("/var/lib/sluice").join(scene.lab.balancer().name())
}

fn problems(sluice: &Sluice) -> String {
    sluice.status().unwrap()["problems"].to_string()
}

#[test]
fn what_was_said_at_run_time_holds_after_a_restart() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, mut sluice) = ground(Plan::default());
    sluice.cli_ok(&["backend", "weight", "web", "web-1", "7"]).unwrap();
    sluice.cli_ok(&["backend", "remove", "web", "web-2"]).unwrap();
    sluice.cli_ok(&["backend", "add", "web", "late", "198.18.1.12", "--weight", "9"]).unwrap();
    sluice.cli_ok(&["backend", "disable", "streams", "web-3"]).unwrap();
    let before = sluice.cli_ok(&["export"]).unwrap();
    sluice.kill9().unwrap();
    sluice.start().unwrap();
    assert_eq!(sluice.cli_ok(&["export"]).unwrap(), before);
    assert_eq!(backend(&sluice, "web", "late")["weight"], 9);
    assert_eq!(backend(&sluice, "streams", "web-3")["admin"], "disabled");
    assert_flawless(&scene, &scene.request(VIP4, 50));
}

#[test]
fn a_damaged_state_is_set_aside_and_forwarding_goes_on() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, mut sluice) = ground(Plan::default());
    let streams = open(&scene);
    sluice.cli_ok(&["backend", "drain", "web", "web-2"]).unwrap();
    for damage in ["{\"version\": 1, \"generation\"", "", "{\"version\":99}"] {
        sluice.stop().unwrap();
        fs::write(state(&scene).join("state.json"), damage).unwrap();
        assert_flawless(&scene, &scene.request(VIP4, 30));
        sluice.start().unwrap();
        assert_flawless(&scene, &scene.request(VIP4, 30));
        assert!(problems(&sluice).contains("state.json"), "{}", problems(&sluice));
        let aside = fs::read_dir(state(&scene)).unwrap().flatten().map(|entry| entry.path());
        let mut aside = aside.filter(|path| path.to_string_lossy().contains(".damaged-"));
        assert!(
            aside.any(|path| fs::read_to_string(path).unwrap() == damage),
            "{damage:?} is gone"
        );
    }
    streams.advance(2, DEADLINE);
    assert_eq!(streams.close().len(), 0);
}

/// A file system that is full. Dropping it takes it away.
struct FullDisk(PathBuf);

impl FullDisk {
    fn mount(directory: PathBuf) -> Self {
        fs::create_dir_all(&directory).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m", "sluice-test"]).arg(&directory);
        assert!(mount.status().unwrap().success());
        Self(directory)
    }

    /// Every page of it.
    fn fill(&self) {
        let mut size = 1 << 20;
        for number in 0.. {
            let path = self.0.join(format!("ballast-{number}"));
            if fs::write(&path, vec![1; size]).is_err() {
                fs::remove_file(path).unwrap();
                size /= 2;
            }
            if size == 0 {
                break;
            }
        }
    }

    fn empty(&self) {
        for entry in fs::read_dir(&self.0).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("ballast") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_loses_no_change_and_is_told_loudly() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, mut sluice) = ground(Plan::default());
    sluice.stop().unwrap();
    let disk = FullDisk::mount(state(&scene));
    sluice.start().unwrap();
    sluice.cli_ok(&["backend", "weight", "web", "web-1", "50"]).unwrap();
    let whole = fs::read(disk.0.join("state.json")).unwrap();
    let newest = || {
        let story = sluice.json(&["recorder", "--window", "5m"]).ok()?;
        story["recorded_until"].as_str().map(str::to_owned)
    };
    until("a second to be recorded", DEADLINE, newest).unwrap();
    disk.fill();

    let drained = sluice.cli(&["backend", "drain", "web", "web-2"]).unwrap();
    assert!(drained.status.success());
    let warning = String::from_utf8_lossy(&drained.stderr).into_owned();
    assert!(warning.starts_with("warning: ") && warning.contains("No space left"), "{warning}");
    assert!(problems(&sluice).contains("No space left"), "{}", problems(&sluice));
    let tally = scene.request(VIP4, 60);
    assert_flawless(&scene, &tally);
    assert_eq!(tally.answers[VIP4].keys().collect::<Vec<_>>(), ["web-1", "web-3"]);
    assert_eq!(fs::read(disk.0.join("state.json")).unwrap(), whole, "never half written");
    // The flight recorder has taken its room before.
    assert!(!problems(&sluice).contains("recorder"), "{}", problems(&sluice));
    let before = newest();
    until("another second to be recorded", DEADLINE, || (newest() > before).then_some(())).unwrap();

    // It writes when it can.
    disk.empty();
    until("the disk to be written", DEADLINE, || {
        (!problems(&sluice).contains("No space left")).then_some(())
    })
    .unwrap();
    sluice.kill9().unwrap();
    sluice.start().unwrap();
    assert_ne!(backend(&sluice, "web", "web-2")["admin"], "enabled");
    sluice.stop().unwrap();
}

#[test]
fn clients_that_change_things_at_once_all_succeed() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    let load = scene.load(VIP4);
    let generation = || sluice.status().unwrap()["generation"].as_u64().unwrap();
    let before = generation();
    thread::scope(|scope| {
        for number in 0..8 {
            let sluice = &sluice;
            scope.spawn(move || {
                let (name, address) =
                    (format!("late-{number}"), format!("198.18.1.{}", 50 + number));
                let add = ["backend", "add", "streams", &name, &address, "--weight", "1"];
                sluice.cli_ok(&add).unwrap();
                for weight in 1..=4 {
                    let weight = (10 * number + weight).to_string();
                    sluice.cli_ok(&["backend", "weight", "streams", &name, &weight]).unwrap();
                    sluice.cli_ok(&["backend", "weight", "web", "web-1", &weight]).unwrap();
                }
            });
        }
    });
    for number in 0..8 {
        let late = backend(&sluice, "streams", &format!("late-{number}"));
        assert_eq!(late["weight"], 10 * number + 4, "{late}");
    }
    // Each adds one, and changes one that is nobody else's four times.
    assert!(generation() >= before + 8 * 5, "{before} to {}", generation());
    let last = backend(&sluice, "web", "web-1")["weight"].as_u64().unwrap();
    assert_eq!(last % 10, 4, "somebody's last word: {last}");
    assert_flawless(&scene, &load.stop());
}

#[test]
fn a_wrong_file_changes_nothing_and_names_line_and_field() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, mut sluice) = ground(Plan::default());
    let good = config(&scene);
    let wrong = good.replacen("forwarding = \"l2\"", "forwarding = \"l2\"\nwieght = 3", 1);
    let line = wrong.lines().position(|line| line.starts_with("wieght")).unwrap() + 1;
    let path = scene.lab.directory().join("wrong.toml").display().to_string();
    fs::write(&path, &wrong).unwrap();
    let before = sluice.cli_ok(&["export"]).unwrap();
    let named =
        |complaint: &str| complaint.contains(&format!(":{line}:")) && complaint.contains("wieght");
    for command in ["apply", "plan"] {
        let refused = sluice.cli(&[command, &path]).unwrap();
        let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{command}: {complaint}");
        assert!(named(&complaint), "{command}: {complaint}");
    }
    sluice.reconfigure(&wrong).unwrap();
    until("SIGHUP to be refused", DEADLINE, || {
        let problems = problems(&sluice);
        (problems.contains("SIGHUP changed nothing") && named(&problems)).then_some(())
    })
    .unwrap();
    assert_eq!(sluice.cli_ok(&["export"]).unwrap(), before);
    assert_flawless(&scene, &scene.request(VIP4, 50));

    sluice.reconfigure(&good).unwrap();
    until("a good one to be taken", DEADLINE, || {
        (!problems(&sluice).contains("SIGHUP")).then_some(())
    })
    .unwrap();
}
