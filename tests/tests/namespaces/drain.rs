//! Taking a server out: what a drain promises, seen from both ends.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::net::UnixStream,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use serde_json::Value;
use sluice_tests::lab::{
    DEADLINE, Family, Load, LoadPlan, Plan, RawSocket, Sluice, StreamPlan, StreamServer, Streams,
    dataplane, fetch, is_privileged, until,
};

use crate::scene::{ACK, SYN, Scene, VIP4, address, assert_flawless, segment, target};

/// Long connections.
const STREAMS: &str = "203.0.113.10:7";
const COUNT: u64 = 30;
const PACE: Duration = Duration::from_millis(100);

/// Services `streams` and `web` on three backends; ended flows are forgotten soon.
pub fn ground(plan: Plan) -> (Vec<StreamServer>, Scene, Sluice) {
    let mut scene = Scene::start(plan);
    scene.own(VIP4, "l2");
    let servers = scene.lab.backends().iter().map(|host| StreamServer::start(host, 7).unwrap());
    let servers = servers.collect();
    let sluice = scene.lab.balancer().run_sluice(&config(&scene)).unwrap();
    (servers, scene, sluice)
}

pub fn config(scene: &Scene) -> String {
    let soon = "idle_timeout = { closing = \"1s\" }\nhealth =";
    let services = scene.service("streams", STREAMS, "l2", Family::V4)
        + &scene.service("web", VIP4, "l2", Family::V4);
    dataplane(&["eth0"]) + &services.replace("health =", soon)
}

pub fn open(scene: &Scene) -> Streams {
    let plan = StreamPlan { address: address(STREAMS), count: COUNT, pace: PACE };
    let streams = Streams::open(scene.lab.client(), plan).unwrap();
    streams.advance(2, DEADLINE);
    assert!(streams.broken().is_empty(), "{:?}", streams.broken());
    streams
}

/// A backend of `service`, as the status shows it; null if it doesn't.
pub fn backend(sluice: &Sluice, service: &str, name: &str) -> Value {
    let status = sluice.status().unwrap();
    let services = status["services"].as_array().unwrap().iter();
    let mut services = services.filter(|known| known["name"] == service);
    let backends = services.next().map(|service| service["backends"].as_array().unwrap().clone());
    let mut backends = backends.into_iter().flatten();
    backends.find(|backend| backend["name"] == name).unwrap_or(Value::Null)
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn new_flows_stop_within_100_ms_of_the_command() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, _sluice) = ground(Plan::default());
    let instance = scene.lab.balancer().name();
    let socket = Path::new("/run/sluice").join(instance).join("control.sock");
    let change = r#"{"changes":[{"change":"drain","service":"web","backend":"web-2"}]}"#;
    let last = scene.lab.client().enter(|| {
        let last_of_web_2 = |until: &mut dyn FnMut(usize) -> bool| {
            let mut last = None;
            for number in 0.. {
                let begun = Instant::now();
                let answer = fetch(address(VIP4), "/", Duration::from_secs(5)).unwrap();
                if answer.backend == "web-2" {
                    last = Some(begun);
                }
                if until(number) {
                    return last;
                }
            }
            last
        };
        assert!(last_of_web_2(&mut |number| number == 60).is_some(), "it serves");
        let asked = Instant::now();
        let command = std::thread::spawn(move || {
            let mut socket = UnixStream::connect(socket).unwrap();
            let length = change.len();
            let head = "POST /v1/changes HTTP/1.1\r\nHost: sluice\r\nConnection: close\r\n\
                        Content-Type: application/json\r\nContent-Length:";
            write!(socket, "{head} {length}\r\n\r\n{change}").unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        });
        let last = last_of_web_2(&mut |number| number >= 200 && command.is_finished());
        command.join().unwrap();
        last.map(|last| last.saturating_duration_since(asked))
    });
    assert!(last < Some(Duration::from_millis(100)), "the last new flow came {last:?} later");
}

#[test]
fn flows_stay_until_they_end_and_the_proof_says_so() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    let streams = open(&scene);
    let of_web_2 = streams.per_backend()["web-2"];
    sluice.cli_ok(&["backend", "drain", "streams", "web-2"]).unwrap();
    streams.advance(5, DEADLINE);
    let drained = backend(&sluice, "streams", "web-2");
    assert_eq!(
        (&drained["admin"], &drained["active_flows"]),
        (&"draining".into(), &of_web_2.into())
    );
    assert_eq!(streams.close().len(), 0);

    let wait = ["backend", "drain", "streams", "web-2", "--wait", "--json"];
    let ended = sluice.cli(&wait).unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let proof = json(&ended);
    assert_eq!(proof["flows_at_start"], of_web_2, "{proof}");
    assert_eq!((&proof["flows_cut"], &proof["new_flows_since_drain"]), (&0.into(), &0.into()));
    assert_eq!(backend(&sluice, "streams", "web-2")["admin"], "drained");
}

#[test]
fn ports_used_again_cannot_keep_a_drained_server_alive() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    // A hundred ports for eight clients: each comes back within a second or two, for ever, and so
    // before its last connection is forgotten.
    scene.lab.client().sysctl("net.ipv4.ip_local_port_range", "40000 40099").unwrap();
    let plan = LoadPlan { pause: Duration::from_millis(100), ..LoadPlan::on([target(VIP4)]) };
    let load = Load::start(scene.lab.client(), plan).unwrap();
    load.run_for_requests(200, 3 * DEADLINE).unwrap();
    let deadline = ["--deadline", "60s", "--wait", "--json"];
    let output = sluice.cli(&[&["backend", "drain", "web", "web-2"][..], &deadline].concat());
    let output = output.unwrap();
    let proof = json(&output);
    assert_eq!(output.status.code(), Some(0), "{proof}");
    assert!(proof["flows_at_start"].as_u64() > Some(0), "{proof}");
    assert_eq!((&proof["flows_cut"], &proof["new_flows_since_drain"]), (&0.into(), &0.into()));
    assert!(proof["seconds"].as_f64() < Some(20.0), "{proof}");
    assert_flawless(&scene, &load.stop());
}

/// Where a spoofed client's flow is.
fn place(sluice: &Sluice, client: &str) -> String {
    let flows = sluice.json(&["flows", "--client", client]).unwrap();
    flows["flows"][0]["backend"].as_str().unwrap_or("nowhere").to_owned()
}

#[test]
fn a_silent_flows_port_used_again_goes_to_another_backend() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    let client = scene.lab.client();
    let socket = RawSocket::open(client.namespace(), "eth0", Duration::from_secs(1)).unwrap();
    let macs = [scene.lab.balancer(), client].map(|host| host.interfaces()[0].mac());
    let send = |flags| {
        let spoofed = (Ipv4Addr::new(198, 51, 100, 7), 5555);
        socket.send(&segment(macs.as_flattened(), spoofed, 80, flags)).unwrap();
    };
    send(SYN);
    send(ACK);
    let spoken = Instant::now();
    until("the flow", DEADLINE, || (place(&sluice, "198.51.100.7") != "nowhere").then_some(()))
        .unwrap();
    let owner = place(&sluice, "198.51.100.7");
    sluice.cli_ok(&["backend", "drain", "web", &owner]).unwrap();
    // It is not moved by those that come too early, nor kept by them.
    until("a SYN to choose anew", 3 * DEADLINE, || {
        send(SYN);
        (place(&sluice, "198.51.100.7") != owner).then_some(())
    })
    .unwrap();
    assert!(spoken.elapsed() >= Duration::from_secs(9), "after {:?}", spoken.elapsed());
    until("the drain's end", DEADLINE, || {
        (backend(&sluice, "web", &owner)["admin"] == "drained").then_some(())
    })
    .unwrap();
    let drains = backend(&sluice, "web", &owner);
    assert_eq!(drains["active_flows"], 0);
}

#[test]
fn a_spoofed_syn_cannot_move_a_live_flow() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan { clients: 2, ..Plan::default() });
    let streams = open(&scene);
    let list = || {
        let flows = sluice.json(&["flows", "--service", "streams"]).unwrap();
        let flows = flows["flows"].as_array().unwrap().iter();
        let mut flows = flows
            .map(|flow| (flow["client"].as_str().unwrap().to_owned(), flow["backend"].to_string()))
            .collect::<Vec<_>>();
        flows.sort();
        flows
    };
    let before = list();
    assert_eq!(before.len() as u64, COUNT);
    // Whoever chose anew would choose another.
    sluice.cli_ok(&["backend", "drain", "streams", "web-2"]).unwrap();
    sluice.cli_ok(&["backend", "weight", "streams", "web-3", "1"]).unwrap();
    let enemy = &scene.lab.clients()[1];
    let socket = RawSocket::open(enemy.namespace(), "eth0", Duration::from_secs(1)).unwrap();
    let macs = [scene.lab.balancer(), enemy].map(|host| host.interfaces()[0].mac());
    for _ in 0..10 {
        for (client, _) in &before {
            let client: SocketAddrV4 = client.parse().unwrap();
            let client = (*client.ip(), client.port());
            socket.send(&segment(macs.as_flattened(), client, 7, SYN)).unwrap();
        }
        streams.advance(1, DEADLINE);
    }
    assert_eq!(list(), before);
    assert_eq!(streams.close().len(), 0);
}

#[test]
fn the_deadline_cuts_what_is_left_and_its_clients_hear_of_it() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    let streams = open(&scene);
    let of_web_2 = streams.per_backend()["web-2"];
    let drain = ["backend", "drain", "streams", "web-2", "--deadline", "1s", "--wait", "--json"];
    let ended = sluice.cli(&drain).unwrap();
    let proof = json(&ended);
    assert_eq!(ended.status.code(), Some(3), "{proof}");
    assert_eq!(
        (&proof["flows_at_start"], &proof["flows_cut"]),
        (&of_web_2.into(), &of_web_2.into())
    );
    assert_eq!(proof["new_flows_since_drain"], 0, "{proof}");
    assert!((1.0..3.0).contains(&proof["seconds"].as_f64().unwrap()), "{proof}");
    // They speak ten times a second: their next packet tells them.
    reset(&streams, "web-2", of_web_2, Duration::from_secs(2));
}

#[test]
fn disable_resets_at_once() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    let streams = open(&scene);
    let of_web_2 = streams.per_backend()["web-2"];
    sluice.cli_ok(&["backend", "disable", "streams", "web-2"]).unwrap();
    reset(&streams, "web-2", of_web_2, Duration::from_secs(1));
    assert_eq!(backend(&sluice, "streams", "web-2")["admin"], "disabled");
}

/// All of one backend are told by a RST, and no others.
fn reset(streams: &Streams, backend: &str, count: u64, within: Duration) {
    until("resets", within, || (streams.broken().len() as u64 >= count).then_some(())).unwrap();
    streams.advance(3, DEADLINE);
    let broken = streams.broken();
    assert_eq!(broken.len() as u64, count, "{broken:?}");
    for broken in broken {
        assert_eq!(broken.backend, backend, "{broken:?}");
        assert!(broken.cause.contains("reset by peer"), "{broken:?}");
    }
}

#[test]
fn what_is_removed_drains_and_then_is_gone() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan::default());
    let streams = open(&scene);
    let of_web_2 = streams.per_backend()["web-2"];
    sluice.cli_ok(&["backend", "remove", "--all-services", "web-2"]).unwrap();
    let tally = scene.request(VIP4, 100);
    assert_flawless(&scene, &tally);
    assert_eq!(tally.answers[VIP4].keys().collect::<Vec<_>>(), ["web-1", "web-3"]);
    streams.advance(5, DEADLINE);
    let leaving = backend(&sluice, "streams", "web-2");
    assert_eq!((&leaving["leaving"], &leaving["active_flows"]), (&true.into(), &of_web_2.into()));
    assert_eq!(streams.close().len(), 0);
    until("it to be gone", 3 * DEADLINE, || {
        let is_gone = |service| backend(&sluice, service, "web-2").is_null();
        (is_gone("streams") && is_gone("web")).then_some(())
    })
    .unwrap();
}

#[test]
fn a_drain_outlives_the_daemon() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, mut sluice) = ground(Plan::default());
    let streams = open(&scene);
    let of_web_2 = streams.per_backend()["web-2"];
    sluice.cli_ok(&["backend", "drain", "--all-services", "web-2"]).unwrap();
    sluice.kill9().unwrap();
    let without = scene.request(VIP4, 100);
    assert_eq!(without.answers[VIP4].keys().collect::<Vec<_>>(), ["web-1", "web-3"]);
    sluice.start().unwrap();
    let again = scene.request(VIP4, 100);
    assert_eq!(again.answers[VIP4].keys().collect::<Vec<_>>(), ["web-1", "web-3"]);
    streams.advance(2, DEADLINE);
    assert_eq!(backend(&sluice, "streams", "web-2")["admin"], "draining");

    assert_eq!(streams.close().len(), 0);
    let wait = ["backend", "drain", "--all-services", "web-2", "--wait", "--json"];
    let ended = sluice.cli(&wait).unwrap();
    let proof = json(&ended);
    assert_eq!(ended.status.code(), Some(0), "{proof}");
    assert_eq!((&proof["flows_cut"], &proof["new_flows_since_drain"]), (&0.into(), &0.into()));
    let parts = proof["backends"].as_array().unwrap();
    let part = parts.iter().find(|part| part["service"] == "streams").unwrap();
    assert_eq!(part["flows_at_start"], of_web_2, "counted before the kill");
}

#[test]
fn the_last_backend_is_drained_only_by_force_and_serves_on_while_it_drains() {
    if !is_privileged() {
        return;
    }
    let (_servers, scene, sluice) = ground(Plan { backends: 1, ..Plan::default() });
    let streams = open(&scene);
    let drain = ["backend", "drain", "streams", "web-1"];
    let refused = sluice.cli(&drain).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.contains("min_available") && complaint.contains("--force"), "{complaint}");
    assert_eq!(backend(&sluice, "streams", "web-1")["admin"], "enabled");

    sluice.cli_ok(&[&drain[..], &["--force"]].concat()).unwrap();
    assert_eq!(backend(&sluice, "streams", "web-1")["admin"], "draining");
    let late = open(&scene);
    for streams in [streams, late] {
        assert_eq!(streams.close().len(), 0);
    }
}
