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
    abi::{Backend, FlowRecord, KEEP_CLIENT, Service, ServiceKey, Settings},
    address::Address,
    counters::Event,
    flow::{self, Entry, Found, GROUP, Kind, State, Words},
    forward::Forwarding,
    hash,
    parse::{Family, Ports, Segment},
    reason::Reason,
    steer::{Place, Taken, Turn},
    tables::Tables,
    wire::{self, Tcp},
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
    let [a, b] = address.words();
    let [p, q] = port;
    zerocopy::transmute!([a, b, u64::from_ne_bytes([p, q, wire::TCP, 0, 0, 0, 0, 0])])
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
    /// What the client sends.
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
    Some(Tuple::of_client(&record, &tables.service(backend.service)?.key).turned())
}

/// What a self-test's tuple would become; it has no flow.
#[inline(always)]
pub fn rehearsed<T: Tables>(sent: &Tuple, tables: &T, backend: &Backend) -> Option<Tuple> {
    let settings = tables.settings()?;
    let service = tables.service(backend.service)?;
    let (nat_address, nat_port) =
        draw(0, 0, sent.ports.source, tables, settings, service, backend)?;
    let record = FlowRecord { client: sent.source, nat_address, nat_port, ..Default::default() };
    Some(Tuple::of_return(&record, backend, seen_address(&record, tables)).turned())
}

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
fn draw<T: Tables>(
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

/// Puts an entry and its record into the table; tells the word. In three steps, so that nobody
/// follows it before it is whole: the place is claimed in the flow's name without a backend, then
/// the record is written, then the entry.
#[inline(always)]
fn put<T: Tables>(
    tables: &T,
    settings: &Settings,
    hash: u64,
    entry: Entry,
    tick: u8,
    record: &FlowRecord,
    gives_way: impl FnOnce(Found) -> bool,
) -> Option<u32> {
    let group_index = flow::group_index(hash, settings);
    let group = tables.flow_group(group_index)?;
    let claim = Entry::new(hash, 0, tick, State::Embryonic);
    let index = match flow::find(&group, hash) {
        None => flow::insert(&group, hash, 0, tick, State::Embryonic, settings)?,
        Some(found) if gives_way(found) => {
            group.replace(found.index, found.entry.0, claim.0).then_some(found.index)?
        }
        Some(_) => return None,
    };
    let index = index & (GROUP - 1);
    if flow::is_elsewhere(&group, hash, index) {
        // Another CPU wants the same at the same moment: neither gets it.
        group.replace(index, claim.0, 0);
        return None;
    }
    let word = group_index * GROUP as u32 + index as u32;
    tables.record_flow(word, *record);
    let whole = entry.with(tick, entry.state());
    group.replace(index, claim.0, whole.0).then_some(word)
}

/// Whether two records are of one flow and one port. When it began does not matter.
#[inline(always)]
fn is_same(one: FlowRecord, other: FlowRecord) -> bool {
    let [a, b, _, c]: [u64; 4] = zerocopy::transmute!(one);
    let [d, e, _, f]: [u64; 4] = zerocopy::transmute!(other);
    (a ^ d) | (b ^ e) | (c ^ f) == 0
}

/// A flow's entry in the other direction; none, if it is free.
#[derive(Clone, Copy)]
struct Partner {
    word: u32,
    found: Found,
    /// What was found is of another flow: one that has this one's port now, or of the same client
    /// a newer one.
    is_anothers: bool,
}

impl Partner {
    const NOBODY: Self = Self { word: 0, found: Found::NOTHING, is_anothers: false };

    /// Looks by the hash of that direction's tuple for the entry of a flow to this backend with
    /// this record.
    #[inline(always)]
    fn find<T: Tables>(
        tables: &T,
        settings: &Settings,
        hash: u64,
        is_return: bool,
        backend: u16,
        record: FlowRecord,
    ) -> Self {
        let group_index = flow::group_index(hash, settings);
        let Some(group) = tables.flow_group(group_index) else { return Self::NOBODY };
        let Some(found) = flow::find(&group, hash) else { return Self::NOBODY };
        if found.entry.is_return() != is_return || found.entry.backend() == 0 {
            return Self::NOBODY;
        }
        let word = group_index * GROUP as u32 + found.index as u32;
        let Some(theirs) = tables.flow_record(word) else { return Self::NOBODY };
        if found.entry.backend() == backend && is_same(theirs, record) {
            Self { word, found, is_anothers: false }
        } else {
            Self { is_anothers: true, ..Self::NOBODY }
        }
    }

    #[inline(always)]
    const fn state(&self) -> State {
        self.found.entry.state()
    }

    /// Makes it another, unless it has changed meanwhile.
    #[inline(always)]
    fn replace<T: Tables>(&self, tables: &T, entry: Entry) {
        if let Some(group) = tables.flow_group(self.word / GROUP as u32) {
            group.replace(self.word as usize % GROUP, self.found.entry.0, entry.0);
        }
    }
}

/// A flow as one of its entries tells.
struct Half {
    record: FlowRecord,
    /// Of the other's tuple.
    hash: u64,
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

    /// Moves a known flow on, in either direction.
    ///
    /// # Errors
    /// The reason to answer or drop the segment.
    #[inline(always)]
    pub fn follow<T: Tables>(&self, tables: &T) -> Result<Taken, Reason> {
        if self.found.entry.is_return() { self.answered(tables) } else { self.go_on(tables) }
    }

    /// The word of the entry that was found, and its group.
    #[inline(always)]
    fn place<T: Tables>(&self, tables: &T, settings: &Settings) -> Option<(u32, T::Group)> {
        let group_index = flow::group_index(self.hash, settings);
        let word = group_index * GROUP as u32 + self.found.index as u32;
        Some((word, tables.flow_group(group_index)?))
    }

    /// The next segment of a client.
    #[inline(always)]
    fn go_on<T: Tables>(&self, tables: &T) -> Result<Taken, Reason> {
        let settings = tables.settings().ok_or(Reason::NotReady)?;
        let (word, group) = self.place(tables, settings).ok_or(Reason::NotReady)?;
        let Found { index, entry } = self.found;
        let tick = flow::tick_of(settings, self.now);
        let backend = tables.backend(entry.backend()).ok_or(Reason::NatNoMapping)?;
        let Half { record, hash } =
            self.half(tables, settings, backend, word, false).ok_or(Reason::NatNoMapping)?;
        let other = Partner::find(tables, settings, hash, true, entry.backend(), record);
        let kind = Kind::of(self.segment.flags);
        if other.is_anothers {
            // The port was given up, and what is sent by it would be that other flow's.
            if matches!(kind, Kind::Syn) {
                return Ok(Taken::at(entry.backend()).to(Place::Found));
            }
            group.replace(index, entry.0, 0);
            return Err(Reason::NatNoMapping);
        }
        let theirs = other.state();
        let taken = Taken::at(entry.backend()).with_word(word);
        let is_new = matches!(entry.state(), State::Embryonic);
        let is_answered = match theirs {
            State::Free | State::Embryonic | State::Reset => false,
            State::Young | State::Old | State::Closing | State::Answered | State::TimeWait => true,
        };
        let state = match kind {
            Kind::Syn if is_new => {
                tables.count_event(entry.backend(), Event::SynRetransmission);
                if let Some(second) = self.second_try(tables, backend) {
                    if !matches!(theirs, State::Free) {
                        other.replace(tables, Entry(0));
                    }
                    tables.count_event(entry.backend(), Event::SecondTry);
                    return Ok(Taken::at(second).to(Place::Found));
                }
                State::Embryonic
            }
            // Who was established is not moved by a SYN: its backend answers it.
            Kind::Syn => return Ok(taken),
            // Who has not heard of the backend acknowledges nothing.
            Kind::Ack | Kind::Fin if is_new && !is_answered => State::Embryonic,
            Kind::Ack if is_new => State::Old,
            Kind::Ack => match entry.state() {
                // A forged RST doesn't end it.
                State::Reset | State::Young => State::Old,
                state => state,
            },
            Kind::Fin if matches!(theirs, State::Reset) => State::Reset,
            Kind::Fin => both_closing(theirs),
            // It may be what an old connection's TIME-WAIT at the backend gets for its ACK to a new
            // SYN (RFC 9293 §3.10.7.3): the SYN comes again, and goes to the same place.
            Kind::Rst if is_new => {
                tables.count_event(entry.backend(), Event::ClientReset);
                State::Embryonic
            }
            Kind::Rst => State::Reset,
        };
        group.replace(index, entry.0, entry.with(tick, state).0);
        if matches!(theirs, State::Free) {
            // It was evicted: as long as nobody else has its port, it can be there again.
            return Ok(taken.to_restore());
        }
        // What the backend has said of its own half stays; what ends both, ends both. And whose
        // client is forwarded without a look at it, while it is settled, gives no port up.
        let told = match (state, theirs) {
            (State::TimeWait | State::Reset, _) => state,
            _ if matches!(kind, Kind::Rst) => State::Embryonic,
            (State::Old | State::Closing, State::Closing) => State::Closing,
            (State::Old | State::Closing, _) => State::Old,
            _ => theirs,
        };
        other.replace(tables, other.found.entry.with(tick, told));
        if tables.hop(other.word).is_some_and(|hop| hop != self.hop) {
            tables.record_hop(other.word, self.hop);
        }
        Ok(taken)
    }

    /// Puts the other entry of the flow in a word into the table once more.
    #[inline(always)]
    pub fn restore<T: Tables>(&self, tables: &T, word: u32) {
        let is_return = self.found.entry.is_return();
        if let Some(word) = self.try_to_restore(tables, word, is_return)
            && !is_return
        {
            tables.record_hop(word, self.hop);
        }
    }

    #[inline(always)]
    fn try_to_restore<T: Tables>(&self, tables: &T, word: u32, is_return: bool) -> Option<u32> {
        let settings = tables.settings()?;
        let entry = Entry(tables.flow_group(word / GROUP as u32)?.load(word as usize % GROUP));
        let backend = tables.backend(entry.backend())?;
        let Half { record, hash } = self.half(tables, settings, backend, word, is_return)?;
        let lost = if is_return {
            // Whether the client has heard of the answer is not known yet.
            let is_new = matches!(entry.state(), State::Answered);
            let state = if is_new { State::Embryonic } else { entry.state() };
            Entry::new(hash, entry.backend(), 0, state)
        } else {
            Entry::new(hash, entry.backend(), 0, entry.state()).of_return()
        };
        let tick = flow::tick_of(settings, self.now);
        put(tables, settings, hash, lost, tick, &record, |_| false)
    }

    /// The flow of the entry in a word, if the segment is its: sent by the backend, or the client.
    #[inline(always)]
    fn half<T: Tables>(
        &self,
        tables: &T,
        settings: &Settings,
        backend: &Backend,
        word: u32,
        is_return: bool,
    ) -> Option<Half> {
        let sent = Tuple::of(&self.segment);
        let family = self.segment.family;
        if is_return {
            let is_of = |record: &FlowRecord| sent.is_of_return(record, tables);
            let record = record_of(tables, word, self.hash, is_of)?;
            let service = tables.service(backend.service)?;
            let hash = Tuple::of_client(&record, &service.key).hash(family, settings);
            Some(Half { record, hash })
        } else {
            let is_of = |record: &FlowRecord| sent.is_of_client(record);
            let record = record_of(tables, word, self.hash, is_of)?;
            let seen = seen_address(&record, tables);
            let hash = Tuple::of_return(&record, backend, seen).hash(family, settings);
            Some(Half { record, hash })
        }
    }

    /// The next segment of a backend.
    #[inline(always)]
    fn answered<T: Tables>(&self, tables: &T) -> Result<Taken, Reason> {
        let settings = tables.settings().ok_or(Reason::NotReady)?;
        let (word, group) = self.place(tables, settings).ok_or(Reason::NotReady)?;
        let Found { index, entry } = self.found;
        let tick = flow::tick_of(settings, self.now);
        let backend = tables.backend(entry.backend()).ok_or(Reason::NatNoReturn)?;
        let Half { record, hash } =
            self.half(tables, settings, backend, word, true).ok_or(Reason::NatNoReturn)?;
        let other = Partner::find(tables, settings, hash, false, entry.backend(), record);
        let state = match Kind::of(self.segment.flags) {
            Kind::Rst => State::Reset,
            // What was under way when its client hung up brings nothing back.
            _ if matches!(entry.state(), State::Reset) => State::Reset,
            Kind::Syn => entry.state(),
            // Mostly a SYN-ACK. If it is none, the entry was lost and put back meanwhile.
            Kind::Ack if matches!(entry.state(), State::Embryonic) => State::Answered,
            Kind::Ack => entry.state(),
            Kind::Fin => both_closing(other.state()),
        };
        if group.replace(index, entry.0, entry.with(tick, state).0) {
            match (entry.state(), state) {
                (State::Embryonic, State::Answered) if self.segment.flags & Tcp::SYN != 0 => {
                    let time = self.now.saturating_sub(record.start);
                    tables.count_handshake(entry.backend(), time);
                }
                (State::Embryonic | State::Answered, State::Reset) => {
                    tables.count_event(entry.backend(), Event::Refusal);
                }
                (State::Young | State::Old | State::Closing, State::Reset) => {
                    tables.count_event(entry.backend(), Event::BackendReset);
                }
                _ => {}
            }
        }
        let taken = Taken::at(entry.backend()).with_word(word).of_return();
        let ends_both = matches!(state, State::TimeWait | State::Reset);
        if matches!(other.state(), State::Free) {
            // Evicted while the handshake was under way: what the client acknowledges finds it again.
            let is_lost = !ends_both && !other.is_anothers;
            return Ok(if is_lost { taken.to_restore() } else { taken });
        }
        if ends_both {
            other.replace(tables, other.found.entry.with(tick, state));
        }
        Ok(taken)
    }
}

/// What a FIN makes of its sender's half, given the other's.
#[inline(always)]
const fn both_closing(theirs: State) -> State {
    match theirs {
        State::Closing | State::TimeWait => State::TimeWait,
        State::Free
        | State::Embryonic
        | State::Young
        | State::Old
        | State::Reset
        | State::Answered => State::Closing,
    }
}

#[cfg(test)]
mod tests;
