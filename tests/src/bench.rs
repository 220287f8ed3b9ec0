//! What a packet costs, by `BPF_PROG_TEST_RUN`.
//!
//! A generator in the kernel (`lb-ebpf/src/bench.rs`) makes a fresh frame in each repeat and
//! tail-calls the program under test; what it costs itself, measured with a target that does
//! nothing, is subtracted. Three traps, each of which once made such figures useless:
//!
//! * a test run does not restore the frame between repeats: the generator does;
//! * unless the program that runs is attached somewhere, each call patches the kernel's XDP
//!   dispatcher: so the generator is attached to a veth where nothing arrives;
//! * flows met in the order in which they were inserted hide half of the cache misses: the
//!   generator meets them in another.
//!
//! Time is the thread's CPU time, which other programs on the machine disturb least. Every
//! sample is checked by the balancer's own counters: what went another way than it should have
//! is no figure but an error.

mod balancer;
mod case;
pub mod control;
mod frame;
mod generator;
pub mod health;
pub mod instructions;
mod link;
mod machine;
pub mod peers;
mod report;
mod sample;
mod stage;
mod ticks;

pub use self::{
    machine::Machine,
    report::{Figure, Growth, Memory, Report, Translation},
    sample::{Extent, run},
};
