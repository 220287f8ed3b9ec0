//! Drift: what somebody else changed in the maps, and the writes that mend it.

use std::net::IpAddr;

use lb_common::abi::Backend;

use super::{Image, Write};
use crate::model::Vip;

/// What must be written so that maps that hold `seen` hold what `image` says again, in an order
/// that is safe: parts before what leads to them.
pub fn repairs(image: &Image, seen: &Image) -> Vec<Write> {
    let mut parts = Vec::new();
    let mut doors = Vec::new();
    for (index, egress) in &image.egresses {
        if seen.egresses.get(index) != Some(egress) {
            parts.push(Write::Egress(*index, *egress));
        }
    }
    for (index, backend) in &image.backends {
        if seen.backends.get(index) != Some(backend) {
            parts.push(Write::Backend(*index, *backend));
        }
    }
    for (index, service) in &image.services {
        let there = seen.services.get(index);
        if there.map(|there| there.service) != Some(service.service) {
            parts.push(Write::Service(*index, service.service));
        }
        if let (Some(members), false) =
            (&service.members, there.is_some_and(|there| there.table == service.table))
        {
            let (slots, members) = (service.service.slots, members.clone());
            parts.push(Write::Slots { service: *index, slots, members });
        }
        match (service.listed, there.is_some_and(|there| there.listed)) {
            (true, false) => doors.push(Write::List(service.service.key(), *index)),
            (false, true) => doors.push(Write::Unlist(service.service.key(), *index)),
            _ => {}
        }
    }
    let is_as_it_was = |vip: &&IpAddr| {
        seen.vips.contains(*vip) && seen.silent.contains(*vip) == image.silent.contains(*vip)
    };
    let vips = image.vips.iter().filter(|vip| !is_as_it_was(vip));
    doors.extend(vips.map(|vip| Write::Vip(*vip, image.silent.contains(vip))));
    doors.extend(seen.vips.difference(&image.vips).map(|vip| Write::RemoveVip(*vip)));
    let sources = (&image.probe_sources, &seen.probe_sources);
    doors.extend(sources.0.difference(sources.1).map(|source| Write::AddProbeSource(*source)));
    doors.extend(sources.1.difference(sources.0).map(|source| Write::RemoveProbeSource(*source)));
    let nat = image.nat_addresses.iter();
    let lost = nat.filter(|(index, address)| seen.nat_addresses.get(index) != Some(address));
    parts.extend(lost.map(|(index, address)| Write::NatAddress(*index, *address)));
    let ends = (&image.nat_ends, &seen.nat_ends);
    doors.extend(ends.0.difference(ends.1).map(|end| Write::AddNatEnd(*end)));
    doors.extend(ends.1.difference(ends.0).map(|end| Write::RemoveNatEnd(*end)));
    if let Some(filter) = &image.filter
        && seen.filter.as_ref() != Some(filter)
    {
        doors.push(Write::Filter(filter.clone()));
    }
    parts.extend(doors);
    parts
}

/// What a repair is about, for people.
pub fn describe(write: &Write) -> String {
    match write {
        Write::Egress(index, _) => format!("EGRESSES {index}"),
        Write::Backend(index, Backend { address, .. }) => {
            format!("BACKENDS {index} ({})", IpAddr::from(*address))
        }
        Write::Service(index, service) => {
            format!("SERVICES {index} ({})", Vip::from(&service.key()))
        }
        Write::Slots { service, .. } => format!("SLOTS {service}"),
        Write::List(key, _) | Write::Unlist(key, _) => format!("SERVICE_INDEX {}", Vip::from(key)),
        Write::Vip(vip, _) | Write::RemoveVip(vip) => format!("VIPS {vip}"),
        Write::AddProbeSource(source) | Write::RemoveProbeSource(source) => {
            format!("PROBE_SOURCES {source}")
        }
        Write::NatAddress(index, address) => format!("NAT_ADDRESSES {index} ({address})"),
        Write::AddNatEnd(end) | Write::RemoveNatEnd(end) => format!("NAT_ENDS {end}"),
        Write::Filter(_) => "GLOBALS (VIP filter)".to_owned(),
        Write::ClearCounters(index)
        | Write::Orphan(index)
        | Write::RemoveService(index)
        | Write::RemoveBackend(index) => format!("index {index}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::SocketAddr};

    use lb_common::{
        abi::{Egress, Service, ServiceKey},
        address::Address,
    };

    use super::*;
    use crate::reconcile::{Filter, ServiceImage};

    fn image() -> Image {
        let key = ServiceKey {
            address: Address::v4([203, 0, 113, 10]),
            port: [0, 80],
            protocol: 6,
            reserved: [0; 5],
        };
        let service = Service { slots: 13, ..Service::of(&key) };
        let service =
            ServiceImage { service, listed: true, members: Some(Vec::new()), table: Some(5) };
        let egress = Egress { ifindex: 3, ..Egress::default() };
        let backend = Backend { address: Address::v4([10, 0, 0, 1]), ..Backend::default() };
        Image {
            services: BTreeMap::from([(0, service)]),
            backends: BTreeMap::from([(1, backend)]),
            egresses: BTreeMap::from([(1, egress)]),
            vips: [[203, 0, 113, 10].into()].into(),
            probe_sources: [[198, 18, 0, 1].into()].into(),
            nat_addresses: BTreeMap::from([(1, [198, 18, 0, 1].into())]),
            nat_ends: [SocketAddr::from(([10, 0, 0, 1], 80))].into(),
            filter: Some(Filter { words: vec![1, 2], sources: false }),
            ..Image::default()
        }
    }

    #[test]
    fn what_is_as_it_was_needs_no_repair() {
        assert_eq!(repairs(&image(), &image()), []);
    }

    #[test]
    fn each_loss_is_mended_by_one_write() {
        type Loss = fn(&mut Image);
        let cases: [(Loss, &str); 16] = [
            (|seen| seen.egresses.clear(), "EGRESSES 1"),
            (|seen| seen.backends.clear(), "BACKENDS 1 (10.0.0.1)"),
            (|seen| service(seen).service.slots = 0, "SERVICES 0 (203.0.113.10:80)"),
            (|seen| service(seen).table = None, "SLOTS 0"),
            (|seen| service(seen).table = Some(6), "SLOTS 0"),
            (|seen| service(seen).listed = false, "SERVICE_INDEX 203.0.113.10:80"),
            (|seen| seen.vips.clear(), "VIPS 203.0.113.10"),
            (|seen| seen.silent = seen.vips.clone(), "VIPS 203.0.113.10"),
            (|seen| seen.vips.extend([IpAddr::from([9, 9, 9, 9])]), "VIPS 9.9.9.9"),
            (|seen| seen.probe_sources.clear(), "PROBE_SOURCES 198.18.0.1"),
            (
                |seen| seen.probe_sources.extend([IpAddr::from([9, 9, 9, 9])]),
                "PROBE_SOURCES 9.9.9.9",
            ),
            (|seen| seen.nat_addresses.clear(), "NAT_ADDRESSES 1 (198.18.0.1)"),
            (|seen| seen.nat_ends.clear(), "NAT_ENDS 10.0.0.1:80"),
            (
                |seen| seen.nat_ends.extend([SocketAddr::from(([9, 9, 9, 9], 9))]),
                "NAT_ENDS 9.9.9.9:9",
            ),
            (
                |seen| seen.filter = Some(Filter { words: vec![1, 2], sources: true }),
                "GLOBALS (VIP filter)",
            ),
            (|seen| seen.filter = None, "GLOBALS (VIP filter)"),
        ];
        for (lose, expected) in cases {
            let mut seen = image();
            lose(&mut seen);
            let repairs = repairs(&image(), &seen);
            assert_eq!(repairs.iter().map(describe).collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn a_map_that_lost_all_is_mended_parts_first() {
        let repairs = repairs(&image(), &Image::default());
        let named: Vec<String> = repairs.iter().map(describe).collect();
        assert_eq!(named[0], "EGRESSES 1");
        assert_eq!(named[named.len() - 1], "GLOBALS (VIP filter)");
        assert_eq!(named.len(), 10);
    }

    fn service(seen: &mut Image) -> &mut ServiceImage {
        seen.services.get_mut(&0).expect("it is there")
    }
}
