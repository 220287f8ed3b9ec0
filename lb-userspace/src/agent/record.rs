//! What the agent found and changed, in a pinned map: JSON, so that a newer one can have more.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use lb_common::decapsulate::ABI_VERSION;
use serde::{Deserialize, Serialize};

use super::{arp, kernel};

/// Written before anything is changed on the host, so that whoever detaches knows all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of the pinned maps.
    pub abi_version: u32,
    /// Identifies the object file of the attached program.
    pub object: String,
    /// The network namespace of everything: the inode of its file under `/proc/PID/ns`.
    pub namespace: u64,
    /// Who looks after it.
    pub watcher: Watcher,
    /// ARP settings as they were found.
    pub arp: Vec<arp::Found>,
}

impl Record {
    /// Of this build, in this network namespace, with nothing changed yet.
    pub fn new(watcher: Watcher) -> Result<Self> {
        Ok(Self {
            abi_version: ABI_VERSION,
            object: kernel::object_id(),
            namespace: namespace()?,
            watcher,
            arp: Vec::new(),
        })
    }

    /// Whether its interfaces, addresses and settings are those that this process sees.
    pub fn is_of_this_namespace(&self) -> Result<bool> {
        Ok(self.namespace == namespace()?)
    }

    /// A way into its network namespace, if one is to be seen from here.
    pub fn way_to_its_namespace(&self) -> Option<PathBuf> {
        let named = entries("/run/netns");
        let of_processes = entries("/proc").map(|process| process.join("ns/net"));
        named
            .chain(of_processes)
            .find(|path| inode(path).is_ok_and(|inode| inode == self.namespace))
    }
}

/// The network namespace of this thread.
fn namespace() -> Result<u64> {
    let path = "/proc/thread-self/ns/net";
    inode(path.as_ref()).with_context(|| format!("read {path}"))
}

fn inode(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

fn entries(directory: &str) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// A process, as nothing else is: its number may come again, its start time with it can't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watcher {
    /// Its number.
    pub pid: u32,
    /// When it started: clock ticks since the machine did; 0: unknown.
    pub started: u64,
}

impl Watcher {
    /// This process.
    pub fn me() -> Self {
        let pid = std::process::id();
        Self { pid, started: started(pid).unwrap_or(0) }
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command in brackets, may contain anything.
    let (_, from_third) = stat.rsplit_once(')')?;
    from_third.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_with_its_number() {
        let me = Watcher::me();
        assert!(me.started > 0 && me.is_alive());
        assert!(!Watcher { started: me.started + 1, ..me }.is_alive());
        assert!(!Watcher { pid: u32::MAX, ..me }.is_alive());
    }

    #[test]
    fn a_record_knows_its_namespace() {
        let record = Record::new(Watcher::me()).expect("this namespace");
        assert!(record.is_of_this_namespace().expect("this namespace"));
        assert!(record.way_to_its_namespace().is_some());
        assert_eq!(Record { namespace: 1, ..record.clone() }.way_to_its_namespace(), None);
    }

    #[test]
    fn a_record_of_a_newer_build_can_have_more() {
        let record = Record::new(Watcher::me()).expect("this namespace");
        let mut json = serde_json::to_value(&record).expect("JSON");
        json["colour"] = "green".into();
        assert_eq!(serde_json::from_value::<Record>(json).expect("a record"), record);
    }
}
