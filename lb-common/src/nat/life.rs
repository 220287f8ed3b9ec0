//! The life of a translated flow, of which both entries tell: what a segment makes of them, and a
//! lost one put back.

use super::entries::{Half, Partner, put};
use crate::{
    abi::{Backend, FlowRecord},
    counters::Event,
    flow::{self, Entry, Found, GROUP, Kind, State, Words},
    reason::Reason,
    steer::{Place, Taken, Turn},
    tables::Tables,
    wire::Tcp,
};

/// A flow as both its entries tell.
struct Known<'t, G> {
    /// Of the entry that was found.
    word: u32,
    /// The group of that word.
    group: G,
    backend: &'t Backend,
    record: FlowRecord,
    /// The other entry.
    other: Partner,
    /// The present one.
    tick: u8,
}

impl Turn {
    /// Moves a known flow on, in either direction.
    ///
    /// # Errors
    /// The reason to answer or drop the segment.
    #[inline(always)]
    pub fn follow<T: Tables>(&self, tables: &T) -> Result<Taken, Reason> {
        let known = self.known(tables)?;
        if self.found.entry.is_return() {
            self.answered(tables, known)
        } else {
            self.go_on(tables, known)
        }
    }

    /// What both entries of a known flow tell, if the segment is its.
    ///
    /// # Errors
    /// The reason to answer or drop it if not.
    #[inline(always)]
    fn known<'t, T: Tables>(&self, tables: &'t T) -> Result<Known<'t, T::Group>, Reason> {
        let is_return = self.found.entry.is_return();
        let none = if is_return { Reason::NatNoReturn } else { Reason::NatNoMapping };
        let settings = tables.settings().ok_or(Reason::NotReady)?;
        let (word, group) = self.place(tables, settings).ok_or(Reason::NotReady)?;
        let index = self.found.entry.backend();
        let backend = tables.backend(index).ok_or(none)?;
        let half = self.half(tables, settings, backend, word, is_return).ok_or(none)?;
        let Half { record, hash } = half;
        let other = Partner::find(tables, settings, hash, !is_return, index, record);
        let tick = flow::tick_of(settings, self.now);
        Ok(Known { word, group, backend, record, other, tick })
    }

    /// The next segment of a client.
    #[inline(always)]
    fn go_on<T: Tables>(&self, tables: &T, known: Known<'_, T::Group>) -> Result<Taken, Reason> {
        let Known { word, group, backend, other, tick, .. } = known;
        let Found { index, entry } = self.found;
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
        let is_new = matches!(entry.state(), State::Embryonic | State::Answered);
        let is_answered = match theirs {
            State::Free | State::Embryonic | State::Reset => {
                matches!(entry.state(), State::Answered)
            }
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
                entry.state()
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

    /// The next segment of a backend.
    #[inline(always)]
    fn answered<T: Tables>(&self, tables: &T, known: Known<'_, T::Group>) -> Result<Taken, Reason> {
        let Known { word, group, record, other, tick, .. } = known;
        let Found { index, entry } = self.found;
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
        match other.state() {
            // Evicted while the handshake was under way: what the client acknowledges finds it again.
            State::Free if ends_both || other.is_anothers => Ok(taken),
            State::Free => Ok(taken.to_restore()),
            theirs => {
                // Whose SYN is answered gives way to nobody's SYN that is not.
                let is_new = matches!((state, theirs), (State::Answered, State::Embryonic));
                if ends_both || is_new {
                    other.replace(tables, other.found.entry.with(tick, state));
                }
                Ok(taken)
            }
        }
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
        let lost = Entry::new(hash, entry.backend(), 0, entry.state());
        let lost = if is_return { lost } else { lost.of_return() };
        let tick = flow::tick_of(settings, self.now);
        put(tables, settings, hash, lost, tick, &record, |_| false)
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
