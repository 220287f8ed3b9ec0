//! `sluice run`: wires the rooms together, in an order in which nothing is half attached.
//!
//! Everything that can be refused is refused before anything is attached; the maps are full
//! before the first frame comes in; the VIPs, which draw frames here, come last. When the
//! daemon goes, forwarding stays.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use lb_common::reason::Reason;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::block_in_place,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    config,
    control::server,
    datapath::{self, Datapath, preflight},
    http,
    instance::Instance,
    model::Desired,
    network::{self, Interface, NextHops, Snapshot},
    observe::{InterfaceSeen, Observed, State},
    reconcile::{self, Image},
    seed::Seed,
};

/// How long the start waits for the backends' neighbours; those that answer later are taken
/// in when they do.
const FIRST_SNAPSHOT: Duration = Duration::from_millis(1500);
/// How often the flow table is swept and the interfaces are looked at.
const ROUND: Duration = Duration::from_secs(1);

/// Runs an instance until SIGTERM or SIGINT.
///
/// # Errors
/// If it can't be started; nothing is left then, and what ran before still runs.
pub async fn run(instance: Instance, config: PathBuf) -> Result<()> {
    let desired = config::load(&config)?;
    for warning in config::warnings(&desired) {
        tracing::warn!("{warning}");
    }
    preflight()?;
    let mut interfaces = Vec::new();
    for name in &desired.dataplane.interfaces {
        interfaces.push(network::interface(name).await?);
    }
    let claim = server::claim(&instance).await?;
    let next_hops = NextHops::start().await?;
    next_hops.watch(addresses(&desired));
    let mut snapshots = next_hops.snapshots();
    if timeout(FIRST_SNAPSHOT, snapshots.changed()).await.is_err() {
        tracing::warn!("no answer yet about where the backends are; going on without");
    }

    let observed = start(&instance, desired, &interfaces, &snapshots).await?;
    tracing::info!(instance = instance.name(), "forwarding");

    let (stop, stopping) = watch::channel(false);
    let stopped = || {
        let mut stopping = stopping.clone();
        async move {
            // An error: the sender is gone, which says the same.
            let _ = stopping.wait_for(|stop| *stop).await;
        }
    };
    let control = Arc::new(observed.clone());
    let socket = tokio::spawn(server::serve(claim, control.clone(), stopped()));
    let mut pages = None;
    let listen = observed.lock().desired.http;
    if let Some(address) = listen {
        match http::bind(address).await {
            Ok(listener) => pages = Some(tokio::spawn(http::serve(listener, control, stopped()))),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!("{error}");
                observed.lock().notes.push(error);
            }
        }
    }

    let result = watch_over(&observed, snapshots).await;
    tracing::info!("stopping; forwarding goes on without the daemon, `sluice detach` ends it");
    // Fails only if nobody listens any more.
    let _ = stop.send(true);
    socket.await.context("stop the control server")?;
    if let Some(pages) = pages {
        pages.await.context("stop the HTTP server")?;
    }
    result
}

/// From nothing, or from what is pinned, to forwarding.
async fn start(
    instance: &Instance,
    desired: Desired,
    interfaces: &[Interface],
    snapshots: &watch::Receiver<Snapshot>,
) -> Result<Observed> {
    let (datapath, image) = match block_in_place(|| Datapath::adopt(instance))? {
        Some(datapath) => {
            tracing::info!("adopting the running instance");
            let image = block_in_place(|| reconcile::read(&datapath.maps))?;
            (datapath, Some(image))
        }
        None => {
            let seed = match &desired.dataplane.hash_seed {
                Some(text) => Seed::from_text(text),
                None => Seed::kept(&instance.state())?,
            };
            (block_in_place(|| Datapath::create(instance, &desired.dataplane, &seed))?, None)
        }
    };
    let is_new = image.is_none();
    let mut state =
        State::new(instance.clone(), desired, datapath, image.unwrap_or_else(Image::default));
    state.next_hops = snapshots.borrow().clone();
    state.notes = ignored_settings(&state);
    for note in &state.notes {
        tracing::warn!("{note}");
    }
    match bring_up(&mut state, interfaces).await {
        Ok(()) => Ok(Observed::new(state)),
        Err(error) => {
            if is_new {
                give_up(&state).await;
            }
            Err(error)
        }
    }
}

async fn bring_up(state: &mut State, interfaces: &[Interface]) -> Result<()> {
    let vips_before: BTreeSet<IpAddr> =
        state.image.services.values().map(|image| image.service.key.address.into()).collect();
    block_in_place(|| state.reconcile())?;
    let mode = state.desired.dataplane.xdp_mode;
    for interface in interfaces {
        state.datapath.attach(interface, mode)?;
    }
    state.datapath.detach_others(&state.desired.dataplane.interfaces)?;
    let wanted = own_vips(&state.desired).await?;
    network::remove_vips(&vips_before.difference(&wanted).copied().collect()).await?;
    state.interfaces = see_interfaces(&state.desired.dataplane.interfaces).await;
    block_in_place(|| state.sweep())
}

/// Leaves nothing behind of a start that failed.
async fn give_up(state: &State) {
    if let Err(error) = datapath::detach(&state.instance).await {
        tracing::error!("can't clean up: {error:#}");
    }
}

/// Makes this host own the VIPs, so that its kernel answers ARP, ND and ping for them.
async fn own_vips(desired: &Desired) -> Result<BTreeSet<IpAddr>> {
    let wanted: BTreeSet<IpAddr> = if desired.dataplane.own_vips {
        desired.services.iter().map(|service| service.vip.ip()).collect()
    } else {
        BTreeSet::new()
    };
    let added = network::own_vips(&wanted, &desired.dataplane.interfaces).await?;
    for vip in &added {
        tracing::info!(%vip, "VIP added to this host");
    }
    Ok(wanted)
}

/// What the config says but an adopted instance can't take up.
fn ignored_settings(state: &State) -> Vec<String> {
    let mut notes = Vec::new();
    let dataplane = &state.desired.dataplane;
    if dataplane.flow_capacity != state.datapath.flow_capacity() {
        notes.push(format!(
            "flow_capacity stays {} until `sluice detach`: the running flow table has that size",
            state.datapath.flow_capacity()
        ));
    }
    if dataplane
        .hash_seed
        .as_ref()
        .is_some_and(|text| Seed::from_text(text) != state.datapath.seed())
    {
        notes.push(
            "hash_seed stays what it was until `sluice detach`: the running flows hang on it"
                .to_owned(),
        );
    }
    notes
}

fn addresses(desired: &Desired) -> BTreeSet<IpAddr> {
    desired.services.iter().flat_map(|s| &s.backends).map(|backend| backend.address).collect()
}

async fn see_interfaces(names: &[String]) -> Vec<InterfaceSeen> {
    let mut seen = Vec::with_capacity(names.len());
    for name in names {
        let xdp = network::interface(name).await.ok().and_then(|interface| interface.xdp);
        seen.push(InterfaceSeen { name: name.clone(), xdp });
    }
    seen
}

/// Keeps the maps as wanted until a signal comes.
async fn watch_over(observed: &Observed, mut snapshots: watch::Receiver<Snapshot>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            Ok(()) = snapshots.changed() => {
                let next_hops = snapshots.borrow_and_update().clone();
                log_changes(&observed.lock().next_hops, &next_hops);
                observed.lock().next_hops = next_hops;
                block_in_place(|| reconcile(observed));
            }
            _ = rounds.tick() => {
                let names = observed.lock().desired.dataplane.interfaces.clone();
                let interfaces = see_interfaces(&names).await;
                let desired = {
                    let mut state = observed.lock();
                    state.interfaces = interfaces;
                    state.desired.clone()
                };
                // An interface that was taken down has lost its IPv6 addresses.
                if let Err(error) = own_vips(&desired).await {
                    tracing::warn!("can't put the VIPs on this host: {error:#}");
                }
                block_in_place(|| round(observed));
            }
        }
    }
}

fn round(observed: &Observed) {
    let mut state = observed.lock();
    if let Err(error) = state.sweep() {
        tracing::error!("can't sweep the flow table: {error:#}");
    }
    let try_again = state.reconcile_error.is_some() || state.has_orphans();
    drop(state);
    if try_again {
        reconcile(observed);
    }
}

fn reconcile(observed: &Observed) {
    let mut state = observed.lock();
    let error = state.reconcile().err().map(|error| format!("{error:#}"));
    if let Some(error) =
        error.as_ref().filter(|error| state.reconcile_error.as_ref() != Some(*error))
    {
        tracing::error!("the maps are not as wanted: {error}");
    }
    state.reconcile_error = error;
}

fn log_changes(before: &Snapshot, after: &Snapshot) {
    for (address, now) in after.iter() {
        let was = before.get(address);
        match (was, now) {
            (Some(Err(_)) | None, Ok(hop)) => {
                tracing::info!(%address, interface = &*hop.interface_name, "next hop resolved");
            }
            (Some(Ok(_)) | None, Err(error)) => {
                tracing::warn!("{error} (reason {} while it lasts)", Reason::NoNextHop.name());
            }
            _ => {}
        }
    }
}
