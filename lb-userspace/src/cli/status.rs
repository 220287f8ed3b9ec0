//! `sluice status`: does it forward, what is wrong since when, and what mends it? One screen.

mod orphan;

use std::time::{Duration, SystemTime};

use lb_common::flow::State;

use super::{
    figures::{exact, plural, seconds, short},
    render::{by_state, steps, weight},
    table::{
        Cell, Palette,
        Side::{Left, Right},
        Table, Tone,
    },
};
use crate::control::api::{self, Severity, Verdict};

pub use self::orphan::{Front, Orphan, Unattended, without_daemon};

/// What there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Characters in a line; `None`: as many as it takes.
    pub width: Option<usize>,
    /// Lines.
    pub height: usize,
}

impl Screen {
    /// For a reader that is no terminal.
    pub const PAPER: Self = Self { width: None, height: 48 };
    /// So many troubles are shown on any screen.
    const TROUBLES: usize = 2;
    /// Lines that the table has on any screen.
    const TABLE: usize = 5;

    /// The terminal on standard output, if it is one.
    pub fn of_stdout(is_terminal: bool) -> Self {
        let size = is_terminal.then(|| crossterm::terminal::size().ok()).flatten();
        size.filter(|(width, height)| *width > 0 && *height > 0).map_or(
            Self::PAPER,
            |(width, height)| Self { width: Some(width.into()), height: height.into() },
        )
    }
}

/// The instance on one screen.
pub fn status(status: &api::Status, now: SystemTime, screen: Screen, palette: Palette) -> String {
    let mut text = verdict(status, palette) + "\n";
    if !status.troubles.is_empty() {
        text.push('\n');
    }
    text += &troubles(&status.troubles, now, screen, palette);
    text += &format!(
        "\ninstance    {}, sluice {}, daemon up {}\nconfig      {}, generation {}\n\
         interfaces  {}\nflows       {}\n\n",
        status.instance,
        status.version,
        age(&status.since, now).map_or_else(|| format!("since {}", status.since), seconds),
        status.config,
        status.generation,
        interfaces(status, palette),
        flow_table(&status.flows),
    );
    let lines: usize = status.services.iter().map(|service| 1 + service.backends.len()).sum();
    // Below what has been said so far: the heading, and the shell's next prompt.
    let room = screen.height.saturating_sub(text.lines().count() + 2).max(Screen::TABLE);
    if status.services.is_empty() {
        text += "no service: `sluice service add`, or `sluice apply FILE`\n";
    } else if lines <= room {
        text += &table(&status.services, true, palette);
    } else {
        let shown = status.services.len().min(room);
        text += &table(&status.services[..shown], false, palette);
        text += &match status.services.len() - shown {
            0 => "each backend: sluice backend list\n".to_owned(),
            hidden => {
                let hidden = plural(hidden as u64, "more service");
                format!("... and {hidden}: sluice service list\n")
            }
        };
    }
    text
}

/// The answer to the first question.
fn verdict(status: &api::Status, palette: Palette) -> String {
    let count = |severity| status.troubles.iter().filter(|t| t.severity == severity).count() as u64;
    let (outages, faults) = (count(Severity::Outage), count(Severity::Fault));
    match (status.verdict(), outages, faults) {
        (Verdict::No, ..) => palette.paint(Tone::Bad, "forwarding: NO"),
        (Verdict::InPart, ..) => {
            palette.paint(Tone::Bad, &format!("forwarding: IN PART, {}", plural(outages, "outage")))
        }
        (Verdict::Yes, _, 0) => palette.paint(Tone::Good, "forwarding: yes"),
        (Verdict::Yes, ..) => format!(
            "{}, {}",
            palette.paint(Tone::Good, "forwarding: yes"),
            palette.paint(Tone::Doubtful, &plural(faults, "fault"))
        ),
    }
}

/// What is wrong, each with its age and its mend; what there is no room for is counted.
fn troubles(
    troubles: &[api::Trouble],
    now: SystemTime,
    screen: Screen,
    palette: Palette,
) -> String {
    let mut text = String::new();
    // Half of the screen.
    let mut room = screen.height / 2;
    let mut shown = 0;
    for trouble in troubles {
        let one = one_trouble(trouble, now, screen, palette);
        let lines = one.lines().count();
        if shown >= Screen::TROUBLES && lines > room {
            break;
        }
        room = room.saturating_sub(lines);
        shown += 1;
        text += &one;
    }
    let hidden = troubles.len() - shown;
    if hidden > 0 {
        text += &format!("... and {hidden} more: sluice status --json\n");
    }
    text
}

fn one_trouble(
    trouble: &api::Trouble,
    now: SystemTime,
    screen: Screen,
    palette: Palette,
) -> String {
    const INDENT: usize = 8;
    let tone = match trouble.severity {
        Severity::Outage => Tone::Bad,
        Severity::Fault => Tone::Doubtful,
        Severity::Notice => Tone::Plain,
    };
    let says = match &*trouble.about {
        "instance" => trouble.says.clone(),
        about => format!("{about} {}", trouble.says),
    };
    let width = screen.width.map(|width| width.saturating_sub(INDENT).max(20));
    let mut lines = wrapped(&says, width);
    lines.extend(wrapped(&since(trouble, now), width));
    for step in trouble.mend.iter().flat_map(|mend| steps(mend)) {
        lines.extend(wrapped(&format!("-> {step}"), width));
    }
    let label = palette.paint(tone, &trouble.severity.name().to_uppercase());
    let blanks = " ".repeat(INDENT - trouble.severity.name().len());
    let margin = " ".repeat(INDENT);
    format!("{label}{blanks}{}\n", lines.join(&format!("\n{margin}")))
}

fn since(trouble: &api::Trouble, now: SystemTime) -> String {
    match &trouble.since {
        None => "since before this daemon started".to_owned(),
        Some(since) => match age(since, now) {
            Some(age) => format!("since {since}, for {}", seconds(age)),
            None => format!("since {since}"),
        },
    }
}

/// Seconds since a moment that the daemon told; `None`: it lies ahead, or is none.
fn age(since: &str, now: SystemTime) -> Option<u64> {
    let since = humantime::parse_rfc3339(since).ok()?;
    now.duration_since(since).ok().as_ref().map(Duration::as_secs)
}

/// Broken at blanks where a line would be longer than `width`; longer words are left whole, for
/// they are copied.
fn wrapped(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else { return vec![text.to_owned()] };
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(String::new());
            used = 0;
        }
        // There is always a last line.
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += length;
        }
    }
    lines
}

fn interfaces(status: &api::Status, palette: Palette) -> String {
    let words: Vec<String> = status
        .interfaces
        .iter()
        .map(|interface| match interface.attached {
            true => format!("{} ({})", interface.name, interface.xdp_mode),
            false => palette.paint(Tone::Bad, &format!("{} (NOT ATTACHED)", interface.name)),
        })
        .collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn flow_table(flows: &api::FlowTable) -> String {
    let embryonic = flows.by_state.get(State::Embryonic.name()).copied().unwrap_or(0);
    let all =
        format!("{} of {}{}", exact(flows.used), exact(flows.capacity), by_state(&flows.by_state));
    let now: u64 = flows.by_state.values().sum();
    let flood = match embryonic * 2 > now && embryonic > 1000 {
        true => " (most only a SYN: a flood?)",
        false => "",
    };
    let mut text = format!("{all}{flood}");
    let evicted = by_state(&flows.evicted_total);
    if !evicted.is_empty() {
        text += &format!("; evicted (gave way to newer){evicted}");
    }
    if flows.overflows_total > 0 {
        let overflows = exact(flows.overflows_total);
        text += &format!("; overflow (no place: untracked, nat refused): {overflows}");
    }
    text
}

/// Each service, and below it, if there is room, its backends.
fn table(services: &[api::Service], has_backends: bool, palette: Palette) -> String {
    let mut table = Table::new(&[
        ("SERVICE", Left),
        ("ADDRESS", Left),
        ("WEIGHT", Right),
        ("STATE", Left),
        ("FLOWS", Right),
        ("NEW", Right),
    ]);
    for service in services {
        let sum = |count: fn(&api::Backend) -> u64| service.backends.iter().map(count).sum();
        table.row([
            (*service.name).into(),
            format!("{} {}", service.vip, service.forwarding).into(),
            "".into(),
            service_state(service),
            short(sum(|backend| backend.active_flows)).into(),
            short(sum(|backend| backend.new_flows_total)).into(),
        ]);
        for backend in service.backends.iter().filter(|_| has_backends) {
            table.row([
                format!("  {}", backend.name).into(),
                backend.address.to_string().into(),
                weight(backend).into(),
                backend_state(backend),
                short(backend.active_flows).into(),
                short(backend.new_flows_total).into(),
            ]);
        }
    }
    table.render(palette)
}

/// How many of a service's backends take new connections, and if others do, which.
pub fn service_state(service: &api::Service) -> Cell {
    let takes = service.backends.iter().filter(|backend| backend.takes_new_flows).count();
    let all = service.backends.iter().filter(|backend| !backend.leaving).count();
    let (tone, mut text) = match &*service.new_flows {
        _ if service.leaving => (Tone::Doubtful, "leaving".to_owned()),
        "healthy" if takes == all => (Tone::Good, format!("{takes} of {all}")),
        "healthy" => (Tone::Doubtful, format!("{takes} of {all}")),
        "nobody" => (Tone::Bad, "REFUSING".to_owned()),
        others => (Tone::Doubtful, format!("{others}: {takes} of {all}")),
    };
    if service.held.is_some() {
        text += ", held";
    }
    Cell::toned(if service.held.is_some() { Tone::Doubtful } else { tone }, text)
}

/// What keeps a backend from new connections, or that nothing does; the two states in the order
/// of what an operator can change at once.
pub fn backend_state(backend: &api::Backend) -> Cell {
    let mut words = Vec::new();
    if backend.leaving {
        words.push("leaving");
    } else if backend.admin != api::Admin::Enabled {
        words.push(backend.admin.name());
    }
    let is_ill = matches!(backend.health, api::Health::Unhealthy | api::Health::Unreachable);
    if words.is_empty() || is_ill {
        words.push(backend.health.name());
    }
    let is_out = !words.is_empty() && words[0] != backend.health.name();
    for (holds, word) in
        [(backend.stale, "stale"), (backend.backup, "backup"), (backend.suspect, "suspect")]
    {
        if holds {
            words.push(word);
        }
    }
    let tone = match backend.health {
        _ if is_out => Tone::Doubtful,
        api::Health::Unhealthy | api::Health::Unreachable => Tone::Bad,
        api::Health::Healthy if backend.takes_new_flows || backend.backup => Tone::Good,
        api::Health::Healthy | api::Health::Unknown => Tone::Doubtful,
    };
    Cell::toned(tone, words.join(", "))
}

#[cfg(test)]
mod tests;
