//! One program in the place of another: no frame is lost, no flow forgotten, and what is worse
//! does not stay.

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Instant,
};

use lb_common::abi::ABI_VERSION;
use lb_userspace::{
    datapath::{Maps, Pins, upgrade::TWIN},
    instance::Instance,
};
use serde_json::Value;
use sluice_tests::lab::{
    Arrived, Conversations, DEADLINE, EchoServer, Family, Host, Lab, Numbers, Plan, Process,
    Sluice, builds, dataplane, is_privileged, service, until,
};

use crate::scene::{Scene, address};

const ECHO: &str = "203.0.113.10:7";

/// Numbered frames of each passage.
const FRAMES: u32 = 100_000;
/// Long connections.
const CONVERSATIONS: u64 = 50;

#[test]
fn no_numbered_frame_is_lost_across_upgrade_downgrade_and_migration() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan::default()).unwrap();
    let balancer = lab.balancer();
    let config = |backends: usize| {
        let backends = &lab.backends()[..backends];
        dataplane(&["eth0"]) + &service("echo", address(ECHO), "l2", backends, Family::V4)
    };
    // The flows choose among two backends; then a third comes. From then on only the flow table
    // knows where a third of them belong.
    let mut sluice = balancer.run_sluice(&config(2)).unwrap();
    let home = passage(&lab, "two backends", || {}).backends;
    sluice.configure(&config(3)).unwrap();
    sluice.restart().unwrap();
    let passage = |what: &str, change: &mut dyn FnMut()| {
        let arrived = passage(&lab, what, change);
        assert_eq!(arrived.backends, home, "{what}: flows have moved");
    };
    passage("nothing happens", &mut || {});

    let newer = builds::same_program(&lab.directory(), 1).unwrap();
    let before = program(balancer);
    passage("upgrade", &mut || {
        let report = report(&upgrade(balancer, &newer, &["--watch", "1"]), Some(0));
        assert_eq!(report["result"], "upgraded", "{report}");
        assert_eq!(report["rehearsed_flows"], 64, "{report}");
    });
    let upgraded = program(balancer);
    assert_ne!(upgraded, before);
    // The daemon of the older build goes on with it.
    assert_eq!(sluice.status().unwrap()["ready"], true);
    let again = report(&upgrade(balancer, &newer, &[]), Some(0));
    assert_eq!(again["result"], "unchanged", "{again}");

    passage("downgrade", &mut || {
        let report = sluice.json(&["upgrade", "--watch", "1"]).unwrap();
        assert_eq!(report["result"], "upgraded", "{report}");
    });

    // To the daemon beside it, none of that was somebody's meddling.
    assert!(!sluice.log().contains("drift"), "{}", sluice.log());
    sluice.stop().unwrap();
    let log = lab.directory().join("newer.log");
    let mut daemon = None;
    passage("a newer daemon", &mut || {
        daemon = Some(run(balancer, &newer, &config(3), &log));
        wait_for(&log, "upgrade: upgraded");
    });
    drop(daemon);

    let packets = counted(balancer);
    mark(balancer, TWIN);
    passage("a migration that is killed", &mut || {
        let log = lab.directory().join("killed.log");
        let mut daemon = run(balancer, &newer, &config(3), &log);
        wait_for(&log, "64 flows carried over");
        daemon.kill9().unwrap();
    });
    assert!(sluice.pins().join("next").exists());
    passage("its undoing, and a migration", &mut || sluice.start().unwrap());
    assert!(sluice.log().contains("migrated"), "{}", sluice.log());
    assert!(counted(balancer) >= packets + u64::from(FRAMES));
    // Nothing of it is left to do, or to see.
    let report = sluice.json(&["upgrade"]).unwrap();
    assert_eq!(report["result"], "unchanged", "{report}");
    let pins = |path: &str| sluice.pins().join(path).exists();
    assert!(!pins("next") && !pins("accepted") && !pins("programs/before"));
    assert_eq!(sluice.status().unwrap()["ready"], true);
}

#[test]
fn a_program_that_answers_otherwise_is_refused() {
    if !is_privileged() {
        return;
    }
    let talk = Talk::start();
    let balancer = talk.scene.lab.balancer();
    let before = program(balancer);
    let directory = talk.scene.lab.directory();
    let broken = builds::broken_program(&directory).unwrap();
    let invalid = builds::invalid_program(&directory).unwrap();
    for (build, says) in [(&broken, "answer is: dropped"), (&invalid, "its verifier said")] {
        let refused = report(&upgrade(balancer, build, &[]), Some(1));
        assert_eq!(refused["result"], "refused", "{refused}");
        assert!(refused["reason"].as_str().unwrap().contains(says), "{refused}");
        assert_eq!(program(balancer), before);
    }
    // Where the running program's object file is gone, the maps tell what is right.
    let kept = Path::new("/var/lib/sluice").join(balancer.name()).join("programs");
    std::fs::remove_dir_all(kept).unwrap();
    let refused = report(&upgrade(balancer, &broken, &[]), Some(1));
    assert_eq!(refused["result"], "refused", "{refused}");
    assert_eq!(program(balancer), before);
    talk.stop_unbroken();
}

#[test]
fn a_daemon_with_a_broken_program_leaves_the_one_that_runs() {
    if !is_privileged() {
        return;
    }
    let mut talk = Talk::start();
    talk.sluice.stop().unwrap();
    let balancer = talk.scene.lab.balancer();
    let before = program(balancer);
    let broken = builds::broken_program(&talk.scene.lab.directory()).unwrap();
    let log = talk.scene.lab.directory().join("broken.log");
    let daemon = run(balancer, &broken, &talk.config(), &log);
    wait_for(&log, "stays: ARP");
    assert_eq!(program(balancer), before);
    let status = talk.sluice.status().unwrap();
    assert_eq!(status["ready"], true, "{status}");
    drop(daemon);
    talk.stop_unbroken();
}

#[test]
fn a_program_that_is_worse_is_rolled_back() {
    if !is_privileged() {
        return;
    }
    let talk = Talk::start();
    let balancer = talk.scene.lab.balancer();
    let before = program(balancer);
    let broken = builds::broken_program(&talk.scene.lab.directory()).unwrap();
    let rolled_back = report(&upgrade(balancer, &broken, &["--force"]), Some(1));
    assert_eq!(rolled_back["result"], "rolled_back", "{rolled_back}");
    assert!(rolled_back["reason"].as_str().unwrap().contains("are counted"), "{rolled_back}");
    assert_eq!(program(balancer), before);
    assert!(!talk.sluice.pins().join("programs/before").exists());
    until("the daemon to have looked", DEADLINE, || {
        (talk.sluice.status().unwrap()["ready"] == true).then_some(())
    })
    .unwrap();
    talk.stop_unbroken();
}

#[test]
fn an_upgrade_that_is_killed_is_undone_by_the_next_daemon() {
    if !is_privileged() {
        return;
    }
    let mut talk = Talk::start();
    let balancer = talk.scene.lab.balancer();
    let before = program(balancer);
    let newer = builds::same_program(&talk.scene.lab.directory(), 1).unwrap();
    let log = talk.scene.lab.directory().join("killed.log");
    let mut command = balancer.command(&newer);
    command.args(["--instance", balancer.name(), "upgrade", "--watch", "600"]);
    let mut process = Process::start("sluice upgrade", command, &log).unwrap();
    wait_for(&log, "swapped on eth0");
    assert_ne!(program(balancer), before);
    process.kill9().unwrap();

    talk.sluice.restart().unwrap();
    assert_eq!(program(balancer), before);
    assert!(!talk.sluice.pins().join("programs/before").exists());
    talk.stop_unbroken();
}

#[test]
fn an_unknown_abi_is_refused_and_forwards_on() {
    if !is_privileged() {
        return;
    }
    let mut talk = Talk::start();
    talk.sluice.stop().unwrap();
    let balancer = talk.scene.lab.balancer();
    let newer = builds::same_program(&talk.scene.lab.directory(), 1).unwrap();
    mark(balancer, ABI_VERSION + 7);
    let refused = report(&upgrade(balancer, &newer, &[]), Some(1));
    assert_eq!(refused["result"], "refused", "{refused}");
    let error = format!("{:#}", talk.sluice.start().unwrap_err());
    assert!(error.contains("go on with the newer binary"), "{error}");

    // One that could be migrated, but not beside a daemon that writes the old maps.
    mark(balancer, TWIN);
    let refused = report(&upgrade(balancer, &newer, &[]), Some(1));
    assert!(refused["reason"].as_str().unwrap().contains("sluice run"), "{refused}");
    talk.stop_unbroken();
}

#[test]
fn a_migration_to_a_broken_program_is_refused() {
    if !is_privileged() {
        return;
    }
    let mut talk = Talk::start();
    talk.sluice.stop().unwrap();
    let balancer = talk.scene.lab.balancer();
    mark(balancer, TWIN);
    let before = program(balancer);
    let broken = builds::broken_program(&talk.scene.lab.directory()).unwrap();
    let log = talk.scene.lab.directory().join("broken.log");
    let mut daemon = run(balancer, &broken, &talk.config(), &log);
    until("it to give up", DEADLINE, || (!daemon.is_running()).then_some(())).unwrap();
    assert!(daemon.log().contains("can't migrate"), "{}", daemon.log());
    assert_eq!(program(balancer), before);
    talk.stop_unbroken();
}

/// Long connections through an instance. Dropped in this order.
struct Talk {
    conversations: Conversations,
    _servers: Vec<EchoServer>,
    sluice: Sluice,
    scene: Scene,
}

impl Talk {
    fn start() -> Self {
        let mut scene = Scene::start(Plan::default());
        scene.own(ECHO, "l2");
        let servers = scene.lab.backends().iter().map(|host| EchoServer::start(host, 7).unwrap());
        let servers = servers.collect();
        let sluice = scene.lab.balancer().run_sluice(&config(&scene)).unwrap();
        let conversations =
            Conversations::start(scene.lab.client(), address(ECHO), CONVERSATIONS).unwrap();
        conversations.run_for_messages(CONVERSATIONS).unwrap();
        Self { conversations, _servers: servers, sluice, scene }
    }

    fn config(&self) -> String {
        config(&self.scene)
    }

    /// All of them have lived through it, and the next ones are served too.
    fn stop_unbroken(self) {
        self.conversations.run_for_messages(CONVERSATIONS * 4).unwrap();
        let late = Conversations::start(self.scene.lab.client(), address(ECHO), 30).unwrap();
        late.run_for_messages(100).unwrap();
        for report in [self.conversations.stop(), late.stop()] {
            assert_eq!(report.broken, [""; 0], "of {:?}", report.per_backend);
        }
    }
}

fn config(scene: &Scene) -> String {
    dataplane(&["eth0"]) + &scene.service("echo", ECHO, "l2", Family::V4)
}

/// Sends numbered frames, before, while and after `change` does its work.
fn passage(lab: &Lab, what: &str, mut change: impl FnMut()) -> Arrived {
    let started = Instant::now();
    let numbers = Numbers::start(lab, address(ECHO)).unwrap();
    numbers.run_for(FRAMES / 4).unwrap();
    change();
    numbers.run_for(FRAMES * 3 / 4).unwrap();
    let arrived = numbers.stop(started);
    let Arrived { sent, lost, twice, time, .. } = &arrived;
    println!("{what}: {lost} lost of {sent} numbered frames in {:.1} s", time.as_secs_f64());
    assert_eq!((*lost, *twice), (0, 0), "{what}: of {sent}");
    arrived
}

/// `sluice upgrade` of a build.
fn upgrade(host: &Host, build: &Path, arguments: &[&str]) -> Output {
    let mut command = host.command(build);
    command.args(["--instance", host.name(), "upgrade", "--json"]).args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

/// What it reported.
#[track_caller]
fn report(output: &Output, code: Option<i32>) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), code, "{said}{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `sluice run` of a build; it is not waited for.
fn run(host: &Host, build: &Path, config: &str, log: &Path) -> Process {
    let path = log.with_extension("toml");
    std::fs::write(&path, config).unwrap();
    let mut command = host.command(build);
    command.args(["--instance", host.name(), "run", "--config"]).arg(&path);
    Process::start("sluice run", command, log).unwrap()
}

fn wait_for(log: &Path, line: &str) {
    let log = || std::fs::read_to_string(log).unwrap_or_default();
    until(&format!("{line:?} in a log"), DEADLINE * 2, || log().contains(line).then_some(()))
        .unwrap_or_else(|error| panic!("{error}:\n{}", log()));
}

/// Id of the program that is attached.
fn program(host: &Host) -> Value {
    host.xdp("eth0").unwrap().expect("XDP on eth0")["prog"]["id"].clone()
}

/// Makes the running instance one of another ABI.
fn mark(host: &Host, abi_version: u32) {
    let mut maps = maps(host);
    let mut settings = maps.settings();
    settings.abi_version = abi_version;
    maps.set_settings(&settings);
}

/// Packets that all backends have got.
fn counted(host: &Host) -> u64 {
    let counters = maps(host).counters(&[1, 2, 3]).unwrap();
    counters.iter().map(|counters| counters.traffic.packets).sum()
}

fn maps(host: &Host) -> Maps {
    let instance: Instance = host.name().parse().unwrap();
    Maps::pinned(&Pins::of(&instance)).unwrap()
}
