//! One second of the recording, and its bytes.
//!
//! The bytes are postcard's (variable-length integers, no field names). A name is written where a
//! segment has it first and is a number from then on: see [`Names`].

use std::collections::HashMap;

use lb_common::counters::{EVENTS, Event};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Frames forwarded, in both directions where both come through here.
    pub packets: u64,
    /// Their bytes, as received.
    pub bytes: u64,
    /// Those of them that came from a backend; `None` where backends answer their clients
    /// directly and nobody here sees it.
    pub returned: Option<Returned>,
    /// Active flows at the end of the second: a level, no count.
    pub active: u64,
    /// Events, in the order of [`Event::ALL`].
    pub events: [u64; EVENTS],
}

/// What was forwarded from backends to their clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// Frames.
    pub packets: u64,
    /// Their bytes, as received.
    pub bytes: u64,
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
        *self == Self { returned: self.returned, ..Self::default() }
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        let Self { packets, bytes, returned, active, events } = other;
        self.packets = self.packets.saturating_add(*packets);
        self.bytes = self.bytes.saturating_add(*bytes);
        if let Some(more) = returned {
            let sum = self.returned.get_or_insert_default();
            sum.packets = sum.packets.saturating_add(more.packets);
            sum.bytes = sum.bytes.saturating_add(more.bytes);
        }
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

/// What a record looks like. A segment has records of one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Without [`Figures::returned`]: of 0.1 before it translated.
    Unreturned,
    /// As records are written today.
    Today,
}

/// The names that a segment has so far, each by its number.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    parties: Vec<Party>,
    numbers: HashMap<Party, u32>,
}

#[derive(Serialize, Deserialize)]
struct WireSecond<L> {
    at: u64,
    span_ms: u32,
    reasons: Vec<(u16, u64)>,
    /// Those that have no number yet; they get the next ones.
    names: Vec<Party>,
    lines: Vec<L>,
}

/// A line of [`Format::Today`].
#[derive(Serialize, Deserialize)]
struct WireLine {
    line: UnreturnedLine,
    returned: Option<Returned>,
}

/// A line of [`Format::Unreturned`].
#[derive(Serialize, Deserialize)]
struct UnreturnedLine {
    party: u32,
    /// Packets, bytes, active flows, then events in the order of [`Event::ALL`]; zeros at the end
    /// are left out. A list, so that another build's recording can be read that counts more
    /// events, or fewer.
    counts: Vec<u64>,
    condition: Option<Condition>,
    before: Option<Condition>,
}

impl From<UnreturnedLine> for WireLine {
    fn from(line: UnreturnedLine) -> Self {
        Self { line, returned: None }
    }
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
    pub(super) fn decode(&mut self, bytes: &[u8], format: Format) -> Option<Second> {
        match format {
            Format::Unreturned => self.decode_lines::<UnreturnedLine>(bytes),
            Format::Today => self.decode_lines::<WireLine>(bytes),
        }
    }

    fn decode_lines<L: DeserializeOwned + Into<WireLine>>(
        &mut self,
        bytes: &[u8],
    ) -> Option<Second> {
        let (wire, rest) = postcard::take_from_bytes::<WireSecond<L>>(bytes).ok()?;
        if !rest.is_empty() {
            return None;
        }
        self.learn(wire.names);
        let lines = wire.lines.into_iter().map(|line| {
            let WireLine { line, returned } = line.into();
            let party = self.parties.get(line.party as usize)?.clone();
            let UnreturnedLine { counts, condition, before, .. } = line;
            let at = |place: usize| counts.get(place).copied().unwrap_or(0);
            let events = std::array::from_fn(|event| at(event + 3));
            let figures = Figures { packets: at(0), bytes: at(1), active: at(2), returned, events };
            Some(Line { party, figures, condition, before })
        });
        let lines = lines.collect::<Option<Vec<Line>>>()?;
        let WireSecond { at, span_ms, reasons, .. } = wire;
        Some(Second { at, span_ms, reasons, lines })
    }
}

fn wire_line(line: &Line, party: u32) -> WireLine {
    let Line { figures, condition, before, .. } = *line;
    let Figures { packets, bytes, returned, active, events } = figures;
    let mut counts: Vec<u64> = [packets, bytes, active].into_iter().chain(events).collect();
    let length = counts.iter().rposition(|count| *count != 0).map_or(0, |last| last + 1);
    counts.truncate(length);
    WireLine { line: UnreturnedLine { party, counts, condition, before }, returned }
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
        let returned = (count(), count()).prop_map(|(packets, bytes)| Returned { packets, bytes });
        let figures = (count(), count(), option::of(returned), count(), vec(count(), EVENTS));
        let figures = figures.prop_map(|(packets, bytes, returned, active, events)| Figures {
            packets,
            bytes,
            returned,
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
                prop_assert_eq!(reader.decode(&bytes, Format::Today), Some(second));
            }
        }

        #[test]
        fn any_bytes_are_a_second_or_none(bytes in vec(any::<u8>(), 0..200)) {
            for format in [Format::Unreturned, Format::Today] {
                let _ = Names::default().decode(&bytes, format);
            }
        }

        #[test]
        fn what_is_cut_is_no_second(second in second(), cut in 1..20_usize) {
            let (bytes, _) = Names::default().encode(&second);
            let cut = bytes.len().saturating_sub(cut);
            prop_assert_eq!(Names::default().decode(&bytes[..cut], Format::Today), None);
        }
    }

    /// A second of one line with such counts, its party new.
    fn bytes(counts: &[u64]) -> Vec<u8> {
        let line =
            UnreturnedLine { party: 0, counts: counts.to_vec(), condition: None, before: None };
        let lines = vec![WireLine::from(line)];
        let names = vec![Party::Rest];
        let wire = WireSecond { at: 1, span_ms: 1000, reasons: vec![], names, lines };
        postcard::to_stdvec(&wire).expect("bytes")
    }

    #[test]
    fn a_build_that_counts_more_events_is_read_and_one_that_counts_fewer() {
        let figures = |counts: &[u64]| {
            let second = Names::default().decode(&bytes(counts), Format::Today);
            second.expect("a second").lines[0].figures
        };
        let more = figures(&[[7, 0, 0].as_slice(), &[1; EVENTS + 2]].concat());
        assert_eq!((more.packets, more.events), (7, [1; EVENTS]));
        assert_eq!(figures(&[7]), Figures { packets: 7, ..Figures::default() });
    }

    #[test]
    fn what_was_recorded_before_answers_were_is_read() {
        // As version 1 has it: {at: 10, span_ms: 1000, reasons: [(1, 7)]}, one backend, healthy.
        let bytes = [
            10, 0xe8, 7, 1, 1, 7, 1, 0, 3, b'w', b'e', b'b', 5, b'w', b'e', b'b', b'-', b'1', 1, 0,
            4, 0x90, 3, 0xa0, 0x96, 3, 30, 5, 1, 0, 1, 0,
        ];
        let second = Names::default().decode(&bytes, Format::Unreturned).expect("a second");
        assert_eq!((second.at, second.span_ms, &*second.reasons), (10, 1000, &[(1, 7)][..]));
        let [line] = &*second.lines else { panic!("{second:?}") };
        assert_eq!((line.party.service(), line.party.backend()), (Some("web"), Some("web-1")));
        let mut figures = Figures { packets: 400, bytes: 52_000, active: 30, ..line.figures };
        figures.events[Event::NewFlow as usize] = 5;
        assert_eq!((line.figures, line.figures.returned), (figures, None));
        assert_eq!(Names::default().decode(&bytes, Format::Today), None, "never misread");
    }
}
