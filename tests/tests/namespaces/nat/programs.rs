//! Programs that everybody knows, through a translated service.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use serde_json::Value;
use sluice_tests::lab::{
    DEADLINE, Family, Lab, Plan, Process, SshServer, allow_many_files, dataplane, is_privileged,
    until,
};

use super::{UNCHECKED, backends, nat, sum, web};
use crate::{
    death::Open,
    scene::{VIP4, VIP6, address},
};

/// Bytes of a large body.
const BODY: usize = 100_000_000;

#[test]
fn curl_sends_and_fetches_100_mb_unchanged() {
    if !is_privileged() {
        return;
    }
    for vip in [VIP4, VIP6] {
        let plan = Plan { backends: 1, second_network: true, ..Plan::default() };
        let (scene, sluice) = web(plan, vip, "");
        // No two places look alike, so lost or repeated bytes show.
        let body: Vec<u8> = (0..BODY as u64 / 8).flat_map(u64::to_be_bytes).collect();
        let [sent, fetched] = ["sent", "fetched"].map(|name| scene.lab.directory().join(name));
        fs::write(&sent, &body).unwrap();
        let (client, url) = (scene.lab.client(), format!("http://{vip}/put/body"));
        let curl = |arguments: [&str; 2]| {
            let common = ["-gsS", "--fail", "--max-time", "120", &url];
            client.run("curl", &[&common[..], &arguments[..]].concat()).unwrap()
        };
        curl(["-T", sent.to_str().unwrap()]);
        fs::remove_file(&sent).unwrap();
        assert!(scene.nginx[0].kept("body").unwrap() == body, "the upload came changed");
        curl(["-o", fetched.to_str().unwrap()]);
        assert!(fs::read(&fetched).unwrap() == body, "the download came changed");
        // Both directions are counted by what they carried, headers included.
        for name in ["bytes_total", "return_bytes_total"] {
            let bytes = sum(&sluice, name);
            assert!(bytes > BODY as u64 && bytes < 2 * BODY as u64, "{name}: {bytes}");
        }
    }
}

#[test]
fn wrk_finds_no_fault_with_and_without_keep_alive() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = web(Plan::default(), VIP4, "");
    let url = format!("http://{VIP4}/");
    for header in ["Connection: keep-alive", "Connection: close"] {
        let before = sum(&sluice, "new_flows_total");
        let arguments = ["-t", "1", "-c", "50", "-d", "2s", "--timeout", "10s", "-H", header, &url];
        let report = scene.lab.client().run("wrk", &arguments).unwrap();
        assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
        let requests = report.lines().find_map(|line| line.split_once(" requests in "));
        let requests: u64 = requests.unwrap().0.trim().parse().unwrap();
        let flows = sum(&sluice, "new_flows_total") - before;
        eprintln!("wrk, {header}: {requests} requests on {flows} connections");
        if header.ends_with("close") {
            assert!(flows >= requests, "{flows} flows, {report}");
        } else {
            // nginx ends a connection after 1,000 requests.
            assert!(flows <= 50 + requests / 900, "{flows} flows, {report}");
        }
    }
    for name in ["refusals_total", "untracked_flows_total", "reset_flows_total"] {
        assert_eq!(sum(&sluice, name), 0, "{name}");
    }
    // Not asserted: on a busy machine nginx's queue of new connections overflows, too.
    eprintln!("{} SYNs sent twice", scene.lab.client().syn_retransmissions().unwrap());
}

#[test]
fn iperf3_carries_both_ways_over_several_connections() {
    if !is_privileged() {
        return;
    }
    for vip in ["203.0.113.10:5201", "[2001:db8:f00d::10]:5201"] {
        let lab = Lab::start(Plan::default()).unwrap();
        let servers = lab.backends().iter().map(|host| {
            let mut command = host.command("iperf3");
            command.args(["-s", "-p", "5202", "--forceflush"]);
            let log = lab.directory().join(format!("{}-iperf3", host.role()));
            let server = Process::start("iperf3", command, &log).unwrap();
            until("iperf3 to listen", DEADLINE, || {
                fs::read_to_string(&log).unwrap().contains("listening").then_some(())
            })
            .unwrap();
            server
        });
        let _servers = servers.collect::<Vec<_>>();
        // All its connections belong to one server.
        let lines = format!("{UNCHECKED}affinity = \"source-ip\"\n");
        let config = dataplane(&["eth0"]) + &nat(&lab, "iperf", (vip, 5202), &lines);
        let sluice = lab.balancer().run_sluice(&config).unwrap();
        let vip = address(vip);
        let (host, port) = (vip.ip().to_string(), vip.port().to_string());
        let common = ["-c", &host, "-p", &port, "-P", "4", "-n", "20M", "--json"];
        for more in [&[][..], &["-R"], &["--bidir"]] {
            let report = lab.client().run("iperf3", &[&common[..], more].concat()).unwrap();
            let report: Value = serde_json::from_str(&report).unwrap();
            assert_eq!(report["error"], Value::Null, "{more:?}");
            let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
            assert!(received > 0, "{more:?}: {}", report["end"]);
        }
        // Three runs, each with a connection for control.
        assert_eq!(sum(&sluice, "new_flows_total"), 5 + 5 + 9);
    }
}

/// Connections at once.
const MANY: usize = 10_000;

#[test]
fn ten_thousand_connections_live_at_once() {
    if !is_privileged() {
        return;
    }
    allow_many_files().unwrap();
    let (scene, sluice) = web(Plan::default(), VIP4, "");
    scene.lab.client().enter(|| {
        let mut open = Vec::new();
        let answers = (0..MANY).map(|_| {
            let mut one = Open::here(VIP4);
            let answer = one.ask();
            open.push(one);
            answer
        });
        let answers = answers.collect::<Vec<_>>();
        super::until_ports_used(&sluice, MANY as u64);
        assert_eq!(sum(&sluice, "active_flows"), MANY as u64);
        // Each is where it was.
        for (one, before) in open.iter_mut().zip(&answers) {
            assert_eq!(&one.ask(), before);
        }
    });
    for backend in backends(&sluice) {
        let count = backend["new_flows_total"].as_u64().unwrap() as usize;
        assert!((MANY / 4..MANY / 2).contains(&count), "{backend}");
    }
    assert_eq!(sum(&sluice, "new_flows_total"), MANY as u64);
    assert_eq!(sum(&sluice, "backend_resets_total"), 0);
}

/// Lines said over ssh before, while and after the daemon is dead, each answered before the next.
const LINES: usize = 50;

#[test]
fn ssh_talks_on_while_the_daemon_is_killed_and_comes_back() {
    if !is_privileged() {
        return;
    }
    const VIP: &str = "203.0.113.10:22";
    let lab = Lab::start(Plan::default()).unwrap();
    let key = lab.directory().join("key");
    let servers = lab.backends().iter().map(|host| SshServer::start(host, 2222, &key).unwrap());
    let _servers = servers.collect::<Vec<_>>();
    let config = dataplane(&["eth0"]) + &nat(&lab, "ssh", (VIP, 2222), UNCHECKED);
    let mut sluice = lab.balancer().run_sluice(&config).unwrap();
    let mut command = SshServer::client(lab.client(), address(VIP), &key);
    // What says every line back.
    command.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut ssh = command.spawn().unwrap();
    let mut input = ssh.stdin.take().unwrap();
    let mut output = BufReader::new(ssh.stdout.take().unwrap());
    let mut talk = |about: &str| {
        for number in 0..LINES {
            let said = format!("{about}, line {number}\n");
            input.write_all(said.as_bytes()).unwrap();
            let mut heard = String::new();
            output.read_line(&mut heard).unwrap();
            assert_eq!(heard, said);
        }
    };
    talk("all is well");
    sluice.kill9().unwrap();
    talk("the daemon is dead");
    sluice.start().unwrap();
    talk("it is back");
    drop(input);
    assert!(ssh.wait().unwrap().success());
    assert_eq!(sum(&sluice, "new_flows_total"), 1);
    let flows = sluice.json(&["flows"]).unwrap();
    let seen = flows["flows"][0]["nat"].as_str().unwrap().to_owned();
    assert!(seen.starts_with(&format!("{}:", lab.balancer().address(Family::V4))), "{seen}");
}
