//! Why the kernel said no, in words that help.

use std::{fs, path::Path};

use anyhow::{Result, anyhow, bail};
use aya::{EbpfError, maps::MapError, programs::ProgramError};
use nix::sys::statfs::{FsType, statfs};

/// Where bpffs is.
const BPFFS: &str = "/sys/fs/bpf";
/// What `statfs` says of it (`BPF_FS_MAGIC` in `linux/magic.h`).
const BPFFS_MAGIC: FsType = FsType(0xcafe_4a11);

/// The oldest kernel the program is made for: no older one is tested.
const KERNEL: (u32, u32) = (6, 1);

/// What the program cannot do without, and the first kernel that has it.
const FEATURES: [((u32, u32), &str); 3] = [
    ((5, 12), "64-bit compare-and-exchange in BPF"),
    ((5, 18), "XDP on frames of several buffers"),
    ((5, 18), "IFA_PROTO on addresses"),
];

/// What an EPERM from the kernel means.
pub(super) const NO_PERMISSION: &str = "the kernel refused: sluice needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and \
     CAP_PERFMON, and a kernel that is not locked down";

/// Capabilities needed, by number (`linux/capability.h`), where CAP_SYS_ADMIN is not held.
const CAPABILITIES: [(u32, &str); 3] =
    [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Says at once what would fail later in a less readable way.
///
/// # Errors
/// If this process may not load programs, the kernel is too old, or bpffs is not mounted.
pub fn preflight() -> Result<()> {
    check_capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default())?;
    check_kernel(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default())?;
    check_bpffs(Path::new(BPFFS))
}

fn check_capabilities(status: &str) -> Result<()> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok());
    // Where /proc does not tell, the kernel will.
    let Some(effective) = effective else { return Ok(()) };
    let holds = |number: u32| effective >> number & 1 == 1;
    if holds(CAP_SYS_ADMIN) && holds(CAP_NET_ADMIN) {
        return Ok(());
    }
    let missing: Vec<&str> = CAPABILITIES
        .into_iter()
        .filter(|&(number, _)| !holds(number))
        .map(|(_, name)| name)
        .collect();
    if !missing.is_empty() {
        bail!("missing {}: run sluice as root, for instance with sudo", missing.join(", "));
    }
    Ok(())
}

fn check_kernel(release: &str) -> Result<()> {
    let mut numbers = release.trim().split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else { return Ok(()) };
    if (major, minor) >= KERNEL {
        return Ok(());
    }
    let lacking = FEATURES.iter().filter(|(since, _)| (major, minor) < *since);
    let lacking = lacking.map(|((major, minor), what)| format!("{what} ({major}.{minor})"));
    let lacking = lacking.collect::<Vec<_>>().join(", ");
    let why = if lacking.is_empty() {
        "it is not tested on this one".to_owned()
    } else {
        format!("this one lacks {lacking}")
    };
    bail!(
        "this kernel is {}, sluice needs {}.{} or newer: {why}",
        release.trim(),
        KERNEL.0,
        KERNEL.1
    )
}

fn check_bpffs(path: &Path) -> Result<()> {
    match statfs(path) {
        Ok(found) if found.filesystem_type() == BPFFS_MAGIC => Ok(()),
        _ => bail!(
            "no bpffs at {}: programs could not outlive the daemon. Mount it with \
             `mount -t bpf bpf {0}`",
            path.display()
        ),
    }
}

/// An object file that did not load.
pub(crate) fn load_error(error: EbpfError) -> anyhow::Error {
    let errno = match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) => io_error.raw_os_error(),
        EbpfError::MapError(MapError::SyscallError(syscall)) => syscall.io_error.raw_os_error(),
        _ => None,
    };
    match errno {
        Some(libc::EPERM) => anyhow!(NO_PERMISSION),
        Some(libc::ENOMEM | libc::E2BIG) => {
            anyhow!(error).context("no memory for the maps: lower flow_capacity")
        }
        _ => anyhow!(error).context("create the maps"),
    }
}

/// A program that the verifier refused: its last words, which name the instruction.
pub(super) fn verifier_error(name: &str, error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            if io_error.raw_os_error() == Some(libc::EPERM) {
                return anyhow!(NO_PERMISSION);
            }
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(12)..].join("\n");
            anyhow!("the kernel refused program {name} ({io_error}); its verifier said:\n{last}")
        }
        other => anyhow!(other).context(format!("load program {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let status = |bits: u64| format!("Name:\tsluice\nCapEff:\t{bits:016x}\n");
        let message = |bits| check_capabilities(&status(bits)).map_err(|error| error.to_string());
        assert_eq!(message(1 << 12 | 1 << 38 | 1 << 39), Ok(()));
        assert_eq!(message(1 << 12 | 1 << 21), Ok(()));
        assert_eq!(
            message(1 << 12),
            Err("missing CAP_PERFMON, CAP_BPF: run sluice as root, for instance with sudo".into())
        );
        assert!(check_capabilities("nothing").is_ok());
    }

    #[test]
    fn old_kernels_are_refused_by_name() {
        for fine in ["6.1.0-56-cloud-amd64", "6.18.44", "7.3-rc7", "10.0", "what"] {
            assert!(check_kernel(fine).is_ok(), "{fine}");
        }
        let error = check_kernel("5.10.0-46-cloud-amd64\n").expect_err("too old").to_string();
        assert_eq!(
            error,
            "this kernel is 5.10.0-46-cloud-amd64, sluice needs 6.1 or newer: this one lacks 64-bit \
             compare-and-exchange in BPF (5.12), XDP on frames of several \
             buffers (5.18), IFA_PROTO on addresses (5.18)"
        );
        let error = check_kernel("5.15.0\n").expect_err("too old").to_string();
        assert!(error.contains("lacks XDP on frames"), "{error}");
        let error = check_kernel("6.0.19\n").expect_err("too old").to_string();
        assert!(error.ends_with("it is not tested on this one"), "{error}");
    }

    #[test]
    fn a_directory_is_no_bpffs() {
        let error = check_bpffs(Path::new("/proc")).expect_err("procfs").to_string();
        assert!(error.contains("mount -t bpf bpf /proc"), "{error}");
    }
}
