//! To another ABI: new maps beside the old ones, filled from them, and a program that runs on
//! them; the daemon's next reconciliation makes of them what its config wants.
//!
//! Indices stay what they are, so each flow's word goes on meaning its backend; seed, hash keys
//! and tick stay too. Flows are copied before the swap, and what packets have changed meanwhile
//! is carried over after it; in between, a flow that is too new is met in the middle, and goes
//! to the same backend by slot. Counters are copied just before the swap: the frames of the
//! milliseconds between are forwarded but not counted.
//!
//! ```text
//! next/ is there          nobody has accepted the new program: the old one is put back, with
//!                         what the flows have become, and next/ goes
//! accepted/ is there      maps and programs are on their way from there to their place
//! ```
//!
//! Both are ended by [`settle`], whoever comes next. The daemon that migrates writes nothing
//! before it has accepted, and no other daemon runs; so there is nothing else to undo.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use lb_common::{
    abi::{
        ABI_VERSION, Backend, CarriedChunk, EventsChunk, EvictionCounts, ReasonCounts, Service,
        Settings, capacity, capacity::COUNTERS_PER_CHUNK, map,
    },
    address::Address,
    flow::GROUP,
};
use nix::net::if_::if_nametoindex;

use super::{Outcome, Report, Say, View, decide::Known, keep, rehearsal, table::FlowTable};
use crate::{
    datapath::{Maps, PROGRAM, Raw, load, pins::Pins, places},
    instance::Instance,
};

/// How long the new program is watched: the daemon is not ready before that is over.
const WATCH: Duration = Duration::from_secs(2);

/// Frames that are in the old program while it is taken off the link leave it within this time.
const IN_FLIGHT: Duration = Duration::from_millis(20);

/// Takes an instance over to this build's ABI. Under the lock.
///
/// # Errors
/// If the kernel does not do what it should, or the maps of the other ABI have other layouts;
/// the old program runs on. That the new one is refused or rolled back is in the report.
pub fn migrate(
    instance: &Instance,
    pins: &Pins,
    known: &Known,
    object: &[u8],
    say: Say<'_>,
) -> Result<Report> {
    let old = Maps::pinned(pins).context(
        "the maps of the running instance have other layouts than this build knows how to read; \
         it goes on forwarding",
    )?;
    let settings = old.settings();
    let object_id = load::object_id(object);
    let mut report = Report::new(settings.object_id, object_id);
    say(&format!(
        "migrating from ABI {} to ABI {ABI_VERSION}, program {} -> {}",
        settings.abi_version, report.from, report.to
    ));
    if let Err(difference) = rehearsal(instance, pins, &old, object, &mut report, say)? {
        return Ok(report.refused(&difference));
    }

    let next = pins.next();
    let undo = |error: anyhow::Error| {
        undo(pins).context("put the old program back")?;
        Err(error)
    };
    let new = match prepare(pins, &next, known, object, &old, &settings) {
        Ok(new) => new,
        Err(error) => return undo(error),
    };
    let (from, to) = (FlowTable::map(&old, &settings)?, FlowTable::map(&new, &settings)?);
    let empty = to.snapshot();
    // Of a table that both have there is nothing to carry, then or later.
    let mut flows = to.carry(&empty, &from);
    let base = to.snapshot();

    let view = View::of(&old, pins)?;
    let before = view.window(&old, super::BASELINE)?;
    copy_counters(pins, &next, known, &view.backends)?;
    let swapped = view.sample(&new)?;
    if let Err(error) = load::swap(&mut load::pinned_program(&next, PROGRAM)?, pins) {
        return undo(error);
    }
    std::thread::sleep(IN_FLIGHT);
    flows += to.carry(&base, &from);
    say(&format!("swapped on {}, {flows} flows carried over", view.interfaces.join(", ")));
    match view.watch(&new, &before, &swapped, WATCH, &mut report, say) {
        Ok(Ok(())) => {}
        Ok(Err(worse)) => {
            self::undo(pins).context("put the old program back")?;
            let reason = Some(worse.to_string());
            return Ok(Report { result: Outcome::RolledBack, reason, ..report });
        }
        Err(error) => return undo(error),
    }
    pins.accept_next()?;
    pins.take_accepted()?;
    keep(instance, object);
    say("migrated");
    Ok(Report { result: Outcome::Upgraded, ..report })
}

/// The new maps and programs, the maps filled but for flows and counters.
fn prepare(
    pins: &Pins,
    next: &Pins,
    known: &Known,
    object: &[u8],
    old: &Maps,
    settings: &Settings,
) -> Result<Maps> {
    next.create()?;
    for name in known.shared {
        let (from, to) = (pins.map(name), next.map(name));
        MapData::from_pin(&from)
            .with_context(|| format!("open {}", from.display()))?
            .pin(&to)
            .with_context(|| format!("pin {}", to.display()))?;
    }
    load::load(next, object, (settings.flow_mask + 1) * GROUP as u32)?;
    let mut new = Maps::pinned(next)?;
    let is_new = |name: &str| !known.shared.contains(&name);
    new.set_filter(&old.filter());
    if is_new(map::VIPS) {
        let silent = old.silent_vips()?;
        for vip in old.vips()? {
            new.set_vip(Address::from(vip), silent.contains(&vip))?;
        }
    }
    let services = (0..).zip(old.services(capacity::SERVICES)?);
    let services: Vec<_> = services.filter(|(_, service)| service.slots != 0).collect();
    for (index, service) in &services {
        if is_new(map::SERVICES) {
            new.set_service(*index, service)?;
        }
    }
    if is_new(map::SLOTS) {
        let table =
            |&(index, service): &(u32, Service)| Ok((index, old.slots(index, service.slots)?));
        new.set_slots(&services.iter().map(table).collect::<Result<Vec<_>>>()?)?;
    }
    if is_new(map::SERVICE_INDEX) {
        for (key, index) in old.service_index()? {
            new.set_service_index(&key, index)?;
        }
    }
    if is_new(map::BACKENDS) {
        for (index, backend) in (0..).zip(old.backends(capacity::BACKENDS)?) {
            if backend != Backend::default() {
                new.set_backend(index, &backend)?;
            }
        }
    }
    if is_new(map::EGRESSES) {
        for (index, egress) in (0..).zip(old.egresses(capacity::EGRESSES)?) {
            new.set_egress(index, &egress)?;
        }
    }
    let linked = pins.links()?;
    let attached = linked.iter().map(|name| (&**name, if_nametoindex(&**name).ok()));
    new.set_interfaces(&places::with(&old.interfaces(), attached));
    let object_id = load::object_id(object);
    new.set_settings(&Settings { abi_version: ABI_VERSION, object_id, ..*settings });
    Ok(new)
}

/// The counters of these backends and of the reasons, a row for each CPU; what both have is there.
fn copy_counters(old: &Pins, new: &Pins, known: &Known, backends: &[u16]) -> Result<()> {
    fn copy<T: Copy + 'static>(old: &Pins, new: &Pins, name: &str, indices: &[u32]) -> Result<()>
    where
        Raw<T>: aya::Pod,
    {
        let open = |pins: &Pins| -> Result<PerCpuArray<MapData, Raw<T>>> {
            let path = pins.map(name);
            MapData::from_pin(&path)
                .and_then(Map::from_map_data)
                .and_then(TryInto::try_into)
                .with_context(|| format!("open {}", path.display()))
        };
        let (old, mut new) = (open(old)?, open(new)?);
        for index in indices.iter().filter(|index| **index < old.len()) {
            new.set(*index, old.get(index, 0)?, 0).with_context(|| format!("copy {name}"))?;
        }
        Ok(())
    }
    let mut chunks: Vec<u32> =
        backends.iter().map(|index| u32::from(*index) / COUNTERS_PER_CHUNK as u32).collect();
    chunks.dedup();
    for name in [map::TRAFFIC, map::RETURNS] {
        if !known.shared.contains(&name) {
            copy::<CarriedChunk>(old, new, name, &chunks)?;
        }
    }
    if !known.shared.contains(&map::EVENTS) {
        copy::<EventsChunk>(old, new, map::EVENTS, &chunks)?;
    }
    let places: Vec<u32> = (0..capacity::PLACES as u32).collect();
    copy::<EvictionCounts>(old, new, map::EVICTIONS, &[0])?;
    copy::<ReasonCounts>(old, new, map::REASONS, &places)
}

/// Puts the old program back, and takes with it what the flows have become; can be repeated.
fn undo(pins: &Pins) -> Result<()> {
    let next = pins.next();
    if !next.root().exists() {
        return Ok(());
    }
    // Flows have changed in the new table only if packets came that way.
    let swapped = load::pinned_program(&next, PROGRAM)
        .and_then(|program| load::is_attached(&program, pins))
        .unwrap_or(false);
    if swapped {
        let (old, new) = (Maps::pinned(pins)?, Maps::pinned(&next)?);
        let settings = new.settings();
        let (to, from) = (FlowTable::map(&old, &settings)?, FlowTable::map(&new, &settings)?);
        let base = to.snapshot();
        load::swap(&mut load::pinned_program(pins, PROGRAM)?, pins)?;
        std::thread::sleep(IN_FLIGHT);
        to.carry(&base, &from);
    }
    next.remove()
}

/// Ends what an interrupted migration has left.
pub fn settle(pins: &Pins) -> Result<()> {
    if pins.accepted().root().exists() {
        pins.take_accepted()?;
    }
    undo(pins)
}
