//! Health checks of the real daemon, against real servers: what each kind of check sees, and what
//! only the way of traffic shows.

use std::net::SocketAddr;

use serde_json::Value;
use sluice_tests::lab::{
    DEADLINE, Family, HealthServer, Nginx, Plan, Sluice, dataplane, is_privileged, service_with,
    until,
};

use crate::{
    doctor::wrong,
    scene::{Scene, VIP4, VIP6, address},
};

/// How often tests' backends are probed; a busy machine must not look like a dead backend.
pub const OFTEN: &str = r#"interval = "250ms", timeout = "250ms", rise = 2, fall = 2"#;

/// The lines of a service whose backends are probed [`OFTEN`], by a check with these fields.
pub fn check(fields: &str) -> String {
    format!("health = {{ {fields}, {OFTEN} }}\n")
}

/// What the status says of a service.
pub fn service(sluice: &Sluice, name: &str) -> Value {
    let status = sluice.status().unwrap();
    let mut services = status["services"].as_array().unwrap().iter();
    services.find(|service| service["name"] == name).unwrap().clone()
}

/// What the status says of a backend of a service.
pub fn backend(sluice: &Sluice, of: &str, name: &str) -> Value {
    let service = service(sluice, of);
    let mut backends = service["backends"].as_array().unwrap().iter();
    backends.find(|backend| backend["name"] == name).unwrap().clone()
}

/// Waits until the status says of a backend that it is so.
#[track_caller]
pub fn until_backend(
    sluice: &Sluice,
    (of, name): (&str, &str),
    what: &str,
    mut is: impl FnMut(&Value) -> bool,
) -> Value {
    let found = until(&format!("{of}/{name} to be {what}"), DEADLINE, || {
        Some(backend(sluice, of, name)).filter(|backend| is(backend))
    });
    found.unwrap_or_else(|error| panic!("{error:#}: {}", sluice.status().unwrap()))
}

/// Waits until a backend is of this health.
#[track_caller]
pub fn until_health(sluice: &Sluice, backend: (&str, &str), health: &str) -> Value {
    until_backend(sluice, backend, health, |backend| backend["health"] == health)
}

/// Waits until all backends of a service are healthy, and none is held.
#[track_caller]
pub fn until_well(sluice: &Sluice, of: &str) {
    let found = until(&format!("{of} to be well"), DEADLINE, || {
        let service = service(sluice, of);
        let backends = service["backends"].as_array().unwrap();
        let all = backends.iter().all(|backend| backend["health"] == "healthy");
        (all && service["held"].is_null()).then_some(())
    });
    found.unwrap_or_else(|error| panic!("{error:#}: {}", sluice.status().unwrap()));
}

/// `web` by `l2` on all backends of a plan, with these lines; once they are well.
pub fn web(plan: Plan, lines: &str) -> (Scene, Sluice) {
    let mut scene = Scene::start(plan);
    scene.own(VIP4, "l2");
    let config = dataplane(&["eth0"]) + &scene.service_with("web", VIP4, "l2", lines);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    until_well(&sluice, "web");
    (scene, sluice)
}

/// `web` on three backends, which are asked by HTTP and well.
pub fn web_on_three() -> (Scene, Sluice) {
    web(Plan::default(), &check(r#"check = "http""#))
}

/// Waits until `sluice events` tells this.
#[track_caller]
pub fn until_event(sluice: &Sluice, text: &str) {
    let events = || sluice.cli_ok(&["events"]).unwrap();
    let told =
        until(&format!("the event {text:?}"), DEADLINE, || events().contains(text).then_some(()));
    told.unwrap_or_else(|error| panic!("{error:#}:\n{}", events()));
}

/// Waits until the backend is of this health and out, and says why wherever one looks.
#[track_caller]
pub fn until_ill(sluice: &Sluice, backend: (&str, &str), health: &str, error: &str) {
    let says = |said: &Value| said.as_str().is_some_and(|said| said.contains(error));
    until_backend(sluice, backend, &format!("{health} for {error:?}, and out"), |it| {
        let is_out = it["health"] == health && it["takes_new_flows"] == false;
        is_out && says(&it["last_probe"]["error"]) && says(&it["why"])
    });
}

/// A VIP whose backends are asked by their own addresses.
const DIRECT: &str = "203.0.113.20:80";

/// Two services with the same backends, the one asked by way of its VIP, the other directly.
fn both_ways(scene: &Scene, forwarding: &str, check: &str) -> String {
    let direct = check.replace("health = {", r#"health = { via = "backend","#);
    dataplane(&["eth0"])
        + &scene.service_with("web", VIP4, forwarding, check)
        + &scene.service_with("direct", DIRECT, forwarding, &direct)
}

/// Only `web-1` is given clients by the one; the other calls everybody well, and clients suffer.
fn assert_only_the_way_of_traffic_tells(scene: &Scene, sluice: &Sluice) {
    until_health(sluice, ("web", "web-1"), "healthy");
    until_well(sluice, "direct");
    let tally = scene.request(VIP4, 40);
    assert_eq!((tally.failed(), tally.per_backend()["web-1"]), (0, 40), "{}", tally.causes());
    assert!(scene.attempt(DIRECT, 40).failed() > 0);
}

#[test]
fn a_vip_missing_and_a_service_elsewhere_are_seen_by_way_of_the_vip_alone() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    let vips = [VIP4, DIRECT];
    vips.into_iter().for_each(|vip| scene.own(vip, "l2"));
    let [_, web_2, web_3] = scene.lab.backends() else { unreachable!("three of them") };
    for vip in vips {
        web_2.disown_vip(address(vip).ip()).unwrap();
    }
    scene.nginx.remove(2);
    let own = SocketAddr::new(web_3.address(Family::V4), 80);
    let _server = HealthServer::http(web_3, own).unwrap();

    let config = both_ways(&scene, "l2", &check(r#"check = "http", path = "/healthz""#));
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    until_ill(&sluice, ("web", "web-2"), "unreachable", "no answer to SYN within 250ms");
    until_ill(&sluice, ("web", "web-3"), "unhealthy", "connection refused");
    assert_only_the_way_of_traffic_tells(&scene, &sluice);
    let vip = address(VIP4).ip();
    let says = wrong(&sluice, "backend web/web-2");
    assert!(says.contains(&format!("is up, but takes no frames for {vip}")), "{says}");
    let says = wrong(&sluice, "backend web/web-3");
    assert!(says.contains(&format!("nobody listens on {VIP4} there")), "{says}");
}

#[test]
fn each_fault_of_a_tunnel_is_seen_by_way_of_the_vip_alone() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan { backends: 5, ..Plan::default() });
    let vips = [VIP4, DIRECT].map(|vip| address(vip).ip());
    for host in scene.lab.backends() {
        scene.agents.push(host.run_agent(&vips, &[]).unwrap());
    }
    let [_, _, web_3, web_4, web_5] = scene.lab.backends() else { unreachable!("five of them") };
    scene.agents[1].stop_decapsulating().unwrap();
    scene.agents[2].kill9().unwrap();
    for vip in vips {
        web_3.disown_vip(vip).unwrap();
    }
    scene.nginx.remove(3);
    let own = SocketAddr::new(web_4.address(Family::V4), 80);
    let _server = HealthServer::http(web_4, own).unwrap();
    // A usual network: what is full already has no room for a tunnel's header.
    scene.lab.narrow(web_5, 1500).unwrap();

    // Time for a segment to be sent again.
    let check = r#"health = { check = "http", interval = "1s", timeout = "1s", fall = 1 }"#;
    let config = both_ways(&scene, "ipip", &format!("{check}\n"));
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    until_ill(&sluice, ("web", "web-2"), "unreachable", "no answer to SYN within 1s");
    until_ill(&sluice, ("web", "web-3"), "unreachable", "no answer to SYN within 1s");
    until_ill(&sluice, ("web", "web-4"), "unhealthy", "connection refused");
    let narrow = "is not acknowledged: the path's MTU is too small for the tunnel";
    until_ill(&sluice, ("web", "web-5"), "unhealthy", narrow);
    assert_only_the_way_of_traffic_tells(&scene, &sluice);
}

#[test]
fn each_kind_of_check_sees_its_server_fall_ill_and_recover() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan { backends: 1, ..Plan::default() });
    let vips = ["203.0.113.10:443", "203.0.113.11:443", "203.0.113.12:443", "203.0.113.13:443"];
    vips.into_iter().chain([VIP6]).for_each(|vip| scene.own(vip, "l2"));
    let web = &scene.lab.backends()[0];
    let everywhere = HealthServer::everywhere;
    let http = HealthServer::http(web, everywhere(8080)).unwrap();
    let https = HealthServer::https(web, everywhere(443), "web.example").unwrap();
    let other = HealthServer::https(web, everywhere(8443), "web.example").unwrap();
    let grpc = HealthServer::grpc(web, everywhere(50051)).unwrap();
    let grpcs = HealthServer::grpc_in_tls(web, everywhere(50052), "web.example").unwrap();
    let [trusted, stranger, of_grpcs] =
        [&https, &other, &grpcs].map(|it| it.authority().unwrap().display());

    let services = [
        ("tcp", VIP4, r#"check = "tcp""#.to_owned()),
        ("tcp6", VIP6, r#"check = "tcp""#.to_owned()),
        ("http", "203.0.113.10:8080", r#"check = "http", status = 200, body = "web-1""#.to_owned()),
        ("grpc", "203.0.113.10:50051", r#"check = "grpc""#.to_owned()),
        ("grpcs", "203.0.113.10:50052", {
            format!(
                r#"check = "grpc", tls = true, server_name = "web.example", ca_file = "{of_grpcs}""#
            )
        }),
        ("https", vips[0], named("web.example", &format!(r#"ca_file = "{trusted}""#))),
        ("signed-by-others", vips[1], named("web.example", &format!(r#"ca_file = "{stranger}""#))),
        ("misnamed", vips[2], named("other.example", &format!(r#"ca_file = "{trusted}""#))),
        ("unverified", vips[3], named("other.example", "verify = false")),
    ];
    let config = services.iter().map(|(name, vip, fields)| {
        // Who was never well is not held; who falls here falls for a reason.
        let lines = check(fields) + "panic_threshold = 1\nfail_open = false\n";
        scene.service_with(name, vip, "l2", &lines)
    });
    let config = dataplane(&["eth0"]) + &config.collect::<String>();
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();

    for of in ["tcp", "tcp6", "http", "grpc", "grpcs", "https", "unverified"] {
        until_well(&sluice, of);
    }
    until_ill(&sluice, ("signed-by-others", "web-1"), "unhealthy", "TLS: ");
    until_ill(&sluice, ("misnamed", "web-1"), "unhealthy", "other.example");

    for server in [&http, &https, &grpc, &grpcs] {
        server.set_well(false);
    }
    scene.nginx.clear();
    until_ill(&sluice, ("tcp", "web-1"), "unhealthy", "connection refused");
    until_ill(&sluice, ("tcp6", "web-1"), "unhealthy", "connection refused");
    until_ill(&sluice, ("http", "web-1"), "unhealthy", "status 503, expected 200");
    until_ill(&sluice, ("https", "web-1"), "unhealthy", "status 503, expected 200-399");
    until_ill(&sluice, ("grpc", "web-1"), "unhealthy", "NOT_SERVING, expected SERVING");
    until_ill(&sluice, ("grpcs", "web-1"), "unhealthy", "NOT_SERVING, expected SERVING");

    for server in [&http, &https, &grpc, &grpcs] {
        server.set_well(true);
    }
    let _nginx = Nginx::start(web, &[80]).unwrap();
    for of in ["tcp", "tcp6", "http", "grpc", "grpcs", "https"] {
        until_well(&sluice, of);
    }
    assert_eq!(scene.request(VIP4, 20).failed(), 0);
}

/// Fields of an HTTPS check that looks for this name in the certificate.
fn named(name: &str, more: &str) -> String {
    format!(r#"check = "https", server_name = "{name}", {more}"#)
}

#[test]
fn an_http_check_takes_a_tunnel_over_ipv6_and_tells_who_is_gone() {
    if !is_privileged() {
        return;
    }
    for (vip, tunnel) in [(VIP4, "4in6"), (VIP6, "6in6")] {
        println!("{tunnel}");
        let mut scene = Scene::start(Plan::default());
        scene.own(vip, "ipip");
        let lines = check(r#"check = "http", body = "web-""#);
        let (vip_address, backends) = (address(vip), scene.lab.backends());
        let service =
            service_with("web", vip_address, "ipip", backends, Family::V6, lines.as_str());
        let balancer = scene.lab.balancer();
        balancer.sysctl("net.ipv6.neigh.eth0.retrans_time_ms", "200").unwrap();
        let sluice = balancer.run_sluice(&(dataplane(&["eth0"]) + &service)).unwrap();
        until_well(&sluice, "web");
        let tally = scene.request(vip, 60);
        assert_eq!((tally.failed(), tally.per_backend().len()), (0, 3), "{}", tally.causes());

        // First its probes find nobody, then neighbour discovery.
        let gone = &backends[0];
        scene.lab.unplug(gone).unwrap();
        until_ill(&sluice, ("web", "web-1"), "unreachable", "no answer to SYN within 250ms");
        balancer.ip("neigh flush dev eth0").unwrap();
        let silent = format!("{} does not answer neighbour discovery", gone.address(Family::V6));
        until_backend(&sluice, ("web", "web-1"), "missed by its neighbour", |it| {
            it["health"] == "unreachable" && it["why"].as_str().unwrap().contains(&silent)
        });
        let tally = scene.request(vip, 60);
        assert_eq!((tally.failed(), tally.per_backend().len()), (0, 2), "{}", tally.causes());

        scene.lab.plug(gone).unwrap();
        until_well(&sluice, "web");
        assert_eq!(scene.request(vip, 60).per_backend().len(), 3);
    }
}
