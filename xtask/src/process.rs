//! Starting other programs: what went wrong is said with the program's name, and what needs root
//! gets it from `sudo` where we are not root.

use std::{
    convert::Infallible,
    env, fs, io,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

/// The workspace's root.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Cargo's target directory of the workspace.
pub fn target_dir() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The cargo that runs us, in the workspace's root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(arguments);
    cargo
}

/// Runs a command to its end with our own input and output; failing is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|e| not_started(command, &e))?;
    if !status.success() {
        bail!("`{}` failed ({status})", words(command));
    }
    Ok(())
}

/// Becomes the command: its exit code is ours, and a signal reaches it as it would reach us.
pub fn exec(mut command: Command) -> Result<Infallible> {
    let cause = command.exec();
    Err(not_started(&command, &cause))
}

/// What a command prints; failing is an error, with what it said last.
pub fn captured(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|e| not_started(command, &e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.is_empty()).unwrap_or_default();
        bail!("`{}` failed ({}): {last}", words(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("read what {} says", words(command)))
}

/// What a command prints, or nothing if it is not there or fails.
pub fn stdout(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Where a program is. Other people than root often have no `sbin` in their `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// How a program can be run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// We are root.
    Already,
    /// By `sudo`, which may ask for a password.
    BySudo,
    /// Not at all.
    No,
}

impl Root {
    /// How it is here.
    pub fn here() -> Self {
        // The owner of a process's directory is its effective user.
        if fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
            Self::Already
        } else if find("sudo").is_some() {
            Self::BySudo
        } else {
            Self::No
        }
    }

    /// `program`, to be run as root with the variables of `keep` from our environment.
    pub fn command(self, program: &Path, keep: &[&str]) -> Result<Command> {
        match self {
            Self::Already => Ok(Command::new(program)),
            Self::BySudo => {
                let mut sudo = Command::new("sudo");
                if !keep.is_empty() {
                    sudo.arg(format!("--preserve-env={}", keep.join(",")));
                }
                sudo.arg(program);
                Ok(sudo)
            }
            Self::No => {
                bail!("{} must run as root: become root, or install sudo", program.display())
            }
        }
    }
}

fn not_started(command: &Command, cause: &io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    if cause.kind() == io::ErrorKind::NotFound {
        anyhow!("{program} is not installed: run `cargo xtask setup`")
    } else {
        anyhow!("cannot start {program}: {cause}")
    }
}

/// The command as a person would type it: the program without its directory.
fn words(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Reads a text file, or says which.
pub fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_the_command_that_mends_it() {
        let error = run(&mut Command::new("no-such-program")).unwrap_err().to_string();
        assert_eq!(error, "no-such-program is not installed: run `cargo xtask setup`");
    }

    #[test]
    fn a_failed_command_is_told_as_it_would_be_typed() {
        let error = run(Command::new("/bin/sh").args(["-c", "exit 3"])).unwrap_err().to_string();
        assert_eq!(error, "`sh -c exit 3` failed (exit status: 3)");
    }

    #[test]
    fn without_root_and_sudo_the_program_is_named() {
        let error = Root::No.command(Path::new("apt-get"), &[]).unwrap_err().to_string();
        assert!(error.starts_with("apt-get must run as root"), "{error}");
    }
}
