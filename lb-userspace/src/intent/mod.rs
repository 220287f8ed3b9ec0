//! What the operator wants: the file, what was said at run time on top of it, and what is on
//! its way out. Pure: every change makes a new [`Intent`] of an old one, or is refused whole.
//!
//! - [`Intent::change`] takes commands; [`Intent::declare`] takes a file.
//! - [`Intent::desired`] is what the rest of the daemon sees of it.
//! - [`kept`] keeps it on disk, as `state.json`.

mod change;
mod diff;
mod guard;
pub mod kept;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};

pub use self::{
    change::{Change, Target, Transaction},
    diff::diff,
    guard::{Refusal, ends_flows, translation_stays},
};
use crate::{
    config,
    drain::{Admin, Event, Moment},
    model::{Backend, Desired, Identity, Service},
};

/// Everything an operator has asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// The file in use.
    declared: Declared,
    /// Services that no file has.
    services_added: BTreeMap<String, Service>,
    /// Services of the file that were taken away.
    services_removed: BTreeSet<String>,
    /// What was said of backends, by the names of service and backend.
    backends: BTreeMap<(String, String), Said>,
    /// What was taken away and has, or may have, flows.
    leaving: Vec<Leaving>,
    /// Counts the changes of what is desired.
    generation: u64,
}

/// A file that was taken up.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Where it was read.
    name: String,
    /// As it was read.
    text: String,
    /// As it was understood.
    desired: Desired,
}

/// What was said of a backend at run time.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    /// It is not in the file.
    added: Option<Backend>,
    /// It is, but was taken away.
    removed: bool,
    /// Another weight than it was added with or than the file has.
    weight: Option<u16>,
    /// Whether it takes new flows.
    admin: Admin,
}

/// A backend on its way out.
#[derive(Clone, Debug, PartialEq)]
struct Leaving {
    /// Whose it was; without backends.
    service: Service,
    /// What it was, and how far it has come.
    backend: Backend,
}

/// How a file is taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// It is what is wanted now; of what was said at run time, only who is drained or disabled
    /// still holds.
    Apply,
    /// It lies below what was said at run time, all of which still holds.
    Below,
}

/// What a pass over the flow table saw of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Flows whose connection may still carry data.
    pub active: u32,
    /// Entries in the table, whatever their state.
    pub entries: u32,
    /// Flows that have chosen it, in all its life.
    pub new_flows_total: u64,
}

/// What a count made of the intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Nothing.
    None,
    /// Figures changed.
    Figures,
    /// Some backend's state changed, or it is gone.
    States,
}

impl Declared {
    /// Reads a file's text; `name` is what errors call it.
    ///
    /// # Errors
    /// If it is no valid file.
    pub fn parse(name: &str, text: &str) -> Result<Self, config::Error> {
        let desired = config::parse(text, name)?;
        Ok(Self { name: name.to_owned(), text: text.to_owned(), desired })
    }

    /// Where it was read.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Intent {
    /// A file, and nothing else.
    pub fn new(declared: Declared) -> Self {
        Self {
            declared,
            services_added: BTreeMap::new(),
            services_removed: BTreeSet::new(),
            backends: BTreeMap::new(),
            leaving: Vec::new(),
            generation: 1,
        }
    }

    /// The file in use.
    pub const fn declared(&self) -> &Declared {
        &self.declared
    }

    /// Counts the changes of what is desired; kept over restarts.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// A service as the file has it; `None`: it is not in the file.
    pub fn declared_service(&self, service: &str) -> Option<&Service> {
        self.declared.desired.service(service)
    }

    /// The weight that the file gives a backend; `None`: it is not in the file.
    pub fn declared_weight(&self, service: &str, backend: &str) -> Option<u16> {
        Some(self.declared_service(service)?.backend(backend)?.weight)
    }

    /// All of it: the file with what was said on top, and what is leaving at the end.
    pub fn desired(&self) -> Desired {
        let declared = &self.declared.desired;
        let from_file = declared.services.iter().filter(|service| {
            !self.services_removed.contains(&service.name)
                && !self.services_added.contains_key(&service.name)
        });
        let mut services: Vec<Service> =
            from_file.chain(self.services_added.values()).map(|base| self.service(base)).collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        for leaving in &self.leaving {
            let home = services.iter_mut().find(|service| service.vip == leaving.service.vip);
            match home {
                Some(service) => service.backends.push(leaving.backend.clone()),
                None => services.push(Service {
                    backends: vec![leaving.backend.clone()],
                    leaving: true,
                    ..leaving.service.clone()
                }),
            }
        }
        Desired { dataplane: declared.dataplane.clone(), http: declared.http, services }
    }

    /// A service with what was said of its backends.
    fn service(&self, base: &Service) -> Service {
        let first = (base.name.clone(), String::new());
        let said: BTreeMap<&str, &Said> = self
            .backends
            .range(first..)
            .take_while(|((service, _), _)| *service == base.name)
            .map(|((_, backend), said)| (&**backend, said))
            .collect();
        let of_base = base.backends.iter().filter(|backend| {
            said.get(&*backend.name).is_none_or(|said| !said.removed && said.added.is_none())
        });
        let added = said.values().filter_map(|said| said.added.as_ref());
        let mut backends: Vec<Backend> = of_base
            .chain(added)
            .map(|backend| match said.get(&*backend.name) {
                None => backend.clone(),
                Some(said) => Backend {
                    weight: said.weight.unwrap_or(backend.weight),
                    admin: said.admin,
                    ..backend.clone()
                },
            })
            .collect();
        backends.sort_by(|a, b| a.name.cmp(&b.name));
        Service { backends, ..base.clone() }
    }

    /// Takes up a file. Backends that are no longer wanted drain, and go when they have.
    pub fn declare(&self, declared: Declared, take: Take, now: Moment) -> Self {
        let before = self.desired();
        let mut next = self.clone();
        next.declared = declared;
        if take == Take::Apply {
            next.services_added.clear();
            next.services_removed.clear();
            for said in next.backends.values_mut() {
                *said = Said { admin: said.admin, ..Said::default() };
            }
        }
        next.settle(&before, Leave::Drain, now);
        next
    }

    /// After a change: what is no longer wanted begins to leave, what is wanted again stays, and
    /// what was said of nobody is forgotten.
    fn settle(&mut self, before: &Desired, leave: Leave, now: Moment) {
        let Self { declared, services_added, services_removed, backends, leaving, .. } = self;
        let declared = &declared.desired;
        services_removed.retain(|name| declared.service(name).is_some());
        backends.retain(|(service, backend), said| {
            let base = services_added.get(service).or_else(|| declared.service(service));
            let is_known = |base: &Service| said.added.is_some() || base.backend(backend).is_some();
            *said != Said::default() && base.is_some_and(is_known)
        });

        let were_leaving = leaving.clone();
        let after = self.desired();
        let staying: HashSet<Identity> = identities(&after).collect();
        self.leaving.retain(|leaving| !staying.contains(&leaving.identity()));
        for service in before.services.iter().filter(|service| !service.leaving) {
            for backend in service.backends.iter().filter(|backend| !backend.leaving) {
                if !staying.contains(&service.identity(backend)) {
                    self.leaving.push(Leaving::new(service, backend, leave, now));
                }
            }
        }
        if after != *before || self.leaving != were_leaving {
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// Takes in what a pass over the flow table saw; it began after the last change of the maps.
    pub fn counted(&mut self, count: impl Fn(Identity) -> Option<Count>, now: Moment) -> Progress {
        let mut progress = Progress::None;
        let desired = self.desired();
        for service in &desired.services {
            for backend in service.backends.iter().filter(|backend| !backend.leaving) {
                let Admin::Draining(_) = backend.admin else { continue };
                let Some(count) = count(service.identity(backend)) else { continue };
                let key = (service.name.clone(), backend.name.clone());
                if let Some(said) = self.backends.get_mut(&key) {
                    progress = progress.max(step(&mut said.admin, count, now));
                }
            }
        }
        for leaving in &mut self.leaving {
            if let Some(count) = count(leaving.identity()) {
                progress = progress.max(step(&mut leaving.backend.admin, count, now));
            }
        }
        let before = self.leaving.len();
        self.leaving.retain(|leaving| {
            // One that the maps don't have has no flows.
            let is_empty = count(leaving.identity()).is_none_or(|count| count.entries == 0);
            !(leaving.backend.admin.is_over() && is_empty)
        });
        if self.leaving.len() < before {
            self.generation = self.generation.wrapping_add(1);
            progress = Progress::States;
        }
        progress
    }

    /// Whether some backend drains, or is on its way out.
    pub fn waits(&self) -> bool {
        !self.leaving.is_empty()
            || self.backends.values().any(|said| matches!(said.admin, Admin::Draining(_)))
    }
}

/// How what is no longer wanted leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// When its flows have ended.
    Drain,
    /// At once: its flows are reset.
    Cut,
}

impl Leaving {
    fn new(service: &Service, backend: &Backend, leave: Leave, now: Moment) -> Self {
        let event = match leave {
            Leave::Drain => Event::Drain { deadline: service.drain_deadline, again: false },
            Leave::Cut => Event::Disable,
        };
        Self {
            service: Service { backends: Vec::new(), leaving: true, ..service.clone() },
            backend: Backend {
                admin: backend.admin.next(event, now),
                leaving: true,
                ..backend.clone()
            },
        }
    }

    fn identity(&self) -> Identity {
        self.service.identity(&self.backend)
    }
}

fn step(admin: &mut Admin, count: Count, now: Moment) -> Progress {
    let event = Event::Counted { flows: count.active, new_flows_total: count.new_flows_total };
    let next = admin.next(event, now);
    let progress = match (&*admin, &next) {
        (before, after) if before == after => Progress::None,
        (Admin::Draining(before), Admin::Draining(after)) if before.start == after.start => {
            Progress::Figures
        }
        _ => Progress::States,
    };
    *admin = next;
    progress
}

/// Of all backends that are not leaving.
fn identities(desired: &Desired) -> impl Iterator<Item = Identity> {
    desired.services.iter().filter(|service| !service.leaving).flat_map(|service| {
        let staying = service.backends.iter().filter(|backend| !backend.leaving);
        staying.map(|backend| service.identity(backend))
    })
}
