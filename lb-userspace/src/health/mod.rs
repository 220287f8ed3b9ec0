//! What is seen of the backends, and what follows from it.
//!
//! `engine` makes a `probe` of each target when it is due: by a `path` it gets a connection, over
//! which it speaks `http` or `grpc`, in `tls` or not. `failure` lists why a probe was no success;
//! `state` makes of probes what a backend is, purely. Where a backend does not answer by way
//! of the VIP, `explanation` says why, by what its own address does.
//!
//! `judge` puts together what probes, next hops and clients' packets say: `pool` holds back where
//! the fault may be ours, `passive` reads the traffic, `slow_start` lets in by steps, `standing`
//! is what comes of it.

mod engine;
mod explanation;
mod failure;
mod grpc;
mod http;
mod judge;
pub mod kept;
pub mod passive;
mod path;
mod pool;
mod probe;
mod slow_start;
mod standing;
mod state;
mod target;
mod tls;

#[cfg(feature = "fuzz")]
pub use self::probe::ask_over;
pub use self::{
    engine::{Engine, Figures, places},
    explanation::Explanation,
    failure::{Class, Failure},
    judge::{Evidence, Judge, Note, Probed, Traffic},
    path::{Closed, Connection, Direct, Path, Paths},
    standing::{Because, Grounds, Standing, Standings},
    state::{Kept, Probe, Seen, State, Thresholds, Totals},
    target::Target,
};
