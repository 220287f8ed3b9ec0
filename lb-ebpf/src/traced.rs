//! The same program as `main.rs`, which also tells of the frames that a filter picks: it stands in
//! that one's place, on the same maps, while somebody runs `sluice trace`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "64-bit compare-and-exchange has no stable form on BPF")]

mod emit;
mod frame;
mod maps;
mod notes;
mod object;
mod stages;
mod tables;

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_common::steer;

use crate::{frame::XdpFrame, tables::Kernel};

/// Attached in the place of `sluice`.
#[xdp(frags)]
#[inline(always)]
pub fn traced(ctx: XdpContext) -> u32 {
    notes::begin(&ctx);
    let frame = &mut XdpFrame::new(&ctx);
    let tables = Kernel::of_clients(frame);
    let action = steer::process(frame, &tables, tables::jiffies());
    notes::end(&ctx, emit::emit(action))
}
