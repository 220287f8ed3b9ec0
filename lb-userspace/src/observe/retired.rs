//! Frames that were sent to backends which are gone, so that the sum of all verdicts never falls,
//! also when the daemon starts again: `retired.json` in the state directory.
//!
//! They belong to one map of counters, which has gone after a reboot or `sluice detach`; then the
//! file means nothing. Losing it makes the sum fall once.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::whole_file;

/// Its name in the state directory.
const FILE: &str = "retired.json";
/// Differs after each start of the machine.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// How many they are.
#[derive(Debug)]
pub struct Retired {
    path: PathBuf,
    kept: Kept,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Since when the kernel runs.
    boot: String,
    /// Id of the map that their backends were counted in.
    map: u32,
    packets: u64,
}

impl Retired {
    /// Those of backends that were counted in the map with this id.
    pub fn restore(directory: &Path, map: u32) -> Self {
        let boot = fs::read_to_string(BOOT).unwrap_or_default().trim().to_owned();
        let path = directory.join(FILE);
        let none = Kept { boot, map, packets: 0 };
        let kept = read(&path).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!("can't read {}: {error}", path.display());
            }
            none.clone()
        });
        let is_ours = (&kept.boot, kept.map) == (&none.boot, none.map);
        Self { path, kept: if is_ours { kept } else { none } }
    }

    /// How many frames.
    pub const fn packets(&self) -> u64 {
        self.kept.packets
    }

    /// Backends are gone to which so many were sent. On a full disk they are known until the
    /// daemon ends.
    pub fn add(&mut self, packets: u64) {
        if packets == 0 {
            return;
        }
        self.kept.packets += packets;
        let bytes = serde_json::to_vec(&self.kept).map_err(io::Error::from);
        if let Err(error) = bytes.and_then(|bytes| whole_file::write(&self.path, &bytes)) {
            tracing::warn!("can't write {}: {error}", self.path.display());
        }
    }
}

/// Forgets them.
///
/// # Errors
/// If the file can't be removed.
pub fn forget(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> io::Result<Kept> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_back_with_their_map_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let restored = |map| Retired::restore(directory.path(), map).packets();
        assert_eq!(restored(7), 0);
        let mut retired = Retired::restore(directory.path(), 7);
        retired.add(5);
        retired.add(6);
        assert_eq!((restored(7), restored(8)), (11, 0));
        fs::write(directory.path().join(FILE), b"{\"packets\":7}").expect("written");
        assert_eq!(restored(7), 0);
        forget(directory.path()).expect("removed");
        forget(directory.path()).expect("nothing is there");
    }

    #[test]
    fn those_of_before_a_reboot_are_nobodys() {
        let directory = tempfile::tempdir().expect("a directory");
        let before = Kept { boot: "another".to_owned(), map: 7, packets: 5 };
        let bytes = serde_json::to_vec(&before).expect("JSON");
        fs::write(directory.path().join(FILE), bytes).expect("written");
        assert_eq!(Retired::restore(directory.path(), 7).packets(), 0);
    }
}
