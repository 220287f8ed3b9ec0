//! Translated flows: `forwarding = "nat"`.
//!
//! A client's connection to the VIP becomes one of ours to the backend, and what the backend sends
//! comes back through here. Such a flow has two entries in the flow table: the client's, found by
//! what it sends, and a *return* entry, found by what the backend sends. Both have the same
//! record: client, and the address and port that the backend sees. So neither needs the other to be
//! translated, and both are found in one look.
//!
//! - **Exact.** A fingerprint finds an entry; the record, compared with the whole tuple, decides. A
//!   record is written while its word is claimed by an entry without a backend, which nobody
//!   follows, and who reads one looks at the word again afterwards: no mixture is ever acted on.
//! - **Ports** are drawn by the keyed hash of the flow, which nobody outside can foresee (RFC 6056
//!   §3.3.3), and are taken by putting the return entry into the table: of two that want the same,
//!   both see the other's claim, and give way.
//! - **States.** A flow is embryonic until the backend has answered *and* the client has
//!   acknowledged, and old from then on: nobody evicts it. When both have sent their FINs both
//!   entries are in time-wait. Embryonic and time-wait entries give way when ports run out.

use crate::{
    abi::{Backend, FlowRecord, ServiceKey, Settings},
    address::Address,
    flow::{Entry, GROUP, Words},
    forward::Forwarding,
    hash,
    parse::{Family, Ports, Segment},
    service,
    tables::Tables,
};

mod entries;
mod life;
mod ports;

pub use ports::{ATTEMPTS, Reserved};

/// Whether a backend's packets are translated.
#[inline(always)]
pub const fn translates(backend: &Backend) -> bool {
    backend.forwarding == Forwarding::Nat as u8
}

/// Whether a segment comes from a backend that sends its answers through here: from its address
/// and port. To whom is not looked at.
#[inline(always)]
pub fn is_from(segment: &Segment, backend: &Backend) -> bool {
    translates(backend)
        && u16::from_ne_bytes(segment.ports.source) == u16::from_ne_bytes(backend.port)
        && segment.source == backend.address
}

/// Whether a segment that belongs to no flow is one from a backend to a NAT address and a port of
/// the range: nobody else's, so nobody else may have it.
#[inline(always)]
pub fn is_lost<T: Tables>(segment: &Segment, tables: &T, settings: &Settings) -> bool {
    let port = u16::from_be_bytes(segment.ports.destination);
    let from = end(segment.source, segment.ports.source);
    port.wrapping_sub(settings.nat_port_first) < settings.nat_port_count
        && tables.is_nat_end(&from)
        && tables.is_nat_end(&end(segment.destination, [0; 2]))
}

/// How a backend, or with port 0 a NAT address of ours, stands in the table of
/// [`Tables::is_nat_end`].
#[inline(always)]
pub fn end(address: Address, port: [u8; 2]) -> ServiceKey {
    service::key_of(address, port)
}

/// Source and destination of one direction.
#[derive(Clone, Copy)]
pub struct Tuple {
    /// From whom.
    pub source: Address,
    /// To whom.
    pub destination: Address,
    /// Both ports.
    pub ports: Ports,
}

impl Tuple {
    /// What the client sends, to the VIP of a service that is translated: it has a port.
    #[inline(always)]
    pub const fn of_client(record: &FlowRecord, vip: &ServiceKey) -> Self {
        let ports = Ports { source: record.client_port, destination: vip.port };
        Self { source: record.client, destination: vip.address, ports }
    }

    /// What the backend sends, to the address that it sees.
    #[inline(always)]
    pub const fn of_return(record: &FlowRecord, backend: &Backend, seen: Address) -> Self {
        let ports = Ports { source: backend.port, destination: record.nat_port };
        Self { source: backend.address, destination: seen, ports }
    }

    /// The other way.
    #[inline(always)]
    pub const fn turned(self) -> Self {
        let ports = Ports { source: self.ports.destination, destination: self.ports.source };
        Self { source: self.destination, destination: self.source, ports }
    }

    /// A segment's.
    #[inline(always)]
    pub const fn of(segment: &Segment) -> Self {
        Self { source: segment.source, destination: segment.destination, ports: segment.ports }
    }

    /// Whether it comes from the client of a flow.
    #[inline(always)]
    fn is_of_client(&self, record: &FlowRecord) -> bool {
        u16::from_ne_bytes(record.client_port) == u16::from_ne_bytes(self.ports.source)
            && record.client == self.source
    }

    /// Whether it goes to what the backend of a flow sees for its client.
    #[inline(always)]
    fn is_of_return<T: Tables>(&self, record: &FlowRecord, tables: &T) -> bool {
        u16::from_ne_bytes(record.nat_port) == u16::from_ne_bytes(self.ports.destination)
            && seen_address(record, tables) == self.destination
    }

    /// Its hash.
    #[inline(always)]
    pub fn hash(&self, family: Family, settings: &Settings) -> u64 {
        let Self { source, destination, ports } = *self;
        hash::of_tuple(source, destination, ports, family, &settings.hash_keys)
    }
}

/// The address that a flow's backend sees for its client.
#[inline(always)]
pub fn seen_address<T: Tables>(record: &FlowRecord, tables: &T) -> Address {
    if record.nat_address == 0 {
        record.client
    } else {
        tables.nat_address(record.nat_address).unwrap_or(Address::UNSPECIFIED)
    }
}

/// The record of the flow in a word, if it is that of a segment with this hash, and translated.
#[inline(always)]
fn record_of<T: Tables>(
    tables: &T,
    word: u32,
    hash: u64,
    is_of: impl FnOnce(&FlowRecord) -> bool,
) -> Option<FlowRecord> {
    let record = tables.flow_record(word)?;
    let group = tables.flow_group(word / GROUP as u32)?;
    let entry = Entry(group.load(word as usize % GROUP));
    if !entry.is_marked(hash) || entry.backend() == 0 {
        return None;
    }
    if record.nat_port == [0; 2] || !is_of(&record) {
        return None;
    }
    Some(record)
}

/// What a client's tuple becomes on the way to the backend.
#[inline(always)]
pub fn outward<T: Tables>(
    sent: &Tuple,
    tables: &T,
    backend: &Backend,
    word: u32,
    hash: u64,
) -> Option<Tuple> {
    let record = record_of(tables, word, hash, |record| sent.is_of_client(record))?;
    Some(Tuple::of_return(&record, backend, seen_address(&record, tables)).turned())
}

/// What a backend's tuple becomes on the way to the client.
#[inline(always)]
pub fn homeward<T: Tables>(
    sent: &Tuple,
    tables: &T,
    backend: &Backend,
    word: u32,
    hash: u64,
) -> Option<Tuple> {
    let record = record_of(tables, word, hash, |record| sent.is_of_return(record, tables))?;
    Some(Tuple::of_client(&record, &service::of_backend(tables, backend)?).turned())
}

/// What a self-test's tuple would become; it has no flow.
#[inline(always)]
pub fn rehearsed<T: Tables>(sent: &Tuple, tables: &T, backend: &Backend) -> Option<Tuple> {
    let settings = tables.settings()?;
    let service = tables.service(backend.service)?;
    let (nat_address, nat_port) =
        ports::draw(0, 0, sent.ports.source, tables, settings, service, backend)?;
    let record = FlowRecord { client: sent.source, nat_address, nat_port, ..Default::default() };
    Some(Tuple::of_return(&record, backend, seen_address(&record, tables)).turned())
}

#[cfg(test)]
mod tests;
