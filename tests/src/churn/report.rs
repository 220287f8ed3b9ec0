//! What came of it: a table for people, a line for scripts.

use std::{fmt, time::Instant};

use serde::Serialize;

use super::{Change, causes, stage::Running};
use crate::lab::BrokenStream;

/// One change, by one mode, over one family.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// [`Change::name`].
    pub change: &'static str,
    /// `l2`, `ipip` or `nat`.
    pub mode: &'static str,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Long connections that there were.
    pub flows: u64,
    /// How many of them broke; of a backend that died, those of others.
    pub broken: u64,
    /// Connections begun meanwhile that failed; after a death, once it had been found.
    pub failed_new: u64,
    /// Connections begun meanwhile.
    pub new: u64,
    /// Blocks that long connections carried towards the client, each checked.
    pub blocks: u64,
    /// SYNs that had to be sent twice: a frame was lost, or came too late.
    pub syns_again: u64,
    /// Connections of the backend that died.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost_with_it: u64,
    /// New connections that failed before its death was found.
    #[serde(skip_serializing_if = "is_zero")]
    pub failed_before_it_was_found: u64,
    /// Why connections broke, and new ones failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Case {
    pub(super) fn new(change: Change, running: &Running<'_>, flows: u64) -> Self {
        Self {
            change: change.name(),
            mode: running.mode.name(),
            family: running.family.name(),
            flows,
            broken: 0,
            failed_new: 0,
            // Both become differences when it has ended.
            new: running.load.requests(),
            syns_again: running.syns_again(),
            blocks: 0,
            lost_with_it: 0,
            failed_before_it_was_found: 0,
            causes: Vec::new(),
            seconds: 0.0,
        }
    }

    pub(super) fn ended(
        &mut self,
        begun: Instant,
        running: &Running<'_>,
        broken: &[BrokenStream],
        blocks: u64,
    ) {
        self.seconds = begun.elapsed().as_secs_f64();
        self.broken = broken.len() as u64;
        self.failed_new = running.failed_since(begun) - self.failed_before_it_was_found;
        self.new = running.load.requests() - self.new;
        self.syns_again = running.syns_again() - self.syns_again;
        self.blocks = blocks;
        self.causes = causes(broken);
        if self.failed_new > 0 {
            self.causes.extend(running.load.tally().causes().lines().map(str::to_owned));
        }
    }

    /// Whether nothing broke that need not.
    pub fn is_flawless(&self) -> bool {
        self.broken == 0 && self.failed_new == 0
    }
}

/// What is told without being judged.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was done.
    pub what: &'static str,
    /// `l2` or `ipip`.
    pub mode: &'static str,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Long connections that there were.
    pub flows: u64,
    /// Flows, long or short, that had found no place in the table.
    pub untracked: u64,
    /// Long connections that broke.
    pub broken: u64,
    /// Connections begun meanwhile that failed.
    pub failed_new: u64,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// All must be flawless.
    pub cases: Vec<Case>,
    /// Told, not judged.
    pub figures: Vec<Figure>,
    /// How long all took.
    pub seconds: f64,
}

impl Report {
    /// Whether nothing broke that need not.
    pub fn is_flawless(&self) -> bool {
        self.cases.iter().all(Case::is_flawless)
    }
}

/// One line of progress.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { change, mode, family, broken, flows, failed_new, new, seconds, .. } = self;
        write!(
            f,
            "{change:<12} {mode:<4} {family}  {broken:>4} of {flows} broken, {failed_new:>3} of \
             {new:>5} new ones failed  {seconds:>5.1} s"
        )
    }
}

/// A report as a table: a line a change, a column a way.
pub struct Table<'a>(pub &'a Report);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { cases, figures, seconds } = self.0;
        let mut ways = Vec::new();
        let mut changes = Vec::new();
        for case in cases {
            if !ways.contains(&(case.mode, case.family)) {
                ways.push((case.mode, case.family));
            }
            if !changes.contains(&case.change) {
                changes.push(case.change);
            }
        }
        writeln!(f, "broken connections per 1,000 / failed new connections\n")?;
        write!(f, "{:<14}", "change")?;
        for (mode, family) in &ways {
            write!(f, "{:>14}", format!("{mode} {family}"))?;
        }
        writeln!(f)?;
        for change in changes {
            write!(f, "{change:<14}")?;
            for way in &ways {
                let of = |case: &&Case| case.change == change && (case.mode, case.family) == *way;
                let cell = cases.iter().find(of).map(|case| {
                    let broken = case.broken as f64 * 1000.0 / case.flows.max(1) as f64;
                    format!("{} / {}", (broken * 10.0).round() / 10.0, case.failed_new)
                });
                write!(f, "{:>14}", cell.unwrap_or_else(|| "-".to_owned()))?;
            }
            writeln!(f)?;
        }
        let sum = |count: fn(&Case) -> u64| cases.iter().map(count).sum::<u64>();
        writeln!(
            f,
            "\n{} long connections, {} blocks checked; {} new connections; {} SYNs sent twice; \
             {seconds:.0} s",
            sum(|case| case.flows),
            sum(|case| case.blocks),
            sum(|case| case.new),
            sum(|case| case.syns_again),
        )?;
        for case in cases.iter().filter(|case| case.lost_with_it > 0) {
            writeln!(
                f,
                "death, {} {}: {} connections lost with the backend; {} new ones failed before it \
                 was found",
                case.mode, case.family, case.lost_with_it, case.failed_before_it_was_found
            )?;
        }
        for figure in figures {
            let Figure { what, mode, family, flows, untracked, broken, failed_new } = figure;
            writeln!(
                f,
                "{what}, {mode} {family}: {broken} of {flows} broken, {failed_new} new ones failed \
                 ({untracked} flows had found no place)"
            )?;
        }
        for case in cases.iter().filter(|case| !case.is_flawless()) {
            writeln!(f, "FAILED: {case}")?;
            for cause in &case.causes {
                writeln!(f, "        {cause}")?;
            }
        }
        Ok(())
    }
}
