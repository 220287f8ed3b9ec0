//! Which services and backends are listed, and in which order.

use std::{cmp::Reverse, collections::BTreeSet};

use super::traffic::{Course, Rates, Traffic};
use crate::{
    cli::status::{backend_state, service_state},
    control::api,
};

/// More services than this are shown without their backends, until they are opened.
const OPEN: usize = 30;

/// What comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// By name.
    #[default]
    Name,
    /// Who is not well.
    State,
    /// Who has most flows.
    Flows,
    /// Who gets most new ones.
    NewFlows,
    /// Who gets most packets.
    Packets,
    /// Who gets most bits.
    Bits,
}

/// A service, or one of its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id {
    /// The service's name.
    pub service: String,
    /// The backend's.
    pub backend: Option<String>,
}

/// One line.
#[derive(Clone, Copy, Debug)]
pub struct Row<'s> {
    /// The service.
    pub service: &'s api::Service,
    /// Its backend, if the line is not the service's own.
    pub backend: Option<&'s api::Backend>,
}

/// What the user has said of the list.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// What comes first.
    pub sort: Sort,
    /// Only what has this in its name, address or state; lower case.
    pub filter: String,
    /// Services that are shown the other way round: without their backends, or with them.
    pub turned: BTreeSet<String>,
}

impl Sort {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::State => "state",
            Self::Flows => "flows",
            Self::NewFlows => "new/s",
            Self::Packets => "packets/s",
            Self::Bits => "bits/s",
        }
    }

    /// The one after it.
    pub const fn next(self) -> Self {
        match self {
            Self::Name => Self::State,
            Self::State => Self::Flows,
            Self::Flows => Self::NewFlows,
            Self::NewFlows => Self::Packets,
            Self::Packets => Self::Bits,
            Self::Bits => Self::Name,
        }
    }
}

impl Row<'_> {
    /// What it is about.
    pub fn id(&self) -> Id {
        Id {
            service: self.service.name.clone(),
            backend: self.backend.map(|backend| backend.name.clone()),
        }
    }

    /// Whether it is about this.
    pub fn is(&self, id: &Id) -> bool {
        self.service.name == id.service
            && self.backend.map(|backend| &*backend.name) == id.backend.as_deref()
    }

    /// How it goes.
    pub fn course<'t>(&self, traffic: &'t Traffic) -> Option<&'t Course> {
        traffic.course(&self.service.name, self.backend.map(|backend| &*backend.name))
    }

    /// Flows that it has now.
    pub fn active_flows(&self) -> u64 {
        match self.backend {
            Some(backend) => backend.active_flows,
            None => self.service.backends.iter().map(|backend| backend.active_flows).sum(),
        }
    }

    fn matches(&self, filter: &str) -> bool {
        let has = |text: &str| text.to_lowercase().contains(filter);
        match self.backend {
            None => {
                let state = service_state(self.service);
                has(&self.service.name) || has(&self.service.vip) || has(state.text())
            }
            Some(backend) => {
                let state = backend_state(backend);
                has(&backend.name) || has(&backend.address.to_string()) || has(state.text())
            }
        }
    }

    /// 0 for what needs somebody most.
    fn urgency(&self) -> u8 {
        match self.backend {
            None => match &*self.service.new_flows {
                "nobody" => 0,
                "healthy" if self.service.held.is_none() => {
                    let worst = self.service.backends.iter();
                    let worst = worst.map(|backend| with(self.service, backend).urgency()).min();
                    2 + worst.unwrap_or(0)
                }
                _ => 1,
            },
            Some(backend) => match (backend.admin, backend.health) {
                (api::Admin::Enabled, api::Health::Unreachable) => 0,
                (api::Admin::Enabled, api::Health::Unhealthy) => 1,
                (api::Admin::Enabled, api::Health::Unknown) => 2,
                (api::Admin::Draining | api::Admin::Drained | api::Admin::Disabled, _) => 3,
                (api::Admin::Enabled, api::Health::Healthy) => 4,
            },
        }
    }
}

const fn with<'s>(service: &'s api::Service, backend: &'s api::Backend) -> Row<'s> {
    Row { service, backend: Some(backend) }
}

/// The lines, from the first.
pub fn rows<'s>(status: &'s api::Status, traffic: &Traffic, choice: &Choice) -> Vec<Row<'s>> {
    let filter = &*choice.filter;
    let mut services: Vec<Row<'s>> =
        status.services.iter().map(|service| Row { service, backend: None }).collect();
    sort(&mut services, traffic, choice.sort);
    let mut rows = Vec::new();
    for row in services {
        let is_wanted = row.matches(filter);
        let mut backends: Vec<Row<'s>> =
            row.service.backends.iter().map(|backend| with(row.service, backend)).collect();
        // A service that was asked for by its name is shown whole.
        backends.retain(|backend| is_wanted || backend.matches(filter));
        if !is_wanted && backends.is_empty() {
            continue;
        }
        rows.push(row);
        let is_open = (status.services.len() <= OPEN) != choice.turned.contains(&row.service.name);
        if is_open || !is_wanted {
            sort(&mut backends, traffic, choice.sort);
            rows.extend(backends);
        }
    }
    rows
}

/// Stable: what is alike stays in the order of the names.
fn sort(rows: &mut [Row<'_>], traffic: &Traffic, sort: Sort) {
    let rate = |row: &Row<'_>, which: fn(&Rates) -> f64| {
        let now = row.course(traffic).and_then(Course::now);
        // To the thousandth.
        Reverse(now.as_ref().map_or(0, |rates| (which(rates) * 1000.0) as u64))
    };
    match sort {
        Sort::Name => {}
        Sort::State => rows.sort_by_cached_key(Row::urgency),
        Sort::Flows => rows.sort_by_cached_key(|row| Reverse(row.active_flows())),
        Sort::NewFlows => rows.sort_by_cached_key(|row| rate(row, |rates| rates.new_flows)),
        Sort::Packets => rows.sort_by_cached_key(|row| rate(row, |rates| rates.packets)),
        Sort::Bits => rows.sort_by_cached_key(|row| rate(row, |rates| rates.bits)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::sample;

    fn names(rows: &[Row<'_>]) -> Vec<String> {
        let name = |row: &Row<'_>| match row.backend {
            Some(backend) => format!("{}/{}", row.service.name, backend.name),
            None => row.service.name.clone(),
        };
        rows.iter().map(name).collect()
    }

    fn listed(status: &api::Status, choice: &Choice) -> Vec<String> {
        names(&rows(status, &Traffic::default(), choice))
    }

    #[test]
    fn a_filter_finds_names_addresses_and_states() {
        let status = sample::status();
        let of = |filter: &str| {
            listed(&status, &Choice { filter: filter.to_owned(), ..Choice::default() })
        };
        assert_eq!(of(""), ["api", "api/api-1", "web", "web/web-1", "web/web-2"]);
        assert_eq!(of("web-2"), ["web", "web/web-2"]);
        assert_eq!(of("web"), ["web", "web/web-1", "web/web-2"]);
        assert_eq!(of("unreach"), ["web", "web/web-2"]);
        assert_eq!(of("2001:db8:1::"), ["api", "api/api-1"]);
        assert_eq!(of("203.0.113.10"), ["web", "web/web-1", "web/web-2"]);
        assert!(of("nobody there").is_empty());
    }

    #[test]
    fn every_order_is_reached_and_puts_the_most_first() {
        let mut status = sample::status();
        let mut traffic = Traffic::default();
        traffic.take(&status, &sample::reasons(), Duration::from_secs(1));
        status.services[1].backends[1].new_flows_total += 50;
        status.services[1].backends[0].packets_total += 50;
        traffic.take(&status, &sample::reasons(), Duration::from_secs(2));
        let mut sort = Sort::default();
        let expected = [
            (Sort::Name, ["api", "api/api-1", "web", "web/web-1", "web/web-2"]),
            (Sort::State, ["web", "web/web-2", "web/web-1", "api", "api/api-1"]),
            (Sort::Flows, ["web", "web/web-1", "web/web-2", "api", "api/api-1"]),
            (Sort::NewFlows, ["web", "web/web-2", "web/web-1", "api", "api/api-1"]),
            (Sort::Packets, ["web", "web/web-1", "web/web-2", "api", "api/api-1"]),
            (Sort::Bits, ["api", "api/api-1", "web", "web/web-1", "web/web-2"]),
        ];
        for (wanted, order) in expected {
            assert_eq!(sort, wanted);
            let choice = Choice { sort, ..Choice::default() };
            assert_eq!(names(&rows(&status, &traffic, &choice)), order, "{sort:?}");
            sort = sort.next();
        }
        assert_eq!(sort, Sort::Name);
    }

    #[test]
    fn services_can_be_closed_and_of_many_opened() {
        let mut status = sample::status();
        let turned = BTreeSet::from(["web".to_owned()]);
        let choice = Choice { turned, ..Choice::default() };
        assert_eq!(listed(&status, &choice), ["api", "api/api-1", "web"]);
        let api = status.services[0].clone();
        status
            .services
            .extend((0..OPEN).map(|n| api::Service { name: format!("x-{n:02}"), ..api.clone() }));
        let some = listed(&status, &choice);
        assert_eq!(some[..4], ["api", "web", "web/web-1", "web/web-2"]);
        assert_eq!(some.len(), 2 + 2 + OPEN);
        // Who is looked for is shown.
        let filter = Choice { filter: "api-1".to_owned(), ..Choice::default() };
        assert_eq!(listed(&status, &filter).len(), 2 * (1 + OPEN));
    }
}
