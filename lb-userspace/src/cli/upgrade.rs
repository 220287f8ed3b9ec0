//! `sluice upgrade`: works on the pins, like `detach`, beside a daemon or without one.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::task::block_in_place;

use super::{Output, print};
use crate::{
    control::api::EventKind,
    datapath::{
        self, OBJECT,
        upgrade::{Options, Outcome, upgrade},
    },
    instance::Instance,
    journal::{Entry, Journal},
};

/// What can be chosen.
#[derive(Args)]
pub struct Arguments {
    /// Watch the new program for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: u64,
    /// Swap even if the rehearsal shows other answers than before; the watch still rolls back
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: Output,
}

/// Upgrades, and tells step by step what it does; with `--json` only what became of it.
pub fn execute(arguments: &Arguments, instance: &Instance) -> anyhow::Result<ExitCode> {
    datapath::preflight()?;
    let Arguments { watch, force, output } = arguments;
    let options = Options { watch: Duration::from_secs(*watch), force: *force };
    // A reader who is gone does not stop it half-way.
    let mut say = |line: &str| {
        if !output.json {
            let _ = print(format!("{line}\n").as_bytes());
        }
    };
    let report = block_in_place(|| upgrade(instance, OBJECT, &options, &mut say))?;
    if report.result != Outcome::Unchanged {
        let entry = Entry::new(report.sentence());
        Journal::of(&instance.state()).note(EventKind::Upgrade, entry);
    }
    if output.json {
        let mut json = serde_json::to_vec(&report).context("write JSON")?;
        json.push(b'\n');
        print(&json)?;
    }
    let failed = match report.result {
        Outcome::Upgraded | Outcome::Unchanged => return Ok(ExitCode::SUCCESS),
        Outcome::Refused => "refused, the program that ran runs on",
        Outcome::RolledBack => "rolled back to the program that ran before",
    };
    if output.json {
        return Ok(ExitCode::FAILURE);
    }
    bail!("{failed}: {}", report.reason.unwrap_or_default())
}
