//! Ports that connections take: which, until when, and what becomes of who gets none.

use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, TcpListener, TcpStream},
    time::Duration,
};

use sluice_tests::lab::{
    DEADLINE, Failure, Host, Lab, Plan, Sluice, dataplane, fetch, is_privileged, until,
};

use super::{
    TALK, TALK_VIP, UNCHECKED, WEB, end_by_reset, interfaces, nat, ports_used, sum,
    until_ports_used, web,
};
use crate::scene::{Scene, VIP4, VIP6, address, assert_flawless, reason};

/// As many ports as there are: a number that many steps would walk through only in part.
const PORTS: usize = 15;

/// `talk` on one backend, with these lines for the data plane.
fn talk(vip: &str, head: &str, lines: &str) -> (Lab, Sluice, TcpListener) {
    let lab = Lab::start(Plan { backends: 1, ..Plan::default() }).unwrap();
    let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, TALK)).unwrap();
    let listener = lab.backends()[0].enter(bind);
    let head = dataplane(&["eth0"]).trim_end().to_owned() + "\n" + head + "\n";
    let config = head + &nat(&lab, "talk", (vip, TALK), &format!("{UNCHECKED}{lines}"));
    let sluice = lab.balancer().run_sluice(&config).unwrap();
    (lab, sluice, listener)
}

fn connect(client: &Host, vip: &str) -> std::io::Result<TcpStream> {
    client.enter(|| TcpStream::connect_timeout(&address(vip), DEADLINE))
}

#[test]
fn each_port_is_used_once_then_clients_are_refused_until_one_is_free() {
    if !is_privileged() {
        return;
    }
    for vip in [TALK_VIP, "[2001:db8:f00d::10]:7"] {
        let (lab, sluice, listener) = talk(vip, "nat_ports = \"2000-2014\"", "");
        let client = lab.client();
        let mut ours = Vec::new();
        let (mut theirs, mut seen) = (Vec::new(), BTreeSet::new());
        for _ in 0..PORTS {
            ours.push(connect(client, vip).unwrap());
            let (stream, from) = listener.accept().unwrap();
            theirs.push(stream);
            seen.insert(from.port());
        }
        assert_eq!(seen, (2000..2015).collect());
        until_ports_used(&sluice, PORTS as u64);
        let short = sluice.status().unwrap()["problems"].to_string();
        assert!(short.contains("nat_ports"), "{short}");

        let refused = connect(client, vip).map_err(|error| error.kind());
        assert_eq!(refused.err(), Some(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(reason(&sluice, "nat_ports_exhausted"), 1);
        // Nobody had to give way for it.
        for (ours, theirs) in ours.iter_mut().zip(&mut theirs) {
            std::io::Write::write_all(ours, b"word").unwrap();
            theirs.set_read_timeout(Some(DEADLINE)).unwrap();
            std::io::Read::read_exact(theirs, &mut [0; 4]).unwrap();
        }

        let ended = ours.pop().unwrap();
        end_by_reset(&ended);
        let port = theirs.pop().unwrap().peer_addr().map(|from| from.port());
        drop(ended);
        until("the port to be used again", DEADLINE, || connect(client, vip).ok()).unwrap();
        let (_, from) = listener.accept().unwrap();
        if let Ok(port) = port {
            assert_eq!(from.port(), port);
        }
    }
}

#[test]
fn ports_that_only_wait_give_way_when_there_are_no_others() {
    if !is_privileged() {
        return;
    }
    let plan = Plan { backends: 1, ..Plan::default() };
    let scene = Scene::serving(plan, &[WEB]);
    let head = interfaces(plan).trim_end().to_owned() + "\nnat_ports = \"2000-2063\"\n\n";
    let config = head + &nat(&scene.lab, "web", (VIP4, WEB), UNCHECKED);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let tally = scene.request(VIP4, 500);
    assert_eq!(tally.failed(), 0, "{}", tally.causes());
    assert_eq!(reason(&sluice, "nat_ports_exhausted"), 0);
}

#[test]
fn ports_that_clients_use_again_at_once_are_translated_anew() {
    if !is_privileged() {
        return;
    }
    let (scene, _sluice) = web(Plan::default(), VIP4, "");
    // Each port some twenty times, while its last connection is still in the flow table.
    scene.lab.client().sysctl("net.ipv4.ip_local_port_range", "40000 40099").unwrap();
    let tally = scene.request(VIP4, 2000);
    assert_flawless(&scene, &tally);
}

#[test]
fn nothing_is_left_of_connections_that_were_reset_or_refused() {
    if !is_privileged() {
        return;
    }
    let (lab, sluice, listener) = talk(TALK_VIP, "", "idle_timeout = { closing = \"1s\" }\n");
    for _ in 0..10 {
        let ours = (0..100).map(|_| connect(lab.client(), TALK_VIP).unwrap()).collect::<Vec<_>>();
        let theirs = (0..100).map(|_| listener.accept().unwrap().0).collect::<Vec<_>>();
        // Half are ended by the one side, half by the other; then that one closes, too.
        for (number, (ours, theirs)) in ours.into_iter().zip(theirs).enumerate() {
            let (first, second) = if number % 2 == 0 { (ours, theirs) } else { (theirs, ours) };
            end_by_reset(&first);
            drop(first);
            drop(second);
        }
    }
    drop(listener);
    let ask = || lab.client().enter(|| fetch(address(TALK_VIP), "/", DEADLINE));
    // A child that another test has forked, and that has not become its program yet, has it, too.
    let mut asked = 0;
    until("nobody to listen", DEADLINE, || {
        asked += 1;
        (ask() == Err(Failure::Refused)).then_some(())
    })
    .unwrap();
    for _ in 0..100 {
        assert_eq!(ask(), Err(Failure::Refused));
    }
    assert_eq!(sum(&sluice, "new_flows_total"), 1100 + asked);
    all_goes(&sluice, 3 * DEADLINE);
}

#[test]
fn nothing_is_left_of_connections_whose_time_wait_has_passed() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = web(Plan::default(), VIP6, "");
    let tally = scene.request(VIP6, 500);
    assert_flawless(&scene, &tally);
    until_ports_used(&sluice, 500);
    assert_eq!(sum(&sluice, "active_flows"), 0);
    // 60 s, a tick, a sweep.
    all_goes(&sluice, Duration::from_secs(90));
}

#[track_caller]
fn all_goes(sluice: &Sluice, deadline: Duration) {
    let gone = until("all ports to be free", deadline, || {
        let used = sluice.status().unwrap()["flows"]["used"].as_u64().unwrap();
        (ports_used(sluice) + used == 0).then_some(())
    });
    gone.unwrap_or_else(|error| panic!("{error}: {}", sluice.status().unwrap()));
}

#[test]
fn a_listed_flow_names_what_its_backend_sees() {
    if !is_privileged() {
        return;
    }
    for vip in [TALK_VIP, "[2001:db8:f00d::10]:7"] {
        let (lab, sluice, listener) = talk(vip, "", "");
        let ours = (0..20).map(|_| connect(lab.client(), vip).unwrap()).collect::<Vec<_>>();
        let both = ours.iter().map(|ours| {
            let (_, seen) = listener.accept().unwrap();
            // In an IPv6 listener's eyes an IPv4 address is a mapped one.
            let seen = std::net::SocketAddr::new(seen.ip().to_canonical(), seen.port());
            (ours.local_addr().unwrap().to_string(), seen.to_string())
        });
        let both = both.collect::<BTreeSet<_>>();
        let flows = sluice.json(&["flows"]).unwrap();
        let listed = flows["flows"].as_array().unwrap().iter().map(|flow| {
            assert_eq!(flow["vip"], vip, "{flow}");
            let text = |name: &str| flow[name].as_str().unwrap().to_owned();
            (text("client"), text("nat"))
        });
        let listed = listed.collect::<BTreeSet<_>>();
        assert_eq!(listed.len(), 20, "each once: {flows}");
        assert_eq!(listed, both);
    }
}
