//! Builds the kernel programs and puts them, as `NAME.o`, where `include_bytes!` finds them:
//! `concat!(env!("OUT_DIR"), "/sluice.o")`. The objects are never committed.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use xtask::bpf::{BuildError, Toolchain};

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        // One sentence: cargo prints this line and nothing of what a failed script printed.
        Err(BuildError::Missing(missing)) => {
            println!("cargo::error={missing}");
            ExitCode::SUCCESS
        }
        // Many lines: cargo prints all that a failed script printed.
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), BuildError> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let package = root.join("lb-ebpf");
    for input in [
        "lb-ebpf/src",
        "lb-ebpf/Cargo.toml",
        "lb-ebpf/Cargo.lock",
        "lb-common/src",
        "lb-common/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    let toolchain = Toolchain::find().map_err(BuildError::Missing)?;
    for tool in toolchain.files() {
        println!("cargo::rerun-if-changed={}", tool.display());
    }

    let out = PathBuf::from(variable("OUT_DIR")?);
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let features: &[&str] = if cfg!(feature = "kernel-log") { &["log"] } else { &[] };
    // A target directory of its own: the outer cargo holds the lock of the other one.
    for object in toolchain.build(&package, &out.join("lb-ebpf"), &arch, features)? {
        let name = object.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let embedded = out.join(format!("{name}.o"));
        fs::copy(&object, &embedded)
            .map_err(|e| BuildError::Io(format!("write {}", embedded.display()), e))?;
        // For the build scripts of those that depend on us: `DEP_SLUICE_PROGRAMS_NAME`.
        println!("cargo::metadata={name}={}", embedded.display());
    }
    Ok(())
}

/// A variable that cargo sets for build scripts.
fn variable(name: &str) -> Result<String, BuildError> {
    env::var(name).map_err(|e| BuildError::Io(format!("read ${name}"), io::Error::other(e)))
}
