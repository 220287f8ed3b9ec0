//! Commands: what can be said at run time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Intent, Leave, Refusal, Said, guard};
use crate::{
    choice::Condition,
    config::{self, BackendSpec, ServiceSpec},
    drain::{Event, Moment},
    model::{Backend, Desired, Service},
};

/// Longest drain that can be asked for.
const LONGEST_DRAIN: Duration = Duration::from_secs(30 * 86_400);

/// Changes that are made together, or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transaction {
    /// In this order.
    pub changes: Vec<Change>,
    /// Even if it leaves fewer than `min_available` backends; what is removed is cut at once.
    #[serde(default)]
    pub force: bool,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// A service more.
    AddService {
        /// As a file has it.
        service: Box<ServiceSpec>,
    },
    /// A service less: its backends drain, then it is gone.
    RemoveService {
        /// Its name.
        service: String,
    },
    /// A backend more.
    AddBackend {
        /// Of which service.
        service: String,
        /// As a file has it.
        backend: BackendSpec,
    },
    /// A backend less: it drains, then it is gone.
    RemoveBackend {
        /// Which.
        #[serde(flatten)]
        target: Target,
    },
    /// No new flows; drained when it has none left, or at the deadline.
    Drain {
        /// Which.
        #[serde(flatten)]
        target: Target,
        /// Milliseconds that flows have to end; the service's `drain_deadline` if not given. Given
        /// again, it counts from then on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
    },
    /// New flows again.
    Enable {
        /// Which.
        #[serde(flatten)]
        target: Target,
    },
    /// No flows: those it has are reset.
    Disable {
        /// Which.
        #[serde(flatten)]
        target: Target,
    },
    /// Another share of new flows.
    Weight {
        /// Which.
        #[serde(flatten)]
        target: Target,
        /// 0 to 1,000.
        weight: u16,
    },
}

/// A backend by its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Of this service; `None`: of every service that has a backend of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The backend's name.
    pub backend: String,
}

impl Intent {
    /// Makes all changes of a transaction. `condition` tells what is thought of a backend
    /// ill.
    ///
    /// # Errors
    /// If one of them can't be made, or would leave a service with too few backends.
    pub fn change(
        &self,
        transaction: &Transaction,
        condition: impl Fn(&Service, &Backend) -> Condition,
        now: Moment,
    ) -> Result<Self, Refusal> {
        let before = self.desired();
        let mut draft = Draft { desired: before.clone(), intent: self.clone(), now };
        for change in &transaction.changes {
            draft.make(change)?;
        }
        let Draft { intent: mut next, .. } = draft;
        next.settle(&before, if transaction.force { Leave::Cut } else { Leave::Drain }, now);
        if !transaction.force {
            guard::min_available(&before, &next.desired(), condition)?;
        }
        Ok(next)
    }
}

/// An intent in the making.
struct Draft {
    intent: Intent,
    /// What it comes to so far, but for weights and admin states.
    desired: Desired,
    now: Moment,
}

impl Draft {
    fn make(&mut self, change: &Change) -> Result<(), Refusal> {
        match change {
            Change::AddService { service } => self.add_service(service),
            Change::RemoveService { service } => self.remove_service(service),
            Change::AddBackend { service, backend } => self.add_backend(service, backend),
            Change::RemoveBackend { target } => self.remove_backend(target),
            Change::Drain { target, deadline_ms } => self.drain(target, *deadline_ms),
            Change::Enable { target } => self.admin(target, |_| Event::Enable),
            Change::Disable { target } => self.admin(target, |_| Event::Disable),
            Change::Weight { target, weight } => self.weight(target, *weight),
        }
    }

    fn add_service(&mut self, spec: &ServiceSpec) -> Result<(), Refusal> {
        if let Some(there) = self.desired.service(&spec.name)
            && ServiceSpec::of(there) == canonical(&self.desired, there, spec)
        {
            return Ok(());
        }
        let service = config::service(&self.desired, spec)?;
        for backend in &service.backends {
            self.intent.backends.remove(&(service.name.clone(), backend.name.clone()));
        }
        self.intent.services_added.insert(service.name.clone(), service);
        self.desired = self.intent.desired();
        Ok(())
    }

    fn remove_service(&mut self, name: &str) -> Result<(), Refusal> {
        guard::service(&self.desired, name)?;
        self.intent.services_added.remove(name);
        if self.intent.declared.desired.service(name).is_some() {
            self.intent.services_removed.insert(name.to_owned());
        }
        self.intent.backends.retain(|(service, _), _| service != name);
        self.desired = self.intent.desired();
        Ok(())
    }

    fn add_backend(&mut self, service: &str, spec: &BackendSpec) -> Result<(), Refusal> {
        let service = guard::service(&self.desired, service)?;
        if let Some(there) = service.backend(&spec.name) {
            let is_so = |wanted: &Backend| {
                let same = |b: &Backend| (b.address, b.port, b.weight, b.backup);
                same(wanted) == same(there)
            };
            // Asked for what is so.
            let alone = Desired { services: Vec::new(), ..self.desired.clone() };
            let bare = Service { backends: Vec::new(), ..service.clone() };
            if config::backend(&alone, &bare, spec).is_ok_and(|wanted| is_so(&wanted)) {
                return Ok(());
            }
        }
        let backend = config::backend(&self.desired, service, spec)?;
        let key = (service.name.clone(), backend.name.clone());
        self.intent.backends.insert(key, Said { added: Some(backend), ..Said::default() });
        self.desired = self.intent.desired();
        Ok(())
    }

    fn remove_backend(&mut self, target: &Target) -> Result<(), Refusal> {
        for (service, backend) in guard::targets(&self.desired, target)? {
            let base = self.intent.services_added.get(&service);
            let base = base.or_else(|| self.intent.declared.desired.service(&service));
            let in_base = base.is_some_and(|base| base.backend(&backend).is_some());
            let key = (service, backend);
            if in_base {
                self.intent.backends.insert(key, Said { removed: true, ..Said::default() });
            } else {
                self.intent.backends.remove(&key);
            }
        }
        self.desired = self.intent.desired();
        Ok(())
    }

    fn drain(&mut self, target: &Target, deadline_ms: Option<u64>) -> Result<(), Refusal> {
        let given = deadline_ms.map(Duration::from_millis);
        if let Some(deadline) = given.filter(|deadline| *deadline > LONGEST_DRAIN) {
            return Err(Refusal::Deadline { deadline, longest: LONGEST_DRAIN });
        }
        self.admin(target, |service| Event::Drain {
            deadline: given.unwrap_or(service.drain_deadline),
            again: given.is_some(),
        })
    }

    fn admin(&mut self, target: &Target, event: impl Fn(&Service) -> Event) -> Result<(), Refusal> {
        for key in guard::targets(&self.desired, target)? {
            let event = event(guard::service(&self.desired, &key.0)?);
            let said = self.intent.backends.entry(key).or_default();
            said.admin = said.admin.next(event, self.now);
        }
        Ok(())
    }

    fn weight(&mut self, target: &Target, weight: u16) -> Result<(), Refusal> {
        guard::weight(weight)?;
        for (service, backend) in guard::targets(&self.desired, target)? {
            let declared = self.intent.declared_weight(&service, &backend);
            let said = self.intent.backends.entry((service, backend)).or_default();
            let is_declared = said.added.is_none() && declared == Some(weight);
            said.weight = (!is_declared).then_some(weight);
        }
        Ok(())
    }
}

/// A spec without what is the default, as [`ServiceSpec::of`] writes it; as it came if it is
/// not valid, which is told elsewhere.
fn canonical(desired: &Desired, there: &Service, spec: &ServiceSpec) -> ServiceSpec {
    let mut others = desired.clone();
    others.services.retain(|service| service.name != there.name);
    config::service(&others, spec)
        .map_or_else(|_| spec.clone(), |service| ServiceSpec::of(&service))
}
