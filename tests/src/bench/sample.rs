//! The run: samples of all cases, interleaved, and what follows from them.

use anyhow::Result;

use super::{
    case::{self, Case, Group, Subject},
    machine::{self, Machine},
    report::{Figure, Memory, Report},
    stage::Stage,
};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Samples of each case.
    pub rounds: usize,
    /// Packets of a sample.
    pub packets: u32,
    /// Only cases whose name contains this.
    pub only: Option<String>,
}

/// What every other figure leans on, generators and floors, is sampled so many times a round.
const PILLARS: usize = 3;

/// Packets of a live run.
const LIVE_PACKETS: u32 = 1 << 20;

/// Samples of one case: nanoseconds a packet, the generator's included.
struct Series {
    /// In the report.
    place: usize,
    case: Case,
    samples: Vec<f64>,
}

/// Measures; `progress` is told what is being done.
///
/// # Errors
/// If something can't be loaded, or did not do what it should while it was measured.
pub fn run(extent: &Extent, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    let wanted = |case: &Case| extent.only.as_ref().is_none_or(|part| case.name.contains(part));
    let mut pillars = series(case::pillars());
    let mut others = series(case::references().into_iter().chain(case::cases()).filter(wanted));
    let mut live = series(case::live().into_iter().filter(wanted));

    let mut stage = Stage::build()?;
    let prioritised = machine::settle()?;
    for Series { case, .. } in others.iter().chain(&live) {
        progress(&format!("preparing {}", case.name));
        stage.prepare(case)?;
    }
    for round in 1..=extent.rounds {
        progress(&format!("round {round} of {}", extent.rounds));
        let part = others.len().div_ceil(PILLARS).max(1);
        let mut parts = others.chunks_mut(part);
        for _ in 0..PILLARS {
            let part = parts.next().unwrap_or_default();
            for Series { case, samples, .. } in pillars.iter_mut().chain(part) {
                samples.push(stage.sample(case, extent.packets)?);
            }
        }
        // Each round in another order: what a case leaves in the caches hits another.
        let step = others.len().min(7);
        others.rotate_left(step);
        for Series { case, samples, .. } in &mut live {
            samples.push(stage.live(case, LIVE_PACKETS)?);
        }
    }
    others.sort_by_key(|series| series.place);

    let all: Vec<Series> = pillars.into_iter().chain(others).collect();
    let figures = |group| figures(&all, group);
    Ok(Report {
        floors: figures(Group::Floor),
        reference: figures(Group::Reference),
        cases: figures(Group::Case),
        growth: Vec::new(),
        translation: Vec::new(),
        packets_per_second: live.iter().map(|series| series.figure(|rate| rate)).collect(),
        bytes_per_million_flows: Memory::of_a_million(stage.lru_memory(1 << 20)?),
        generator: figures(Group::Generator),
        machine: Machine::here(),
        prioritised,
        rounds: extent.rounds,
        packets: extent.packets,
        missed: Vec::new(),
    }
    .conclude())
}

fn series(cases: impl IntoIterator<Item = Case>) -> Vec<Series> {
    let series = |(place, case)| Series { place, case, samples: Vec::new() };
    cases.into_iter().enumerate().map(series).collect()
}

/// What the cases of a group cost, without the generator.
fn figures(all: &[Series], group: Group) -> Vec<Figure> {
    let generator = |case: &Case| {
        let is_its = |series: &&Series| {
            series.case.group == Group::Generator && series.case.is_generator_of(case)
        };
        all.iter().find(is_its).map_or(f64::NAN, |series| quartiles(&series.samples)[1])
    };
    all.iter()
        .filter(|series| series.case.group == group)
        .map(|series| {
            let own = generator(&series.case);
            series.figure(|gross| match (group, series.case.subject) {
                (Group::Generator, _) => gross,
                (_, Subject::Nothing) => own - gross,
                _ => gross - own,
            })
        })
        .collect()
}

impl Series {
    fn figure(&self, value: impl Fn(f64) -> f64) -> Figure {
        let [low, median, high] = quartiles(&self.samples);
        Figure {
            name: self.case.name.clone(),
            value: value(median),
            spread: (high - low) / 2.0,
            limit: self.case.limit,
        }
    }
}

fn quartiles(samples: &[f64]) -> [f64; 3] {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| sorted.get(sorted.len() * quarter / 4).copied().unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_number_of_samples_is_the_one_in_the_middle() {
        assert_eq!(quartiles(&[5.0, 1.0, 4.0, 2.0, 3.0]), [2.0, 3.0, 4.0]);
    }
}
