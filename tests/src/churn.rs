//! `cargo xtask test churn`: does a change break a connection?
//!
//! Each [`Change`] is made while long connections speak both ways, every byte checked
//! ([`crate::lab::Streams`]), and new ones come all the time ([`crate::lab::Load`]): by `l2`, `ipip`
//! and `nat`, over IPv4 and IPv6. What is counted are connections that broke, and new ones that
//! failed. Both must be none.
//!
//! - `change`: what is done, step by step.
//! - `stage`: the machines, and an instance under load on them.
//! - `report`: the table, and the line for scripts.

mod change;
mod report;
mod stage;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use self::{
    change::Change,
    report::{Case, Figure, Report, Table},
    stage::Mode,
};
use self::{
    change::Step,
    stage::{Running, Stage},
};
use crate::lab::{BrokenStream, DEADLINE, Family, Streams};

/// Blocks a second, over all connections and both ways: what two CPUs carry with ease.
const BLOCKS_A_SECOND: u64 = 6000;
/// New connections that come between two steps.
const NEW: u64 = 50;
/// Blocks that each connection carries, each way, between two steps.
const BLOCKS: u64 = 2;
/// The smallest flow table there is.
const SMALLEST_TABLE: u64 = 1024;
/// Connections for each of its places, in a table that is too small.
const TOO_MANY: u64 = 4;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Long connections in each case.
    pub flows: u64,
    /// Which changes.
    pub changes: Vec<Change>,
    /// By which mode, over which family.
    pub ways: Vec<(Mode, Family)>,
}

impl Plan {
    /// What there is time for in `cargo xtask test`.
    pub fn short() -> Self {
        let long = [Change::SmallTable, Change::Death];
        let changes = Change::ALL.into_iter().filter(|change| !long.contains(change));
        let ways = vec![(Mode::L2, Family::V4), (Mode::Ipip, Family::V6), (Mode::Nat, Family::V4)];
        Self { flows: 100, changes: changes.collect(), ways }
    }
}

/// All ways there are.
pub const WAYS: [(Mode, Family); 6] = [
    (Mode::L2, Family::V4),
    (Mode::L2, Family::V6),
    (Mode::Ipip, Family::V4),
    (Mode::Ipip, Family::V6),
    (Mode::Nat, Family::V4),
    (Mode::Nat, Family::V6),
];

/// Makes all changes of a plan; `told` hears of each case when it has ended.
///
/// # Errors
/// If something is wrong with the laboratory, or a change can't be made. Broken connections are
/// no error: they are counted.
pub fn run(plan: &Plan, mut told: impl FnMut(&Case)) -> Result<Report> {
    let start = Instant::now();
    let stage = Stage::set()?;
    let mut report = Report::default();
    for &(mode, family) in &plan.ways {
        let usual = plan.changes.iter().filter(|change| **change != Change::SmallTable);
        let mut usual = usual.peekable();
        if usual.peek().is_some() {
            let mut running = stage.run(mode, family, None)?;
            for change in usual {
                let case = case(&mut running, *change, plan.flows).with_context(|| {
                    format!("{} ({} {})", change.name(), mode.name(), family.name())
                })?;
                told(&case);
                report.cases.push(case);
            }
        }
        if plan.changes.contains(&Change::SmallTable) && mode.needs_no_table() {
            let (case, figure) = small_table(&stage, mode, family, plan.flows)
                .with_context(|| format!("small table ({} {})", mode.name(), family.name()))?;
            told(&case);
            report.cases.push(case);
            report.figures.push(figure);
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// One change, and what it took back, under load.
fn case(running: &mut Running<'_>, change: Change, flows: u64) -> Result<Case> {
    let begun = Instant::now();
    let streams = running.open(flows)?;
    streams.advance(BLOCKS, DEADLINE);
    running.load.run_for_requests(NEW, 3 * DEADLINE)?;
    let mut case = Case::new(change, running, flows);
    if change == Change::Death {
        die(running, &streams, &mut case, begun)?;
    } else {
        for step in change.steps() {
            running.perform(step).with_context(|| format!("{step:?}"))?;
            go_on(running, &streams, flows)?;
        }
    }
    let blocks = streams.blocks();
    let per_backend = streams.per_backend();
    let broken = streams.close();
    if per_backend.len() < 2 {
        bail!("only {per_backend:?} answered: nothing was tested");
    }
    let (lost, broken) = broken.into_iter().partition::<Vec<_>, _>(|broken| {
        change == Change::Death && broken.backend == Stage::MORTAL
    });
    case.ended(begun, running, &broken, blocks);
    case.lost_with_it = lost.len() as u64;
    Ok(case)
}

/// Lets both kinds of connections show that they live.
fn go_on(running: &Running<'_>, streams: &Streams, flows: u64) -> Result<()> {
    streams.advance(BLOCKS, DEADLINE + 2 * pace(flows));
    running.load.run_for_requests(NEW, 3 * DEADLINE)
}

/// A backend's sudden death: its own connections are lost, and new ones fail until it is found
/// to be gone.
fn die(
    running: &mut Running<'_>,
    streams: &Streams,
    case: &mut Case,
    begun: Instant,
) -> Result<()> {
    running.unplug(Stage::MORTAL)?;
    running.wait_for_health(Stage::MORTAL, "unreachable")?;
    // Requests that were on their way to it are still waiting.
    let found = Instant::now();
    running.wait_for_requests_begun_before(found)?;
    go_on(running, streams, case.flows)?;
    case.failed_before_it_was_found = running.failed_of_those_begun(begun, found);
    running.plug(Stage::MORTAL)?;
    running.wait_for_health(Stage::MORTAL, "healthy")
}

/// A flow table with room for a quarter of the flows: none breaks as long as the slots of those
/// that found no place stay where they are; how many do when they move is told, not judged.
fn small_table(stage: &Stage, mode: Mode, family: Family, flows: u64) -> Result<(Case, Figure)> {
    let flows = flows.max(SMALLEST_TABLE * TOO_MANY);
    let begun = Instant::now();
    let mut running = stage.run(mode, family, Some(flows / TOO_MANY))?;
    let streams = running.open(flows)?;
    let mut case = Case::new(Change::SmallTable, &running, flows);
    go_on(&running, &streams, flows)?;
    for step in Change::SmallTable.steps() {
        running.perform(step).with_context(|| format!("{step:?}"))?;
        go_on(&running, &streams, flows)?;
    }
    let untracked = running.untracked()?;
    case.ended(begun, &running, &streams.broken(), streams.blocks());

    let drained = Instant::now();
    running.perform(&Step::Drain(&["web-2"]))?;
    go_on(&running, &streams, flows)?;
    let failed_new = running.failed_since(drained);
    let broken = streams.close().len() as u64 - case.broken;
    let figure = Figure {
        what: "drain with a table 4x too small",
        mode: mode.name(),
        family: family.name(),
        flows,
        untracked,
        broken,
        failed_new,
    };
    Ok((case, figure))
}

/// Between two blocks of one side of one connection.
fn pace(flows: u64) -> Duration {
    Duration::from_millis((2 * flows * 1000 / BLOCKS_A_SECOND).clamp(100, 5000))
}

/// Causes, each with how often it was.
fn causes(broken: &[BrokenStream]) -> Vec<String> {
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    for BrokenStream { backend, cause } in broken {
        *counts.entry(format!("{backend}: {cause}")).or_default() += 1;
    }
    counts.into_iter().map(|(cause, count)| format!("{count} × {cause}")).collect()
}
