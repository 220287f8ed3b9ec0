//! Two balancers of the same VIPs behind a router that spreads flows over them.

use std::time::Duration;

use serde_json::Value;
use sluice_tests::lab::{
    DEADLINE, Family, Plan, Sluice, StreamPlan, StreamServer, Streams, dataplane, is_privileged,
};

use crate::scene::{Scene, address};

#[test]
fn flows_that_move_to_the_other_balancer_live_on() {
    moves("203.0.113.10:7", "l2", Family::V4);
}

#[test]
fn tunnelled_flows_that_move_to_the_other_balancer_live_on() {
    moves("[2001:db8:f00d::10]:7", "ipip", Family::V6);
}

const COUNT: u64 = 60;

fn moves(vip: &str, forwarding: &str, family: Family) {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan { second_balancer: true, ..Plan::default() });
    scene.own(vip, forwarding);
    let servers = scene.lab.backends().iter().map(|host| StreamServer::start(host, 7).unwrap());
    let _servers = servers.collect::<Vec<_>>();
    let config = dataplane(&["eth0"]).trim_end().to_owned()
        + "\nhash_seed = \"both balancers know it\"\n"
        + &scene.service("streams", vip, forwarding, family);
    let balancers = scene.lab.balancers();
    let run = |index: usize| balancers[index].run_sluice(&config).unwrap();
    let (one, two) = (run(0), run(1));

    let plan = StreamPlan { address: address(vip), count: COUNT, pace: Duration::from_millis(100) };
    let streams = Streams::open(scene.lab.client(), plan).unwrap();
    let total = |sluice: &Sluice, field: &str| {
        let status = sluice.status().unwrap();
        let backends = status["services"][0]["backends"].as_array().unwrap().clone();
        let count = |backend: &Value| backend[field].as_u64().unwrap();
        backends.iter().map(count).sum::<u64>()
    };
    let [by_one, by_two] = [&one, &two].map(|sluice| total(sluice, "new_flows_total"));
    assert_eq!(by_one + by_two, COUNT);
    assert!(by_one.min(by_two) >= COUNT / 6, "{by_one} and {by_two}: the router spreads nothing");

    // One balancer less, then the other instead of it, then both.
    scene.lab.route_vips(&balancers[1..]).unwrap();
    streams.advance(5, DEADLINE);
    assert_eq!(total(&two, "adopted_flows_total"), by_one, "all that had been the first's");
    scene.lab.route_vips(&balancers[..1]).unwrap();
    streams.advance(5, DEADLINE);
    assert_eq!(total(&one, "adopted_flows_total"), by_two);
    scene.lab.route_vips(&balancers).unwrap();
    streams.advance(5, DEADLINE);
    assert_eq!(streams.per_backend().len(), 3);
    let broken = streams.close();
    assert!(broken.is_empty(), "{broken:?}");
}
