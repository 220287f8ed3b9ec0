//! A frame of what [`Top`] holds: a pure function of it, the size and the [`Theme`].

mod panel;

use std::time::SystemTime;

use lb_common::reason::Class;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::Style,
    text::{Line, Span, Text},
    widgets::{Block, Cell, Clear, Paragraph, Row as TableRow, Table, TableState},
};

use super::{
    rows::Row,
    state::{Daemon, Mode, Question, Reading, Top},
    theme::Theme,
    traffic::{Course, Rates},
};
use crate::{
    cli::{
        figures::{exact, plural, rate, seconds, short},
        status::{backend_state, service_state},
        table::Tone,
    },
    control::api::{self, Severity, Verdict},
};

/// The least that is drawn on, columns and lines.
const LEAST: (u16, u16) = (60, 12);
/// From here on there is room for more columns.
const WIDE: u16 = 120;
/// From here on there is room for a larger panel.
const HIGH: u16 = 40;

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, top: &Top, theme: &Theme) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!("too small: {} by {} at least; q quits", LEAST.0, LEAST.1);
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let panel_height = if area.height >= HIGH { 14 } else { 6 };
    let [head, list, panel, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Min(3),
        Constraint::Length(panel_height),
        Constraint::Length(1),
    ])
    .areas(area);
    if let Some(reading) = &top.reading {
        draw_head(frame, head, top, reading, *theme);
        draw_list(frame, list, top, *theme);
        panel::draw(frame, panel, top, reading, *theme);
    }
    frame.render_widget(foot_line(top, *theme), foot);
    match &top.mode {
        Mode::Watch | Mode::Filter => {}
        Mode::Confirm(question) => draw_question(frame, area, question, *theme),
        Mode::Help => draw_help(frame, area),
    }
}

/// Says one thing at each end of a line; what is on the right yields.
fn two_ends<'l>(left: Vec<Span<'l>>, right: &str, width: u16, style: Style) -> Line<'l> {
    let mut line = Line::from(left);
    let room = usize::from(width).saturating_sub(line.width());
    if right.chars().count() < room {
        let right = format!("{right:>room$}");
        line.push_span(Span::styled(right, style));
    }
    line
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, top: &Top, reading: &Reading, theme: Theme) {
    let status = &reading.status;
    let (tone, forwarding) = match status.verdict() {
        Verdict::Yes => (Tone::Good, "forwarding: yes"),
        Verdict::InPart => (Tone::Bad, "forwarding: IN PART"),
        Verdict::No => (Tone::Bad, "forwarding: NO"),
    };
    let mut first =
        vec![Span::styled(format!("sluice {}  ", status.instance), theme.style(Tone::Strong))];
    match &top.daemon {
        Daemon::Gone { since, .. } => {
            let gone = seconds(top.now.saturating_sub(*since).as_secs());
            let text = format!("NO DAEMON ANSWERS for {gone}; last known: {forwarding}");
            first.push(Span::styled(text, theme.style(Tone::Bad)));
        }
        Daemon::Unasked | Daemon::Answers => {
            first.push(Span::styled(forwarding, theme.style(tone)));
            let wrong = status.troubles.iter().filter(|t| t.severity != Severity::Notice).count();
            if wrong > 0 {
                let text = format!("  {} wrong", exact(wrong as u64));
                first.push(Span::styled(text, theme.style(Tone::Doubtful)));
            }
        }
    }
    let clock = humantime::format_rfc3339_seconds(reading.at).to_string();
    let clock = clock.get(11..).unwrap_or_default().to_owned();
    let up = age(&status.since, reading.at).map(|up| format!("up {}  ", seconds(up)));
    let right = up.unwrap_or_default() + &clock;

    let interfaces: Vec<String> = status
        .interfaces
        .iter()
        .map(|interface| match interface.attached {
            true => format!("{} {}", interface.name, interface.xdp_mode),
            false => format!("{} NOT ATTACHED", interface.name),
        })
        .collect();
    let flows = &status.flows;
    let full = flows.used as f64 / (flows.capacity.max(1) as f64) * 100.0;
    let second = format!(
        "{}  flows {} of {} ({full:.0} %)",
        interfaces.join(", "),
        exact(flows.used),
        short(flows.capacity)
    );
    let all = top.traffic.all();
    let plots = [("new/s", 0), ("packets/s", 1), ("bits/s", 2)];
    let each = usize::from(area.width) / plots.len();
    let mut third = Vec::new();
    for (name, index) in plots {
        let which: fn(&Rates) -> f64 = match index {
            0 => |rates| rates.new_flows,
            1 => |rates| rates.packets,
            _ => |rates| rates.bits,
        };
        let now = all.now().map_or_else(|| "-".to_owned(), |rates| rate(which(&rates)));
        let label = format!("{name} {now} ");
        let room = each.saturating_sub(label.chars().count() + 2);
        let plot = theme.plot(&all.trend(which), room);
        third.push(Span::raw(label));
        third.push(Span::styled(format!("{plot:<room$}  "), theme.style(Tone::Good)));
    }
    let text = Text::from(vec![
        two_ends(first, &right, area.width, theme.faint()),
        Line::from(second),
        Line::from(third),
    ]);
    frame.render_widget(Paragraph::new(text), area);
}

/// The heading of the plots of new flows.
const PLOT: &str = "LATELY";
/// A column: heading, width, and whether only a wide screen has it.
const COLUMNS: [(&str, Constraint, bool); 10] = [
    ("SERVICE", Constraint::Min(18), false),
    ("ADDRESS", Constraint::Length(26), true),
    ("WEIGHT", Constraint::Length(6), true),
    ("STATE", Constraint::Length(20), false),
    ("  FLOWS", Constraint::Length(7), false),
    ("  NEW/s", Constraint::Length(7), false),
    ("PACK/s", Constraint::Length(6), false),
    ("BITS/s", Constraint::Length(6), false),
    ("SYN AGAIN/s", Constraint::Length(11), true),
    (PLOT, Constraint::Length(0), false),
];

fn draw_list(frame: &mut Frame<'_>, area: Rect, top: &Top, theme: Theme) {
    let is_wide = area.width >= WIDE;
    let columns = || COLUMNS.into_iter().filter(|(_, _, wide)| is_wide || !wide);
    let rows = top.rows();
    let place = top.place(&rows);
    // The heading takes one line. The chosen one is kept in the middle where there is a choice.
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    let first = place.saturating_sub(room / 2).min(rows.len().saturating_sub(room));
    let shown = rows.iter().skip(first).take(room);
    let plot_width = if is_wide { 24 } else { 10 };
    let shown = shown.map(|row| table_row(row, top, theme, is_wide, usize::from(plot_width)));
    let heading = columns().map(|(name, ..)| name).collect::<TableRow<'_>>();
    let widths = columns().map(|(name, width, _)| match name {
        PLOT => Constraint::Length(plot_width),
        _ => width,
    });
    let table = Table::new(shown, widths)
        .header(heading.style(theme.style(Tone::Strong)))
        .row_highlight_style(theme.chosen())
        .column_spacing(1);
    let mut state = TableState::new().with_selected((!rows.is_empty()).then_some(place - first));
    frame.render_stateful_widget(table, area, &mut state);
    if rows.is_empty() && area.height > 1 {
        let text = match &*top.choice.filter {
            "" => "no service".to_owned(),
            filter => format!("nothing has {filter:?} in its name, address or state: Esc"),
        };
        let below = Rect { y: area.y + 1, height: 1, ..area };
        frame.render_widget(Paragraph::new(text), below);
    }
}

fn table_row(
    row: &Row<'_>,
    top: &Top,
    theme: Theme,
    is_wide: bool,
    plot_width: usize,
) -> TableRow<'static> {
    let (name, address, weight, state) = match row.backend {
        None => (
            row.service.name.clone(),
            format!("{} {}", row.service.vip, row.service.forwarding),
            String::new(),
            service_state(row.service),
        ),
        Some(backend) => (
            format!("  {}", backend.name),
            backend.address.to_string(),
            backend.weight.to_string(),
            backend_state(backend),
        ),
    };
    let course = row.course(&top.traffic);
    // What is not heard of any more has no rate.
    let now = course.and_then(Course::now).filter(|_| top.daemon == Daemon::Answers);
    let per_second = |which: fn(&Rates) -> f64, width: usize| {
        let text = now.map_or_else(|| "-".to_owned(), |rates| rate(which(&rates)));
        format!("{text:>width$}")
    };
    let trend = course.map(|course| course.trend(|rates| rates.new_flows)).unwrap_or_default();
    let cells = [
        Cell::from(name),
        Cell::from(address),
        Cell::from(format!("{weight:>6}")),
        Cell::from(state.text().to_owned()).style(theme.style(state.tone())),
        Cell::from(format!("{:>7}", short(row.active_flows()))),
        Cell::from(per_second(|rates| rates.new_flows, 7)),
        Cell::from(per_second(|rates| rates.packets, 6)),
        Cell::from(per_second(|rates| rates.bits, 6)),
        Cell::from(per_second(|rates| rates.syn_retransmissions, 11)),
        Cell::from(theme.plot(&trend, plot_width)).style(theme.style(Tone::Good)),
    ];
    let cells = cells.into_iter().zip(COLUMNS).filter(|(_, (_, _, wide))| is_wide || !wide);
    let style = if row.backend.is_none() { theme.style(Tone::Strong) } else { Style::new() };
    cells.map(|(cell, _)| cell).collect::<TableRow<'static>>().style(style)
}

fn foot_line(top: &Top, theme: Theme) -> Line<'static> {
    match (&top.mode, &top.told) {
        (Mode::Filter, _) => {
            Line::from(format!("filter: {}_   Enter keeps it, Esc drops it", top.choice.filter))
        }
        (_, Some(Ok(told))) => Line::styled(told.clone(), theme.style(Tone::Good)),
        (_, Some(Err(why))) => Line::styled(why.clone(), theme.style(Tone::Bad)),
        (_, None) => {
            let filter = match &*top.choice.filter {
                "" => String::new(),
                filter => format!(":{filter}"),
            };
            let sort = top.choice.sort.name();
            Line::styled(
                format!(
                    "q quit  ? help  s sort:{sort}  / filter{filter}  d drain  e enable  Enter fold  \
                     Tab panel"
                ),
                theme.faint(),
            )
        }
    }
}

/// A box in the middle of the screen.
fn draw_box(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<Line<'static>>) {
    let widest = lines.iter().map(Line::width).max().unwrap_or(0) as u16;
    let width = (widest + 4).max(title.len() as u16 + 4).min(area.width);
    let height = (lines.len() as u16 + 2).min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let block = Block::bordered()
        .title(format!(" {title} "))
        .padding(ratatui::widgets::Padding::horizontal(1));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(block), place);
}

fn draw_question(frame: &mut Frame<'_>, area: Rect, question: &Question, theme: Theme) {
    let Question { service, backend, drains, flows } = question;
    let name = format!("{service}/{backend}");
    let (title, what) = match drains {
        true => (
            "drain?",
            vec![
                format!("{name} gets no new flows from now on."),
                format!(
                    "The {} it has go on; what is left at the service's",
                    plural(*flows, "flow")
                ),
                "drain_deadline is reset.".to_owned(),
            ],
        ),
        false => ("enable?", vec![format!("{name} gets new flows again.")]),
    };
    let mut lines: Vec<Line<'static>> = what.into_iter().map(Line::from).collect();
    lines.push(Line::default());
    lines.push(Line::styled("y: yes   any other key: no", theme.style(Tone::Strong)));
    draw_box(frame, area, title, lines);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let lines = [
        "up down j k   choose a line      PgUp PgDn Home End",
        "Enter         open or close a service",
        "s             sort: name, state, flows, new/s, packets/s, bits/s",
        "/             show only what has this in name, address or state",
        "Esc           show everything",
        "d  e          drain, enable the chosen backend (asks first)",
        "Tab           below: what is wrong, drops, the chosen line",
        "q  Ctrl-C     quit",
        "",
        "FLOWS: in the table now.  NEW: SYNs that chose a backend.",
        "PACK, BITS: forwarded to it; answers do not come this way.",
        "LATELY: its new flows a second, up to now.",
    ];
    draw_box(frame, area, "keys", lines.into_iter().map(Line::from).collect());
}

/// Seconds since a moment that the daemon told.
fn age(since: &str, now: SystemTime) -> Option<u64> {
    let since = humantime::parse_rfc3339(since).ok()?;
    now.duration_since(since).ok().map(|age| age.as_secs())
}

/// Frames that were answered or dropped, by reason, with those first of which there are most now.
fn drops<'r>(top: &Top, reasons: &'r api::Reasons) -> Vec<(&'r api::ReasonCount, Option<f64>)> {
    let is_passed = |reason: &api::ReasonCount| reason.class == Class::Pass.name();
    let mut drops: Vec<_> = reasons
        .reasons
        .iter()
        .filter(|reason| reason.count > 0 && !is_passed(reason))
        .map(|reason| (reason, top.traffic.reason(&reason.name).rate))
        .collect();
    let thousandths = |rate: Option<f64>| (rate.unwrap_or(0.0) * 1000.0) as u64;
    drops.sort_by_key(|(reason, rate)| {
        (std::cmp::Reverse(thousandths(*rate)), std::cmp::Reverse(reason.count))
    });
    drops
}
