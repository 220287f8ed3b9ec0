//! What is wrong with an instance, told from what was seen of it; and since when. No I/O.

mod facts;

use std::collections::BTreeMap;

use crate::{
    choice::Tier,
    control::api::{Severity, Trouble, TroubleKind},
    doctor::{Cause, Met, cause},
    drain::{Admin, Moment},
    health::{Seen, Standing, State},
    model::{Backend, Service},
};

/// Share of the flow table that is more than it is made for.
const CROWDED: f64 = 0.75;

/// What is asked of an instance before it is called well.
pub(super) struct Facts<'f> {
    pub interfaces: Vec<Front<'f>>,
    pub pools: Vec<Pool<'f>>,
    pub flows_used: u32,
    pub flow_capacity: u32,
    /// What went wrong in the daemon itself.
    pub own: Vec<Trouble>,
}

/// An interface on which clients' frames arrive.
pub(super) struct Front<'f> {
    pub name: &'f str,
    pub is_attached: bool,
    /// Why it carries no frames, and the mend; `None`: it does, or does not exist.
    pub fault: Option<&'static str>,
}

/// A service with all that is seen of it.
pub(super) struct Pool<'f> {
    pub service: &'f Service,
    pub tier: Tier,
    /// Why its last good set is held, if it is.
    pub hold: Option<String>,
    /// In the order of the service's.
    pub members: Vec<Member<'f>>,
}

/// What is seen of a backend.
pub(super) struct Member<'f> {
    pub standing: Option<&'f Standing>,
    pub seen: Option<&'f Seen>,
    pub is_suspect: bool,
    pub is_outlier: bool,
}

/// All that is wrong, the worst first; `since` only where what was seen tells it.
pub(super) fn troubles(facts: Facts<'_>) -> Vec<Trouble> {
    let mut troubles: Vec<Trouble> = facts.interfaces.iter().flat_map(of_interface).collect();
    troubles.extend(facts.own);
    troubles.extend(facts.pools.iter().flat_map(of_pool));
    let (used, capacity) = (f64::from(facts.flows_used), f64::from(facts.flow_capacity));
    if used > capacity * CROWDED {
        let share = used / capacity * 100.0;
        troubles.push(of_instance(
            Severity::Fault,
            TroubleKind::FlowTable,
            format!(
                "the flow table is {share:.0} % full; flows that find no place break if backends \
                 change meanwhile"
            ),
            Some("raise flow_capacity; `sluice flows` shows whose they are".to_owned()),
        ));
    }
    // Stable: what was found first stays first among its like.
    troubles.sort_by_key(|trouble| trouble.severity);
    troubles
}

/// About the instance itself.
pub(super) fn of_instance(
    severity: Severity,
    kind: TroubleKind,
    says: String,
    mend: Option<String>,
) -> Trouble {
    Trouble { severity, kind, about: "instance".to_owned(), says, mend, since: None }
}

fn of_interface(front: &Front<'_>) -> Vec<Trouble> {
    let about = |kind, says: &str, mend: String| Trouble {
        severity: Severity::Outage,
        kind,
        about: format!("interface {}", front.name),
        says: says.to_owned(),
        mend: Some(mend),
        since: None,
    };
    let mut troubles = Vec::new();
    if !front.is_attached {
        troubles.push(about(
            TroubleKind::NotAttached,
            "does not run our program, so what arrives there is not balanced",
            format!(
                "see `ip link show {}` whether it is there, and whose program it runs",
                front.name
            ),
        ));
    }
    if let Some((says, mend)) = front.fault.and_then(|fault| fault.split_once(": ")) {
        troubles.push(about(TroubleKind::LinkDown, says, mend.to_owned()));
    }
    troubles
}

fn of_pool(pool: &Pool<'_>) -> Vec<Trouble> {
    let service = pool.service;
    let about = |severity, kind, says: String, mend: Option<String>| Trouble {
        severity,
        kind,
        about: format!("service {}", service.name),
        says,
        mend,
        since: None,
    };
    let mut troubles = Vec::new();
    if let Some(why) = &pool.hold {
        troubles.push(about(
            Severity::Fault,
            TroubleKind::Held,
            format!("is held, {why}: those that were well are kept as they are"),
            Some(
                "look at this host first: its cable, its routes, `sluice doctor`; if the backends \
                 are really down, mend them"
                    .to_owned(),
            ),
        ));
    }
    let stopgap = |says: &str| {
        about(Severity::Fault, TroubleKind::Stopgap, says.to_owned(), Some(mend_of_pool(service)))
    };
    match pool.tier {
        Tier::Healthy => {}
        _ if service.leaving => {}
        Tier::Backup => troubles.push(stopgap("gives new connections to its backups alone")),
        Tier::FailOpen => troubles.push(stopgap(
            "has nobody healthy: new connections go to all that are enabled (fail_open)",
        )),
        Tier::Draining => troubles
            .push(stopgap("has nobody enabled: new connections go to those that are draining")),
        Tier::Nobody => troubles.push(about(
            Severity::Outage,
            TroubleKind::Refusing,
            "refuses new connections with a RST: no backend takes them".to_owned(),
            Some(mend_of_pool(service)),
        )),
    }
    for (backend, member) in service.backends.iter().zip(&pool.members) {
        troubles.extend(of_backend(service, backend, member));
    }
    troubles
}

/// What gives a service healthy backends again.
fn mend_of_pool(service: &Service) -> String {
    let out = service.backends.iter().find(|backend| backend.admin != Admin::Enabled);
    let is_some_enabled =
        service.backends.iter().any(|backend| backend.admin == Admin::Enabled && !backend.leaving);
    match out.filter(|backend| !backend.leaving) {
        _ if service.backends.is_empty() => {
            format!("add one: `sluice backend add {} NAME ADDRESS`", service.name)
        }
        Some(out) if is_some_enabled => format!(
            "mend the backends below, or `sluice backend enable {} {}`",
            service.name, out.name
        ),
        Some(out) => format!("`sluice backend enable {} {}`", service.name, out.name),
        None => "mend the backends below".to_owned(),
    }
}

fn of_backend(service: &Service, backend: &Backend, member: &Member<'_>) -> Option<Trouble> {
    if backend.leaving {
        return None;
    }
    let about =
        |severity, kind, says: String, mend: Option<String>, since: Option<Moment>| Trouble {
            severity,
            kind,
            about: format!("backend {}/{}", service.name, backend.name),
            says,
            mend,
            since: since.map(|moment| moment.to_string()),
        };
    let is_ill =
        |standing: &&Standing| matches!(standing.health, State::Unhealthy | State::Unreachable);
    let ill = member.standing.filter(is_ill);
    if let Some((mut says, since)) = taken_out(backend) {
        if let Some(ill) = ill {
            says = format!("{says}, and {}", illness(ill));
        }
        let mend = format!(
            "when it shall serve again: `sluice backend {}`",
            match backend.admin {
                Admin::Enabled => format!("weight {} {} 100", service.name, backend.name),
                _ => format!("enable {} {}", service.name, backend.name),
            }
        );
        return Some(about(Severity::Notice, TroubleKind::TakenOut, says, Some(mend), since));
    }
    if let Some(ill) = ill {
        let since = member.seen.filter(|seen| seen.state == ill.health).map(|seen| seen.since);
        let mend = mend_of_backend(service, backend, ill, member.seen);
        let says = illness(ill);
        return Some(about(Severity::Fault, TroubleKind::BackendDown, says, Some(mend), since));
    }
    let says = match (member.is_suspect, member.is_outlier) {
        (true, _) => "does not answer clients' SYNs, though its probes are well",
        (false, true) => "completes far fewer handshakes than its pool",
        (false, false) => return None,
    };
    let mend = format!(
        "look at its firewall, its backlog and its load; `sluice backend drain {} {}` keeps new \
         connections away",
        service.name, backend.name
    );
    let kind = TroubleKind::BackendSuspect;
    Some(about(Severity::Fault, kind, says.to_owned(), Some(mend), None))
}

/// How an operator keeps a backend from new connections, and since when, if he does.
fn taken_out(backend: &Backend) -> Option<(String, Option<Moment>)> {
    match backend.admin {
        Admin::Draining(drain) => Some((
            format!(
                "is draining: {} flows left, the rest is reset at {}",
                drain.flows_left, drain.deadline
            ),
            Some(drain.since),
        )),
        Admin::Drained(drained) => Some(("is drained".to_owned(), Some(drained.until))),
        Admin::Disabled => Some(("is disabled".to_owned(), None)),
        Admin::Enabled if backend.weight == 0 => Some(("has weight 0".to_owned(), None)),
        Admin::Enabled => None,
    }
}

/// What is wrong with it, without the cause, which comes with the mend.
fn illness(standing: &Standing) -> String {
    let fault = standing.fault.as_deref().unwrap_or("it has not answered yet");
    let fault = match &standing.cause {
        Some(cause) => fault.strip_suffix(&format!("; {cause}")).unwrap_or(fault),
        None => fault,
    };
    format!("is {}: {fault}", standing.health.name())
}

fn mend_of_backend(
    service: &Service,
    backend: &Backend,
    standing: &Standing,
    seen: Option<&Seen>,
) -> String {
    const LOOK: &str = "`sluice doctor` compares the ways to it";
    if let Some(cause) = &standing.cause {
        return cause.clone();
    }
    let (vip, own) = service.identity(backend);
    let met = seen.and_then(|seen| seen.last.as_ref()).map(|probe| Met::by(&probe.outcome));
    // Asked by way of the VIP, silence and refusal have causes that only a look elsewhere tells.
    let found = met.filter(|met| matches!(met, Met::Ill | Met::Narrow | Met::NoWay));
    match found.and_then(|met| cause(None, met)) {
        Some(Cause::AnswersWrongly) => format!("look at the log of its service on {own}"),
        Some(found) => found.mend(service.forwarding, vip, own).unwrap_or_else(|| LOOK.to_owned()),
        None => LOOK.to_owned(),
    }
}

/// Since when troubles are there that don't tell it themselves.
#[derive(Debug, Default)]
pub(super) struct Onsets {
    /// `None`: since before the first look.
    known: BTreeMap<(TroubleKind, String), Option<Moment>>,
    has_looked: bool,
}

impl Onsets {
    /// Takes in what is wrong now; what is no longer, is forgotten.
    pub fn look(&mut self, troubles: &[Trouble], now: Moment) {
        let onset = self.has_looked.then_some(now);
        let before = std::mem::take(&mut self.known);
        for trouble in troubles {
            let key = (trouble.kind, trouble.about.clone());
            let since = before.get(&key).copied().unwrap_or(onset);
            self.known.insert(key, since);
        }
        self.has_looked = true;
    }

    /// Dates troubles; what has come since the last look came now.
    pub fn date(&self, troubles: &mut [Trouble], now: Moment) {
        for trouble in troubles.iter_mut().filter(|trouble| trouble.since.is_none()) {
            let key = (trouble.kind, trouble.about.clone());
            let since = self.known.get(&key).copied().unwrap_or(self.has_looked.then_some(now));
            trouble.since = since.map(|moment| moment.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb_common::service::BackendState;

    use super::*;
    use crate::{
        drain::Event,
        health::{Because, Failure, Probe},
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
        Member { standing: Some(standing), seen, is_suspect: false, is_outlier: false }
    }

    fn facts<'f>(pools: Vec<Pool<'f>>) -> Facts<'f> {
        let front = Front { name: "eth0", is_attached: true, fault: None };
        Facts { interfaces: vec![front], pools, flows_used: 0, flow_capacity: 1024, own: vec![] }
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
        let pool = Pool { service: &service, tier: Tier::Healthy, hold: None, members };
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
        let answer = Failure::Status {
            request: "GET /".to_owned(),
            status: 503,
            expected: "200".to_owned(),
        };
        let probed = seen(State::Unhealthy, answer);
        let members = vec![member(&refused, Some(&probed)), member(&refused, Some(&probed))];
        let pool = Pool { service: &service, tier: Tier::Nobody, hold: None, members };
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
        assert_eq!(
            told[1],
            (
                Severity::Fault,
                "backend web/web-2",
                "is unhealthy: GET /: status 503, expected 200",
                "look at the log of its service on 10.0.0.12:80"
            )
        );
        assert_eq!((told[2].0, told[2].1), (Severity::Fault, "instance"));
        assert!(told[2].2.starts_with("the flow table is 98 % full"), "{told:?}");
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
        let pool = Pool { service: &service, tier: Tier::Healthy, hold: None, members };
        let troubles = troubles(facts(vec![pool]));
        let says: Vec<&str> = troubles.iter().map(|trouble| &*trouble.says).collect();
        assert_eq!(says, ["is disabled", "has weight 0"]);
        assert!(troubles.iter().all(|trouble| trouble.severity == Severity::Notice));
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
            let pool = Pool { service: &service, tier, hold: None, members };
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
        assert_eq!(troubles[1].sentence(), "eth0 is down: bring it up with `ip link set`");
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
}
