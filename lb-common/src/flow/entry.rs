//! A word of the table: what it says of a flow, and what a packet makes of it.

use zerocopy::{Immutable, IntoBytes};

use crate::{abi::Settings, wire::Tcp};

pub(super) const TICK_SHIFT: u32 = 3;
const BACKEND_SHIFT: u32 = 11;
const RETURN: u64 = 1 << 27;
pub(super) const FINGERPRINT_SHIFT: u32 = 28;
pub(super) const STATE_MASK: u64 = 0x7;

/// Ages from here on are not old but in the future: who asks has read the time, and then another
/// CPU has read a later one and written it into the flow. A packet does so within nanoseconds of
/// a new tick, the sweep within all the milliseconds it takes. Longer than any idle time-out
/// (`Timing::from_hz`), or what is merely old would look new.
pub const AHEAD: u8 = 248;

/// What is known of a flow: from the client's packets alone, but for what is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Nothing here.
    Free = 0,
    /// A SYN, no answer to it yet.
    Embryonic = 1,
    /// More than a SYN was seen, all of it within one tick: a spoofed ACK could have made it. It
    /// stays young while it is silent, however old it gets; its next packet makes it old.
    Young = 2,
    /// Seen in two ticks or more; never evicted.
    Old = 3,
    /// The sender has sent its FIN; the other half may go on for long.
    Closing = 4,
    /// The client has sent a RST: kept for a moment, so that a forged RST (RFC 5961 §3) can't
    /// make a live flow forget its backend.
    Reset = 5,
    /// Translated flows only: the backend has answered the SYN, the client not yet that.
    Answered = 6,
    /// Translated flows only: both have sent their FINs. Its port is kept a while longer, for late
    /// segments (RFC 9293 §3.3.2, TIME-WAIT).
    TimeWait = 7,
}

impl State {
    /// All that a flow can be in.
    pub const ALL: [Self; 7] = [
        Self::Embryonic,
        Self::Young,
        Self::Old,
        Self::Closing,
        Self::Reset,
        Self::Answered,
        Self::TimeWait,
    ];

    /// The name used by metrics, CLI and docs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Embryonic => "embryonic",
            Self::Young => "young",
            Self::Old => "old",
            Self::Closing => "closing",
            Self::Reset => "reset",
            Self::Answered => "answered",
            Self::TimeWait => "time_wait",
        }
    }

    /// Whether the flow counts as active: its connection may still carry data.
    pub const fn is_active(self) -> bool {
        match self {
            Self::Embryonic | Self::Young | Self::Old | Self::Closing | Self::Answered => true,
            Self::Free | Self::Reset | Self::TimeWait => false,
        }
    }

    #[inline(always)]
    const fn from_bits(word: u64) -> Self {
        match word & STATE_MASK {
            1 => Self::Embryonic,
            2 => Self::Young,
            3 => Self::Old,
            4 => Self::Closing,
            5 => Self::Reset,
            6 => Self::Answered,
            7 => Self::TimeWait,
            _ => Self::Free,
        }
    }
}

/// What a segment means for a flow's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Opens a connection.
    Syn,
    /// Neither opens nor ends one.
    Ack,
    /// Ends the client's half.
    Fin,
    /// Ends it all.
    Rst,
}

impl Kind {
    /// By the flags, the most final first.
    #[inline(always)]
    pub const fn of(flags: u8) -> Self {
        if flags & Tcp::RST != 0 {
            Self::Rst
        } else if flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN {
            Self::Syn
        } else if flags & Tcp::FIN != 0 {
            Self::Fin
        } else {
            Self::Ack
        }
    }
}

/// One word of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, IntoBytes, Immutable)]
#[repr(transparent)]
pub struct Entry(pub u64);

/// What a packet does to the flow it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The flow keeps its backend; this is its entry from now on.
    Keep(Entry),
    /// The entry no longer binds: choose as for an unknown flow, and take its place.
    Renew,
}

/// The tick of a moment, modulo 256.
#[inline(always)]
pub fn tick_of(settings: &Settings, now: u64) -> u8 {
    (now >> (settings.tick_shift & 63)) as u8
}

impl Entry {
    /// A new entry.
    #[inline(always)]
    pub const fn new(hash: u64, backend: u16, tick: u8, state: State) -> Self {
        Self(
            hash >> FINGERPRINT_SHIFT << FINGERPRINT_SHIFT
                | (backend as u64) << BACKEND_SHIFT
                | (tick as u64) << TICK_SHIFT
                | state as u64,
        )
    }

    /// The same for what the flow's backend sends.
    #[inline(always)]
    pub const fn of_return(self) -> Self {
        Self(self.0 | RETURN)
    }

    /// Whether it is for what a backend sends.
    #[inline(always)]
    pub const fn is_return(self) -> bool {
        self.0 & RETURN != 0
    }

    /// Whether it is of the same flow at the same backend, whatever became of that meanwhile.
    #[inline(always)]
    pub const fn is_same(self, other: Self) -> bool {
        (self.0 ^ other.0) >> BACKEND_SHIFT == 0
    }

    /// Index of its backend.
    #[inline(always)]
    pub const fn backend(self) -> u16 {
        (self.0 >> BACKEND_SHIFT) as u16
    }

    /// The tick of its last packet.
    #[inline(always)]
    pub const fn tick(self) -> u8 {
        (self.0 >> TICK_SHIFT) as u8
    }

    /// Its state.
    #[inline(always)]
    pub const fn state(self) -> State {
        State::from_bits(self.0)
    }

    /// Ticks since its last packet, modulo 256; 0 if that came in a tick that has not begun here
    /// (see [`AHEAD`]).
    #[inline(always)]
    pub const fn age(self, tick: u8) -> u8 {
        let age = tick.wrapping_sub(self.tick());
        if age >= AHEAD { 0 } else { age }
    }

    /// Whether it has been silent for longer than its state allows.
    #[inline(always)]
    pub fn is_expired(self, tick: u8, settings: &Settings) -> bool {
        u64::from(self.age(tick)) > idle_limit(self.0, settings)
    }

    /// Whether it is nobody's.
    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.0 & STATE_MASK == 0
    }

    /// Whether the fingerprint is the hash's: a free entry's may be, too.
    #[inline(always)]
    pub(crate) const fn is_marked(self, hash: u64) -> bool {
        (self.0 ^ hash) >> FINGERPRINT_SHIFT == 0
    }

    /// The same flow in another state, last heard of in this tick.
    #[inline(always)]
    pub const fn with(self, tick: u8, state: State) -> Self {
        Self(self.0 >> BACKEND_SHIFT << BACKEND_SHIFT | (tick as u64) << TICK_SHIFT | state as u64)
    }

    /// The same flow at another backend.
    #[inline(always)]
    pub const fn moved_to(self, backend: u16) -> Self {
        Self(self.0 & !(0xffff << BACKEND_SHIFT) | (backend as u64) << BACKEND_SHIFT)
    }

    /// Whether a packet with these flags, now, leaves the entry as it is: what most packets do.
    /// Otherwise [`Self::next`] tells.
    #[inline(always)]
    pub const fn is_settled(self, flags: u8, tick: u8) -> bool {
        // Tick and state stand side by side at the end of the word: one comparison for both.
        let first = Entry::new(0, 0, tick, State::Young).0;
        let last = Entry::new(0, 0, tick, State::Closing).0;
        let found = self.0 & ((1 << BACKEND_SHIFT) - 1);
        flags & (Tcp::SYN | Tcp::FIN | Tcp::RST) == 0 && found.wrapping_sub(first) <= last - first
    }

    /// The state machine: what a packet of this kind, now, makes of the flow.
    ///
    /// A SYN moves an established flow only if that has been silent for `reuse_ticks`:
    /// before, it is a retransmission or a forgery, and the backend answers it with a
    /// challenge ACK (RFC 5961 §4); after, the port was used again.
    #[inline(always)]
    pub fn next(self, kind: Kind, tick: u8, settings: &Settings) -> Step {
        if self.is_expired(tick, settings) {
            return Step::Renew;
        }
        let fresh = self.age(tick) == 0;
        match (self.state(), kind) {
            (State::Free, _) => Step::Renew,
            (State::Old, Kind::Ack) => Step::Keep(self.with(tick, State::Old)),
            (State::Young, Kind::Ack) => {
                Step::Keep(self.with(tick, if fresh { State::Young } else { State::Old }))
            }
            (State::Embryonic | State::Reset, Kind::Ack) => {
                Step::Keep(self.with(tick, State::Young))
            }
            (State::Closing, Kind::Ack) => Step::Keep(self.with(tick, State::Closing)),
            (State::Answered, Kind::Ack | Kind::Syn) => {
                Step::Keep(self.with(tick, State::Answered))
            }
            (State::TimeWait, Kind::Ack | Kind::Fin) => {
                Step::Keep(self.with(tick, State::TimeWait))
            }
            (State::Embryonic, Kind::Syn) => Step::Keep(self.with(tick, State::Embryonic)),
            (State::Young | State::Old, Kind::Syn) => {
                if u32::from(self.age(tick)) > settings.reuse_ticks {
                    Step::Renew
                } else {
                    Step::Keep(self)
                }
            }
            (State::Closing | State::Reset | State::TimeWait, Kind::Syn) => Step::Renew,
            (_, Kind::Fin) => Step::Keep(self.with(tick, State::Closing)),
            (_, Kind::Rst) => Step::Keep(self.with(tick, State::Reset)),
        }
    }
}

/// Silent ticks that a word's state allows.
#[inline(always)]
pub(super) fn idle_limit(word: u64, settings: &Settings) -> u64 {
    u64::from_le_bytes(settings.idle_ticks) >> ((word & STATE_MASK) * 8) & 0xff
}
