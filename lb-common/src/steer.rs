//! The road of a packet, in order: the one function to know by heart.
//!
//! Address filter, then flow, then service: a frame for nobody here is passed after one look
//! into the filter; a packet of a known flow finds its backend without asking for its service;
//! only an unknown flow asks for service and slot.

use zerocopy::{Immutable, IntoBytes};

use crate::{
    abi::{Backend, FlowRecord, SELF_TEST_INTERFACE, SELF_TEST_PORT, Service, Settings},
    address::Address,
    counters::Event,
    flow::{self, Entry, Found, Kind, State, Step, Words},
    forward::{self, Action},
    frame::Frame,
    hash, maglev,
    parse::{self, Family, Glance, Segment},
    probe,
    reason::{Class, Reason},
    service::{self, Affinity, BackendState},
    tables::Tables,
};

/// What becomes of a segment.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'t> {
    /// It goes to a backend.
    Forward {
        /// To whom.
        backend: &'t Backend,
        /// The index with which its traffic is counted: the backend's; 0, which nobody has, for a
        /// self-test.
        index: u16,
        /// The flow's hash.
        hash: u64,
    },
    /// It answers a probe of ours: the prober gets it.
    Deliver,
    /// Its sender gets a RST.
    Reset(Reason),
    /// It is passed or dropped, as the reason's class says.
    Leave(Reason),
    /// A self-test that would not have been forwarded: dropped, and counted nowhere.
    Failed,
}

/// The rarer stages of the road. In the kernel program each is a function of its own, which the
/// verifier follows once, whoever calls it; all else it follows anew from wherever one may come.
pub trait Stages<F: Frame>: Tables + Sized {
    /// Parses what [`parse::glance`] could not.
    ///
    /// # Errors
    /// The reason to pass or drop the frame, as its class says.
    #[inline(always)]
    fn odd_segment(&self, frame: &F) -> Result<Segment, Reason> {
        odd_segment(frame, self)
    }

    /// Takes a flow's [`Turn`]; tells the index of its backend, which is one.
    ///
    /// # Errors
    /// The reason to answer, pass or drop the segment.
    #[inline(always)]
    fn turn(&self, turn: &Turn) -> Result<u16, Reason> {
        turn.take(self)
    }

    /// Makes of a frame whose IP header is at `l3` one for the prober; tells the index of the
    /// interface by which it is reached. `None` if the frame can't be rewritten.
    #[inline(always)]
    fn deliver(&self, frame: &mut F, l3: u16, family: Family) -> Option<u32> {
        probe::deliver(frame, l3, family, self)
    }
}

/// The whole road: a frame comes in, is parsed, steered and rewritten; the kernel's part is
/// to do what is returned. Every frame is counted once on its way.
///
/// `now` is `jiffies64`.
#[inline(always)]
pub fn process<F: Frame, T: Stages<F>>(frame: &mut F, tables: &T, now: u64) -> Action {
    // Arms of their own though they are alike: of each the compiler makes a road of its own, in
    // which all that follows from the family is constant.
    match parse::glance(frame, |address| may_be_vip(tables, address)) {
        Glance::Ipv4(segment) => forward(frame, &segment, tables, now),
        Glance::Ipv6(segment) => forward(frame, &segment, tables, now),
        Glance::NotVip => forward::leave(tables, Reason::NotVip),
        Glance::Odd => match tables.odd_segment(frame) {
            Ok(segment) => forward(frame, &segment, tables, now),
            Err(reason) => forward::leave(tables, reason),
        },
    }
}

#[inline(always)]
fn forward<F: Frame, T: Stages<F>>(
    frame: &mut F,
    segment: &Segment,
    tables: &T,
    now: u64,
) -> Action {
    let verdict = steer(frame, segment, tables, now);
    forward::apply(frame, segment, tables, verdict)
}

/// Whether the filter lets an address through: a VIP, one that probes are sent from, or one that
/// shares the bit of such.
#[inline(always)]
pub(crate) fn may_be_vip<T: Tables>(tables: &T, address: Address) -> bool {
    let (word, mask) = service::filter_position(address);
    tables.filter_word(word) & mask != 0
}

/// What [`Stages::odd_segment`] does.
///
/// # Errors
/// See there.
#[inline(always)]
pub fn odd_segment<F: Frame, T: Tables>(frame: &F, tables: &T) -> Result<Segment, Reason> {
    let found = parse::segment(frame, |address| may_be_vip(tables, address));
    found.map_err(|reason| match reason {
        // Nobody says of what address, or the filter has told.
        Reason::NotIp | Reason::Runt | Reason::NotVip => reason,
        _ => match parse::locate(frame) {
            Ok(located) if tables.is_vip(located.destination) => reason,
            // This host's own, or its address only shares a VIP's bit in the filter.
            _ => Reason::NotVip,
        },
    })
}

/// Decides about a segment, and keeps the flow table.
#[inline(always)]
pub fn steer<'t, F: Frame, T: Stages<F>>(
    frame: &F,
    segment: &Segment,
    tables: &'t T,
    now: u64,
) -> Verdict<'t> {
    let Some(settings) = tables.settings() else {
        return Verdict::Leave(Reason::NotReady);
    };
    let hash = hash::of_flow(segment, &settings.hash_keys);
    let Some(group) = tables.flow_group(flow::group_index(hash, settings)) else {
        return Verdict::Leave(Reason::NotReady);
    };
    let found = flow::find(&group, hash);
    if let Some(Found { entry, .. }) = found
        && entry.is_settled(segment.flags, flow::tick_of(settings, now))
        && let Owner::Lives(backend) = owner(segment, tables, entry)
    {
        return Verdict::Forward { backend, index: entry.backend(), hash };
    }
    let found = found.unwrap_or(Found::NOTHING);
    let interface = u64::from(frame.interface());
    let turn = Turn { segment: *segment, hash, now, interface, found };
    let taken = tables.turn(&turn);
    if turn.is_self_test() {
        return match taken.ok().and_then(|index| tables.backend(index)) {
            Some(backend) => Verdict::Forward { backend, index: 0, hash },
            None => Verdict::Failed,
        };
    }
    match taken {
        Ok(index) => match tables.backend(index) {
            Some(backend) => Verdict::Forward { backend, index, hash },
            None => refuse(segment.flags, Reason::NoBackend),
        },
        Err(Reason::ProbeAnswer) => Verdict::Deliver,
        Err(reason) => refuse(segment.flags, reason),
    }
}

/// Who a known flow belongs to.
enum Owner<'t> {
    /// A backend of the service that the packet is addressed to.
    Lives(&'t Backend),
    /// One whose flows are to be reset.
    Gone,
    /// One that was removed.
    Absent,
    /// One of another service: the fingerprint is alike, the flow is not.
    Stranger,
}

/// Who a flow's entry belongs to.
#[inline(always)]
fn owner<'t, T: Tables>(segment: &Segment, tables: &'t T, entry: Entry) -> Owner<'t> {
    let Some(backend) = tables.backend(entry.backend()) else {
        return Owner::Absent;
    };
    let state = BackendState::from_number(backend.state);
    if matches!(state, BackendState::Absent) {
        return Owner::Absent;
    }
    match tables.service(backend.service) {
        Some(service) if service::is_for(segment, &service.key) => {}
        _ => return Owner::Stranger,
    }
    if state.forwards() { Owner::Lives(backend) } else { Owner::Gone }
}

/// What is to be answered gets a RST; a client's own RST gets nothing (RFC 9293 §3.10.7.1).
#[inline(always)]
const fn refuse<'t>(flags: u8, reason: Reason) -> Verdict<'t> {
    match (reason.class(), Kind::of(flags)) {
        (Class::Answer, Kind::Rst) => Verdict::Leave(Reason::RstUnknown),
        (Class::Answer, Kind::Syn | Kind::Ack | Kind::Fin) => Verdict::Reset(reason),
        (Class::Pass | Class::Drop, _) => Verdict::Leave(reason),
    }
}

/// A segment with which its flow begins, moves on or ends. Without padding and pointers, so that
/// the verifier lets the kernel program hand it to a function that is followed by itself.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub struct Turn {
    segment: Segment,
    hash: u64,
    now: u64,
    /// Index of the interface where it arrived; wider than that is, for want of padding.
    interface: u64,
    found: Found,
}

/// Slots that are looked at for another backend than a suspect one: with one in eleven of them
/// another's, 95 of 100 flows find it.
const SECOND_TRY_SLOTS: usize = 32;

/// Where the entry of an unknown flow goes. A tag of 64 bits, so that no padding is copied about
/// on the kernel program's stack: the verifier wants every access there aligned.
#[repr(u64)]
enum Place {
    /// Wherever its group has room.
    Anywhere,
    /// Over an entry that no longer binds.
    Of(Found),
    /// Nowhere: another flow's entry would be found before it.
    Nowhere,
}

impl Turn {
    /// Whether this is the daemon's own, to see whether a service is forwarded: it arrives where
    /// no frame does, and has a port that no client has. On the common path nobody asks: a SYN is
    /// never settled.
    #[inline(always)]
    const fn is_self_test(&self) -> bool {
        self.interface == SELF_TEST_INTERFACE as u64
            && u16::from_ne_bytes(self.segment.ports.source) == SELF_TEST_PORT
    }

    /// What [`Stages::turn`] does: the known flow's state machine, or service and slot of an
    /// unknown one; and into the table.
    ///
    /// # Errors
    /// See there.
    #[inline(always)]
    pub fn take<T: Tables>(&self, tables: &T) -> Result<u16, Reason> {
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
                    Step::Keep(next) => {
                        let word = group_index * flow::GROUP as u32 + index as u32;
                        return Ok(self.keep(tables, &group, word, backend, next));
                    }
                    Step::Renew => Place::Of(self.found),
                },
                Owner::Gone if !matches!(kind, Kind::Syn) => {
                    group.replace(index, entry.0, 0);
                    tables.count_event(entry.backend(), Event::Reset);
                    return Err(Reason::BackendGone);
                }
                Owner::Gone | Owner::Absent => Place::Of(self.found),
                Owner::Stranger => Place::Nowhere,
            }
        };

        let key = service::key_of(&self.segment);
        let Some(service_index) = tables.service_index(&key) else {
            return Err(self.unserved(tables, settings));
        };
        let service = tables.service(service_index).ok_or(Reason::NotService)?;
        let backend = tables.slot(service_index, self.slot(service, settings));
        match tables.backend(backend).map(|b| BackendState::from_number(b.state)) {
            Some(BackendState::Forward | BackendState::Suspect) => {}
            Some(BackendState::Reset | BackendState::Absent) | None => {
                return Err(Reason::NoBackend);
            }
        }
        if self.is_self_test() {
            return Ok(backend);
        }
        let (state, event) = match kind {
            Kind::Syn => (State::Embryonic, Event::NewFlow),
            Kind::Ack => (State::Young, Event::Adopted),
            Kind::Fin => (State::Closing, Event::Adopted),
            // Its connection ends here: forwarded for its backend to know, not remembered.
            Kind::Rst => return Ok(backend),
        };
        tables.count_event(backend, event);
        let place = match place {
            Place::Anywhere => flow::insert(&group, self.hash, backend, tick, state, settings),
            Place::Of(Found { index, entry }) => {
                let new = Entry::new(self.hash, backend, tick, state);
                group.replace(index, entry.0, new.0).then_some(index)
            }
            Place::Nowhere => None,
        };
        match place {
            Some(index) => self.record(tables, group_index * flow::GROUP as u32 + index as u32),
            None => tables.count_event(backend, Event::Untracked),
        }
        Ok(backend)
    }

    /// Why a segment that no service is for is left to this host.
    #[inline(always)]
    fn unserved<T: Tables>(&self, tables: &T, settings: &Settings) -> Reason {
        if probe::is_answer(&self.segment, tables, settings) {
            Reason::ProbeAnswer
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
                let start = tables.flow_start(word).unwrap_or(self.now);
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
    fn second_try<T: Tables>(&self, tables: &T, first: &Backend) -> Option<u16> {
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
                reserved: [0; 4],
            },
        );
    }
}

#[cfg(test)]
mod tests;
