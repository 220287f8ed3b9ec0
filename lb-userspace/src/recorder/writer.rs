//! Who writes the recording: a thread of its own, so that a disk that hangs holds up nobody.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use super::{Second, ring::Ring};
use crate::{
    control::api::EventKind,
    journal::{Entry, Journal},
};

/// Seconds that wait for a slow disk.
const WAITING: usize = 8;

/// Takes seconds and has them written.
#[derive(Debug)]
pub struct Recorder {
    seconds: SyncSender<(Second, usize)>,
    path: PathBuf,
    journal: Journal,
    error: Arc<Mutex<Option<String>>>,
}

impl Recorder {
    /// Begins to record, into a state directory, an instance that has so many services and backends
    /// together. What goes wrong is told in the journal.
    pub fn start(directory: &Path, journal: Journal, parties: usize) -> Self {
        let path = super::path(directory);
        let error = Arc::default();
        let (seconds, todo) = sync_channel(WAITING);
        let recorder = Self { seconds, path: path.clone(), journal: journal.clone(), error };
        let teller = Teller { path, journal, error: recorder.error.clone() };
        let spawned = thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || write_all(&todo, &teller, parties));
        if let Err(error) = spawned {
            recorder.teller().tell(Some(error.to_string()));
        }
        recorder
    }

    /// Records a second of an instance that has so many services and backends together. Never
    /// waits: if the disk is too slow, the second is lost.
    pub fn record(&self, second: Second, parties: usize) {
        match self.seconds.try_send((second, parties)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.teller().tell(Some("the disk is too slow".to_owned()));
            }
            // The thread could not be started, which was told.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Why the last seconds are not recorded, if they are not.
    pub fn error(&self) -> Option<String> {
        lock(&self.error).clone()
    }

    fn teller(&self) -> Teller {
        let Self { path, journal, error, .. } = self;
        Teller { path: path.clone(), journal: journal.clone(), error: error.clone() }
    }
}

fn write_all(todo: &Receiver<(Second, usize)>, teller: &Teller, parties: usize) {
    // At once: the disk may be full when there is something to tell.
    let opened = Ring::open(&teller.path);
    let reserved = opened.and_then(|mut ring| ring.reserve(parties).map(|()| ring));
    let mut ring = reserved.map_err(|error| teller.tell(Some(error.to_string()))).ok();
    for (second, parties) in todo {
        let opened = match ring.take() {
            Some(ring) => Ok(ring),
            None => Ring::open(&teller.path),
        };
        let written = opened.and_then(|mut ring| {
            let written = ring.append(&second, parties);
            // Another disk, or file, may be there the next time.
            written.map(|()| ring)
        });
        match written {
            Ok(open) => {
                ring = Some(open);
                teller.tell(None);
            }
            Err(error) => teller.tell(Some(error.to_string())),
        }
    }
}

/// Tells what is wrong with the recording: once when it begins, once when it ends.
struct Teller {
    path: PathBuf,
    journal: Journal,
    error: Arc<Mutex<Option<String>>>,
}

impl Teller {
    fn tell(&self, why: Option<String>) {
        let path = self.path.display();
        let error = why.map(|why| {
            format!("the flight recorder can't write {path}: {why}; all else goes on without it")
        });
        let before = std::mem::replace(&mut *lock(&self.error), error.clone());
        match (before, error) {
            (None, Some(error)) => self.journal.note(EventKind::Trouble, Entry::new(error)),
            (Some(_), None) => {
                let text = format!("the flight recorder writes {path} again");
                self.journal.note(EventKind::Daemon, Entry::new(text));
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}

/// Whoever panicked with it left a whole value behind.
fn lock(error: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    error.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::recorder;

    fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_can_not_be_written_is_told_once_and_so_is_its_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path().join("state");
        let journal = Journal::of(directory.path());
        // A file in the way of the directory.
        fs::write(&state, "").expect("written");
        let recorder = Recorder::start(&state, journal.clone(), 1);
        let second = |at| Second { at, span_ms: 1000, ..Second::default() };
        for at in 0..3 {
            recorder.record(second(at), 1);
        }
        until("an error", || recorder.error().is_some_and(|error| error.contains("recorder.bin")));
        fs::remove_file(&state).expect("removed");
        let mut at = 3;
        until("a recording", || {
            recorder.record(second(at), 1);
            recorder.error().is_none()
        });
        at += 1;
        recorder.record(second(at), 1);
        until("the second", || {
            let recording = recorder::read(&recorder::path(&state), &(4..=4));
            recording.is_ok_and(|recording| recording.seconds.len() == 1)
        });
        let told = journal.events(&crate::control::api::EventFilter::default()).events;
        let kinds: Vec<EventKind> = told.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Trouble, EventKind::Daemon], "{told:?}");
    }
}
