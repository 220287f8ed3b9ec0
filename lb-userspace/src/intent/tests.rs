use std::time::Duration;

use lb_common::forward::Forwarding;

use super::*;
use crate::{
    choice::Condition,
    config::{BackendSpec, HealthSpec, ServiceSpec},
};

mod kept_on_disk;
mod nat;

const FILE: &str = r#"
[dataplane]
interfaces = ["eth0"]
[[service]]
name = "api"
vip = "203.0.113.20:443"
forwarding = "ipip"
backend = [{ name = "host-1", address = "10.0.0.1" }, { name = "host-2", address = "10.0.0.2" }]
[[service]]
name = "web"
vip = "203.0.113.10:80"
drain_deadline = "60s"
backend = [
  { name = "host-1", address = "10.0.0.1" },
  { name = "host-2", address = "10.0.0.2", weight = 50 },
]
"#;

fn declared(text: &str) -> Declared {
    Declared::parse("lb.toml", text).expect("valid")
}

fn intent() -> Intent {
    Intent::new(declared(FILE))
}

fn at(seconds: u64) -> Moment {
    Moment(seconds * 1000)
}

fn of(service: &str, backend: &str) -> Target {
    Target { service: Some(service.to_owned()), backend: backend.to_owned() }
}

fn drain(service: &str, backend: &str) -> Change {
    Change::Drain { target: of(service, backend), deadline_ms: None }
}

fn remove(service: &str, backend: &str) -> Change {
    Change::RemoveBackend { target: of(service, backend) }
}

fn add(service: &str, name: &str, address: &str) -> Change {
    let backend = BackendSpec {
        name: name.to_owned(),
        address: address.to_owned(),
        ..BackendSpec::default()
    };
    Change::AddBackend { service: service.to_owned(), backend }
}

fn ask(intent: &Intent, changes: &[Change], force: bool) -> Result<Intent, Refusal> {
    intent.change(&Transaction { changes: changes.to_vec(), force }, |_, _| Condition::Well, at(0))
}

#[track_caller]
fn done(intent: &Intent, changes: &[Change]) -> Intent {
    ask(intent, changes, false).expect("allowed")
}

/// Backends of all services: service/name, with what is special about them.
fn picture(intent: &Intent) -> Vec<String> {
    let desired = intent.desired();
    let all = desired.services.iter().flat_map(|service| {
        service.backends.iter().map(move |backend| {
            let mut text = format!("{}/{}", service.name, backend.name);
            if backend.admin != Admin::Enabled {
                text += &format!(" {}", backend.admin.name());
            }
            if backend.leaving {
                text += " leaving";
            }
            text
        })
    });
    all.collect()
}

const ALL: [&str; 4] = ["api/host-1", "api/host-2", "web/host-1", "web/host-2"];

/// All backends have these counts.
fn count(active: u32, entries: u32) -> impl Fn(Identity) -> Option<Count> {
    move |_| Some(Count { active, entries, new_flows_total: 5 })
}

#[test]
fn a_file_alone_is_what_is_desired() {
    assert_eq!(intent().desired(), declared(FILE).desired);
    assert_eq!(picture(&intent()), ALL);
}

#[test]
fn a_drain_begins_and_is_ended_by_the_count() {
    let mut intent = done(&intent(), &[drain("web", "host-1")]);
    assert_eq!(intent.generation(), 2);
    assert_eq!(picture(&intent)[2], "web/host-1 draining");
    assert!(intent.waits());
    assert_eq!(intent.counted(count(3, 3), at(0)), Progress::States);
    assert_eq!(intent.counted(count(2, 2), at(1)), Progress::Figures);
    assert_eq!(intent.counted(count(2, 2), at(2)), Progress::None);
    assert_eq!(intent.counted(count(0, 1), at(3)), Progress::States);
    assert_eq!(picture(&intent)[2], "web/host-1 drained");
    assert!(!intent.waits());
    let enabled = done(&intent, &[Change::Enable { target: of("web", "host-1") }]);
    assert_eq!(picture(&enabled), ALL);
}

#[test]
fn a_whole_server_is_drained_everywhere_at_once() {
    let target = Target { service: None, backend: "host-1".to_owned() };
    let drained = done(&intent(), &[Change::Drain { target, deadline_ms: None }]);
    let expected = ["api/host-1 draining", "api/host-2", "web/host-1 draining", "web/host-2"];
    assert_eq!(picture(&drained), expected);
}

#[test]
fn each_change_is_made_once() {
    let changes = [
        drain("web", "host-1"),
        Change::Weight { target: of("web", "host-2"), weight: 7 },
        add("web", "host-3", "10.0.0.3"),
        Change::AddService {
            service: Box::new(ServiceSpec {
                name: "new".into(),
                vip: "203.0.113.30:80".into(),
                ..ServiceSpec::default()
            }),
        },
    ];
    let once = done(&intent(), &changes);
    assert_eq!(once.generation(), 2);
    assert_eq!(done(&once, &changes), once);
    assert_eq!(picture(&once)[4], "web/host-3");
    assert_eq!(once.desired().service("new").expect("it is there").backends, []);
    assert_eq!(once.declared_weight("web", "host-2"), Some(50));
    assert_eq!(once.declared_weight("web", "host-3"), None);
}

#[test]
fn too_few_backends_are_refused_unless_forced() {
    let both = [drain("web", "host-1"), drain("web", "host-2")];
    let refused = ask(&intent(), &both, false).expect_err("nobody would be left");
    assert_eq!(refused, Refusal::TooFew { service: "web".into(), left: 0, wanted: 1 });
    assert!(ask(&intent(), &both, true).is_ok());

    let one = done(&intent(), &[drain("web", "host-1")]);
    let last: [Change; 4] = [
        remove("web", "host-2"),
        Change::Disable { target: of("web", "host-2") },
        Change::Weight { target: of("web", "host-2"), weight: 0 },
        drain("web", "host-2"),
    ];
    for change in last {
        let refused = ask(&one, std::slice::from_ref(&change), false);
        assert!(matches!(refused, Err(Refusal::TooFew { .. })), "{change:?}");
    }
    // What takes from nobody is allowed, however few there are.
    done(&one, &[Change::Disable { target: of("web", "host-1") }]);
    // One that is ill is no help: the other is the last one.
    let transaction = Transaction { changes: vec![drain("web", "host-1")], force: false };
    let ill = |_: &Service, backend: &Backend| match &*backend.name {
        "host-2" => Condition::Ill,
        _ => Condition::Well,
    };
    let ill = intent().change(&transaction, ill, at(0));
    assert!(matches!(ill, Err(Refusal::TooFew { left: 0, .. })), "{ill:?}");
}

#[test]
fn a_transaction_is_made_whole_or_not_at_all() {
    let changes = [drain("web", "host-1"), drain("web", "nobody")];
    let refused = ask(&intent(), &changes, false).expect_err("nobody is not there");
    assert_eq!(
        refused.to_string(),
        "no backend \"nobody\" in service \"web\"; there are: host-1, host-2"
    );
    for (change, expected) in [
        (drain("wbe", "host-1"), "no service \"wbe\"; there are: api, web"),
        (Change::RemoveService { service: "x".into() }, "no service \"x\"; there are: api, web"),
        (
            Change::Enable { target: Target { service: None, backend: "x".into() } },
            "no service has a backend \"x\"",
        ),
        (
            add("web", "host-1", "10.0.0.9"),
            "backend \"host-1\" of service \"web\" is already there: give each a name of its own",
        ),
        (
            Change::Weight { target: of("web", "host-1"), weight: 1001 },
            "weight 1001: it goes from 0 to 1000",
        ),
    ] {
        assert_eq!(ask(&intent(), &[change], false).expect_err(expected).to_string(), expected);
    }
}

#[test]
fn what_is_removed_drains_and_then_is_gone() {
    let mut intent = done(&intent(), &[remove("web", "host-1")]);
    let expected = ["api/host-1", "api/host-2", "web/host-2", "web/host-1 draining leaving"];
    assert_eq!(picture(&intent), expected);
    let Admin::Draining(drain) = intent.desired().services[1].backends[1].admin else { panic!() };
    assert_eq!(drain.deadline, at(60), "the service's own");
    intent.counted(count(1, 1), at(1));
    assert_eq!(picture(&intent), expected);
    // Drained, but an entry still names its index.
    intent.counted(count(0, 1), at(2));
    assert_eq!(picture(&intent)[3], "web/host-1 drained leaving");
    assert_eq!(intent.counted(count(0, 0), at(3)), Progress::States);
    assert_eq!(picture(&intent), ["api/host-1", "api/host-2", "web/host-2"]);
    // The file still has it: it stays away.
    let restarted = intent.declare(declared(FILE), Take::Below, at(9));
    assert_eq!(picture(&restarted).len(), 3);
}

#[test]
fn what_is_removed_by_force_is_reset() {
    let intent = ask(&intent(), &[remove("web", "host-1")], true).expect("forced");
    assert_eq!(picture(&intent)[3], "web/host-1 disabled leaving");
}

#[test]
fn what_comes_back_stays() {
    let removed = done(&intent(), &[remove("web", "host-1")]);
    let back = done(&removed, &[add("web", "host-1", "10.0.0.1")]);
    assert_eq!(picture(&back), ALL);
    // The same server under another name is the same one.
    let renamed = done(&removed, &[add("web", "host-9", "10.0.0.1")]);
    assert_eq!(picture(&renamed)[2..], ["web/host-2", "web/host-9"]);
    // Another server under the same name is not.
    let moved = done(&removed, &[add("web", "host-1", "10.0.0.9")]);
    let expected = ["web/host-1", "web/host-2", "web/host-1 draining leaving"];
    assert_eq!(picture(&moved)[2..], expected);
}

#[test]
fn a_service_goes_with_its_last_backend() {
    let mut intent = done(&intent(), &[Change::RemoveService { service: "web".into() }]);
    let desired = intent.desired();
    assert!(desired.service("web").is_none());
    assert!(desired.services[1].leaving && desired.services[1].backends.len() == 2);
    intent.counted(count(0, 0), at(1));
    assert_eq!(picture(&intent), ALL[..2]);
    assert_eq!(intent.desired().services.len(), 1);
}

const OTHER: &str = r#"
[dataplane]
interfaces = ["eth0"]
[[service]]
name = "web"
vip = "203.0.113.10:80"
backend = [
  { name = "host-2", address = "10.0.0.2", weight = 30 },
  { name = "host-3", address = "10.0.0.3" },
]
"#;

#[test]
fn a_file_that_is_applied_rules_but_for_who_is_drained() {
    let said = done(
        &intent(),
        &[
            Change::Weight { target: of("web", "host-2"), weight: 99 },
            add("web", "host-8", "10.0.0.8"),
            drain("web", "host-1"),
        ],
    );
    let said = done(&said, &[Change::Disable { target: of("api", "host-1") }]);
    let same = said.declare(declared(FILE), Take::Apply, at(5));
    let expected = [
        "api/host-1 disabled",
        "api/host-2",
        "web/host-1 draining",
        "web/host-2",
        "web/host-8 draining leaving",
    ];
    assert_eq!(picture(&same), expected);
    assert_eq!(same.desired().services[1].backends[1].weight, 50);
    assert_eq!(same.declare(declared(FILE), Take::Apply, at(5)), same, "twice changes nothing");

    let other = intent().declare(declared(OTHER), Take::Apply, at(5));
    let expected = [
        "web/host-2",
        "web/host-3",
        "web/host-1 draining leaving",
        "api/host-1 draining leaving",
        "api/host-2 draining leaving",
    ];
    assert_eq!(
        picture(&other).iter().collect::<BTreeSet<_>>(),
        expected.map(String::from).iter().collect()
    );
    let back = other.declare(declared(FILE), Take::Apply, at(6));
    assert_eq!(picture(&back).len(), 5, "host-3 leaves");
}

#[test]
fn a_changed_file_goes_below_what_was_said() {
    let said = done(
        &intent(),
        &[
            Change::Weight { target: of("web", "host-2"), weight: 99 },
            add("web", "host-8", "10.0.0.8"),
        ],
    );
    let said = done(&said, &[remove("web", "host-1")]);
    let below = said.declare(declared(OTHER), Take::Below, at(5));
    let web = below.desired().service("web").expect("it is there").clone();
    let names: Vec<&str> = web.backends.iter().map(|backend| &*backend.name).collect();
    assert_eq!(names, ["host-2", "host-3", "host-8", "host-1"]);
    assert_eq!(web.backends[0].weight, 99);
    assert!(web.backends[3].leaving);
}

#[test]
fn flows_are_not_ended_by_another_method_unless_that_is_meant() {
    let before = intent().desired();
    let service = before.services[0].clone();
    let with = |forwarding| {
        let mut after = before.clone();
        after.services[0].forwarding = forwarding;
        after
    };
    let tell = |before: &Desired, after: &Desired, flows| {
        translation_stays(before, after, |of| if of.name == service.name { flows } else { 9 })
    };
    let [l2, ipip, nat] = [Forwarding::L2, Forwarding::Ipip, Forwarding::Nat].map(with);
    for (before, after) in [(&l2, &nat), (&ipip, &nat), (&nat, &l2), (&nat, &ipip)] {
        let refused = tell(before, after, 3).expect_err("there are flows");
        assert!(matches!(&refused, Refusal::Translation { flows: 3, .. }), "{refused}");
        assert_eq!(tell(before, after, 0), Ok(()));
    }
    for (before, after) in [(&l2, &ipip), (&ipip, &l2), (&nat, &nat)] {
        assert_eq!(tell(before, after, 3), Ok(()));
    }
    let text = tell(&l2, &nat, 3).expect_err("as above").to_string();
    let expected =
        "l2 -> nat of service \"api\" would reset its 3 flows, which have no translation";
    assert!(text.contains(expected), "{text}");
}
