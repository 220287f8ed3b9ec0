//! What happened: the journal's entries.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::LastProbe;

/// Something that happened to an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds since 1970; each entry's is larger than the one's before.
    pub id: u64,
    /// The same for people: RFC 3339, UTC.
    pub at: String,
    /// What kind of thing.
    pub kind: EventKind,
    /// To which service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// To which backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// What, in words.
    pub text: String,
    /// Who asked for it, as the kernel told: a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Who asked for it, as the kernel told: a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The count of changes after it, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// What a change of health rests on: the backend's last probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<LastProbe>,
}

/// Kinds of things that happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum EventKind {
    /// The daemon started, stopped, or was taken off.
    Daemon,
    /// An operator changed something.
    Change,
    /// A drain ended.
    Drained,
    /// Somebody else changed the maps; they were mended.
    Drift,
    /// The program came to an interface, or was lost there.
    Attach,
    /// Another kernel program took over, or was refused.
    Upgrade,
    /// A backend can, or can't, be reached.
    NextHop,
    /// A backend is seen well or ill, or a pool is held.
    Health,
    /// Something is wrong.
    Trouble,
}

impl EventKind {
    /// The name used by JSON and CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Change => "change",
            Self::Drained => "drained",
            Self::Drift => "drift",
            Self::Attach => "attach",
            Self::Upgrade => "upgrade",
            Self::NextHop => "next_hop",
            Self::Health => "health",
            Self::Trouble => "trouble",
        }
    }
}

/// Which events `GET /v1/events` lists: those that match all that is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventFilter {
    /// With an id above this: [`Event::id`] of the last one known, or a moment.
    pub after: Option<u64>,
    /// About this service.
    pub service: Option<String>,
    /// About the backends of this name.
    pub backend: Option<String>,
    /// Of this kind.
    pub kind: Option<EventKind>,
    /// So many at most, the latest. Default [`EventFilter::LIMIT`].
    pub limit: Option<usize>,
}

impl EventFilter {
    /// How many events are listed when nobody says otherwise.
    pub const LIMIT: usize = 1000;

    /// How many to list.
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(Self::LIMIT)
    }

    /// Whether an event is asked for, be there room or not.
    pub fn matches(&self, event: &Event) -> bool {
        let is = |wanted: &Option<String>, is: &Option<String>| wanted.is_none() || wanted == is;
        self.after.is_none_or(|after| event.id > after)
            && is(&self.service, &event.service)
            && is(&self.backend, &event.backend)
            && self.kind.is_none_or(|kind| kind == event.kind)
    }
}

/// `GET /v1/events`: what happened, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// The latest of those that match.
    pub events: Vec<Event>,
    /// Whether older ones match too.
    pub truncated: bool,
}
