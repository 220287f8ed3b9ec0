//! A flow's turn: a segment with which it begins, moves on or ends, and its entry in the table.
//!
//! What is settled never comes here: it is forwarded by one look into the table.

use zerocopy::{Immutable, IntoBytes};

use super::{Owner, admission, owner};
use crate::{
    abi::{Backend, FlowRecord, NatHop, SELF_TEST_INTERFACE, SELF_TEST_PORT, Service, Settings},
    counters::Event,
    flow::{self, Entry, Found, Kind, State, Step, Words},
    forward::mss,
    hash, maglev,
    nat::{self, Reserved},
    parse::Segment,
    probe,
    reason::Reason,
    service::{self, Affinity, BackendState},
    tables::Tables,
};

/// A segment with which its flow begins, moves on or ends. Without padding and pointers, so that
/// the verifier lets the kernel program hand it to a function that is followed by itself.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub struct Turn {
    pub(crate) segment: Segment,
    pub(crate) hash: u64,
    pub(crate) now: u64,
    /// Where it came from.
    pub(crate) hop: NatHop,
    pub(crate) found: Found,
}

/// What came of a [`Turn`]: the index of the flow's backend, and of what is translated more. One
/// word, as which the kernel program's functions return it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken(u64);

impl Taken {
    const OPEN: u64 = 1 << 17;
    const RETURN: u64 = 1 << 18;
    const RESTORE: u64 = 1 << 19;
    const KNOWN: u64 = 1 << 20;
    const PLACE_SHIFT: u32 = 21;
    const CLAMP: u64 = 1 << 23;
    const WORD_SHIFT: u32 = 32;

    /// It goes to this backend.
    #[inline(always)]
    pub const fn at(index: u16) -> Self {
        Self(index as u64)
    }

    /// A SYN of what is not translated, whose MSS is to be lowered to `most`; 0: it stays.
    #[inline(always)]
    const fn clamped(self, most: u16) -> Self {
        if most == 0 {
            self
        } else {
            Self(self.0 | Self::CLAMP | (most as u64) << Self::WORD_SHIFT)
        }
    }

    /// What the segment's MSS is to be lowered to, if it is.
    #[inline(always)]
    pub(super) const fn clamp(self) -> Option<u16> {
        if self.0 & Self::CLAMP == 0 { None } else { Some((self.0 >> Self::WORD_SHIFT) as u16) }
    }

    /// A known flow that is translated: [`Turn::follow`] tells.
    const FOLLOW: Self = Self(Self::KNOWN);

    /// A flow that is translated and to be opened, its entry going there.
    #[inline(always)]
    pub(crate) const fn to(self, place: Place) -> Self {
        Self(self.0 | Self::OPEN | (place as u64) << Self::PLACE_SHIFT)
    }

    /// Its other entry is lost.
    #[inline(always)]
    pub(crate) const fn to_restore(self) -> Self {
        Self(self.0 | Self::RESTORE)
    }

    /// The word of its entry.
    #[inline(always)]
    pub(crate) const fn with_word(self, word: u32) -> Self {
        Self(self.0 | (word as u64) << Self::WORD_SHIFT)
    }

    /// It goes from the backend to its client.
    #[inline(always)]
    pub(crate) const fn of_return(self) -> Self {
        Self(self.0 | Self::RETURN)
    }

    /// From the number; see [`Self::number`].
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// As a number, whose bit 16 is always zero.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The backend's index.
    #[inline(always)]
    pub const fn index(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    const fn is_to_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    #[inline(always)]
    const fn is_to_restore(self) -> bool {
        self.0 & Self::RESTORE != 0
    }

    #[inline(always)]
    const fn is_known(self) -> bool {
        self.0 & Self::KNOWN != 0
    }

    #[inline(always)]
    pub(super) const fn is_return(self) -> bool {
        self.0 & Self::RETURN != 0
    }

    #[inline(always)]
    pub(crate) const fn place(self) -> Place {
        match self.0 >> Self::PLACE_SHIFT & 3 {
            0 => Place::Anywhere,
            1 => Place::Found,
            _ => Place::Nowhere,
        }
    }

    #[inline(always)]
    pub(super) const fn word(self) -> u32 {
        (self.0 >> Self::WORD_SHIFT) as u32
    }
}

/// Where the entry of an unknown flow goes. A tag of 64 bits, so that no padding is copied about
/// on the kernel program's stack: the verifier wants every access there aligned.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Place {
    /// Wherever its group has room.
    Anywhere = 0,
    /// Over the entry that was found, which no longer binds.
    Found = 1,
    /// Nowhere: another flow's entry would be found before it.
    Nowhere = 2,
}

/// The steps of a turn, one [`Turn`] for all. In the kernel program each is a function of its own,
/// as in [`Stages`](super::Stages).
pub trait Steps {
    /// See [`Turn::take`].
    ///
    /// # Errors
    /// See there.
    fn take(&self) -> Result<Taken, Reason>;
    /// See [`Turn::follow`].
    ///
    /// # Errors
    /// See there.
    fn follow(&self) -> Result<Taken, Reason>;
    /// See [`Turn::reserve`].
    fn reserve(&self, backend: u16, attempt: u32) -> Reserved;
    /// See [`Turn::open`].
    ///
    /// # Errors
    /// See there.
    fn open(&self, taken: Taken, reserved: Reserved) -> Result<Taken, Reason>;
    /// See [`Turn::restore`].
    fn restore(&self, word: u32);
}

/// The steps one after the other: what is translated needs more than one.
///
/// # Errors
/// The reason to answer, pass or drop the segment.
#[inline(always)]
pub fn take<S: Steps>(steps: &S) -> Result<Taken, Reason> {
    let mut taken = steps.take()?;
    if taken.is_known() {
        taken = steps.follow()?;
        if taken.is_to_restore() {
            steps.restore(taken.word());
        }
    }
    if !taken.is_to_open() {
        return Ok(taken);
    }
    if matches!(taken.place(), Place::Nowhere) {
        return Err(Reason::NatTableFull);
    }
    let mut reserved = Reserved::NOTHING;
    for attempt in 0..nat::ATTEMPTS {
        reserved = steps.reserve(taken.index(), attempt);
        if reserved != Reserved::NOTHING {
            break;
        }
    }
    steps.open(taken, reserved)
}

/// The steps over the tables themselves.
pub(super) struct OnTables<'t, T> {
    pub(super) turn: &'t Turn,
    pub(super) tables: &'t T,
}

impl<T: Tables> Steps for OnTables<'_, T> {
    #[inline(always)]
    fn take(&self) -> Result<Taken, Reason> {
        self.turn.take(self.tables)
    }

    #[inline(always)]
    fn follow(&self) -> Result<Taken, Reason> {
        self.turn.follow(self.tables)
    }

    #[inline(always)]
    fn reserve(&self, backend: u16, attempt: u32) -> Reserved {
        self.turn.reserve(self.tables, backend, attempt)
    }

    #[inline(always)]
    fn open(&self, taken: Taken, reserved: Reserved) -> Result<Taken, Reason> {
        self.turn.open(self.tables, taken, reserved)
    }

    #[inline(always)]
    fn restore(&self, word: u32) {
        self.turn.restore(self.tables, word);
    }
}

/// Slots that are looked at for another backend than a suspect one: with one in eleven of them
/// another's, 95 of 100 flows find it.
const SECOND_TRY_SLOTS: usize = 32;

impl Turn {
    /// Whether it comes from where no frame arrives: somebody tests the program.
    #[inline(always)]
    pub const fn is_tested(&self) -> bool {
        self.hop.ifindex == SELF_TEST_INTERFACE
    }

    /// Whether this is the daemon's own, to see whether a service is forwarded: it arrives where
    /// no frame does, and has a port that no client has. On the common path nobody asks: a SYN is
    /// never settled.
    #[inline(always)]
    pub(super) const fn is_self_test(&self) -> bool {
        self.is_tested() && u16::from_ne_bytes(self.segment.ports.source) == SELF_TEST_PORT
    }

    /// The first step: the known flow's state machine, or service and slot of an
    /// unknown one; and into the table.
    ///
    /// # Errors
    /// See there.
    #[inline(always)]
    pub fn take<T: Tables>(&self, tables: &T) -> Result<Taken, Reason> {
        let settings = tables.settings().ok_or(Reason::NotReady)?;
        let group_index = flow::group_index(self.hash, settings);
        let group = tables.flow_group(group_index).ok_or(Reason::NotReady)?;
        let tick = flow::tick_of(settings, self.now);
        let kind = Kind::of(self.segment.flags);
        let Found { index, entry } = self.found;
        let place = if self.found == Found::NOTHING || self.is_self_test() {
            Place::Anywhere
        } else {
            match owner(&self.segment, tables, entry) {
                Owner::Lives(backend) => match entry.next(kind, tick, settings) {
                    Step::Keep(_) if nat::translates(backend) => return Ok(Taken::FOLLOW),
                    Step::Keep(next) => {
                        let word = group_index * flow::GROUP as u32 + index as u32;
                        let taken = Taken::at(self.keep(tables, &group, word, backend, next));
                        return Ok(match kind {
                            Kind::Syn => taken.clamped(mss::most(tables.service(backend.service))),
                            Kind::Ack | Kind::Fin | Kind::Rst => taken,
                        });
                    }
                    Step::Renew => Place::Found,
                },
                Owner::Answers(_) => return Ok(Taken::FOLLOW),
                Owner::Gone if !matches!(kind, Kind::Syn) => {
                    group.replace(index, entry.0, 0);
                    if !entry.is_return() {
                        tables.count_event(entry.backend(), Event::Reset);
                    }
                    return Err(Reason::BackendGone);
                }
                Owner::Gone | Owner::Absent => Place::Found,
                Owner::Stranger => Place::Nowhere,
            }
        };

        let Segment { destination, ports, .. } = &self.segment;
        let served = service::index_of(tables, *destination, ports.destination);
        let Some(service_index) = served else {
            return Err(self.unserved(tables, settings));
        };
        admission::check(&self.segment, self.is_self_test())?;
        let service = tables.service(service_index).ok_or(Reason::NotService)?;
        let backend = tables.slot(service_index, self.slot(service, settings));
        let chosen = tables.backend(backend).ok_or(Reason::NoBackend)?;
        match BackendState::from_number(chosen.state) {
            BackendState::Forward | BackendState::Suspect => {}
            BackendState::Reset | BackendState::Absent => return Err(Reason::NoBackend),
        }
        if self.is_self_test() {
            return Ok(Taken::at(backend));
        }
        if nat::translates(chosen) {
            return match kind {
                Kind::Syn => Ok(Taken::at(backend).to(place)),
                // Which port it had nobody knows.
                Kind::Ack | Kind::Fin | Kind::Rst => Err(Reason::NatNoMapping),
            };
        }
        let (state, event) = match kind {
            Kind::Syn => (State::Embryonic, Event::NewFlow),
            Kind::Ack => (State::Young, Event::Adopted),
            Kind::Fin => (State::Closing, Event::Adopted),
            // Its connection ends here: forwarded for its backend to know, not remembered.
            Kind::Rst => return Ok(Taken::at(backend)),
        };
        tables.count_event(backend, event);
        let place = match place {
            Place::Anywhere => {
                let evicted = |victim| tables.count_eviction(victim);
                flow::insert(&group, self.hash, backend, tick, state, settings, evicted)
            }
            Place::Found => {
                let Found { index, entry } = self.found;
                let new = Entry::new(self.hash, backend, tick, state);
                group.replace(index, entry.0, new.0).then_some(index)
            }
            Place::Nowhere => None,
        };
        match place {
            Some(index) => self.record(tables, group_index * flow::GROUP as u32 + index as u32),
            None => tables.count_event(backend, Event::Untracked),
        }
        Ok(match kind {
            Kind::Syn => Taken::at(backend).clamped(service.mss_clamp),
            Kind::Ack | Kind::Fin | Kind::Rst => Taken::at(backend),
        })
    }

    /// Why a segment that no service is for is left to this host.
    #[inline(always)]
    fn unserved<T: Tables>(&self, tables: &T, settings: &Settings) -> Reason {
        if probe::is_answer(&self.segment, tables, settings) {
            Reason::ProbeAnswer
        } else if nat::is_lost(&self.segment, tables, settings) {
            Reason::NatNoReturn
        } else if tables.is_vip(self.segment.destination) {
            Reason::NotService
        } else {
            Reason::NotVip
        }
    }

    /// Moves a known flow on, its entry becoming `next` in this word of the table; tells the index
    /// of its backend. What happens once in a flow's life is counted by who wins the exchange.
    #[inline(always)]
    fn keep<T: Tables>(
        &self,
        tables: &T,
        group: &T::Group,
        word: u32,
        backend: &Backend,
        next: Entry,
    ) -> u16 {
        let Found { index, entry } = self.found;
        if matches!((entry.state(), next.state()), (State::Embryonic, State::Embryonic)) {
            tables.count_event(entry.backend(), Event::SynRetransmission);
            if let Some(second) = self.second_try(tables, backend)
                && group.replace(index, entry.0, next.moved_to(second).0)
            {
                tables.count_event(entry.backend(), Event::SecondTry);
                tables.count_event(second, Event::NewFlow);
                self.record(tables, word);
                return second;
            }
        }
        if next != entry && group.replace(index, entry.0, next.0) {
            let states = (entry.state(), next.state());
            if matches!(states, (State::Embryonic, State::Young | State::Closing)) {
                // It may be that of the flow which had this word before, or one that another CPU
                // writes just now: a time too long is cut, one below zero is none.
                let start = tables.flow_record(word).map_or(self.now, |record| record.start);
                tables.count_handshake(next.backend(), self.now.saturating_sub(start));
            } else if matches!(states, (State::Embryonic | State::Young, State::Reset)) {
                tables.count_event(next.backend(), Event::ClientReset);
            }
        }
        next.backend()
    }

    /// Who takes a SYN that was sent again: nobody else, unless its backend is suspect and the
    /// service lets its clients go anywhere. Then it is the first in a row of the flow's own
    /// slots that is not suspect, if there is one within [`SECOND_TRY_SLOTS`].
    ///
    /// What it costs if the suspect lives: should its answer be so late that it comes before the
    /// other's, the client's ACK goes to the other one, which resets the connection.
    #[inline(always)]
    pub(crate) fn second_try<T: Tables>(&self, tables: &T, first: &Backend) -> Option<u16> {
        if first.state != BackendState::Suspect as u8 {
            return None;
        }
        let service = tables.service(first.service)?;
        if service.affinity != Affinity::None as u8 {
            return None;
        }
        let mut hash = self.hash;
        for _ in 0..SECOND_TRY_SLOTS {
            let index = tables.slot(first.service, maglev::slot_of(hash, service.slots));
            if let Some(backend) = tables.backend(index)
                && backend.state == BackendState::Forward as u8
                && backend.service == first.service
            {
                return Some(index);
            }
            hash = hash::next(hash);
        }
        None
    }

    #[inline(always)]
    fn slot(&self, service: &Service, settings: &Settings) -> u32 {
        let hash = if service.affinity == Affinity::SourceIp as u8 {
            hash::of_client(self.segment.source, &settings.hash_keys)
        } else {
            self.hash
        };
        maglev::slot_of(hash, service.slots)
    }

    #[inline(always)]
    fn record<T: Tables>(&self, tables: &T, index: u32) {
        tables.record_flow(
            index,
            FlowRecord {
                client: self.segment.source,
                start: self.now,
                client_port: self.segment.ports.source,
                vip_port: self.segment.ports.destination,
                nat_port: [0; 2],
                nat_address: 0,
            },
        );
    }
}
