//! `outlier = "eject"`: who completes no handshakes, whatever its probes say, and who can't be made
//! to look so.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use lb_userspace::health::passive::Settings;
use serde_json::Value;
use sluice_tests::lab::{
    DEADLINE, Family, Load, LoadPlan, Plan, RawSocket, Sluice, is_privileged, until,
};

use crate::{
    health::{backend, check, service, until_backend, until_event, web},
    scene::{RST, SYN, Scene, VIP4, address, segment, target},
};

/// What a flood sends: many times the connections that clients make meanwhile.
const SPOOFED: u32 = 20_000;

/// Four backends that answer probes sent to their own addresses, and eject whom clients miss.
fn ejecting() -> (Scene, Sluice) {
    let lines = check(r#"check = "http", via = "backend""#) + "outlier = \"eject\"\n";
    web(Plan { backends: 4, ..Plan::default() }, &lines)
}

/// Enough of it for a judgement, though one in four waits for its second SYN.
fn load(scene: &Scene) -> Load {
    let plan = LoadPlan { concurrency: 32, ..LoadPlan::on([target(VIP4)]) };
    Load::start(scene.lab.client(), plan).unwrap()
}

#[test]
fn who_completes_no_handshake_is_ejected_and_comes_back() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = ejecting();
    let client = scene.lab.client().address(Family::V4);
    // It hears everybody, and its answers reach the balancer, but no client.
    let lost = &scene.lab.backends()[0];
    lost.ip(&format!("route add blackhole {client}")).unwrap();
    let clients = load(&scene);
    let ejected = until_backend(&sluice, ("web", "web-1"), "ejected", |it| {
        it["takes_new_flows"] == false && it["outlier"] == true
    });
    assert_eq!(ejected["health"], "healthy", "{ejected}");
    assert_eq!(ejected["why"], "ejected: it completes far fewer handshakes than its pool");
    until_event(&sluice, "of the handshakes that are its due: no new flows for 30s");
    let tally = clients.stop();
    assert_eq!(tally.failed(), 0, "each had its second try:\n{}", tally.causes());
    let again = scene.lab.client().syn_retransmissions().unwrap();
    let tally = scene.request(VIP4, 200);
    assert_eq!((tally.failed(), tally.per_backend().get("web-1")), (0, None), "{}", tally.causes());
    assert_eq!(scene.lab.client().syn_retransmissions().unwrap(), again, "nobody meets it");

    lost.ip(&format!("route del blackhole {client}")).unwrap();
    let cool_down = Settings::default().cool_down + DEADLINE;
    until("it to come back", cool_down, || {
        scene.request(VIP4, 40).per_backend().contains_key("web-1").then_some(())
    })
    .unwrap();
    until_event(&sluice, "may take new flows again");
    let clients = load(&scene);
    until("it to be like the others", Settings::default().window + DEADLINE, || {
        (backend(&sluice, "web", "web-1")["outlier"] == false).then_some(())
    })
    .unwrap();
    let tally = clients.stop();
    assert_eq!(tally.failed(), 0, "of {}:\n{}", tally.requests, tally.causes());
    until_event(&sluice, "completes its share of handshakes again");
}

#[test]
fn a_flood_of_forged_syns_ejects_nobody() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = ejecting();
    let client = scene.lab.client();
    let socket = RawSocket::open(client.namespace(), "eth0", Duration::from_secs(1)).unwrap();
    let macs = [scene.lab.balancer(), client].map(|host| host.interfaces()[0].mac());
    let send = |from, flags| {
        let segment = segment(macs.as_flattened(), from, address(VIP4).port(), flags);
        socket.send(&segment).unwrap();
    };
    let clients = load(&scene);
    for spoofed in 0..SPOOFED {
        // TEST-NET-2, whose answers go nowhere.
        let [.., port, host] = spoofed.to_be_bytes();
        send((Ipv4Addr::new(198, 51, 100, host), 1024 + u16::from(port)), SYN);
    }
    assert_nobody_stands_out(&sluice, &clients, |backend| given(backend) > u64::from(SPOOFED) / 5);

    // Who knows which of his ports lead where can aim at one alone.
    let flows = sluice.json(&["flows", "--backend", "web-1", "--limit", "5000"]).unwrap();
    let forged = flows["flows"].as_array().unwrap().iter().filter_map(|flow| {
        let client: SocketAddr = flow["client"].as_str()?.parse().ok()?;
        match client.ip() {
            IpAddr::V4(ip) if ip.octets()[..3] == [198, 51, 100] => Some((ip, client.port())),
            _ => None,
        }
    });
    let forged: Vec<(Ipv4Addr, u16)> = forged.collect();
    assert!(!forged.is_empty(), "{flows}");
    let before = given(&service(&sluice, "web")["backends"][0]);
    for number in 0..SPOOFED as usize {
        let from = forged[number % forged.len()];
        send(from, RST);
        send(from, SYN);
    }
    let aimed = before + u64::from(SPOOFED) / 5 * 4;
    assert_nobody_stands_out(&sluice, &clients, |backend| {
        backend["name"] != "web-1" || given(backend) > aimed
    });
    let tally = clients.stop();
    assert_eq!(tally.failed(), 0, "of {}:\n{}", tally.requests, tally.causes());
}

/// SYNs that a backend was given.
fn given(backend: &Value) -> u64 {
    backend["new_flows_total"].as_u64().unwrap()
}

/// Once the flood shows in everybody's counters, and clients have been served for several
/// judgements after it.
#[track_caller]
fn assert_nobody_stands_out(sluice: &Sluice, clients: &Load, shows: impl Fn(&Value) -> bool) {
    let backends = || service(sluice, "web")["backends"].as_array().unwrap().clone();
    let seen = until("the flood to show", DEADLINE, || backends().iter().all(&shows).then_some(()));
    seen.unwrap_or_else(|error| panic!("{error:#}: {}", sluice.status().unwrap()));
    for _ in 0..20 {
        clients.run_for_requests(300, DEADLINE).unwrap();
        for backend in backends() {
            assert_eq!(
                (&backend["outlier"], &backend["takes_new_flows"]),
                (&false.into(), &true.into()),
                "{backend}"
            );
        }
    }
    let events = sluice.cli_ok(&["events"]).unwrap();
    assert!(!events.contains("of the handshakes that are its due"), "{events}");
}
