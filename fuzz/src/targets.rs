//! The targets, each a function that takes any bytes.

pub mod config;
pub mod control;
pub mod forward;
pub mod icmp;
pub mod probe;
pub mod state;
pub mod steer;

use std::sync::OnceLock;

use lb_common::{
    host::{HostTables, sample::SLOTS},
    service::BackendState,
};
use tokio::runtime::Runtime;

/// One backend of eight, chosen by the upper bits of a byte, gets another state by the lower ones.
fn set_state(tables: &mut HostTables, byte: u8) {
    const STATES: [BackendState; 4] =
        [BackendState::Forward, BackendState::Suspect, BackendState::Reset, BackendState::Absent];
    let state = STATES[usize::from(byte) % STATES.len()];
    for backend in tables.backends.iter_mut().skip(1 + usize::from(byte >> 6)).step_by(2) {
        backend.state = state as u8;
    }
}

/// Gives the slots of a service to its backends anew, from another one on.
fn move_slots(tables: &mut HostTables, service: usize) {
    if let Some(service) = tables.services.get_mut(service) {
        service.slots.rotate_left(SLOTS as usize / 3);
    }
}

/// On one thread, so that an input does the same each time.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
        built.expect("a runtime")
    })
}
