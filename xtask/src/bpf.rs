//! The kernel program's compiler: finding it, and building `lb-ebpf` with it.
//!
//! `lb-ebpf` needs a rustc that has `core` for `bpfel-unknown-none` (the stable toolchain has
//! not) and a `bpf-linker` of an LLVM no older than that rustc's. Two ways are known
//! ([`Toolchain::find`] takes the first that is there):
//!
//! 1. Debian's packages `rustc-web` and `libstd-rust-web-dev-bpf` (security suite of Debian 12
//!    and 13: rustc 1.96, LLVM 22, `core` for BPF compiled), driven by our own cargo;
//! 2. a rustup nightly with the component `rust-src`, which compiles `core` itself.
//!
//! Installing them is not done here: `cargo xtask setup` does.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The target of the kernel program: little-endian BPF, as all machines that we claim.
pub const TARGET: &str = "bpfel-unknown-none";

/// The `bpf-linker` that `cargo xtask setup` installs. Of another 0.13 we accept any.
pub const LINKER_VERSION: &str = "0.13.0";

/// LLVM's major version in Debian's `rustc-web`, and so the one to build `bpf-linker` with.
pub const LLVM_MAJOR: &str = "22";

/// Where Debian's rustc is; rustup's has the same name earlier in `PATH`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// A compiler and a linker that can build the kernel program.
#[derive(Debug)]
pub struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

#[derive(Debug)]
struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    cargo_clippy: PathBuf,
    /// `core` comes as source: cargo compiles it (`-Z build-std`).
    build_std: bool,
}

/// A part of the compiler that is not on this machine. Its `Display` is one sentence with the
/// command that mends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// No rustc with `core` for BPF.
    Compiler,
    /// No `bpf-linker` that starts and is of the version we know.
    Linker,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Compiler => "a Rust compiler for the kernel program (target bpfel-unknown-none)",
            Self::Linker => "the kernel program's linker (bpf-linker 0.13)",
        };
        write!(f, "{what} is not installed: run `cargo xtask setup`")
    }
}

/// Why the kernel program was not built.
#[derive(Debug)]
pub enum BuildError {
    /// A tool is not there.
    Missing(Missing),
    /// The compiler or linker refused the program; this is what it said.
    Refused(String),
    /// Reading or writing a file, or starting cargo, failed: what was tried, and the cause.
    Io(String, io::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(missing) => missing.fmt(f),
            Self::Refused(said) => write!(f, "the kernel program (lb-ebpf) was refused:\n\n{said}"),
            Self::Io(tried, cause) => write!(f, "cannot {tried}: {cause}"),
        }
    }
}

impl std::error::Error for BuildError {}

/// Every part that is not on this machine.
pub fn missing() -> Vec<Missing> {
    let compiler = Compiler::find().is_none().then_some(Missing::Compiler);
    let linker = find_linker().is_none().then_some(Missing::Linker);
    compiler.into_iter().chain(linker).collect()
}

impl Toolchain {
    /// The first compiler that can build for BPF, and the linker.
    pub fn find() -> Result<Self, Missing> {
        Ok(Self {
            compiler: Compiler::find().ok_or(Missing::Compiler)?,
            linker: find_linker().ok_or(Missing::Linker)?,
        })
    }

    /// The files that a new build must follow: cargo's `rerun-if-changed`.
    pub fn files(&self) -> [&Path; 2] {
        [&self.compiler.rustc, &self.linker]
    }

    /// Clippy's program of the same compiler. It may be missing where the compiler is not.
    pub fn cargo_clippy(&self) -> &Path {
        &self.compiler.cargo_clippy
    }

    /// Builds every program of the package in `package` for a kernel of architecture `arch` (a
    /// Rust name: `x86_64`), and returns their objects, named as the package's binaries.
    ///
    /// `target_dir` must not be the caller's own: cargo holds a lock on that.
    pub fn build(
        &self,
        package: &Path,
        target_dir: &Path,
        arch: &str,
        features: &[&str],
    ) -> Result<Vec<PathBuf>, BuildError> {
        let mut cargo = self.command(&self.compiler.cargo, target_dir, arch);
        cargo.current_dir(package).args(["build", "--quiet", "--locked"]).args(self.selection());
        cargo.args(["--features", &features.join(",")]);
        let output = cargo
            .output()
            .map_err(|e| BuildError::Io(format!("start {}", self.compiler.cargo.display()), e))?;
        if !output.status.success() {
            return Err(BuildError::Refused(explain(&output)));
        }
        objects(&target_dir.join(TARGET).join("release"))
    }

    /// Clippy over every program of the package in `package`, with `clippy_arguments` after `--`.
    pub fn clippy(
        &self,
        package: &Path,
        target_dir: &Path,
        arch: &str,
        clippy_arguments: &[&str],
    ) -> Command {
        let mut clippy = self.command(&self.compiler.cargo_clippy, target_dir, arch);
        clippy
            .current_dir(package)
            .args(["clippy", "--locked", "--all-features", "--keep-going"])
            .args(self.selection());
        clippy.arg("--").args(clippy_arguments);
        clippy
    }

    /// What to build, for which target. The profile is the package's own `release`.
    fn selection(&self) -> Vec<&'static str> {
        let mut arguments = vec!["--release", "--target", TARGET, "--bins"];
        if self.compiler.build_std {
            arguments.extend(["-Z", "build-std=core"]);
        }
        arguments
    }

    /// `program` with the environment of this compiler, and of nothing else.
    fn command(&self, program: &Path, target_dir: &Path, arch: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(belongs_to_the_outer_cargo) {
                command.env_remove(name);
            }
        }
        command
            // cargo-clippy starts the cargo that is named here.
            .env("CARGO", &self.compiler.cargo)
            .env("RUSTC", &self.compiler.rustc)
            // `core_intrinsics` (64-bit compare-and-exchange) and `asm_experimental_arch`.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags(&self.linker, arch).join("\x1f"))
            .env("CARGO_TARGET_DIR", target_dir);
        command
    }
}

impl Compiler {
    fn find() -> Option<Self> {
        Self::debian().or_else(Self::nightly)
    }

    /// Debian's compiler, driven by the cargo that runs us.
    fn debian() -> Option<Self> {
        let rustc = Path::new(DEBIAN_RUSTC);
        let version = stdout(Command::new(rustc).arg("-vV"))?;
        let libraries =
            stdout(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
        if llvm_major(&version) != Some(LLVM_MAJOR) || !Path::new(libraries.trim()).is_dir() {
            return None;
        }
        Some(Self {
            cargo: env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
            rustc: rustc.into(),
            cargo_clippy: DEBIAN_CARGO_CLIPPY.into(),
            build_std: false,
        })
    }

    /// A rustup nightly that has the sources of `core`.
    fn nightly() -> Option<Self> {
        let list = stdout(Command::new("rustup").args(["toolchain", "list", "-v"]))?;
        let directory = nightlies(&list)
            .into_iter()
            .find(|directory| directory.join("lib/rustlib/src/rust/library/core").is_dir())?;
        Some(Self {
            cargo: directory.join("bin/cargo"),
            rustc: directory.join("bin/rustc"),
            cargo_clippy: directory.join("bin/cargo-clippy"),
            build_std: true,
        })
    }
}

/// Compiler flags of the kernel program for a kernel of architecture `arch`.
///
/// `opt-level`, LTO and panics are the package's profile. Here is what a profile cannot say.
fn flags(linker: &Path, arch: &str) -> Vec<String> {
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        // BTF for maps, for `bpftool`, and for the source lines in the verifier's log.
        "-Clink-arg=--btf".into(),
        "-Cdebuginfo=2".into(),
        // The first with 64-bit compare-and-exchange and 32-bit jumps; kernel 5.12, our floor
        // is 6.1.
        "-Ctarget-cpu=v3".into(),
        // aya-ebpf's choice of `pt_regs`.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
    ];
    if reads_unaligned_words(arch) {
        // One load for a field of a packet where LLVM else makes one per byte: a program of three
        // reads and a write shrank from 58 instructions to 21 (llvm-objdump, LLVM 22). The linker
        // generates the code, so it alone is told; rustc's `-C target-feature` warns, and passes
        // the option a second time, which bpf-linker refuses. A block copy of more than eight
        // bytes, or of an odd size, still goes by bytes, and the verifier still wants *stack*
        // accesses aligned.
        flags.push("-Clink-arg=--cpu-features=+allows-misaligned-mem-access".into());
    }
    flags
}

/// Whether the verifier lets a program read a misaligned word of a packet: kernels built with
/// `HAVE_EFFICIENT_UNALIGNED_ACCESS`.
fn reads_unaligned_words(arch: &str) -> bool {
    matches!(arch, "x86_64" | "aarch64")
}

/// Whether an environment variable speaks to the cargo or rustc that runs us, and would mislead
/// the one that we start: another compiler for another target, and another target directory.
fn belongs_to_the_outer_cargo(name: &str) -> bool {
    // Where crates come from, and how cargo looks, is the same for both.
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const DROPPED: [&str; 12] = [
        "CARGO",
        "CLIPPY_",
        "LD_LIBRARY_PATH",
        "MAKEFLAGS",
        "MFLAGS",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
        "RUST_TARGET_PATH",
        "__CARGO",
    ];
    let begins = |prefix: &&str| name.starts_with(*prefix);
    DROPPED.iter().any(begins) && !KEPT.iter().any(begins)
}

/// `bpf-linker`, in `PATH` or where cargo installs, if it starts and is one we know. It does not
/// start when its LLVM was removed.
fn find_linker() -> Option<PathBuf> {
    let name = "bpf-linker";
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|directory| directory.join(name))
        .filter(|linker| linker.is_file())
        .find(|linker| {
            stdout(Command::new(linker).arg("--version"))
                .is_some_and(|version| is_known_linker(&version))
        })
}

/// Of our minor version, from `bpf-linker --version`: its options change between minors.
fn is_known_linker(version: &str) -> bool {
    let version = version.trim().strip_prefix("bpf-linker ").unwrap_or_default();
    match (version.rsplit_once('.'), LINKER_VERSION.rsplit_once('.')) {
        (Some((minor, _)), Some((known, _))) => minor == known,
        _ => false,
    }
}

/// LLVM's major version, from `rustc -vV`.
fn llvm_major(version: &str) -> Option<&str> {
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next()
}

/// Directories of the nightly toolchains, from `rustup toolchain list -v`.
fn nightlies(list: &str) -> Vec<PathBuf> {
    list.lines()
        .filter(|line| line.starts_with("nightly"))
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(line[at..].trim())))
        .collect()
}

/// What the compiler said, and what to do where its own words do not tell.
fn explain(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("--locked") {
        return format!(
            "{said}\n\nlb-ebpf/Cargo.lock is behind its dependencies: run \
             `cargo update --workspace --manifest-path lb-ebpf/Cargo.toml` and commit it"
        );
    }
    said
}

/// The programs that cargo left in `directory`: files without an extension.
fn objects(directory: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let failed = |e| BuildError::Io(format!("list {}", directory.display()), e);
    let mut objects = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if path.is_file() && path.extension().is_none() && !hidden {
            objects.push(path);
        }
    }
    objects.sort();
    Ok(objects)
}

/// What a command printed, if it could be run and succeeded.
fn stdout(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_rustc_is_read_from_its_version() {
        let debian = "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(debian), Some("22"));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }

    #[test]
    fn only_nightlies_of_the_list_are_looked_at() {
        let list = "stable-x86_64-unknown-linux-gnu (default)\t /home/dev/.rustup/toolchains/stable\n\
                    nightly-2026-10-01-x86_64-unknown-linux-gnu\t /home/a b/toolchains/old\n\
                    nightly-x86_64-unknown-linux-gnu (active) /home/dev/.rustup/toolchains/nightly\n";
        let expected = ["/home/a b/toolchains/old", "/home/dev/.rustup/toolchains/nightly"];
        assert_eq!(nightlies(list), expected.map(PathBuf::from));
        assert_eq!(nightlies("no installed toolchains\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_linker_of_another_minor_version_is_not_taken() {
        for (version, known) in [
            ("bpf-linker 0.13.0\n", true),
            ("bpf-linker 0.13.4\n", true),
            ("bpf-linker 0.1.3\n", false),
            ("bpf-linker 0.14.0\n", false),
            ("ld 0.13.0\n", false),
        ] {
            assert_eq!(is_known_linker(version), known, "{version}");
        }
    }

    #[test]
    fn the_outer_cargo_does_not_leak_into_the_inner_one() {
        for leak in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_MAKEFLAGS",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_DIR",
            "CLIPPY_ARGS",
            "LD_LIBRARY_PATH",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTDOCFLAGS",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(belongs_to_the_outer_cargo(leak), "{leak}");
        }
        for kept in
            ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR", "HOME", "PATH", "RUSTUP_HOME"]
        {
            assert!(!belongs_to_the_outer_cargo(kept), "{kept}");
        }
    }

    #[test]
    fn misaligned_access_is_asked_for_where_the_verifier_allows_it() {
        let has = |arch| flags(Path::new("l"), arch).iter().any(|f| f.contains("misaligned"));
        assert!(has("x86_64") && has("aarch64"));
        assert!(!has("riscv64"));
        assert!(
            flags(Path::new("l"), "aarch64").contains(&"--cfg=bpf_target_arch=\"aarch64\"".into())
        );
    }
}
