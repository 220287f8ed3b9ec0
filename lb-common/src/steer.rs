//! The road of a packet, in order: the one function to know by heart.
//!
//! Address filter, then flow, then service: a frame for nobody here is passed after one look
//! into the filter; a packet of a known flow finds its backend without asking for its service;
//! only an unknown flow asks for service and slot.

use crate::{
    abi::{Backend, FlowRecord, Service, Settings},
    counters::Event,
    flow::{self, Entry, Found, Kind, State, Step, Words},
    forward::{self, Action},
    frame::Frame,
    hash, maglev,
    parse::{self, Segment},
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
        /// The backend's index.
        index: u16,
        /// The flow's hash.
        hash: u64,
    },
    /// Its sender gets a RST.
    Reset(Reason),
    /// It is passed or dropped, as the reason's class says.
    Leave(Reason),
}

/// The whole road: a frame comes in, is parsed, steered and rewritten; the kernel's part is
/// to do what is returned. Every frame is counted once on its way.
///
/// `now` is `jiffies64`.
#[inline(always)]
pub fn process<F: Frame, T: Tables>(frame: &mut F, tables: &T, now: u64) -> Action {
    let may_be_vip = |address| {
        let (word, mask) = service::filter_position(address);
        tables.filter_word(word) & mask != 0
    };
    match parse::segment(frame, may_be_vip) {
        Ok(segment) => {
            let verdict = steer(&segment, tables, now);
            forward::apply(frame, &segment, tables, verdict)
        }
        Err(Reason::NotVip) => forward::leave(tables, Reason::NotVip),
        Err(reason) => forward::leave(tables, confirmed(frame, tables, reason)),
    }
}

/// The reason for which a frame is left that got past the filter: not ours, if its address only
/// shares a VIP's bit there. A function of its own, for the verifier to follow it from one place.
#[inline(never)]
fn confirmed<F: Frame, T: Tables>(frame: &F, tables: &T, reason: Reason) -> Reason {
    if matches!(reason.class(), Class::Pass) {
        return reason;
    }
    match parse::locate(frame) {
        Ok(located) if tables.is_vip(located.destination) => reason,
        _ => Reason::NotVip,
    }
}

/// Decides about a segment, and keeps the flow table.
#[inline(always)]
pub fn steer<'t, T: Tables>(segment: &Segment, tables: &'t T, now: u64) -> Verdict<'t> {
    let Some(settings) = tables.settings() else {
        return Verdict::Leave(Reason::NotReady);
    };
    let hash = hash::of_flow(segment, &settings.hash_keys);
    let group_index = flow::group_index(hash, settings);
    let Some(group) = tables.flow_group(group_index) else {
        return Verdict::Leave(Reason::NotReady);
    };
    let kind = Kind::of(segment.flags);
    let tick = flow::tick_of(settings, now);

    let place = match flow::find(&group, hash) {
        None => Place::Anywhere,
        Some(found) => match owner(segment, tables, found.entry) {
            Owner::Lives(backend) => match found.entry.next(kind, tick, settings) {
                Step::Keep(entry) => {
                    if entry != found.entry {
                        group.replace(found.index, found.entry.0, entry.0);
                    }
                    let index = entry.backend();
                    if matches!((kind, entry.state()), (Kind::Syn, State::Embryonic)) {
                        tables.count_event(index, Event::SynRetransmission);
                    }
                    return Verdict::Forward { backend, index, hash };
                }
                Step::Renew => Place::Of(found),
            },
            Owner::Gone if !matches!(kind, Kind::Syn) => {
                group.replace(found.index, found.entry.0, 0);
                tables.count_event(found.entry.backend(), Event::Reset);
                return reset(kind, Reason::BackendGone);
            }
            Owner::Gone | Owner::Absent => Place::Of(found),
            Owner::Stranger => Place::Nowhere,
        },
    };
    let unknown = Unknown { segment, settings, hash, now, group_index, tick, kind, place };
    unknown.steer(tables, &group)
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
    if matches!(state, BackendState::Forward) { Owner::Lives(backend) } else { Owner::Gone }
}

/// A RST to the client; to a client's own RST nothing (RFC 9293 §3.10.7.1).
#[inline(always)]
const fn reset<'t>(kind: Kind, reason: Reason) -> Verdict<'t> {
    match kind {
        Kind::Rst => Verdict::Leave(Reason::RstUnknown),
        Kind::Syn | Kind::Ack | Kind::Fin => Verdict::Reset(reason),
    }
}

/// A segment whose flow is not in the table, or no longer bound by its entry there.
struct Unknown<'t> {
    segment: &'t Segment,
    settings: &'t Settings,
    hash: u64,
    now: u64,
    group_index: u32,
    tick: u8,
    kind: Kind,
    place: Place,
}

impl Unknown<'_> {
    /// Service, slot, backend; and into the table. A function of its own, because the kernel
    /// program's stack is 512 bytes and the known flow's road needs none of this.
    #[inline(never)]
    fn steer<'t, T: Tables>(&self, tables: &'t T, group: &T::Group) -> Verdict<'t> {
        let Some(service_index) = tables.service_index(&service::key_of(self.segment)) else {
            return Verdict::Leave(Reason::NotService);
        };
        let Some(service) = tables.service(service_index) else {
            return Verdict::Leave(Reason::NotService);
        };
        let index = tables.slot(service_index, self.slot(service));
        let backend = match tables.backend(index) {
            Some(b) if matches!(BackendState::from_number(b.state), BackendState::Forward) => b,
            _ => return reset(self.kind, Reason::NoBackend),
        };
        let verdict = Verdict::Forward { backend, index, hash: self.hash };
        let (state, event) = match self.kind {
            Kind::Syn => (State::Embryonic, Event::NewFlow),
            Kind::Ack => (State::Young, Event::Adopted),
            Kind::Fin => (State::Closing, Event::Adopted),
            // Its connection ends here: forwarded for its backend to know, not remembered.
            Kind::Rst => return verdict,
        };
        tables.count_event(index, event);
        match self.insert(group, index, state) {
            Some(place) => self.record(tables, place),
            None => tables.count_event(index, Event::Untracked),
        }
        verdict
    }

    #[inline(always)]
    fn slot(&self, service: &Service) -> u32 {
        let hash = if service.affinity == Affinity::SourceIp as u8 {
            hash::of_client(self.segment.source, &self.settings.hash_keys)
        } else {
            self.hash
        };
        maglev::slot_of(hash, service.slots)
    }

    #[inline(always)]
    fn insert<W: Words>(&self, group: &W, backend: u16, state: State) -> Option<usize> {
        match self.place {
            Place::Anywhere => {
                flow::insert(group, self.hash, backend, self.tick, state, self.settings)
            }
            Place::Of(Found { index, entry }) => {
                let new = Entry::new(self.hash, backend, self.tick, state);
                group.replace(index, entry.0, new.0).then_some(index)
            }
            Place::Nowhere => None,
        }
    }

    #[inline(always)]
    fn record<T: Tables>(&self, tables: &T, place: usize) {
        tables.record_flow(
            self.group_index * flow::GROUP as u32 + place as u32,
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
