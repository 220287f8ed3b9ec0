//! The one way in: `cargo xtask setup | build | check | test | fuzz | demo | bench | vm`.
//!
//! Each command first makes sure that what it needs is installed ([`setup`]). Exit codes: 0 done,
//! 1 failed, 2 wrong usage; `test churn`, `demo` and `bench` end with their program's own.

mod check;
mod fuzz;
mod process;
mod setup;
mod start;
mod vm;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Sluice's one way in: set up the machine, build, check, test, show, measure.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the other commands need, on Debian 12 or 13.
    ///
    /// The compiler for the kernel program, bpf-linker, cargo-deny, the programs that tests and
    /// demo start (nginx among them, which is not started as a service), and the BPF filesystem
    /// at /sys/fs/bpf. Asks nothing, uses sudo if you are not root, and does nothing twice. On
    /// another system it says what is missing and how to get it, and exits 1.
    Setup,
    /// Build the release binary target/release/sluice, the kernel program in it.
    Build,
    /// Run what CI runs apart from tests: format, lints, docs, licences, advisories.
    ///
    /// For the host and for the kernel program. All steps run; the end says which failed, and
    /// which could not be run.
    Check,
    /// Run the tests: unit, property, golden frames, agreement, network namespaces, docs.
    ///
    /// Those that load programs into the kernel need root: without it (nor sudo) they are
    /// skipped, by name; with CI=true that is a failure.
    #[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
    Test {
        #[command(subcommand)]
        suite: Option<Suite>,
        /// Run only tests whose name contains one of these words.
        filters: Vec<String>,
        /// Arguments for the test harness, as --nocapture or --test-threads=1.
        #[arg(last = true)]
        harness: Vec<String>,
    },
    /// Let libFuzzer look for bytes from outside that do what is not defined.
    ///
    /// Targets: frames (steer, icmp, forward), config, requests to the control socket (control),
    /// servers' answers to probes (probe), state.json (state). A short run over the same seeds is
    /// among the tests. What is found stays in target/fuzz/TARGET/found, and makes the exit code 1.
    Fuzz {
        /// Only this one.
        target: Option<String>,
        /// How long each target runs.
        #[arg(long, value_name = "N", default_value_t = 60,
              value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
        /// End with one line of JSON for a script.
        #[arg(long)]
        json: bool,
    },
    /// Show it: clients, balancer and backends in network namespaces, as root.
    ///
    /// Arguments go to the demo: --json ends it with one line for a script. `cargo xtask demo --
    /// --help` tells the others.
    Demo {
        /// Arguments for the demo.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the tests on the kernels that are claimed, in virtual machines.
    ///
    /// Golden frames, agreement, and a smoke of network namespaces (attached to the driver and in
    /// generic mode, every way of forwarding, on virtio_net too, adopt, upgrade, detach), under
    /// Debian's kernels, which are fetched and kept in target/vm. A kernel that can't be had is "not
    /// run"; one below 6.1 passes if the program refuses it and says why. Needs no root and no
    /// /dev/kvm: everything is emulated, and takes some minutes for each kernel.
    Vm(vm::Request),
    /// Measure it: nanoseconds per packet in the kernel, as root.
    ///
    /// Arguments go to the bench: --json ends it with one line for a script. `cargo xtask bench
    /// -- --help` tells the others.
    Bench {
        /// Arguments for the bench.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// Make every change under a thousand long connections, and count those that break.
    ///
    /// As root, some minutes; a short form is among the other tests. Arguments go to the program:
    /// --json ends it with one line for a script. `cargo xtask test churn -- --help` tells the
    /// others.
    Churn {
        /// Arguments for the program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match perform(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::setup(),
        Task::Build => start::build(),
        Task::Check => check::check(),
        Task::Test { suite: Some(Suite::Churn { arguments }), .. } => {
            start::program("churn", &arguments)
        }
        Task::Test { suite: None, filters, harness } => start::test(&filters, &harness),
        Task::Fuzz { target, seconds, json } => {
            fuzz::fuzz(target.as_deref(), Duration::from_secs(seconds.into()), json)
        }
        Task::Demo { arguments } => start::program("demo", &arguments),
        Task::Vm(request) => vm::vm(&request),
        Task::Bench { arguments } => start::program("bench", &arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_of_the_demo_are_not_ours() {
        let cli = Cli::try_parse_from(["xtask", "demo", "--json", "--seconds", "3"]).unwrap();
        let Task::Demo { arguments } = cli.command else { panic!("{cli:?}") };
        assert_eq!(arguments, ["--json", "--seconds", "3"]);
    }

    #[test]
    fn filters_and_harness_arguments_are_told_apart() {
        let cli = Cli::try_parse_from(["xtask", "test", "flow", "--", "--nocapture"]).unwrap();
        let Task::Test { suite: None, filters, harness } = cli.command else { panic!("{cli:?}") };
        assert_eq!((filters, harness), (vec!["flow".into()], vec!["--nocapture".into()]));
    }

    #[test]
    fn churn_is_a_program_of_its_own() {
        let cli = Cli::try_parse_from(["xtask", "test", "churn", "--json", "drain"]).unwrap();
        let Task::Test { suite: Some(Suite::Churn { arguments }), .. } = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(arguments, ["--json", "drain"]);
    }
}
