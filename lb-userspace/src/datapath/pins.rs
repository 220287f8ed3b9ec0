//! Where an instance lives without its daemon: `/sys/fs/bpf/sluice/<instance>/`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::instance::Instance;

/// What is in an instance's directory, in the order in which it is removed.
const DIRECTORIES: [&str; 3] = ["links", "programs", "maps"];

/// The directories of one instance on bpffs: `maps/`, `programs/`, and `links/`, one link for
/// each interface, by its name.
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

    /// The instance's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a map's pin.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Path of a program's pin.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name)
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
        DIRECTORIES.iter().any(|name| self.root.join(name).exists())
    }

    /// Makes the directories.
    pub fn create(&self) -> Result<()> {
        for name in DIRECTORIES {
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

    /// Removes everything, the links first, so that no frame meets half an instance.
    pub fn remove(&self) -> Result<()> {
        for name in DIRECTORIES {
            let directory = self.root.join(name);
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", directory.display()));
                }
                _ => {}
            }
        }
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // The balancer's and the agent's pins of one instance share a directory.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.with_context(|| format!("remove {}", self.root.display())),
        }
    }
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
