//! Changes: what is asked for, what it came to, what it would come to, and how drains go.

use serde::{Deserialize, Serialize};

use super::Admin;
pub use crate::intent::{Change, Target, Transaction};

/// `POST /v1/apply` and `POST /v1/plan`: a whole config file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// What errors call it: its path.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Even if it leaves fewer than `min_available` backends.
    #[serde(default)]
    pub force: bool,
}

/// What a change came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// Whether anything is other than before.
    pub changed: bool,
    /// Counts the changes of what is desired.
    pub generation: u64,
    /// What is other than before.
    pub differences: Vec<Difference>,
    /// What an operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// One thing that is, or would be, other than before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// `add`, `remove` or `change`.
    pub action: Action,
    /// Of this service; `None`: of the instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Of this backend; `None`: of the service itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// What, in words.
    pub text: String,
}

/// What happens to a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Add,
    /// It goes.
    Remove,
    /// It is other than before.
    Change,
}

/// What a file would change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Whether anything would be other than now.
    pub changes: bool,
    /// What would be other than now.
    pub differences: Vec<Difference>,
    /// The flows of now.
    pub flows: PlannedFlows,
    /// Services whose slots would change owners.
    pub slots: Vec<PlannedSlots>,
    /// Why `apply` would refuse it without `--force`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What an operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// What would become of the flows in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFlows {
    /// All of them.
    pub total: u64,
    /// Those that stay on their backend, for as long as they last.
    pub flows_kept: u64,
    /// Of those kept: whose slot would be another backend's. Their entry in the flow table keeps
    /// them; without it, as on a balancer that does not know them, they would move.
    pub flows_moved: u64,
    /// Those that may end in peace until a drain's deadline.
    pub flows_drained: u64,
    /// Those that would be reset.
    pub flows_cut: u64,
}

/// What would become of a service's slots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedSlots {
    /// Its name.
    pub service: String,
    /// How many would have another owner.
    pub moved: u64,
    /// How many there would be.
    pub slots: u64,
}

/// `GET /v1/export`: what is wanted, as a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exported {
    /// TOML.
    pub text: String,
}

/// `GET /v1/drains`: how drains go, or went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// The service's name.
    pub service: String,
    /// The backend's name.
    pub backend: String,
    /// `draining`, `drained`, or `disabled`; `enabled` if somebody ended it.
    pub admin: Admin,
    /// When it began: RFC 3339, UTC.
    pub since: String,
    /// Until what is left is reset.
    pub deadline_seconds: f64,
    /// Since it began; until it ended, if it has.
    pub seconds: f64,
    /// Flows when new ones had been stopped; `None`: not counted yet.
    pub flows_at_start: Option<u64>,
    /// Flows left.
    pub flows_left: u64,
    /// Age of the oldest of them.
    pub oldest_seconds: Option<u64>,
    /// Flows that the deadline cut.
    pub flows_cut: u64,
    /// Flows that chose it since.
    pub new_flows_since_drain: u64,
}

/// Which drains to list: all that match what is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainFilter {
    /// Of this service.
    pub service: Option<String>,
    /// Of the backend of this name.
    pub backend: Option<String>,
}
