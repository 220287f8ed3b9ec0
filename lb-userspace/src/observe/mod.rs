//! What the daemon tells of itself: one struct for CLI, JSON and metrics, made from the maps
//! and from what was last seen.

mod flows;
mod state;
mod status;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::state::{InterfaceSeen, State};
use crate::control::{Control, api};

/// The daemon's state, shared between its loop and those who ask.
#[derive(Clone)]
pub struct Observed(Arc<Mutex<State>>);

impl Observed {
    /// Shares a state.
    pub fn new(state: State) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    /// The state, ours until dropped. Held for milliseconds at most.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked with it left whole values behind: each is assigned at once.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control for Observed {
    fn status(&self) -> api::Status {
        status::status(&self.lock())
    }

    fn flows(&self, filter: &api::FlowFilter) -> api::Flows {
        flows::flows(&self.lock(), filter)
    }

    fn reasons(&self) -> api::Reasons {
        let state = self.lock();
        api::Reasons::new(status::forwarded(&state), &status::reason_counts(&state))
    }
}
