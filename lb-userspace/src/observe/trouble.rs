//! What is wrong with an instance, told from what was seen of it; and since when. No I/O.

mod facts;
pub(super) mod losses;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use lb_common::forward::Forwarding;

use super::losses::Kind;
use crate::{
    choice::Tier,
    config::FLOW_CAPACITY_MAX,
    control::api::{NatPorts, Severity, Trouble, TroubleKind},
    doctor::{Cause, Met, Narrow, cause},
    drain::{Admin, Moment},
    health::{Failure, Seen, Standing, State},
    model::{Backend, Service},
};

/// Share of the flow table that is more than it is made for.
const CROWDED: f64 = 0.75;
/// Share of the flow table that SYNs without more are a flood from: where clients are answered, one
/// is embryonic for a round trip.
const FLOODED: f64 = 0.125;

/// What is asked of an instance before it is called well.
pub(super) struct Facts<'f> {
    pub interfaces: Vec<Front<'f>>,
    pub pools: Vec<Pool<'f>>,
    pub flows_used: u32,
    /// Flows of which nothing but a SYN was seen; of those that are translated, their two entries
    /// count as one.
    pub flows_embryonic: u32,
    /// All flows, counted so.
    pub flows: u32,
    pub flow_capacity: u32,
    /// What is being lost after our program's decision, and how much.
    pub losses: Vec<(&'f Kind, u64)>,
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
    /// The narrowest way to one of its backends that is too narrow for clients' packets, and whose.
    pub narrow: Option<(&'f str, Narrow)>,
    /// In the order of the service's.
    pub members: Vec<Member<'f>>,
}

impl Pool<'_> {
    /// Whether none of those that are enabled answers.
    fn is_silent(&self) -> bool {
        let backends = self.service.backends.iter().zip(&self.members);
        let mut enabled =
            backends.filter(|(backend, _)| backend.admin == Admin::Enabled && !backend.leaving);
        enabled.all(|(_, member)| {
            member.standing.is_some_and(|standing| standing.health == State::Unreachable)
        })
    }
}

/// What is seen of a backend.
pub(super) struct Member<'f> {
    pub standing: Option<&'f Standing>,
    pub seen: Option<&'f Seen>,
    pub is_suspect: bool,
    pub is_outlier: bool,
    /// Ports of this host that its flows take; `None`: they take none.
    pub nat_ports: Option<NatPorts>,
    /// What to do if the MAC that somebody has set for it is another's; `None`: nobody has.
    pub given_mac: Option<String>,
}

/// All that is wrong, the worst first; `since` only where what was seen tells it.
pub(super) fn troubles(facts: Facts<'_>) -> Vec<Trouble> {
    let table = of_flow_table(&facts);
    let mut troubles: Vec<Trouble> = facts.interfaces.iter().flat_map(of_interface).collect();
    troubles.extend(facts.losses.iter().map(|(kind, frames)| losses::of_loss(kind, *frames)));
    troubles.extend(facts.own);
    // Before the backends, who may look ill for it.
    let doubt = table.as_ref().map(|trouble| trouble.kind);
    troubles.extend(table);
    troubles.extend(facts.pools.iter().flat_map(|pool| of_pool(pool, doubt)));
    // Stable: what was found first stays first among its like.
    troubles.sort_by_key(|trouble| trouble.severity);
    troubles
}

/// Whether it fills up, and with what.
fn of_flow_table(facts: &Facts<'_>) -> Option<Trouble> {
    let Facts { flows_used, flows_embryonic, flows, flow_capacity, .. } = *facts;
    let [used, embryonic, capacity] = [flows_used, flows_embryonic, flow_capacity].map(f64::from);
    let share = format!("the flow table is {:.0} % full", used / capacity * 100.0);
    let (kind, says, mend) = if embryonic > capacity * FLOODED && embryonic > f64::from(flows) / 2.0
    {
        (
            TroubleKind::Flood,
            format!(
                "{flows_embryonic} of {flows} flows are SYNs that nobody has followed up, a flood or \
                 clients who get no answer; {share}, and established flows keep their places"
            ),
            "`sluice flows --count --state embryonic` shows at whom they aim, and from where: have \
             those sources filtered before this host"
                .to_owned(),
        )
    } else if used > capacity * CROWDED {
        (
            TroubleKind::FlowTable,
            format!("{share}; {}", at_risk(&facts.pools)),
            mend_of_flow_table(flow_capacity),
        )
    } else {
        return None;
    };
    Some(of_instance(Severity::Fault, kind, says, Some(mend)))
}

/// What becomes of new connections while the flow table is crowded: those that find no place are
/// forwarded by slot, or, translated, refused.
fn at_risk(pools: &[Pool<'_>]) -> &'static str {
    let is_translated = |pool: &Pool<'_>| pool.service.forwarding == Forwarding::Nat;
    match (pools.iter().any(is_translated), pools.iter().all(is_translated)) {
        (true, true) => "new connections that find no place are refused",
        (true, false) => {
            "new connections still work, but those that find no place break when backends change, \
             or, with nat, are refused"
        }
        (false, _) => {
            "new connections still work, but those that find no place break when backends change"
        }
    }
}

/// What makes room, what costs least first.
fn mend_of_flow_table(capacity: u32) -> String {
    let own = "`sluice flows --count` shows whose they are, by backend and by client: have abuse \
               filtered; shorten the idle_timeout of services whose clients leave without a word";
    let double = capacity.saturating_add(1).next_power_of_two();
    match double <= FLOW_CAPACITY_MAX {
        true => format!(
            "{own}; if all are wanted, set `flow_capacity = {double}` and start anew: `sluice detach` \
             stops forwarding and breaks connections, `sluice run` begins again"
        ),
        false => own.to_owned(),
    }
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
        let named = format!("`ip link set {} up`", front.name);
        troubles.push(about(TroubleKind::LinkDown, says, mend.replace("`ip link set`", &named)));
    }
    troubles
}

/// `doubt` is what is wrong with the flow table, if anything: backends may look ill for it.
fn of_pool(pool: &Pool<'_>, doubt: Option<TroubleKind>) -> Vec<Trouble> {
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
        Tier::FailOpen if pool.is_silent() => troubles.push(Trouble {
            severity: Severity::Outage,
            ..stopgap(
                "has no backend that answers: new connections go to all that are enabled \
                 (fail_open), most likely in vain",
            )
        }),
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
    if let Some((backend, narrow)) = &pool.narrow {
        let says = format!("reaches {backend} by too narrow a route: {}", narrow.says);
        let mend = Some(narrow.mend.clone());
        troubles.push(about(Severity::Notice, TroubleKind::NarrowRoute, says, mend));
    }
    for (backend, member) in service.backends.iter().zip(&pool.members) {
        troubles.extend(of_backend(service, backend, member, doubt));
        troubles.extend(of_ports(service, backend, member));
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

fn of_backend(
    service: &Service,
    backend: &Backend,
    member: &Member<'_>,
    doubt: Option<TroubleKind>,
) -> Option<Trouble> {
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
        // Frames to another's MAC meet the same silence as those to a host that is down.
        let given = member.given_mac.clone().filter(|_| ill.health == State::Unreachable);
        let mend = given.unwrap_or_else(|| mend_of_backend(service, backend, ill, member.seen));
        let says = illness(ill);
        return Some(about(Severity::Fault, TroubleKind::BackendDown, says, Some(mend), since));
    }
    if let Some(why) = member.seen.and_then(not_probed) {
        let says = format!("can't be probed: {why}");
        return Some(about(Severity::Fault, TroubleKind::Unprobed, says, None, None));
    }
    let says = match (member.is_suspect, member.is_outlier) {
        (true, _) => "does not answer clients' SYNs, though its probes are well",
        (false, true) => "completes far fewer handshakes than its pool",
        (false, false) => return None,
    };
    let first = match doubt {
        Some(TroubleKind::Flood) => "forged SYNs look the same, so end the flood first; then ",
        Some(_) => {
            "handshakes of flows without a place are not seen, so mend the flow table first; then "
        }
        None => "",
    };
    let mend = format!(
        "{first}look at its firewall, its backlog and its load; `sluice backend drain {} {}` keeps new \
         connections away",
        service.name, backend.name
    );
    let kind = TroubleKind::BackendSuspect;
    Some(about(Severity::Fault, kind, says.to_owned(), Some(mend), None))
}

/// Whether ports towards it run out; who is taken out takes none.
fn of_ports(service: &Service, backend: &Backend, member: &Member<'_>) -> Option<Trouble> {
    let NatPorts { used, capacity } = member.nat_ports.filter(NatPorts::are_short)?;
    let is_taken_out = backend.leaving || taken_out(backend).is_some();
    (!is_taken_out).then(|| Trouble {
        severity: Severity::Fault,
        kind: TroubleKind::NatPorts,
        about: format!("backend {}/{}", service.name, backend.name),
        says: format!(
            "{used} of {capacity} nat_ports towards it are taken; without one, new connections are \
             refused with a RST"
        ),
        mend: Some(format!(
            "give service {} (more) nat_addresses; a wider nat_ports needs a new start",
            service.name
        )),
        since: None,
    })
}

/// Why its last probe could not be made, and what to do about that, if it could not.
fn not_probed(seen: &Seen) -> Option<&str> {
    match seen.last.as_ref()?.outcome.as_ref().err()? {
        Failure::NotMade(why) => Some(why),
        _ => None,
    }
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
    let (vip, own) = service.asked(backend);
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
