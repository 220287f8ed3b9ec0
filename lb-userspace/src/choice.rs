//! Who takes a service's new flows: the order in which backends are asked when some can't.

use crate::{
    drain::Admin,
    model::{Backend, Service},
};

/// Who takes new flows, from the best that there is to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Those that are enabled and healthy.
    Healthy,
    /// None is: the service's backups that are.
    Backup,
    /// Nobody is healthy: all that are enabled, because a check can be wrong (`fail_open`); of
    /// these, those that answer at all, if any does.
    FailOpen,
    /// Nobody is enabled: those that are draining.
    Draining,
    /// Nobody: clients get a RST.
    Nobody,
}

/// The choice for one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which of its backends were asked.
    pub tier: Tier,
    /// For each backend, in their order, whether it takes new flows.
    pub takes: Vec<bool>,
}

/// What is thought of a backend, all that is seen taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It may have new flows.
    Well,
    /// It answers, though wrongly; or nobody knows yet.
    Ill,
    /// It does not answer.
    Gone,
}

/// Chooses. A backend that is leaving, or of weight 0, never takes new flows.
pub fn choose(service: &Service, condition: impl Fn(&Backend) -> Condition) -> Choice {
    let is_well = |backend: &Backend| condition(backend) == Condition::Well;
    let is_gone = |backend: &Backend| condition(backend) == Condition::Gone;
    let backends = || service.backends.iter();
    let enabled = |backend: &Backend| may(backend) && backend.admin == Admin::Enabled;
    let draining = |backend: &Backend| may(backend) && matches!(backend.admin, Admin::Draining(_));
    type Takes<'t> = &'t dyn Fn(&Backend) -> bool;
    let open = |backend: &Backend| service.fail_open && enabled(backend);
    let tiers: [(Tier, Takes<'_>); 5] = [
        (Tier::Healthy, &|backend| enabled(backend) && !backend.backup && is_well(backend)),
        (Tier::Backup, &|backend| enabled(backend) && backend.backup && is_well(backend)),
        (Tier::FailOpen, &|backend| open(backend) && !is_gone(backend)),
        (Tier::FailOpen, &open),
        (Tier::Draining, &|backend| draining(backend) && (is_well(backend) || service.fail_open)),
    ];
    for (tier, takes) in tiers {
        if backends().any(takes) {
            return Choice { tier, takes: backends().map(takes).collect() };
        }
    }
    Choice { tier: Tier::Nobody, takes: vec![false; service.backends.len()] }
}

fn may(backend: &Backend) -> bool {
    backend.weight > 0 && !backend.leaving
}

/// How many backends can take new flows: what `min_available` is held against.
pub fn available(service: &Service, condition: impl Fn(&Backend) -> Condition) -> usize {
    let can = |backend: &&Backend| {
        may(backend) && backend.admin == Admin::Enabled && condition(backend) == Condition::Well
    };
    service.backends.iter().filter(can).count()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        drain::{Event, Moment},
        model::sample,
    };

    fn with(change: impl Fn(&mut [Backend])) -> Service {
        let mut service = sample::service("web", 4);
        service.backends[3].backup = true;
        change(&mut service.backends);
        service
    }

    fn unless(is_ill: bool, otherwise: Condition) -> Condition {
        if is_ill { otherwise } else { Condition::Well }
    }

    fn takers(service: &Service, ill: &[&str]) -> (Tier, Vec<String>) {
        let choice =
            choose(service, |backend| unless(ill.contains(&&*backend.name), Condition::Ill));
        let names = service.backends.iter().zip(&choice.takes).filter(|(_, takes)| **takes);
        (choice.tier, names.map(|(backend, _)| backend.name.clone()).collect())
    }

    fn draining() -> Admin {
        let drain = Event::Drain { deadline: Duration::from_secs(60), again: false };
        Admin::Enabled.next(drain, Moment(0))
    }

    #[test]
    fn the_order_is_healthy_backup_fail_open_draining_nobody() {
        let all = ["web-1", "web-2", "web-3", "web-4"];
        let service = with(|_| ());
        let cases: [(&[&str], Tier, &[&str]); 4] = [
            (&[], Tier::Healthy, &all[..3]),
            (&["web-1", "web-2"], Tier::Healthy, &["web-3"]),
            (&all[..3], Tier::Backup, &["web-4"]),
            (&all, Tier::FailOpen, &all),
        ];
        for (ill, tier, expected) in cases {
            assert_eq!(takers(&service, ill), (tier, names(expected)), "{ill:?} are ill");
        }
        let closed = Service { fail_open: false, ..service };
        assert_eq!(takers(&closed, &all), (Tier::Nobody, Vec::new()));

        let service = with(|backends| backends.iter_mut().for_each(|b| b.admin = draining()));
        assert_eq!(takers(&service, &[]), (Tier::Draining, names(&all)));
        let service = with(|backends| backends.iter_mut().for_each(|b| b.admin = Admin::Disabled));
        assert_eq!(takers(&service, &[]), (Tier::Nobody, Vec::new()));
    }

    #[test]
    fn what_drains_leaves_or_weighs_nothing_takes_no_new_flows() {
        let service = with(|backends| {
            backends[0].admin = draining();
            backends[1].weight = 0;
            backends[2].leaving = true;
        });
        assert_eq!(takers(&service, &[]), (Tier::Backup, names(&["web-4"])));
        assert_eq!(available(&service, |_| Condition::Well), 1);
        let first_is_ill = |backend: &Backend| unless(backend.name == "web-1", Condition::Ill);
        assert_eq!(available(&with(|_| ()), first_is_ill), 3);
    }

    #[test]
    fn who_does_not_answer_is_the_last_to_be_asked() {
        let service = with(|_| ());
        let but_one = |backend: &Backend| match &*backend.name {
            "web-2" => Condition::Ill,
            _ => Condition::Gone,
        };
        let choice = choose(&service, but_one);
        assert_eq!((choice.tier, choice.takes), (Tier::FailOpen, vec![false, true, false, false]));
        let choice = choose(&service, |_| Condition::Gone);
        assert_eq!((choice.tier, choice.takes), (Tier::FailOpen, vec![true; 4]));
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }
}
