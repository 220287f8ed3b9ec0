//! What the daemon tells of itself: one struct for CLI, JSON and metrics, made from the maps
//! and from what was last seen.

mod clients;
mod flows;
mod forwarding;
mod health;
mod interfaces;
mod losses;
mod recorder;
pub(crate) mod retired;
mod state;
mod status;
mod traffic;
mod trouble;
mod why;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

pub use self::{
    interfaces::{InterfaceCounts, Verdicts},
    state::{InterfaceSeen, State},
};
use crate::{
    control::{Control, Peer, api},
    intent::Refusal,
    metrics::Figures,
};

/// The daemon's state, shared between its loop and those who ask.
#[derive(Clone)]
pub struct Observed(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

impl Observed {
    /// Shares a state.
    pub fn new(state: State) -> Self {
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// The state, ours until dropped. Held for milliseconds at most.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked with it left whole values behind: each is assigned at once.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when an operator has changed what is wanted since the last time.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Tells the daemon's loop, if there was a change, for what is done by it alone.
    fn tell(&self, changed: Result<api::Changed, Refusal>) -> Result<api::Changed, Refusal> {
        if changed.is_ok() {
            self.0.changed.notify_one();
        }
        changed
    }
}

impl Control for Observed {
    fn status(&self) -> api::Status {
        status::status(&self.lock())
    }

    fn flows(&self, filter: &api::FlowFilter) -> api::Flows {
        let look = flows::Look::begin(&self.lock());
        look.take(filter)
    }

    fn reasons(&self) -> api::Reasons {
        status::reasons(&self.lock())
    }

    fn figures(&self) -> Figures {
        let state = self.lock();
        Figures {
            status: status::status(&state),
            reasons: status::reasons(&state),
            drains: state.drains(&api::DrainFilter::default()),
        }
    }

    fn drains(&self, filter: &api::DrainFilter) -> Vec<api::Drain> {
        self.lock().drains(filter)
    }

    fn events(&self, filter: &api::EventFilter) -> api::Events {
        let journal = self.lock().journal.clone();
        journal.events(filter)
    }

    fn export(&self) -> anyhow::Result<api::Exported> {
        self.lock().export()
    }

    fn plan(&self, file: &api::ConfigFile) -> Result<api::Plan, Refusal> {
        let planning = self.lock().begin_plan(file)?;
        let tables = planning.tables();
        Ok(self.lock().end_plan(planning, &tables))
    }

    fn apply(&self, file: &api::ConfigFile, peer: &Peer) -> Result<api::Changed, Refusal> {
        let changed = self.lock().apply(file, peer);
        self.tell(changed)
    }

    fn change(&self, transaction: &api::Transaction, peer: &Peer) -> Result<api::Changed, Refusal> {
        let changed = self.lock().change(transaction, peer);
        self.tell(changed)
    }
}
