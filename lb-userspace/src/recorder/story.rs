//! What happened: the seconds of a window, the events that fell into it, and their sums. What
//! `sluice recorder` prints, as JSON and for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, UNIX_EPOCH},
};

use lb_common::{
    counters::Event as Count,
    reason::{Class, Reason},
};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{Figures, Line, Party, Recording, Second};
use crate::control::api::{Admin, Event, Health};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The first second: since 1970.
    pub from: u64,
    /// The second behind the last one.
    pub until: u64,
    /// Of this service.
    pub service: Option<String>,
    /// Of the backends of this name.
    pub backend: Option<String>,
}

/// What happened. Times are RFC 3339, UTC.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Story {
    /// The first second.
    pub from: String,
    /// The second behind the last one.
    pub until: String,
    /// Of this service alone; reasons are always all services'.
    pub service: Option<String>,
    /// Of the backends of this name alone.
    pub backend: Option<String>,
    /// The first second of the whole recording.
    pub recorded_from: Option<String>,
    /// Its last second.
    pub recorded_until: Option<String>,
    /// Parts of the recording that could not be read, of a mebibyte each.
    pub damaged: usize,
    /// Services that had a line in that time, whatever was asked for.
    pub services: Vec<String>,
    /// Recorded seconds in which backends were counted together, for want of room.
    pub abridged: usize,
    /// Seconds of which nothing is recorded.
    pub missing: Vec<Gap>,
    /// What was counted in each second, in the order of recording.
    pub seconds: Vec<Told>,
    /// All of it by backend, sorted by name.
    pub backends: Vec<Portion>,
    /// Frames not forwarded, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// What happened meanwhile.
    pub events: Vec<Event>,
}

/// Seconds of which nothing is recorded: no daemon ran, or it could not write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The first one: RFC 3339, UTC.
    pub from: String,
    /// The same since 1970.
    #[serde(skip)]
    pub second: u64,
    /// How many.
    pub seconds: u64,
}

/// A second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Told {
    /// Which one: RFC 3339, UTC.
    pub at: String,
    /// The same since 1970.
    #[serde(skip)]
    pub second: u64,
    /// How long was counted, up to its end.
    pub span_seconds: f64,
    /// All together.
    pub total: Counts,
    /// Backends that had packets or flows, or changed.
    pub backends: Vec<Portion>,
    /// Frames not forwarded, by reason.
    pub reasons: BTreeMap<String, u64>,
}

/// What one backend had, or several together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Portion {
    /// The service's name; `None`: of several services together.
    pub service: Option<String>,
    /// The backend's name; `None`: of several backends together.
    pub backend: Option<String>,
    /// What was counted.
    #[serde(flatten)]
    pub counts: Counts,
    /// What the operator said, at the end.
    pub admin: Option<Admin>,
    /// What was seen, at the end.
    pub health: Option<Health>,
    /// What the operator had said a second before, if otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_before: Option<Admin>,
    /// What had been seen a second before, if otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_before: Option<Health>,
}

/// What was counted. In JSON each event has its name; what was returned to clients is null where
/// nobody here sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub Figures);

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Figures { packets, bytes, returned, active, .. } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("packets", &packets)?;
        map.serialize_entry("bytes", &bytes)?;
        map.serialize_entry("return_packets", &returned.map(|returned| returned.packets))?;
        map.serialize_entry("return_bytes", &returned.map(|returned| returned.bytes))?;
        map.serialize_entry("active_flows", &active)?;
        for event in Count::ALL {
            map.serialize_entry(event.name(), &self.0.event(event))?;
        }
        map.end()
    }
}

impl Told {
    /// Whether nothing came and nothing changed. What was left to this host's kernel is no matter.
    pub fn is_quiet(&self) -> bool {
        let Figures { packets, events, .. } = self.total.0;
        let changed = |portion: &Portion| portion.has_changed();
        packets == 0
            && events.iter().all(|count| *count == 0)
            && self.refused().next().is_none()
            && !self.backends.iter().any(changed)
    }

    /// Frames that were dropped or answered, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (&str, u64)> {
        let counted = self.reasons.iter().map(|(name, count)| (&**name, *count));
        counted.filter(|(name, _)| !is_passed(name))
    }
}

impl Portion {
    /// Whether the operator, or what is seen, said something else a second before.
    pub const fn has_changed(&self) -> bool {
        self.admin_before.is_some() || self.health_before.is_some()
    }

    fn of(line: &Line) -> Self {
        let (now, before) = (line.condition, line.before);
        let (admin, health) =
            (now.map(|condition| condition.admin), now.map(|condition| condition.health));
        let admin_before = before.map(|condition| condition.admin);
        let health_before = before.map(|condition| condition.health);
        Self {
            service: line.party.service().map(str::to_owned),
            backend: line.party.backend().map(str::to_owned),
            counts: Counts(line.figures),
            admin,
            health,
            admin_before: admin_before.filter(|_| admin_before != admin),
            health_before: health_before.filter(|_| health_before != health),
        }
    }
}

impl Story {
    /// Whether some of it is of services that translate: the answers came through here.
    pub fn translates(&self) -> bool {
        self.backends.iter().any(|portion| portion.counts.0.returned.is_some())
    }

    /// What a recording and the journal have of what is wanted. Events are those of the window, or
    /// more.
    pub fn new(recording: &Recording, events: Vec<Event>, wanted: &Wanted) -> Self {
        let window = wanted.from..wanted.until;
        let seconds = recording.seconds.iter().filter(|second| window.contains(&second.at));
        let seconds: Vec<&Second> = seconds.collect();
        let told: Vec<Told> = seconds.iter().map(|second| tell(second, wanted)).collect();
        let is_abridged = |second: &&&Second| {
            let together = |line: &Line| matches!(line.party, Party::Others { .. } | Party::Rest);
            second.lines.iter().any(together)
        };
        let mut reasons = BTreeMap::new();
        for (name, count) in told.iter().flat_map(|told| &told.reasons) {
            *reasons.entry(name.clone()).or_default() += count;
        }
        let services: BTreeSet<&str> = seconds
            .iter()
            .flat_map(|second| second.lines.iter().filter_map(|line| line.party.service()))
            .collect();
        Self {
            services: services.into_iter().map(str::to_owned).collect(),
            from: time(wanted.from),
            until: time(wanted.until),
            service: wanted.service.clone(),
            backend: wanted.backend.clone(),
            recorded_from: recording.oldest.map(time),
            recorded_until: recording.newest.map(time),
            damaged: recording.damaged,
            abridged: seconds.iter().filter(is_abridged).count(),
            missing: missing(&seconds, wanted),
            backends: portions(&told),
            seconds: told,
            reasons,
            events: events.into_iter().filter(|event| is_wanted(event, wanted)).collect(),
        }
    }
}

/// The second in which an event happened: since 1970.
pub const fn second_of(event: &Event) -> u64 {
    event.id / 1_000_000
}

fn is_wanted(event: &Event, wanted: &Wanted) -> bool {
    // What is about no service is about all of them.
    let about = |wanted: &Option<String>, is: &Option<String>| match (wanted, is) {
        (Some(wanted), Some(is)) => wanted == is,
        (None, _) | (_, None) => true,
    };
    (wanted.from..wanted.until).contains(&second_of(event))
        && about(&wanted.service, &event.service)
        && about(&wanted.backend, &event.backend)
}

fn tell(second: &Second, wanted: &Wanted) -> Told {
    let is_wanted = |line: &&Line| {
        let matches = |wanted: &Option<String>, is: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| is == Some(wanted))
        };
        matches(&wanted.service, line.party.service())
            && matches(&wanted.backend, line.party.backend())
    };
    let mut total = Figures::default();
    let lines: Vec<&Line> = second.lines.iter().filter(is_wanted).collect();
    for line in &lines {
        total.add(&line.figures);
    }
    let reasons = second.reasons.iter().map(|(number, count)| (reason(*number), *count));
    Told {
        at: time(second.at),
        second: second.at,
        span_seconds: f64::from(second.span_ms) / 1000.0,
        total: Counts(total),
        backends: lines.into_iter().map(Portion::of).collect(),
        reasons: reasons.collect(),
    }
}

/// What each had in all seconds; flows are those of the last one.
fn portions(seconds: &[Told]) -> Vec<Portion> {
    let mut sums: BTreeMap<(Option<&str>, Option<&str>), Portion> = BTreeMap::new();
    for told in seconds {
        for sum in sums.values_mut() {
            sum.counts.0.active = 0;
        }
        for portion in &told.backends {
            let name = (portion.service.as_deref(), portion.backend.as_deref());
            let counts = sums.get(&name).map(|sum| sum.counts.0).unwrap_or_default();
            let mut sum = portion.clone();
            (sum.admin_before, sum.health_before) = (None, None);
            sum.counts.0.add(&counts);
            sums.insert(name, sum);
        }
    }
    sums.into_values().collect()
}

/// Seconds that no record covers; one that was late covers those before it.
fn missing(seconds: &[&Second], wanted: &Wanted) -> Vec<Gap> {
    let mut covered: Vec<(u64, u64)> = seconds
        .iter()
        .map(|second| {
            let span = u64::from(second.span_ms.saturating_add(500) / 1000).max(1);
            (second.at.saturating_sub(span - 1), second.at)
        })
        .collect();
    covered.sort_unstable();
    covered.push((wanted.until, wanted.until));
    let mut next = wanted.from;
    let mut gaps = Vec::new();
    for (first, last) in covered {
        if first > next {
            gaps.push(Gap { from: time(next), second: next, seconds: first - next });
        }
        next = next.max(last.saturating_add(1));
    }
    gaps
}

/// A reason's name; a newer build may know more.
fn reason(number: u16) -> String {
    match Reason::from_number(number.into()) {
        Some(reason) => reason.name().to_owned(),
        None => format!("reason_{number}"),
    }
}

fn is_passed(name: &str) -> bool {
    let reason = Reason::ALL.iter().find(|reason| reason.name() == name);
    reason.is_some_and(|reason| matches!(reason.class(), Class::Pass))
}

/// RFC 3339, UTC; the last moment that can be written so, if that is before.
fn time(second: u64) -> String {
    const LAST: u64 = 253_402_300_799;
    let at = UNIX_EPOCH + Duration::from_secs(second.min(LAST));
    humantime::format_rfc3339_seconds(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::api::EventKind,
        recorder::{Condition, second::tests::second},
    };
    use proptest::{collection::vec, prelude::*};

    fn line(backend: &str, packets: u64, active: u64) -> Line {
        Line {
            party: Party::Backend { service: "web".to_owned(), backend: backend.to_owned() },
            figures: Figures { packets, active, ..Figures::default() },
            condition: Some(Condition { admin: Admin::Enabled, health: Health::Healthy }),
            before: None,
        }
    }

    fn recorded(seconds: Vec<Second>) -> Recording {
        let [oldest, newest] = [seconds.first(), seconds.last()].map(|s| s.map(|s| s.at));
        Recording { seconds, oldest, newest, damaged: 0 }
    }

    fn wanted(from: u64, until: u64) -> Wanted {
        Wanted { from, until, service: None, backend: None }
    }

    fn event(at: u64, service: Option<&str>) -> Event {
        Event {
            id: at * 1_000_000 + 7,
            at: String::new(),
            kind: EventKind::Change,
            service: service.map(str::to_owned),
            backend: None,
            text: "x".to_owned(),
            uid: None,
            pid: None,
            generation: None,
            probe: None,
        }
    }

    #[test]
    fn a_window_is_told_second_by_second_and_summed_up() {
        let mut ill = line("web-2", 4, 0);
        ill.before = ill.condition;
        ill.condition = Some(Condition { admin: Admin::Enabled, health: Health::Unreachable });
        let seconds = vec![
            Second { at: 9, span_ms: 1000, reasons: vec![], lines: vec![line("web-1", 99, 0)] },
            Second {
                at: 10,
                span_ms: 1000,
                reasons: vec![(Reason::NotIp as u16, 3), (Reason::NoBackend as u16, 2)],
                lines: vec![line("web-1", 5, 7), line("web-2", 1, 1)],
            },
            Second { at: 11, span_ms: 1100, reasons: vec![(999, 1)], lines: vec![ill] },
            Second { at: 12, span_ms: 900, ..Second::default() },
        ];
        let story = Story::new(&recorded(seconds), vec![], &wanted(10, 13));
        let packets: Vec<u64> = story.seconds.iter().map(|told| told.total.0.packets).collect();
        assert_eq!(packets, [6, 4, 0]);
        let quiet: Vec<bool> = story.seconds.iter().map(Told::is_quiet).collect();
        assert_eq!(quiet, [false, false, true]);
        assert_eq!(story.seconds[0].refused().collect::<Vec<_>>(), [("no_backend", 2)]);
        assert_eq!(story.seconds[1].backends[0].health_before, Some(Health::Healthy));
        assert_eq!(story.seconds[1].backends[0].admin_before, None);
        assert_eq!(story.reasons["reason_999"], 1);
        let sums = story.backends.iter().map(|p| (p.counts.0.packets, p.counts.0.active));
        assert_eq!(sums.collect::<Vec<_>>(), [(5, 0), (5, 0)]);
        assert_eq!(story.backends[1].health, Some(Health::Unreachable));
        assert_eq!(story.missing, []);
        assert_eq!(story.recorded_from.as_deref(), Some("1970-01-01T00:00:09Z"));
        let json = serde_json::to_value(&story).expect("JSON");
        assert_eq!(json["seconds"][0]["total"]["active_flows"], 8);
        assert_eq!(json["seconds"][0]["backends"][0]["new_flows"], 0);
    }

    #[test]
    fn what_is_not_recorded_is_not_taken_for_quiet() {
        let second = |at, span_ms| Second { at, span_ms, ..Second::default() };
        let recording = recorded(vec![second(12, 1000), second(15, 3100), second(19, 1000)]);
        let story = Story::new(&recording, vec![], &wanted(10, 22));
        let gaps: Vec<_> = story.missing.iter().map(|gap| (gap.second, gap.seconds)).collect();
        assert_eq!(gaps, [(10, 2), (16, 3), (20, 2)]);
        assert_eq!(Story::new(&recording, vec![], &wanted(13, 16)).missing, []);
    }

    #[test]
    fn a_service_is_told_with_what_concerns_all() {
        let events =
            vec![event(10, Some("web")), event(10, Some("api")), event(11, None), event(12, None)];
        let recording = recorded(vec![Second {
            at: 10,
            span_ms: 1000,
            reasons: vec![],
            lines: vec![
                line("web-1", 5, 7),
                Line { party: Party::Others { service: "api".to_owned() }, ..line("", 9, 9) },
            ],
        }]);
        let wanted = Wanted { service: Some("web".to_owned()), ..wanted(10, 12) };
        let story = Story::new(&recording, events, &wanted);
        assert_eq!(story.events.len(), 2);
        assert_eq!((story.seconds[0].total.0.packets, story.backends.len()), (5, 1));
        assert_eq!(story.services, ["api", "web"]);
        assert_eq!(story.abridged, 1);
    }

    proptest! {
        #[test]
        fn any_recording_has_a_story(seconds in vec(second(), 0..4), from: u64, until: u64) {
            let story = Story::new(&recorded(seconds), vec![], &wanted(from, until));
            prop_assert!(serde_json::to_string(&story).is_ok());
        }
    }
}
