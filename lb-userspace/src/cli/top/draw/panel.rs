//! Below the list: what is wrong, frames that were not forwarded, or the chosen line in full.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::{Paragraph, Wrap},
};

use super::{WIDE, age, drops};
use crate::{
    cli::{
        figures::{bytes, exact, rate, seconds},
        render::steps,
        table::Tone,
        top::{
            state::{Daemon, Panel, Reading, Top},
            theme::Theme,
        },
    },
    control::api::{self, Severity},
};

/// Draws the panel that is shown, and on a wide screen the drops beside it.
pub fn draw(frame: &mut Frame<'_>, area: Rect, top: &Top, reading: &Reading, theme: Theme) {
    let is_wide = area.width >= WIDE;
    let (left, right) = match is_wide && top.panel != Panel::Drops {
        true => {
            let halves = [Constraint::Percentage(55), Constraint::Percentage(45)];
            let [left, right] = Layout::horizontal(halves).spacing(2).areas(area);
            (left, Some(right))
        }
        false => (area, None),
    };
    let lines = match top.panel {
        Panel::Troubles => troubles(top, reading, theme),
        Panel::Drops => dropped(top, reading, left.width, theme),
        Panel::Chosen => chosen(top, reading),
    };
    draw_lines(frame, left, heading(top.panel, reading, theme), lines);
    if let Some(right) = right {
        let heading = Line::styled("DROPS", theme.style(Tone::Strong));
        draw_lines(frame, right, heading, dropped(top, reading, right.width, theme));
    }
}

fn draw_lines(frame: &mut Frame<'_>, area: Rect, heading: Line<'_>, lines: Vec<Line<'_>>) {
    let [first, rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(heading, first);
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), rest);
}

/// The names of the panels, this one's in brackets.
fn heading(shown: Panel, reading: &Reading, theme: Theme) -> Line<'static> {
    let wrong = reading.status.troubles.len();
    let spans = Panel::ALL.map(|panel| {
        let name = match panel {
            Panel::Troubles => format!("WRONG {wrong}"),
            Panel::Drops => "DROPS".to_owned(),
            Panel::Chosen => "CHOSEN".to_owned(),
        };
        match panel == shown {
            true => Span::styled(format!("[{name}] "), theme.style(Tone::Strong)),
            false => Span::styled(format!(" {name}  "), theme.faint()),
        }
    });
    Line::from(spans.to_vec())
}

fn troubles(top: &Top, reading: &Reading, theme: Theme) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Daemon::Gone { why, .. } = &top.daemon {
        lines.push(Line::styled(why.clone(), theme.style(Tone::Bad)));
    }
    for trouble in &reading.status.troubles {
        let tone = match trouble.severity {
            Severity::Outage => Tone::Bad,
            Severity::Fault => Tone::Doubtful,
            Severity::Notice => Tone::Plain,
        };
        let since = trouble.since.as_ref().and_then(|since| age(since, reading.at));
        let since = since.map_or_else(|| "longer than the daemon".to_owned(), seconds);
        let subject = match &*trouble.about {
            "instance" => String::new(),
            about => format!("{about} "),
        };
        lines.push(Line::from(vec![
            Span::styled(trouble.severity.name().to_uppercase(), theme.style(tone)),
            Span::raw(format!(" {subject}{} (for {since})", trouble.says)),
        ]));
        let steps = trouble.mend.iter().flat_map(|mend| steps(mend));
        lines.extend(steps.map(|step| Line::from(format!("  -> {step}"))));
    }
    if lines.is_empty() {
        lines.push(Line::styled("nothing is wrong", theme.style(Tone::Good)));
    }
    lines
}

fn dropped(top: &Top, reading: &Reading, width: u16, theme: Theme) -> Vec<Line<'static>> {
    let drops = drops(top, &reading.reasons);
    if drops.is_empty() {
        return vec![Line::styled("no frame was dropped or answered", theme.style(Tone::Good))];
    }
    let room = usize::from(width).saturating_sub(44);
    let line = |(reason, now): (&api::ReasonCount, Option<f64>)| {
        let now = now.map_or_else(|| "-".to_owned(), rate);
        let tone = if now == "-" || now == "0" { Tone::Plain } else { Tone::Doubtful };
        let help: String = reason.help.chars().take(room).collect();
        Line::from(vec![
            Span::raw(format!("{:<6} {:<16} ", reason.class, reason.name)),
            Span::styled(format!("{now:>6}/s "), theme.style(tone)),
            Span::raw(format!("{:>9}  {help}", exact(reason.count))),
        ])
    };
    drops.into_iter().map(line).collect()
}

fn chosen(top: &Top, reading: &Reading) -> Vec<Line<'static>> {
    let rows = top.rows();
    let Some(row) = rows.get(top.place(&rows)) else {
        return vec![Line::from("nothing is chosen")];
    };
    let service = row.service;
    let Some(backend) = row.backend else {
        let held = service.held.as_ref().map(|why| format!("; held: {why}")).unwrap_or_default();
        return vec![
            Line::from(format!(
                "{}: {} by {}, affinity {}, {} slots",
                service.name,
                service.vip,
                service.forwarding,
                service.affinity,
                exact(service.slots.into())
            )),
            Line::from(format!("new flows go to: {}{held}", service.new_flows)),
        ];
    };
    let since = backend.health_since.as_ref().and_then(|since| age(since, reading.at));
    let since = since.map(|since| format!(" for {}", seconds(since))).unwrap_or_default();
    let probe = match &backend.last_probe {
        None => "not probed".to_owned(),
        Some(probe) => format!(
            "probe by {} {:.1} s ago, {:.1} ms: {}",
            probe.via,
            probe.age_seconds,
            probe.seconds * 1000.0,
            probe.error.as_deref().unwrap_or("well")
        ),
    };
    let mut lines = vec![
        Line::from(format!(
            "{}/{}: {} port {}, weight {}, {}, {}{since}",
            service.name,
            backend.name,
            backend.address,
            backend.port_text(),
            backend.weight,
            backend.admin.name(),
            backend.health.name(),
        )),
        Line::from(format!("why: {}", backend.why)),
        Line::from(probe),
        Line::from(format!("next hop {}", backend.next_hop)),
        Line::from(format!(
            "{} new flows, {} handshakes, {} SYNs sent again, {} reset, {} in {} frames",
            exact(backend.new_flows_total),
            exact(backend.handshakes_total),
            exact(backend.syn_retransmissions_total),
            exact(backend.reset_flows_total),
            bytes(backend.bytes_total),
            exact(backend.packets_total),
        )),
    ];
    let cause = backend.last_probe.as_ref().and_then(|probe| probe.cause.clone());
    let steps = cause.iter().flat_map(|cause| steps(cause));
    lines.extend(steps.map(|step| Line::from(format!("-> {step}"))));
    lines
}
