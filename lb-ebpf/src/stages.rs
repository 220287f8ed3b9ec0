//! Implements `Stages`: functions that the verifier follows by themselves.
//!
//! That is what it does with a function that has a symbol of its own ("global", Linux 5.6; with
//! pointers to memory, 5.12). It assumes nothing of what it is called with, and so is done with
//! it once; a private function it follows from each place it is called from, in each state.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    abi::{Backend, ELSEWHERE},
    forward::{
        self, Action, mss,
        nat::{self, Carry},
    },
    icmp::{self, Quoted},
    nat::Reserved,
    parse::{self, Family, Segment},
    probe,
    reason::Reason,
    steer::{self, Stages, Steps, Taken, Turn},
};

use crate::{
    frame::{XdpFrame, opaque},
    maps,
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
    fn turn(&self, turn: Turn) -> Result<Taken, Reason> {
        let at = element_of(&turn);
        match maps::TURN.get_ptr_mut(at) {
            Some(place) => {
                // SAFETY: no other CPU has this element, and on this one no program runs before
                // another is done: but in a test run, which has an element of its own. It is not
                // on the stack because that is 512 bytes for all the functions that look at it
                // together.
                unsafe { place.write(turn) };
                from_word(self::turn(at)).map(Taken::from_number)
            }
            None => Err(Reason::NotReady),
        }
    }

    #[inline(always)]
    fn carry(
        &self,
        frame: &mut XdpFrame,
        backend: &Backend,
        carry: Carry,
    ) -> Result<Action, Reason> {
        let Carry { hash, word, layout } = carry;
        from_word(self::carry(frame.ctx, backend, hash, word, layout)).map(to_action)
    }

    #[inline(always)]
    fn quoted(&self, frame: &XdpFrame) -> Result<Quoted, Reason> {
        from_word(self::quoted(frame.ctx)).map(Quoted::from_number)
    }

    #[inline(always)]
    fn forward_error(&self, frame: &mut XdpFrame, quoted: Quoted) -> Result<Action, Reason> {
        from_word(self::forward_error(frame.ctx, quoted.number())).map(to_action)
    }

    #[inline(always)]
    fn translate_error(&self, frame: &mut XdpFrame, quoted: Quoted) -> Result<Action, Reason> {
        let number = quoted.number();
        from_word(match quoted.family() {
            Family::Ipv4 => translate_ipv4(frame.ctx, number),
            Family::Ipv6 => translate_ipv6(frame.ctx, number),
        })
        .map(to_action)
    }

    #[inline(always)]
    fn next_option(&self, frame: &XdpFrame, at: u64) -> u64 {
        self::next_option(frame.ctx, at)
    }

    #[inline(always)]
    fn clamp(&self, frame: &mut XdpFrame, l4: u16, most: u16) {
        self::clamp(frame.ctx, u32::from(l4), u32::from(most));
    }

    // The segment is read again: what a function looks at must lie on the stack, and of one that is
    // forwarded nothing need.
    #[inline(always)]
    fn reset(&self, frame: &mut XdpFrame, _segment: &Segment) -> Option<()> {
        (self::reset(frame.ctx) != 0).then_some(())
    }

    #[inline(always)]
    fn unsent(&self, frame: &mut XdpFrame, backend: u16, reason: Reason) -> Reason {
        let number = self::unsent(frame.ctx, backend.into(), reason as u64);
        Reason::from_number(number).unwrap_or(Reason::NotReady)
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
    let found = steer::odd_segment(&XdpFrame::new(&XdpContext::new(ctx)), &Kernel::elsewhere());
    to_word(found.map(|segment| {
        if !place.is_null() {
            // SAFETY: the caller's segment; that it is not null the verifier wants to see.
            unsafe { place.write(segment) };
        }
        0
    }))
}

/// Where in `TURN` a turn is kept. `BPF_PROG_TEST_RUN` may be interrupted by frames that arrive (Linux
/// 6.1 keeps only migration off meanwhile, `bpf_test_run` in `net/bpf/test_run.c`): it must not go
/// on with their turn.
#[inline(always)]
fn element_of(turn: &Turn) -> u32 {
    u32::from(turn.is_tested())
}

/// The steps of the turn at a place of `TURN`.
struct Once(u32);

impl Steps for Once {
    #[inline(always)]
    fn take(&self) -> Result<Taken, Reason> {
        from_word(self::take(self.0)).map(Taken::from_number)
    }

    #[inline(always)]
    fn follow(&self) -> Result<Taken, Reason> {
        from_word(self::follow(self.0)).map(Taken::from_number)
    }

    #[inline(always)]
    fn reserve(&self, backend: u16, attempt: u32) -> Reserved {
        Reserved::from_number(self::reserve(self.0, u32::from(backend), attempt))
    }

    #[inline(always)]
    fn open(&self, taken: Taken, reserved: Reserved) -> Result<Taken, Reason> {
        from_word(self::open(self.0, taken.number(), reserved.number())).map(Taken::from_number)
    }

    #[inline(always)]
    fn restore(&self, word: u32) {
        self::restore(self.0, word);
    }
}

/// The turn that this CPU takes.
#[inline(always)]
fn current(at: u32) -> Result<&'static Turn, Reason> {
    // SAFETY: as where it is written.
    maps::TURN.get_ptr(at).map(|turn| unsafe { &*turn }).ok_or(Reason::NotReady)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn turn(at: u32) -> u64 {
    to_word(steer::take(&Once(at)).map(Taken::number))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take(at: u32) -> u64 {
    to_word(current(at).and_then(|turn| turn.take(&Kernel::BEHIND_FILTER)).map(Taken::number))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn follow(at: u32) -> u64 {
    to_word(current(at).and_then(|turn| turn.follow(&Kernel::BEHIND_FILTER)).map(Taken::number))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reserve(at: u32, backend: u32, attempt: u32) -> u64 {
    let reserved =
        current(at).map(|turn| turn.reserve(&Kernel::BEHIND_FILTER, backend as u16, attempt));
    opaque(reserved.map_or(0, Reserved::number) as usize) as u64
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open(at: u32, taken: u64, reserved: u64) -> u64 {
    let (taken, reserved) = (Taken::from_number(taken), Reserved::from_number(reserved));
    to_word(
        current(at)
            .and_then(|turn| turn.open(&Kernel::BEHIND_FILTER, taken, reserved))
            .map(Taken::number),
    )
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn restore(at: u32, word: u32) -> u64 {
    if let Ok(turn) = current(at) {
        turn.restore(&Kernel::BEHIND_FILTER, word);
    }
    opaque(0) as u64
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn next_option(ctx: *mut xdp_md, at: u64) -> u64 {
    opaque(mss::next_option(&XdpFrame::new(&XdpContext::new(ctx)), at) as usize) as u64
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn clamp(ctx: *mut xdp_md, l4: u32, most: u32) -> u64 {
    let mut frame = XdpFrame::new(&XdpContext::new(ctx));
    mss::clamp(&mut frame, &Kernel::BEHIND_FILTER, l4 as u16, most as u16);
    opaque(0) as u64
}

/// The place of the interface with this index, where there are several.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn place_of(index: u32) -> u32 {
    let place = maps::GLOBALS.get(0).map(|globals| globals.interfaces.place_of(index));
    opaque(place.unwrap_or(ELSEWHERE) as usize) as u32
}

/// What is answered for the interface where the frame came in; another's index is shifted.
const TRANSMIT: u64 = 0;
const INTERFACE_SHIFT: u32 = 32;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn carry(
    ctx: *mut xdp_md,
    backend: *const Backend,
    hash: u64,
    word: u32,
    layout: u64,
) -> u64 {
    let mut frame = XdpFrame::new(&XdpContext::new(ctx));
    // SAFETY: the caller's, in a map; that it is not null the verifier wants to see.
    let Some(backend) = (unsafe { backend.as_ref() }) else {
        return to_word(Err(Reason::NoBackend));
    };
    let carry = Carry { hash, word, layout };
    to_word(nat::carry(&mut frame, &Kernel::BEHIND_FILTER, backend, carry).map(from_action))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quoted(ctx: *mut xdp_md) -> u64 {
    to_word(
        icmp::quoted(&XdpFrame::new(&XdpContext::new(ctx)), &Kernel::BEHIND_FILTER)
            .map(Quoted::number),
    )
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forward_error(ctx: *mut xdp_md, quoted: u64) -> u64 {
    let (mut frame, quoted) = (XdpFrame::new(&XdpContext::new(ctx)), Quoted::from_number(quoted));
    to_word(icmp::forward_error(&mut frame, &Kernel::BEHIND_FILTER, quoted).map(from_action))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translate_ipv4(ctx: *mut xdp_md, quoted: u64) -> u64 {
    let (mut frame, quoted) = (XdpFrame::new(&XdpContext::new(ctx)), Quoted::from_number(quoted));
    to_word(icmp::translate_ipv4(&mut frame, &Kernel::BEHIND_FILTER, quoted).map(from_action))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translate_ipv6(ctx: *mut xdp_md, quoted: u64) -> u64 {
    let (mut frame, quoted) = (XdpFrame::new(&XdpContext::new(ctx)), Quoted::from_number(quoted));
    to_word(icmp::translate_ipv6(&mut frame, &Kernel::BEHIND_FILTER, quoted).map(from_action))
}

#[inline(always)]
fn from_action(action: Action) -> u64 {
    match action {
        Action::Redirect(interface) => u64::from(interface) << INTERFACE_SHIFT,
        _ => TRANSMIT,
    }
}

#[inline(always)]
fn to_action(number: u64) -> Action {
    match number {
        TRANSMIT => Action::Transmit,
        _ => Action::Redirect((number >> INTERFACE_SHIFT) as u32),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reset(ctx: *mut xdp_md) -> u64 {
    let mut frame = XdpFrame::new(&XdpContext::new(ctx));
    let segment = parse::segment(&frame, |_, _| true).ok();
    let rewritten = segment.and_then(|segment| forward::reset::rewrite(&mut frame, &segment));
    opaque(rewritten.is_some().into()) as u64
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn unsent(ctx: *mut xdp_md, backend: u32, reason: u64) -> u64 {
    let mut frame = XdpFrame::new(&XdpContext::new(ctx));
    let reason = Reason::from_number(reason).unwrap_or(Reason::NotReady);
    let tables = Kernel::BEHIND_FILTER;
    let counted = forward::too_big::unsent(&mut frame, &tables, backend as u16, reason);
    opaque(counted as usize) as u64
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn deliver(ctx: *mut xdp_md, l3: u16, is_ipv6: bool) -> u64 {
    let family = if is_ipv6 { Family::Ipv6 } else { Family::Ipv4 };
    let mut frame = XdpFrame::new(&XdpContext::new(ctx));
    u64::from(probe::deliver(&mut frame, l3, family, &Kernel::BEHIND_FILTER).unwrap_or(0))
}

/// Set in a word that holds a reason, and in no other.
const ERROR: u64 = 1 << 16;

/// As a function returns it to whom the verifier believes nothing of it.
#[inline(always)]
fn to_word(result: Result<u64, Reason>) -> u64 {
    let word = match result {
        Ok(number) => number,
        Err(reason) => ERROR | reason as u64,
    };
    // Or LLVM would leave out the other side's comparisons.
    opaque(word as usize) as u64
}

#[inline(always)]
fn from_word(word: u64) -> Result<u64, Reason> {
    if word & ERROR == 0 {
        Ok(word)
    } else {
        Err(Reason::from_number(word & (ERROR - 1)).unwrap_or(Reason::NotReady))
    }
}
