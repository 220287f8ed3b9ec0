//! The daemon's rooms: desired state, plan, apply; the library behind the binary `sluice`.
//!
//! `config` makes a `model::Desired` of a file; `intent` lays on top of it what was said at run
//! time, `drain` and `choice` say what follows from that; `network` finds the backends' next
//! hops; `health` judges the backends; `reconcile` plans and writes what differs into the maps of
//! `datapath`; `observe` tells what is and `operate` changes it, over `control` and `http`, for
//! the `cli`; `explain` asks the live tables what becomes of one segment; `recorder` keeps the last hour; `watchdog` sees whether the services are forwarded.
//! `daemon` wires them together.

pub mod agent;
pub mod choice;
pub mod cli;
pub mod config;
pub mod conservation;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod doctor;
pub mod drain;
pub mod explain;
pub mod headers;
pub mod health;
pub mod http;
pub mod instance;
pub mod intent;
pub mod journal;
pub mod metrics;
pub mod model;
pub mod network;
pub mod observe;
pub mod operate;
pub mod prober;
pub mod reconcile;
pub mod recorder;
pub mod seed;
pub mod trace;
pub mod watchdog;
pub mod whole_file;
