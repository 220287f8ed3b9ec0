//! How translated connections begin and end, as the backends make it, and what is counted of it.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, TcpListener, TcpStream},
    thread,
};

use sluice_tests::lab::{
    Conversations, DEADLINE, EchoServer, Failure, Lab, Plan, dataplane, fetch, is_privileged, until,
};

use super::{TALK, TALK_VIP, UNCHECKED, WEB, backends, end_by_reset, nat, sum, web};
use crate::{
    death::{assert_avoided, until_back},
    health::{check, until_ill, until_well},
    scene::{Scene, VIP4, VIP6, address, assert_flawless},
};

#[test]
fn every_translated_handshake_is_counted_once_and_timed() {
    if !is_privileged() {
        return;
    }
    for vip in [VIP4, VIP6] {
        let (scene, sluice) = web(Plan::default(), vip, "");
        let tally = scene.request(vip, 300);
        assert_flawless(&scene, &tally);
        for backend in backends(&sluice) {
            let answers = tally.answers[vip][backend["name"].as_str().unwrap()];
            assert_eq!(backend["handshakes_total"], answers, "{backend}");
            let times = &backend["handshake_times"];
            let counts = times["counts"].as_array().unwrap().iter();
            let timed: u64 = counts.map(|count| count.as_u64().unwrap()).sum();
            assert_eq!(timed, answers, "{backend}");
            // Nobody had to wait for a second SYN.
            assert!(times["sum_seconds"].as_f64().unwrap() < timed as f64, "{backend}");
            for name in ["refusals_total", "backend_resets_total", "syn_retransmissions_total"] {
                assert_eq!(backend[name], 0, "{name}: {backend}");
            }
        }
    }
}

/// Connections that fail.
const FAILING: u64 = 20;

#[test]
fn refusals_come_through_and_are_counted() {
    if !is_privileged() {
        return;
    }
    // Nobody listens there.
    let lab = Lab::start(Plan { backends: 1, ..Plan::default() }).unwrap();
    for vip in [VIP4, VIP6] {
        let config = dataplane(&["eth0"]) + &nat(&lab, "web", (vip, WEB), UNCHECKED);
        let sluice = lab.balancer().run_sluice(&config).unwrap();
        for _ in 0..FAILING {
            let answer = lab.client().enter(|| fetch(address(vip), "/", DEADLINE));
            assert_eq!(answer, Err(Failure::Refused));
        }
        assert_eq!(sum(&sluice, "refusals_total"), FAILING);
        assert_eq!(sum(&sluice, "new_flows_total"), FAILING);
        assert_eq!(sum(&sluice, "handshakes_total") + sum(&sluice, "backend_resets_total"), 0);
    }
}

#[test]
fn connections_that_the_backend_resets_are_counted() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 1, ..Plan::default() }).unwrap();
    let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, TALK)).unwrap();
    let listener = lab.backends()[0].enter(bind);
    let server = thread::spawn(move || {
        for _ in 0..FAILING {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
            end_by_reset(&stream);
        }
    });
    let config = dataplane(&["eth0"]) + &nat(&lab, "talk", (TALK_VIP, TALK), UNCHECKED);
    let sluice = lab.balancer().run_sluice(&config).unwrap();
    for _ in 0..FAILING {
        let mut stream = lab.client().enter(|| TcpStream::connect(address(TALK_VIP)).unwrap());
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"word").unwrap();
        let told = stream.read(&mut [0; 4]).map_err(|error| error.kind());
        assert_eq!(told, Err(std::io::ErrorKind::ConnectionReset));
    }
    server.join().unwrap();
    assert_eq!(sum(&sluice, "backend_resets_total"), FAILING);
    assert_eq!(sum(&sluice, "handshakes_total"), FAILING);
    assert_eq!(sum(&sluice, "refusals_total"), 0);
}

#[test]
fn clients_of_a_dead_backend_are_told_and_the_others_live_on() {
    if !is_privileged() {
        return;
    }
    let scene = Scene::serving(Plan::default(), &[WEB]);
    let start = |host| EchoServer::start(host, TALK).unwrap();
    let _echoes = scene.lab.backends().iter().map(start).collect::<Vec<_>>();
    let tcp = check(r#"check = "tcp""#);
    let http = check(r#"check = "http", path = "/healthz""#);
    let config = dataplane(&["eth0"])
        + &nat(&scene.lab, "talk", (TALK_VIP, TALK), &tcp)
        + &nat(&scene.lab, "web", (VIP4, WEB), &http);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    ["talk", "web"].into_iter().for_each(|of| until_well(&sluice, of));
    let talks = Conversations::start(scene.lab.client(), address(TALK_VIP), 30).unwrap();
    let doomed = talks.report().per_backend["web-1"] as usize;

    let muted = scene.lab.mute(&scene.lab.backends()[0]).unwrap();
    until("its clients to be told", DEADLINE, || (talks.broken() >= doomed).then_some(())).unwrap();
    for of in ["talk", "web"] {
        until_ill(&sluice, (of, "web-1"), "unreachable", "no answer to SYN");
    }
    assert_avoided(&scene);
    assert!(crate::scene::reason(&sluice, "backend_gone") >= doomed as u64);

    drop(muted);
    until_back(&scene, &sluice, talks, doomed);
}
