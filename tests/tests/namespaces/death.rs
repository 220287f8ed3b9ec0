//! Backends that die and return, with clients at it: who is reset, who stays, who waits.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use sluice_tests::lab::{
    Conversations, DEADLINE, EchoServer, HealthServer, Host, Load, LoadPlan, Plan, Sluice,
    dataplane, is_privileged, until,
};

use crate::{
    health::{backend, check, until_backend, until_event, until_health, until_ill, until_well},
    scene::{Scene, VIP4, address, target},
};

/// Where servers echo.
pub const ECHO: &str = "203.0.113.10:7";

/// `web` and `echo` on three backends, checked by way of the VIP and well.
pub fn web_and_echo(fields: &str) -> (Vec<EchoServer>, Scene, Sluice) {
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, "l2");
    let start = |host| EchoServer::start(host, address(ECHO).port()).unwrap();
    let echoes = scene.lab.backends().iter().map(start).collect();
    let config = dataplane(&["eth0"])
        + &scene.service_with("web", VIP4, "l2", &check(fields))
        + &scene.service_with("echo", ECHO, "l2", &check(r#"check = "tcp""#));
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    ["web", "echo"].into_iter().for_each(|of| until_well(&sluice, of));
    (echoes, scene, sluice)
}

#[test]
fn who_dies_without_a_word_is_avoided_and_its_clients_are_told() {
    if !is_privileged() {
        return;
    }
    let (_echoes, scene, sluice) = web_and_echo(r#"check = "tcp""#);
    let client = scene.lab.client();
    let talks = Conversations::start(client, address(ECHO), 30).unwrap();
    let doomed = talks.report().per_backend["web-1"] as usize;
    let timeout = Duration::from_millis(300);
    let plan = LoadPlan { timeout, ..LoadPlan::on([target(VIP4)]) };
    let load = Load::start(client, plan).unwrap();
    load.run_for_requests(100, DEADLINE).unwrap();

    let death = Instant::now();
    let muted = scene.lab.mute(&scene.lab.backends()[0]).unwrap();
    until("its clients to be told", DEADLINE, || (talks.broken() >= doomed).then_some(())).unwrap();
    let told = death.elapsed();
    for of in ["web", "echo"] {
        until_ill(&sluice, (of, "web-1"), "unreachable", "no answer to SYN");
    }
    until_event(&sluice, "healthy -> unreachable: no answer to SYN within 250ms");
    load.run_for_requests(100, DEADLINE).unwrap();
    let tally = load.stop();
    let last = tally.failures.iter().map(|failure| failure.started).max();
    let avoided = last.map_or(Duration::ZERO, |last| last.saturating_duration_since(death));
    eprintln!(
        "fall 2 × interval 250 ms: after {avoided:?} new connections avoid the dead backend \
         ({} of {} failed), after {told:?} all its {doomed} clients have their RST",
        tally.failed(),
        tally.requests,
    );
    assert_avoided(&scene);

    drop(muted);
    until_back(&scene, &sluice, talks, doomed);
}

/// Clients are served, and not by `web-1`.
#[track_caller]
pub fn assert_avoided(scene: &Scene) {
    let tally = scene.request(VIP4, 60);
    assert_eq!(tally.failed(), 0, "{}", tally.causes());
    assert_eq!(tally.per_backend().get("web-1"), None);
}

/// Waits until `web-1` serves again; of all conversations no other than those `doomed` ones that it
/// had when it died were broken, each by a RST.
#[track_caller]
pub fn until_back(scene: &Scene, sluice: &Sluice, talks: Conversations, doomed: usize) {
    until_health(sluice, ("web", "web-1"), "healthy");
    until("it to serve again", DEADLINE, || {
        scene.request(VIP4, 30).per_backend().contains_key("web-1").then_some(())
    })
    .unwrap();
    talks.run_for_messages(100).unwrap();
    let report = talks.stop();
    assert_eq!(report.broken.len(), doomed, "the others' live on: {:?}", report.broken);
    assert!(report.broken.iter().all(|cause| cause.contains("reset")), "{:?}", report.broken);
}

/// An HTTP connection that stays open between requests.
pub struct Open(TcpStream);

impl Open {
    fn new(client: &Host, vip: &str) -> Self {
        client.enter(|| Self::here(vip))
    }

    /// From the calling thread's network namespace.
    pub fn here(vip: &str) -> Self {
        let stream = TcpStream::connect(address(vip)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(stream)
    }

    /// The first line of the answer, and who gave it.
    pub fn ask(&mut self) -> (String, String) {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        let mut answer = String::new();
        let mut buffer = [0; 1024];
        // The body is one line.
        while !answer.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('\n')) {
            let length = self.0.read(&mut buffer).unwrap();
            assert_ne!(length, 0, "closed after {answer:?}");
            answer += std::str::from_utf8(&buffer[..length]).unwrap();
        }
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.trim_end().to_owned())
    }
}

#[test]
fn who_answers_wrongly_keeps_its_flows_and_gets_no_new_ones() {
    if !is_privileged() {
        return;
    }
    const VIP: &str = "203.0.113.10:8080";
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP, "l2");
    let start = |host| HealthServer::http(host, HealthServer::everywhere(8080)).unwrap();
    let servers: Vec<HealthServer> = scene.lab.backends().iter().map(start).collect();
    let lines = check(r#"check = "http""#);
    let config = dataplane(&["eth0"]) + &scene.service_with("web", VIP, "l2", &lines);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    until_well(&sluice, "web");
    let mut open = until("a connection to web-1", DEADLINE, || {
        let mut open = Open::new(scene.lab.client(), VIP);
        (open.ask().1 == "web-1").then_some(open)
    })
    .unwrap();

    servers[0].set_well(false);
    until_ill(&sluice, ("web", "web-1"), "unhealthy", "GET /: status 503");
    let said = ("HTTP/1.1 503 Service Unavailable".to_owned(), "web-1".to_owned());
    assert_eq!(open.ask(), said, "the flow stays");
    let tally = scene.request(VIP, 60);
    assert_eq!((tally.failed(), tally.per_backend().get("web-1")), (0, None));

    servers[0].set_well(true);
    until_health(&sluice, ("web", "web-1"), "healthy");
    until("it to serve again", DEADLINE, || {
        scene.request(VIP, 30).per_backend().contains_key("web-1").then_some(())
    })
    .unwrap();
    assert_eq!(open.ask().0, "HTTP/1.1 200 OK");
}

/// Connections that are tried at a time.
const CONNECTIONS: usize = 60;

/// How many new connections fail within the time of three SYNs, and how many need more than one.
fn connect(client: &Host) -> (usize, usize) {
    let times = thread::scope(|scope| {
        let tries = (0..CONNECTIONS).map(|_| {
            scope.spawn(|| {
                let start = Instant::now();
                let time = Duration::from_millis(5500);
                let met = client.enter(|| TcpStream::connect_timeout(&address(VIP4), time).is_ok());
                met.then(|| start.elapsed())
            })
        });
        let tries = tries.collect::<Vec<_>>();
        tries.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    let failed = times.iter().filter(|time| time.is_none()).count();
    // A SYN is sent again after a second (RFC 6298, section 2).
    let slow = times.iter().flatten().filter(|time| time.as_secs_f32() > 0.9).count();
    (failed, slow)
}

#[test]
fn who_meets_a_dead_backend_reaches_another_at_the_second_try() {
    if !is_privileged() {
        return;
    }
    // No probe tells: only clients' own SYNs do.
    for (affinity, tries_again) in [("none", true), ("source-ip", false)] {
        let mut scene = Scene::start(Plan::default());
        scene.own(VIP4, "l2");
        let lines = format!("health = {{ check = \"none\" }}\naffinity = \"{affinity}\"\n");
        let config = dataplane(&["eth0"]) + &scene.service_with("web", VIP4, "l2", &lines);
        let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
        let served = scene.request(VIP4, 30).per_backend();
        let name = served.keys().next().unwrap().clone();
        let dead = scene.lab.backends().iter().find(|host| host.role() == name).unwrap();
        let muted = scene.lab.mute(dead).unwrap();

        let (failed, slow) = connect(scene.lab.client());
        eprintln!("affinity {affinity}: of {CONNECTIONS}, {failed} failed, {slow} were slow");
        let seen = until_backend(&sluice, ("web", &name), "suspect", |it| it["suspect"] == true);
        let saved = seen["second_tries_total"].as_u64().unwrap() as usize;
        if tries_again {
            assert_eq!(failed, 0, "{seen}");
            assert!(0 < saved && saved <= slow, "{seen}");
        } else {
            assert_eq!((failed, saved), (CONNECTIONS, 0), "{seen}");
        }
        drop(muted);
        until("it to be trusted again", DEADLINE, || {
            assert_eq!(scene.request(VIP4, 30).failed(), 0);
            (backend(&sluice, "web", &name)["suspect"] == false).then_some(())
        })
        .unwrap();
    }
}
