//! The daemon's rooms: desired state, plan, apply; the library behind the binary `sluice`.
//!
//! `config` makes a `model::Desired` of a file; `network` finds the backends' next hops;
//! `reconcile` plans and writes what differs into the maps of `datapath`; `observe` tells
//! what is, over `control` and `http`, to the `cli`. `daemon` wires them together.

pub mod agent;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod http;
pub mod instance;
pub mod model;
pub mod network;
pub mod observe;
pub mod reconcile;
pub mod seed;
