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
    /// Nobody is healthy: all that are enabled, because a check can be wrong (`fail_open`).
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

/// Chooses. A backend that is leaving, or of weight 0, never takes new flows.
pub fn choose(service: &Service, is_well: impl Fn(&Backend) -> bool) -> Choice {
    let backends = || service.backends.iter();
    let enabled = |backend: &Backend| may(backend) && backend.admin == Admin::Enabled;
    let draining = |backend: &Backend| may(backend) && matches!(backend.admin, Admin::Draining(_));
    type Takes<'t> = &'t dyn Fn(&Backend) -> bool;
    let tiers: [(Tier, Takes<'_>); 4] = [
        (Tier::Healthy, &|backend| enabled(backend) && !backend.backup && is_well(backend)),
        (Tier::Backup, &|backend| enabled(backend) && backend.backup && is_well(backend)),
        (Tier::FailOpen, &|backend| service.fail_open && enabled(backend)),
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
pub fn available(service: &Service, is_well: impl Fn(&Backend) -> bool) -> usize {
    let can =
        |backend: &&Backend| may(backend) && backend.admin == Admin::Enabled && is_well(backend);
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

    fn takers(service: &Service, ill: &[&str]) -> (Tier, Vec<String>) {
        let choice = choose(service, |backend| !ill.contains(&&*backend.name));
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
        assert_eq!(available(&service, |_| true), 1);
        assert_eq!(available(&with(|_| ()), |backend| backend.name != "web-1"), 3);
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }
}
