//! The journal: what happened to an instance, and who asked for it. Kept in its state directory,
//! so that it can be read when the daemon is dead; bounded; also in the log.
//!
//! One line of JSON for each event, appended by one write: a process that dies leaves at most
//! one torn line, which readers skip. When the file is full it becomes `events.1.jsonl`, in the
//! place of an older one.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::control::{
    Peer,
    api::{Event, EventFilter, EventKind, Events, LastProbe},
};

/// Size at which a file is full; there are two at most, some 40,000 events.
const FULL: u64 = 4 << 20;
/// Events kept in memory, for those who follow.
const RECENT: usize = 4096;
/// Events that happen together and are told one by one, so that a file of ten thousand backends
/// does not drive out all that was before.
const TOGETHER: usize = 1000;

/// An instance's journal. Clones write to the same.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    file: Option<File>,
    recent: VecDeque<Event>,
    last_id: u64,
    /// Of the file, if nobody else has written since it was opened.
    length: u64,
    /// Why the file could not be written last, if it could not.
    error: Option<String>,
}

/// What is to be noted.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    service: Option<String>,
    backend: Option<String>,
    text: String,
    by: Option<Peer>,
    generation: Option<u64>,
    probe: Option<LastProbe>,
}

impl Entry {
    /// Something in words.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// About a service, and a backend of it.
    pub fn about(self, service: Option<&str>, backend: Option<&str>) -> Self {
        let [service, backend] = [service, backend].map(|name| name.map(str::to_owned));
        Self { service, backend, ..self }
    }

    /// Somebody asked for it, and this count of changes came of it.
    pub fn by(self, peer: &Peer, generation: u64) -> Self {
        Self { by: Some(*peer), generation: Some(generation), ..self }
    }

    /// It rests on this probe.
    pub fn seen_by(self, probe: Option<LastProbe>) -> Self {
        Self { probe, ..self }
    }
}

impl Journal {
    /// The journal in a state directory, made with the first entry.
    pub fn of(directory: &Path) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            directory: directory.to_owned(),
            file: None,
            recent: VecDeque::new(),
            last_id: 0,
            length: 0,
            error: None,
        })))
    }

    /// Notes something that happened, here and in the log.
    pub fn note(&self, kind: EventKind, entry: Entry) {
        self.note_all(kind, [entry]);
    }

    /// Notes what happened together.
    pub fn note_all(&self, kind: EventKind, entries: impl IntoIterator<Item = Entry>) {
        let mut entries: Vec<Entry> = entries.into_iter().collect();
        let surplus = entries.len().saturating_sub(TOGETHER);
        if surplus > 0 {
            let Entry { by, generation, .. } = entries[TOGETHER].clone();
            let text = format!("and {surplus} more like these");
            entries.truncate(TOGETHER);
            entries.push(Entry { text, by, generation, ..Entry::default() });
        }
        let mut inner = self.lock();
        let events: Vec<Event> =
            entries.into_iter().map(|entry| inner.event(kind, entry)).collect();
        for event in &events {
            log(event);
        }
        if !events.is_empty() {
            inner.write(&events);
        }
    }

    /// What happened, the oldest first.
    pub fn events(&self, filter: &EventFilter) -> Events {
        let inner = self.lock();
        let after = filter.after.unwrap_or(0);
        let length = fs::metadata(path(&inner.directory)).map_or(0, |file| file.len());
        let knows_all = inner.recent.front().is_some_and(|oldest| oldest.id <= after)
            && (length == inner.length || inner.error.is_some());
        if knows_all {
            return select(inner.recent.iter().cloned(), filter);
        }
        let directory = inner.directory.clone();
        let recent: Vec<Event> = inner.recent.iter().cloned().collect();
        drop(inner);
        // What could not be written is known to the memory alone.
        let all = read(&directory).into_iter().chain(recent);
        let by_id: BTreeMap<u64, Event> = all.map(|event| (event.id, event)).collect();
        select(by_id.into_values(), filter)
    }

    /// Why the last entries are not on disk, if they are not.
    pub fn error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    /// Whoever panicked with it left whole values behind.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn event(&mut self, kind: EventKind, entry: Entry) -> Event {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = (since_1970.as_micros() as u64).max(self.last_id + 1);
        self.last_id = id;
        let at = UNIX_EPOCH + Duration::from_micros(id);
        Event {
            id,
            at: humantime::format_rfc3339_micros(at).to_string(),
            kind,
            service: entry.service,
            backend: entry.backend,
            text: entry.text,
            uid: entry.by.map(|peer| peer.uid),
            pid: entry.by.and_then(|peer| peer.pid),
            generation: entry.generation,
            probe: entry.probe,
        }
    }

    fn write(&mut self, events: &[Event]) {
        let error = self.append(events).err().map(|error| {
            let path = path(&self.directory).display().to_string();
            format!(
                "can't write {path}: {error}; the latest events are only in memory and in the log"
            )
        });
        if let (Some(error), None) = (&error, &self.error) {
            tracing::error!("{error}");
        }
        if error.is_some() {
            // Perhaps another file, or disk, is there the next time.
            self.file = None;
        }
        self.error = error;
        self.recent.extend(events.iter().cloned());
        let surplus = self.recent.len().saturating_sub(RECENT);
        self.recent.drain(..surplus);
    }

    fn append(&mut self, events: &[Event]) -> io::Result<()> {
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, event)?;
            lines.push(b'\n');
        }
        let opened = match self.file.take() {
            Some(file) if file.metadata()?.len() < FULL => Some(file),
            Some(_) => {
                fs::rename(path(&self.directory), older(&self.directory))?;
                None
            }
            None => None,
        };
        let file = match opened {
            Some(file) => file,
            None => {
                let file = open(&self.directory)?;
                self.length = file.metadata()?.len();
                file
            }
        };
        let file = self.file.insert(file);
        file.write_all(&lines)?;
        self.length += lines.len() as u64;
        file.sync_data()
    }
}

fn open(directory: &Path) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    OpenOptions::new().append(true).create(true).mode(0o640).open(path(directory))
}

fn path(directory: &Path) -> PathBuf {
    directory.join("events.jsonl")
}

fn older(directory: &Path) -> PathBuf {
    directory.join("events.1.jsonl")
}

/// What the files in a state directory tell, the oldest first; a torn line tells nothing.
pub fn read(directory: &Path) -> Vec<Event> {
    let texts = [older(directory), path(directory)].map(|path| fs::read(path).unwrap_or_default());
    let lines = texts.iter().flat_map(|text| text.split(|byte| *byte == b'\n'));
    let mut events: Vec<Event> =
        lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    // Another process, as an upgrade's, may have written between.
    events.sort_by_key(|event| event.id);
    events
}

/// The latest that match, the oldest first.
pub fn select(events: impl IntoIterator<Item = Event>, filter: &EventFilter) -> Events {
    let mut events: Vec<Event> = events.into_iter().filter(|event| filter.matches(event)).collect();
    let surplus = events.len().saturating_sub(filter.limit());
    events.drain(..surplus);
    Events { events, truncated: surplus > 0 }
}

fn log(event: &Event) {
    let Event { kind, service, backend, text, uid, pid, generation, .. } = event;
    let kind = kind.name();
    // The journal shows the message alone, unless it is asked for the fields.
    let about = match (service, backend) {
        (Some(service), Some(backend)) => format!("{service}/{backend}: "),
        (Some(service), None) => format!("{service}: "),
        (None, _) => String::new(),
    };
    match event.kind {
        EventKind::Daemon | EventKind::Change | EventKind::Drained | EventKind::Upgrade => {
            tracing::info!(kind, service, backend, uid, pid, generation, "{about}{text}");
        }
        EventKind::Drift | EventKind::Attach | EventKind::NextHop | EventKind::Health => {
            tracing::warn!(kind, service, backend, "{about}{text}");
        }
        EventKind::Trouble => tracing::error!(kind, service, backend, "{about}{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(events: &Events) -> Vec<&str> {
        events.events.iter().map(|event| &*event.text).collect()
    }

    #[test]
    fn what_was_noted_is_read_by_the_next() {
        let directory = tempfile::tempdir().expect("a directory");
        let journal = Journal::of(directory.path());
        let peer = Peer { pid: Some(7), uid: 1000, gid: 1000 };
        let entry = Entry::new("enabled -> draining").about(Some("web"), Some("web-1"));
        journal.note(EventKind::Change, entry.by(&peer, 3));
        journal.note(EventKind::Drained, Entry::new("drained"));
        let all = EventFilter::default();
        let told = journal.events(&all);
        assert_eq!(texts(&told), ["enabled -> draining", "drained"]);
        assert_eq!((told.events[0].uid, told.events[0].pid), (Some(1000), Some(7)));
        assert_eq!(told.events[0].generation, Some(3));

        let next = Journal::of(directory.path());
        next.note(EventKind::Daemon, Entry::new("started"));
        assert_eq!(next.events(&all).events[..2], told.events);
        let after = EventFilter { after: Some(told.events[0].id), ..all.clone() };
        assert_eq!(texts(&next.events(&after)), ["drained", "started"]);
        let last = EventFilter { limit: Some(1), ..all.clone() };
        assert_eq!(texts(&next.events(&last)), ["started"]);
        assert!(next.events(&last).truncated);
    }

    #[test]
    fn those_who_follow_hear_of_another_processs_entries() {
        let directory = tempfile::tempdir().expect("a directory");
        let [ours, theirs] = [(); 2].map(|()| Journal::of(directory.path()));
        ours.note(EventKind::Daemon, Entry::new("one"));
        let first = ours.events(&EventFilter::default()).events[0].id;
        theirs.note(EventKind::Upgrade, Entry::new("two"));
        let later = EventFilter { after: Some(first), ..EventFilter::default() };
        assert_eq!(texts(&ours.events(&later)), ["two"]);
        ours.note(EventKind::Daemon, Entry::new("three"));
        assert_eq!(texts(&ours.events(&later)), ["two", "three"]);
    }

    #[test]
    fn a_torn_line_costs_itself_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        Journal::of(directory.path()).note(EventKind::Daemon, Entry::new("one"));
        let file = path(directory.path());
        let mut bytes = fs::read(&file).expect("a file");
        bytes.extend_from_slice(b"{\"id\":12,\"at\n\xff\xfe\n");
        fs::write(&file, &bytes).expect("written");
        Journal::of(directory.path()).note(EventKind::Daemon, Entry::new("two"));
        let told = select(read(directory.path()), &EventFilter::default());
        assert_eq!(texts(&told), ["one", "two"]);
    }

    #[test]
    fn events_are_found_by_what_they_are_about() {
        let directory = tempfile::tempdir().expect("a directory");
        let journal = Journal::of(directory.path());
        for (service, backend) in [("web", "a"), ("web", "b"), ("api", "a")] {
            let entry = |text| Entry::new(text).about(Some(service), Some(backend));
            journal.note(EventKind::Health, entry(format!("{service}/{backend} is ill")));
            journal.note(EventKind::Change, entry(format!("{service}/{backend} is changed")));
        }
        journal.note(EventKind::Daemon, Entry::new("stopping"));
        let filter = EventFilter {
            service: Some("web".to_owned()),
            kind: Some(EventKind::Health),
            ..EventFilter::default()
        };
        assert_eq!(texts(&journal.events(&filter)), ["web/a is ill", "web/b is ill"]);
        let filter = EventFilter { backend: Some("a".to_owned()), limit: Some(1), ..filter };
        assert_eq!(texts(&journal.events(&filter)), ["web/a is ill"]);
        assert!(!journal.events(&filter).truncated, "nothing else matches");
    }

    #[test]
    fn a_change_of_very_much_leaves_room_for_what_was_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let journal = Journal::of(directory.path());
        journal.note(EventKind::Daemon, Entry::new("started"));
        let peer = Peer { pid: Some(7), uid: 1000, gid: 1000 };
        let many = (0..100_000).map(|n| Entry::new(format!("add backend {n}")).by(&peer, 3));
        journal.note_all(EventKind::Change, many);
        let told = select(
            read(directory.path()),
            &EventFilter { limit: Some(5000), ..EventFilter::default() },
        );
        let texts = texts(&told);
        assert_eq!((texts.len(), texts[0]), (1 + TOGETHER + 1, "started"));
        assert_eq!(texts[TOGETHER + 1], "and 99000 more like these");
        assert_eq!(
            (told.events[TOGETHER + 1].uid, told.events[TOGETHER + 1].generation),
            (Some(1000), Some(3))
        );
    }

    #[test]
    fn files_are_bounded() {
        let directory = tempfile::tempdir().expect("a directory");
        let journal = Journal::of(directory.path());
        let entry = Entry::new("x".repeat(64 << 10));
        for _ in 0..200 {
            journal.note(EventKind::Trouble, entry.clone());
        }
        for file in [path(directory.path()), older(directory.path())] {
            let bytes = fs::metadata(&file).expect("a file").len();
            assert!(bytes <= FULL + (128 << 10), "{}: {bytes}", file.display());
        }
        let count = journal.events(&EventFilter {
            after: Some(1),
            limit: Some(10_000),
            ..EventFilter::default()
        });
        assert_eq!(count.events.len(), 200, "what was thrown away is still in memory");
    }

    #[test]
    fn a_disk_that_can_not_be_written_loses_nothing_from_memory() {
        let journal = Journal::of(Path::new("/proc/nowhere"));
        journal.note(EventKind::Daemon, Entry::new("started"));
        assert_eq!(texts(&journal.events(&EventFilter::default())), ["started"]);
        assert!(journal.error().is_some_and(|error| error.contains("/proc/nowhere/events.jsonl")));
    }
}
