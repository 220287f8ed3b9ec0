//! The backend's program: `decapsulate` decides and rewrites, here are its maps.
//!
//! Attached by `sluice agent run` where the balancer's frames arrive.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "what LLVM knows of an offset has no stable question")]

mod frame;
mod object;

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    address::Address,
    decapsulate::{self, Outcome, OutcomeCounts, Source, Tables, Verdict, capacity},
};

use crate::frame::XdpFrame;

#[btf_map]
static AGENT_VIPS: HashMap<Address, u32, { capacity::VIPS }> = HashMap::new();

/// A [`Source`] without its first field, which the kernel's layout has before the key.
#[btf_map]
static AGENT_SOURCES: LpmTrie<[u8; 20], u32, { capacity::SOURCES }> = LpmTrie::new();

#[btf_map]
static AGENT_OUTCOMES: PerCpuArray<OutcomeCounts, 1> = PerCpuArray::new();

/// Not for this program: kept and pinned with the rest.
#[btf_map]
static AGENT_RECORD: HashMap<u32, [u8; capacity::RECORD], 1> = HashMap::new();

#[xdp(frags)]
pub fn agent(ctx: XdpContext) -> u32 {
    match decapsulate::process(&mut XdpFrame::new(&ctx), &Kernel).verdict() {
        Verdict::Unpack | Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// The kernel's maps.
struct Kernel;

impl Tables for Kernel {
    #[inline(always)]
    fn is_vip(&self, address: Address) -> bool {
        AGENT_VIPS.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn accepts(&self, source: &Source) -> bool {
        // SAFETY: both are 24 bytes, and the trie's key is packed: any alignment will do.
        let key = unsafe { &*core::ptr::from_ref(source).cast::<Key<[u8; 20]>>() };
        AGENT_SOURCES.get(key).is_some()
    }

    #[inline(always)]
    fn count(&self, outcome: Outcome) {
        if let Some(counts) = AGENT_OUTCOMES.get_ptr_mut(0) {
            // SAFETY: an outcome's number is below the element's length, and no other CPU has
            // this element.
            unsafe { (*counts)[outcome as usize] += 1 };
        }
    }
}
