//! `cargo xtask check`: what CI runs, apart from the tests.
//!
//! Every step runs even if one before it failed, so that one run tells all.

use std::{env::consts::ARCH, process::Command, time::Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use xtask::bpf::Toolchain;

use crate::{
    process::{cargo, root, run, target_dir},
    setup::{self, Purpose},
};

/// The two workspaces: the daemon's, and the kernel program's.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "lb-ebpf/Cargo.toml"];

/// What became of a step that did not fail.
enum Done {
    Passed,
    /// It could not be run, and why. It says nothing about the code.
    NotRun(&'static str),
}

type Step = (&'static str, fn() -> Result<Done>);

/// Runs every step, and fails if one did.
pub fn check() -> Result<()> {
    setup::ensure(&[Purpose::Build, Purpose::Check])?;
    let steps: [Step; 6] = [
        ("format", || {
            both(|manifest| cargo(&["fmt", "--all", "--check", "--manifest-path", manifest]))
        }),
        ("clippy", clippy),
        ("clippy, kernel program", clippy_bpf),
        ("docs", docs),
        ("licences, bans, sources", || {
            both(|manifest| deny(manifest, &["check", "licenses", "bans", "sources"]))
        }),
        ("advisories", advisories),
    ];
    let mut failed = Vec::new();
    let mut summary = String::new();
    for (name, step) in steps {
        println!("check: {name} …");
        let start = Instant::now();
        let end = match step() {
            Ok(Done::Passed) => format!("passed ({:.0?})", start.elapsed()),
            Ok(Done::NotRun(why)) => format!("not run: {why}"),
            Err(error) => {
                failed.push(name);
                format!("FAILED: {error:#}")
            }
        };
        summary += &format!("check: {name}: {end}\n");
    }
    print!("{summary}");
    if failed.is_empty() { Ok(()) } else { bail!("check failed: {}", failed.join("; ")) }
}

/// Runs a command for each workspace.
fn both(command: impl Fn(&'static str) -> Command) -> Result<Done> {
    for manifest in MANIFESTS {
        run(&mut command(manifest))?;
    }
    Ok(Done::Passed)
}

fn clippy() -> Result<Done> {
    // With the feature that nothing else builds, or nobody would see it break.
    run(cargo(&["clippy", "--workspace", "--all-targets", "--keep-going"])
        .args(["--features", "lb-userspace/kernel-log"])
        .args(["--", "-D", "warnings"]))?;
    Ok(Done::Passed)
}

fn clippy_bpf() -> Result<Done> {
    let toolchain = Toolchain::find().map_err(|missing| anyhow!("{missing}"))?;
    let target = target_dir().join("lb-ebpf-clippy");
    run(&mut toolchain.clippy(&root().join("lb-ebpf"), &target, ARCH, &["-D", "warnings"]))?;
    Ok(Done::Passed)
}

fn docs() -> Result<Done> {
    run(cargo(&["doc", "--workspace", "--no-deps", "--keep-going"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Done::Passed)
}

/// Known faults in dependencies. The database is a git repository elsewhere; where it cannot be
/// reached, nobody has looked, and we don't say that somebody has.
fn advisories() -> Result<Done> {
    let fetched = deny(MANIFESTS[0], &["fetch", "db"]).output().context("run cargo deny")?;
    if !fetched.status.success() {
        return Ok(Done::NotRun("the database is out of reach (`cargo deny fetch db`)"));
    }
    both(|manifest| deny(manifest, &["check", "--disable-fetch", "advisories"]))
}

fn deny(manifest: &str, arguments: &[&str]) -> Command {
    let mut deny = cargo(&["deny", "--manifest-path", manifest, "--workspace"]);
    deny.args(arguments);
    deny
}
