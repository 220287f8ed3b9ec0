//! Has the backends probed: the prober and the engine follow what is wanted and where it is.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use tokio::{sync::watch, task::block_in_place};

use crate::{
    datapath::ProberParts,
    health::{self, Closed, Direct, Engine, Path, Paths, Target},
    instance::Instance,
    model::{Desired, Via},
    network::{self, Interface},
    observe::Observed,
    prober::{Prober, Surroundings, ways},
};

/// Probes under way at once, at most: each takes two file descriptors.
const MOST: usize = 400;

/// The prober of an instance.
pub(super) struct Probing {
    engine: Arc<Engine>,
    /// `None`: this host has none, and status says why.
    prober: Option<Prober>,
    /// What was kept when states last changed.
    kept: BTreeMap<crate::model::Identity, health::Kept>,
    /// When it could not be kept.
    failed: Option<Instant>,
}

impl Probing {
    /// Begins to probe. What can't be probed is told in the status, and stops nothing.
    pub(super) async fn start(instance: &Instance, observed: &Observed) -> Self {
        let prober = match prober(instance, observed).await {
            Ok(prober) => Some(prober),
            Err(error) => {
                let error = format!("backends can't be probed by way of their VIPs: {error:#}");
                tracing::error!("{error}");
                observed.lock().notes.push(error);
                None
            }
        };
        let vip: Arc<dyn Path> = match &prober {
            Some(prober) => Arc::new(prober.path()),
            None => Arc::new(Closed("see the problems that `sluice status` names".to_owned())),
        };
        let engine = Arc::new(Engine::start(Paths { vip, backend: Arc::new(Direct) }, MOST));
        let mut probing = Self { engine, prober, kept: BTreeMap::new(), failed: None };
        probing.follow(observed).await;
        let mut state = observed.lock();
        probing.kept = std::mem::take(&mut state.kept_health);
        state.probes = Some(probing.engine.clone());
        drop(state);
        probing
    }

    /// Changes when a backend's state has.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.engine.changes()
    }

    /// After a change of what is wanted, of the next hops or of the interfaces.
    pub(super) async fn follow(&mut self, observed: &Observed) {
        let desired = observed.lock().desired.clone();
        if let Err(error) = self.follow_ways(observed, &desired).await {
            tracing::error!("can't take the ways of probes up: {error:#}");
        }
        let kept = observed.lock().kept_health.clone();
        self.engine.watch(targets(&desired), &kept);
    }

    async fn follow_ways(&mut self, observed: &Observed, desired: &Desired) -> Result<()> {
        let Some(prober) = &mut self.prober else { return Ok(()) };
        let own = network::own_addresses().await?;
        let (next_hops, mut dataplane) = {
            let state = observed.lock();
            let found = state.interfaces.iter().filter_map(|seen| seen.found.as_ref());
            (state.next_hops.clone(), found.map(|found| found.index).collect::<Vec<_>>())
        };
        let mut listening: Vec<Interface> = Vec::new();
        for hop in next_hops.values().flatten() {
            let known = listening.iter().any(|interface| interface.index == hop.interface);
            if !known && !dataplane.contains(&hop.interface) {
                listening.push(network::interface(&hop.interface_name).await?);
            }
        }
        prober.listen(&listening);
        dataplane.dedup();
        let around = Surroundings {
            next_hops: &next_hops,
            own: &own,
            dataplane: &dataplane,
            unheard: prober.unheard(),
        };
        let ways = block_in_place(|| {
            let mut state = observed.lock();
            let indices = state.indices();
            let ways = ways(desired.services.iter(), &around, |id| indices.get(id).copied());
            if state.probe_sources != ways.sources {
                state.probe_sources.clone_from(&ways.sources);
                state.try_reconcile();
            }
            ways
        });
        prober.follow(ways).await
    }

    /// Keeps what is seen, if it has changed: each second at most.
    pub(super) fn keep(&mut self, instance: &Instance) {
        let kept = self.engine.kept();
        if kept == self.kept {
            return;
        }
        match health::kept::write(&instance.state(), &kept) {
            Ok(()) => {
                self.kept = kept;
                self.failed = None;
            }
            // What is lost is only what a next start would know at once: told, and no more.
            Err(error) if self.failed.is_none() => {
                tracing::warn!("can't keep what is seen of the backends: {error}");
                self.failed = Some(Instant::now());
            }
            Err(_) => {}
        }
    }
}

async fn prober(instance: &Instance, observed: &Observed) -> Result<Prober> {
    let parts = ProberParts::of(&observed.lock().datapath)?;
    let prober = Prober::start(instance, parts).await?;
    observed
        .lock()
        .datapath
        .set_probe_interface(prober.interface())
        .context("tell the kernel program where answers go")?;
    Ok(prober)
}

/// Every backend that has a check, those that drain or are disabled too: their health is then
/// known when they are enabled.
fn targets(desired: &Desired) -> Vec<Target> {
    let mut targets = Vec::new();
    for service in &desired.services {
        let Some(check) = &service.health else { continue };
        let check = Arc::new(check.clone());
        let is_tunnel = service.forwarding == lb_common::forward::Forwarding::Ipip;
        for backend in &service.backends {
            targets.push(Target {
                fills_segment: is_tunnel && check.via == Via::Vip,
                ..Target::new(service, backend, &check)
            });
        }
    }
    targets
}
