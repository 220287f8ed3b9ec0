//! Golden frames: bytes in, verdict and bytes out, through the kernel's program and through the
//! host build of the same code. A table for each room of `lb-common`; every reason is provoked.
//!
//! They need root for the kernel's half and say so when they are skipped.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod any_port;
mod corpus;
mod icmp;
mod interfaces;
mod ipip;
mod jumbo;
mod l2;
mod maglev;
mod nat;
mod probe;
mod reasons;
mod reset;
mod self_test;
mod sides;
mod steer;
