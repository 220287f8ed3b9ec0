//! What is seen of the backends: active checks.
//!
//! `failure` lists why a probe was no success, `state` makes of probes what a backend is, purely.

mod failure;
mod state;

pub use self::{
    failure::{Class, Failure},
    state::{Kept, Probe, Seen, State, Thresholds},
};
