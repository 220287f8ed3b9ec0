//! The object file of the program that runs, kept in the state directory: a pinned program can
//! be run, but not on other maps than its own, and a rehearsal must not touch the live ones.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use crate::{datapath::load, instance::Instance};

fn directory(instance: &Instance) -> PathBuf {
    instance.state().join("programs")
}

fn path(instance: &Instance, object_id: u64) -> PathBuf {
    directory(instance).join(format!("{object_id:016x}.o"))
}

/// Keeps the object file that runs from now on, and no other. Without it the next upgrade's
/// rehearsal has less to compare with, which is no reason to stop.
pub fn keep(instance: &Instance, object: &[u8]) {
    let path = path(instance, load::object_id(object));
    if !path.exists()
        && let Err(error) = write(&path, object)
    {
        tracing::warn!("can't keep the program's object file in {}: {error}", path.display());
        return;
    }
    for entry in fs::read_dir(directory(instance)).into_iter().flatten().flatten() {
        if entry.path() != path {
            // It costs a little disk.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whole or not at all. Not flushed: it serves the instance that runs, which a power cut ends.
fn write(path: &std::path::Path, object: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let beside = path.with_extension("new");
    fs::File::create(&beside)?.write_all(object)?;
    fs::rename(beside, path)
}

/// The kept object file with this id, if it is what it says.
pub fn find(instance: &Instance, object_id: u64) -> Option<Vec<u8>> {
    let object = fs::read(path(instance, object_id)).ok()?;
    (load::object_id(&object) == object_id).then_some(object)
}
