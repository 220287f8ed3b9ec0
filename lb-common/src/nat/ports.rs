//! Ports: how one is drawn for a new flow, taken by its return entry, and followed by the client's.

use super::{
    Tuple,
    entries::{Partner, put},
    seen_address,
};
use crate::{
    abi::{Backend, FlowRecord, KEEP_CLIENT, Service, Settings},
    counters::Event,
    flow::{self, Entry, Found, GROUP, State, Words},
    hash,
    reason::Reason,
    steer::{Place, Taken, Turn},
    tables::Tables,
};

/// Ports that are tried for a new flow.
pub const ATTEMPTS: u32 = 32;
/// The first of them must be free: the backend of one whose connection has just ended keeps that in
/// TIME-WAIT, and may not take the next from there at once. Later ones may be taken from who gives
/// way.
const FREE_ONLY: u32 = 24;

/// By how much each of eight primes is below 2^16, a byte each. They are above any number of ports, so
/// that in steps of one of them all are walked through, however many they are.
const STEPS: u64 = u64::from_le_bytes([15, 17, 39, 57, 87, 89, 99, 113]);

/// A port that was taken: its return entry is in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reserved(u64);

impl Reserved {
    /// None was.
    pub const NOTHING: Self = Self(0);

    const fn new(word: u32, nat_address: u16, nat_port: [u8; 2]) -> Self {
        let port = u16::from_ne_bytes(nat_port) as u64;
        Self((word as u64) << 32 | (nat_address as u64) << 16 | port)
    }

    /// From the number; see [`Self::number`].
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// As a number: as which the kernel program's functions return it.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0
    }

    const fn word(self) -> u32 {
        (self.0 >> 32) as u32
    }

    const fn nat_address(self) -> u16 {
        (self.0 >> 16) as u16
    }

    const fn nat_port(self) -> [u8; 2] {
        (self.0 as u16).to_ne_bytes()
    }
}

/// Index of the address and the port of an attempt, for a flow with this hash.
#[inline(always)]
pub(super) fn draw<T: Tables>(
    hash: u64,
    attempt: u32,
    client_port: [u8; 2],
    tables: &T,
    settings: &Settings,
    service: &Service,
    backend: &Backend,
) -> Option<(u16, [u8; 2])> {
    if service.nat_first == KEEP_CLIENT {
        return (attempt == 0).then_some((0, client_port));
    }
    // Another hash than that which has chosen group and slot.
    let drawn = hash::next(hash);
    let address = if service.nat_first == 0 {
        tables.egress(backend.next_hop.egress())?.nat_address
    } else {
        let count = u32::from(service.nat_count.max(1));
        let which = (drawn as u32 & 0xffff).wrapping_add(attempt) % count;
        service.nat_first.wrapping_add(which as u16)
    };
    let ports = u32::from(settings.nat_port_count);
    if address == 0 || ports == 0 {
        return None;
    }
    // From a place of its own in steps that many others don't make.
    let start = (drawn >> 16) as u32 & 0xffff;
    let step = (1 << 16) - (STEPS >> (drawn >> 32 & 0x38) & 0xff) as u32;
    let offset = start.wrapping_add(step.wrapping_mul(attempt)) % ports;
    Some((address, settings.nat_port_first.wrapping_add(offset as u16).to_be_bytes()))
}

/// Whether a port may be taken from a return entry: its connection has ended, or never began.
#[inline(always)]
fn gives_way(entry: Entry, tick: u8, settings: &Settings) -> bool {
    match entry.state() {
        State::TimeWait | State::Reset => entry.is_return(),
        State::Embryonic | State::Answered => entry.is_return() && entry.age(tick) > 0,
        State::Free => true,
        State::Young | State::Old | State::Closing => entry.is_expired(tick, settings),
    }
}

impl Turn {
    /// Tries to take a port towards a backend for this flow: the attempt's.
    #[inline(always)]
    pub fn reserve<T: Tables>(&self, tables: &T, index: u16, attempt: u32) -> Reserved {
        self.try_to_reserve(tables, index, attempt).unwrap_or(Reserved::NOTHING)
    }

    #[inline(always)]
    fn try_to_reserve<T: Tables>(&self, tables: &T, index: u16, attempt: u32) -> Option<Reserved> {
        let settings = tables.settings()?;
        let backend = tables.backend(index)?;
        let service = tables.service(backend.service)?;
        let client_port = self.segment.ports.source;
        let tick = flow::tick_of(settings, self.now);
        // A client that uses its port again has the same hash. So that it does not walk along the same
        // ports again, where it began the last time has a part in where it begins.
        let (last, _) = self.place(tables, settings)?;
        let last = u16::from_ne_bytes(tables.flow_record(last)?.nat_port);
        let seed = self.hash ^ u64::from(tick) << 32 ^ u64::from(last) << 40;
        let (nat_address, nat_port) =
            draw(seed, attempt, client_port, tables, settings, service, backend)?;
        let record = self.translated(nat_address, nat_port);
        let seen = seen_address(&record, tables);
        let hash = Tuple::of_return(&record, backend, seen).hash(self.segment.family, settings);
        let entry = Entry::new(hash, index, 0, State::Embryonic).of_return();
        let keeps = service.nat_first == KEEP_CLIENT;
        let group = flow::group_index(hash, settings);
        if group == flow::group_index(self.hash, settings) && settings.flow_mask != 0 && !keeps {
            // Where there is no room the client's entry would take this one's place.
            return None;
        }
        let may_take = attempt >= FREE_ONLY || keeps;
        // A client that keeps its port has no other: what it begins anew takes its own place.
        let is_own = keeps
            && !matches!(
                Partner::find(tables, settings, hash, true, index, record).state(),
                State::Free
            );
        let gives_way = |found: Found| is_own || may_take && gives_way(found.entry, tick, settings);
        let word = put(tables, settings, hash, entry, tick, &record, gives_way)?;
        tables.record_hop(word, self.hop);
        Some(Reserved::new(word, nat_address, nat_port))
    }

    #[inline(always)]
    const fn translated(&self, nat_address: u16, nat_port: [u8; 2]) -> FlowRecord {
        FlowRecord {
            client: self.segment.source,
            start: self.now,
            client_port: self.segment.ports.source,
            vip_port: self.segment.ports.destination,
            nat_port,
            nat_address,
        }
    }

    /// Opens the flow with the port that was taken for it.
    ///
    /// # Errors
    /// The reason to answer its SYN: there is no such port, or no room.
    #[inline(always)]
    pub fn open<T: Tables>(
        &self,
        tables: &T,
        taken: Taken,
        reserved: Reserved,
    ) -> Result<Taken, Reason> {
        let settings = tables.settings().ok_or(Reason::NotReady)?;
        if reserved == Reserved::NOTHING {
            return Err(Reason::NatPortsExhausted);
        }
        let (index, place) = (taken.index(), taken.place());
        let record = self.translated(reserved.nat_address(), reserved.nat_port());
        let entry = Entry::new(self.hash, index, 0, State::Embryonic);
        let tick = flow::tick_of(settings, self.now);
        // Only what was found is replaced, and only if the turn has said so.
        let gives_way = |found: Found| matches!(place, Place::Found) && found == self.found;
        match put(tables, settings, self.hash, entry, tick, &record, gives_way) {
            Some(word) if word != reserved.word() => {
                tables.count_event(index, Event::NewFlow);
                Ok(Taken::at(index).with_word(word))
            }
            // No room; or none but that of its own return entry, without which it is nothing.
            Some(_) | None => {
                let word = reserved.word();
                let place = word as usize % GROUP;
                if let Some(group) = tables.flow_group(word / GROUP as u32)
                    && let seen = Entry(group.load(place))
                    && seen.backend() == index
                    && matches!(seen.state(), State::Embryonic)
                {
                    group.replace(place, seen.0, 0);
                }
                Err(Reason::NatTableFull)
            }
        }
    }
}
