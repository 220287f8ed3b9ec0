//! `sluice run`: wires the rooms together, in an order in which nothing is half attached.
//!
//! Everything that can be refused is refused before anything is attached; the maps are full
//! before the first frame comes in; the VIPs, which draw frames here, come last. When the
//! daemon goes, forwarding stays.

mod probing;
mod running;

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{sync::watch, task::block_in_place, time::timeout};

use self::{probing::Probing, running::watch_over};
use crate::{
    config,
    control::{
        api::{self, EventKind},
        server,
    },
    datapath::{self, Datapath, preflight},
    drain::Moment,
    http,
    instance::Instance,
    intent::kept::{Restored, Store},
    journal::Entry,
    model::Desired,
    network::{self, Interface, NextHops, Snapshot},
    observe::{InterfaceSeen, Observed, State},
    reconcile::{self, Image},
    seed::Seed,
};

/// How long the start waits for the backends' neighbours; those that answer later are taken
/// in when they do.
const FIRST_SNAPSHOT: Duration = Duration::from_millis(1500);

/// Runs an instance until SIGTERM or SIGINT.
///
/// # Errors
/// If it can't be started; nothing is left then, and what ran before still runs.
pub async fn run(instance: Instance, config: PathBuf) -> Result<()> {
    let text = config::read(&config)?;
    let name = config.display().to_string();
    let restored = Store::restore(&instance.state(), &name, &text, Moment::now())?;
    let desired = restored.intent.desired();
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

    let observed = start(&instance, restored, &interfaces, &snapshots).await?;
    let mut probing = Probing::start(&instance, &observed).await;
    block_in_place(|| {
        let mut state = observed.lock();
        state.watch_losses();
        state.look_for_troubles();
    });
    note(&observed, EventKind::Daemon, format!("forwarding, sluice {}", api::VERSION));
    if observed.lock().datapath.is_outdated() {
        let observed = observed.clone();
        datapath::upgrade::beside(&instance, move |done| {
            let (text, is_wrong) = match done {
                Ok(report) => (report.sentence(), report.reason.is_some()),
                Err(error) => {
                    (format!("the kernel program of another build stays: {error:#}"), true)
                }
            };
            let mut state = observed.lock();
            state.journal.note(EventKind::Upgrade, Entry::new(text.clone()));
            state.notes.extend(is_wrong.then_some(text));
        });
    }

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

    let result = watch_over(&observed, &next_hops, &config, &mut probing).await;
    let text = "stopping; forwarding goes on without the daemon, `sluice detach` ends it";
    note(&observed, EventKind::Daemon, text);
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
    restored: Restored,
    interfaces: &[Interface],
    snapshots: &watch::Receiver<Snapshot>,
) -> Result<Observed> {
    let host_addresses = network::host_addresses().await?;
    let (datapath, image) = match block_in_place(|| Datapath::adopt(instance))? {
        Some(datapath) => {
            tracing::info!("adopting the running instance");
            let image = block_in_place(|| reconcile::read(&datapath.maps))?;
            (datapath, Some(image))
        }
        None => {
            let desired = restored.intent.desired();
            if let Some(clash) = desired.host_clash(&host_addresses) {
                return Err(clash.into());
            }
            if desired.replaces_clients()
                && let Ok(Some(clash)) = network::port_clash(desired.dataplane.nat_ports)
            {
                return Err(clash.into());
            }
            let dataplane = desired.dataplane;
            let seed = match &dataplane.hash_seed {
                Some(text) => Seed::from_text(text),
                None => Seed::kept(&instance.state())?,
            };
            (block_in_place(|| Datapath::create(instance, &dataplane, &seed))?, None)
        }
    };
    let is_new = image.is_none();
    let mut state =
        State::new(instance.clone(), restored, datapath, image.unwrap_or_else(Image::default))?;
    state.host_addresses = host_addresses;
    state.next_hops = snapshots.borrow().clone();
    state.notes.extend(ignored_settings(&state));
    state.notes.extend(doubtful_ports(&state));
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
    let owned = state.image.vips.clone();
    block_in_place(|| {
        state.set_idle()?;
        state.reconcile()
    })?;
    let mode = state.desired.dataplane.xdp_mode;
    for interface in interfaces {
        // Asked anew: an adoption may have changed the program that is on it.
        state.datapath.attach(&network::interface(&interface.name).await?, mode)?;
    }
    state.datapath.detach_others(&state.desired.dataplane.interfaces)?;
    let wanted = own_addresses(&state.desired).await?;
    disown(&owned, wanted, &needed(state)).await?;
    state.interfaces = see_interfaces(&state.desired.dataplane.interfaces).await;
    block_in_place(|| {
        state.keep();
        state.sweep()
    })
}

/// Leaves nothing behind of a start that failed.
async fn give_up(state: &State) {
    if let Err(error) = datapath::detach(&state.instance).await {
        tracing::error!("can't clean up: {error:#}");
    }
}

/// Makes this host own the VIPs and the NAT addresses, so that its kernel answers ARP, ND and ping
/// for them.
async fn own_addresses(desired: &Desired) -> Result<BTreeSet<IpAddr>> {
    let wanted = desired.own_addresses();
    let added = network::own_vips(&wanted, &desired.dataplane.interfaces).await?;
    for address in &added {
        tracing::info!(%address, "VIP or NAT address added to this host");
    }
    Ok(wanted)
}

/// Addresses that stay on this host though they may not be wanted any more: the maps have them, so
/// flows may need them.
fn needed(state: &State) -> BTreeSet<IpAddr> {
    if state.desired.dataplane.own_vips { state.image.vips.clone() } else { BTreeSet::new() }
}

/// Takes those of `owned` off this host that are neither wanted nor needed. Returns those that are
/// ours from now on.
async fn disown(
    owned: &BTreeSet<IpAddr>,
    wanted: BTreeSet<IpAddr>,
    needed: &BTreeSet<IpAddr>,
) -> Result<BTreeSet<IpAddr>, network::Error> {
    let (staying, gone) = owned
        .difference(&wanted)
        .partition::<BTreeSet<IpAddr>, _>(|address| needed.contains(address));
    network::remove_vips(&gone).await?;
    Ok(&wanted | &staying)
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
    if dataplane.nat_ports != state.nat_ports() {
        notes.push(format!(
            "nat_ports stays {} until `sluice detach`: the running flows have their ports from there",
            state.nat_ports()
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

/// Why NAT may not have its ports alone. An instance that runs goes on all the same: to refuse the
/// daemon would mend nothing.
fn doubtful_ports(state: &State) -> Option<String> {
    if !state.desired.replaces_clients() {
        return None;
    }
    match network::port_clash(state.nat_ports()) {
        Ok(clash) => clash.map(|clash| clash.to_string()),
        Err(error) => Some(format!("{error}; so nat_ports may not be NAT's alone")),
    }
}

fn addresses(desired: &Desired) -> BTreeSet<IpAddr> {
    desired.services.iter().flat_map(|s| &s.backends).map(|backend| backend.address).collect()
}

async fn see_interfaces(names: &[String]) -> Vec<InterfaceSeen> {
    let mut seen = Vec::with_capacity(names.len());
    for name in names {
        seen.push(InterfaceSeen { name: name.clone(), found: network::interface(name).await.ok() });
    }
    seen
}

fn note(observed: &Observed, kind: EventKind, text: impl Into<String>) {
    observed.lock().journal.note(kind, Entry::new(text));
}
