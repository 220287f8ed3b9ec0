//! QEMU: the machine's own, or one that is unpacked beside the kernels.
//!
//! It is not installed by `cargo xtask setup`: its packages remove other versions of its tools
//! where there are some, and a test may not cost anybody a program.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::process::{captured, find, read, run};

/// The emulator's program, and its package.
const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// Where Debian puts libraries and firmware.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];

/// A QEMU that starts.
#[derive(Clone, Debug)]
pub struct Emulator {
    program: PathBuf,
    /// Where its packages were unpacked, if it is not installed.
    root: Option<PathBuf>,
}

impl Emulator {
    /// The one that is installed, or one that is unpacked in `directory`, now or before.
    ///
    /// # Errors
    /// If there is none and it can't be fetched.
    pub fn get(directory: &Path) -> Result<Self> {
        if let Some(program) = find(PROGRAM) {
            return Ok(Self { program, root: None });
        }
        let unpacked = Self::in_root(&directory.join("root"));
        if !unpacked.starts() {
            println!("vm: {PROGRAM} is not installed: fetching one …");
            unpack(directory).with_context(|| {
                format!("{PROGRAM} is neither installed (package {PACKAGE}) nor to be had")
            })?;
        }
        ensure!(unpacked.starts(), "the {PROGRAM} in {} does not start", directory.display());
        Ok(unpacked)
    }

    fn in_root(root: &Path) -> Self {
        Self { program: root.join("usr/bin").join(PROGRAM), root: Some(root.to_owned()) }
    }

    /// A command that starts it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            let libraries = LIBRARIES.map(|path| root.join(path).display().to_string());
            command.env("LD_LIBRARY_PATH", libraries.join(":"));
            for path in FIRMWARE {
                command.arg("-L").arg(root.join(path));
            }
        }
        command
    }

    fn starts(&self) -> bool {
        self.program.is_file() && captured(self.command().arg("--version")).is_ok()
    }
}

/// Downloads QEMU and what it needs that is not installed, by the system's lists of packages, and
/// unpacks it.
fn unpack(directory: &Path) -> Result<()> {
    let archives = directory.join("cache/archives");
    fs::create_dir_all(archives.join("partial")).context("make room for packages")?;
    let directory = fs::canonicalize(directory).context("find that room")?;
    let status = directory.join("status");
    let installed = read("/var/lib/dpkg/status")?;
    fs::write(&status, without_qemu(&installed)).context("write what is installed")?;
    // Only asked what it would install: nothing of the system's is written.
    let mut apt_get = Command::new("apt-get");
    apt_get
        .env("LC_ALL", "C")
        .args(["install", "-q", "-y", "--download-only", "--no-install-recommends"])
        .args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="])
        .arg("-o")
        .arg(format!("Dir::State::status={}", status.display()))
        .arg("-o")
        .arg(format!("Dir::Cache={}/cache", directory.display()))
        .arg(PACKAGE);
    captured(&mut apt_get)?;
    let root = directory.join("root");
    let mut packages = fs::read_dir(&archives)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .context("list the packages")?;
    packages.retain(|package| package.path().extension().is_some_and(|kind| kind == "deb"));
    for package in packages {
        run(Command::new("dpkg-deb").arg("-x").arg(package.path()).arg(&root))?;
    }
    fs::remove_dir_all(&archives).context("remove the packages")
}

/// The paragraphs of dpkg's status(5) that are not about QEMU.
fn without_qemu(status: &str) -> String {
    let others = status.split("\n\n").filter(|paragraph| !paragraph.starts_with("Package: qemu"));
    others.collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_of_qemu_do_not_stand_in_the_way() {
        let status = "Package: curl\nStatus: install ok installed\n\n\
                      Package: qemu-utils\nVersion: 1:10\n\nPackage: xz-utils\n\n";
        let kept = "Package: curl\nStatus: install ok installed\n\nPackage: xz-utils\n\n";
        assert_eq!(without_qemu(status), kept);
    }
}
