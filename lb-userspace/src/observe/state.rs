//! What the daemon knows: what is wanted, what the maps hold, what was last seen.

mod counted;
mod repair;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::Result;
use lb_common::abi::Settings;

use super::{
    InterfaceCounts, losses::Book, recorder::Recording, retired::Retired, traffic::Pools,
    trouble::Onsets,
};
use crate::{
    conservation::Ledger,
    control::api::{self, EventKind},
    datapath::{Datapath, Frames, IdleLimits, Sweep},
    health::{self, Engine, Judge, Kept, Traffic},
    instance::Instance,
    intent::{
        Intent,
        kept::{Restored, Store},
    },
    journal::{Entry, Journal},
    model::{Desired, HostAddresses, Identity, IdleTimeouts, PortRange, Service, Vip},
    network::{Interface, Snapshot, XdpProgram},
    reconcile::{self, Image, InUse, ServiceImage, Write},
};

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

    /// Whether some backend only waits for its last flow to end.
    pub fn has_orphans(&self) -> bool {
        let wanted: HashSet<_> = self.desired.services.iter().map(Service::key).collect();
        let is_gone =
            |service: &ServiceImage| !service.listed && !wanted.contains(&service.service.key());
        !self.image.orphans.is_empty() || self.image.services.values().any(is_gone)
    }
}
