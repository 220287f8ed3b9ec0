//! What bytes from outside may do to Sluice: nothing but what is defined.
//!
//! Each of the [`targets`] takes any bytes and panics if what must be true of them is not. libFuzzer
//! drives them for as long as one likes (`cargo xtask fuzz`, by `fuzz_targets/`); the tests of this
//! crate drive the same functions for a moment, over the same seeds, the finds of earlier runs and
//! [mutations](mutate()) that are the same on every machine.
//!
//! Seeds have names, which say what is odd about them. Texts lie in `seeds/`, one file each; frames
//! are made from the corpus and the sample instance of `lb_common::host`. What libFuzzer kept because
//! it reached something new lies in `corpus/`. What broke something is a seed, with a name and a
//! line in `seeds/README.md` on what it broke.

pub mod frames;
mod mutation;
mod reader;
pub mod targets;

use std::{fs, io, path::PathBuf};

pub use mutation::mutate;

/// A fuzz target.
pub struct Target {
    /// As `cargo xtask fuzz` knows it.
    pub name: &'static str,
    /// Takes any bytes, and panics if what must be true of them is not.
    pub run: fn(&[u8]),
    /// Bytes to begin with that are made by code.
    made: fn() -> Vec<Seed>,
}

/// Bytes to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// What is in them.
    pub name: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "steer", run: targets::steer::run, made: targets::steer::seeds },
    Target { name: "icmp", run: targets::icmp::run, made: targets::icmp::seeds },
    Target { name: "forward", run: targets::forward::run, made: targets::forward::seeds },
    Target { name: "config", run: targets::config::run, made: Vec::new },
    Target { name: "control", run: targets::control::run, made: Vec::new },
    Target { name: "probe", run: targets::probe::run, made: targets::probe::seeds },
    Target { name: "state", run: targets::state::run, made: Vec::new },
];

impl Target {
    /// The seeds: those that are made, and those that lie in files.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn seeds(&self) -> io::Result<Vec<Seed>> {
        let mut seeds = (self.made)();
        seeds.extend(files("seeds", self.name)?);
        Ok(seeds)
    }

    /// What libFuzzer kept of earlier runs.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn corpus(&self) -> io::Result<Vec<Seed>> {
        files("corpus", self.name)
    }
}

/// The files of a target, sorted by name; none, if there is no directory.
fn files(kind: &str, target: &str) -> io::Result<Vec<Seed>> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(kind).join(target);
    let mut seeds = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(seeds),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        seeds.push(Seed { name, bytes: fs::read(path)? });
    }
    seeds.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seeds)
}
