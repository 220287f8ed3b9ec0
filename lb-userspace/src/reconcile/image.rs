//! What the maps hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::{Backend, Egress, Service, capacity::FILTER_WORDS},
    address::Address,
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
    /// Those of them whose pings are not answered.
    pub silent: BTreeSet<IpAddr>,
    /// Our own addresses, from which probes are sent.
    pub probe_sources: BTreeSet<IpAddr>,
    /// The addresses that translated packets are sent from, by index, from 1. None is taken away
    /// while the instance lives: a late packet might come back to it.
    pub nat_addresses: BTreeMap<u16, IpAddr>,
    /// Both ends of translated connections; those addresses with port 0.
    pub nat_ends: BTreeSet<SocketAddr>,
    /// The filter that lets all of them through; `None`: not known.
    pub filter: Option<Filter>,
}

/// What the kernel's filter holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// A bit for each address.
    pub words: Vec<u64>,
    /// Whether packets are also told by their sources.
    pub sources: bool,
}

impl Filter {
    /// One that lets packets to these addresses through, and from these.
    pub(super) fn of<'a>(
        to: impl IntoIterator<Item = &'a IpAddr>,
        from: &'a BTreeSet<IpAddr>,
    ) -> Self {
        let mut words = vec![0; FILTER_WORDS];
        for address in to.into_iter().chain(from) {
            let (word, mask) = filter_position((*address).into());
            words[word] |= mask;
        }
        Self { words, sources: !from.is_empty() }
    }
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

/// What the kernel program finds in the maps, for who decides on the same.
impl Image {
    /// A word of the filter; 0 if it is not known.
    pub fn filter_word(&self, index: usize) -> u64 {
        let filter = self.filter.as_ref();
        filter.and_then(|filter| filter.words.get(index)).copied().unwrap_or(0)
    }

    /// Whether packets are also told by their sources.
    pub fn filters_sources(&self) -> bool {
        self.filter.as_ref().is_some_and(|filter| filter.sources)
    }

    /// Whether it is a VIP.
    pub fn is_vip(&self, address: Address) -> bool {
        self.vips.contains(&IpAddr::from(address))
    }

    /// Whether it is a VIP whose pings are not answered.
    pub fn is_silent(&self, address: Address) -> bool {
        self.silent.contains(&IpAddr::from(address))
    }

    /// The address that translated packets are sent from, by its index.
    pub fn nat_address(&self, index: u16) -> Option<Address> {
        self.nat_addresses.get(&index).copied().map(Address::from)
    }
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
            Write::Vip(vip, silent) => {
                self.vips.insert(*vip);
                if *silent {
                    self.silent.insert(*vip);
                } else {
                    self.silent.remove(vip);
                }
            }
            Write::RemoveVip(vip) => {
                self.vips.remove(vip);
                self.silent.remove(vip);
            }
            Write::AddProbeSource(source) => {
                self.probe_sources.insert(*source);
            }
            Write::RemoveProbeSource(source) => {
                self.probe_sources.remove(source);
            }
            Write::NatAddress(index, address) => {
                self.nat_addresses.insert(*index, *address);
            }
            Write::AddNatEnd(end) => {
                self.nat_ends.insert(*end);
            }
            Write::RemoveNatEnd(end) => {
                self.nat_ends.remove(end);
            }
            Write::Filter(filter) => self.filter = Some(filter.clone()),
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
