//! The entry point: a frame comes in, `steer` decides and rewrites, `emit` does it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "64-bit compare-and-exchange has no stable form on BPF")]

mod emit;
mod frame;
mod maps;
#[path = "silent.rs"]
mod notes;
mod object;
mod stages;
mod tables;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{probe, steer};

use crate::{frame::XdpFrame, tables::Kernel};

/// Attached to every interface where clients' frames arrive. Without `frags` drivers refuse it where
/// the MTU is larger than a buffer (jumbo frames); its headers are always in the first one.
///
/// Inlined into what the macro makes of it: as a function it would be one more on a stack that
/// Linux 6.1 rounds up to 32 bytes for each.
#[xdp(frags)]
#[inline(always)]
pub fn sluice(ctx: XdpContext) -> u32 {
    let frame = &mut XdpFrame::new(&ctx);
    let tables = Kernel::of_clients(frame);
    emit::emit(steer::process(frame, &tables, tables::jiffies()))
}

/// Attached to the host's end of the prober's veth pair: health probes on their way out.
#[xdp]
pub fn probe(ctx: XdpContext) -> u32 {
    emit::emit(probe::send(&mut XdpFrame::new(&ctx), &Kernel::elsewhere()))
}

/// Attached where no clients' frames arrive but answers to health probes do.
#[xdp(frags)]
pub fn answers(ctx: XdpContext) -> u32 {
    emit::emit(probe::collect(&mut XdpFrame::new(&ctx), &Kernel::elsewhere()))
}

/// Attached to the prober's end of the pair: a veth takes redirected frames only if there is a
/// program on its peer, and frames larger than a page only if that one takes them in several
/// buffers (`veth_xdp_set`, `drivers/net/veth.c`; needs 5.18).
#[xdp(frags)]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Never attached: the daemon runs it with `BPF_PROG_TEST_RUN` to read the kernel's jiffies
/// (their lower 32 bits), which no file shows reliably.
#[xdp]
pub fn clock(_ctx: XdpContext) -> u32 {
    tables::jiffies() as u32
}
