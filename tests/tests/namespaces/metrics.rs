//! What a real Prometheus makes of the metrics, the alert rules and the dashboard.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice_tests::lab::{DEADLINE, Family, Plan, Prometheus, is_privileged, promtool, until};

use crate::scene::{Scene, VIP4};

/// A file of `dashboards/`.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards").join(name)
}

#[test]
fn prometheus_has_nothing_to_say_against_the_metrics() {
    if !is_privileged() {
        return;
    }
    let (mut scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    assert_eq!(scene.request(VIP4, 50).failed(), 0);
    // One that drains, for the metrics of drains.
    scene.nginx.truncate(3);
    sluice.cli_ok(&["backend", "drain", "web", scene.backends()[0], "--wait"]).unwrap();
    let get = ["-sS", "--fail", "--max-time", "5", "http://127.0.0.1:9180/metrics"];
    let metrics = scene.lab.balancer().run("curl", &get).unwrap();
    assert!(metrics.contains("sluice_backend_drain_flows_left{"), "{metrics}");
    assert!(metrics.contains("sluice_backend_handshake_seconds_bucket{"), "{metrics}");
    promtool(&["check", "metrics"], &metrics).unwrap();
    sluice.stop().unwrap();
}

#[test]
fn the_alert_rules_do_what_their_tests_say() {
    promtool(&["check", "rules", file("alerts.yml").to_str().unwrap()], "").unwrap();
    promtool(&["test", "rules", file("alerts.test.yml").to_str().unwrap()], "").unwrap();
}

#[test]
fn prometheus_finds_what_alerts_and_dashboard_ask_for() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    assert_eq!(scene.request(VIP4, 50).failed(), 0);
    let prometheus = Prometheus::start(scene.lab.balancer(), &file("alerts.yml")).unwrap();
    until("all flows to be told", 4 * DEADLINE, || {
        let flows = prometheus.number("sum(sluice_backend_new_flows_total)").unwrap();
        (flows == Some(50.0)).then_some(())
    })
    .unwrap();

    // Rates want two scrapes.
    until("the dashboard to have something to show", 4 * DEADLINE, || {
        let silent = queries().into_iter().find(|(_, query)| {
            let result = prometheus.query(query).unwrap();
            result.is_empty()
        });
        if let Some(silent) = &silent {
            eprintln!("no data yet for {silent:?}");
        }
        silent.is_none().then_some(())
    })
    .unwrap();

    until("all rules to be evaluated", 4 * DEADLINE, || {
        let rules = prometheus.rules().unwrap();
        let unknown = rules.iter().any(|rule| rule["health"] == "unknown");
        (!unknown).then_some(())
    })
    .unwrap();
    for rule in prometheus.rules().unwrap() {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_eq!(rule["alerts"].as_array().map(Vec::len), Some(0), "all is well: {rule}");
    }
    drop((prometheus, sluice));
}

/// Each query of the dashboard, with its panel's title, as Grafana would ask it of everything.
fn queries() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(file("sluice.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$__rate_interval", "10s");
            let query = ["$instance", "$service", "$job"]
                .iter()
                .fold(query, |query, variable| query.replace(variable, ".*"));
            assert!(!query.contains('$'), "{query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    assert!(queries.len() > 10);
    queries
}
