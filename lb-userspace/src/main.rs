//! The binary `sluice`: daemon and CLI.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}
