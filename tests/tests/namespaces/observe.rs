//! What an instance says of itself is what its traffic shows.

use std::{collections::BTreeMap, net::SocketAddr};

use sluice_tests::lab::{
    Conversations, DEADLINE, EchoServer, Family, Plan, Sluice, dataplane, is_privileged, until,
};

use crate::scene::{Scene, VIP4, address};

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
        reports.push(report);
    }
    // The sum of both, per backend, is in the status.
    let status = sluice.status().unwrap();
    for backend in status["services"][0]["backends"].as_array().unwrap() {
        let name = backend["name"].as_str().unwrap();
        let opened = reports.iter().filter_map(|report| report.per_backend.get(name)).sum::<u64>();
        assert_eq!(backend["new_flows_total"], opened, "{backend}");
    }
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
