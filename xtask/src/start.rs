//! Building what there is, and starting it: the release binary, the tests, churn, demo and bench.
//!
//! What loads programs into the kernel must be root. The build is not done as root for that: only
//! the built program is started by `sudo`.

use std::{env, fs, path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    process::{Root, captured, cargo, exec, run, target_dir},
    setup::{self, Purpose},
};

/// Tells tests, churn, demo and bench which binary they are about.
const SLUICE_BIN: &str = "SLUICE_BIN";

/// The crate of everything that needs root.
const PRIVILEGED: &str = "sluice-tests";

/// Builds the release binary.
pub fn build() -> Result<()> {
    setup::ensure(&[Purpose::Build])?;
    println!("build: the kernel program, and the daemon with it …");
    run(&mut cargo(&["build", "--release", "--package", "lb-userspace", "--bin", "sluice"]))?;
    let sluice = built("release", "sluice");
    let bytes = fs::metadata(&sluice).with_context(|| format!("find {}", sluice.display()))?.len();
    println!("build: {} ({:.1} MB)", sluice.display(), bytes as f64 / 1e6);
    Ok(())
}

/// Runs the tests whose names contain one of `filters` (all, if there is none).
///
/// In the dev profile: it compiles in a third of the time, and the kernel program in it is the
/// same as in a release.
pub fn test(filters: &[String], harness: &[String]) -> Result<()> {
    let root = Root::here();
    let purposes = [Purpose::Build, Purpose::Run];
    setup::ensure(if root == Root::No { &purposes[..1] } else { &purposes })?;

    // The tests of one crate start the binary of another, which `cargo test` does not build.
    run(&mut cargo(&["build", "--workspace", "--bin", "sluice"]))?;
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    tests.env(SLUICE_BIN, built("debug", "sluice"));
    match root {
        Root::Already => {}
        Root::BySudo => {
            println!("test: not root, so the tests are started by sudo");
            tests.args(["--config", "target.'cfg(unix)'.runner = ['sudo', '--preserve-env']"]);
        }
        Root::No if env::var("CI").is_ok_and(|ci| ci == "true") => {
            bail!("CI must run the tests of {PRIVILEGED}, which need root: run it as root");
        }
        Root::No => {
            tests.args(["--exclude", PRIVILEGED]);
        }
    }
    tests.arg("--").args(filters).args(harness);
    let tested = run(&mut tests);
    if root == Root::No {
        println!(
            "test: {PRIVILEGED} skipped: golden frames, agreement and network namespaces need \
             root (or sudo)"
        );
    }
    tested
}

/// Builds these tests and programs as [`test`] does; the name of each, and where it is.
pub fn tests(names: &[&str], programs: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    run(cargo(&["build", "--workspace"]).args(programs.iter().flat_map(|name| ["--bin", name])))?;
    let mut build = cargo(&["test", "--workspace", "--no-run"]);
    build.args(names.iter().flat_map(|name| ["--test", name]));
    build.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let messages = captured(&mut build)?;
    let program = |name: &&str| ((*name).to_owned(), built("debug", name));
    let mut found: Vec<_> = programs.iter().map(program).collect();
    for name in names {
        let of_line = |line: &str| executable(line, name);
        let path = messages.lines().find_map(of_line);
        found.push((
            (*name).to_owned(),
            path.with_context(|| format!("cargo has built no tests {name}"))?,
        ));
    }
    Ok(found)
}

/// The executable in one of cargo's messages, if it is of the integration tests `name`.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_meant = target["name"] == name && target["kind"][0] == "test";
    is_meant.then(|| message["executable"].as_str().map(PathBuf::from))?
}

/// Builds a program of the privileged crate, and becomes it.
pub fn program(name: &str, arguments: &[String]) -> Result<()> {
    setup::ensure(&[Purpose::Build, Purpose::Run])?;
    // Not among the lines that a script reads.
    eprintln!("{name}: building (release) …");
    run(&mut cargo(&[
        "build",
        "--release",
        "--package",
        "lb-userspace",
        "--package",
        PRIVILEGED,
        "--bin",
        "sluice",
        "--bin",
        name,
    ]))?;
    let mut command = Root::here().command(&built("release", name), &[SLUICE_BIN])?;
    command.args(arguments).env(SLUICE_BIN, built("release", "sluice"));
    match exec(command)? {}
}

/// Where cargo puts a program.
fn built(profile: &str, name: &str) -> PathBuf {
    target_dir().join(profile).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_is_taken_from_the_message_about_its_tests() {
        let message = |kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"golden"}},"executable":"/t/golden-1"}}"#
            )
        };
        assert_eq!(executable(&message("test"), "golden"), Some("/t/golden-1".into()));
        assert_eq!(executable(&message("bin"), "golden"), None);
        assert_eq!(executable(&message("test"), "agreement"), None);
        assert_eq!(executable("Compiling", "golden"), None);
    }
}
