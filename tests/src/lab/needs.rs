//! What a laboratory needs of the machine it is on.

use anyhow::{Context, Result, ensure};

/// Whether a laboratory can be had; if not, says so: what calls this is about to be skipped.
pub fn is_privileged() -> bool {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
    }
    is_root()
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Says what is missing.
pub(super) fn check() -> Result<()> {
    ensure!(is_root(), "a laboratory of network namespaces needs root: run it with sudo");
    for program in ["/usr/sbin/nginx:nginx-light", "ip:iproute2", "ethtool", "nsenter:util-linux"] {
        let (program, package) = program.split_once(':').unwrap_or((program, program));
        ensure!(
            is_installed(program),
            "{program} is not installed: `cargo xtask setup`, or apt-get install {package}"
        );
    }
    Ok(())
}

fn is_installed(program: &str) -> bool {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&directories)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}

/// `sluice` needs it, and a bare virtual machine may not have it.
pub(super) fn mount_bpffs() -> Result<()> {
    use nix::{
        mount::{MsFlags, mount},
        sys::statfs::{BPF_FS_MAGIC, statfs},
    };
    let path = "/sys/fs/bpf";
    if statfs(path).with_context(|| format!("look at {path}"))?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount bpffs on {path}"))
}
