//! `cargo xtask setup`: everything that the other commands need, on a bare Debian 12 or 13.
//!
//! It looks first and installs only what it did not find, so a second run does nothing and takes
//! a moment; the other commands look for their own part of it each time. On another system it
//! says what is missing and where to get it, and installs nothing.

use std::{fmt, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use xtask::bpf::{self, LINKER_VERSION, LLVM_MAJOR, Toolchain};

use crate::process::{self, Root, cargo, find, read, run, stdout};

/// Compiling it takes two to three minutes on two cores.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Compiling it takes two minutes on two cores.
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// Where Debian puts the LLVM that `bpf-linker` is built with ([`LLVM_MAJOR`]).
const LLVM: &str = "/usr/lib/llvm-22";

/// Where the BPF filesystem belongs: the pins of every instance live in it.
const BPFFS: &str = "/sys/fs/bpf";

/// What tests, demo and bench start, and the Debian package that it is in.
const PROGRAMS: [(&str, &str); 19] = [
    // No program, but nginx has it from here alone.
    ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"),
    ("bpftool", "bpftool"),
    ("chromium-headless-shell", "chromium-headless-shell"),
    ("curl", "curl"),
    ("ethtool", "ethtool"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nft", "nftables"),
    ("nginx", "nginx"),
    ("ping", "iputils-ping"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("ssh", "openssh-client"),
    ("sshd", "openssh-server"),
    ("tcpdump", "tcpdump"),
    ("tmux", "tmux"),
    ("tshark", "tshark"),
    ("wrk", "wrk"),
];

/// What `cargo xtask vm` starts, and what it puts into its guests. QEMU it finds by itself.
const MACHINE: [(&str, &str); 16] = [
    ("apt-get", "apt"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("curl", "curl"),
    ("depmod", "kmod"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("ipvsadm", "ipvsadm"),
    ("ldd", "libc-bin"),
    ("nft", "nftables"),
    ("nginx", "nginx"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// What a command needs the set-up for: building should not wait for the tools of `check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Compiling the workspace.
    Build,
    /// Format, lints, licences.
    Check,
    /// Building fuzz targets.
    Fuzz,
    /// Starting what was built: tests, demo, bench.
    Run,
    /// Starting it in virtual machines.
    Machine,
}

/// Something that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    /// The kernel program's compiler or linker.
    Bpf(bpf::Missing),
    /// Clippy of the kernel program's compiler.
    BpfClippy,
    /// A component of our own toolchain, by rustup's name.
    Component(&'static str),
    CargoDeny,
    CargoFuzz,
    Program {
        name: &'static str,
        package: &'static str,
    },
    /// The BPF filesystem is not mounted.
    Bpffs,
}

/// Makes the machine able to do everything, and says so.
pub fn setup() -> Result<()> {
    ensure(&[Purpose::Build, Purpose::Check, Purpose::Fuzz, Purpose::Run, Purpose::Machine])?;
    println!("setup: everything is here");
    Ok(())
}

/// Makes the machine able to do what is asked; silent when it is already.
pub fn ensure(purposes: &[Purpose]) -> Result<()> {
    let items = missing(purposes);
    if items.is_empty() {
        return Ok(());
    }
    for item in &items {
        println!("setup: missing: {item}");
    }
    let packages = packages(&items);
    if !packages.is_empty() {
        if !is_supported(&read("/etc/os-release").unwrap_or_default()) {
            return Err(by_hand(&items).context(
                "only on Debian 12 and 13 can `cargo xtask setup` install what is missing",
            ));
        }
        install(&packages)?;
    }
    // Asked anew: a package may have brought it.
    for item in missing(purposes) {
        match item {
            Item::Bpf(bpf::Missing::Linker) => install_linker()?,
            Item::CargoDeny => install_cargo_deny()?,
            Item::CargoFuzz => install_cargo_fuzz()?,
            Item::Component(name) => add_component(name)?,
            Item::Bpffs => mount_bpffs()?,
            Item::Bpf(bpf::Missing::Compiler) | Item::BpfClippy | Item::Program { .. } => {}
        }
    }
    match missing(purposes) {
        still if still.is_empty() => Ok(()),
        still => Err(by_hand(&still).context("something is missing even now")),
    }
}

fn missing(purposes: &[Purpose]) -> Vec<Item> {
    let mut items = Vec::new();
    for purpose in purposes {
        match purpose {
            Purpose::Build => items.extend(bpf::missing().into_iter().map(Item::Bpf)),
            Purpose::Check => {
                if Toolchain::find().is_ok_and(|found| !found.cargo_clippy().is_file()) {
                    items.push(Item::BpfClippy);
                }
                for (command, component) in [("clippy", "clippy"), ("fmt", "rustfmt")] {
                    if stdout(&mut cargo(&[command, "--version"])).is_none() {
                        items.push(Item::Component(component));
                    }
                }
                if stdout(&mut cargo(&["deny", "--version"])).is_none() {
                    items.push(Item::CargoDeny);
                }
            }
            Purpose::Fuzz => {
                if stdout(&mut cargo(&["fuzz", "--version"])).is_none() {
                    items.push(Item::CargoFuzz);
                }
                // libFuzzer comes as its source.
                if find("c++").is_none() {
                    items.push(Item::Program { name: "c++", package: "g++" });
                }
            }
            Purpose::Run => {
                items.extend(absent(&PROGRAMS));
                if !has_bpffs(&read("/proc/mounts").unwrap_or_default()) {
                    items.push(Item::Bpffs);
                }
            }
            Purpose::Machine => items.extend(absent(&MACHINE)),
        }
    }
    items
}

/// The programs of a list that are not on this machine.
fn absent(programs: &'static [(&'static str, &'static str)]) -> impl Iterator<Item = Item> {
    let absent = programs.iter().filter(|(name, _)| find(name).is_none());
    absent.map(|&(name, package)| Item::Program { name, package })
}

/// The Debian packages for these items, each once.
fn packages(items: &[Item]) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for item in items {
        match item {
            Item::Bpf(bpf::Missing::Compiler) => {
                // Clippy must be of the very same version, so it comes with the compiler.
                packages.extend(["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"]);
            }
            Item::Bpf(bpf::Missing::Linker) => {
                if !Path::new(LLVM).join("bin/llvm-config").is_file() {
                    packages.push("llvm-22-dev");
                }
            }
            Item::BpfClippy => packages.push("rust-web-clippy"),
            Item::Program { package, .. } => packages.push(package),
            Item::Component(_) | Item::CargoDeny | Item::CargoFuzz | Item::Bpffs => {}
        }
    }
    packages
}

/// Installs Debian packages, after saying so.
fn install(packages: &[&str]) -> Result<()> {
    println!("setup: apt-get install {} (a few minutes)", packages.join(" "));
    let root = Root::here();
    let apt_get = Path::new("apt-get");
    // A mirror of something else may be out of reach: what counts is whether ours are found.
    if let Err(error) = run(root.command(apt_get, &[])?.args(["update", "-q"])) {
        println!("setup: {error}; going on with the lists that are here");
    }
    let policy = Command::new("apt-cache").arg("policy").args(packages).env("LC_ALL", "C").output();
    let policy = policy.context("run apt-cache")?;
    let unknown = without_candidate(&String::from_utf8_lossy(&policy.stdout), packages);
    if !unknown.is_empty() {
        let os = read("/etc/os-release")?;
        let codename = os_field(&os, "VERSION_CODENAME").unwrap_or("CODENAME");
        bail!(
            "apt-get knows no package {}: the compiler is in Debian's security suite, so add \
             `{codename}-security` (and `{codename}`), component main, to your sources in \
             /etc/apt (see sources.list(5)) and run `cargo xtask setup` again",
            unknown.join(", ")
        );
    }
    let script = include_str!("apt-install.sh");
    run(root.command(Path::new("sh"), &[])?.args(["-c", script, "sh"]).args(packages)).context(
        "cannot install Debian's packages. If apt-get refused to remove one (Debian's own rustc \
         or rustup cannot stand beside rustc-web), remove it yourself, or use the other compiler: \
         `rustup toolchain install nightly --component rust-src --component clippy`",
    )
}

fn install_linker() -> Result<()> {
    println!("setup: cargo install bpf-linker {LINKER_VERSION} (a minute)");
    let llvm = format!("llvm-{LLVM_MAJOR}");
    let mut command = cargo_install("bpf-linker", LINKER_VERSION);
    command.args(["--no-default-features", "--features", &llvm]).env("LLVM_PREFIX", LLVM);
    run(&mut command).context("cannot build bpf-linker")
}

fn install_cargo_deny() -> Result<()> {
    println!("setup: cargo install cargo-deny {CARGO_DENY_VERSION} (a few minutes)");
    run(&mut cargo_install("cargo-deny", CARGO_DENY_VERSION)).context("cannot build cargo-deny")
}

fn install_cargo_fuzz() -> Result<()> {
    println!("setup: cargo install cargo-fuzz {CARGO_FUZZ_VERSION} (two minutes)");
    run(&mut cargo_install("cargo-fuzz", CARGO_FUZZ_VERSION)).context("cannot build cargo-fuzz")
}

/// `--force`: we come here only if what is installed does not work, or is another version.
fn cargo_install(package: &str, version: &str) -> Command {
    let mut command = cargo(&["install", package, "--version", version, "--locked", "--force"]);
    command.env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
    command
}

fn add_component(name: &str) -> Result<()> {
    println!("setup: rustup component add {name}");
    run(Command::new("rustup").current_dir(process::root()).args(["component", "add", name]))
        .with_context(|| format!("cannot add {name} to the Rust toolchain"))
}

fn mount_bpffs() -> Result<()> {
    println!("setup: mount -t bpf bpf {BPFFS}");
    run(Root::here().command(Path::new("mount"), &[])?.args(["-t", "bpf", "bpf", BPFFS]))
        .with_context(|| format!("cannot mount the BPF filesystem at {BPFFS}: no CAP_SYS_ADMIN?"))
}

/// What a person must do where we cannot.
fn by_hand(items: &[Item]) -> anyhow::Error {
    let lines = items.iter().map(|item| format!("\n  {item}: {}", item.by_hand()));
    anyhow::anyhow!("get these and run `cargo xtask setup` again:{}", lines.collect::<String>())
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bpf(bpf::Missing::Compiler) => write!(f, "a Rust compiler for {}", bpf::TARGET),
            Self::Bpf(bpf::Missing::Linker) => write!(f, "bpf-linker {LINKER_VERSION}"),
            Self::BpfClippy => write!(f, "clippy for {}", bpf::TARGET),
            Self::Component(name) => f.write_str(name),
            Self::CargoDeny => f.write_str("cargo-deny"),
            Self::CargoFuzz => f.write_str("cargo-fuzz"),
            Self::Program { name, .. } => f.write_str(name),
            Self::Bpffs => write!(f, "the BPF filesystem at {BPFFS}"),
        }
    }
}

impl Item {
    /// How a person gets it.
    fn by_hand(self) -> String {
        match self {
            Self::Bpf(bpf::Missing::Compiler) => {
                "rustup toolchain install nightly --component rust-src --component clippy".into()
            }
            Self::Bpf(bpf::Missing::Linker) => format!(
                "cargo install bpf-linker --version {LINKER_VERSION} --locked \
                 --no-default-features --features llvm-{LLVM_MAJOR} (or the number of the \
                 compiler's LLVM, see `rustc -vV`), with the development files of that LLVM"
            ),
            Self::BpfClippy => "rustup component add clippy --toolchain nightly".into(),
            Self::Component(name) => format!("rustup component add {name}"),
            Self::CargoDeny => {
                format!("cargo install cargo-deny --version {CARGO_DENY_VERSION} --locked")
            }
            Self::CargoFuzz => {
                format!("cargo install cargo-fuzz --version {CARGO_FUZZ_VERSION} --locked")
            }
            Self::Program { package, .. } => format!("the package {package}, by Debian's name"),
            Self::Bpffs => format!("mount -t bpf bpf {BPFFS}"),
        }
    }
}

/// Whether this is a system whose packages we know, from `/etc/os-release`.
fn is_supported(os_release: &str) -> bool {
    os_field(os_release, "ID") == Some("debian")
        && matches!(os_field(os_release, "VERSION_ID"), Some("12" | "13"))
}

/// A field of `/etc/os-release`, os-release(5), without its quotes.
fn os_field<'a>(os_release: &'a str, name: &str) -> Option<&'a str> {
    os_release.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix('=')?.trim();
        Some(value.trim_matches(['"', '\'']))
    })
}

/// Those of `packages` that `apt-cache policy` has no version for.
fn without_candidate<'a>(policy: &str, packages: &[&'a str]) -> Vec<&'a str> {
    let has_candidate = |package: &&str| {
        let heading = format!("{package}:");
        let mut lines = policy.lines().skip_while(|line| *line != heading).skip(1);
        let candidate = lines
            .by_ref()
            .take_while(|line| line.starts_with(' '))
            .find_map(|line| line.trim().strip_prefix("Candidate: "));
        candidate.is_some_and(|version| version != "(none)")
    };
    packages.iter().copied().filter(|package| !has_candidate(package)).collect()
}

/// Whether the BPF filesystem is mounted where it belongs, from `/proc/mounts`.
fn has_bpffs(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_12_and_13_are_supported() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\n\
                      VERSION_CODENAME=bookworm\nID=debian\n";
        assert!(is_supported(debian));
        assert!(is_supported(&debian.replace("12", "13")));
        assert!(!is_supported(&debian.replace("VERSION_ID=\"12\"", "VERSION_ID=\"11\"")));
        assert!(!is_supported("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"12\"\n"));
        assert!(!is_supported(""));
        assert_eq!(os_field(debian, "VERSION_CODENAME"), Some("bookworm"));
        assert_eq!(os_field(debian, "VERSION"), None);
    }

    #[test]
    fn a_package_without_a_candidate_is_named() {
        let policy = "curl:\n  Installed: 7.88\n  Candidate: 7.88\n  Version table:\n\
                      rustc-web:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n";
        let asked = ["curl", "rustc-web", "llvm-22-dev"];
        assert_eq!(without_candidate(policy, &asked), ["rustc-web", "llvm-22-dev"]);
    }

    #[test]
    fn a_bpf_filesystem_elsewhere_does_not_count() {
        let sysfs = "sysfs /sys sysfs rw,nosuid 0 0\n";
        assert!(has_bpffs(&format!("{sysfs}bpf /sys/fs/bpf bpf rw,nosuid 0 0\n")));
        assert!(!has_bpffs(&format!("{sysfs}bpf /mnt/bpf bpf rw 0 0\n")));
        assert!(!has_bpffs(&format!("{sysfs}tmpfs /sys/fs/bpf tmpfs rw 0 0\n")));
    }

    #[test]
    fn what_no_package_brings_asks_for_none() {
        assert!(packages(&[Item::Bpffs, Item::CargoDeny, Item::Component("clippy")]).is_empty());
        let program = Item::Program { name: "ip", package: "iproute2" };
        assert_eq!(packages(&[Item::Bpffs, program]), ["iproute2"]);
    }
}
