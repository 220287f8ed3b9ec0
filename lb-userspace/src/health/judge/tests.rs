use lb_common::service::BackendState;

use super::*;
use crate::{
    choice::Condition,
    drain::{Event, Moment},
    health::Because,
    model::{HealthCheck, sample},
    network::{NextHop, Unresolved},
};

const SECOND: Duration = Duration::from_secs(1);

/// Four backends with a check, and all that is seen of them.
struct Scene {
    desired: Desired,
    next_hops: Snapshot,
    probed: HashMap<Identity, Probed>,
    traffic: HashMap<Identity, Traffic>,
    judge: Judge,
    now: Instant,
}

impl Scene {
    fn new() -> Self {
        let text = "[dataplane]\ninterfaces = [\"eth0\"]\n";
        let mut desired = crate::config::parse(text, "lb.toml").expect("valid");
        let check = Some(HealthCheck::default());
        desired.services = vec![Service { health: check, ..sample::service("web", 4) }];
        let mut scene = Self {
            desired,
            next_hops: Snapshot::default(),
            probed: HashMap::new(),
            traffic: HashMap::new(),
            judge: Judge::default(),
            now: Instant::now(),
        };
        for number in 0..4 {
            scene.resolve(number, None);
        }
        scene
    }

    /// All of them seen well.
    fn well() -> Self {
        let mut scene = Self::new();
        (0..4).for_each(|number| scene.see(number, State::Healthy));
        scene.look();
        scene
    }

    fn service(&self) -> &Service {
        &self.desired.services[0]
    }

    fn identity(&self, number: usize) -> Identity {
        self.service().identity(&self.service().backends[number])
    }

    fn resolve(&mut self, number: usize, unresolved: Option<Unresolved>) {
        let address = self.service().backends[number].address;
        let hop = NextHop {
            interface: 7,
            interface_name: "eth0".into(),
            source_mac: [2; 6],
            destination_mac: [4; 6],
            mtu: 1500,
            source: [10, 0, 0, 1].into(),
            gateway: None,
            is_given: false,
        };
        let mut next_hops = (*self.next_hops).clone();
        next_hops.insert(address, unresolved.map_or(Ok(hop), Err));
        self.next_hops = next_hops.into();
    }

    fn see(&mut self, number: usize, health: State) {
        let failing = matches!(health, State::Unhealthy | State::Unreachable);
        let fault = failing.then(|| "no answer".to_owned());
        self.probed.insert(
            self.identity(number),
            Probed { health, failing, stale: false, fault, cause: None },
        );
    }

    fn look(&mut self) -> Vec<String> {
        let evidence = Evidence {
            desired: &self.desired,
            next_hops: &self.next_hops,
            probed: &self.probed,
            traffic: &self.traffic,
        };
        let notes = self.judge.judge(evidence, self.now);
        notes
            .into_iter()
            .map(|note| format!("{}: {}", note.backend.unwrap_or(note.service), note.text))
            .collect()
    }

    fn standing(&self, number: usize) -> &Standing {
        let service = self.service();
        self.judge.standings().of(service, &service.backends[number]).expect("it was looked at")
    }
}

#[test]
fn a_fresh_daemon_presumes_everybody_well_and_a_new_backend_must_prove_it() {
    let mut scene = Scene::new();
    scene.desired.services[0].backends.truncate(3);
    assert_eq!(scene.look(), [""; 0]);
    assert_eq!(scene.standing(0).because, Because::Presumed);
    scene.desired.services =
        vec![Service { health: Some(HealthCheck::default()), ..sample::service("web", 4) }];
    scene.look();
    assert_eq!(scene.standing(0).because, Because::Presumed);
    assert_eq!(scene.standing(3).because, Because::Ill);
    scene.see(3, State::Healthy);
    assert_eq!(scene.look(), ["web-4: unknown -> healthy"]);
    assert_eq!(scene.standing(3).because, Because::Healthy);
}

#[test]
fn who_is_unreachable_loses_its_flows_and_who_answers_wrongly_does_not() {
    let mut scene = Scene::well();
    scene.see(0, State::Unreachable);
    scene.see(1, State::Unhealthy);
    let notes =
        ["web-1: healthy -> unreachable: no answer", "web-2: healthy -> unhealthy: no answer"];
    assert_eq!(scene.look(), notes);
    assert_eq!(scene.standing(0).flows, BackendState::Reset);
    assert_eq!(scene.standing(0).condition(), Condition::Gone);
    assert_eq!(scene.standing(1).flows, BackendState::Forward);
    assert_eq!(scene.standing(1).condition(), Condition::Ill);
    scene.desired.services[0].reset_unreachable = false;
    scene.look();
    assert_eq!(scene.standing(0).flows, BackendState::Forward);
}

#[test]
fn a_neighbour_that_does_not_answer_is_as_bad_as_probes_that_fail() {
    let mut scene = Scene::well();
    let address = scene.service().backends[0].address;
    let failed =
        |failed| Unresolved::Neighbour { address, next: address, interface: "eth0".into(), failed };
    // Only just asked for: it stays what it was.
    scene.resolve(0, Some(failed(false)));
    scene.look();
    assert_eq!(scene.standing(0).condition(), Condition::Well);
    scene.resolve(0, Some(failed(true)));
    scene.look();
    assert_eq!(scene.standing(0).health, State::Unreachable);
    assert_eq!(scene.standing(0).flows, BackendState::Reset);
}

#[test]
fn with_our_own_cable_out_everybody_is_held_until_the_probes_have_had_their_time() {
    let mut scene = Scene::well();
    for number in 0..4 {
        let address = scene.service().backends[number].address;
        let down = Unresolved::InterfaceDown { address, interface: "eth0".into(), up: true };
        scene.resolve(number, Some(down));
    }
    assert!(scene.look()[0].contains("has no carrier"));
    for number in 0..4 {
        assert_eq!(scene.standing(number).because, Because::Held);
        assert_eq!(scene.standing(number).flows, BackendState::Forward);
    }
    // It is back, but the probes have failed meanwhile.
    for number in 0..4 {
        scene.resolve(number, None);
        scene.see(number, State::Unreachable);
    }
    scene.now += SECOND;
    scene.look();
    assert_eq!(scene.standing(3).because, Because::Held);
    (0..3).for_each(|number| scene.see(number, State::Healthy));
    scene.now += 10 * SECOND;
    assert_eq!(scene.look()[0], "web: backends are taken for what they are again");
    assert_eq!(scene.standing(3).because, Because::Ill);
    assert_eq!(scene.standing(3).flows, BackendState::Reset);
}

#[test]
fn what_clients_packets_say_goes_into_the_standing() {
    let mut scene = Scene::well();
    let suspect = Traffic { is_suspect: true, is_outlier: false };
    scene.traffic.insert(scene.identity(0), suspect);
    scene.traffic.insert(scene.identity(1), Traffic { is_suspect: false, is_outlier: true });
    assert_eq!(scene.look(), ["web-2: ejected: it completes far fewer handshakes than its pool"]);
    assert_eq!(scene.standing(0).flows, BackendState::Suspect);
    assert_eq!(scene.standing(0).condition(), Condition::Well);
    assert_eq!(scene.standing(1).condition(), Condition::Ill);
    assert_eq!(scene.standing(1).flows, BackendState::Forward);
}

#[test]
fn weights_grow_after_a_return_but_not_after_our_own_start() {
    let mut scene = Scene::well();
    scene.desired.services[0].slow_start = 10 * SECOND;
    scene.look();
    assert_eq!(scene.standing(0).weight, 100);
    scene.see(0, State::Unhealthy);
    scene.look();
    scene.now += 60 * SECOND;
    scene.look();
    scene.see(0, State::Healthy);
    let weights: Vec<u16> = (0..12)
        .map(|_| {
            scene.look();
            scene.now += SECOND;
            scene.standing(0).weight
        })
        .collect();
    assert_eq!(weights, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100, 100]);
    assert_eq!(scene.standing(1).weight, 100);

    let drain = Event::Drain { deadline: SECOND, again: false };
    scene.desired.services[0].backends[1].admin = Admin::Enabled.next(drain, Moment(0));
    scene.look();
    scene.desired.services[0].backends[1].admin = Admin::Enabled;
    scene.look();
    assert_eq!(scene.standing(1).weight, 10);
}

#[test]
fn everything_failing_at_once_is_our_fault_even_for_a_pool_of_one() {
    let mut scene = Scene::well();
    let mut other = sample::service("api", 1);
    other.backends[0].address = scene.service().backends[1].address;
    other.vip = "203.0.113.10:443".parse().expect("a VIP");
    other.health = Some(HealthCheck::default());
    scene.desired.services[0].backends.truncate(1);
    scene.desired.services.push(other.clone());
    let identity = other.identity(&other.backends[0]);
    let seen = |health| Probed {
        health,
        failing: health != State::Healthy,
        stale: false,
        fault: None,
        cause: None,
    };
    scene.probed.insert(identity, seen(State::Healthy));
    scene.look();
    scene.probed.insert(identity, seen(State::Unreachable));
    scene.look();
    let standing = |scene: &Scene| {
        scene.judge.standings().of(&other, &other.backends[0]).expect("looked at").because
    };
    assert_eq!(standing(&scene), Because::Ill, "the other service is well");
    scene.probed.insert(identity, seen(State::Healthy));
    scene.look();
    scene.probed.insert(identity, seen(State::Unreachable));
    scene.see(0, State::Unreachable);
    scene.look();
    assert_eq!(scene.standing(0).because, Because::Held);
    assert_eq!(standing(&scene), Because::Held);
}

#[test]
fn who_fell_longer_ago_than_a_round_of_probes_is_out_of_the_count() {
    let check = HealthCheck::default();
    let round = check.interval.mul_f64(1.1) + check.timeout;
    for (pause, expected) in [(round, Because::Held), (round + SECOND, Because::Ill)] {
        let mut scene = Scene::well();
        for number in 0..3 {
            scene.see(number, State::Unhealthy);
            scene.look();
            scene.now += pause / 2;
        }
        assert_eq!(scene.standing(2).because, expected);
    }
}

fn told(health: State, because: Because, fault: &str, cause: Option<&str>) -> Standing {
    Standing {
        health,
        fault: (!fault.is_empty()).then(|| fault.to_owned()),
        cause: cause.map(str::to_owned),
        because,
        flows: BackendState::Forward,
        weight: 100,
    }
}

#[test]
fn a_fall_is_told_at_once_and_its_cause_once_when_it_is_known() {
    let well = told(State::Healthy, Because::Healthy, "", None);
    let silent = told(State::Unreachable, Because::Ill, "no answer", None);
    let known = told(State::Unreachable, Because::Ill, "no answer; no VIP", Some("no VIP"));
    let not_made = told(State::Unreachable, Because::Ill, "no file", Some("no VIP"));
    let held = told(State::Unreachable, Because::Held, "no answer", None);
    let cases = [
        (&well, &silent, Some("healthy -> unreachable: no answer")),
        (&silent, &known, Some("unreachable: no VIP")),
        (&known, &known, None),
        (&known, &not_made, None),
        (&not_made, &known, None),
        (&well, &known, Some("healthy -> unreachable: no answer; no VIP")),
        (&held, &silent, Some("not healthy")),
        (&known, &well, Some("unreachable -> healthy")),
    ];
    for (before, now, expected) in cases {
        let said = turned(before, now).or_else(|| learned(before, now));
        assert_eq!(said.as_deref(), expected, "{before:?} {now:?}");
    }
}
