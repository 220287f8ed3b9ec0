//! What the maps hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    abi::{Backend, Egress, Service, capacity::FILTER_WORDS},
    maglev::Member,
    service::filter_position,
};

use super::Write;

/// The content of the maps that the daemon writes, kept beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// By service index.
    pub services: BTreeMap<u16, ServiceImage>,
    /// By backend index, from 1.
    pub backends: BTreeMap<u16, Backend>,
    /// Backends nobody wants any more: no slot is theirs, their flows may go on.
    pub orphans: BTreeSet<u16>,
    /// By egress index, from 1.
    pub egresses: BTreeMap<u16, Egress>,
    /// The VIPs.
    pub vips: BTreeSet<IpAddr>,
    /// Our own addresses, from which probes are sent.
    pub probe_sources: BTreeSet<IpAddr>,
    /// The words of the filter that lets all of them through; `None`: not known.
    pub filter: Option<Vec<u64>>,
}

/// A service and how it is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceImage {
    /// Its record.
    pub service: Service,
    /// Whether it can be found by its key: new flows come in.
    pub listed: bool,
    /// Who shares its slots; `None`: not known, as after an adoption.
    pub members: Option<Vec<Member>>,
    /// Id of the map that holds its slots; `None`: not known.
    pub table: Option<u32>,
}

impl Image {
    /// Takes in what was written.
    pub fn record(&mut self, write: &Write) {
        match write {
            Write::ClearCounters(_) => {}
            Write::Egress(index, egress) => {
                self.egresses.insert(*index, *egress);
            }
            Write::Backend(index, backend) => {
                self.backends.insert(*index, *backend);
                self.orphans.remove(index);
            }
            Write::Slots { service, members, .. } => {
                if let Some(image) = self.services.get_mut(service) {
                    image.members = Some(members.clone());
                }
            }
            Write::Service(index, service) => {
                self.services.entry(*index).and_modify(|image| image.service = *service).or_insert(
                    ServiceImage { service: *service, listed: false, members: None, table: None },
                );
            }
            Write::List(_, index) => self.set_listed(*index, true),
            Write::Unlist(_, index) => self.set_listed(*index, false),
            Write::AddVip(vip) => {
                self.vips.insert(*vip);
            }
            Write::RemoveVip(vip) => {
                self.vips.remove(vip);
            }
            Write::AddProbeSource(source) => {
                self.probe_sources.insert(*source);
            }
            Write::RemoveProbeSource(source) => {
                self.probe_sources.remove(source);
            }
            Write::Filter(words) => self.filter = Some(words.clone()),
            Write::Orphan(index) => {
                self.orphans.insert(*index);
            }
            Write::RemoveService(index) => {
                self.services.remove(index);
            }
            Write::RemoveBackend(index) => {
                self.backends.remove(index);
                self.orphans.remove(index);
            }
        }
    }

    fn set_listed(&mut self, index: u16, listed: bool) {
        if let Some(image) = self.services.get_mut(&index) {
            image.listed = listed;
        }
    }
}

/// The filter that lets these addresses through.
pub(super) fn filter_words<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> Vec<u64> {
    let mut words = vec![0; FILTER_WORDS];
    for address in addresses {
        let (word, mask) = filter_position((*address).into());
        words[word] |= mask;
    }
    words
}
