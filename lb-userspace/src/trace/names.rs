//! Who is behind the indices in the maps, and the reverse.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, anyhow, bail};
use nix::net::if_::if_indextoname;

use super::line::Told;
use crate::{
    control::api,
    datapath::Maps,
    model::{self, Vip},
    reconcile,
};

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Index of its service.
    pub service: u16,
    /// Where it is.
    pub address: SocketAddr,
    /// What it is called: by its address, where no daemon says more.
    pub name: String,
}

/// What the maps and the daemon, if there is one, say of services and backends.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// By index: VIP and name.
    pub(super) services: BTreeMap<u16, (Vip, String)>,
    /// By index.
    pub(super) backends: BTreeMap<u16, Member>,
    status: Option<api::Status>,
}

impl Names {
    /// Reads them.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn read(maps: &Maps, status: Option<&api::Status>) -> Result<Self> {
        let mut names = Self { status: status.cloned(), ..Self::default() };
        names.read_again(maps)?;
        Ok(names)
    }

    /// Reads the maps again: somebody is new there. His name is his address.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn read_again(&mut self, maps: &Maps) -> Result<()> {
        let image = reconcile::read(maps)?;
        for (index, found) in &image.services {
            let vip = Vip::from(&found.service.key());
            let name = self.service_at(vip).map_or_else(|| vip.to_string(), |s| s.name.clone());
            self.services.insert(*index, (vip, name));
        }
        for (index, record) in &image.backends {
            let port = u16::from_be_bytes(record.port);
            let address = SocketAddr::new(record.address.into(), port);
            let vip = self.services.get(&record.service).map(|(vip, _)| *vip);
            let service = vip.and_then(|vip| self.service_at(vip));
            let is_it = |b: &&api::Backend| SocketAddr::new(b.address, b.port) == address;
            let found = service.and_then(|service| service.backends.iter().find(is_it));
            let name = found.map_or_else(|| model::place(address), |backend| backend.name.clone());
            let member = Member { service: record.service, address, name };
            self.backends.insert(*index, member);
        }
        Ok(())
    }

    fn service_at(&self, vip: Vip) -> Option<&api::Service> {
        let vip = vip.to_string();
        // A service that was taken away may still have flows where another has its VIP.
        let mut services = self.status.iter().flat_map(|status| &status.services);
        services.find(|service| service.vip == vip && !service.leaving)
    }

    /// Whether all are known that a frame speaks of.
    pub(super) fn knows(&self, told: &Told<'_>) -> bool {
        told.backend().is_none_or(|backend| self.backends.contains_key(&backend))
    }

    /// The service that is asked at an address and port.
    pub(super) fn service_named(&self, at: SocketAddr) -> Option<&str> {
        let named = |wanted: Vip| self.services.values().find(|(vip, _)| *vip == wanted);
        if at.port() == 0 {
            return None;
        }
        let found = named(at.into()).or_else(|| named(Vip::any_port(at.ip())));
        found.map(|(_, name)| name.as_str())
    }

    /// The service of this name, or at this VIP: its index and VIP.
    ///
    /// # Errors
    /// If there is none.
    pub fn find_service(&self, text: &str) -> Result<(u16, Vip)> {
        let mut services = self.services.iter();
        let found = services.find(|(_, (vip, name))| name == text || vip.to_string() == text);
        let (index, (vip, _)) = found.ok_or_else(|| self.no_such("service", text))?;
        Ok((*index, *vip))
    }

    /// The backend of this name, or at this address with or without its port; its index.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn find_backend(&self, text: &str, service: Option<u16>) -> Result<u16> {
        let found = self.backends.iter().filter(|(_, member)| {
            let is_it = member.name == text
                || model::place(member.address) == text
                || text.parse::<IpAddr>().is_ok_and(|address| address == member.address.ip());
            is_it && service.is_none_or(|service| service == member.service)
        });
        let found: Vec<_> = found.collect();
        match found.as_slice() {
            [] => Err(self.no_such("backend", text)),
            [(index, _)] => Ok(**index),
            several => {
                let name = |(_, member): &(&u16, &Member)| {
                    self.services.get(&member.service).map(|(_, name)| name.clone())
                };
                let services: Vec<_> = several.iter().filter_map(name).collect();
                bail!(
                    "{text} is a backend of several services ({}): say which with --service",
                    services.join(", ")
                )
            }
        }
    }

    fn no_such(&self, what: &str, text: &str) -> anyhow::Error {
        let hint = if self.status.is_some() {
            "see `sluice status`"
        } else {
            "no daemon answers that knows names: give its address and port"
        };
        anyhow!("there is no {what} {text}: {hint}")
    }
}

/// The name of an interface.
pub(super) fn interface(index: u32) -> String {
    let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("#{index}"))
}
