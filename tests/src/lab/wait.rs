//! Waiting for a condition instead of for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Long enough for anything that should happen at once, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(10);

/// Asks `condition` until it answers `Some`, at most for `deadline`; `what` completes
/// "waited 10 s for …".
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {:.1} s for {what}", deadline.as_secs_f32());
        }
        thread::sleep(POLL);
    }
}
