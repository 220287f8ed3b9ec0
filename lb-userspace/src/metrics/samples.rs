//! The samples of metrics that are made alike: one for the instance, one for each interface,
//! service, backend or drain.

use super::{
    Figures,
    metric::{Kind, Metric},
    text::{Family, Value, label},
};
use crate::control::api;

/// What is told, with the labels of services and backends, which are written again and again.
#[derive(Debug)]
pub struct Labelled<'f> {
    /// Everything.
    pub figures: &'f Figures,
    /// Each interface with its label.
    pub interfaces: Vec<(String, &'f api::Interface)>,
    /// Each service with its label.
    pub services: Vec<(String, &'f api::Service)>,
    /// Each backend with its labels.
    pub backends: Vec<(String, &'f api::Backend)>,
    /// Each drain with its backend's labels.
    pub drains: Vec<(String, &'f api::Drain)>,
}

impl<'f> Labelled<'f> {
    /// Of these figures.
    pub fn new(figures: &'f Figures) -> Self {
        let Figures { status, drains, .. } = figures;
        let of_backend = |backend: &str, service: &str| {
            format!("{},{}", label("backend", backend), label("service", service))
        };
        let services = status.services.iter();
        let interfaces = status.interfaces.iter();
        Self {
            figures,
            interfaces: interfaces.map(|i| (label("interface", &i.name), i)).collect(),
            services: services.clone().map(|s| (label("service", &s.name), s)).collect(),
            backends: services
                .flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
                .map(|(service, backend)| (of_backend(&backend.name, &service.name), backend))
                .collect(),
            drains: drains.iter().map(|d| (of_backend(&d.backend, &d.service), d)).collect(),
        }
    }
}

/// One sample.
pub fn one(
    kind: Kind,
    name: &'static str,
    help: &'static str,
    value: fn(&Figures) -> Value,
) -> Metric {
    Metric::new(kind, name, &[], help, move |labelled: &Labelled<'_>, family: &mut Family<'_>| {
        family.sample("", value(labelled.figures));
    })
}

/// One sample for each interface that has the figure.
pub fn of_interface(
    kind: Kind,
    name: &'static str,
    help: &'static str,
    value: fn(&api::Interface) -> Option<Value>,
) -> Metric {
    each(kind, name, &["interface"], help, |labelled| &labelled.interfaces, value)
}

/// One sample for each backend that has the figure.
pub fn of_backend(
    kind: Kind,
    name: &'static str,
    help: &'static str,
    value: fn(&api::Backend) -> Option<Value>,
) -> Metric {
    each(kind, name, BACKEND, help, |labelled| &labelled.backends, value)
}

/// One sample for each drain that has the figure.
pub fn of_drain(
    kind: Kind,
    name: &'static str,
    help: &'static str,
    value: fn(&api::Drain) -> Option<Value>,
) -> Metric {
    each(kind, name, BACKEND, help, |labelled| &labelled.drains, value)
}

/// The labels of a backend's metrics.
pub const BACKEND: &[&str] = &["backend", "service"];

fn each<T: 'static>(
    kind: Kind,
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    all: for<'a, 'f> fn(&'a Labelled<'f>) -> &'a [(String, &'f T)],
    value: fn(&T) -> Option<Value>,
) -> Metric {
    Metric::new(kind, name, labels, help, move |labelled, family| {
        for (labels, thing) in all(labelled) {
            if let Some(value) = value(thing) {
                family.sample(labels, value);
            }
        }
    })
}
