//! Instructions per packet: what was measured, beside what is accepted.
//!
//! Emulated, ours are the same each time to 0.1 %, whatever else the computer does; with another
//! version of a kernel they may be others. So a figure is compared only with one that was taken with
//! the same package of the same kernel.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    kernels::Kernel,
    report::{Outcome, Verdict},
};
use crate::process::root;

/// What figures may grow by: it is more than two runs differ, and less than what anybody would let
/// pass.
const GROWTH: f64 = 0.02;

/// Under so many instructions a packet the same is allowed as at so many: interrupts are counted too.
const LEAST: f64 = 50.0;

/// What others do, for comparison: it is not held to anything. Their hash tables have another key
/// after each start, and thus other collisions: 2 % more or less.
const PEERS: [&str; 2] = ["path/ipvs-dr", "path/nft-dnat"];

/// Instructions a packet, by what was measured.
pub type Figures = BTreeMap<String, f64>;

/// `xtask/instructions.toml`: figures by the kernel's release and its package's version.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Accepted(BTreeMap<String, Figures>);

/// What a guest prints at last.
#[derive(Debug, Deserialize)]
struct Measured {
    figures: Figures,
}

/// Reads what a guest has said.
pub fn read(said: &str) -> Option<Figures> {
    let line = said.lines().rev().find(|line| line.starts_with('{'))?;
    Some(serde_json::from_str::<Measured>(line).ok()?.figures)
}

impl Accepted {
    /// Reads the file; one that is not there accepts nothing.
    pub fn read() -> Result<Self> {
        let path = path();
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("understand {}", path.display()))
    }

    /// Writes the file.
    pub fn write(&self) -> Result<()> {
        let head = "# Instructions per packet that are accepted, by kernel: see `cargo xtask vm --icount`,\n\
                    # which fails above +2 %. Written by `cargo xtask vm --icount --accept`.\n\n";
        let path = path();
        let text = toml::to_string(self).context("write figures")?;
        fs::write(&path, format!("{head}{text}"))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Accepts what was measured.
    pub fn take(&mut self, outcome: &Outcome) {
        if let (Some(kernel), Some(figures)) = (&outcome.kernel, &outcome.figures) {
            let rounded = figures.iter().map(|(name, value)| (name.clone(), rounded(*value)));
            self.0.insert(key(kernel), rounded.collect());
        }
    }

    /// Holds what was measured against what is accepted for this kernel.
    pub fn judge(&self, kernel: &Kernel, figures: &Figures) -> Verdict {
        let Some(accepted) = self.0.get(&key(kernel)) else {
            let known = self.0.keys().cloned().collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "no kernel".to_owned() } else { known };
            return Verdict::Passed(format!(
                "measured, compared with nothing: none are accepted for {}, but for {known}\n{}",
                key(kernel),
                table(figures, &Figures::new())
            ));
        };
        let is_worse = |(name, value): &(&String, &f64)| {
            let limit = |accepted: f64| accepted + accepted.max(LEAST) * GROWTH;
            !PEERS.contains(&name.as_str())
                && accepted.get(*name).is_some_and(|&accepted| **value > limit(accepted))
        };
        let worse: Vec<&str> = figures.iter().filter(is_worse).map(|(name, _)| &**name).collect();
        let missing = accepted.keys().filter(|name| !figures.contains_key(*name));
        let wrong: Vec<&str> = worse.into_iter().chain(missing.map(String::as_str)).collect();
        let table = table(figures, accepted);
        if wrong.is_empty() {
            Verdict::Passed(format!("no figure is more than 2 % above the accepted one\n{table}"))
        } else {
            Verdict::Failed(format!(
                "more than 2 % above what is accepted, or not measured: {}\n{table}",
                wrong.join(", ")
            ))
        }
    }
}

fn path() -> PathBuf {
    root().join("xtask/instructions.toml")
}

/// Two packages of one release are two kernels.
fn key(kernel: &Kernel) -> String {
    format!("{} ({})", kernel.release, kernel.version)
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// A line for each figure: what it is, what is accepted, the difference.
fn table(figures: &Figures, accepted: &Figures) -> String {
    let mut table =
        format!("{:<40} {:>9} {:>9}\n", "instructions per packet", "measured", "accepted");
    for (name, value) in figures {
        let beside = accepted.get(name).map_or(String::new(), |accepted| {
            format!(" {accepted:>9.1} {:>+6.1} %", (value / accepted - 1.0) * 100.0)
        });
        // A String takes all that is written.
        let _ = writeln!(table, "{name:<40} {value:>9.1}{beside}");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(version: &str) -> Kernel {
        Kernel {
            release: "6.12.1".into(),
            version: version.into(),
            image: PathBuf::new(),
            modules: PathBuf::new(),
            directory: PathBuf::new(),
        }
    }

    fn figures(l2: f64) -> Figures {
        Figures::from([("l2".to_owned(), l2), ("pass".to_owned(), 10.0)])
    }

    fn accepted() -> Accepted {
        Accepted(BTreeMap::from([("6.12.1 (1)".to_owned(), figures(1000.0))]))
    }

    #[test]
    fn what_costs_two_per_cent_more_fails() {
        let judge = |l2| accepted().judge(&kernel("1"), &figures(l2));
        for fine in [1000.0, 1019.0, 700.0] {
            assert!(matches!(judge(fine), Verdict::Passed(_)), "{fine}");
        }
        let Verdict::Failed(why) = judge(1021.0) else { panic!("more than 2 %") };
        assert!(why.contains("not measured: l2\n"), "{why}");
    }

    #[test]
    fn others_may_cost_what_they_do() {
        let with_peer = |cost| {
            let mut figures = figures(1000.0);
            figures.extend(PEERS.map(|name| (name.to_owned(), cost)));
            figures
        };
        let accepted = Accepted(BTreeMap::from([("6.12.1 (1)".to_owned(), with_peer(5300.0))]));
        let verdict = accepted.judge(&kernel("1"), &with_peer(5500.0));
        let Verdict::Passed(told) = verdict else { panic!("{verdict:?}") };
        assert!(told.contains("+3.8 %"), "{told}");
        let gone = accepted.judge(&kernel("1"), &figures(1000.0));
        assert!(matches!(gone, Verdict::Failed(_)), "{gone:?}");
    }

    #[test]
    fn a_figure_that_is_gone_fails() {
        let mut measured = figures(1000.0);
        measured.remove("pass");
        assert!(matches!(accepted().judge(&kernel("1"), &measured), Verdict::Failed(_)));
    }

    #[test]
    fn another_kernels_figures_are_not_compared() {
        let Verdict::Passed(told) = accepted().judge(&kernel("2"), &figures(9999.0)) else {
            panic!("nothing to compare with")
        };
        assert!(told.contains("compared with nothing"), "{told}");
    }

    #[test]
    fn a_guests_last_line_is_read() {
        let said =
            "program says\n{\"kernel\":\"6.12.1\",\"figures\":{\"l2\":1000.0,\"pass\":10}}\n";
        assert_eq!(read(said), Some(figures(1000.0)));
        assert_eq!(read("error: no\n"), None);
    }

    #[test]
    fn the_file_in_the_repository_is_understood() {
        Accepted::read().unwrap();
    }
}
