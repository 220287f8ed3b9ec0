//! What is noted of a frame while it is decided about, and told when that is done.
//!
//! Each CPU has a place where a frame is copied before anything is rewritten, and where the tables
//! note what they count of it. At the end it goes into a ring buffer, if the filter wants it and
//! the bytes of this moment are not spent.

use core::intrinsics::{AtomicOrdering, atomic_xsub};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{xdp_action, xdp_md},
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_xdp_load_bytes},
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::{
    frame::Frame as _,
    trace::{Filter, Header, Look, MAX_SNAP, Notes, Tally},
};

use crate::{
    frame::{XdpFrame, opaque},
    maps,
};

#[btf_map]
static TRACE_FILTER: Array<Filter, 1> = Array::new();

#[btf_map]
static TRACE_TOKENS: Array<i64, 1> = Array::new();

#[btf_map]
static TRACE_TALLY: PerCpuArray<Tally, 1> = PerCpuArray::new();

#[btf_map]
static TRACE_RING: RingBuf<[u8; 0], { 1 << 22 }> = RingBuf::new();

/// A frame on its way to the ring.
#[repr(C)]
pub struct Told {
    header: Header,
    bytes: [u8; 2 * MAX_SNAP],
}

#[btf_map]
static TRACE_TOLD: PerCpuArray<Told, 1> = PerCpuArray::new();

/// The place of this CPU.
#[inline(always)]
fn told() -> Option<&'static mut Told> {
    // SAFETY: no other CPU has this element. In a test run, which a frame may interrupt on Linux
    // 6.1, notes may be mixed up; they are numbers only.
    TRACE_TOLD.get_ptr_mut(0).map(|told| unsafe { &mut *told })
}

/// Notes something of the frame that is decided about.
#[inline(always)]
pub fn take(note: impl FnOnce(&mut Notes)) {
    if let Some(told) = told() {
        note(&mut told.header.notes);
    }
}

/// Notes the interface that the frame is redirected to.
#[inline(always)]
pub fn redirected(interface: u32) {
    if let Some(told) = told() {
        told.header.leaves_by = interface;
    }
}

/// Copies the frame as it came, if the filter may want it.
#[inline(always)]
pub fn begin(ctx: &XdpContext) {
    trace_begin(ctx.as_ptr().cast());
}

/// Tells of the frame, now that it is known what becomes of it: the program's return value.
#[inline(always)]
pub fn end(ctx: &XdpContext, verdict: u32) -> u32 {
    trace_end(ctx.as_ptr().cast(), verdict)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_begin(ctx: *mut xdp_md) -> u64 {
    let (Some(told), Some(filter)) = (told(), TRACE_FILTER.get(0)) else {
        return 0;
    };
    let frame = XdpFrame::new(&XdpContext::new(ctx));
    told.header.notes = Notes::NONE;
    told.header.captured = 0;
    told.header.length = 0;
    // SAFETY: no arguments, no memory.
    if filter.one_in > 1 && unsafe { bpf_get_prandom_u32() } % filter.one_in != 0 {
        return 0;
    }
    let Look::Candidate { addressed } = filter.look(&frame) else {
        return 0;
    };
    told.header.notes.addressed = u32::from(addressed);
    told.header.length = frame.whole_len() as u32;
    told.header.interface = frame.interface();
    // SAFETY: no arguments, no memory.
    told.header.at = unsafe { bpf_ktime_get_ns() };
    if TRACE_TOKENS.get(0).is_some_and(|tokens| *tokens > 0) {
        told.header.captured = copy(&frame, filter, (&raw mut told.bytes).cast());
    }
    opaque(0) as u64
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_end(ctx: *mut xdp_md, verdict: u32) -> u32 {
    let frame = XdpFrame::new(&XdpContext::new(ctx));
    if let Some(told) = told() {
        told.header.leaves_by = match verdict {
            xdp_action::XDP_TX => frame.interface(),
            xdp_action::XDP_REDIRECT => told.header.leaves_by,
            _ => 0,
        };
        tell(&frame, told);
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!(
            &XdpContext::new(ctx),
            "{} bytes: verdict {}, backend {}, events {:x}, returns {}",
            told.header.length,
            told.header.notes.verdict,
            told.header.notes.backend,
            told.header.notes.events,
            verdict
        );
    }
    opaque(verdict as usize) as u32
}

/// Puts the frame into the ring, if it is wanted.
#[inline(always)]
fn tell(frame: &XdpFrame, told: &mut Told) -> Option<()> {
    let filter = TRACE_FILTER.get(0)?;
    let notes = told.header.notes;
    let service = maps::BACKENDS.get(notes.backend).map(|backend| backend.service);
    if told.header.length == 0 || !filter.wants(&notes, service) {
        return None;
    }
    // SAFETY: no other CPU has this element.
    let tally = unsafe { &mut *TRACE_TALLY.get_ptr_mut(0)? };
    let captured = told.header.captured as usize;
    if captured == 0 || captured > MAX_SNAP {
        tally.over_limit += 1;
        return None;
    }
    told.header.length_after = 0;
    told.header.captured_after = 0;
    if told.header.leaves_by != 0 {
        told.header.length_after = frame.whole_len() as u32;
        // SAFETY: `captured` leaves room for as much again.
        let place = unsafe { (&raw mut told.bytes).cast::<u8>().add(captured) };
        told.header.captured_after = copy(frame, filter, place);
    }
    let after = told.header.captured_after as usize;
    if after > MAX_SNAP {
        return None;
    }
    let size = size_of::<Header>() + captured + after;
    // SAFETY: the element lives as long as the map.
    unsafe {
        let tokens = TRACE_TOKENS.get_ptr_mut(0)?;
        atomic_xsub::<i64, i64, { AtomicOrdering::SeqCst }>(tokens, size as i64);
    }
    // SAFETY: the element has so many bytes, all of them written.
    let bytes = unsafe { core::slice::from_raw_parts((&raw const *told).cast::<u8>(), size) };
    match TRACE_RING.output_untyped::<[u8]>(bytes, 0) {
        Ok(()) => tally.told += 1,
        Err(_) => tally.ring_full += 1,
    }
    Some(())
}

/// Copies the first bytes of a frame; tells how many.
#[inline(always)]
fn copy(frame: &XdpFrame, filter: &Filter, place: *mut u8) -> u32 {
    let wanted = frame.len().min(filter.snap as usize);
    // Linux 6.1 does not conclude from a comparison with zero that a number is one at least.
    let but_one = opaque(wanted.wrapping_sub(1));
    if but_one >= MAX_SNAP {
        return 0;
    }
    let length = but_one + 1;
    // SAFETY: the place has room for it.
    let failed = unsafe { bpf_xdp_load_bytes(frame.ctx, 0, place.cast(), length as u32) };
    if failed == 0 { length as u32 } else { 0 }
}
