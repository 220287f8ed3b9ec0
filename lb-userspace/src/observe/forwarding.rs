//! Whether the services are forwarded: the watchdog's word, kept for those who ask.

use super::State;
use crate::{control::api::EventKind, journal::Entry, watchdog};

impl State {
    /// Runs a frame for each service through the attached programs; what fails is noted once, and
    /// again when it is over.
    pub fn test_services(&mut self) {
        let failures: Vec<String> = watchdog::self_test(&self.datapath, &self.image)
            .iter()
            .map(ToString::to_string)
            .collect();
        let new = failures.iter().filter(|failure| !self.not_forwarded.contains(failure));
        self.journal.note_all(EventKind::Trouble, new.map(Entry::new));
        if failures.is_empty() && !self.not_forwarded.is_empty() {
            let text = "every service is forwarded as it should be again";
            self.journal.note(EventKind::Daemon, Entry::new(text));
        }
        self.not_forwarded = failures;
    }
}
