//! Writes the seeds of a target, those that are made by code too, into a directory: libFuzzer wants
//! files. An example, because cargo-fuzz takes each program for a target.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(name), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: seeds TARGET DIRECTORY".into());
    };
    let directory = PathBuf::from(directory);
    fs::create_dir_all(&directory)?;
    let mut targets = sluice_fuzz::TARGETS.iter();
    let target = targets.find(|target| target.name == name).ok_or("no such target")?;
    for seed in target.seeds()? {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-.,".contains(c) { c } else { '_' };
        let name: String = seed.name.chars().map(plain).collect();
        fs::write(directory.join(name), seed.bytes)?;
    }
    Ok(())
}
