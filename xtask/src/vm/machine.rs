//! One virtual machine, from its start to its end: QEMU, without any hardware's help.
//!
//! The machine counts instructions instead of time (`-icount shift=0,sleep=off`): to its kernel and
//! programs each instruction takes a nanosecond, and what they wait for comes at once. So a guest
//! sees an even, moderately fast computer, whatever else this one does; time-outs mean what they
//! mean elsewhere, and nanoseconds per packet are instructions per packet.
//!
//! KVM is not asked for: the kernels that are tested do not all start under a KVM that is itself
//! emulated, and a figure would no longer be one of instructions.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::emulator::Emulator;

/// Guest memory, MiB: the archive (150, twice while it is unpacked), and what the tests write.
const MEMORY: u32 = 1536;

/// How often it is looked whether the machine has ended.
const POLL: Duration = Duration::from_millis(100);

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// What runs it.
    pub emulator: &'a Emulator,
    /// The kernel's image.
    pub image: &'a Path,
    /// What it finds when it has started.
    pub initramfs: &'a Path,
    /// Where the logs go.
    pub directory: &'a Path,
    /// After so long it is killed.
    pub patience: Duration,
}

/// How a machine has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// QEMU's status. A guest that has switched itself off and one whose kernel has panicked end it
    /// alike, with 0: what the guest has said before tells them apart.
    Exited(ExitStatus),
    /// It took too long.
    Killed,
}

/// What is left of a machine.
#[derive(Clone, Debug)]
pub struct Ran {
    /// How it has ended.
    pub end: End,
    /// What the guest's first process and its programs have written.
    pub said: String,
    /// What its kernel has written.
    pub console: String,
}

impl Machine<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// If QEMU can't be started.
    pub fn run(&self) -> Result<Ran> {
        let [said, console, complaints] =
            ["said", "console", "qemu"].map(|name| self.directory.join(format!("{name}.log")));
        for log in [&said, &console] {
            // QEMU appends to nothing, but what is not written must not be an older run's.
            fs::write(log, "").with_context(|| format!("empty {}", log.display()))?;
        }
        let mut qemu = self.command(&said, &console);
        let complained = File::create(&complaints).context("make QEMU's log")?;
        let guest = qemu
            .stdin(Stdio::null())
            .stdout(complained.try_clone().context("share QEMU's log")?)
            .stderr(complained)
            .spawn()
            .context("start QEMU")?;
        let end = Guard(guest).wait(self.patience)?;
        let read = |path: &PathBuf| {
            fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).replace('\r', ""))
        };
        let mut console = read(&console).context("read the console")?;
        console += &read(&complaints).context("read QEMU's log")?;
        Ok(Ran { end, said: read(&said).context("read what the guest said")?, console })
    }

    fn command(&self, said: &Path, console: &Path) -> Command {
        let mut command = self.emulator.command();
        command
            .args(["-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=0,sleep=off"])
            .args(["-M", "q35", "-cpu", "max", "-smp", "1", "-m", &MEMORY.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        // Two cards on one wire, inside the process.
        for card in ["card0", "card1"] {
            command
                .args(["-netdev", &format!("hubport,id={card},hubid=0")])
                .args(["-device", &format!("virtio-net-pci,netdev={card},romfile=")]);
        }
        for log in [console, said] {
            command.arg("-serial").arg(format!("file:{}", log.display()));
        }
        command.arg("-kernel").arg(self.image).arg("-initrd").arg(self.initramfs);
        // A panic ends the machine; nothing waits for entropy or for a measured clock; no mitigations,
        // whose number depends on the emulated CPU.
        command.args([
            "-append",
            "console=ttyS0 rdinit=/init panic=-1 oops=panic quiet loglevel=4 mitigations=off \
             tsc=reliable nokaslr random.trust_cpu=on",
        ]);
        command
    }
}

/// A child that does not outlive us.
struct Guard(Child);

impl Guard {
    fn wait(mut self, patience: Duration) -> Result<End> {
        let start = Instant::now();
        while start.elapsed() < patience {
            if let Some(status) = self.0.try_wait().context("wait for QEMU")? {
                return Ok(End::Exited(status));
            }
            thread::sleep(POLL);
        }
        Ok(End::Killed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It has ended already, or is to.
        let _: io::Result<()> = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Ran {
    /// What was said of one step: its exit code and its own lines, if it has ended.
    pub fn step(&self, name: &str) -> Option<(i32, &str)> {
        let (_, rest) = self.said.split_once(&format!("@@ begin {name}\n"))?;
        let (lines, end) = rest.split_once("@@ end ")?;
        let (code, ended) = end.split_once('\n')?.0.split_once(' ')?;
        (ended == name).then_some((code.parse().ok()?, lines))
    }

    /// Whether the guest has come to its end.
    pub fn is_done(&self) -> bool {
        matches!(self.end, End::Exited(status) if status.success())
            && self.said.lines().last() == Some("@@ done")
    }

    /// What the kernel should not have said.
    pub fn complaint(&self) -> Option<&str> {
        const BAD: [&str; 5] = ["BUG:", "Oops", "Kernel panic", "WARNING: CPU", "kernel BUG at"];
        self.console.lines().find(|line| BAD.iter().any(|bad| line.contains(bad)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn ran(said: &str) -> Ran {
        Ran { end: End::Exited(ExitStatus::from_raw(0)), said: said.into(), console: String::new() }
    }

    #[test]
    fn a_step_is_told_from_the_one_beside_it() {
        let said = "@@ kernel 6.1.0\n@@ begin one\nok\n@@ end 0 one\n@@ begin two\nno\n@@ end 101 two\n@@ done\n";
        let ran = ran(said);
        assert_eq!(ran.step("one"), Some((0, "ok\n")));
        assert_eq!(ran.step("two"), Some((101, "no\n")));
        assert_eq!(ran.step("three"), None);
        assert!(ran.is_done());
    }

    #[test]
    fn a_guest_that_falls_silent_is_not_done() {
        let ran = ran("@@ kernel 6.1.0\n@@ begin one\nok\n");
        assert_eq!(ran.step("one"), None);
        assert!(!ran.is_done());
    }

    #[test]
    fn a_panic_is_seen_though_qemu_ends_well() {
        let mut ran = ran("@@ begin one\n");
        ran.console = "[    2.0] Kernel panic - not syncing: no init\n".into();
        assert!(!ran.is_done());
        assert!(ran.complaint().is_some());
    }
}
