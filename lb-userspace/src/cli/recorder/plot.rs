//! The same as a picture, SVG or PNG: four plots over one time.
//!
//! Both are one drawing. A server has no fonts, so the one that PNG is written with, and that tells
//! how wide a text is, is ours; an SVG's texts are texts, in whatever font its reader has.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fmt, fs,
    ops::Range,
    path::PathBuf,
    str::FromStr,
};

use anyhow::{Context as _, anyhow, bail};
use jiff::tz::TimeZone;
use lb_common::counters::Event as Count;
use plotters::{
    coord::Shift,
    drawing::DrawingAreaErrorKind,
    prelude::{
        BitMapBackend, Circle, Color as _, DrawingArea, DrawingBackend, FontStyle,
        IntoDrawingArea as _, LineSeries, PathElement, Rectangle, SVGBackend, SeriesLabelPosition,
    },
    style::{BLACK, RGBColor, ShapeStyle, WHITE, register_font},
};

use super::{name, span, time};
use crate::recorder::{Portion, Story, Told, Wanted, second_of};

/// Of the picture, in an SVG's pixels.
const SIZE: (u32, u32) = (1200, 1000);
/// Pixels of a PNG for one of an SVG's, each way: of two, its letters are easy to read, on dense
/// screens too.
const SCALE: u32 = 2;
/// The family of all texts. An SVG's reader takes his own for it.
const FAMILY: &str = "sans-serif";
/// Roboto Regular, its Latin letters; see `fonts/README.md`.
const FONT: &[u8] = include_bytes!("../../../fonts/roboto-latin.ttf");
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

/// What a picture is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines and texts: the size does not matter, and texts can be searched for.
    Svg,
    /// Pixels, for what shows no SVG.
    Png,
}

/// A file to draw into; its name says as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    path: PathBuf,
    format: Format,
}

impl FromStr for File {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = PathBuf::from(text);
        let extension = path.extension().map(OsStr::to_ascii_lowercase);
        let format = match extension.as_ref().and_then(|extension| extension.to_str()) {
            Some("svg") => Format::Svg,
            Some("png") => Format::Png,
            _ => return Err("pictures are SVG or PNG: name the file *.svg or *.png"),
        };
        Ok(Self { path, format })
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// Draws it into a file.
///
/// # Errors
/// If there is nothing to draw, or the file can't be written.
pub fn draw(file: &File, story: &Story, wanted: &Wanted, zone: &TimeZone) -> anyhow::Result<()> {
    if story.seconds.is_empty() {
        bail!("nothing was recorded then: there is nothing to draw");
    }
    register_font(FAMILY, FontStyle::Normal, FONT).map_err(|_| anyhow!("read the font"))?;
    let scale = match file.format {
        Format::Svg => 1,
        Format::Png => SCALE,
    };
    let sheet = Sheet { story, window: wanted.from..wanted.until, zone, scale };
    let size = (sheet.px(SIZE.0), sheet.px(SIZE.1));
    let bytes = match file.format {
        Format::Svg => {
            let mut text = String::new();
            picture(&SVGBackend::with_string(&mut text, size).into_drawing_area(), &sheet)?;
            text.into_bytes()
        }
        Format::Png => {
            let mut pixels = vec![0; size.0 as usize * size.1 as usize * 3];
            picture(&BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area(), &sheet)?;
            png(size, &pixels).context("write it as PNG")?
        }
    };
    fs::write(&file.path, bytes).with_context(|| format!("write {file}"))
}

/// The bytes of a PNG file with these pixels: red, green, blue.
fn png((width, height): (u32, u32), pixels: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}

/// A line of a plot: what it shows, and its value in each second.
type Curve = (String, Vec<(u64, f64)>);

/// What all plots of a picture share.
struct Sheet<'s> {
    story: &'s Story,
    window: Range<u64>,
    zone: &'s TimeZone,
    /// Pixels for one of an SVG's.
    scale: u32,
}

impl Sheet<'_> {
    /// So many of an SVG's pixels.
    const fn px(&self, pixels: u32) -> u32 {
        pixels * self.scale
    }

    /// A text so many of an SVG's pixels high.
    const fn text(&self, height: u32) -> (&'static str, u32) {
        (FAMILY, self.px(height))
    }
}

fn picture<B: DrawingBackend>(
    root: &DrawingArea<B, Shift>,
    sheet: &Sheet<'_>,
) -> anyhow::Result<()> {
    let failed = |error: &dyn fmt::Display| anyhow!("draw: {error}");
    let Sheet { story, zone, .. } = *sheet;
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let title = format!("{} (grey: nothing is recorded; thin lines: events)", span(story, zone)?);
    // A font's highest letters may rise above its line.
    let area = root.margin(sheet.px(8), 0, 0, 0);
    let area = area.titled(&title, sheet.text(20)).map_err(|error| failed(&error))?;
    let plots = [
        ("flows a second", flows(story)),
        ("active flows", groups(story, |_, figures| figures.active as f64)),
        ("packets a second", groups(story, |told, f| f.packets as f64 / told.span_seconds)),
        ("dropped or answered frames a second, by reason", reasons(story)),
    ];
    for (area, (title, curves)) in area.split_evenly((plots.len(), 1)).iter().zip(plots) {
        plot(area, sheet, title, curves).map_err(|error| failed(&error))?;
    }
    root.present().map_err(|error| failed(&error))
}

/// One plot. Grey: nothing is recorded. Thin lines: something happened.
fn plot<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    sheet: &Sheet<'_>,
    title: &str,
    curves: Vec<Curve>,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let Sheet { story, zone, .. } = *sheet;
    let values = curves.iter().flat_map(|(_, points)| points).map(|(_, value)| *value);
    let top = values.fold(LITTLE, f64::max) * 1.05;
    let mut chart = plotters::chart::ChartBuilder::on(area)
        .caption(title, sheet.text(16))
        .margin(sheet.px(8))
        // For half of the last label.
        .margin_right(sheet.px(32))
        .x_label_area_size(sheet.px(24))
        .y_label_area_size(sheet.px(72))
        .build_cartesian_2d(sheet.window.clone(), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.2).stroke_width(sheet.px(1)))
        .axis_style(BLACK.stroke_width(sheet.px(1)))
        .set_all_tick_mark_size(sheet.px(5))
        .label_style(sheet.text(12))
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
        PathElement::new(vec![(second, 0.0), (second, top)], GREY.stroke_width(sheet.px(1)))
    }))?;
    let is_empty = curves.is_empty();
    for (number, (label, points)) in curves.into_iter().enumerate() {
        let style: ShapeStyle = COLOURS[number % COLOURS.len()].stroke_width(sheet.px(2));
        let mut label = Some(label);
        for part in pieces(points, story) {
            let drawn = match *part {
                // No line: between two gaps.
                [second] => {
                    let dot = Circle::new(second, sheet.px(2), style.color.filled());
                    chart.draw_series([dot])?
                }
                _ => chart.draw_series(LineSeries::new(part, style))?,
            };
            // One entry for all pieces.
            if let Some(label) = label.take() {
                let length = sheet.px(16) as i32;
                drawn
                    .label(label)
                    .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + length, y)], style));
            }
        }
    }
    if !is_empty {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(sheet.text(12))
            .legend_area_size(sheet.px(24))
            .margin(sheet.px(8))
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
    let mut curves = vec![
        curve("new flows", &[Count::NewFlow]),
        curve("handshakes", &[Count::Handshake]),
        curve("SYNs sent again", &[Count::SynRetransmission]),
        curve("resets", &[Count::Reset, Count::ClientReset, Count::BackendReset, Count::Refusal]),
    ];
    if story.translates() {
        curves.push(curve("of these, refused", &[Count::Refusal]));
        curves.push(curve("of these, by the backend", &[Count::BackendReset]));
    }
    curves
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
