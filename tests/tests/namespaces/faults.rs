//! The laboratory's health servers and faults by themselves: that each does what its name says.

use std::{net::SocketAddr, time::Duration};

use sluice_tests::lab::{
    DEADLINE, Failure, Family, HealthServer, Host, Lab, Nginx, Plan, fetch, is_privileged, until,
};

fn lab() -> Lab {
    Lab::start(Plan { backends: 1, ..Plan::default() }).unwrap()
}

/// What curl on the client says: the body, and the code of the answer.
fn curl(lab: &Lab, arguments: &[&str]) -> String {
    let common = ["-sS", "--max-time", "5", "--write-out", "%{http_code}"];
    lab.client().run("curl", &[&common[..], arguments].concat()).unwrap()
}

fn own(host: &Host, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(host.address(family), port)
}

#[test]
fn health_servers_are_well_or_ill_as_they_are_told() {
    if !is_privileged() {
        return;
    }
    let lab = lab();
    let web = &lab.backends()[0];
    let everywhere = HealthServer::everywhere;
    let http = HealthServer::http(web, everywhere(80)).unwrap();
    let https = HealthServer::https(web, everywhere(443), "web.example").unwrap();
    let grpc = HealthServer::grpc(web, everywhere(50051)).unwrap();

    let address = own(web, Family::V6, 80);
    let url = format!("http://{address}/healthz");
    assert_eq!(curl(&lab, &[&url]), "web-1\n200");
    http.set_well(false);
    assert_eq!(curl(&lab, &[&url]), "web-1\n503");
    assert_eq!(http.requests(), 2);

    let resolve = format!("web.example:443:{}", web.address(Family::V4));
    let authority = https.authority().unwrap().to_str().unwrap();
    let trusted = ["--cacert", authority, "--resolve", &resolve, "https://web.example/"];
    assert_eq!(curl(&lab, &trusted), "web-1\n200");
    let untrusted = ["-sS", "--resolve", &resolve, "https://web.example/"];
    lab.client().run("curl", &untrusted).unwrap_err();

    let address = own(web, Family::V4, 50051);
    let method = format!("http://{address}/grpc.health.v1.Health/Check");
    let call =
        ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-d", "", &method];
    assert_eq!(curl(&lab, &call), "\0\0\0\0\u{2}\u{8}\u{1}200");
    grpc.set_well(false);
    assert_eq!(curl(&lab, &call), "\0\0\0\0\u{2}\u{8}\u{2}200");
}

#[test]
fn a_server_that_is_bound_to_one_address_refuses_at_others() {
    if !is_privileged() {
        return;
    }
    let lab = lab();
    let web = &lab.backends()[0];
    let _server = HealthServer::http(web, own(web, Family::V4, 80)).unwrap();
    let get =
        |family| lab.client().enter(|| fetch(own(web, family, 80), "/", Duration::from_secs(5)));
    assert_eq!(get(Family::V4).unwrap().backend, "web-1");
    assert_eq!(get(Family::V6).unwrap_err(), Failure::Refused);
}

#[test]
fn a_muted_server_is_there_and_says_nothing() {
    if !is_privileged() {
        return;
    }
    let lab = lab();
    let web = &lab.backends()[0];
    let _nginx = Nginx::start(web, &[80]).unwrap();
    let get = |family| {
        lab.client().enter(|| fetch(own(web, family, 80), "/", Duration::from_millis(300)))
    };
    for family in [Family::V4, Family::V6] {
        get(family).unwrap();
        let muted = lab.mute(web).unwrap();
        assert_eq!(get(family).unwrap_err(), Failure::NotConnected);
        let address = web.address(family).to_string();
        lab.client().run("ping", &["-c1", "-W5", &address]).unwrap();
        drop(muted);
        until("it to answer again", DEADLINE, || get(family).ok()).unwrap();
    }
}

#[test]
fn what_is_too_large_for_a_narrow_way_vanishes() {
    if !is_privileged() {
        return;
    }
    let lab = lab();
    let web = &lab.backends()[0];
    let address = web.address(Family::V4).to_string();
    let ping = |bytes: &str| {
        let mut ping = lab.client().command("ping");
        ping.args(["-c1", "-W1", "-M", "do", "-s", bytes, &address]).output().unwrap()
    };
    // 8 bytes of ICMP, 20 of IP.
    assert!(ping("1472").status.success());
    lab.narrow(web, 1400).unwrap();
    assert!(ping("1372").status.success());
    let lost = String::from_utf8(ping("1373").stdout).unwrap();
    assert!(lost.contains("0 received, 100% packet loss"), "without ICMP: {lost}");
}
