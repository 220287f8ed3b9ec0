//! Nothing vanishes: every frame that the interface received has one verdict, and what has not is
//! told.

use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

use lb_common::{
    host::{
        Random, corpus,
        sample::{self, Purpose},
    },
    parse::Family as IpFamily,
};
use sluice_tests::lab::{
    DEADLINE, Family, INNER_MTU, Plan, Sluice, dataplane, is_privileged, until,
};

use crate::scene::{Scene, VIP4};

/// Frames of noise behind the balancer's address: some begin as IP does.
const GARBAGE: u64 = 2000;
/// The interfaces' counts are read each second, and what is unexplained is known after three.
const REST: Duration = Duration::from_secs(5);

/// What an instance tells of its frames.
#[derive(Clone, Debug, PartialEq)]
struct Count {
    received: u64,
    verdicts: u64,
    by_reason: BTreeMap<String, u64>,
    unexplained: i64,
}

impl Count {
    fn of(scene: &Scene) -> Self {
        let get = ["-sS", "--fail", "--max-time", "5", "http://127.0.0.1:9180/metrics"];
        let text = scene.lab.balancer().run("curl", &get).unwrap();
        let of =
            |name: &'static str| text.lines().filter(move |line| line.starts_with(name)).map(parts);
        let by_reason = of("sluice_frames_total{").map(|(labels, count)| {
            let reason = labels.split("reason=\"").nth(1).and_then(|rest| rest.split('"').next());
            (reason.unwrap().to_owned(), count.parse().unwrap())
        });
        let by_reason: BTreeMap<String, u64> = by_reason.collect();
        Self {
            received: of("sluice_interface_received_frames_total{")
                .map(|(_, count)| count.parse::<u64>().unwrap())
                .sum(),
            verdicts: by_reason.values().sum(),
            by_reason,
            unexplained: of("sluice_frames_unexplained ").next().unwrap().1.parse().unwrap(),
        }
    }

    /// Once nothing has come in for a while, and the interfaces' counts are of that time.
    fn at_rest(scene: &Scene) -> Self {
        let mut last = (Self::of(scene), Instant::now());
        until("no frame to come in", 4 * DEADLINE, || {
            let now = Self::of(scene);
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > REST).then(|| last.0.clone())
        })
        .unwrap()
    }
}

fn parts(line: &str) -> (&str, &str) {
    line.rsplit_once(' ').unwrap()
}

#[test]
fn a_soup_of_frames_has_a_verdict_each() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    let mut config = dataplane(&["eth0"]);
    for (name, ip, family) in
        [("v4", IpFamily::Ipv4, Family::V4), ("v6", IpFamily::Ipv6, Family::V6)]
    {
        let vip = sample::vip(Purpose::L2, ip).to_string();
        scene.own(&vip, "l2");
        config += &scene.service(name, &vip, "l2", family);
    }
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let before = Count::at_rest(&scene);
    assert_eq!(before.unexplained, 0, "{before:?}");

    let client = scene.lab.client();
    // Bridges look at what they forward.
    let socket = scene.lab.wire(scene.lab.balancer()).unwrap();
    let macs = [scene.lab.balancer(), client].map(|host| host.interfaces()[0].mac());
    let macs = macs.as_flattened();
    let mut sent = 0;
    let mut expected = BTreeMap::<&str, u64>::new();
    // Shorter and longer ones no interface sends.
    let is_sent = |frame: &[u8]| (15..=14 + INNER_MTU as usize).contains(&frame.len());
    for case in corpus::cases().iter().filter(|case| is_sent(&case.frame.bytes)) {
        socket.send(&[macs, &case.frame.bytes[macs.len()..]].concat()).unwrap();
        sent += 1;
        if let Err(reason) = case.outcome {
            *expected.entry(reason.name()).or_default() += 1;
        }
    }
    let mut random = Random(7);
    for number in 0..GARBAGE {
        let kind = [[0x08, 0x00], [0x86, 0xdd], [0x12, 0x34]][number as usize % 3];
        let length = 1 + random.below(200);
        let noise = (0..length).map(|_| random.word() as u8).collect::<Vec<_>>();
        socket.send(&[macs, &kind, &noise].concat()).unwrap();
        sent += 1;
    }
    let after = Count::at_rest(&scene);
    let (received, verdicts) = (after.received - before.received, after.verdicts - before.verdicts);
    assert_eq!(received, verdicts, "{after:?}");
    assert!(received >= sent, "{received} of {sent} have arrived: {after:?}");
    assert_eq!(after.unexplained, 0, "{after:?}");
    for (reason, count) in expected {
        let counted = after.by_reason[reason] - before.by_reason[reason];
        assert!(counted >= count, "{count} times {reason}, and {counted} are counted");
    }
    assert!(after.by_reason["forwarded"] > before.by_reason["forwarded"]);
    assert!(!trouble(&sluice).contains("verdict"), "{}", trouble(&sluice));
}

#[test]
fn frames_of_a_backend_that_is_gone_stay_counted() {
    if !is_privileged() {
        return;
    }
    let (scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    assert_eq!(scene.request(VIP4, 60).failed(), 0);
    let before = Count::at_rest(&scene);
    sluice.cli_ok(&["backend", "remove", "web", scene.backends()[0]]).unwrap();
    until("the backend to be gone", 6 * DEADLINE, || {
        let status = sluice.status().unwrap();
        (status["services"][0]["backends"].as_array().unwrap().len() == 2).then_some(())
    })
    .unwrap();
    // It goes from the maps with the next round.
    let removed = Count::at_rest(&scene);
    let forwarded = |count: &Count| count.by_reason["forwarded"];
    assert!(forwarded(&removed) >= forwarded(&before), "{before:?}\n{removed:?}");
    assert_eq!(removed.unexplained, 0, "{removed:?}");
    let kept = sluice.state().join("retired.json");
    assert!(kept.exists(), "{}", kept.display());
    sluice.restart().unwrap();
    let restarted = Count::at_rest(&scene);
    assert_eq!(forwarded(&restarted), forwarded(&removed), "{removed:?}\n{restarted:?}");
}

#[test]
fn verdicts_without_a_frame_are_told() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    let before = Count::at_rest(&scene);
    // Somebody counts what nobody has received: the same on each CPU.
    let path = sluice.pins().join("maps/REASONS").display().to_string();
    let mut values = vec!["0"; size_of::<lb_common::abi::ReasonCounts>()];
    values[2] = "1";
    let update =
        [&["map", "update", "pinned", &path, "key", "0", "0", "0", "0", "value"], &*values];
    let output = Command::new("bpftool").args(update.concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = until("it to be told", 4 * DEADLINE, || {
        Some(trouble(&sluice)).filter(|trouble| trouble.contains("verdicts are about frames"))
    })
    .unwrap();
    let after = Count::at_rest(&scene);
    let more = after.verdicts - before.verdicts - (after.received - before.received);
    assert!(more > 50_000, "{after:?}");
    assert_eq!(after.unexplained, -(more as i64), "{told}");
    assert!(told.contains(&format!("{more} verdicts")), "{told}");
}

/// What the journal tells.
fn trouble(sluice: &Sluice) -> String {
    sluice.cli_ok(&["events"]).unwrap()
}
