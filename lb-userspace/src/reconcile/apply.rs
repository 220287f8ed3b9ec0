//! The only writer of the maps, and their reader.

use std::{num::NonZero, ops::Range, thread};

use anyhow::Result;
use lb_common::{
    abi::{Backend, Service, VipFilter, capacity},
    maglev::{self, Member, Progress},
    service::BackendState,
};

use super::{Filter, Image, ServiceImage, Write};
use crate::datapath::Maps;

/// Maglev tables that are made and written together: some 8 MiB of default length.
const TABLES_AT_ONCE: usize = 64;

/// Carries writes out in their order; `image` follows each that succeeded.
///
/// # Errors
/// At the first that fails; those before stand.
pub fn apply(writes: &[Write], maps: &mut Maps, image: &mut Image) -> Result<()> {
    let mut rest = writes;
    while let Some(write) = rest.first() {
        let is_table = |write: &&Write| matches!(write, Write::Slots { .. });
        let is_clear = |write: &&Write| matches!(write, Write::ClearCounters(_));
        let tables = rest.iter().take(TABLES_AT_ONCE).take_while(is_table).count();
        let clears = rest.iter().take_while(is_clear).count();
        let (now, later) = rest.split_at((tables + clears).max(1));
        if tables > 0 {
            write_tables(now, maps, image)?;
        } else if clears > 0 {
            let index = |write: &Write| match write {
                Write::ClearCounters(index) => Some(*index),
                _ => None,
            };
            maps.reset_counters(now.iter().filter_map(index))?;
        } else {
            write_one(write, maps)?;
        }
        if tables == 0 {
            now.iter().for_each(|write| image.record(write));
        }
        rest = later;
    }
    Ok(())
}

fn write_one(write: &Write, maps: &mut Maps) -> Result<()> {
    match write {
        Write::ClearCounters(index) => maps.reset_counters([*index]),
        Write::Egress(index, egress) => maps.set_egress(u32::from(*index), egress),
        Write::Backend(index, backend) => maps.set_backend(u32::from(*index), backend),
        Write::Slots { service, slots, members } => {
            maps.set_slots(&[(u32::from(*service), table(members, *slots))]).map(drop)
        }
        Write::Service(index, service) => maps.set_service(u32::from(*index), service),
        Write::List(key, index) => maps.set_service_index(key, u32::from(*index)),
        Write::Unlist(key, _) => maps.remove_service_index(key),
        Write::Vip(vip, silent) => maps.set_vip((*vip).into(), *silent),
        Write::RemoveVip(vip) => maps.remove_vip((*vip).into()),
        Write::AddProbeSource(source) => maps.add_probe_source((*source).into()),
        Write::RemoveProbeSource(source) => maps.remove_probe_source((*source).into()),
        Write::NatAddress(index, address) => maps.set_nat_address(*index, (*address).into()),
        Write::AddNatEnd(end) => maps.add_nat_end(*end),
        Write::RemoveNatEnd(end) => maps.remove_nat_end(*end),
        Write::Filter(filter) => {
            maps.set_filter(&filter_of(filter));
            Ok(())
        }
        Write::Orphan(_) => Ok(()),
        Write::RemoveService(index) => maps.set_service(u32::from(*index), &Service::default()),
        Write::RemoveBackend(index) => maps.set_backend(u32::from(*index), &Backend::default()),
    }
}

/// Makes Maglev tables on all CPUs, and writes them together.
fn write_tables(writes: &[Write], maps: &mut Maps, image: &mut Image) -> Result<()> {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let part = writes.len().div_ceil(cpus).max(1);
    let make = |write: &Write| match write {
        Write::Slots { service, slots, members } => {
            Some((u32::from(*service), table(members, *slots)))
        }
        _ => None,
    };
    let tables: Vec<(u32, Vec<u16>)> = thread::scope(|scope| {
        let (own, others) = writes.split_at(part.min(writes.len()));
        let others: Vec<_> = others
            .chunks(part)
            .map(|part| scope.spawn(move || part.iter().filter_map(make).collect::<Vec<_>>()))
            .collect();
        let mut tables: Vec<_> = own.iter().filter_map(make).collect();
        for other in others {
            match other.join() {
                Ok(more) => tables.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        tables
    });
    let ids = maps.set_slots(&tables)?;
    for write in writes {
        image.record(write);
    }
    for ((service, _), id) in tables.iter().zip(ids) {
        if let Some(service) = image.services.get_mut(&(*service as u16)) {
            service.table = Some(id);
        }
    }
    Ok(())
}

/// What the maps hold, read back. Who shares a service's slots can't be read from them; the
/// next plan writes them again, the same.
pub fn read(maps: &Maps) -> Result<Image> {
    let mut image = Image {
        vips: maps.vips()?,
        silent: maps.silent_vips()?,
        probe_sources: maps.probe_sources()?,
        nat_addresses: maps.nat_addresses()?,
        nat_ends: maps.nat_ends()?,
        filter: Some(filter(maps)),
        ..Image::default()
    };
    for (index, service) in (0..).zip(maps.services(capacity::SERVICES)?) {
        if service.slots != 0 {
            let image_of = ServiceImage { service, listed: false, members: None, table: None };
            image.services.insert(index, image_of);
        }
    }
    for (_, index) in maps.service_index()? {
        if let Some(service) = u16::try_from(index).ok().and_then(|i| image.services.get_mut(&i)) {
            service.listed = true;
        }
    }
    for (index, backend) in (0..=u16::MAX).zip(maps.backends(capacity::BACKENDS)?).skip(1) {
        if backend.state != BackendState::Absent as u8 {
            image.backends.insert(index, backend);
        }
    }
    for (index, egress) in (0..).zip(maps.egresses(capacity::EGRESSES)?).skip(1) {
        if egress.ifindex != 0 {
            image.egresses.insert(index, egress);
        }
    }
    Ok(image)
}

/// What the maps hold in place of what `image` says; Maglev tables are only told by the map that
/// holds them, but those of the services in `closely` are compared slot by slot.
///
/// # Errors
/// If a map can't be read.
pub fn look(maps: &Maps, image: &Image, closely: Range<u16>) -> Result<Image> {
    let end = |last: Option<&u16>| last.map_or(0, |last| usize::from(*last) + 1);
    let services = maps.services(end(image.services.keys().last()))?;
    let backends = maps.backends(end(image.backends.keys().last()))?;
    let egresses = maps.egresses(end(image.egresses.keys().last()))?;
    let listed = maps.service_index()?;
    let mut seen = Image {
        vips: maps.vips()?,
        silent: maps.silent_vips()?,
        probe_sources: maps.probe_sources()?,
        nat_addresses: maps.nat_addresses()?,
        nat_ends: maps.nat_ends()?,
        filter: Some(filter(maps)),
        ..Image::default()
    };
    for (index, service) in &image.services {
        let place = u32::from(*index);
        let mut table = maps.slots_id(place)?;
        if let (Some(members), true) = (&service.members, closely.contains(index))
            && table.is_some()
        {
            let slots = service.service.slots;
            if maps.slots(place, slots)? != self::table(members, slots) {
                table = None;
            }
        }
        let there = ServiceImage {
            service: services[usize::from(*index)],
            listed: false,
            members: None,
            table,
        };
        seen.services.insert(*index, there);
    }
    for (key, index) in listed {
        let index = u16::try_from(index).ok();
        if let Some(service) = index.and_then(|index| seen.services.get_mut(&index)) {
            service.listed |= service.service.key() == key;
        }
    }
    seen.backends = image.backends.keys().map(|i| (*i, backends[usize::from(*i)])).collect();
    seen.egresses = image.egresses.keys().map(|i| (*i, egresses[usize::from(*i)])).collect();
    Ok(seen)
}

/// A Maglev table.
fn table(members: &[Member], slots: u32) -> Vec<u16> {
    let mut table = vec![0; slots as usize];
    let mut progress = vec![Progress::default(); members.len()];
    maglev::fill(members, &mut table, &mut progress);
    table
}

fn filter_of(wanted: &Filter) -> VipFilter {
    let mut filter =
        VipFilter { words: [0; capacity::FILTER_WORDS], sources: u64::from(wanted.sources) };
    filter.words.copy_from_slice(&wanted.words);
    filter
}

/// The filter as it stands in the map.
fn filter(maps: &Maps) -> Filter {
    let VipFilter { words, sources } = maps.filter();
    Filter { words: words.to_vec(), sources: sources != 0 }
}
