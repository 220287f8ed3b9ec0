//! `sluice doctor`.

use std::process::ExitCode;

use super::{
    Output,
    render::steps,
    table::{Cell, Palette, Side, Table, Tone},
};
use crate::{
    control::client::Client,
    doctor::{self, Report, Severity},
};

/// Looks at everything; 1 if something is wrong.
pub async fn execute(client: &Client, output: &Output) -> anyhow::Result<ExitCode> {
    let report = doctor::examine(client).await?;
    output.print(&report, render)?;
    Ok(if report.well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(report: &Report, palette: Palette) -> String {
    let columns = [("WHAT", Side::Left), ("STATE", Side::Left), ("FOUND", Side::Left)];
    let mut table = Table::new(&columns);
    for finding in &report.findings {
        let state = match finding.severity {
            Severity::Well => Cell::toned(Tone::Good, "well"),
            Severity::Doubt => Cell::toned(Tone::Doubtful, "doubt"),
            Severity::Wrong => Cell::toned(Tone::Bad, "WRONG"),
        };
        table.row([finding.about.as_str().into(), state, finding.says.as_str().into()]);
        for step in finding.mend.iter().flat_map(|mend| steps(mend)) {
            table.row(["".into(), "".into(), format!("-> {step}").into()]);
        }
    }
    table.render(palette)
}
