//! What a killed run left behind, found by name: every name carries the process id of its owner.

use std::{fs, path::Path, process::Command, sync::Once, thread};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::namespace;

/// Every name of a laboratory begins with this, followed by the owner's process id and a `-`.
pub(super) const PREFIX: &str = "sl-";

/// Removes, once a process, everything whose owner is dead.
pub(super) fn remove() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        for name in names_in("/run/netns") {
            end_processes(&name);
            namespace::delete(&name);
        }
        for directory in ["/sys/fs/bpf/sluice", "/run/sluice", "/var/lib/sluice"] {
            for name in names_in(directory) {
                remove_directory(&Path::new(directory).join(name));
            }
        }
        let temporary = std::env::temp_dir();
        for name in names_in(&temporary) {
            remove_directory(&temporary.join(name));
        }
    });
}

/// Removes a directory of ours, if it is there.
pub(super) fn remove_directory(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            eprintln!("{} stays: {error}", path.display());
        }
        _ => {}
    }
}

fn names_in(directory: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| owner(name).is_some_and(|id| !is_alive(id)))
        .collect()
}

/// The process id in a name; `None` if it is none of ours.
fn owner(name: &str) -> Option<&str> {
    let (id, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    id.bytes().all(|byte| byte.is_ascii_digit()).then_some(id).filter(|id| !id.is_empty())
}

/// A zombie that nobody has reaped yet is dead enough: the letter after the name, which may hold
/// anything, brackets too (proc_pid_stat(5)).
fn is_alive(id: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(id).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Ends what still runs in a dead run's namespace; nobody else's programs are in there.
fn end_processes(namespace: &str) {
    let ids = || -> Vec<i32> {
        let output = Command::new("ip").args(["netns", "pids", namespace]).output();
        let output = output.map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).lines().filter_map(|id| id.parse().ok()).collect()
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for id in ids() {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(id), signal);
        }
        // Nothing here is our child, so there is nobody to wait for: look again.
        for _ in 0..10 {
            if ids().is_empty() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{is_alive, owner};

    #[test]
    fn only_names_with_a_process_id_are_ours() {
        assert_eq!(owner("sl-123-0-client"), Some("123"));
        assert_eq!(owner("sl-123-0.Ab3"), Some("123"));
        for name in ["sl--0", "sl-x1-0", "sl-12", "slow-1-2", "default"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = child.id().to_string();
        let dead = || (!is_alive(&id)).then_some(());
        crate::lab::until("the child to end", crate::lab::DEADLINE, dead).unwrap();
        assert!(Path::new("/proc").join(&id).exists(), "not reaped yet");
        child.wait().unwrap();
        assert!(is_alive(&std::process::id().to_string()));
    }
}
