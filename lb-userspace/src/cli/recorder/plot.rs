//! The same as a picture: four plots over one time.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    ops::Range,
    path::Path,
};

use anyhow::{Context as _, anyhow, bail};
use jiff::tz::TimeZone;
use lb_common::counters::Event as Count;
use plotters::{
    coord::Shift,
    prelude::{
        Color as _, DrawingArea, IntoDrawingArea as _, LineSeries, PathElement, Rectangle,
        SVGBackend, SeriesLabelPosition,
    },
    style::{BLACK, RGBColor, ShapeStyle, WHITE},
};

use super::{name, span, time};
use crate::recorder::{Portion, Story, Told, Wanted, second_of};

/// Of the picture, in pixels.
const SIZE: (u32, u32) = (1200, 1000);
/// Lines of one plot at most.
const LINES: usize = 8;
/// Eight colours that most people can tell apart (Okabe and Ito, 2008), on white.
const COLOURS: [RGBColor; LINES] = [
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(148, 148, 30),
];
const GREY: RGBColor = RGBColor(128, 128, 128);
/// The highest value of a plot of little, so that its labels are whole numbers.
const LITTLE: f64 = 4.0;

/// Draws it into a file.
pub fn draw(file: &Path, story: &Story, wanted: &Wanted, zone: &TimeZone) -> anyhow::Result<()> {
    if file.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("svg")) {
        bail!("--plot draws SVG, which every browser shows: name the file *.svg");
    }
    if story.seconds.is_empty() {
        bail!("nothing was recorded then: there is nothing to draw");
    }
    let picture = picture(story, wanted, zone)?;
    fs::write(file, picture).with_context(|| format!("write {}", file.display()))
}

/// A line of a plot: what it shows, and its value in each second.
type Curve = (String, Vec<(u64, f64)>);

fn picture(story: &Story, wanted: &Wanted, zone: &TimeZone) -> anyhow::Result<String> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("draw: {error}");
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let title = format!("{} (grey: nothing is recorded; thin lines: events)", span(story, zone)?);
    let area = root.titled(&title, ("sans-serif", 20)).map_err(|error| failed(&error))?;
    let plots = [
        ("flows a second", flows(story)),
        ("active flows", groups(story, |_, figures| figures.active as f64)),
        ("packets a second", groups(story, |told, f| f.packets as f64 / told.span_seconds)),
        ("dropped or answered frames a second, by reason", reasons(story)),
    ];
    for (area, (title, curves)) in area.split_evenly((plots.len(), 1)).iter().zip(plots) {
        plot(area, title, curves, story, wanted.from..wanted.until, zone)
            .map_err(|error| failed(&error))?;
    }
    root.present().map_err(|error| failed(&error))?;
    drop((area, root));
    Ok(text)
}

/// One plot. Grey: nothing is recorded. Thin lines: something happened.
fn plot(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    curves: Vec<Curve>,
    story: &Story,
    window: Range<u64>,
    zone: &TimeZone,
) -> Result<(), Box<dyn std::error::Error>> {
    let values = curves.iter().flat_map(|(_, points)| points).map(|(_, value)| *value);
    let top = values.fold(LITTLE, f64::max) * 1.05;
    let mut chart = plotters::chart::ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        // For half of the last label.
        .margin_right(32)
        .x_label_area_size(24)
        .y_label_area_size(72)
        .build_cartesian_2d(window.clone(), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_labels(10)
        .y_labels(5)
        .x_label_formatter(&|second| time(*second, zone))
        .y_label_formatter(&|value| super::short(*value as u64))
        .draw()?;
    chart.draw_series(story.missing.iter().map(|gap| {
        let corners = [(gap.second, 0.0), (gap.second + gap.seconds, top)];
        Rectangle::new(corners, GREY.mix(0.25).filled())
    }))?;
    chart.draw_series(story.events.iter().map(|event| {
        let second = second_of(event);
        PathElement::new(vec![(second, 0.0), (second, top)], GREY.stroke_width(1))
    }))?;
    let is_empty = curves.is_empty();
    for (number, (label, points)) in curves.into_iter().enumerate() {
        let style: ShapeStyle = COLOURS[number % COLOURS.len()].stroke_width(2);
        let mut label = Some(label);
        for part in pieces(points, story) {
            let drawn = chart.draw_series(LineSeries::new(part, style))?;
            // One entry for all pieces.
            if let Some(label) = label.take() {
                drawn
                    .label(label)
                    .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
            }
        }
    }
    if !is_empty {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()?;
    }
    Ok(())
}

/// A line ends where nothing is recorded.
fn pieces(points: Vec<(u64, f64)>, story: &Story) -> Vec<Vec<(u64, f64)>> {
    let mut pieces: Vec<Vec<(u64, f64)>> = Vec::new();
    for point in points {
        let last = pieces.last().and_then(|piece| piece.last()).map(|(second, _)| *second);
        let is_cut = last.is_none_or(|last| {
            story.missing.iter().any(|gap| (last..point.0).contains(&gap.second))
        });
        match pieces.last_mut() {
            Some(piece) if !is_cut => piece.push(point),
            _ => pieces.push(vec![point]),
        }
    }
    pieces
}

fn flows(story: &Story) -> Vec<Curve> {
    let curve = |label: &str, events: &[Count]| {
        let value = |told: &Told| {
            let count: u64 = events.iter().map(|event| told.total.0.event(*event)).sum();
            (told.second, count as f64 / told.span_seconds.max(0.001))
        };
        (label.to_owned(), story.seconds.iter().map(value).collect())
    };
    vec![
        curve("new flows", &[Count::NewFlow]),
        curve("handshakes", &[Count::Handshake]),
        curve("SYNs sent again", &[Count::SynRetransmission]),
        curve("resets", &[Count::Reset, Count::ClientReset, Count::BackendReset, Count::Refusal]),
    ]
}

/// A line for each service; of one service, or of backends of one name, for each backend. Those
/// with the fewest packets are left out.
fn groups(story: &Story, value: impl Fn(&Told, &crate::recorder::Figures) -> f64) -> Vec<Curve> {
    let is_narrow = story.service.is_some() || story.backend.is_some();
    let label = |portion: &Portion| match &portion.service {
        Some(service) if !is_narrow => service.clone(),
        _ => name(portion),
    };
    let mut packets: BTreeMap<String, u64> = BTreeMap::new();
    for portion in &story.backends {
        *packets.entry(label(portion)).or_default() += portion.counts.0.packets;
    }
    let mut labels: Vec<(String, u64)> = packets.into_iter().collect();
    labels.sort_by_key(|(_, packets)| std::cmp::Reverse(*packets));
    labels.truncate(LINES);
    let mut curves: Vec<Curve> = labels.into_iter().map(|(label, _)| (label, Vec::new())).collect();
    let places: HashMap<String, usize> =
        curves.iter().zip(0..).map(|((label, _), place)| (label.clone(), place)).collect();
    for told in &story.seconds {
        for (_, points) in &mut curves {
            points.push((told.second, 0.0));
        }
        for portion in &told.backends {
            let points = places.get(&label(portion)).map(|place| &mut curves[*place].1);
            if let Some((_, sum)) = points.and_then(|points| points.last_mut()) {
                *sum += value(told, &portion.counts.0);
            }
        }
    }
    curves
}

fn reasons(story: &Story) -> Vec<Curve> {
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, count) in story.seconds.iter().flat_map(Told::refused) {
        *totals.entry(reason).or_default() += count;
    }
    let mut reasons: Vec<(&str, u64)> = totals.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    reasons.truncate(LINES);
    let curve = |(reason, _): (&str, u64)| {
        let points = story.seconds.iter().map(|told| {
            let count = told.reasons.get(reason).copied().unwrap_or(0);
            (told.second, count as f64 / told.span_seconds.max(0.001))
        });
        (reason.to_owned(), points.collect())
    };
    reasons.into_iter().map(curve).collect()
}
