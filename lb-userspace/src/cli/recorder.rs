//! `sluice recorder`: what happened in that minute, second by second. Reads the files in the state
//! directory and needs no daemon.

mod plot;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use jiff::{Timestamp, Zoned, tz::TimeZone};
use lb_common::counters::Event as Count;

use super::{
    Output,
    events::tone,
    figures::{bytes, exact, plural, seconds as duration, short},
    table::{Cell, Palette, Side, Side::Left, Side::Right, Table, Tone},
    when::When,
};
use crate::{
    control::api::Event,
    instance::Instance,
    journal,
    recorder::{self, Portion, Story, Told, Wanted},
};

/// Backends that are told of by name under a second.
const NAMED: usize = 5;

/// Which time, and how.
#[derive(Args)]
pub struct Arguments {
    /// From this moment on: 14:03, 14:03:30, "10m ago", "2026-11-21 14:03" or RFC 3339; without
    /// it, the time until now
    #[arg(long, value_name = "TIME")]
    at: Option<When>,
    /// So long, as 30s, 2m or 1h
    #[arg(long, value_name = "TIME", default_value = "1m",
          value_parser = humantime::parse_duration)]
    window: Duration,
    /// Only this service
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only backends of this name
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Draw it into this file, as its name says: *.svg or *.png
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    plot: Option<plot::File>,
    #[command(flatten)]
    output: Output,
}

/// Prints what was recorded, or draws it.
pub fn execute(instance: &Instance, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let now = Zoned::now();
    let wanted = wanted(arguments, &now)?;
    let directory = instance.state();
    let window = wanted.from..=wanted.until.saturating_sub(1);
    let recording = recorder::read(&recorder::path(&directory), &window)?;
    let story = Story::new(&recording, journal::read(&directory), &wanted);
    if let Some(file) = &arguments.plot {
        plot::draw(file, &story, &wanted, now.time_zone())?;
        let said = format!("{file} shows {}\n", span(&story, now.time_zone())?);
        super::print(said.as_bytes())?;
    } else {
        arguments.output.print(&story, |story, palette| render(story, now.time_zone(), palette))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The window in whole seconds; what is still to come is left out.
fn wanted(arguments: &Arguments, now: &Zoned) -> anyhow::Result<Wanted> {
    let window = arguments.window.as_secs();
    if window == 0 {
        bail!("--window is less than a second");
    }
    let second = |moment: Timestamp| u64::try_from(moment.as_second()).unwrap_or(0);
    // The second that has just ended may not be written yet.
    let present = second(now.timestamp()).saturating_sub(1);
    let from = match arguments.at {
        Some(at) => second(at.moment(now).context("find that moment in the calendar")?),
        None => present.saturating_sub(window),
    };
    if from >= present {
        bail!("--at is not in the past: nothing is recorded yet");
    }
    let until = from.saturating_add(window).min(present);
    let (service, backend) = (arguments.service.clone(), arguments.backend.clone());
    Ok(Wanted { from, until, service, backend })
}

/// A second since 1970, by the clock on the wall.
fn clock(second: u64, zone: &TimeZone) -> Zoned {
    let second = i64::try_from(second).unwrap_or(i64::MAX);
    Timestamp::from_second(second).unwrap_or(Timestamp::MAX).to_zoned(zone.clone())
}

fn time(second: u64, zone: &TimeZone) -> String {
    clock(second, zone).strftime("%H:%M:%S").to_string()
}

/// From when to when, with the day and the zone.
fn span(story: &Story, zone: &TimeZone) -> anyhow::Result<String> {
    let [from, until] = [&story.from, &story.until].map(|at| at.parse::<Timestamp>());
    let [from, until] = [from?, until?].map(|at| at.to_zoned(zone.clone()));
    let of = match (&story.service, &story.backend) {
        (Some(service), Some(backend)) => format!(", {service}/{backend}"),
        (Some(service), None) => format!(", {service}"),
        (None, Some(backend)) => format!(", backend {backend}"),
        (None, None) => String::new(),
    };
    let (from, until) = (from.strftime("%Y-%m-%d %H:%M:%S"), until.strftime("%H:%M:%S %:z"));
    Ok(format!("{from} to {until}{of}"))
}

fn render(story: &Story, zone: &TimeZone, palette: Palette) -> String {
    let mut text = span(story, zone).unwrap_or_default() + "\n\n";
    if story.seconds.is_empty() {
        text += &nothing(story);
    } else {
        text += &by_second(story, zone).render(palette);
        text += &sums(story, palette);
    }
    let is_narrow = story.service.is_some() || story.backend.is_some();
    if is_narrow && story.backends.is_empty() && !story.services.is_empty() {
        let there = story.services.join(", ");
        text +=
            &format!("\nnobody of that name had packets or flows; services that had: {there}\n");
    }
    if story.abridged > 0 {
        text += &format!(
            "\nin {} backends with little to tell were counted together, for want of room\n",
            plural(story.abridged as u64, "second")
        );
    }
    if story.damaged > 0 {
        let parts = plural(story.damaged as u64, "part");
        text += &format!("\nthe recording is damaged: {parts} of it can't be read in full\n");
    }
    text
}

fn nothing(story: &Story) -> String {
    match (&story.recorded_from, &story.recorded_until) {
        (Some(from), Some(until)) => {
            format!("nothing was recorded then; there is a recording from {from} to {until}\n")
        }
        _ => "nothing has been recorded yet\n".to_owned(),
    }
}

/// What is told at one moment.
enum Row<'s> {
    Second(&'s Told),
    Quiet { first: &'s Told, last: &'s Told },
    Missing { second: u64, seconds: u64 },
}

impl Row<'_> {
    /// The first second behind it.
    fn end(&self) -> u64 {
        match self {
            Self::Second(told) | Self::Quiet { last: told, .. } => told.second + 1,
            Self::Missing { second, seconds } => second + seconds,
        }
    }
}

/// Quiet seconds in a row become one; gaps stand where they were.
fn rows(story: &Story) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    let mut gaps = story.missing.iter().peekable();
    let eventful: Vec<u64> = story.events.iter().map(recorder::second_of).collect();
    for told in &story.seconds {
        while let Some(gap) = gaps.next_if(|gap| gap.second < told.second) {
            rows.push(Row::Missing { second: gap.second, seconds: gap.seconds });
        }
        let is_quiet = told.is_quiet() && !eventful.contains(&told.second);
        match rows.last_mut() {
            Some(Row::Quiet { last, .. }) if is_quiet => *last = told,
            _ if is_quiet => rows.push(Row::Quiet { first: told, last: told }),
            _ => rows.push(Row::Second(told)),
        }
    }
    rows.extend(gaps.map(|gap| Row::Missing { second: gap.second, seconds: gap.seconds }));
    rows
}

fn by_second(story: &Story, zone: &TimeZone) -> Table {
    let translates = story.translates();
    let mut table = Table::new(&[&[("TIME", Left)], heads(translates), &[("", Left)]].concat());
    let mut events = story.events.iter().peekable();
    for row in rows(story) {
        match &row {
            Row::Quiet { first, last } => {
                let mut says = format!("{}  quiet", time(first.second, zone));
                if last.second > first.second {
                    says += &format!(" until {}", time(last.second, zone));
                }
                table.sentence(0, says.into());
            }
            Row::Missing { second, seconds } => {
                let (from, long) = (time(*second, zone), duration(*seconds));
                let says = format!("{from}  nothing is recorded for {long}");
                table.sentence(0, Cell::toned(Tone::Bad, says));
            }
            Row::Second(told) => {
                let late = told.span_seconds >= 1.5;
                let span = format!("{:.1} s together", told.span_seconds);
                let counts = cells(&told.total.0, translates);
                let note = if late { Cell::from(span) } else { "".into() };
                let cells = std::iter::once(time(told.second, zone).into()).chain(counts);
                table.row(cells.chain([note]));
                for remark in remarks(told, story) {
                    table.remark(1, remark);
                }
            }
        }
        while let Some(event) = events.next_if(|event| recorder::second_of(event) < row.end()) {
            table.remark(1, tell(event));
        }
    }
    table
}

/// What is told in figures; of services that translate, more.
const HEADS: [(&str, Side); 11] = [
    ("NEW FLOWS", Right),
    ("HANDSHAKES", Right),
    ("SYN AGAIN", Right),
    ("RESETS", Right),
    ("ACTIVE", Right),
    ("PACKETS", Right),
    ("BYTES", Right),
    // From here on: translated.
    ("RETURNED", Right),
    ("RETURN BYTES", Right),
    ("REFUSED", Right),
    ("BACKEND RESETS", Right),
];
/// What is told of all services.
const OF_ALL: usize = 7;

fn heads(translates: bool) -> &'static [(&'static str, Side)] {
    if translates { &HEADS } else { &HEADS[..OF_ALL] }
}

/// The cells under [`heads`].
fn cells(figures: &recorder::Figures, translates: bool) -> impl Iterator<Item = Cell> {
    let event = |event| figures.event(event);
    let again = event(Count::SynRetransmission);
    let (refused, by_backend) = (event(Count::Refusal), event(Count::BackendReset));
    let resets = [Count::Reset, Count::ClientReset].into_iter().map(event).sum::<u64>();
    let doubtful = |count: u64| {
        Cell::toned(if count > 0 { Tone::Doubtful } else { Tone::Plain }, short(count))
    };
    let translated = |cell: Cell| if figures.returned.is_some() { cell } else { "-".into() };
    let returned = figures.returned.unwrap_or_default();
    let cells: [Cell; HEADS.len()] = [
        short(event(Count::NewFlow)).into(),
        short(event(Count::Handshake)).into(),
        doubtful(again),
        doubtful(resets + refused + by_backend),
        short(figures.active).into(),
        short(figures.packets).into(),
        bytes(figures.bytes).into(),
        translated(short(returned.packets).into()),
        translated(bytes(returned.bytes).into()),
        translated(doubtful(refused)),
        translated(doubtful(by_backend)),
    ];
    cells.into_iter().take(heads(translates).len())
}

/// What stands out in a second: changes, backends in trouble, frames that went nowhere.
fn remarks(told: &Told, story: &Story) -> Vec<Cell> {
    let mut remarks = Vec::new();
    for portion in told.backends.iter().filter(|portion| portion.has_changed()) {
        remarks
            .push(Cell::toned(Tone::Doubtful, format!("{}: {}", name(portion), turned(portion))));
    }
    let mut troubled: Vec<&Portion> =
        told.backends.iter().filter(|portion| portion.counts.0.troubles() > 0).collect();
    troubled.sort_by_key(|portion| std::cmp::Reverse(portion.counts.0.troubles()));
    for portion in troubled.iter().take(NAMED) {
        remarks.push(format!("{}: {}", name(portion), troubles(portion)).into());
    }
    if let Some(more) = troubled.len().checked_sub(NAMED).filter(|more| *more > 0) {
        remarks.push(format!("and {} more like these", plural(more as u64, "backend")).into());
    }
    let refused: Vec<String> =
        told.refused().map(|(reason, count)| format!("{reason} {}", exact(count))).collect();
    if !refused.is_empty() {
        let of_all = if story.service.is_some() || story.backend.is_some() {
            " of all services"
        } else {
            ""
        };
        let text = format!("not forwarded{of_all}: {}", refused.join(", "));
        remarks.push(Cell::toned(Tone::Doubtful, text));
    }
    remarks
}

fn name(portion: &Portion) -> String {
    match (&portion.service, &portion.backend) {
        (Some(service), Some(backend)) => format!("{service}/{backend}"),
        (Some(service), None) => format!("{service}, other backends"),
        (None, _) => "other services".to_owned(),
    }
}

fn turned(portion: &Portion) -> String {
    let admin = portion.admin_before.map(|before| {
        format!("{} -> {}", before.name(), portion.admin.map_or("removed", |now| now.name()))
    });
    let health = portion.health_before.map(|before| {
        format!("{} -> {}", before.name(), portion.health.map_or("removed", |now| now.name()))
    });
    admin.into_iter().chain(health).collect::<Vec<_>>().join(", ")
}

fn troubles(portion: &Portion) -> String {
    let figures = &portion.counts.0;
    let says = |event: Count, noun: &str| {
        let count = figures.event(event);
        (count > 0).then(|| format!("{} {noun}", exact(count)))
    };
    let new = format!("{} new flows", exact(figures.event(Count::NewFlow)));
    let done = format!("{} handshakes", exact(figures.event(Count::Handshake)));
    let others = [
        says(Count::SynRetransmission, "SYNs sent again"),
        says(Count::SecondTry, "second tries elsewhere"),
        says(Count::Reset, "flows reset"),
        says(Count::ClientReset, "reset by their clients"),
        says(Count::Refusal, "refused"),
        says(Count::BackendReset, "reset by the backend"),
        says(Count::Untracked, "without a place in the table"),
    ];
    let all = [new, done].into_iter().chain(others.into_iter().flatten());
    all.collect::<Vec<_>>().join(", ")
}

fn tell(event: &Event) -> Cell {
    let about = match (&event.service, &event.backend) {
        (Some(service), Some(backend)) => format!(" {service}/{backend}"),
        (Some(service), None) => format!(" {service}"),
        (None, _) => String::new(),
    };
    let by = event.uid.map(|uid| format!(" (uid {uid})")).unwrap_or_default();
    let text = format!("{}{about}: {}{by}", event.kind.name(), event.text);
    Cell::toned(tone(event.kind), text)
}

/// All of it by backend, and the frames that were not forwarded.
fn sums(story: &Story, palette: Palette) -> String {
    let mut text = String::new();
    if !story.backends.is_empty() {
        let translates = story.translates();
        let mut table = Table::new(&[&[("BACKEND", Left)], heads(translates)].concat());
        for portion in &story.backends {
            let counts = cells(&portion.counts.0, translates);
            table.row(std::iter::once(name(portion).into()).chain(counts));
        }
        text += &format!("\n{}", table.render(palette));
    }
    if !story.reasons.is_empty() {
        let by_count: BTreeMap<_, _> = story
            .reasons
            .iter()
            .map(|(name, count)| ((std::cmp::Reverse(*count), name), *count))
            .collect();
        let all: Vec<String> = by_count
            .into_iter()
            .map(|((_, name), count)| format!("{name} {}", exact(count)))
            .collect();
        text += &format!("\nnot forwarded, by reason: {}\n", all.join(", "));
    }
    text
}

#[cfg(test)]
mod tests;
