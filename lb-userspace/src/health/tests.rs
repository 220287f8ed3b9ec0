//! Probes of real servers, and the engine over them.

mod servers;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use lb_common::forward::Forwarding;
use tokio::{net::TcpListener, time::timeout};

use self::servers::Authority;
use super::{tls::Tls, *};
use crate::{
    config,
    drain::Moment,
    model::{HealthCheck, Via},
    network::lab::{Namespace, block_on},
};

/// A check as the configuration has it.
fn check(fields: &str) -> HealthCheck {
    let text = format!(
        "[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
         vip = \"203.0.113.10:80\"\nhealth = {{ {fields} }}"
    );
    let desired = config::parse(&text, "test").unwrap_or_else(|error| panic!("{error}"));
    let check = desired.services.into_iter().next().and_then(|service| service.health);
    HealthCheck { via: Via::Backend, ..check.expect("a check") }
}

fn target(fields: &str, address: SocketAddr) -> Target {
    Target {
        id: ("203.0.113.10:80".parse().expect("a VIP"), address),
        service: "web".to_owned(),
        backend: "web-1".to_owned(),
        check: Arc::new(check(fields)),
        forwarding: Forwarding::L2,
        fills_segment: false,
    }
}

fn paths() -> Paths {
    Paths { vip: Arc::new(Direct), backend: Arc::new(Direct) }
}

async fn ask(target: &Target) -> Result<(), Failure> {
    probe::probe(&paths(), &Tls::default(), target).await
}

/// Each case: a check's fields, and how its failure reads; "" is a success.
async fn assert_asked(server: SocketAddr, cases: &[(&str, &str)]) {
    for (fields, expected) in cases {
        let text = match ask(&target(fields, server)).await {
            Ok(()) => String::new(),
            Err(failure) => failure.to_string(),
        };
        assert_eq!(text, *expected, "{fields}");
    }
}

#[tokio::test]
async fn http_is_judged_by_status_and_body() {
    let server = servers::http().await;
    assert_asked(
        server.address,
        &[
            ("check = \"tcp\"", ""),
            ("check = \"http\", path = \"/healthz\"", ""),
            ("check = \"http\", path = \"/healthz\", method = \"HEAD\"", ""),
            ("check = \"http\", path = \"/healthz\", method = \"OPTIONS\"", ""),
            ("check = \"http\", path = \"/ill\", status = [200, 503]", ""),
            ("check = \"http\", path = \"/ill\"", "GET /ill: status 503, expected 200-399"),
            (
                "check = \"http\", path = \"/healthz\", status = [204, \"300-399\"]",
                "GET /healthz: status 200, expected 204, 300-399",
            ),
            ("check = \"http\", path = \"/healthz\", body = \"is well\"", ""),
            (
                "check = \"http\", path = \"/healthz\", body = \"is ill\"",
                "GET /healthz: \"is ill\" is not in the first 11 bytes of the body",
            ),
            // `/long` says `begin`, 65,530 bytes of nothing, `end`.
            ("check = \"http\", path = \"/long\", body = \"begin\"", ""),
            (
                "check = \"http\", path = \"/long\", body = \"end\"",
                "GET /long: \"end\" is not in the first 65536 bytes of the body",
            ),
            // Says whether it got these.
            ("check = \"http\", path = \"/asked?host=web.example\", host = \"web.example\"", ""),
            (
                "check = \"http\", path = \"/asked?x-a=b%20c&user-agent=me\", \
                 headers = { X-A = \"b%20c\", User-Agent = \"me\" }",
                "",
            ),
            (
                "check = \"http\", path = \"/asked?host=web.example\"",
                "GET /asked?host=web.example: status 400, expected 200-399",
            ),
            (
                "check = \"http\", path = \"/never\", timeout = \"100ms\"",
                "GET /never: no answer within 100ms",
            ),
            // The head came in time, but not the body.
            ("check = \"http\", path = \"/endless\", timeout = \"100ms\"", ""),
            (
                "check = \"http\", path = \"/endless\", body = \"x\", timeout = \"100ms\"",
                "GET /endless: no answer within 100ms",
            ),
            ("check = \"https\"", "TLS: the answer is no TLS"),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_is_no_answer_is_told_apart() {
    use Class::{Unhealthy, Unreachable};
    const TCP: &str = "check = \"tcp\", timeout = \"100ms\"";
    const GET: &str = "check = \"http\", timeout = \"100ms\"";
    const TLS: &str = "check = \"https\", timeout = \"100ms\"";
    const GRPC: &str = "check = \"grpc\", timeout = \"100ms\"";
    let nobody = servers::nobody().await;
    let full = servers::full().await;
    let silent = servers::silent().await;
    let resetting = servers::resetting().await;
    let closing = servers::closing().await;
    let babbling = servers::babbling().await;
    let grpc = "grpc.health.v1.Health/Check: no answer within 100ms";
    let babble = "GET /: the answer is no HTTP: invalid HTTP version parsed";
    let frame = "grpc.health.v1.Health/Check: the answer is no HTTP/2 (does the server speak it \
                 here?): connection error detected: frame with invalid size";
    let closed = "TLS handshake: connection closed without an answer";
    let cases = [
        (nobody, TCP, "connection refused", Unhealthy),
        (full.address, TCP, "no answer to SYN within 100ms", Unreachable),
        (silent.address, GET, "GET /: no answer within 100ms", Unhealthy),
        (silent.address, TLS, "TLS handshake: no answer within 100ms", Unhealthy),
        (silent.address, GRPC, grpc, Unhealthy),
        (resetting.address, GET, "GET /: connection reset", Unhealthy),
        (closing.address, GET, "GET /: connection closed without an answer", Unhealthy),
        (closing.address, TLS, closed, Unhealthy),
        (babbling.address, GET, babble, Unhealthy),
        (babbling.address, GRPC, frame, Unhealthy),
    ];
    for (address, fields, expected, class) in cases {
        let failure = ask(&target(fields, address)).await.expect_err(expected);
        assert_eq!((failure.to_string().as_str(), failure.class()), (expected, class), "{fields}");
    }
}

#[tokio::test]
async fn certificates_are_believed_as_far_as_configured() {
    let authority = Authority::new();
    let server = servers::https(&authority, &["web.example", "127.0.0.1"]).await;
    let old = servers::https_expired(&authority, &["web.example"]).await;
    let ca_file = authority.file();
    let ours = |fields: &str| {
        format!("check = \"https\", path = \"/healthz\", ca_file = {ca_file:?}, {fields}")
    };
    let fields = [
        (ours("body = \"is well\", host = \"web.example:8443\""), ""),
        (ours("server_name = \"web.example\", host = \"other.example\""), ""),
        (ours("server_name = \"127.0.0.1\""), ""),
        // The address itself.
        (ours("rise = 2"), ""),
        (
            ours("server_name = \"other.example\""),
            "TLS: certificate not valid for name other.example",
        ),
        (
            "check = \"https\", server_name = \"web.example\"".to_owned(),
            "TLS: certificate is signed by nobody known here: set `ca_file`",
        ),
        ("check = \"https\", path = \"/healthz\", verify = false".to_owned(), ""),
        (
            "check = \"https\", ca_file = \"/nonexistent/ca.pem\"".to_owned(),
            "not probed: read /nonexistent/ca.pem: No such file or directory (os error 2)",
        ),
    ];
    let cases: Vec<(&str, &str)> = fields.iter().map(|(a, b)| (&**a, *b)).collect();
    assert_asked(server.address, &cases).await;
    let expired = ours("server_name = \"web.example\"");
    assert_asked(old.address, &[(&expired, "TLS: certificate has expired")]).await;
}

#[tokio::test]
async fn a_ca_file_that_is_written_anew_is_read_anew() {
    let (old, new) = (Authority::new(), Authority::new());
    let server = servers::https(&new, &["127.0.0.1"]).await;
    let file = old.file();
    let target = target(&format!("check = \"https\", ca_file = {file:?}"), server.address);
    let tls = Tls::default();
    let paths = paths();
    let ask = || probe::probe(&paths, &tls, &target);
    assert!(matches!(ask().await, Err(Failure::Tls(_))));
    std::fs::copy(new.file(), &file).expect("a copy");
    let later = std::time::SystemTime::now() + Duration::from_secs(10);
    let written = std::fs::File::options().write(true).open(&file).expect("the copy");
    written.set_modified(later).expect("a later time");
    assert_eq!(ask().await, Ok(()));
}

#[tokio::test]
async fn grpc_servers_are_asked_after_themselves() {
    let authority = Authority::new();
    let plain = servers::grpc(None).await;
    let secret = servers::grpc(Some((&authority, &["web.example"]))).await;
    let ca_file = authority.file();
    assert_asked(
        plain.address,
        &[
            ("check = \"grpc\"", ""),
            ("check = \"grpc\", service = \"shop.Cart\"", ""),
            (
                "check = \"grpc\", service = \"ill\"",
                "grpc.health.v1.Health/Check of \"ill\": NOT_SERVING, expected SERVING",
            ),
            (
                "check = \"grpc\", service = \"unheard-of\"",
                "grpc.health.v1.Health/Check of \"unheard-of\": NOT_FOUND (the server does not \
                 know this service), expected SERVING",
            ),
            (
                "check = \"grpc\", service = \"unimplemented\"",
                "grpc.health.v1.Health/Check of \"unimplemented\": UNIMPLEMENTED (the server has \
                 no health service), expected SERVING",
            ),
            (
                "check = \"grpc\", service = \"half\"",
                "grpc.health.v1.Health/Check of \"half\": the answer has no grpc-status",
            ),
            (
                "check = \"grpc\", service = \"never\", timeout = \"100ms\"",
                "grpc.health.v1.Health/Check of \"never\": no answer within 100ms",
            ),
        ],
    )
    .await;
    let trusting = format!(
        "check = \"grpc\", tls = true, server_name = \"web.example\", ca_file = {ca_file:?}"
    );
    assert_asked(
        secret.address,
        &[
            (&trusting, ""),
            ("check = \"grpc\", tls = true, verify = false", ""),
            (
                "check = \"grpc\", tls = true",
                "TLS: certificate is signed by nobody known here: set `ca_file`",
            ),
        ],
    )
    .await;
    let web = servers::https(&authority, &["web.example"]).await;
    assert_asked(
        web.address,
        &[(
            &trusting,
            "TLS: the server does not agree to speak HTTP/2 (ALPN h2), which gRPC needs",
        )],
    )
    .await;
}

#[tokio::test]
async fn a_filled_request_is_understood() {
    let authority = Authority::new();
    let cases = [
        (servers::http().await, "check = \"http\", path = \"/padded\""),
        (
            servers::https(&authority, &["a"]).await,
            "check = \"https\", path = \"/padded\", verify = false",
        ),
        (servers::grpc(None).await, "check = \"grpc\", service = \"padded\""),
    ];
    for (server, fields) in cases {
        let thin = target(fields, server.address);
        assert!(ask(&thin).await.is_err(), "{fields}: not padded");
        let filled = Target { fills_segment: true, ..thin };
        assert_eq!(ask(&filled).await, Ok(()), "{fields}");
    }
}

/// The path takes 1,400 bytes, and both ends believe in 1,500.
#[test]
fn an_mtu_too_small_is_found_by_a_filled_request_alone() {
    let (Some(here), Some(there)) = (Namespace::new(), Namespace::new()) else { return };
    here.join(&there, ["10.0.0.1/24", "fd00::1/64"], ["10.0.0.2/24", "fd00::2/64"], [1, 2]);
    // A veth drops what is longer than its peer takes, but for packets still to be cut.
    here.run(|| {
        let words = ["-K", "eth0", "tso", "off", "gso", "off"];
        let set = std::process::Command::new("ethtool").args(words).status();
        assert!(set.expect("`ethtool` is installed").success());
    });
    there.ip("link set eth0 mtu 1400");
    there.ip("route replace 10.0.0.0/24 dev eth0 advmss 1460");
    let (address_here, address) = std::sync::mpsc::channel();
    there.spawn(async move {
        let server = servers::http_at("10.0.0.2:80").await;
        address_here.send(server.address).expect("the test waits");
        std::future::pending::<()>().await;
    });
    let address = address.recv().expect("a server");
    let (thin, filled) = here.run(move || {
        block_on(async {
            let thin = target("check = \"http\", path = \"/healthz\"", address);
            let filled = Target { fills_segment: true, ..thin.clone() };
            // The link has just come up, and the first SYN may be lost.
            let mut seen = ask(&thin).await;
            for _ in 0..9 {
                if seen.is_err() {
                    seen = ask(&thin).await;
                }
            }
            (seen, ask(&filled).await)
        })
    });
    assert_eq!(thin, Ok(()));
    let failure = filled.expect_err("too long");
    assert_eq!(
        failure.to_string(),
        "connected, but a full-size segment (1448 bytes) is not acknowledged: the path's MTU is \
         too small for the tunnel"
    );
    assert_eq!(failure.class(), Class::Unhealthy);
}

#[test]
fn where_no_route_leads_nobody_is_reached() {
    let Some(here) = Namespace::new() else { return };
    let away = here.run(|| {
        let away = target("check = \"tcp\"", "10.9.9.9:80".parse().expect("an address"));
        block_on(async { ask(&away).await })
    });
    let away = away.expect_err("there is no route");
    assert_eq!(away.to_string(), "can't be reached: network unreachable");
    assert_eq!(away.class(), Class::Unreachable);
}

#[tokio::test]
async fn probes_leave_no_time_wait() {
    let server = servers::http().await;
    for fields in ["check = \"tcp\"", "check = \"http\", path = \"/healthz\""] {
        assert_eq!(ask(&target(fields, server.address)).await, Ok(()));
    }
    let port = format!(":{:04X} ", server.address.port());
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("/proc");
    const TIME_WAIT: &str = "06";
    let waiting =
        |line: &&str| line.contains(&port) && line.split_whitespace().nth(3) == Some(TIME_WAIT);
    assert_eq!(sockets.lines().filter(waiting).collect::<Vec<_>>(), [""; 0]);
}

const QUICK: &str =
    "check = \"tcp\", interval = \"100ms\", timeout = \"100ms\", rise = 2, fall = 2";

async fn until(engine: &Engine, what: &str, is_so: impl Fn(&Engine) -> bool) {
    let mut changes = engine.changes();
    let waited = timeout(Duration::from_secs(20), async {
        while !is_so(engine) {
            changes.changed().await.expect("the engine lives");
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not {what}: {:#?}", engine.snapshot()));
}

fn is(id: (SocketAddr, SocketAddr), state: State) -> impl Fn(&Engine) -> bool {
    move |engine| engine.states().get(&id) == Some(&state)
}

#[tokio::test]
async fn a_backend_that_dies_and_returns_is_seen_to() {
    let server = servers::http().await;
    let address = server.address;
    let engine = Engine::start(paths(), 16);
    let target = target(QUICK, address);
    let id = target.id;
    engine.watch([target], &BTreeMap::new());
    until(&engine, "healthy", is(id, State::Healthy)).await;
    server.stop().await;
    until(&engine, "unhealthy", is(id, State::Unhealthy)).await;
    let seen = engine.seen(id).expect("it is watched");
    let last = seen.last.expect("it was asked");
    assert_eq!(last.outcome, Err(Failure::Refused));
    assert!(seen.failures >= 2, "{}", seen.failures);
    let _listener = TcpListener::bind(address).await.expect("the port is free");
    until(&engine, "healthy again", is(id, State::Healthy)).await;
    let figures = engine.figures();
    assert!(figures.probes_total >= 5 && figures.targets == 1, "{figures:?}");
}

/// Its VIP is another loopback address, which nobody listens on: all of it is real but the road.
#[tokio::test]
async fn the_cause_is_found_beside_the_probes_and_forgotten_when_it_is_well() {
    let server = servers::http().await;
    let own = server.address;
    let vip = SocketAddr::from(([127, 0, 0, 2], own.port()));
    let by_own = target(QUICK, own);
    let check = HealthCheck { via: Via::Vip, ..HealthCheck::clone(&by_own.check) };
    let by_vip = Target { id: (vip, own), check: Arc::new(check), ..by_own };
    let id = by_vip.id;
    let engine = Engine::start(paths(), 16);
    engine.watch([by_vip], &BTreeMap::new());
    let says = |part: &'static str| {
        move |engine: &Engine| {
            let seen = engine.seen(id).expect("it is watched");
            seen.state == State::Unhealthy && seen.cause().is_some_and(|cause| cause.contains(part))
        }
    };
    until(&engine, "bound elsewhere", says("but nobody listens on 127.0.0.2:")).await;
    server.stop().await;
    until(&engine, "looked into again", says("is up, but nobody listens on port ")).await;
    let _listener = TcpListener::bind(vip).await.expect("the port is free");
    until(&engine, "healthy", is(id, State::Healthy)).await;
    assert_eq!(engine.seen(id).expect("it is watched").explanation, None);
}

#[tokio::test]
async fn targets_come_and_go_without_a_word_about_the_others() {
    let [first, second] = [servers::http().await, servers::http().await];
    let engine = Engine::start(paths(), 16);
    let [one, two] = [&first, &second].map(|server| target(QUICK, server.address));
    let (a, b) = (one.id, two.id);
    engine.watch([one.clone()], &BTreeMap::new());
    until(&engine, "healthy", is(a, State::Healthy)).await;
    let before = engine.seen(a).expect("it is watched");

    let kept = Kept { state: State::Unreachable, since: Moment(7) };
    engine.watch([two.clone(), one.clone()], &[(a, kept), (b, kept)].into());
    let seen = engine.seen(b).expect("it is watched");
    assert!(seen.stale && seen.kept() == kept, "{seen:?}");
    let same = engine.seen(a).expect("it is watched");
    assert_eq!((same.state, same.since), (before.state, before.since), "kept is for the new");
    until(&engine, "healthy", is(b, State::Healthy)).await;
    assert_eq!(engine.kept()[&b].state, State::Healthy);

    engine.watch([two], &BTreeMap::new());
    assert_eq!(engine.seen(a), None);
    assert_eq!(engine.states(), [(b, State::Healthy)].into());

    // Another check, which it does not pass, is taken up at once, of an hour's interval too.
    let other = target("check = \"http\", path = \"/ill\", interval = \"1h\", fall = 1", b.1);
    engine.watch([other], &BTreeMap::new());
    until(&engine, "unhealthy", is(b, State::Unhealthy)).await;
}

#[tokio::test]
async fn probes_that_must_wait_are_late_and_not_left_out() {
    let [first, second] = [servers::silent().await, servers::silent().await];
    let fields = "check = \"http\", interval = \"200ms\", timeout = \"200ms\", fall = 2";
    let engine = Engine::start(paths(), 1);
    let targets = [&first, &second].map(|server| target(fields, server.address));
    let ids = [targets[0].id, targets[1].id];
    engine.watch(targets, &BTreeMap::new());
    for id in ids {
        until(&engine, "unhealthy", is(id, State::Unhealthy)).await;
    }
    let figures = engine.figures();
    assert!(figures.late_total > 0 && figures.latest > Duration::from_millis(100), "{figures:?}");
    assert!(figures.running <= 1, "{figures:?}");
}

#[tokio::test]
async fn a_probe_that_can_not_be_made_says_nothing_of_the_backend() {
    let server = servers::http().await;
    let engine = Engine::start(paths(), 16);
    let kept = Kept { state: State::Healthy, since: Moment(7) };
    let fields = "check = \"https\", ca_file = \"/nonexistent\", interval = \"100ms\", fall = 1";
    let target = target(fields, server.address);
    let id = target.id;
    engine.watch([target], &[(id, kept)].into());
    let seen = timeout(Duration::from_secs(20), async {
        loop {
            let seen = engine.seen(id).expect("it is watched");
            if engine.figures().probes_total > 3 && seen.last.is_some() {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let seen = seen.await.expect("it is probed again and again");
    assert!(seen.stale && seen.kept() == kept, "{seen:?}");
}
