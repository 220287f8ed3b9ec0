//! Why a change is refused.

use std::time::Duration;

use humantime::format_duration;
use lb_common::forward::Forwarding;

use super::Target;
use crate::{
    choice::{Condition, available},
    config::{MAX_FILE_BYTES, MAX_WEIGHT, Problem},
    model::{Backend, Desired, HostClash, PortClash, Service},
};

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// No service of this name.
    #[error("no service {name:?}{}", hint(.existing))]
    NoService {
        /// As asked for.
        name: String,
        /// Those that there are.
        existing: Vec<String>,
    },
    /// No backend of this name.
    #[error("no backend {name:?} in service {service:?}{}", hint(.existing))]
    NoBackend {
        /// The service.
        service: String,
        /// As asked for.
        name: String,
        /// Those that there are.
        existing: Vec<String>,
    },
    /// No backend of this name anywhere.
    #[error("no service has a backend {name:?}")]
    NoBackendAnywhere {
        /// As asked for.
        name: String,
    },
    /// What was to be added is not valid.
    #[error("{0}")]
    Invalid(Box<Problem>),
    /// Fewer backends than the operator wants at least.
    #[error(
        "refused: service {service:?} would have {left} {} for new flows, its min_available is \
         {wanted}; enable another one first, or use --force", backends(*.left)
    )]
    TooFew {
        /// Which service.
        service: String,
        /// How many would be left.
        left: usize,
        /// How many must be.
        wanted: u16,
    },
    /// Flows would be translated that are not, or the other way round.
    #[error(
        "refused: forwarding {from} -> {to} of service {service:?} would reset its {flows} flows, \
         which {}; wait until they have ended, or use --force", translation(.to)
    )]
    Translation {
        /// Which service.
        service: String,
        /// Its method.
        from: &'static str,
        /// The new one.
        to: &'static str,
        /// How many.
        flows: u64,
    },
    /// A weight that is none.
    #[error("weight {weight}: it goes from 0 to {most}")]
    Weight {
        /// As asked for.
        weight: u16,
        /// Largest allowed.
        most: u16,
    },
    /// A deadline that never comes.
    #[error(
        "deadline {}: it goes up to {}", format_duration(*.deadline), format_duration(*.longest)
    )]
    Deadline {
        /// As asked for.
        deadline: Duration,
        /// Longest allowed.
        longest: Duration,
    },
    /// NAT would begin, with ports that are not its own.
    #[error("refused: {0}")]
    Ports(PortClash),
    /// A service would take this host's own address.
    #[error("refused: {0}")]
    Host(HostClash),
    /// A file that can't be what is wanted.
    #[error("{0}")]
    File(String),
    /// A file too long to be one.
    #[error("{name} is larger than {} MiB: is it a config file?", MAX_FILE_BYTES >> 20)]
    FileTooLarge {
        /// As asked for.
        name: String,
    },
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Invalid(Box::new(problem))
    }
}

/// "; there are a, b and 3 more".
fn hint(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len() {
        0 => "; there is none".to_owned(),
        1..=SHOWN => format!("; there are: {shown}"),
        count => format!("; there are: {shown} and {} more", count - SHOWN),
    }
}

/// What flows lack under another method.
fn translation(to: &str) -> &'static str {
    if to == Forwarding::Nat.name() { "have no translation" } else { "live by their translation" }
}

fn backends(count: usize) -> &'static str {
    if count == 1 { "backend" } else { "backends" }
}

/// Whether a backend may have this weight.
pub(super) fn weight(weight: u16) -> Result<(), Refusal> {
    if weight > MAX_WEIGHT {
        return Err(Refusal::Weight { weight, most: MAX_WEIGHT });
    }
    Ok(())
}

/// The service of this name.
pub(super) fn service<'d>(desired: &'d Desired, name: &str) -> Result<&'d Service, Refusal> {
    desired.service(name).ok_or_else(|| Refusal::NoService {
        name: name.to_owned(),
        existing: staying(desired).map(|service| service.name.clone()).collect(),
    })
}

/// Names of service and backend of all that a target means; at least one.
pub(super) fn targets(
    desired: &Desired,
    target: &Target,
) -> Result<Vec<(String, String)>, Refusal> {
    let name = &target.backend;
    let Some(of) = &target.service else {
        let having = staying(desired).filter(|service| service.backend(name).is_some());
        let found: Vec<_> = having.map(|service| (service.name.clone(), name.clone())).collect();
        if found.is_empty() {
            return Err(Refusal::NoBackendAnywhere { name: name.clone() });
        }
        return Ok(found);
    };
    let service = service(desired, of)?;
    if service.backend(name).is_none() {
        let staying = service.backends.iter().filter(|backend| !backend.leaving);
        return Err(Refusal::NoBackend {
            service: of.clone(),
            name: name.clone(),
            existing: staying.map(|backend| backend.name.clone()).collect(),
        });
    }
    Ok(vec![(of.clone(), name.clone())])
}

fn staying(desired: &Desired) -> impl Iterator<Item = &Service> {
    desired.services.iter().filter(|service| !service.leaving)
}

/// Refuses what takes from a service that then has fewer than its `min_available`.
pub(super) fn min_available(
    before: &Desired,
    after: &Desired,
    condition: impl Fn(&Service, &Backend) -> Condition,
) -> Result<(), Refusal> {
    for service in staying(after) {
        let Some(was) = before.service(&service.name) else { continue };
        let left = available(service, |backend| condition(service, backend));
        if left < usize::from(service.min_available)
            && left < available(was, |backend| condition(was, backend))
        {
            let (service, wanted) = (service.name.clone(), service.min_available);
            return Err(Refusal::TooFew { service, left, wanted });
        }
    }
    Ok(())
}

/// Whether a service's flows can't go on as it becomes another: a method that translates can't
/// take over from one that does not, nor the other way round.
pub fn ends_flows(was: &Service, is: &Service) -> bool {
    was.vip == is.vip && (was.forwarding == Forwarding::Nat) != (is.forwarding == Forwarding::Nat)
}

/// Refuses to end flows by another method of forwarding; `flows` tells how many a service has.
///
/// # Errors
/// If a service that has some would be translated, or no longer.
pub fn translation_stays(
    before: &Desired,
    after: &Desired,
    flows: impl Fn(&Service) -> u64,
) -> Result<(), Refusal> {
    for was in &before.services {
        let ends = after.services.iter().find(|is| ends_flows(was, is));
        if let Some(is) = ends
            && let flows = flows(was)
            && flows > 0
        {
            let (from, to) = (was.forwarding.name(), is.forwarding.name());
            return Err(Refusal::Translation { service: was.name.clone(), from, to, flows });
        }
    }
    Ok(())
}

impl super::Intent {
    /// Refuses a file that would leave a service with too few backends.
    ///
    /// # Errors
    /// If there is such a service.
    pub fn guard(
        &self,
        next: &Self,
        condition: impl Fn(&Service, &Backend) -> Condition,
    ) -> Result<(), Refusal> {
        min_available(&self.desired(), &next.desired(), condition)
    }
}
