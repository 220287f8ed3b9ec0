//! The road of a packet, in order: the one function to know by heart.
//!
//! Address filter, then flow, then service: a frame for nobody here is passed after one look
//! into the filter; a packet of a known flow finds its backend without asking for its service;
//! only an unknown flow asks for service and slot.

use crate::{
    abi::{Backend, NatHop},
    address::Address,
    flow::{self, Entry, Found, Kind},
    forward::{self, Action, l2, nat::Carry},
    frame::Frame,
    hash,
    icmp::{self, Quoted},
    nat,
    parse::{self, Family, Glance, Segment},
    probe,
    reason::{Class, Reason},
    service::{self, BackendState},
    tables::Tables,
};

mod admission;
mod turn;

use turn::OnTables;
pub(crate) use turn::Place;
pub use turn::{Steps, Taken, Turn, take};

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
        /// The word of its entry, where it is translated; 0 of a self-test, which has none.
        word: u32,
        /// The flow's hash.
        hash: u64,
    },
    /// It goes from a backend to its client.
    Return {
        /// From whom.
        backend: &'t Backend,
        /// The backend's index.
        index: u16,
        /// The word of its flow's return entry.
        word: u32,
        /// Hash of its tuple.
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

    /// Takes a flow's [`Turn`]; tells what came of it.
    ///
    /// # Errors
    /// The reason to answer, pass or drop the segment.
    #[inline(always)]
    fn turn(&self, turn: Turn) -> Result<Taken, Reason> {
        take(&OnTables { turn: &turn, tables: self })
    }

    /// Rewrites the headers of a translated flow's segment.
    ///
    /// # Errors
    /// The reason to drop it.
    #[inline(always)]
    fn carry(&self, frame: &mut F, backend: &Backend, carry: Carry) -> Result<Action, Reason> {
        forward::nat::carry(frame, self, backend, carry)
    }

    /// Which flow an ICMP error is about; see [`icmp::quoted`].
    ///
    /// # Errors
    /// See there.
    #[inline(always)]
    fn quoted(&self, frame: &F) -> Result<Quoted, Reason> {
        icmp::quoted(frame, self)
    }

    /// Forwards an ICMP error to its flow's backend; see [`icmp::forward_error`].
    ///
    /// # Errors
    /// See there.
    #[inline(always)]
    fn forward_error(&self, frame: &mut F, quoted: Quoted) -> Result<Action, Reason> {
        icmp::forward_error(frame, self, quoted)
    }

    /// Translates an ICMP error about a flow that is; see [`icmp::translate_ipv4`].
    ///
    /// # Errors
    /// See there.
    #[inline(always)]
    fn translate_error(&self, frame: &mut F, quoted: Quoted) -> Result<Action, Reason> {
        match quoted.family() {
            Family::Ipv4 => icmp::translate_ipv4(frame, self, quoted),
            Family::Ipv6 => icmp::translate_ipv6(frame, self, quoted),
        }
    }

    /// One step along a segment's TCP options; see [`forward::mss::next_option`].
    #[inline(always)]
    fn next_option(&self, frame: &F, at: u64) -> u64 {
        forward::mss::next_option(frame, at)
    }

    /// Lowers the MSS of the SYN at the offset `l4` to `most`; see [`forward::mss::clamp`].
    #[inline(always)]
    fn clamp(&self, frame: &mut F, l4: u16, most: u16) {
        forward::mss::clamp(frame, self, l4, most);
    }

    /// Makes of a frame the RST that answers its segment; see [`forward::reset::rewrite`].
    #[inline(always)]
    fn reset(&self, frame: &mut F, segment: &Segment) -> Option<()> {
        forward::reset::rewrite(frame, segment)
    }

    /// Makes of a frame that can't be sent to its backend what its sender is told, if it is told
    /// anything, and finds out as what it is counted; see [`forward::too_big::unsent`].
    #[inline(always)]
    fn unsent(&self, frame: &mut F, backend: u16, reason: Reason) -> Reason {
        forward::too_big::unsent(frame, self, backend, reason)
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
    match parse::glance(frame, |source, destination| may_be_ours(tables, source, destination)) {
        // What a glance sees whole is in one buffer.
        Glance::Ipv4(segment) => forward(frame, &segment, tables, now, F::len),
        Glance::Ipv6(segment) => forward(frame, &segment, tables, now, F::len),
        Glance::NotVip => forward::leave(tables, Reason::NotVip),
        Glance::Odd => match tables.odd_segment(frame) {
            Ok(segment) => forward(frame, &segment, tables, now, F::whole_len),
            Err(Reason::NotTcp) => match icmp::follow(frame, tables) {
                Ok(action) => action,
                Err(reason) => forward::leave(tables, reason),
            },
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
    length: impl Fn(&F) -> usize,
) -> Action {
    let verdict = steer(frame, segment, tables, now);
    forward::apply(frame, segment, tables, verdict, length)
}

/// Whether the filter lets an address through: a VIP, one that probes are sent from, or one that
/// shares the bit of such.
#[inline(always)]
pub(crate) fn may_be_vip<T: Tables>(tables: &T, address: Address) -> bool {
    let (word, mask) = service::filter_position(address);
    tables.filter_word(word) & mask != 0
}

/// Whether the filter lets a packet through: by its destination, or, where backends answer clients
/// by their own addresses through us, by its source.
#[inline(always)]
pub fn may_be_ours<T: Tables>(tables: &T, source: Address, destination: Address) -> bool {
    may_be_vip(tables, destination) || tables.filters_sources() && may_be_vip(tables, source)
}

/// What [`Stages::odd_segment`] does.
///
/// # Errors
/// See there.
#[inline(always)]
pub fn odd_segment<F: Frame, T: Tables>(frame: &F, tables: &T) -> Result<Segment, Reason> {
    let may_be_ours = |source, destination| may_be_ours(tables, source, destination);
    let found = parse::segment(frame, may_be_ours);
    found.map_err(|reason| match reason {
        // Nobody says of what address, or the filter has told.
        Reason::NotIp | Reason::Runt | Reason::NotVip => reason,
        // It may be an ICMP error to an address of this host about a flow that is translated.
        Reason::NotTcp => reason,
        _ => match parse::locate(frame) {
            Ok(located) if tables.is_vip(located.destination) => reason,
            // This host's own, or its address only shares a VIP's bit in the filter.
            _ => Reason::NotVip,
        },
    })
}

/// Decides about a segment, and keeps the flow table. A SYN's MSS is lowered here already, if it is to
/// be: who is settled is not asked again.
#[inline(always)]
pub fn steer<'t, F: Frame, T: Stages<F>>(
    frame: &mut F,
    segment: &Segment,
    tables: &'t T,
    now: u64,
) -> Verdict<'t> {
    let Some(settings) = tables.settings() else {
        return Verdict::Leave(Reason::NotReady);
    };
    let hash = hash::of_flow(segment, &settings.hash_keys);
    // Records are far away. They are asked for as soon as it is guessed that they will be, so that
    // they come while the flow's word does; a new flow mostly gets its own place.
    if matches!(Kind::of(segment.flags), Kind::Syn) {
        tables.expect_record(flow::first_word(hash, settings));
    }
    let Some(group) = tables.flow_group(flow::group_index(hash, settings)) else {
        return Verdict::Leave(Reason::NotReady);
    };
    let found = flow::find_marked(&group, hash);
    // What is free is never settled.
    if let Some(Found { index, entry }) = found
        && entry.is_settled(segment.flags, flow::tick_of(settings, now))
    {
        let word = flow::group_index(hash, settings) * flow::GROUP as u32 + index as u32;
        match owner(segment, tables, entry) {
            Owner::Lives(backend) => {
                if nat::translates(backend) {
                    tables.expect_record(word);
                }
                return Verdict::Forward { backend, index: entry.backend(), word, hash };
            }
            Owner::Answers(backend) => {
                tables.expect_record(word);
                tables.expect_hop(word);
                return Verdict::Return { backend, index: entry.backend(), word, hash };
            }
            Owner::Gone | Owner::Absent | Owner::Stranger => {}
        }
    }
    let found = found.filter(|found| !found.entry.is_free()).unwrap_or(Found::NOTHING);
    let Some(macs) = frame.read::<l2::Words>(0) else {
        return Verdict::Leave(Reason::Runt);
    };
    let l2::Words { first, second } = macs.turned();
    let hop = NatHop { first, second, ifindex: frame.interface() };
    let turn = Turn { segment: *segment, hash, now, hop, found };
    let is_self_test = turn.is_self_test();
    let taken = tables.turn(turn);
    if is_self_test {
        let Ok(taken) = taken else { return Verdict::Failed };
        return match tables.backend(taken.index()) {
            Some(backend) => Verdict::Forward { backend, index: 0, word: 0, hash },
            None => Verdict::Failed,
        };
    }
    match taken {
        Ok(taken) => match tables.backend(taken.index()) {
            Some(backend) => {
                if let Some(most) = taken.clamp() {
                    tables.clamp(frame, segment.l4, most);
                }
                let (index, word) = (taken.index(), taken.word());
                if taken.is_return() {
                    Verdict::Return { backend, index, word, hash }
                } else {
                    Verdict::Forward { backend, index, word, hash }
                }
            }
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
    /// The backend that the packet comes from, on its way to a client.
    Answers(&'t Backend),
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
    let Some(vip) = service::of_backend(tables, backend) else {
        return Owner::Stranger;
    };
    let is_for = service::is_for(segment, &vip);
    if !(is_for || entry.is_return() && nat::is_from(segment, backend)) {
        Owner::Stranger
    } else if !state.forwards() {
        Owner::Gone
    } else if is_for {
        Owner::Lives(backend)
    } else {
        Owner::Answers(backend)
    }
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

#[cfg(test)]
mod tests;
