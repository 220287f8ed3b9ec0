//! `state.json`: any bytes are what was kept, or are set aside; never are they a reason not to run.

use std::{fs, path::Path, sync::OnceLock};

use lb_userspace::{
    config,
    drain::{Admin, Moment},
    intent::{Intent, kept::Store},
};
use tempfile::TempDir;

/// The configuration file of the instance that starts.
pub const CONFIG: &str = include_str!("../../seeds/config/two-services.toml");

/// One input.
///
/// # Panics
/// If a start fails over it; if it is neither used nor set aside; or if what was understood of it is
/// not the same when it was kept and is restored.
pub fn run(input: &[u8]) {
    let directory = directory();
    clear(directory);
    fs::write(directory.join("state.json"), input).expect("a file");
    let restored = Store::restore(directory, "sluice.toml", CONFIG, Moment(0))
        .expect("what is kept is no reason not to start");
    let (there, aside) = (directory.join("state.json").exists(), files(directory) > 0);
    let told = restored.notes.iter().any(|note| note.contains("was not used"));
    assert_eq!((there, told), (!told, aside), "neither used nor set aside: {:?}", restored.notes);
    for note in &restored.notes {
        assert!(!note.contains(char::is_control), "no line of text: {note:?}");
    }
    telling(&restored.intent);
    again(directory, &restored.store, &restored.intent);
}

/// What was kept is what is restored.
pub fn again(directory: &Path, store: &Store, intent: &Intent) {
    store.keep(intent).expect("a file");
    let again = Store::restore(directory, "sluice.toml", CONFIG, Moment(1)).expect("a start");
    assert_eq!(&again.intent, intent, "not what was kept: {:?}", again.notes);
}

/// All that the daemon makes of an intent for others to read.
pub fn telling(intent: &Intent) {
    let desired = intent.desired();
    for backend in desired.services.iter().flat_map(|service| &service.backends) {
        let moments = match backend.admin {
            Admin::Enabled | Admin::Disabled => continue,
            Admin::Draining(drain) => [drain.since, drain.deadline],
            Admin::Drained(drained) => [drained.since, drained.until],
        };
        for moment in moments {
            assert!(!moment.to_string().is_empty());
        }
    }
    let text = config::export(&desired).expect("what is wanted can be written");
    if let Err(error) = config::parse(&text, "export") {
        panic!("{error}\nin what is wanted:\n{text}");
    }
}

/// This process's own; in memory, where there is such a file system.
pub fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    let make = || {
        let memory = Path::new("/dev/shm");
        let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        made.expect("a directory")
    };
    DIRECTORY.get_or_init(make).path()
}

fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).expect("a directory") {
        fs::remove_file(entry.expect("a file").path()).expect("removed");
    }
}

/// How many are there beside `state.json`.
fn files(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).expect("a directory");
    entries.filter(|entry| entry.as_ref().is_ok_and(|e| e.file_name() != "state.json")).count()
}
