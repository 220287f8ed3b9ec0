use std::time::Duration;

use lb_common::service::BackendState;

use super::*;
use crate::{
    drain::Event,
    health::{Because, Probe},
    model::sample,
};

const THEN: Moment = Moment(1_000_000);

fn standing(health: State, fault: Option<&str>, cause: Option<&str>) -> Standing {
    let join = |fault: &str| match cause {
        Some(cause) => format!("{fault}; {cause}"),
        None => fault.to_owned(),
    };
    Standing {
        health,
        fault: fault.map(join),
        cause: cause.map(str::to_owned),
        because: if fault.is_some() { Because::Ill } else { Because::Healthy },
        flows: BackendState::Forward,
        weight: 100,
    }
}

fn seen(state: State, failure: Failure) -> Seen {
    let last = Some(Probe { at: THEN, duration: Duration::ZERO, outcome: Err(failure) });
    Seen { state, since: THEN, last, ..Seen::unknown(THEN) }
}

fn member<'f>(standing: &'f Standing, seen: Option<&'f Seen>) -> Member<'f> {
    let [is_suspect, is_outlier] = [false; 2];
    let (nat_ports, given_mac) = (None, None);
    Member { standing: Some(standing), seen, is_suspect, is_outlier, nat_ports, given_mac }
}

fn facts<'f>(pools: Vec<Pool<'f>>) -> Facts<'f> {
    let front = Front { name: "eth0", is_attached: true, fault: None };
    let [flows_used, flows_embryonic, flows] = [0; 3];
    let (interfaces, own, flow_capacity) = (vec![front], vec![], 1024);
    let losses = Vec::new();
    Facts { interfaces, pools, flows_used, flows_embryonic, flows, flow_capacity, losses, own }
}

/// Severity, about, says, mend.
fn told<'t>(troubles: &'t [Trouble]) -> Vec<(Severity, &'t str, &'t str, &'t str)> {
    let mend = |trouble: &'t Trouble| trouble.mend.as_deref().expect("a mend");
    troubles.iter().map(|t| (t.severity, &*t.about, &*t.says, mend(t))).collect()
}

#[test]
fn a_backend_without_the_vip_is_told_with_cause_and_date() {
    let service = sample::service("web", 2);
    let well = standing(State::Healthy, None, None);
    let cause = "10.0.0.12 is up, but takes no frames for 203.0.113.10: run the agent";
    let ill = standing(State::Unreachable, Some("no answer to SYN within 1s"), Some(cause));
    let silent = seen(State::Unreachable, Failure::NoAnswer(Duration::from_secs(1)));
    let members = vec![member(&well, None), member(&ill, Some(&silent))];
    let pool = Pool { service: &service, tier: Tier::Healthy, hold: None, narrow: None, members };
    let troubles = troubles(facts(vec![pool]));
    assert_eq!(
        told(&troubles),
        [(
            Severity::Fault,
            "backend web/web-2",
            "is unreachable: no answer to SYN within 1s",
            cause
        )]
    );
    assert_eq!(troubles[0].since.as_deref(), Some("1970-01-01T00:16:40Z"));
    assert_eq!(
        troubles[0].sentence(),
        format!("web/web-2: is unreachable: no answer to SYN within 1s: {cause}")
    );
}

#[test]
fn a_service_that_refuses_everybody_comes_first_and_says_who_could_serve() {
    let mut service = sample::service("web", 2);
    service.fail_open = false;
    let drain = Event::Drain { deadline: Duration::from_secs(60), again: false };
    let draining = Admin::Enabled.next(drain, THEN);
    let counted = Event::Counted { flows: 0, new_flows_total: 0 };
    service.backends[0].admin = draining.next(counted, THEN).next(counted, THEN);
    let refused = standing(State::Unhealthy, Some("GET /: status 503, expected 200"), None);
    let answer =
        Failure::Status { request: "GET /".to_owned(), status: 503, expected: "200".to_owned() };
    let probed = seen(State::Unhealthy, answer);
    let members = vec![member(&refused, Some(&probed)), member(&refused, Some(&probed))];
    let pool = Pool { service: &service, tier: Tier::Nobody, hold: None, narrow: None, members };
    let mut facts = facts(vec![pool]);
    facts.flows_used = 1000;
    let troubles = troubles(facts);
    let told = told(&troubles);
    assert_eq!(
        told[0],
        (
            Severity::Outage,
            "service web",
            "refuses new connections with a RST: no backend takes them",
            "mend the backends below, or `sluice backend enable web web-1`"
        )
    );
    assert_eq!((told[1].0, told[1].1), (Severity::Fault, "instance"));
    assert!(told[1].2.starts_with("the flow table is 98 % full"), "{told:?}");
    assert_eq!(
        told[2],
        (
            Severity::Fault,
            "backend web/web-2",
            "is unhealthy: GET /: status 503, expected 200",
            "look at the log of its service on 10.0.0.12:80"
        )
    );
    assert_eq!((told[3].0, told[3].1), (Severity::Notice, "backend web/web-1"));
    assert!(told[3].2.starts_with("is drain"), "{told:?}");
    assert!(told[3].2.ends_with(", and is unhealthy: GET /: status 503, expected 200"));
    assert!(told[3].3.ends_with("`sluice backend enable web web-1`"), "{told:?}");
}

#[test]
fn what_only_an_operator_can_want_is_a_notice() {
    let mut service = sample::service("web", 3);
    service.backends[0].admin = Admin::Disabled;
    service.backends[1].weight = 0;
    let well = standing(State::Healthy, None, None);
    let members = (0..3).map(|_| member(&well, None)).collect();
    let pool = Pool { service: &service, tier: Tier::Healthy, hold: None, narrow: None, members };
    let troubles = troubles(facts(vec![pool]));
    let says: Vec<&str> = troubles.iter().map(|trouble| &*trouble.says).collect();
    assert_eq!(says, ["is disabled", "has weight 0"]);
    assert!(troubles.iter().all(|trouble| trouble.severity == Severity::Notice));
}

#[test]
fn nobody_who_answers_is_an_outage_and_a_probe_that_is_not_made_a_fault() {
    let service = sample::service("web", 2);
    let silent = standing(State::Unreachable, Some("no answer to SYN within 1s"), None);
    let unknown = standing(State::Unknown, None, None);
    let unmade = seen(State::Unknown, Failure::NotMade("no IPv6 address: add one".to_owned()));
    let of = |first: &Standing, unmade: Option<&Seen>| {
        let members = vec![member(first, unmade), member(&silent, None)];
        let tier = Tier::FailOpen;
        let troubles = troubles(facts(vec![Pool {
            service: &service,
            tier,
            hold: None,
            narrow: None,
            members,
        }]));
        let told = |t: &Trouble| (t.severity, t.kind);
        troubles.iter().map(told).collect::<Vec<_>>()
    };
    let down = (Severity::Fault, TroubleKind::BackendDown);
    assert_eq!(of(&silent, None), [(Severity::Outage, TroubleKind::Stopgap), down, down]);
    let unprobed = (Severity::Fault, TroubleKind::Unprobed);
    let some = [(Severity::Fault, TroubleKind::Stopgap), unprobed, down];
    assert_eq!(of(&unknown, Some(&unmade)), some);
}

#[test]
fn interfaces_and_pools_say_what_is_wrong() {
    let service = sample::service("web", 1);
    let well = standing(State::Healthy, None, None);
    let tiers = [
        (Tier::Healthy, None),
        (Tier::Backup, Some("backups alone")),
        (Tier::FailOpen, Some("fail_open")),
        (Tier::Draining, Some("nobody enabled")),
    ];
    for (tier, expected) in tiers {
        let members = vec![member(&well, None)];
        let pool = Pool { service: &service, tier, hold: None, narrow: None, members };
        let troubles = troubles(facts(vec![pool]));
        let says = troubles.first().map(|trouble| trouble.says.clone()).unwrap_or_default();
        assert_eq!(troubles.len(), usize::from(expected.is_some()), "{troubles:?}");
        assert!(says.contains(expected.unwrap_or_default()), "{troubles:?}");
    }
    let mut facts = facts(Vec::new());
    facts.interfaces[0].is_attached = false;
    facts.interfaces[0].fault = Some("is down: bring it up with `ip link set`");
    let troubles = troubles(facts);
    assert!(troubles.iter().all(|trouble| trouble.severity == Severity::Outage));
    assert_eq!(troubles[1].sentence(), "eth0 is down: bring it up with `ip link set eth0 up`");
}

#[test]
fn a_trouble_is_dated_by_the_look_that_saw_it_first() {
    let trouble = |about: &str| Trouble {
        about: about.to_owned(),
        ..of_instance(Severity::Fault, TroubleKind::Note, "wrong".to_owned(), None)
    };
    let mut onsets = Onsets::default();
    onsets.look(&[trouble("a")], Moment(1000));
    onsets.look(&[trouble("a"), trouble("b")], Moment(2000));
    onsets.look(&[trouble("a"), trouble("b")], Moment(3000));
    let mut now = [trouble("a"), trouble("b"), trouble("c")];
    onsets.date(&mut now, Moment(4000));
    let since = now.map(|trouble| trouble.since);
    let at = |seconds: u32| Some(format!("1970-01-01T00:00:0{seconds}Z"));
    assert_eq!(since, [None, at(2), at(4)]);
    // It went, and came again.
    onsets.look(&[], Moment(5000));
    onsets.look(&[trouble("a")], Moment(6000));
    let mut again = [trouble("a")];
    onsets.date(&mut again, Moment(7000));
    assert_eq!(again[0].since, at(6));
}

#[test]
fn ports_that_run_short_are_told_before_they_run_out() {
    let service = sample::service("web", 1);
    let well = standing(State::Healthy, None, None);
    let told_of = |used, leaving| {
        let mut service = service.clone();
        service.backends[0].leaving = leaving;
        let nat_ports = Some(NatPorts { used, capacity: 1000 });
        let members = vec![Member { nat_ports, ..member(&well, None) }];
        let pool =
            Pool { service: &service, tier: Tier::Healthy, hold: None, narrow: None, members };
        let troubles = troubles(facts(vec![pool]));
        troubles.into_iter().map(|trouble| trouble.says).collect::<String>()
    };
    assert_eq!(told_of(800, false), "");
    assert!(told_of(801, false).starts_with("801 of 1000 nat_ports towards it are taken"));
    assert_eq!(told_of(801, true), "");
}

#[test]
fn a_flood_of_syns_is_told_from_a_table_that_is_too_small() {
    let told = |flows_used, flows_embryonic, flows| {
        let facts = Facts { flows_used, flows_embryonic, flows, ..facts(Vec::new()) };
        let troubles = troubles(facts);
        assert!(troubles.len() < 2, "{troubles:?}");
        let trouble = troubles.into_iter().next()?;
        assert_eq!(trouble.severity, Severity::Fault);
        assert!(trouble.mend.expect("a mend").contains("`sluice flows --count"));
        Some((trouble.kind, trouble.says))
    };
    assert_eq!(told(768, 100, 768), None);
    let (kind, says) = told(800, 100, 800).expect("crowded");
    assert_eq!(kind, TroubleKind::FlowTable);
    assert!(says.starts_with("the flow table is 78 % full; new connections still work"), "{says}");
    assert_eq!(told(300, 128, 200), None, "what a table this size is made for");
    assert_eq!(told(300, 149, 300), None, "most are answered");
    let (kind, says) = told(300, 151, 300).expect("flooded");
    assert_eq!(kind, TroubleKind::Flood);
    assert!(says.starts_with("151 of 300 flows are SYNs that nobody has followed up"), "{says}");
    let service = sample::service("web", 1);
    let well = standing(State::Healthy, None, None);
    let suspected = |flows_used, flows_embryonic| {
        let members = vec![Member { is_suspect: true, ..member(&well, None) }];
        let pool =
            Pool { service: &service, tier: Tier::Healthy, hold: None, narrow: None, members };
        let flows = flows_used;
        let troubles = troubles(Facts { flows_used, flows_embryonic, flows, ..facts(vec![pool]) });
        assert_eq!(troubles.last().map(|last| last.kind), Some(TroubleKind::BackendSuspect));
        let kinds: Vec<_> = troubles.iter().map(|trouble| trouble.kind).collect();
        (kinds[0], troubles.last().and_then(|last| last.mend.clone()).expect("a mend"))
    };
    for (used, embryonic, kind, first) in [
        (300, 0, TroubleKind::BackendSuspect, "look at its firewall"),
        (300, 300, TroubleKind::Flood, "forged SYNs look the same"),
        (900, 0, TroubleKind::FlowTable, "handshakes of flows without a place are not seen"),
    ] {
        let (told, mend) = suspected(used, embryonic);
        assert!(told == kind && mend.starts_with(first), "{told:?}: {mend}");
    }
    // Full of them: the cause is told, not the effect as well. Translated flows have two entries.
    let (kind, says) = told(1000, 480, 500).expect("flooded");
    assert_eq!(kind, TroubleKind::Flood);
    assert!(says.contains("the flow table is 98 % full"), "{says}");
}

#[test]
fn a_full_table_names_who_is_at_risk_and_what_costs_least_first() {
    let told = |forwardings: &[Forwarding], flow_capacity: u32| {
        let service = |forwarding: &Forwarding| {
            let forwarding = *forwarding;
            Service { forwarding, ..sample::service("web", 0) }
        };
        let services: Vec<_> = forwardings.iter().map(service).collect();
        let pool = |service| Pool {
            service,
            tier: Tier::Healthy,
            hold: None,
            narrow: None,
            members: Vec::new(),
        };
        let flows_used = flow_capacity - 1;
        let pools = services.iter().map(pool).collect();
        let found = troubles(Facts { flows_used, flow_capacity, ..facts(pools) });
        let trouble = found.into_iter().next().expect("crowded");
        (trouble.says, trouble.mend.expect("a mend"))
    };
    let by_slot = "; new connections still work, but those that find no place break when backends \
                   change";
    for (forwardings, risk) in [
        (&[][..], by_slot.to_owned()),
        (&[Forwarding::L2, Forwarding::Ipip], by_slot.to_owned()),
        (&[Forwarding::L2, Forwarding::Nat], format!("{by_slot}, or, with nat, are refused")),
        (&[Forwarding::Nat], "; new connections that find no place are refused".to_owned()),
    ] {
        let (says, _) = told(forwardings, 1024);
        assert!(says.ends_with(&format!("% full{risk}")), "{forwardings:?}: {says}");
    }
    let (_, mend) = told(&[], 1024);
    let steps: Vec<&str> = mend.split("; ").collect();
    assert!(steps[0].starts_with("`sluice flows --count`"), "{steps:?}");
    assert!(steps[1].starts_with("shorten the idle_timeout"), "{steps:?}");
    assert!(steps[2].contains("`flow_capacity = 2048`"), "{steps:?}");
    assert!(
        steps[2].contains("`sluice detach` stops forwarding and breaks connections"),
        "{steps:?}"
    );
    assert_eq!(steps.len(), 3, "{steps:?}");
    // No file may ask for more.
    let (_, mend) = told(&[], 1 << 28);
    assert!(!mend.contains("flow_capacity"), "{mend}");
}

#[test]
fn silence_behind_a_mac_that_somebody_has_set_has_that_for_its_first_cause() {
    let service = sample::service("web", 2);
    let given = "its MAC was set by hand: `ip neigh del 10.0.0.12 dev eth0`";
    let mend = |health| {
        let ill = standing(health, Some("no answer to SYN within 1s"), Some("it is down"));
        let mac = Some(given.to_owned());
        let members =
            vec![Member { given_mac: mac.clone(), ..member(&ill, None) }, member(&ill, None)];
        let pool =
            Pool { service: &service, tier: Tier::Healthy, hold: None, narrow: None, members };
        let troubles = troubles(facts(vec![pool]));
        troubles.into_iter().filter_map(|trouble| trouble.mend).collect::<Vec<_>>()
    };
    assert_eq!(mend(State::Unreachable), [given, "it is down"]);
    assert_eq!(mend(State::Unhealthy), ["it is down"; 2], "it answers");
}
