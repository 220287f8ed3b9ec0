//! From counters, which only grow, to what was counted in a second.

use std::{borrow::Cow, collections::HashMap, time::Instant};

use lb_common::counters::EVENTS;

use super::{Condition, Figures, Line, Party, Returned, Second};
use crate::model::Identity;

/// What the counters say of one backend.
#[derive(Clone, Debug)]
pub struct Reading<'r> {
    /// What it is.
    pub identity: Identity,
    /// Its service's name.
    pub service: Cow<'r, str>,
    /// Its name.
    pub backend: Cow<'r, str>,
    /// All that was counted of it so far; [`Figures::active`] as it is now.
    pub totals: Figures,
    /// How it stands now; `None` if it is in no configuration.
    pub condition: Option<Condition>,
}

/// What the counters said the last time.
#[derive(Debug, Default)]
pub struct Tally {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    read: Instant,
    reasons: Vec<u64>,
    backends: HashMap<Identity, (Figures, Option<Condition>)>,
}

impl Tally {
    /// What was counted since the last time, as the second `at`; `None` the first time, when
    /// nobody knows what of it is new. `reasons` are totals by number.
    pub fn second<'r>(
        &mut self,
        at: u64,
        now: Instant,
        reasons: Vec<u64>,
        readings: impl IntoIterator<Item = Reading<'r>>,
    ) -> Option<Second> {
        let last = self.last.take();
        let mut lines = Vec::new();
        let mut backends = HashMap::new();
        for reading in readings {
            let before = last.as_ref().and_then(|last| last.backends.get(&reading.identity));
            backends.insert(reading.identity, (reading.totals, reading.condition));
            lines.extend(line(reading, before));
        }
        let second = last.map(|last| {
            let counts = reasons.iter().zip(0_u16..).map(|(total, number)| {
                let before = last.reasons.get(usize::from(number)).copied().unwrap_or(0);
                (number, since(*total, before))
            });
            let span_ms = now.saturating_duration_since(last.read).as_millis();
            Second {
                at,
                span_ms: u32::try_from(span_ms).unwrap_or(u32::MAX),
                reasons: counts.filter(|(_, count)| *count > 0).collect(),
                lines,
            }
        });
        self.last = Some(Last { read: now, reasons, backends });
        second
    }
}

/// What a backend had; who was not there before has counted from 0.
fn line(reading: Reading<'_>, last: Option<&(Figures, Option<Condition>)>) -> Option<Line> {
    let (totals, stood) = last.copied().unwrap_or_default();
    let figures = Figures {
        packets: since(reading.totals.packets, totals.packets),
        bytes: since(reading.totals.bytes, totals.bytes),
        returned: reading.totals.returned.map(|now| {
            let before = totals.returned.unwrap_or_default();
            Returned {
                packets: since(now.packets, before.packets),
                bytes: since(now.bytes, before.bytes),
            }
        }),
        active: reading.totals.active,
        events: std::array::from_fn::<_, EVENTS, _>(|event| {
            since(reading.totals.events[event], totals.events[event])
        }),
    };
    let before = stood.filter(|stood| reading.condition != Some(*stood));
    let is_worth_it = before.is_some() || !figures.are_nothing();
    is_worth_it.then(|| Line {
        party: Party::Backend {
            service: reading.service.into_owned(),
            backend: reading.backend.into_owned(),
        },
        figures,
        condition: reading.condition,
        before,
    })
}

/// A counter that is below what it was has begun anew: its place has another owner.
const fn since(total: u64, before: u64) -> u64 {
    if total >= before { total - before } else { total }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::api::{Admin, Health};

    const WELL: Condition = Condition { admin: Admin::Enabled, health: Health::Healthy };
    const ILL: Condition = Condition { admin: Admin::Enabled, health: Health::Unreachable };

    fn reading(last: u8, packets: u64, active: u64, condition: Condition) -> Reading<'static> {
        let socket = |last| std::net::SocketAddr::from(([10, 0, 0, last], 80));
        Reading {
            identity: (socket(100).into(), socket(last)),
            service: "web".into(),
            backend: if last == 1 { "web-1" } else { "web-2" }.into(),
            totals: Figures { packets, bytes: 60 * packets, active, ..Figures::default() },
            condition: Some(condition),
        }
    }

    #[test]
    fn a_second_has_what_is_new_and_nothing_else() {
        let mut tally = Tally::default();
        let start = Instant::now();
        let first = [reading(1, 1000, 0, WELL), reading(2, 50, 0, WELL)];
        assert_eq!(tally.second(1, start, vec![5, 7], first), None, "who knows since when?");

        let now = start + Duration::from_millis(1200);
        let next = [reading(1, 1010, 3, WELL), reading(2, 50, 0, WELL)];
        let second = tally.second(2, now, vec![5, 9], next).expect("a second");
        assert_eq!((second.at, second.span_ms, &*second.reasons), (2, 1200, &[(1, 2)][..]));
        let [line] = &*second.lines else { panic!("web-2 had nothing: {second:?}") };
        assert_eq!(line.party.backend(), Some("web-1"));
        let figures = line.figures;
        assert_eq!((figures.packets, figures.bytes, figures.active), (10, 600, 3));
        assert_eq!((line.condition, line.before), (Some(WELL), None));
    }

    #[test]
    fn answers_that_come_through_here_are_told_and_that_there_are_none() {
        let translated = |packets, answers: u64| {
            let mut reading = reading(1, packets, 0, WELL);
            let returned = Returned { packets: answers, bytes: 1500 * answers };
            reading.totals.returned = Some(returned);
            reading
        };
        let mut tally = Tally::default();
        let now = Instant::now();
        tally.second(1, now, vec![], [translated(100, 60)]);
        let mut next = |packets, answers| {
            let second = tally.second(2, now, vec![], [translated(packets, answers)]);
            let second = second.expect("a second");
            second.lines.first().map(|line| line.figures.returned)
        };
        assert_eq!(next(110, 65), Some(Some(Returned { packets: 5, bytes: 7500 })));
        assert_eq!(next(112, 65), Some(Some(Returned::default())), "a silent backend");
        assert_eq!(next(112, 65), None, "nothing at all");
    }

    #[test]
    fn a_change_is_told_of_a_backend_without_traffic() {
        let mut tally = Tally::default();
        let now = Instant::now();
        tally.second(1, now, vec![], [reading(1, 0, 0, WELL)]);
        let second = tally.second(2, now, vec![], [reading(1, 0, 0, ILL)]).expect("a second");
        assert_eq!((second.lines[0].condition, second.lines[0].before), (Some(ILL), Some(WELL)));
        let second = tally.second(3, now, vec![], [reading(1, 0, 0, ILL)]).expect("a second");
        assert_eq!(second.lines, []);
    }

    #[test]
    fn who_is_new_counts_from_nothing() {
        let mut tally = Tally::default();
        let now = Instant::now();
        tally.second(1, now, vec![], [reading(1, 500, 0, WELL)]);
        let both = [reading(1, 3, 0, WELL), reading(2, 4, 0, WELL)];
        let second = tally.second(2, now, vec![], both).expect("a second");
        let packets: Vec<u64> = second.lines.iter().map(|line| line.figures.packets).collect();
        assert_eq!(packets, [3, 4], "one began anew, the other was not there");
    }
}
