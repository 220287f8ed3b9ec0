//! `sluice trace` tells of the frames that come and what becomes of them, and disturbs none.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Instant,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use sluice_tests::lab::{
    Arrived, DEADLINE, Family, Host, Numbers, Plan, Process, Sluice, dataplane, is_privileged,
    service, until,
};

use crate::scene::{ACK, RST, SYN, Scene, VIP4, VIP6, address, segment};

/// `sluice trace` under way.
struct Trace {
    process: Process,
    log: PathBuf,
}

impl Trace {
    /// Starts it, and waits until it looks at frames.
    fn start(scene: &Scene, arguments: &[&str]) -> Self {
        let log = scene.lab.directory().join("trace.log");
        let _ = fs::remove_file(&log);
        let mut command = scene.lab.balancer().sluice().unwrap();
        command.arg("trace").args(arguments);
        let process = Process::start("sluice trace", command, &log).unwrap();
        let trace = Self { process, log };
        until("the trace to begin", DEADLINE, || {
            trace.text().contains("Ctrl-C ends it").then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {}", trace.text()));
        trace
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ctrl-C; what it has written.
    fn stop(mut self) -> String {
        self.process.signal(Signal::SIGINT);
        let process = &mut self.process;
        until("the trace to end", DEADLINE, || (!process.is_running()).then_some(())).unwrap();
        self.text()
    }

    /// Ctrl-C; what it has told with `--json`, and its last word.
    fn lines(self) -> (Vec<Value>, String) {
        let text = self.stop();
        let (json, rest): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('{'));
        let read = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        (json.into_iter().map(read).collect(), rest.join("\n"))
    }
}

/// Id and name of the program on an interface.
fn program(host: &Host) -> (Value, Value) {
    let program = &host.xdp("eth0").unwrap().expect("XDP on eth0")["prog"];
    (program["id"].clone(), program["name"].clone())
}

/// Packets forwarded to backends, and from them.
fn packets(sluice: &Sluice) -> (u64, u64) {
    let status = sluice.status().unwrap();
    let backends = status["services"][0]["backends"].as_array().unwrap();
    let sum = |field: &str| backends.iter().map(|b| b[field].as_u64().unwrap_or(0)).sum();
    (sum("packets_total"), sum("return_packets_total"))
}

#[test]
fn each_frame_is_told_once_with_its_backend_and_its_new_headers() {
    if !is_privileged() {
        return;
    }
    let cases = [
        (VIP4, "l2", Family::V4),
        (VIP4, "ipip", Family::V6),
        (VIP6, "nat", Family::V6),
        (VIP4, "nat", Family::V4),
    ];
    for (vip, forwarding, family) in cases {
        println!("{vip} by {forwarding}");
        let (scene, sluice) = Scene::forwarding(Plan::default(), vip, forwarding, family);
        let plain = program(scene.lab.balancer());
        let trace = Trace::start(&scene, &["--json", "--service", "web"]);
        let traced = program(scene.lab.balancer());
        assert_ne!(traced, plain);
        // To the daemon, that is no stranger's program.
        assert_eq!(sluice.status().unwrap()["ready"], true);
        let before = packets(&sluice);
        let tally = scene.request(vip, 20);
        let after = packets(&sluice);
        let (lines, end) = trace.lines();
        assert_eq!(program(scene.lab.balancer()), plain);
        assert_eq!(tally.failed(), 0, "{}", tally.causes());

        let of = |verdict: &'static str| lines.iter().filter(move |l| l["verdict"] == verdict);
        // Probes by way of the VIP are no clients' frames.
        let client = scene.lab.client().address(Family::of(address(vip).ip())).to_string();
        let sent = of("forward").count() as u64;
        let returned = of("return").count() as u64;
        assert_eq!((sent, returned), (after.0 - before.0, after.1 - before.1), "{end}");
        assert!(sent >= 20 * 4 && (returned != 0) == (forwarding == "nat"), "{sent} {returned}");
        assert!(end.contains(&format!("{} frames shown", lines.len())), "{end}");

        let mut served = BTreeMap::<String, u64>::new();
        for line in of("forward") {
            let (came, went) = (&line["before"], &line["after"]);
            assert_eq!(came["destination"], vip, "{line}");
            assert!(came["source"].as_str().unwrap().contains(&client), "{line}");
            assert_eq!((&line["service"], &line["interface"]), (&"web".into(), &"eth0".into()));
            assert_ne!(came["destination_mac"], went["destination_mac"], "{line}");
            assert_eq!(went["tunnel"].is_null(), forwarding != "ipip", "{line}");
            assert_eq!(went["destination"] == vip, forwarding != "nat", "{line}");
            let opens = line["events"].as_array().unwrap().contains(&"new_flows".into());
            assert_eq!(came["flags"] == 2, opens, "{line}");
            if opens {
                *served.entry(line["backend"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        assert_eq!(served, tally.per_backend());
        for line in of("return") {
            assert_eq!(line["after"]["source"], vip, "{line}");
        }
    }
}

#[test]
fn filters_pick_in_the_kernel() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    let wire = scene.lab.wire(&scene.lab.balancer().interfaces()[0]).unwrap();
    let macs = [scene.lab.balancer(), scene.lab.client()].map(|h| h.interfaces()[0].mac());
    let send = |client: [u8; 4], port: u16, to: u16, flags: u8| {
        wire.send(&segment(macs.as_flattened(), (client.into(), port), to, flags)).unwrap();
    };
    let soup = || {
        for port in 1..=50 {
            send([198, 51, 100, 1], port, 80, SYN);
            send([198, 51, 100, 2], port, 80, SYN);
            send([198, 51, 100, 2], port, 80, ACK);
            send([198, 51, 100, 3], port, 80, RST);
            send([198, 51, 100, 3], port, 81, SYN);
        }
    };
    let backend = scene.backends()[0];
    let told = |arguments: &[&str]| {
        let trace = Trace::start(&scene, &[&["--json"], arguments].concat());
        let seen = || sluice.json(&["reasons", "--all"]).unwrap();
        let count = |reasons: &Value, name: &str| {
            let reasons = reasons["reasons"].as_array().unwrap();
            reasons.iter().find(|r| r["name"] == name).unwrap()["count"].as_u64().unwrap()
        };
        let before = count(&seen(), "not_service");
        soup();
        until("the soup to be counted", DEADLINE, || {
            (count(&seen(), "not_service") == before + 50).then_some(())
        })
        .unwrap();
        trace.lines().0
    };
    let all = told(&["--client", "198.51.100.0/24"]);
    assert_eq!(all.len(), 250);
    let from = |line: &Value, client: &str| line["source"] == client;
    let lines = told(&["--client", "198.51.100.2"]);
    assert!(lines.len() == 100 && lines.iter().all(|line| from(line, "198.51.100.2")));
    let lines = told(&["--client", "198.51.100.0/24", "--flags", "syn,rst"]);
    assert_eq!(lines.len(), 200);
    let lines = told(&["--reason", "not_service"]);
    assert!(lines.len() == 50 && lines.iter().all(|line| line["verdict"] == "pass"), "{lines:?}");
    let lines = told(&["--client", "198.51.100.0/24", "--verdict", "pass,drop"]);
    assert_eq!(lines.len(), 50);
    let lines = told(&["--client", "198.51.100.0/24", "--service", VIP4]);
    assert_eq!(lines.len(), 200, "not those to port 81");
    let lines = told(&["--client", "198.51.100.0/24", "--backend", backend]);
    let its = |line: &&Value| line["backend"] == backend;
    let expected = all.iter().filter(its).count();
    assert!(lines.iter().all(|line| its(&line)));
    assert_eq!(lines.len(), expected);
    let lines = told(&["--client", "198.51.100.0/24", "--one-in", "5"]);
    assert!((10..=110).contains(&lines.len()), "{} of 250", lines.len());
    let lines = told(&["--client", "198.51.100.0/24", "--count", "7"]);
    assert_eq!(lines.len(), 7);
    let lines = told(&["--client", "192.0.2.0/24"]);
    assert_eq!(lines, [Value::Null; 0]);

    for (arguments, says) in [
        (&["--service", "nobody"][..], "there is no service nobody"),
        (&["--backend", "nobody"], "there is no backend nobody"),
        (&["--reason", "nothing"], "invalid value 'nothing'"),
        (&["--pcap", "/proc/none/file"], "create /proc/none/file"),
    ] {
        let refused = sluice.cli(&[&["trace"], arguments].concat()).unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(says), "{said}");
    }
}

#[test]
fn wireshark_reads_the_frames_before_and_after() {
    if !is_privileged() {
        return;
    }
    let plan = Plan { second_network: true, ..Plan::default() };
    let mut scene = Scene::start(plan);
    scene.own(VIP4, "ipip");
    let config = dataplane(&["eth0"]) + &scene.service("web", VIP4, "ipip", Family::V4);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let file = scene.lab.directory().join("web.pcapng");
    let trace =
        Trace::start(&scene, &["--client", "198.18.0.0/15", "--pcap", file.to_str().unwrap()]);
    let before = packets(&sluice).0;
    let tally = scene.request(VIP4, 10);
    // To a port that no service has.
    scene.attempt("203.0.113.10:81", 1);
    let forwarded = packets(&sluice).0 - before;
    let said = trace.stop();
    assert_eq!(tally.failed(), 0, "{}", tally.causes());
    let read = |filter: &str| {
        let fields = ["frame.interface_name", "frame.comment", "ip.dst", "frame.time_epoch"];
        let mut arguments = vec!["-r", file.to_str().unwrap(), "-Y", filter, "-T", "fields"];
        arguments.extend(fields.iter().flat_map(|field| ["-e", field]));
        let text = scene.lab.balancer().run("tshark", &arguments).unwrap();
        let rows = text.lines().map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
        rows.collect::<Vec<_>>()
    };
    let came = read("frame.packet_flags_direction == 1 && frame.comment contains \"forwarded\"");
    let went = read("frame.packet_flags_direction == 2");
    assert_eq!((came.len() as u64, went.len() as u64), (forwarded, forwarded), "{said}");
    for (came, went) in came.iter().zip(&went) {
        assert_eq!(came[1], went[1]);
        assert!(came[1].starts_with("forwarded to web/"), "{came:?}");
        assert_eq!(came[2], "203.0.113.10", "{came:?}");
        // The tunnel's, and what is in it.
        assert!(went[2].ends_with(",203.0.113.10"), "{went:?}");
    }
    let opened = came.iter().filter(|row| row[1].ends_with("new_flows")).count();
    assert_eq!(opened, 10);
    let passed = read("frame.comment contains \"passed: not_service\"");
    assert!(!passed.is_empty());
    let interfaces =
        |rows: &[Vec<String>]| rows.iter().map(|r| r[0].clone()).collect::<BTreeSet<_>>();
    assert_eq!(interfaces(&came), BTreeSet::from(["eth0".to_owned()]));
    assert_eq!(interfaces(&went), BTreeSet::from(["eth1".to_owned()]));
    // By the clock on the wall.
    let at: f64 = came[0][3].parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!((0.0..300.0).contains(&(now.as_secs_f64() - at)), "{at}");
    // Nothing that Wireshark complains about.
    assert_eq!(read("_ws.malformed"), Vec::<Vec<String>>::new());
}

#[test]
fn no_frame_is_lost_when_a_trace_begins_ends_or_is_killed() {
    if !is_privileged() {
        return;
    }
    const ECHO: &str = "203.0.113.10:7";
    let scene = Scene::start(Plan::default());
    let balancer = scene.lab.balancer();
    let config = dataplane(&["eth0"])
        + &service("echo", address(ECHO), "l2", scene.lab.backends(), Family::V4);
    let mut sluice = balancer.run_sluice(&config).unwrap();
    let plain = program(balancer);
    let passage = |what: &str, change: &mut dyn FnMut()| {
        let started = Instant::now();
        let numbers = Numbers::start(&scene.lab, address(ECHO)).unwrap();
        numbers.run_for(20_000).unwrap();
        change();
        numbers.run_for(20_000).unwrap();
        let Arrived { sent, lost, twice, .. } = numbers.stop(started);
        println!("{what}: {lost} lost of {sent} numbered frames");
        assert_eq!((lost, twice), (0, 0), "{what}: of {sent}");
    };
    let is_plain = || (program(balancer) == plain).then_some(());
    let pin = sluice.pins().join("programs/traced");

    let mut trace = None;
    passage("begins", &mut || trace = Some(Trace::start(&scene, &["--rate", "64"])));
    // One at a time.
    let second = sluice.cli(&["trace", "--count", "1"]).unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("somebody else traces"), "{said}");
    let said = trace.take().map(Trace::stop).unwrap();
    assert!(said.contains("left out by --rate"), "{}", said.lines().last().unwrap_or(""));
    is_plain().unwrap();
    assert!(!pin.exists());
    passage("ends", &mut || {
        let trace = Trace::start(&scene, &["--one-in", "1000"]);
        trace.stop();
    });

    // Nobody is there to put the plain program back but the daemon.
    passage("is killed", &mut || {
        Trace::start(&scene, &["--one-in", "1000"]).process.kill9().unwrap();
        until("the plain program to be back", DEADLINE, is_plain).unwrap();
    });
    until("the pin to be gone", DEADLINE, || (!pin.exists()).then_some(())).unwrap();
    assert!(sluice.cli_ok(&["events"]).unwrap().contains("a trace was killed"));
    assert!(!sluice.log().contains("drift"), "{}", sluice.log());

    // Neither an upgrade nor the end of the instance waits for a trace.
    sluice.kill9().unwrap();
    let mut trace = Trace::start(&scene, &["--client", "192.0.2.1"]);
    sluice.cli_ok(&["detach"]).unwrap();
    let is_over = || (!trace.process.is_running()).then_some(());
    until("the trace to end by itself", DEADLINE, is_over).unwrap();
    let said = trace.text();
    assert!(said.contains("another program was put on the interfaces"), "{said}");
    assert!(!sluice.pins().exists());
}
