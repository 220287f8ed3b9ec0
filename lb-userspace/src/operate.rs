//! What an operator can make an instance do: changes, whole files, and a look at what a file
//! would do. What is decided is decided in `intent`; here it takes effect.

mod planning;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::Context as _;
use lb_common::service::BackendState;

pub use self::planning::{Planning, Tables};

use crate::{
    config,
    control::{Peer, api},
    drain::{Admin, Moment},
    intent::{Declared, Intent, Refusal, Take, diff, ends_flows, translation_stays},
    journal::Entry,
    model::{Backend, Desired, Identity, Service},
    network,
    observe::State,
};

impl State {
    /// Makes all changes of a transaction, or none.
    ///
    /// # Errors
    /// If one of them can't be made; then nothing has changed.
    pub fn change(
        &mut self,
        transaction: &api::Transaction,
        peer: &Peer,
    ) -> Result<api::Changed, Refusal> {
        let condition = |service: &Service, backend: &Backend| self.condition(service, backend);
        let next = self.intent.change(transaction, condition, Moment::now())?;
        let after = next.desired();
        self.guard_host(&after)?;
        let warnings = self.guard_ports(&after)?;
        Ok(self.take(next, peer, warnings))
    }

    /// Takes up a file.
    ///
    /// # Errors
    /// If it is not valid, or leaves too few backends; then nothing has changed.
    pub fn apply(&mut self, file: &api::ConfigFile, peer: &Peer) -> Result<api::Changed, Refusal> {
        let (next, mut warnings) = self.declared(file)?;
        let after = next.desired();
        if !file.force {
            self.guard(&next, &after)?;
        }
        self.guard_host(&after)?;
        warnings.extend(self.guard_ports(&after)?);
        warnings.extend(self.only_at_a_start(&after));
        Ok(self.take(next, peer, warnings))
    }

    /// What a file would change; what follows for the flows of now is for [`Planning`], which
    /// takes its time without the state.
    ///
    /// # Errors
    /// If it is not valid.
    pub fn begin_plan(&self, file: &api::ConfigFile) -> Result<Planning, Refusal> {
        let (next, mut warnings) = self.declared(file)?;
        let after = next.desired();
        let guarded = self
            .guard(&next, &after)
            .and_then(|()| self.guard_host(&after))
            .and_then(|()| self.guard_ports(&after));
        let refused = match guarded {
            Ok(more) => {
                warnings.extend(more);
                None
            }
            Err(refusal) => Some(refusal.to_string()),
        };
        warnings.extend(self.only_at_a_start(&after));
        Ok(Planning {
            before: self.desired.clone(),
            after,
            standings: self.judge.standings().clone(),
            seed: self.datapath.seed(),
            refused,
            warnings,
        })
    }

    /// Counts the flows that what is planned would touch.
    pub fn end_plan(&self, planning: Planning, tables: &Tables) -> api::Plan {
        let differences = diff(&planning.before, &planning.after);
        api::Plan {
            changes: !differences.is_empty(),
            differences,
            flows: self.planned_flows(&planning.after, tables),
            slots: tables.moved(),
            refused: planning.refused,
            warnings: planning.warnings,
        }
    }

    fn declared(&self, file: &api::ConfigFile) -> Result<(Intent, Vec<String>), Refusal> {
        if file.text.len() as u64 > config::MAX_FILE_BYTES {
            return Err(Refusal::FileTooLarge { name: file.name.clone() });
        }
        let declared = Declared::parse(&file.name, &file.text)
            .map_err(|error| Refusal::File(format!("{:#}", anyhow::Error::from(error))))?;
        let next = self.intent.declare(declared, Take::Apply, Moment::now());
        let warnings = config::warnings(&next.desired());
        Ok((next, warnings))
    }

    /// Refuses what costs the users of a service more than its operator may mean; `--force` says that
    /// it is meant.
    fn guard(&self, next: &Intent, after: &Desired) -> Result<(), Refusal> {
        self.intent.guard(next, |service, backend| self.condition(service, backend))?;
        let indices = self.indices();
        translation_stays(&self.desired, after, |service| {
            let of = |backend: &Backend| indices.get(&service.identity(backend));
            let active = |index: &u16| u64::from(self.sweep.active[usize::from(*index)]);
            service.backends.iter().filter_map(of).map(active).sum()
        })
    }

    /// Refuses that NAT begins while the host's own sockets use its ports too. Where it has begun
    /// nothing is refused: who drains a backend can't mend that, and `sluice doctor` tells it.
    fn guard_ports(&self, after: &Desired) -> Result<Vec<String>, Refusal> {
        if self.desired.replaces_clients() || !after.replaces_clients() {
            return Ok(Vec::new());
        }
        match network::port_clash(self.nat_ports()) {
            Ok(None) => Ok(Vec::new()),
            Ok(Some(clash)) => Err(Refusal::Ports(clash)),
            Err(error) => Ok(vec![format!("{error}; so nat_ports may not be NAT's alone")]),
        }
    }

    /// Refuses that a service begins to take every port of an address of this host's own. Where one
    /// does already nothing is refused: it is a trouble, and any change may be the one that ends it.
    fn guard_host(&self, after: &Desired) -> Result<(), Refusal> {
        let clash = after.host_clash(&self.host_addresses);
        match clash.filter(|_| self.desired.host_clash(&self.host_addresses).is_none()) {
            None => Ok(()),
            Some(clash) => Err(Refusal::Host(clash)),
        }
    }

    /// What of a file takes effect only when the instance starts anew.
    fn only_at_a_start(&self, after: &Desired) -> Vec<String> {
        let (now, then) = (&self.desired, after);
        let mut warnings = Vec::new();
        if then.dataplane.flow_capacity != self.datapath.flow_capacity() {
            warnings.push(format!(
                "flow_capacity stays {} until `sluice detach` and a new start",
                self.datapath.flow_capacity()
            ));
        }
        if then.dataplane.nat_ports != self.nat_ports() {
            warnings.push(format!(
                "nat_ports stays {} until `sluice detach` and a new start",
                self.nat_ports()
            ));
        }
        if then.dataplane.hash_seed != now.dataplane.hash_seed {
            warnings.push("hash_seed stays as it is until `sluice detach` and a new start".into());
        }
        if then.dataplane.xdp_mode != now.dataplane.xdp_mode {
            warnings.push("xdp_mode is for interfaces that are attached from now on".into());
        }
        if then.http != now.http {
            warnings.push("http.listen changes when the daemon starts again".into());
        }
        warnings
    }

    /// An intent takes effect.
    fn take(&mut self, next: Intent, peer: &Peer, warnings: Vec<String>) -> api::Changed {
        let before = self.desired.clone();
        let is_same = self.intent == next;
        let differences = diff(&before, &next.desired());
        let generation = next.generation();
        let entries = differences.iter().map(|difference| {
            let text = match difference.action {
                api::Action::Change => difference.text.clone(),
                api::Action::Add | api::Action::Remove => {
                    format!("{} {}", difference.action.name(), difference.text)
                }
            };
            let (service, backend) = (&difference.service, &difference.backend);
            Entry::new(text).about(service.as_deref(), backend.as_deref()).by(peer, generation)
        });
        self.journal.note_all(api::EventKind::Change, entries);
        if !is_same {
            self.adopt(next);
            // Flows are counted from the moment at which no new ones come.
            if let Err(error) = self.sweep() {
                tracing::error!("can't sweep the flow table: {error:#}");
            }
            self.count();
        }
        let mut warnings = warnings;
        warnings.extend(self.keep_error.clone());
        warnings.extend(
            self.reconcile_error.iter().map(|error| format!("the maps are not as wanted: {error}")),
        );
        api::Changed {
            changed: !differences.is_empty(),
            generation: self.intent.generation(),
            differences,
            warnings,
        }
    }

    /// What is wanted, as a file.
    ///
    /// # Errors
    /// Only by a defect.
    pub fn export(&self) -> anyhow::Result<api::Exported> {
        let text = config::export(&self.desired).context("write TOML")?;
        Ok(api::Exported { text })
    }

    /// Drains that go on, and those that ended last, of backends that are still there.
    pub fn drains(&self, filter: &api::DrainFilter) -> Vec<api::Drain> {
        let now = Moment::now();
        let mut drains = Vec::new();
        for service in &self.desired.services {
            if filter.service.as_ref().is_some_and(|name| *name != service.name) {
                continue;
            }
            for backend in &service.backends {
                if filter.backend.as_ref().is_none_or(|name| *name == backend.name) {
                    drains.extend(drain(service, backend, now));
                }
            }
        }
        self.find_oldest(&mut drains);
        drains
    }

    /// Fills in how old the oldest flow of each drain is.
    fn find_oldest(&self, drains: &mut [api::Drain]) {
        let goes_on = |drain: &api::Drain| drain.admin == api::Admin::Draining;
        if !drains.iter().any(goes_on) {
            return;
        }
        let place: HashMap<(&str, &str), usize> = drains
            .iter()
            .enumerate()
            .filter(|(_, drain)| goes_on(drain))
            .map(|(place, drain)| ((&*drain.service, &*drain.backend), place))
            .collect();
        let mut of_index: HashMap<u16, usize> = HashMap::new();
        let by_identity = self.indices();
        for service in &self.desired.services {
            for backend in &service.backends {
                let index = by_identity.get(&service.identity(backend));
                let place = place.get(&(&*service.name, &*backend.name));
                if let (Some(index), Some(place)) = (index, place) {
                    of_index.insert(*index, *place);
                }
            }
        }
        let mut oldest: HashMap<usize, u64> = HashMap::new();
        let of = |backend: u16| of_index.contains_key(&backend);
        let scanned = self.datapath.each_flow(of, |flow| {
            if let Some(place) = of_index.get(&flow.backend).filter(|_| flow.state.is_active()) {
                let age = oldest.entry(*place).or_default();
                *age = (*age).max(flow.age_seconds as u64);
            }
            true
        });
        if let Err(error) = scanned {
            tracing::warn!("can't look at the flows: {error:#}");
        }
        for (place, age) in oldest {
            drains[place].oldest_seconds = Some(age);
        }
    }

    /// Index of every backend of the maps.
    pub fn indices(&self) -> BTreeMap<Identity, u16> {
        let indices = self.image.backends.keys();
        indices.filter_map(|index| Some((self.identity(*index)?, *index))).collect()
    }

    fn planned_flows(&self, after: &Desired, tables: &Tables) -> api::PlannedFlows {
        let mut fates: HashMap<Identity, Fate> = after
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(move |b| (service.identity(b), b)))
            .map(|(identity, backend)| (identity, Fate::of(backend)))
            .collect();
        for was in &self.desired.services {
            if after.services.iter().any(|is| ends_flows(was, is)) {
                let of = |backend| (was.identity(backend), Fate::Cut);
                fates.extend(was.backends.iter().map(of));
            }
        }
        let identities: HashMap<u16, Identity> =
            self.indices().into_iter().map(|(identity, index)| (index, identity)).collect();
        let keys = self.datapath.settings().hash_keys;
        let mut flows = api::PlannedFlows::default();
        let scanned = self.datapath.each_flow(
            |_| true,
            |flow| {
                if !flow.state.is_active() {
                    return true;
                }
                flows.total += 1;
                let identity = identities.get(&flow.backend);
                match identity.and_then(|identity| fates.get(identity)).unwrap_or(&Fate::Kept) {
                    Fate::Kept => {
                        flows.flows_kept += 1;
                        let moves = identity.is_some_and(|owner| tables.moves(*owner, flow, &keys));
                        flows.flows_moved += u64::from(moves);
                    }
                    Fate::Drained => flows.flows_drained += 1,
                    Fate::Cut => flows.flows_cut += 1,
                }
                true
            },
        );
        if let Err(error) = scanned {
            tracing::warn!("can't look at the flows: {error:#}");
        }
        flows
    }
}

/// What becomes of a backend's flows.
#[derive(Clone, Copy)]
enum Fate {
    Kept,
    Drained,
    Cut,
}

impl Fate {
    fn of(backend: &Backend) -> Self {
        match (backend.admin.backend_state(), backend.admin) {
            (BackendState::Reset | BackendState::Absent, _) => Self::Cut,
            (BackendState::Forward | BackendState::Suspect, Admin::Draining(_)) => Self::Drained,
            (BackendState::Forward | BackendState::Suspect, _) => Self::Kept,
        }
    }
}

fn drain(service: &Service, backend: &Backend, now: Moment) -> Option<api::Drain> {
    let seconds = |time: Duration| time.as_secs_f64();
    let told = |admin, from: Moment, until: Moment| api::Drain {
        service: service.name.clone(),
        backend: backend.name.clone(),
        admin,
        since: from.to_string(),
        deadline_seconds: 0.0,
        seconds: seconds(from.until(until)),
        flows_at_start: None,
        flows_left: 0,
        oldest_seconds: None,
        flows_cut: 0,
        new_flows_since_drain: 0,
    };
    match backend.admin {
        Admin::Enabled | Admin::Disabled => None,
        Admin::Draining(drain) => Some(api::Drain {
            deadline_seconds: seconds(now.until(drain.deadline)),
            flows_at_start: drain.start.map(|start| u64::from(start.flows)),
            flows_left: u64::from(drain.flows_left),
            new_flows_since_drain: drain.new_flows,
            ..told(api::Admin::Draining, drain.since, now)
        }),
        Admin::Drained(end) => Some(api::Drain {
            flows_at_start: Some(u64::from(end.flows_at_start)),
            flows_cut: u64::from(end.flows_cut),
            new_flows_since_drain: end.new_flows,
            ..told(api::Admin::Drained, end.since, end.until)
        }),
    }
}
