//! `cargo xtask test churn`: every change, under a thousand long connections and new ones all
//! the time, by each mode, over each family. What breaks is counted, and must be nothing.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use sluice_tests::{
    churn::{self, Change, Mode, Plan, Report, Table, WAYS},
    lab::{Family, is_root, sluice_binary},
};

/// Makes every change that should break no connection, under long connections whose every byte is
/// checked, and new ones all the time; prints how many broke. Needs root. Exits with 1 if any did.
#[derive(Parser)]
struct Arguments {
    /// Only these, by words in the change's name, the mode or the family: `drain l2 ipv6`.
    filters: Vec<String>,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
    /// Long connections in each case; at least 4096 where the flow table is too small.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    flows: u64,
    /// What `cargo xtask test` does: 100 long connections, three ways, no death.
    #[arg(long)]
    short: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !is_root() {
        eprintln!("churn makes network namespaces and loads XDP programs: run it as root (sudo)");
        return ExitCode::FAILURE;
    }
    match suffer(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("churn: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn suffer(arguments: &Arguments) -> Result<bool> {
    sluice_binary()?;
    let plan = plan(arguments)?;
    let report = churn::run(&plan, |case| eprintln!("{case}"))?;
    show(arguments, &report)?;
    Ok(report.is_flawless())
}

fn plan(arguments: &Arguments) -> Result<Plan> {
    let mut plan = if arguments.short {
        Plan::short()
    } else {
        Plan { flows: arguments.flows, changes: Change::ALL.to_vec(), ways: WAYS.to_vec() }
    };
    let modes = [Mode::L2, Mode::Ipip, Mode::Nat].map(Mode::name);
    let families = [Family::V4, Family::V6].map(Family::name);
    let (ways, names): (Vec<_>, Vec<_>) = arguments
        .filters
        .iter()
        .map(String::as_str)
        .partition(|word| modes.contains(word) || families.contains(word));
    plan.ways.retain(|(mode, family)| {
        let meant = |all: &[&str], one: &str| {
            let mut said = ways.iter().filter(|word| all.contains(word)).peekable();
            said.peek().is_none() || said.any(|word| *word == one)
        };
        meant(&modes, mode.name()) && meant(&families, family.name())
    });
    plan.changes
        .retain(|change| names.is_empty() || names.iter().any(|word| change.name().contains(word)));
    if plan.changes.is_empty() || plan.ways.is_empty() {
        let all = Change::ALL.map(Change::name).join(", ");
        bail!("nothing is left to do; there are {all}; l2, ipip, nat; ipv4, ipv6");
    }
    Ok(plan)
}

fn show(arguments: &Arguments, report: &Report) -> Result<()> {
    println!("\n{}", Table(report));
    if arguments.json {
        println!("{}", serde_json::to_string(report)?);
    }
    Ok(())
}
