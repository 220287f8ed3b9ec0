//! What the daemon does as long as it runs: it follows changes, mends, sweeps, counts and looks for
//! troubles.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use lb_common::reason::Reason;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::block_in_place,
    time::{MissedTickBehavior, interval},
};

use super::{addresses, disown, needed, own_addresses, probing::Probing, see_interfaces};
use crate::{
    config,
    control::{
        Peer,
        api::{self, EventKind},
    },
    journal::Entry,
    network::{self, Interface, NextHops, Snapshot},
    observe::{InterfaceCounts, Observed},
};

/// How often flows are counted while a backend drains.
const PULSE: Duration = Duration::from_millis(200);
/// Addresses that are named when many can, or can't, be reached at once: behind one gateway there
/// may be thousands.
const TOLD: usize = 20;
/// Pulses between two looks whether the maps hold what we wrote: within a second, it is mended.
const MEND: u32 = 4;
/// Pulses between two sweeps of the flow table, and two looks at the interfaces.
const ROUND: u32 = 5;
/// Pulses between two looks at what the drivers count of XDP: some must ask their card.
const DRIVERS: u32 = 5 * ROUND;

/// Keeps the maps as wanted until a signal comes.
pub(super) async fn watch_over(
    observed: &Observed,
    next_hops: &NextHops,
    config: &Path,
    probing: &mut Probing,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut hang_up = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let instance = observed.lock().instance.clone();
    let mut snapshots = next_hops.snapshots();
    let mut health = probing.changes();
    let mut pulses = interval(PULSE);
    pulses.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = 0u32;
    let mut owned = {
        let state = observed.lock();
        &state.desired.own_addresses() | &needed(&state)
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hang_up.recv() => {
                block_in_place(|| reload(observed, config));
                follow(observed, next_hops, &mut owned).await;
                probing.follow(observed).await;
            }
            () = observed.changed() => {
                follow(observed, next_hops, &mut owned).await;
                probing.follow(observed).await;
            }
            Ok(()) = health.changed() => {
                block_in_place(|| observed.lock().look_at_backends());
            }
            Ok(()) = snapshots.changed() => {
                let snapshot = snapshots.borrow_and_update().clone();
                note_changes(observed, &snapshot);
                block_in_place(|| {
                    let mut state = observed.lock();
                    state.next_hops = snapshot;
                    state.try_reconcile();
                });
                probing.follow(observed).await;
            }
            _ = pulses.tick() => {
                pulse = pulse.wrapping_add(1);
                if pulse.is_multiple_of(ROUND) {
                    look_around(observed, &mut owned).await;
                    count_frames(observed, pulse).await;
                    probing.follow(observed).await;
                    probing.keep(&instance);
                }
                block_in_place(|| beat(observed, pulse));
            }
        }
    }
}

/// The file again, as `sluice apply` would take it up.
fn reload(observed: &Observed, config: &Path) {
    let name = config.display().to_string();
    let ourselves = Peer { pid: i32::try_from(std::process::id()).ok(), uid: 0, gid: 0 };
    let mut state = observed.lock();
    let taken = config::read(config).map_err(anyhow::Error::from).and_then(|text| {
        let file = api::ConfigFile { name, text, force: false };
        let changed = state.apply(&file, &ourselves)?;
        state.took_up(&file.text);
        state.keep();
        Ok(changed)
    });
    state.reload_error = match taken {
        Ok(changed) => {
            let text = format!("took up {} again", config.display());
            state.journal.note(EventKind::Daemon, Entry::new(text));
            for warning in changed.warnings {
                tracing::warn!("{warning}");
            }
            None
        }
        Err(error) => {
            let error = format!("SIGHUP changed nothing: {error:#}");
            state.trouble(&error);
            Some(error)
        }
    };
}

/// After an operator's change: what is not in the maps. Those were written at once.
async fn follow(observed: &Observed, next_hops: &NextHops, owned: &mut BTreeSet<IpAddr>) {
    let desired = observed.lock().desired.clone();
    next_hops.watch(addresses(&desired));
    let detached =
        block_in_place(|| observed.lock().datapath.detach_others(&desired.dataplane.interfaces));
    if let Err(error) = detached {
        tracing::error!("can't detach from what is no longer configured: {error:#}");
    }
    look_around(observed, owned).await;
}

/// Looks at the interfaces: one without a program gets ours, be it new in the config, made anew,
/// or stripped by somebody. And puts the VIPs and NAT addresses on this host: an interface that was
/// taken down has lost its IPv6 addresses.
async fn look_around(observed: &Observed, owned: &mut BTreeSet<IpAddr>) {
    let (desired, needed) = {
        let state = observed.lock();
        (state.desired.clone(), needed(&state))
    };
    let names = &desired.dataplane.interfaces;
    let interfaces = see_interfaces(names).await;
    observed.lock().interfaces = interfaces;
    if block_in_place(|| observed.lock().attach_again()) {
        let interfaces = see_interfaces(names).await;
        observed.lock().interfaces = interfaces;
    }
    match network::host_addresses().await {
        Ok(addresses) => observed.lock().host_addresses = addresses,
        Err(error) => tracing::warn!("{error}"),
    }
    match own_addresses(&desired).await {
        Ok(wanted) => match disown(owned, wanted, &needed).await {
            Ok(ours) => *owned = ours,
            Err(error) => tracing::warn!("can't take VIPs off this host: {error:#}"),
        },
        Err(error) => tracing::warn!("can't put the VIPs on this host: {error:#}"),
    }
}

/// Reads what the interfaces count, which is to be what our program has decided about.
async fn count_frames(observed: &Observed, pulse: u32) {
    let before = block_in_place(|| observed.lock().verdicts());
    let statistics = match network::statistics().await {
        Ok(statistics) => statistics,
        Err(error) => return tracing::warn!("{error}"),
    };
    let (found, xdp) = {
        let state = observed.lock();
        let found = state.interfaces.iter().filter_map(|seen| seen.found.clone());
        (found.collect::<Vec<_>>(), state.xdp_counts().clone())
    };
    let mut counts = InterfaceCounts { statistics, xdp };
    if pulse.is_multiple_of(DRIVERS) || counts.xdp.is_empty() {
        let told = |interface: &Interface| match network::xdp_statistics(&interface.name) {
            Ok(told) => Some((interface.index, told)),
            Err(error) => {
                tracing::debug!("no driver statistics of {}: {error}", interface.name);
                None
            }
        };
        counts.xdp = found.iter().filter_map(told).collect();
    }
    block_in_place(|| {
        let mut state = observed.lock();
        state.take_counts(before, counts);
        state.take_losses(Instant::now());
    });
}

/// What is done all the time.
fn beat(observed: &Observed, pulse: u32) {
    let mut state = observed.lock();
    let is_round = pulse.is_multiple_of(ROUND);
    if is_round {
        // Before anything is mended, so that what was wrong is known.
        state.test_services();
    }
    if pulse.is_multiple_of(MEND)
        && let Err(error) = state.mend()
    {
        tracing::error!("can't look whether the maps hold what we wrote: {error:#}");
    }
    state.read_traffic(Instant::now());
    state.look_at_backends();
    state.record(SystemTime::now(), Instant::now());
    if is_round || state.intent.waits() {
        state.limit();
        match state.sweep() {
            Ok(()) => state.count(),
            Err(error) => tracing::error!("can't sweep the flow table: {error:#}"),
        }
    }
    if is_round {
        state.end_abandoned_trace();
        if state.keep_error.is_some() {
            state.keep();
        }
        if state.reconcile_error.is_some() || state.has_orphans() {
            state.try_reconcile();
        }
        state.look_for_troubles();
    }
}

fn note_changes(observed: &Observed, after: &Snapshot) {
    let state = observed.lock();
    let mut found = Vec::new();
    let mut lost = Vec::new();
    for (address, now) in after.iter() {
        match (state.next_hops.get(address), now) {
            (Some(Err(_)) | None, Ok(hop)) => {
                found.push(format!("{address} can be reached by {}", hop.interface_name));
            }
            (Some(Ok(_)) | None, Err(error)) => {
                let reason = Reason::NoNextHop.name();
                lost.push(format!("{error} (reason {reason} while it lasts)"));
            }
            _ => {}
        }
    }
    for (mut texts, what) in [(found, "can be reached"), (lost, "can't be reached")] {
        let surplus = texts.len().saturating_sub(TOLD);
        texts.truncate(TOLD);
        if surplus > 0 {
            texts.push(format!("and {surplus} more addresses {what}"));
        }
        state.journal.note_all(EventKind::NextHop, texts.into_iter().map(Entry::new));
    }
}
