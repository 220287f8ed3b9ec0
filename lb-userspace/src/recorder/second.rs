//! One second of the recording, and its bytes.
//!
//! The bytes are postcard's (variable-length integers, no field names). A name is written where a
//! segment has it first and is a number from then on: see [`Names`].

use std::collections::HashMap;

use lb_common::counters::{EVENTS, Event};
use serde::{Deserialize, Serialize};

use crate::control::api::{Admin, Health};

/// What was counted in one second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Second {
    /// Which one: seconds since 1970, by the wall clock.
    pub at: u64,
    /// How long was counted, in milliseconds, up to the end of that second: some 1,000, more if
    /// the daemon was late.
    pub span_ms: u32,
    /// Frames that were not forwarded, by number of their reason; reasons without any are left
    /// out.
    pub reasons: Vec<(u16, u64)>,
    /// Backends that had packets or flows, or changed; the others are left out.
    pub lines: Vec<Line>,
}

/// What one backend, or several together, had in a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whose it is.
    pub party: Party,
    /// What was counted.
    pub figures: Figures,
    /// How a backend stood at the end of the second; `None` of several together, and of one that
    /// is in the maps but in no configuration.
    pub condition: Option<Condition>,
    /// How it stood a second before, if otherwise.
    pub before: Option<Condition>,
}

/// Whose counts a line has.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Party {
    /// A backend's.
    Backend {
        /// The service's name.
        service: String,
        /// The backend's name.
        backend: String,
    },
    /// All those of a service's backends together that found no room for a line of their own.
    Others {
        /// The service's name.
        service: String,
    },
    /// All those of services together that found no room.
    Rest,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub struct Figures {
    /// Frames forwarded, in both directions where both come through here.
    pub packets: u64,
    /// Their bytes, as received.
    pub bytes: u64,
    /// Active flows at the end of the second: a level, no count.
    pub active: u64,
    /// Events, in the order of [`Event::ALL`].
    pub events: [u64; EVENTS],
}

/// What an operator said of a backend, and what was seen of it. The order of both lists is part
/// of the file's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What the operator said.
    pub admin: Admin,
    /// What was seen.
    pub health: Health,
}

impl Party {
    /// The service's name.
    pub fn service(&self) -> Option<&str> {
        match self {
            Self::Backend { service, .. } | Self::Others { service } => Some(service),
            Self::Rest => None,
        }
    }

    /// The backend's name.
    pub fn backend(&self) -> Option<&str> {
        match self {
            Self::Backend { backend, .. } => Some(backend),
            Self::Others { .. } | Self::Rest => None,
        }
    }
}

impl Figures {
    /// How often something happened.
    pub const fn event(&self, event: Event) -> u64 {
        self.events[event as usize]
    }

    /// Whether nothing was counted and no flow is there.
    pub fn are_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        let Self { packets, bytes, active, events } = other;
        self.packets = self.packets.saturating_add(*packets);
        self.bytes = self.bytes.saturating_add(*bytes);
        self.active = self.active.saturating_add(*active);
        for (sum, count) in self.events.iter_mut().zip(events) {
            *sum = sum.saturating_add(*count);
        }
    }

    /// How often something happened that should not: SYNs and flows that came to nothing.
    pub fn troubles(&self) -> u64 {
        let is_trouble = |event: &Event| match event {
            Event::SynRetransmission
            | Event::Reset
            | Event::ClientReset
            | Event::SecondTry
            | Event::Refusal
            | Event::BackendReset
            | Event::Untracked => true,
            Event::NewFlow | Event::Adopted | Event::Handshake => false,
        };
        let troubles = Event::ALL.into_iter().filter(is_trouble);
        troubles.fold(0, |sum: u64, event| sum.saturating_add(self.event(event)))
    }
}

/// A list, so that another build's recording can be read that counts more events, or fewer.
impl From<Figures> for Vec<u64> {
    fn from(figures: Figures) -> Self {
        let Figures { packets, bytes, active, events } = figures;
        let mut list: Self = [packets, bytes, active].into_iter().chain(events).collect();
        let length = list.iter().rposition(|count| *count != 0).map_or(0, |last| last + 1);
        list.truncate(length);
        list
    }
}

impl From<Vec<u64>> for Figures {
    fn from(list: Vec<u64>) -> Self {
        let at = |place: usize| list.get(place).copied().unwrap_or(0);
        let events = std::array::from_fn(|event| at(event + 3));
        Self { packets: at(0), bytes: at(1), active: at(2), events }
    }
}

/// The names that a segment has so far, each by its number.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    parties: Vec<Party>,
    numbers: HashMap<Party, u32>,
}

#[derive(Serialize, Deserialize)]
struct WireSecond {
    at: u64,
    span_ms: u32,
    reasons: Vec<(u16, u64)>,
    /// Those that have no number yet; they get the next ones.
    names: Vec<Party>,
    lines: Vec<WireLine>,
}

#[derive(Serialize, Deserialize)]
struct WireLine {
    party: u32,
    figures: Figures,
    condition: Option<Condition>,
    before: Option<Condition>,
}

/// Bytes of a second without lines and reasons, at most: two numbers, three lengths.
pub(super) const EMPTY_BYTES: usize = 10 + 5 + 3 * 5;
/// Bytes of a reason at most.
pub(super) const REASON_BYTES: usize = 3 + 10;

impl Names {
    /// How many bytes a line takes at most, its name included if that is new.
    pub(super) fn cost(&self, line: &Line) -> usize {
        let number = self.numbers.get(&line.party).copied();
        let wire = wire_line(line, number.unwrap_or(u32::MAX));
        let name = if number.is_some() { 0 } else { size(&line.party) };
        size(&wire) + name
    }

    /// A second's bytes, and the names to [learn](Self::learn) when they are written.
    pub(super) fn encode(&self, second: &Second) -> (Vec<u8>, Vec<Party>) {
        let mut new: HashMap<&Party, u32> = HashMap::new();
        let mut names = Vec::new();
        let lines = second.lines.iter().map(|line| {
            let next = (self.parties.len() + new.len()) as u32;
            let number = self.numbers.get(&line.party).copied();
            let number = number.unwrap_or_else(|| {
                *new.entry(&line.party).or_insert_with(|| {
                    names.push(line.party.clone());
                    next
                })
            });
            wire_line(line, number)
        });
        let lines = lines.collect();
        let Second { at, span_ms, reasons, .. } = second;
        let wire =
            WireSecond { at: *at, span_ms: *span_ms, reasons: reasons.clone(), names, lines };
        // Fails only for what has no fixed shape, which none of these is.
        let bytes = postcard::to_stdvec(&wire).unwrap_or_default();
        (bytes, wire.names)
    }

    /// Gives names the next numbers.
    pub(super) fn learn(&mut self, names: Vec<Party>) {
        for party in names {
            self.numbers.insert(party.clone(), self.parties.len() as u32);
            self.parties.push(party);
        }
    }

    /// The second that bytes stand for, with its names learned; `None` if they stand for none.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> Option<Second> {
        let (wire, rest) = postcard::take_from_bytes::<WireSecond>(bytes).ok()?;
        if !rest.is_empty() {
            return None;
        }
        self.learn(wire.names);
        let lines = wire.lines.into_iter().map(|line| {
            let party = self.parties.get(line.party as usize)?.clone();
            let WireLine { figures, condition, before, .. } = line;
            Some(Line { party, figures, condition, before })
        });
        let lines = lines.collect::<Option<Vec<Line>>>()?;
        let WireSecond { at, span_ms, reasons, .. } = wire;
        Some(Second { at, span_ms, reasons, lines })
    }
}

fn wire_line(line: &Line, party: u32) -> WireLine {
    let Line { figures, condition, before, .. } = line;
    WireLine { party, figures: *figures, condition: *condition, before: *before }
}

fn size(of: &impl Serialize) -> usize {
    // As above.
    postcard::experimental::serialized_size(of).unwrap_or(usize::MAX / 2)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn condition() -> impl Strategy<Value = Condition> {
        (0..Admin::ALL.len(), 0..Health::ALL.len()).prop_map(|(admin, health)| Condition {
            admin: Admin::ALL[admin],
            health: Health::ALL[health],
        })
    }

    fn party() -> impl Strategy<Value = Party> {
        let name = "[a-z]{0,3}";
        prop_oneof![
            8 => (name, name).prop_map(|(service, backend)| Party::Backend { service, backend }),
            2 => name.prop_map(|service| Party::Others { service }),
            1 => Just(Party::Rest),
        ]
    }

    fn line() -> impl Strategy<Value = Line> {
        let count = || prop_oneof![Just(0), 0..300_u64, any::<u64>()];
        let figures = (count(), count(), count(), vec(count(), EVENTS));
        let figures = figures.prop_map(|(packets, bytes, active, events)| Figures {
            packets,
            bytes,
            active,
            events: std::array::from_fn(|event| events[event]),
        });
        (party(), figures, option::of(condition()), option::of(condition())).prop_map(
            |(party, figures, condition, before)| Line { party, figures, condition, before },
        )
    }

    pub fn second() -> impl Strategy<Value = Second> {
        let reasons = vec((any::<u16>(), any::<u64>()), 0..4);
        (any::<u64>(), any::<u32>(), reasons, vec(line(), 0..40))
            .prop_map(|(at, span_ms, reasons, lines)| Second { at, span_ms, reasons, lines })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(seconds in vec(second(), 1..5)) {
            let (mut writer, mut reader) = (Names::default(), Names::default());
            for second in seconds {
                let cost: usize = second.lines.iter().map(|line| writer.cost(line)).sum();
                let (bytes, names) = writer.encode(&second);
                let most = EMPTY_BYTES + REASON_BYTES * second.reasons.len() + cost;
                prop_assert!(bytes.len() <= most, "{} > {most}", bytes.len());
                writer.learn(names);
                prop_assert_eq!(reader.decode(&bytes), Some(second));
            }
        }

        #[test]
        fn any_bytes_are_a_second_or_none(bytes in vec(any::<u8>(), 0..200)) {
            let _ = Names::default().decode(&bytes);
        }

        #[test]
        fn what_is_cut_is_no_second(second in second(), cut in 1..20_usize) {
            let (bytes, _) = Names::default().encode(&second);
            let cut = bytes.len().saturating_sub(cut);
            prop_assert_eq!(Names::default().decode(&bytes[..cut]), None);
        }
    }

    #[test]
    fn a_build_that_counts_more_is_read() {
        let mut list = Vec::from(Figures { packets: 7, events: [1; EVENTS], ..Figures::default() });
        list.extend([9, 9]);
        let figures = Figures::from(list);
        assert_eq!((figures.packets, figures.events), (7, [1; EVENTS]));
        assert_eq!(Figures::from(vec![7]).packets, 7);
    }
}
