//! What is seen of the backends: active checks.
//!
//! `engine` makes a `probe` of each target when it is due: by a `path` it gets a connection, over
//! which it speaks `http` or `grpc`, in `tls` or not. `failure` lists why a probe was no success;
//! `state` makes of probes what a backend is, purely.

mod engine;
mod failure;
mod grpc;
mod http;
mod path;
mod probe;
mod state;
mod target;
mod tls;

pub use self::{
    engine::{Engine, Figures},
    failure::{Class, Failure},
    path::{Connection, Direct, Path, Paths},
    state::{Kept, Probe, Seen, State, Thresholds},
    target::Target,
};

