//! Counts frames that are lost after a program's decision; what is told, `lb_common::losses` reads.
//!
//! Attached by the daemon to two tracepoints, and gone with it.
#![no_std]
#![no_main]

mod object;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::PerCpuHashMap,
    macros::{btf_map, tracepoint},
    programs::TracePointContext,
};
use lb_common::losses::{CAPACITY, Exception, Loss, RedirectError};

#[btf_map]
static LOSSES: PerCpuHashMap<Loss, u64, { CAPACITY }> = PerCpuHashMap::new();

/// A driver could not do what a program has answered.
#[tracepoint]
pub fn xdp_exception(ctx: TracePointContext) -> u32 {
    // SAFETY: that is what this tracepoint hands over.
    if let Ok(told) = unsafe { ctx.read_at::<Exception>(0) } {
        count(told.loss());
    }
    0
}

/// A frame could not be handed to another interface.
#[tracepoint]
pub fn xdp_redirect_err(ctx: TracePointContext) -> u32 {
    // SAFETY: as above.
    if let Ok(told) = unsafe { ctx.read_at::<RedirectError>(0) } {
        count(told.loss());
    }
    0
}

#[inline(always)]
fn count(loss: Loss) {
    if LOSSES.get_ptr_mut(loss).is_none() {
        // Another CPU may be first with the same; where there is no room, it is not counted.
        let _ = LOSSES.insert(loss, 0, u64::from(BPF_NOEXIST));
    }
    if let Some(count) = LOSSES.get_ptr_mut(loss) {
        // SAFETY: no other CPU has this value.
        unsafe { *count += 1 };
    }
}
