//! A hostile network: what spoofed packets can do to the connections of others.

use std::{net::Ipv4Addr, time::Duration};

use sluice_tests::lab::{
    Conversations, DEADLINE, EchoServer, Family, Plan, RawSocket, dataplane, is_privileged,
    service, until,
};

use crate::scene::{ACK, SYN, Scene, address, segment};

/// The smallest flow table there is, and ten times as many spoofed clients.
const CAPACITY: u32 = 1024;
const SPOOFED: u32 = 10 * CAPACITY;
const CONVERSATIONS: u64 = 60;

#[test]
fn a_flood_of_syns_hurts_no_established_connection() {
    flood("l2", &[SYN]);
}

#[test]
fn a_flood_of_syn_and_ack_pairs_hurts_no_established_connection() {
    flood("l2", &[SYN, ACK]);
}

#[test]
fn a_flood_of_syns_hurts_no_translated_connection() {
    flood("nat", &[SYN]);
}

#[test]
fn a_flood_of_syn_and_ack_pairs_hurts_no_translated_connection() {
    flood("nat", &[SYN, ACK]);
}

/// While connections live only in the flow table (a backend came since, so that their slots are
/// another's), spoofed clients try to drive them out of it.
fn flood(forwarding: &str, flags: &[u8]) {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    let (echo, flooded) = ("203.0.113.10:7", "203.0.113.10:81");
    scene.own(echo, forwarding);
    let servers = scene.lab.backends().iter().map(|host| EchoServer::start(host, 7).unwrap());
    let _servers = servers.collect::<Vec<_>>();
    let config = |backends: usize| {
        let backends = &scene.lab.backends()[..backends];
        dataplane(&["eth0"]).trim_end().to_owned()
            + &format!("\nflow_capacity = {CAPACITY}\n")
            + &service("echo", address(echo), forwarding, backends, Family::V4)
            + &service("flooded", address(flooded), forwarding, backends, Family::V4)
    };
    let mut sluice = scene.lab.balancer().run_sluice(&config(2)).unwrap();
    let client = scene.lab.client();
    let conversations = Conversations::start(client, address(echo), CONVERSATIONS).unwrap();
    let status = |field: &str| sluice.status().unwrap()["flows"]["by_state"][field].as_u64();
    until("all to be old", DEADLINE, || (status("old") == Some(CONVERSATIONS)).then_some(()))
        .unwrap();
    sluice.configure(&config(3)).unwrap();
    sluice.restart().unwrap();

    let socket = RawSocket::open(client.namespace(), "eth0", Duration::from_secs(1)).unwrap();
    let macs = [scene.lab.balancer(), client].map(|host| host.interfaces()[0].mac());
    let macs = macs.as_flattened();
    for spoofed in 0..SPOOFED {
        for flag in flags {
            // TEST-NET-2, whose answers go nowhere.
            let [.., port, host] = spoofed.to_be_bytes();
            let client = (Ipv4Addr::new(198, 51, 100, host), 1024 + u16::from(port));
            let segment = segment(macs, client, address(flooded).port(), *flag);
            socket.send(&segment).unwrap();
        }
    }
    // Counts are a second old at most.
    let used = || sluice.status().unwrap()["flows"]["used"].as_u64();
    let full = Some(u64::from(CAPACITY) / 10 * 9);
    until("the flood to show in the flow table", DEADLINE, || (used() >= full).then_some(()))
        .unwrap();
    conversations.run_for_messages(CONVERSATIONS * 10).unwrap();

    // A client that comes while the table is full is served too.
    let late = Conversations::start(client, address(echo), 30).unwrap();
    late.run_for_messages(300).unwrap();
    // What gave way to the flood were its own.
    let flows = &sluice.status().unwrap()["flows"];
    let evicted = |state: &str| flows["evicted_total"][state].as_u64().unwrap();
    let own = ["embryonic", "young", "answered"].map(evicted);
    assert!(own.iter().sum::<u64>() > u64::from(SPOOFED) / 2, "{flows}");
    assert_eq!(["old", "closing"].map(evicted), [0; 2], "{flows}");
    for report in [conversations.stop(), late.stop()] {
        let reasons = || sluice.json(&["reasons"]).unwrap();
        assert_eq!(report.broken, [""; 0], "of {:?}: {}", report.per_backend, reasons());
    }
}
