//! Health probes by way of the VIPs: real connections from a network namespace of our own, which
//! the kernel program forwards as it forwards traffic, each to the backend that it is for.
//!
//! `ways` decides which source address each probe has, `ports` which port; that tells the program
//! `probe`, on the host's end of the veth pair, the backend. The answer comes straight to the
//! source address. Where it arrives, `sluice` (where clients' frames arrive too) or `answers`
//! (attached here, where they don't) hands it over. See `lb_common::probe` for the kernel's part
//! and `network::ProbeNamespace` for the namespace.
//!
//! Nothing of it is pinned: without the daemon nobody probes, and forwarding needs no prober.
//!
//! A connection of this host's own to a VIP that it does not own itself may be mistaken for a
//! probe if it has the port of one; such a host should own the VIP (`own_vips`).

mod path;
mod ports;
mod ways;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Instant,
};

use anyhow::{Context as _, Result};

use self::ports::Ports;
pub use self::{
    path::VipPath,
    ways::{NoWay, Surroundings, Way, Ways, ways},
};
use crate::{
    datapath::{Held, ProberParts, ProberProgram, Probes},
    instance::Instance,
    model::Identity,
    network::{Interface, ProbeNamespace},
};

type WaysByBackend = BTreeMap<Identity, Result<Way, NoWay>>;

/// What probes share.
struct Shared {
    namespace: ProbeNamespace,
    ways: RwLock<Arc<WaysByBackend>>,
    ports: Mutex<Ports>,
    probes: Probes,
}

/// The namespace, its programs, and where answers are listened for. Dropped, it ends when the
/// last [`VipPath`] has.
pub struct Prober {
    shared: Arc<Shared>,
    answers: ProberProgram,
    /// By the interface's index.
    listening: BTreeMap<u32, Held>,
    /// Where it can't listen, by index, and why.
    unheard: BTreeMap<u32, String>,
    /// On the two ends of the veth pair.
    _held: [Held; 2],
}

impl Prober {
    /// Makes the namespace and attaches the programs. Before the first probe, the datapath must be
    /// told of [`Self::interface`], and `follow` of the ways.
    ///
    /// # Errors
    /// If this process may not make a network namespace, or the kernel takes the programs not.
    pub async fn start(instance: &Instance, parts: ProberParts) -> Result<Self> {
        let ProberParts { mut probe, mut pass, answers, probes } = parts;
        let owner = instance.name();
        let namespace = ProbeNamespace::create(owner).await.context("probe by way of the VIPs")?;
        let far_end = namespace.far_end().clone();
        let inside = namespace.run(move || pass.attach_native(&far_end)).await??;
        let outside = probe.attach_generic(namespace.host_end())?;
        let shared =
            Shared { namespace, ways: RwLock::default(), ports: Mutex::new(Ports::new()), probes };
        Ok(Self {
            shared: Arc::new(shared),
            answers,
            listening: BTreeMap::new(),
            unheard: BTreeMap::new(),
            _held: [inside, outside],
        })
    }

    /// Index of the interface that the datapath must hand answers to.
    pub fn interface(&self) -> u32 {
        self.shared.namespace.host_end().index
    }

    /// Listens for answers on these interfaces, which lead to backends but where no clients'
    /// frames arrive, and on no others. Where another program is, says so in
    /// [`Self::unheard`]; call it now and then, for that one may go.
    pub fn listen(&mut self, interfaces: &[Interface]) {
        let wanted = |index: &u32| interfaces.iter().any(|interface| interface.index == *index);
        self.listening.retain(|index, _| wanted(index));
        self.unheard.clear();
        for interface in interfaces {
            if self.listening.contains_key(&interface.index) && interface.xdp.is_some() {
                continue;
            }
            // If the program is not there any more, somebody has taken it off by force.
            self.listening.remove(&interface.index);
            match self.answers.attach(interface) {
                Ok(held) => drop(self.listening.insert(interface.index, held)),
                Err(error) => drop(self.unheard.insert(interface.index, format!("{error:#}"))),
            }
        }
    }

    /// Interfaces, by index, where answers can't be heard, and why.
    pub fn unheard(&self) -> &BTreeMap<u32, String> {
        &self.unheard
    }

    /// From now on probes go these ways. The datapath must be told of their sources too.
    ///
    /// # Errors
    /// If the kernel does not take an address; then the ways are as they were.
    pub async fn follow(&self, ways: Ways) -> Result<()> {
        self.shared.namespace.set_sources(&ways.sources).await?;
        let mut current = self.shared.ways.write().unwrap_or_else(PoisonError::into_inner);
        if **current != ways.ways {
            *current = Arc::new(ways.ways);
        }
        Ok(())
    }

    /// What makes connections by these ways.
    pub fn path(&self) -> VipPath {
        VipPath::new(self.shared.clone())
    }
}

impl Shared {
    fn way(&self, identity: &Identity) -> Result<Way, NoWay> {
        let ways = self.ways.read().unwrap_or_else(PoisonError::into_inner).clone();
        ways.get(identity).cloned().unwrap_or(Err(NoWay::NotYet))
    }

    /// A port that is ours until given back, and that stands for this backend until rested.
    fn take_port(&self, backend: u16) -> Option<u16> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while let Some(port) = ports.rested(now) {
            self.probes.set(port, None);
        }
        let port = ports.take()?;
        self.probes.set(port, Some(backend));
        Some(port)
    }

    fn give_port_back(&self, port: u16) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.give_back(port, Instant::now());
    }
}
