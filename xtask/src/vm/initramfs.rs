//! What a guest runs on: an archive of programs that is the same for all kernels, one of modules
//! for each, and one with what is to be done. The kernel unpacks them one after the other
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Programs are copies of the host's, with the libraries that `ldd` names: what the tests use is
//! in the guest what it is on the host.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::kernels::Kernel;
use crate::process::{captured, find, run};

/// The host's programs that the tests start in a guest.
const PROGRAMS: [&str; 7] = ["curl", "ethtool", "ip", "ipvsadm", "nft", "nginx", "ping"];
/// The same, in place of busybox's namesake, which knows less.
const OVER_BUSYBOX: [&str; 1] = ["nsenter"];

/// Modules that tests use, or that the kernel looks for when they do; those that they depend on
/// come with them. What a kernel has built in, or never heard of, is left out.
const MODULES: [&str; 30] = [
    "bridge",
    "dummy",
    "ip6_tunnel",
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_mh",
    "ipip",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_counter",
    "nft_ct",
    "nft_hash",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "sit",
    "stp",
    "tunnel4",
    "tunnel6",
    "veth",
    "virtio_net",
    "virtio_pci",
    "xfrm6_tunnel",
    "af_packet_diag",
    "sch_ingress",
    "cls_bpf",
    "llc",
];

/// Loaded before anything is asked for: no one asks for a bus.
pub const AT_ONCE: [&str; 2] = ["virtio_pci", "virtio_net"];

/// Where a guest's own programs are.
pub const TESTS: &str = "/tests";

/// Makes the archive of programs: those of the host, and `ours` (name, path) without their debug
/// information in [`TESTS`].
pub fn programs(directory: &Path, ours: &[(String, PathBuf)]) -> Result<PathBuf> {
    let root = directory.join("programs");
    empty(&root)?;
    for place in
        ["dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/lib", "var/log"]
    {
        make(&root.join(place))?;
    }
    // As merged as any Debian's: the loader is named by /lib64, nginx by /usr/sbin.
    for (link, target) in [("bin", "usr/bin"), ("sbin", "usr/bin"), ("usr/sbin", "bin")] {
        link_to(target, &root.join(link))?;
    }
    busybox(&root.join("usr/bin"))?;

    let mut programs = Vec::new();
    for name in PROGRAMS.iter().chain(&OVER_BUSYBOX) {
        let from = find(name)
            .with_context(|| format!("{name} is not installed: run `cargo xtask setup`"))?;
        let to = root.join("usr/bin").join(name);
        // Not through a link to busybox.
        let _ = fs::remove_file(&to);
        copy(&from, &to)?;
        programs.push(from);
    }
    make(&root.join(TESTS.trim_start_matches('/')))?;
    for (name, from) in ours {
        let to = root.join(TESTS.trim_start_matches('/')).join(name);
        run(Command::new("strip").arg("-o").arg(&to).arg(from))?;
        programs.push(from.clone());
    }
    for library in libraries(&programs)? {
        let to = root.join(library.strip_prefix("/").unwrap_or(&library));
        make(to.parent().unwrap_or(&root))?;
        copy(&library, &to)?;
    }
    write(&root.join("init"), include_str!("init.sh"))?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    // nginx looks its user up.
    write(
        &root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )?;
    write(&root.join("etc/group"), "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n")?;
    pack(&root, &directory.join("programs.cpio"))
}

/// Makes the archive of a kernel's modules.
pub fn modules(kernel: &Kernel) -> Result<PathBuf> {
    let Kernel { release, modules, directory, .. } = kernel;
    let root = directory.join("modules");
    empty(&root)?;
    let to = root.join("lib/modules").join(release);
    make(&to)?;

    // modprobe wants them below lib/modules of some directory, with their dependencies written.
    let whole = directory.join("whole");
    empty(&whole)?;
    make(&whole.join("lib"))?;
    let parent = modules.parent().context("modules have a directory")?;
    link_to(&fs::canonicalize(parent).context("find the modules")?, &whole.join("lib/modules"))?;
    run(Command::new(tool("depmod")?).arg("-b").arg(&whole).arg(release))?;
    let mut files = BTreeSet::new();
    for module in MODULES {
        let shown = Command::new(tool("modprobe")?)
            // The host's own options are not the guest's.
            .args(["--config", "/dev/null", "--show-depends"])
            .args(["--set-version", release, "--dirname"])
            .args([whole.as_os_str(), module.as_ref()])
            .output()
            .context("run modprobe")?;
        // One that is not there is not needed, or missed where it is.
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        files.extend(shown.lines().filter_map(module_file));
    }
    for file in files {
        unpack_module(&file, &to)?;
    }
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        if modules.join(name).is_file() {
            copy(&modules.join(name), &to.join(name))?;
        }
    }
    run(Command::new(tool("depmod")?).arg("-b").arg(&root).arg(release))?;
    pack(&root, &directory.join("modules.cpio"))
}

/// Puts the archives and the plan together.
pub fn whole(directory: &Path, plan: &str, archives: [&Path; 2]) -> Result<PathBuf> {
    let root = directory.join("plan");
    empty(&root)?;
    write(&root.join("plan"), plan)?;
    let plan = pack(&root, &directory.join("plan.cpio"))?;
    let path = directory.join("initramfs");
    let mut initramfs = File::create(&path).context("make the initramfs")?;
    for archive in archives.into_iter().chain([plan.as_path()]) {
        let mut archive =
            File::open(archive).with_context(|| format!("open {}", archive.display()))?;
        io::copy(&mut archive, &mut initramfs).context("write the initramfs")?;
    }
    Ok(path)
}

/// Busybox under all of its names.
fn busybox(directory: &Path) -> Result<()> {
    let busybox = find("busybox").context("busybox is not installed: run `cargo xtask setup`")?;
    // With a library it would do as well, but it is not to be had with one here.
    copy(&busybox, &directory.join("busybox"))?;
    for name in captured(Command::new(&busybox).arg("--list"))?.lines() {
        if name != "busybox" {
            link_to("busybox", &directory.join(name))?;
        }
    }
    Ok(())
}

/// Every library that these programs need, the loader included.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut libraries = BTreeSet::new();
    for program in programs {
        // One that is linked statically has none, and ldd calls that a failure.
        let shown = Command::new("ldd").arg(program).output().context("run ldd")?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        if let Some(line) = shown.lines().find(|line| line.contains("not found")) {
            bail!("{} lacks a library: {}", program.display(), line.trim());
        }
        libraries.extend(shown.lines().filter_map(library));
    }
    Ok(libraries)
}

/// The path in a line of ldd's: `libc.so.6 => /lib/…/libc.so.6 (0x…)`, `/lib64/ld-… (0x…)`.
fn library(line: &str) -> Option<PathBuf> {
    let start = line.find('/')?;
    line[start..].split_whitespace().next().map(PathBuf::from)
}

/// The file in a line of modprobe's: `insmod /lib/…/dummy.ko numdummies=0`.
fn module_file(line: &str) -> Option<PathBuf> {
    line.strip_prefix("insmod ")?.split_whitespace().next().map(PathBuf::from)
}

/// Unpacks a module, without its debug information, so that busybox can load it.
fn unpack_module(file: &Path, directory: &Path) -> Result<()> {
    let name = file.file_name().and_then(|name| name.to_str()).context("a module has a name")?;
    let (name, tool) = match name.rsplit_once('.') {
        Some((stem, "xz")) => (stem, Some("xz")),
        Some((stem, "zst")) => (stem, Some("zstd")),
        _ => (name, None),
    };
    let to = directory.join(name);
    match tool {
        Some(tool) => {
            let unpacked = File::create(&to).context("make a module")?;
            run(Command::new(tool).args(["-q", "-d", "-c"]).arg(file).stdout(unpacked))?;
        }
        None => copy(file, &to)?,
    }
    run(Command::new("strip").arg("--strip-debug").arg(&to))
}

/// An archive of a directory, all of it root's.
fn pack(root: &Path, archive: &Path) -> Result<PathBuf> {
    let file = File::create(archive).with_context(|| format!("make {}", archive.display()))?;
    let mut cpio = Command::new(tool("cpio")?)
        .args(["--create", "--format=newc", "--null", "--quiet", "--owner=0:0", "--directory"])
        .arg(root)
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .context("start cpio")?;
    let mut names = Vec::new();
    list(root, Path::new(""), &mut names)?;
    if let Some(mut stdin) = cpio.stdin.take() {
        stdin.write_all(&names).context("tell cpio the names")?;
    }
    ensure!(cpio.wait().context("wait for cpio")?.success(), "cpio has failed");
    Ok(archive.to_owned())
}

/// The names below `root`, directories before what they hold, each ended by a zero.
fn list(root: &Path, directory: &Path, names: &mut Vec<u8>) -> Result<()> {
    let mut entries = fs::read_dir(root.join(directory))
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .with_context(|| format!("list {}", directory.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = directory.join(entry.file_name());
        names.extend(name.as_os_str().as_encoded_bytes());
        names.push(0);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(root, &name, names)?;
        }
    }
    Ok(())
}

fn tool(name: &str) -> Result<PathBuf> {
    find(name).with_context(|| format!("{name} is not installed: run `cargo xtask setup`"))
}

fn empty(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("empty {}", directory.display()))?;
    }
    make(directory)
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copy {}", from.display()))
}

fn link_to(target: impl AsRef<Path>, link: &Path) -> Result<()> {
    symlink(target, link).with_context(|| format!("make {}", link.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_what_ldd_has_found() {
        let found = |line| library(line).map(|path| path.display().to_string());
        assert_eq!(
            found("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2c)"),
            Some("/lib/x86_64-linux-gnu/libc.so.6".into())
        );
        assert_eq!(
            found("\t/lib64/ld-linux-x86-64.so.2 (0x00007f2c)"),
            Some("/lib64/ld-linux-x86-64.so.2".into())
        );
        assert_eq!(module_file("builtin bridge"), None);
        assert_eq!(module_file("insmod /m/dummy.ko numdummies=0 "), Some("/m/dummy.ko".into()));
        assert_eq!(found("\tlinux-vdso.so.1 (0x00007ffd)"), None);
    }
}
