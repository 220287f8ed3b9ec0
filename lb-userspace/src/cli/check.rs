//! `sluice check`: is this file valid, and what would it not get?

use std::{path::Path, process::ExitCode};

use anyhow::bail;
use serde::Serialize;

use super::{Output, figures::plural};
use crate::{config, model::Desired, network};

/// What was found.
#[derive(Serialize)]
struct Checked {
    file: String,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    services: usize,
    backends: usize,
    warnings: Vec<String>,
}

/// Prints what a file holds and lacks; with `--json` an invalid one is told there too.
pub fn check(file: &Path, output: &Output) -> anyhow::Result<ExitCode> {
    let checked = checked(file);
    match &checked.error {
        Some(error) if !output.json => bail!("{error}"),
        _ => output.print(&checked, |checked, _| text(checked))?,
    }
    Ok(if checked.valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn checked(file: &Path) -> Checked {
    let mut checked = Checked {
        file: file.display().to_string(),
        valid: false,
        error: None,
        services: 0,
        backends: 0,
        warnings: Vec::new(),
    };
    match config::load(file) {
        Ok(desired) => {
            checked.valid = true;
            checked.services = desired.services.len();
            checked.backends = desired.services.iter().map(|service| service.backends.len()).sum();
            checked.warnings = config::warnings(&desired);
            checked.warnings.extend(port_clash(&desired));
        }
        Err(error) => checked.error = Some(format!("{:#}", anyhow::Error::from(error))),
    }
    checked
}

/// What keeps this host from running the file. It may be meant for another host, whose ports are not
/// known here: so it is a warning.
fn port_clash(desired: &Desired) -> Option<String> {
    let clash = network::port_clash(desired.dataplane.nat_ports).ok().flatten();
    clash.filter(|_| desired.replaces_clients()).map(|clash| clash.to_string())
}

fn text(checked: &Checked) -> String {
    let (services, backends) = (checked.services as u64, checked.backends as u64);
    let mut text = format!(
        "{} is valid: {}, {}\n",
        checked.file,
        plural(services, "service"),
        plural(backends, "backend"),
    );
    for warning in &checked.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../sluice.example.toml");

    #[test]
    fn a_valid_file_is_summed_up_with_warnings() {
        let checked = checked(Path::new(EXAMPLE));
        assert!(checked.valid && checked.error.is_none());
        assert_eq!(
            text(&checked).replace(EXAMPLE, "FILE"),
            "FILE is valid: 3 services, 6 backends\n"
        );
    }

    #[test]
    fn an_invalid_file_is_an_error_or_json_that_says_so() {
        let file = Path::new("/nonexistent");
        let expected = "read /nonexistent: No such file or directory (os error 2)";
        let error = check(file, &Output { json: false }).expect_err("there is no such file");
        assert_eq!(format!("{error:#}"), expected);
        let json = serde_json::to_value(checked(file)).expect("JSON");
        assert_eq!((&json["valid"], &json["error"]), (&false.into(), &expected.into()));
    }
}
