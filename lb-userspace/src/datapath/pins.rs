//! Where an instance lives without its daemon: `/sys/fs/bpf/sluice/<instance>/`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::instance::Instance;

/// What is in an instance's directory, in the order in which it is removed.
const DIRECTORIES: [&str; 5] = ["links", "programs", "maps", NEXT, ACCEPTED];

/// The first of them: what an instance consists of when no upgrade is under way.
const OWN: usize = 3;

/// Programs and maps of a migration that may still be undone.
const NEXT: &str = "next";
/// The same once it will not be undone: they are on their way to where they belong.
const ACCEPTED: &str = "accepted";

/// The directories of one instance on bpffs: `maps/`, `programs/`, and `links/`, one link for
/// each interface, by its name; while the instance migrates, `next/` or `accepted/` with maps
/// and programs of their own.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins of an instance, whether they exist or not.
    pub fn of(instance: &Instance) -> Self {
        Self { root: instance.pins() }
    }

    /// The pins of an instance's agent, beside the balancer's.
    pub fn of_agent(instance: &Instance) -> Self {
        Self { root: instance.pins().join("agent") }
    }

    /// What a migration brings, beside what runs.
    pub(super) fn next(&self) -> Self {
        Self { root: self.root.join(NEXT) }
    }

    /// What a migration has brought for good.
    pub(super) fn accepted(&self) -> Self {
        Self { root: self.root.join(ACCEPTED) }
    }

    /// The instance's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a map's pin.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// The directory of the programs' pins.
    pub(super) fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// Path of a program's pin.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Path of the pin of an interface's link.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.root.join("links").join(escaped(interface))
    }

    /// Interfaces that have a pinned link.
    pub fn links(&self) -> Result<Vec<String>> {
        let directory = self.root.join("links");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", directory.display()));
            }
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("read {}", directory.display()))?;
            names.push(unescaped(&entry.file_name().to_string_lossy()));
        }
        names.sort();
        Ok(names)
    }

    /// Whether anything of the instance is pinned.
    pub fn exist(&self) -> bool {
        DIRECTORIES[..OWN].iter().any(|name| self.root.join(name).exists())
    }

    /// Makes the directories.
    pub fn create(&self) -> Result<()> {
        for name in &DIRECTORIES[..OWN] {
            let directory = self.root.join(name);
            fs::create_dir_all(&directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        Ok(())
    }

    /// Removes the link to one interface: the kernel takes the program off it.
    pub fn remove_link(&self, interface: &str) -> Result<()> {
        let path = self.link(interface);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// From here on the migration will not be undone, whatever happens: one step.
    pub(super) fn accept_next(&self) -> Result<()> {
        rename(&self.next().root, &self.accepted().root)
    }

    /// Puts what a migration has brought in the place of what was there; can be repeated.
    pub(super) fn take_accepted(&self) -> Result<()> {
        let accepted = self.accepted();
        for name in ["maps", "programs"] {
            let (from, to) = (accepted.root.join(name), self.root.join(name));
            if from.exists() {
                remove_directory(&to)?;
                rename(&from, &to)?;
            }
        }
        remove_directory(&accepted.root)
    }

    /// Lets a program's pin stand for another one, in one step.
    pub(super) fn rename_program(&self, from: &str, to: &str) -> Result<()> {
        rename(&self.program(from), &self.program(to))
    }

    /// Removes a program's pin, if there is one.
    pub(super) fn remove_program(&self, name: &str) -> Result<()> {
        let path = self.program(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Removes everything, the links first, so that no frame meets half an instance.
    pub fn remove(&self) -> Result<()> {
        for name in DIRECTORIES {
            remove_directory(&self.root.join(name))?;
        }
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // The balancer's and the agent's pins of one instance share a directory.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.with_context(|| format!("remove {}", self.root.display())),
        }
    }
}

fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("rename {} to {}", from.display(), to.display()))
}

/// bpffs allows no dot in a name (`bpf_lookup` in `kernel/bpf/inode.c`), Linux does in an
/// interface's (`eth0.100`).
fn escaped(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn unescaped(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_interface_name_survives_the_pin() {
        for name in ["eth0", "eth0.100", "a%b", "%2e", "%25.%"] {
            assert!(!escaped(name).contains('.'));
            assert_eq!(unescaped(&escaped(name)), name);
        }
    }
}
