//! What was seen of the backends, on disk: `health.json`, so that a daemon that starts again goes
//! on with it, as stale, until its first probes. Losing it costs no more than that.

use std::{collections::BTreeMap, fs, io, net::SocketAddr, path::Path};

use serde::{Deserialize, Serialize};

use super::{Kept, State};
use crate::{
    model::{Identity, Vip},
    whole_file,
};

/// Its name in the state directory.
const FILE: &str = "health.json";
/// Of this file's shape.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    backends: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    vip: Vip,
    backend: SocketAddr,
    #[serde(flatten)]
    kept: Kept,
}

/// What an earlier daemon saw; nothing, and a line in the log, if it can't be read.
pub fn read(directory: &Path) -> BTreeMap<Identity, Kept> {
    let path = directory.join(FILE);
    let read = fs::read(&path).and_then(|bytes| {
        let file: File = serde_json::from_slice(&bytes)?;
        if file.version != VERSION {
            return Err(io::Error::other(format!("it has version {}", file.version)));
        }
        Ok(file.backends.into_iter().map(|line| ((line.vip, line.backend), line.kept)).collect())
    });
    read.unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!("can't read {}: {error}; every backend is probed anew", path.display());
        }
        BTreeMap::new()
    })
}

/// Keeps what is known.
///
/// # Errors
/// If the disk can't be written; what was kept before is still there.
pub fn write(directory: &Path, kept: &BTreeMap<Identity, Kept>) -> io::Result<()> {
    let known = kept.iter().filter(|(_, kept)| kept.state != State::Unknown);
    let backends =
        known.map(|((vip, backend), kept)| Line { vip: *vip, backend: *backend, kept: *kept });
    let file = File { version: VERSION, backends: backends.collect() };
    whole_file::write(&directory.join(FILE), &serde_json::to_vec(&file)?)
}

/// Forgets it.
///
/// # Errors
/// If the file can't be removed.
pub fn forget(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Moment;

    #[test]
    fn what_is_known_comes_back_and_damage_costs_only_that() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        assert_eq!(read(at), BTreeMap::new());
        let identity = |last| {
            let vip = "203.0.113.10:80".parse().expect("a VIP");
            (vip, SocketAddr::from(([10, 0, 0, last], 80)))
        };
        let ill = Kept { state: State::Unreachable, since: Moment(7) };
        let unknown = Kept { state: State::Unknown, since: Moment(8) };
        let kept = BTreeMap::from([(identity(1), ill), (identity(2), unknown)]);
        write(at, &kept).expect("written");
        assert_eq!(read(at), BTreeMap::from([(identity(1), ill)]));
        for damaged in [&b"{"[..], b"{\"version\":2,\"backends\":[]}", b"[]"] {
            fs::write(at.join(FILE), damaged).expect("written");
            assert_eq!(read(at), BTreeMap::new());
        }
        forget(at).expect("removed");
        forget(at).expect("nothing is there");
        assert!(!at.join(FILE).exists());
    }
}
