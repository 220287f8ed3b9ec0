//! Calls into the daemon, off the event loop and a few at a time.

use std::sync::Arc;

use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
};

use super::Control;

/// At once, for each server: every call may scan the whole flow table.
const CALLS: usize = 2;

/// The daemon, as pages see it.
#[derive(Clone)]
pub struct Calls {
    control: Arc<dyn Control>,
    places: Arc<Semaphore>,
}

impl Calls {
    pub fn new(control: Arc<dyn Control>) -> Self {
        Self { control, places: Arc::new(Semaphore::new(CALLS)) }
    }

    /// A call whose client gives up keeps its place until it ends, so that impatience can't
    /// pile scans up. The error is a panic in `call`.
    pub async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Control) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        // Never closed, so there is always a place to wait for.
        let place = Arc::clone(&self.places).acquire_owned().await;
        let control = Arc::clone(&self.control);
        spawn_blocking(move || {
            let _place = place;
            call(&*control)
        })
        .await
    }
}
