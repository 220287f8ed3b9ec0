//! Everything Sluice decides, as pure functions of bytes, tables and the time.
//!
//! No allocation, no I/O, no clock: the same code is compiled into the kernel program
//! (`lb-ebpf`) and into the host tests. Follow a packet by file names:
//! [`parse`] → [`flow`] → [`service`] → [`maglev`] → [`steer`] → [`forward`].
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod abi;
pub mod address;
pub mod bench;
pub mod checksum;
pub mod counters;
pub mod decapsulate;
pub mod flow;
pub mod forward;
pub mod frame;
pub mod hash;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod icmp;
pub mod limit;
pub mod losses;
pub mod maglev;
pub mod nat;
pub mod parse;
pub mod probe;
pub mod reason;
pub mod service;
pub mod steer;
pub mod tables;
pub mod trace;
pub mod wire;
