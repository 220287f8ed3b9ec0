//! One running Sluice: its name and the paths that follow from it.

use std::{fmt, path::PathBuf, str::FromStr};

/// An instance's name, fit to be one part of a path; with it, where its things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    name: String,
}

/// A name that can't be an instance's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an instance's name has 1 to 63 of A-Z a-z 0-9 _ -")]
pub struct BadName;

impl Instance {
    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What lives as long as the daemon: `/run/sluice/NAME`.
    pub fn runtime(&self) -> PathBuf {
        PathBuf::from("/run/sluice").join(&self.name)
    }

    /// Where the daemon answers the CLI: `/run/sluice/NAME/control.sock`.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime().join("control.sock")
    }

    /// Programs, links and maps, which outlive the daemon: `/sys/fs/bpf/sluice/NAME`.
    pub fn pins(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf/sluice").join(&self.name)
    }

    /// What outlives the machine: `/var/lib/sluice/NAME`.
    pub fn state(&self) -> PathBuf {
        PathBuf::from("/var/lib/sluice").join(&self.name)
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self { name: "default".to_owned() }
    }
}

impl FromStr for Instance {
    type Err = BadName;

    /// No dot: bpffs refuses names with one (EPERM, `bpf_lookup` in `kernel/bpf/inode.c`), and
    /// `..` would leave the directory.
    fn from_str(name: &str) -> Result<Self, BadName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
            Ok(Self { name: name.to_owned() })
        } else {
            Err(BadName)
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_not_leave_its_directory() {
        let long = "x".repeat(64);
        for name in ["", ".", "..", "a/b", "a.b", "../x", "a b", "ä", "a\0", &long] {
            assert_eq!(name.parse::<Instance>(), Err(BadName), "{name:?}");
        }
        for name in ["default", "a", "lb-1_B", &"x".repeat(63)] {
            assert_eq!(name.parse::<Instance>().expect(name).name(), name);
        }
    }

    #[test]
    fn paths_are_as_documented() {
        let instance = Instance::default();
        assert_eq!(instance.control_socket().to_str(), Some("/run/sluice/default/control.sock"));
        assert_eq!(instance.pins().to_str(), Some("/sys/fs/bpf/sluice/default"));
        assert_eq!(instance.state().to_str(), Some("/var/lib/sluice/default"));
    }
}
