//! Files that are there whole or not at all.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Writes a file beside the one that is there, flushes it, renames it, and flushes the directory:
/// whoever reads it, and whenever the power goes, there is the old one or the new. Mode 0600; the
/// directory is made.
///
/// # Errors
/// If the disk is full or can't be written: then the old one is still there, whole.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        // On a full disk the half of it would only take room.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    fs::File::open(directory)?.sync_all()
}
