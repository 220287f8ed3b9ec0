//! What the daemon knows: what is wanted, what the maps hold, what was last seen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::Result;
use lb_common::{abi::Settings, counters::Event};

use super::{
    InterfaceCounts, losses::Book, recorder::Recording, retired::Retired, traffic::Pools,
    trouble::Onsets,
};
use crate::{
    conservation::Ledger,
    control::api::{self, EventKind},
    datapath::{Datapath, Frames, IdleLimits, Sweep},
    drain::{Admin, Moment},
    health::{self, Engine, Judge, Kept, Traffic},
    instance::Instance,
    intent::{
        Count, Intent, Progress,
        kept::{Restored, Store},
    },
    journal::{Entry, Journal},
    model::{Backend, Desired, HostAddresses, Identity, IdleTimeouts, PortRange, Service, Vip},
    network::{Interface, Snapshot, XdpProgram},
    reconcile::{self, Image, InUse, ServiceImage, Write},
};

/// Services whose Maglev tables are compared slot by slot in one look at the maps: some 10 ms.
const CLOSE_LOOKS: u16 = 8;

/// Everything the daemon holds.
pub struct State {
    /// Who we are.
    pub instance: Instance,
    /// When the daemon started.
    pub since: SystemTime,
    /// What the operator has asked for.
    pub intent: Intent,
    /// What that comes to.
    pub desired: Desired,
    /// Programs and maps.
    pub datapath: Datapath,
    /// What the maps hold.
    pub image: Image,
    /// Where the backends are.
    pub next_hops: Snapshot,
    /// Our own addresses, from which probes are sent by way of the VIPs.
    pub probe_sources: BTreeSet<IpAddr>,
    /// What is made of the backends.
    pub judge: Judge,
    /// What an earlier daemon saw of them.
    pub kept_health: BTreeMap<Identity, Kept>,
    /// Who probes them; `None`: nobody yet.
    pub probes: Option<Arc<Engine>>,
    /// What clients' packets say of them.
    pub traffic: HashMap<Identity, Traffic>,
    /// What they were seen to do.
    pub(super) pools: Pools,
    /// Since when things are wrong.
    pub(super) onsets: Onsets,
    /// The last pass over the flow table.
    pub sweep: Sweep,
    /// The interfaces as last seen.
    pub interfaces: Vec<InterfaceSeen>,
    /// This host's own addresses, as last seen.
    pub host_addresses: HostAddresses,
    /// What interfaces count, as last seen.
    pub(super) counts: InterfaceCounts,
    /// Whether that is what our program has decided about, by the interface's name.
    pub(super) ledgers: BTreeMap<String, Ledger>,
    /// What became of their frames, by name.
    pub(super) frames: BTreeMap<String, Frames>,
    /// Frames that were lost after our program's decision.
    pub(super) losses: Book,
    /// Frames that were sent to backends which are gone.
    pub(super) retired: Retired,
    /// Another number: counters of backends began anew, or are counted no more.
    pub(super) counters_epoch: u64,
    /// Why the last reconciliation failed, if it did.
    pub reconcile_error: Option<String>,
    /// Why what was changed at run time is not on disk, if it is not.
    pub keep_error: Option<String>,
    /// Why the config file could not be taken up again, if it could not.
    pub reload_error: Option<String>,
    /// What else went wrong and stays so.
    pub notes: Vec<String>,
    /// Why an interface could not be attached to again, if it could not.
    pub attach_error: Option<String>,
    /// Services that the attached program does not forward as it should, one sentence each.
    pub not_forwarded: Vec<String>,
    /// How often the maps were made to follow a change.
    pub reconciliations: api::Reconciliations,
    /// Writes that mended what somebody else had changed in the maps.
    pub drift_repairs: u64,
    /// What happened.
    pub journal: Journal,
    /// What was counted, second by second.
    pub(super) recording: Recording,
    /// Where the intent is kept.
    store: Store,
    /// When the maps were last changed: what a sweep begun before says of idle backends is old.
    changed: Instant,
    /// When the last sweep began.
    swept: Option<Instant>,
    /// The services' own time-outs.
    limits: IdleLimits,
    /// Where the next close look at Maglev tables begins.
    close_look: u16,
}

/// A configured interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSeen {
    /// Its name.
    pub name: String,
    /// What it is; `None` if there is no such interface.
    pub found: Option<Interface>,
}

impl InterfaceSeen {
    /// The program on it.
    pub fn xdp(&self) -> Option<XdpProgram> {
        self.found.as_ref().and_then(|interface| interface.xdp)
    }
}

/// What the last sweep says of what nobody wants any more.
struct LastSweep<'s> {
    sweep: &'s Sweep,
    /// It began after the last change of the maps.
    is_newer: bool,
}

impl InUse for LastSweep<'_> {
    fn is_idle(&self, backend: u16) -> bool {
        self.is_newer && self.sweep.entries[usize::from(backend)] == 0
    }

    fn uses_nat_address(&self, index: u16) -> bool {
        !self.is_newer || self.sweep.uses_nat_address(index)
    }
}

impl State {
    /// A state about which nothing has been seen yet.
    ///
    /// # Errors
    /// If the kernel does not tell of a map.
    pub fn new(
        instance: Instance,
        restored: Restored,
        datapath: Datapath,
        image: Image,
    ) -> Result<Self> {
        let Restored { intent, store, notes } = restored;
        let kept_health = health::kept::read(&instance.state());
        let journal = Journal::of(&instance.state());
        let desired = intent.desired();
        let retired = Retired::restore(&instance.state(), datapath.maps.traffic_id()?);
        Ok(Self {
            recording: Recording::start(&instance, &journal, &desired),
            journal,
            instance,
            since: SystemTime::now(),
            desired,
            intent,
            limits: datapath.idle_limits(std::iter::empty()),
            datapath,
            image,
            next_hops: Snapshot::default(),
            probe_sources: BTreeSet::new(),
            judge: Judge::default(),
            kept_health,
            probes: None,
            traffic: HashMap::new(),
            pools: Pools::new(),
            onsets: Onsets::default(),
            sweep: Sweep::default(),
            interfaces: Vec::new(),
            host_addresses: HostAddresses::new(),
            counts: InterfaceCounts::default(),
            ledgers: BTreeMap::new(),
            frames: BTreeMap::new(),
            losses: Book::default(),
            retired,
            counters_epoch: 0,
            reconcile_error: None,
            keep_error: None,
            reload_error: None,
            notes,
            attach_error: None,
            not_forwarded: Vec::new(),
            reconciliations: api::Reconciliations::default(),
            drift_repairs: 0,
            store,
            changed: Instant::now(),
            swept: None,
            close_look: 0,
        })
    }

    /// What NAT takes its ports from, whatever has been asked for since.
    pub fn nat_ports(&self) -> PortRange {
        let Settings { nat_port_first: first, nat_port_count: count, .. } =
            *self.datapath.settings();
        PortRange { first, last: first.saturating_add(count.saturating_sub(1)) }
    }

    /// Makes the maps hold what is wanted.
    ///
    /// # Errors
    /// At the first write that fails; the next call goes on from there.
    pub fn reconcile(&mut self) -> Result<()> {
        self.judge();
        let wanted = reconcile::wanted(
            &self.desired,
            &self.next_hops,
            self.judge.standings(),
            &self.datapath.seed(),
            self.client_mtu(),
        );
        let is_newer = self.swept.is_some_and(|swept| swept > self.changed);
        let in_use = LastSweep { sweep: &self.sweep, is_newer };
        let writes = reconcile::plan(&self.image, &wanted, &self.probe_sources, &in_use)?;
        if writes.is_empty() {
            return Ok(());
        }
        tracing::debug!(writes = writes.len(), "reconciling");
        let begun = Instant::now();
        let result = reconcile::apply(&writes, &mut self.datapath.maps, &mut self.image);
        self.changed = Instant::now();
        self.retire(&writes);
        let figures = &mut self.reconciliations;
        figures.total += 1;
        figures.seconds_total += begun.elapsed().as_secs_f64();
        match &result {
            Ok(()) => figures.maglev_builds_total += reconcile::tables(&writes),
            Err(_) => figures.failed_total += 1,
        }
        result
    }

    /// The smallest MTU of the interfaces where clients' packets arrive, if they are known.
    pub(super) fn client_mtu(&self) -> Option<u16> {
        let found = self.interfaces.iter().filter_map(|seen| seen.found.as_ref());
        found.map(|interface| u16::try_from(interface.mtu).unwrap_or(u16::MAX)).min()
    }

    /// After these writes: the frames of backends that are gone stay in the sum of all verdicts.
    fn retire(&mut self, writes: &[Write]) {
        let mut gone = reconcile::backends_removed(writes);
        gone.retain(|index| !self.image.backends.contains_key(index));
        match self.datapath.maps.packets(&gone) {
            Ok(packets) => self.retired.add(packets),
            Err(error) => tracing::warn!("can't read the counters: {error:#}"),
        }
        if !gone.is_empty() || reconcile::clears_counters(writes) {
            self.counters_epoch += 1;
        }
    }

    /// [`Self::reconcile`], with what went wrong kept for those who ask, and logged once.
    pub fn try_reconcile(&mut self) {
        let error = self.reconcile().err().map(|error| format!("{error:#}"));
        if error.is_some() && error != self.reconcile_error {
            self.trouble(&format!(
                "the maps are not as wanted: {}",
                error.as_deref().unwrap_or_default()
            ));
        }
        self.reconcile_error = error;
    }

    /// Takes in another intent: it holds from now on, in the maps and on disk.
    pub fn adopt(&mut self, intent: Intent) {
        self.intent = intent;
        self.follow();
        self.keep();
    }

    /// Makes the maps follow the intent.
    fn follow(&mut self) {
        self.desired = self.intent.desired();
        if let Err(error) = self.set_idle() {
            tracing::error!("can't set the idle time-outs: {error:#}");
        }
        self.try_reconcile();
    }

    /// Makes the flow table's clock follow the services' time-outs.
    ///
    /// # Errors
    /// If the settings can't be written.
    pub fn set_idle(&mut self) -> Result<()> {
        const NOTE: &str = "idle_timeout: some service's is longer than the running flow table can \
                            count; until `sluice detach` and a new start it is cut";
        let longest = |longest: IdleTimeouts, service: &Service| longest.max(service.idle);
        let longest = self.desired.services.iter().fold(IdleTimeouts::default(), longest);
        let fits = self.datapath.set_idle(&longest)?;
        self.notes.retain(|note| note != NOTE);
        if !fits {
            self.notes.push(NOTE.to_owned());
        }
        Ok(())
    }

    /// Keeps the intent on disk; what fails is tried again each second, and told meanwhile.
    pub fn keep(&mut self) {
        let error = self.store.keep(&self.intent).err().map(|error| {
            format!(
                "can't write {}: {error}; what was changed at run time holds, but is lost if \
                 this daemon restarts before the disk can be written",
                self.instance.state().join("state.json").display()
            )
        });
        if let (Some(error), None) = (&error, &self.keep_error) {
            self.trouble(error);
        }
        self.keep_error = error;
    }

    /// Notes that something is wrong.
    pub fn trouble(&self, text: &str) {
        self.journal.note(EventKind::Trouble, Entry::new(text));
    }

    /// The `--config` file, with this text, is what was taken up last.
    pub fn took_up(&mut self, text: &str) {
        self.store.took_up(text);
    }

    /// Frees what has expired in the flow table, and counts the rest.
    ///
    /// # Errors
    /// If the kernel does not tell the time.
    pub fn sweep(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.sweep = self.datapath.sweep(&self.limits)?;
        self.swept = Some(begun);
        Ok(())
    }

    /// Tells the intent what the last sweep saw: drains come to their end by this.
    pub fn count(&mut self) {
        let is_newer = self.swept.is_some_and(|swept| swept > self.changed);
        if !is_newer || !self.intent.waits() {
            return;
        }
        let counts = self.counts();
        let progress =
            self.intent.counted(|identity| counts.get(&identity).copied(), Moment::now());
        match progress {
            Progress::None => {}
            Progress::Figures => self.desired = self.intent.desired(),
            Progress::States => {
                self.tell_ends();
                self.follow();
                self.keep();
            }
        }
    }

    /// Logs the drains that have ended; `desired` is what was before.
    fn tell_ends(&self) {
        let after = self.intent.desired();
        for service in &self.desired.services {
            for backend in &service.backends {
                let identity = service.identity(backend);
                let Admin::Draining(_) = backend.admin else { continue };
                let now = after
                    .services
                    .iter()
                    .flat_map(|service| service.backends.iter().map(move |b| (service, b)))
                    .find(|(service, backend)| service.identity(backend) == identity);
                if let Some((_, Backend { admin: Admin::Drained(end), .. })) = now {
                    let text = format!(
                        "drained: {} flows at the start, {} cut, {} new since",
                        end.flows_at_start, end.flows_cut, end.new_flows
                    );
                    let about = (Some(&*service.name), Some(&*backend.name));
                    self.journal.note(EventKind::Drained, Entry::new(text).about(about.0, about.1));
                }
            }
        }
    }

    /// What the last sweep saw of every backend of the maps.
    fn counts(&self) -> HashMap<Identity, Count> {
        let indices: Vec<u16> = self.image.backends.keys().copied().collect();
        let counters = self.datapath.maps.counters(&indices).unwrap_or_else(|error| {
            tracing::warn!("can't read the counters: {error:#}");
            vec![Default::default(); indices.len()]
        });
        let with = indices.into_iter().zip(counters);
        with.filter_map(|(index, counters)| {
            let count = Count {
                active: self.sweep.active[usize::from(index)],
                entries: self.sweep.entries[usize::from(index)],
                new_flows_total: counters.event(Event::NewFlow),
            };
            Some((self.identity(index)?, count))
        })
        .collect()
    }

    /// What a backend of the maps is.
    pub fn identity(&self, index: u16) -> Option<Identity> {
        let backend = self.image.backends.get(&index)?;
        let key = self.image.services.get(&backend.service)?.service.key();
        let port = u16::from_be_bytes(backend.port);
        Some((Vip::from(&key), SocketAddr::new(backend.address.into(), port)))
    }

    /// Makes the sweep keep each service's own time-outs.
    pub fn limit(&mut self) {
        let idle: HashMap<_, _> =
            self.desired.services.iter().map(|service| (service.key(), &service.idle)).collect();
        let limits = self.image.backends.iter().filter_map(|(index, backend)| {
            let service = self.image.services.get(&backend.service)?;
            Some((*index, *idle.get(&service.service.key())?))
        });
        self.limits = self.datapath.idle_limits(limits);
    }

    /// Looks whether the maps hold what we wrote, and mends what they don't.
    ///
    /// # Errors
    /// If they can't be read, or written.
    pub fn mend(&mut self) -> Result<()> {
        if !self.datapath.mend_settings()? {
            self.drift_repairs += 1;
            self.journal.note(EventKind::Drift, Entry::new("SETTINGS was changed; written again"));
        }
        if !self.datapath.mend_interfaces()? {
            self.drift_repairs += 1;
            let text = "INTERFACES was changed; written again";
            self.journal.note(EventKind::Drift, Entry::new(text));
        }
        let services = self.image.services.keys().last().map_or(0, |last| last + 1);
        let from = if self.close_look < services { self.close_look } else { 0 };
        self.close_look = from.saturating_add(CLOSE_LOOKS);
        let seen = reconcile::look(&self.datapath.maps, &self.image, from..self.close_look)?;
        let repairs = reconcile::repairs(&self.image, &seen);
        let entries = repairs.iter().map(|repair| {
            Entry::new(format!("{} was changed; written again", reconcile::describe(repair)))
        });
        self.journal.note_all(EventKind::Drift, entries);
        reconcile::apply(&repairs, &mut self.datapath.maps, &mut self.image)?;
        self.reconciliations.maglev_builds_total += reconcile::tables(&repairs);
        self.drift_repairs += repairs.len() as u64;
        Ok(())
    }

    /// Puts the plain program back after a `sluice trace` that was killed.
    pub fn end_abandoned_trace(&self) {
        match self.datapath.end_abandoned_trace() {
            Ok(false) => {}
            Ok(true) => {
                let text = "a trace was killed: the plain program is back";
                self.journal.note(EventKind::Attach, Entry::new(text.to_owned()));
            }
            Err(error) => tracing::error!("{error:#}"),
        }
    }

    /// Attaches to the configured interfaces that run no program; tells whether it did. One that
    /// runs somebody else's is left alone.
    pub fn attach_again(&mut self) -> bool {
        let mut attached = false;
        let mut error = None;
        for interface in self.interfaces.iter().filter_map(|seen| seen.found.as_ref()) {
            if interface.xdp.is_some() {
                continue;
            }
            match self.datapath.attach(interface, self.desired.dataplane.xdp_mode) {
                Ok(()) => {
                    let text = format!("{} ran no program: attached", interface.name);
                    self.journal.note(EventKind::Attach, Entry::new(text));
                    attached = true;
                }
                Err(refused) => error = Some(format!("{refused:#}")),
            }
        }
        if error.is_some() && error != self.attach_error {
            self.trouble(error.as_deref().unwrap_or_default());
        }
        self.attach_error = error;
        attached
    }

    /// Whether some backend only waits for its last flow to end.
    pub fn has_orphans(&self) -> bool {
        let wanted: HashSet<_> = self.desired.services.iter().map(Service::key).collect();
        let is_gone =
            |service: &ServiceImage| !service.listed && !wanted.contains(&service.service.key());
        !self.image.orphans.is_empty() || self.image.services.values().any(is_gone)
    }
}
