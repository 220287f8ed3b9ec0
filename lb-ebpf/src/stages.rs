//! Implements `Stages`: functions that the verifier follows by themselves.
//!
//! That is what it does with a function that has a symbol of its own ("global", Linux 5.6; with
//! pointers to memory, 5.12). It assumes nothing of what it is called with, and so is done with
//! it once; a private function it follows from each place it is called from, in each state.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    parse::{Family, Segment},
    probe,
    reason::Reason,
    steer::{self, Stages, Turn},
};

use crate::{
    frame::{XdpFrame, opaque},
    tables::Kernel,
};

impl Stages<XdpFrame> for Kernel {
    #[inline(always)]
    fn odd_segment(&self, frame: &XdpFrame) -> Result<Segment, Reason> {
        // The verifier wants to see every byte written before; zeros that LLVM knows for such it
        // would have written by a loop.
        let mut place = [opaque(0); size_of::<Segment>() / size_of::<usize>()];
        let segment = place.as_mut_ptr().cast::<Segment>();
        // SAFETY: it is as large and aligned, and zeros are a segment, as is what is found.
        from_word(odd_segment(frame.ctx, segment)).map(|_| unsafe { *segment })
    }

    #[inline(always)]
    fn turn(&self, turn: &Turn) -> Result<u16, Reason> {
        from_word(self::turn(turn))
    }

    #[inline(always)]
    fn deliver(&self, frame: &mut XdpFrame, l3: u16, family: Family) -> Option<u32> {
        match self::deliver(frame.ctx, l3, matches!(family, Family::Ipv6)) {
            0 => None,
            interface => Some(interface as u32),
        }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn odd_segment(ctx: *mut xdp_md, place: *mut Segment) -> u64 {
    let found = steer::odd_segment(&XdpFrame::new(&XdpContext::new(ctx)), &Kernel);
    to_word(found.map(|segment| {
        if !place.is_null() {
            // SAFETY: the caller's segment; that it is not null the verifier wants to see.
            unsafe { place.write(segment) };
        }
        0
    }))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn turn(turn: *const Turn) -> u64 {
    // SAFETY: the caller's; that it is not null the verifier wants to see.
    to_word(match unsafe { turn.as_ref() } {
        Some(turn) => turn.take(&Kernel),
        None => Err(Reason::NotReady),
    })
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn deliver(ctx: *mut xdp_md, l3: u16, is_ipv6: bool) -> u64 {
    let family = if is_ipv6 { Family::Ipv6 } else { Family::Ipv4 };
    let mut frame = XdpFrame::new(&XdpContext::new(ctx));
    u64::from(probe::deliver(&mut frame, l3, family, &Kernel).unwrap_or(0))
}

/// Set in a word that holds a reason.
const ERROR: u64 = 1 << 16;

/// As a function returns it to whom the verifier believes nothing of it.
#[inline(always)]
fn to_word(result: Result<u16, Reason>) -> u64 {
    let word = match result {
        Ok(index) => u64::from(index),
        Err(reason) => ERROR | reason as u64,
    };
    // Or LLVM would leave out the other side's comparisons.
    opaque(word as usize) as u64
}

#[inline(always)]
fn from_word(word: u64) -> Result<u16, Reason> {
    if word < ERROR {
        Ok(word as u16)
    } else {
        Err(Reason::from_number(word & (ERROR - 1)).unwrap_or(Reason::NotReady))
    }
}
