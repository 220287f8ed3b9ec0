//! What an instance says of itself is what its traffic shows.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use sluice_tests::lab::{
    Conversations, DEADLINE, EchoServer, Family, Plan, RawSocket, Sluice, dataplane, is_privileged,
    until,
};

use crate::scene::{SYN, Scene, VIP4, address, assert_flawless, segment};

#[test]
fn flows_tell_who_serves_whom() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan { clients: 2, ..Plan::default() });
    let vip = "203.0.113.10:7";
    scene.own(vip, "l2");
    let servers = scene.lab.backends().iter().map(|host| EchoServer::start(host, 7).unwrap());
    let _servers = servers.collect::<Vec<_>>();
    let config = dataplane(&["eth0"]) + &scene.service("echo", vip, "l2", Family::V4);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();

    let conversations = scene.lab.clients().iter().zip([30, 20]).map(|(client, count)| {
        let conversations = Conversations::start(client, address(vip), count).unwrap();
        (client.address(Family::V4).to_string(), conversations)
    });
    let conversations = conversations.collect::<Vec<_>>();
    let mut reports = Vec::new();
    for (client, conversations) in conversations {
        conversations.run_for_messages(100).unwrap();
        let flows = sluice.json(&["flows", "--client", &client]).unwrap();
        let mut served = BTreeMap::<String, u64>::new();
        for flow in flows["flows"].as_array().unwrap() {
            assert!(flow["client"].as_str().unwrap().starts_with(&client), "{flow}");
            assert_eq!((&flow["vip"], &flow["service"]), (&vip.into(), &"echo".into()), "{flow}");
            *served.entry(flow["backend"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let report = conversations.stop();
        assert_eq!(served, report.per_backend, "{client}");
        let count = sluice.json(&["flows", "--count", "--client", &client]).unwrap();
        assert_eq!(count["by_client"][0]["clients"], client, "he is alone: {count}");
        reports.push(report);
    }
    let count = sluice.json(&["flows", "--count"]).unwrap();
    assert_eq!(count["by_client"][0]["clients"], "198.18.1.0/24", "both are of it: {count}");
    // The sum of both, per backend, is in the status.
    let status = sluice.status().unwrap();
    for backend in status["services"][0]["backends"].as_array().unwrap() {
        let name = backend["name"].as_str().unwrap();
        let opened = reports.iter().filter_map(|report| report.per_backend.get(name)).sum::<u64>();
        assert_eq!(backend["new_flows_total"], opened, "{backend}");
    }
}

#[test]
fn a_large_table_is_listed_and_nobody_waits_for_it() {
    const FLOWS: u32 = 100_000;
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    let flooded = "203.0.113.10:81";
    scene.own(VIP4, "l2");
    let config = dataplane(&["eth0"]).trim_end().to_owned()
        + "\nflow_capacity = 262144\n"
        + &scene.service("web", VIP4, "l2", Family::V4)
        + &scene.service("flooded", flooded, "l2", Family::V4);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let client = scene.lab.client();
    let socket = RawSocket::open(client.namespace(), "eth0", Duration::from_secs(1)).unwrap();
    let macs = [scene.lab.balancer(), client].map(|host| host.interfaces()[0].mac());
    for number in 0..FLOWS {
        // TEST-NET-2, whose answers go nowhere.
        let [_, high, low, host] = number.to_be_bytes();
        let from = (Ipv4Addr::new(198, 51, 100, host), 1024 + u16::from_be_bytes([high, low]));
        let segment = segment(macs.as_flattened(), from, address(flooded).port(), SYN);
        socket.send(&segment).unwrap();
    }
    let flooded = |arguments: &[&str]| {
        let all = [&["flows", "--service", "flooded"], arguments].concat();
        sluice.json(&all).unwrap()
    };
    // All but those that found their place in the table taken.
    let count = flooded(&["--count"]);
    let matching = count["matching"].as_u64().unwrap();
    assert!(matching > u64::from(FLOWS) / 100 * 95, "{matching}");
    assert_eq!(count["by_state"]["embryonic"], matching);
    assert_eq!(count["flows"].as_array().unwrap().len(), 0);
    let shares = count["by_backend"].as_array().unwrap().iter();
    assert_eq!(shares.map(|share| share["flows"].as_u64().unwrap()).sum::<u64>(), matching);

    // While all of it is listed again and again, clients are served and others answered.
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let lister = scope.spawn(|| {
            let mut longest = 0;
            while !done.load(Ordering::Relaxed) {
                let list = flooded(&["--sort", "idle", "--limit", "100000"]);
                longest = longest.max(list["flows"].as_array().unwrap().len());
            }
            longest
        });
        assert_flawless(&scene, &scene.request(VIP4, 200));
        for weight in ["10", "20", "30"] {
            sluice.cli_ok(&["backend", "weight", "web", "web-1", weight]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(lister.join().unwrap() > 90_000);
    });

    let first = flooded(&["--sort", "age", "--limit", "3"]);
    assert_eq!((first["flows"].as_array().unwrap().len(), &first["truncated"]), (3, &true.into()));
    assert_eq!(first["oldest"]["age_seconds"], first["flows"][0]["age_seconds"]);
    let one = flooded(&["--client", "198.51.100.7/32", "--state", "embryonic"]);
    let of_one = one["flows"].as_array().unwrap().iter();
    let starts =
        |flow: &serde_json::Value| flow["client"].as_str().unwrap().starts_with("198.51.100.7:");
    assert!(one["matching"].as_u64() > Some(300) && of_one.clone().all(starts), "{one}");
    let text = sluice.cli_ok(&["flows", "--service", "flooded", "--limit", "2"]).unwrap();
    assert!(text.contains(" more: `--limit N` lists up to 100,000"), "{text}");
}

#[test]
fn flows_that_ended_leave_the_table() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    let active = |sluice: &Sluice| {
        let status = sluice.status().unwrap();
        let backends = status["services"][0]["backends"].as_array().unwrap().iter();
        backends.map(|backend| backend["active_flows"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(scene.request(VIP4, 50).failed(), 0);
    until("closed flows to be counted no longer", 6 * DEADLINE, || {
        (active(&sluice) == 0).then_some(())
    })
    .unwrap();
}

#[test]
fn every_frame_has_a_verdict() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    let ping = address(VIP4).ip().to_string();
    scene.lab.client().run("ping", &["-c", "3", "-i", "0.01", "-W", "5", &ping]).unwrap();
    assert_eq!(scene.request(VIP4, 50).failed(), 0);
    let reasons = sluice.json(&["reasons"]).unwrap();
    let count = |name: &str| {
        let all = reasons["reasons"].as_array().unwrap();
        let reason = all.iter().find(|reason| reason["name"] == name);
        reason.unwrap_or_else(|| panic!("no {name} in {reasons}"))["count"].as_u64().unwrap()
    };
    let counted = reasons["reasons"].as_array().unwrap().iter();
    let counted = counted.map(|reason| reason["count"].as_u64().unwrap()).sum::<u64>();
    let forwarded = reasons["forwarded"].as_u64().unwrap();
    assert_eq!(reasons["received"], counted + forwarded);
    assert_eq!(count("not_tcp"), 3, "the pings: {reasons}");
    assert!(count("not_ip") > 0, "ARP: {reasons}");
    assert!(forwarded >= 50 * 4, "{reasons}");

    let status = sluice.status().unwrap();
    let backends = status["services"][0]["backends"].as_array().unwrap().iter();
    let packets = backends.map(|backend| backend["packets_total"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(packets, forwarded);
}

#[test]
fn monitoring_reads_health_and_metrics_over_http() {
    if !is_privileged() {
        return;
    }
    let (scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    assert_eq!(scene.request(VIP4, 50).failed(), 0);
    let get = |path: &str| {
        let url = format!("http://127.0.0.1:9180{path}");
        scene.lab.balancer().run("curl", &["-sS", "--fail", "--max-time", "5", &url])
    };
    get("/livez").unwrap();
    get("/readyz").unwrap();
    let metrics = get("/metrics").unwrap();
    let flows = metrics.lines().filter(|line| {
        line.starts_with("sluice_")
            && line.contains("new_flows")
            && line.contains("service=\"web\"")
    });
    let flows = flows.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    assert_eq!(flows.sum::<f64>(), 50.0, "{metrics}");
    let client = scene.lab.client().address(Family::V4).to_string();
    assert!(!metrics.contains(&client), "a client's address is nobody's business");

    // The same over the control socket, as the design promises.
    let socket = format!("/run/sluice/{}/control.sock", scene.lab.balancer().name());
    let status = ["-sS", "--fail", "--unix-socket", &socket, "http://sluice/v1/status"];
    let status = scene.lab.balancer().run("curl", &status).unwrap();
    assert!(status.contains("\"ready\":true"), "{status}");

    sluice.stop().unwrap();
    assert!(get("/livez").is_err());
    let own = SocketAddr::new(scene.lab.balancer().address(Family::V4), 9180);
    let outside = format!("http://{own}/metrics");
    scene.lab.client().run("curl", &["-sS", "--max-time", "1", &outside]).unwrap_err();
}
