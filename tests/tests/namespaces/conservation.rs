//! Nothing vanishes: every frame that the interface received has one verdict, and what has not is
//! told.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lb_common::{
    host::{
        Random, corpus,
        sample::{self, Purpose},
    },
    parse::Family as IpFamily,
    reason::Reason,
};
use sluice_tests::lab::{
    DEADLINE, Family, INNER_MTU, Plan, Sluice, dataplane, is_privileged, until,
};

use crate::scene::{Scene, VIP4};

/// Frames of noise behind the balancer's address: some begin as IP does.
const GARBAGE: u64 = 2000;
/// The interfaces' counts are read each second, and what is unexplained is known after three.
const REST: Duration = Duration::from_secs(5);
/// What all interfaces together have counted, beside what each has.
const ALL: &str = "all of them";

/// What an instance tells of its frames, or of those of one interface.
#[derive(Clone, Debug, Default, PartialEq)]
struct Count {
    received: u64,
    verdicts: u64,
    by_reason: BTreeMap<String, u64>,
    unexplained: i64,
}

impl Count {
    fn of(scene: &Scene) -> Self {
        Self::all(&metrics(scene))
    }

    fn all(text: &str) -> Self {
        let all = counts(text, "sluice_frames_total", "sluice_frames_unexplained");
        Self { received: by_interface(text).values().map(|own| own.received).sum(), ..all }
    }

    /// Once nothing that was sent comes in any more, and the interfaces' counts are of that time.
    fn at_rest(scene: &Scene) -> Self {
        at_rest(|| BTreeMap::from([(ALL, Self::of(scene))])).remove(ALL).unwrap()
    }

    /// What stays as it is while only hosts look for each other: backends go on answering SYNs of
    /// clients that are none, and ask for their addresses each time.
    fn settled(&self) -> (BTreeMap<&str, u64>, i64) {
        let stray = [Reason::NotIp, Reason::NotVip].map(Reason::name);
        let by_reason = self.by_reason.iter().map(|(reason, count)| (reason.as_str(), *count));
        (by_reason.filter(|(reason, _)| !stray.contains(reason)).collect(), self.unexplained)
    }

    /// By reason, and `forwarded`, what has come since.
    fn since(&self, before: &Self, reason: &str) -> u64 {
        self.by_reason[reason] - before.by_reason.get(reason).copied().unwrap_or(0)
    }
}

/// The same of each interface.
fn by_interface(text: &str) -> BTreeMap<String, Count> {
    let names = lines(text, "sluice_interface_attached{");
    let names = names.filter_map(|(labels, _)| label(labels, "interface"));
    names
        .map(|name| {
            let own = |metric: &str| format!("{metric}{{interface=\"{name}\"");
            let received = lines(text, &own("sluice_interface_received_frames_total")).next();
            let received = received.map_or(0, |(_, count)| count.parse().unwrap());
            let all = counts(
                text,
                &own("sluice_interface_frames_total"),
                &own("sluice_interface_frames_unexplained"),
            );
            (name.to_owned(), Count { received, ..all })
        })
        .collect()
}

fn counts(text: &str, frames: &str, unexplained: &str) -> Count {
    let by_reason: BTreeMap<String, u64> = lines(text, frames)
        .map(|(labels, count)| {
            (label(labels, "reason").unwrap().to_owned(), count.parse().unwrap())
        })
        .collect();
    let unexplained = lines(text, unexplained).next();
    Count {
        received: 0,
        verdicts: by_reason.values().sum(),
        by_reason,
        unexplained: unexplained.map_or(0, |(_, count)| count.parse().unwrap()),
    }
}

fn metrics(scene: &Scene) -> String {
    let get = ["-sS", "--fail", "--max-time", "5", "http://127.0.0.1:9180/metrics"];
    scene.lab.balancer().run("curl", &get).unwrap()
}

/// Once what is settled in each of these counts has stayed the same for a while.
fn at_rest<K: Clone + Ord + Debug>(look: impl Fn() -> BTreeMap<K, Count>) -> BTreeMap<K, Count> {
    fn settled<K: Ord>(counts: &BTreeMap<K, Count>) -> BTreeMap<&K, (BTreeMap<&str, u64>, i64)> {
        counts.iter().map(|(key, count)| (key, count.settled())).collect()
    }
    let (mut last, mut since) = (look(), Instant::now());
    until("no frame to come in", 4 * DEADLINE, || {
        let now = look();
        if settled(&now) != settled(&last) {
            since = Instant::now();
        }
        last = now;
        (since.elapsed() > REST).then(|| last.clone())
    })
    .with_context(|| format!("{last:?}"))
    .unwrap()
}

fn lines<'t>(text: &'t str, start: &str) -> impl Iterator<Item = (&'t str, &'t str)> {
    text.lines().filter(move |line| line.starts_with(start)).map(parts)
}

fn label<'l>(labels: &'l str, name: &str) -> Option<&'l str> {
    labels.split(&format!("{name}=\"")).nth(1)?.split('"').next()
}

fn parts(line: &str) -> (&str, &str) {
    line.rsplit_once(' ').unwrap()
}

/// Frames of the corpus and noise, poured into an interface of the balancer as they are.
struct Soup {
    sent: u64,
    /// Why those of the corpus are not forwarded.
    expected: BTreeMap<&'static str, u64>,
}

impl Soup {
    fn pour(scene: &Scene, interface: usize, seed: u64, noise: u64) -> Self {
        let client = scene.lab.client();
        let interface = &scene.lab.balancer().interfaces()[interface];
        // Bridges look at what they forward.
        let socket = scene.lab.wire(interface).unwrap();
        let macs = [interface.mac(), client.interfaces()[0].mac()];
        let macs = macs.as_flattened();
        let mut soup = Self { sent: noise, expected: BTreeMap::new() };
        // Shorter and longer ones no interface sends.
        let is_sent = |frame: &[u8]| (15..=14 + INNER_MTU as usize).contains(&frame.len());
        let cases = corpus::cases().into_iter().chain(corpus::openings());
        for case in cases.filter(|case| is_sent(&case.frame.bytes)) {
            socket.send(&[macs, &case.frame.bytes[macs.len()..]].concat()).unwrap();
            soup.sent += 1;
            if let Err(reason) = case.outcome {
                *soup.expected.entry(reason.name()).or_default() += 1;
            }
        }
        let mut random = Random(seed);
        for number in 0..noise {
            let kind = [[0x08, 0x00], [0x86, 0xdd], [0x12, 0x34]][number as usize % 3];
            let length = 1 + random.below(200);
            let noise = (0..length).map(|_| random.word() as u8).collect::<Vec<_>>();
            socket.send(&[macs, &kind, &noise].concat()).unwrap();
        }
        soup
    }

    /// All of it has arrived and has a verdict each, as everything that came beside it.
    #[track_caller]
    fn assert_counted(&self, before: &Count, after: &Count) {
        let received = after.received - before.received;
        assert_eq!(received, after.verdicts - before.verdicts, "{before:?}\n{after:?}");
        assert!(received >= self.sent, "{received} of {} have arrived: {after:?}", self.sent);
        assert_eq!(after.unexplained, 0, "{after:?}");
        for (reason, count) in &self.expected {
            let counted = after.since(before, reason);
            assert!(counted >= *count, "{count} times {reason}, and {counted} are counted");
        }
        assert!(after.since(before, "forwarded") > 0, "{after:?}");
    }
}

fn sample_services(scene: &mut Scene) -> String {
    let services = [("v4", IpFamily::Ipv4, Family::V4), ("v6", IpFamily::Ipv6, Family::V6)];
    let config = services.map(|(name, ip, family)| {
        let vip = sample::vip(Purpose::L2, ip).to_string();
        scene.own(&vip, "l2");
        scene.service(name, &vip, "l2", family)
    });
    config.concat()
}

#[test]
fn a_soup_of_frames_has_a_verdict_each() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    let config = dataplane(&["eth0"]) + &sample_services(&mut scene);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    // Its own: frames and verdicts of one moment.
    let eth0 = || at_rest(|| by_interface(&metrics(&scene))).remove("eth0").unwrap();
    let before = eth0();
    assert_eq!(before.unexplained, 0, "{before:?}");
    let soup = Soup::pour(&scene, 0, 7, GARBAGE);
    soup.assert_counted(&before, &eth0());
    assert!(!trouble(&sluice).contains("verdict"), "{}", trouble(&sluice));
}

#[test]
fn each_interface_has_its_own_sum_while_others_come_and_go() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan { second_network: true, ..Plan::default() });
    let services = sample_services(&mut scene);
    let config = |interfaces: &[&str]| dataplane(interfaces) + &services;
    let mut sluice = scene.lab.balancer().run_sluice(&config(&["eth0"])).unwrap();
    // All of them as they are, and each as the daemon saw it last.
    let look = |scene: &Scene| {
        at_rest(|| {
            let text = metrics(scene);
            let all = (ALL.to_owned(), Count::all(&text));
            by_interface(&text).into_iter().chain([all]).collect()
        })
    };

    let first = look(&scene);
    let soup = Soup::pour(&scene, 0, 7, GARBAGE);
    let alone = look(&scene);
    assert_eq!(alone.keys().collect::<Vec<_>>(), [ALL, "eth0"], "{alone:?}");
    soup.assert_counted(&first["eth0"], &alone["eth0"]);
    // While nothing else is attached its verdicts are all there are, but for answers to probes.
    let own = &alone["eth0"].by_reason;
    assert_eq!(own["forwarded"], alone[ALL].by_reason["forwarded"]);
    assert_eq!(own["probe_answer"], 0, "they arrive on eth1: {own:?}");

    sluice.reconfigure(&config(&["eth0", "eth1"])).unwrap();
    let attached = |count: usize| {
        let is_attached = |name: &str| scene.lab.balancer().xdp(name).unwrap().is_some();
        until("the interfaces to be as configured", DEADLINE, || {
            let names: Vec<String> = by_interface(&metrics(&scene)).into_keys().collect();
            (names.len() == count && names.iter().all(|name| is_attached(name))).then_some(())
        })
        .unwrap();
    };
    attached(2);
    let before = look(&scene);
    for (reason, count) in &alone["eth0"].by_reason {
        assert!(before["eth0"].by_reason[reason] >= *count, "{reason} fell: {before:?}");
    }
    let soups = [
        Soup::pour(&scene, 0, 8, GARBAGE),
        Soup::pour(&scene, 1, 9, GARBAGE / 2),
        Soup::pour(&scene, 1, 10, GARBAGE / 4),
    ];
    let both = look(&scene);
    soups[0].assert_counted(&before["eth0"], &both["eth0"]);
    let back = Soup {
        sent: soups[1].sent + soups[2].sent,
        expected: soups[1].expected.iter().map(|(reason, count)| (*reason, count * 2)).collect(),
    };
    back.assert_counted(&before["eth1"], &both["eth1"]);
    // What nobody but us sends is exactly what was sent.
    for reason in ["fragment", "bad_length", "bad_tcp_header", "truncated"] {
        let sent = soups[0].expected[reason];
        let counted = ["eth0", "eth1"].map(|name| both[name].since(&before[name], reason));
        assert_eq!(counted, [sent, 2 * sent], "{reason}");
    }
    for reason in ["forwarded", "runt", "fragment", "no_backend"] {
        let sum: u64 = ["eth0", "eth1"].map(|name| both[name].by_reason[reason]).iter().sum();
        assert_eq!(sum, both[ALL].by_reason[reason], "{reason}");
    }

    // The daemon goes and comes, and one interface goes: the counts stay.
    sluice.restart().unwrap();
    let again = look(&scene);
    for (name, own) in &both {
        assert!(again[name].verdicts >= own.verdicts, "{name}: {own:?}\n{again:?}");
        assert_eq!(again[name].since(own, "fragment"), 0);
    }
    sluice.reconfigure(&config(&["eth0"])).unwrap();
    attached(1);
    let before = look(&scene);
    let soup = Soup::pour(&scene, 0, 11, GARBAGE);
    soup.assert_counted(&before["eth0"], &look(&scene)["eth0"]);
    assert!(!trouble(&sluice).contains("verdict"), "{}", trouble(&sluice));

    let own = sluice.json(&["reasons", "--interface", "eth0"]).unwrap();
    let told = by_interface(&metrics(&scene))["eth0"].verdicts;
    assert_eq!(own["received"].as_u64(), Some(told), "{own}");
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
