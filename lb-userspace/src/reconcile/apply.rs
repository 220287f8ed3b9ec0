//! The only writer of the maps, and their reader at an adoption.

use anyhow::Result;
use lb_common::{
    abi::{Backend, Service, VipFilter, capacity},
    maglev::{self, Member, Progress},
    service::BackendState,
};

use super::{Image, ServiceImage, Write};
use crate::datapath::Maps;

/// Carries writes out in their order; `image` follows each that succeeded.
///
/// # Errors
/// At the first that fails; those before stand.
pub fn apply(writes: &[Write], maps: &mut Maps, image: &mut Image) -> Result<()> {
    for write in writes {
        match write {
            Write::ClearCounters(index) => maps.reset_counters(*index)?,
            Write::Egress(index, egress) => maps.set_egress(u32::from(*index), egress)?,
            Write::Backend(index, backend) => maps.set_backend(u32::from(*index), backend)?,
            Write::Slots { service, slots, members } => {
                maps.set_slots(u32::from(*service), &table(members, *slots))?;
            }
            Write::Service(index, service) => maps.set_service(u32::from(*index), service)?,
            Write::List(key, index) => maps.set_service_index(key, u32::from(*index))?,
            Write::Unlist(key, _) => maps.remove_service_index(key)?,
            Write::AddVip(vip) => maps.add_vip((*vip).into())?,
            Write::RemoveVip(vip) => maps.remove_vip((*vip).into())?,
            Write::Filter(words) => maps.set_filter(&filter(words))?,
            Write::Orphan(_) => {}
            Write::RemoveService(index) => {
                maps.set_service(u32::from(*index), &Service::default())?;
            }
            Write::RemoveBackend(index) => {
                maps.set_backend(u32::from(*index), &Backend::default())?;
            }
        }
        image.record(write);
    }
    Ok(())
}

/// What the maps hold, read back. Who shares a service's slots can't be read from them; the
/// next plan writes them again, the same.
pub fn read(maps: &Maps) -> Result<Image> {
    let mut image = Image {
        vips: maps.vips()?,
        filter: Some(maps.filter()?.words.to_vec()),
        ..Image::default()
    };
    for index in 0..capacity::SERVICES as u16 {
        let service = maps.service(u32::from(index))?;
        if service.slots != 0 {
            image.services.insert(index, ServiceImage { service, listed: false, members: None });
        }
    }
    for (_, index) in maps.service_index()? {
        if let Some(service) = u16::try_from(index).ok().and_then(|i| image.services.get_mut(&i)) {
            service.listed = true;
        }
    }
    for index in 1..capacity::BACKENDS as u32 {
        let backend = maps.backend(index)?;
        if backend.state != BackendState::Absent as u8 {
            image.backends.insert(index as u16, backend);
        }
    }
    for index in 1..capacity::EGRESSES as u16 {
        let egress = maps.egress(u32::from(index))?;
        if egress.ifindex != 0 {
            image.egresses.insert(index, egress);
        }
    }
    Ok(image)
}

/// A Maglev table.
fn table(members: &[Member], slots: u32) -> Vec<u16> {
    let mut table = vec![0; slots as usize];
    let mut progress = vec![Progress::default(); members.len()];
    maglev::fill(members, &mut table, &mut progress);
    table
}

fn filter(words: &[u64]) -> VipFilter {
    let mut filter = VipFilter { words: [0; capacity::FILTER_WORDS] };
    filter.words.copy_from_slice(words);
    filter
}
