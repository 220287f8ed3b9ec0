//! Frames that are lost after our program's decision, as two tracepoints of the kernel tell:
//! `xdp_exception` where a driver can't do what a program has answered, `xdp_redirect_err` where a
//! frame can't be handed to another interface (`include/trace/events/xdp.h`). Both fire when it
//! happens, and cost nothing otherwise.
//!
//! What a driver refuses later, with a frame queued already, neither of them tells: that is among
//! the driver's own statistics.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of the map: a per-CPU hash of [`Loss`] to a count of frames.
pub const MAP: &str = "LOSSES";
/// Kinds of losses that are told apart; what comes beyond is not counted. Other people's programs
/// are among them, too.
pub const CAPACITY: usize = 1024;

/// Kind of a loss.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct Loss {
    /// Id of the program that had decided.
    pub program: u32,
    /// Index of the interface where the frame arrived.
    pub interface: u32,
    /// What the program had answered: `enum xdp_action`.
    pub action: u32,
    /// Why a redirect failed, an `errno`; 0: it was none.
    pub error: u32,
    /// Index of the interface where it was to go; 0: it was no redirect.
    pub target: u32,
}

/// What `xdp_exception` tells, as the kernel lays it out.
#[derive(Clone, Copy, FromBytes)]
#[repr(C)]
pub struct Exception {
    _common: [u32; 2],
    program: u32,
    action: u32,
    interface: u32,
}

/// What `xdp_redirect_err` tells, as far as it is read.
#[derive(Clone, Copy, FromBytes)]
#[repr(C)]
pub struct RedirectError {
    _common: [u32; 2],
    program: u32,
    action: u32,
    interface: u32,
    error: i32,
    target: u32,
}

impl Exception {
    /// Its kind.
    #[inline(always)]
    pub const fn loss(&self) -> Loss {
        let Self { program, action, interface, .. } = *self;
        Loss { program, interface, action, error: 0, target: 0 }
    }
}

impl RedirectError {
    /// Its kind.
    #[inline(always)]
    pub const fn loss(&self) -> Loss {
        let Self { program, action, interface, error, target, .. } = *self;
        Loss { program, interface, action, error: error.unsigned_abs(), target }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    /// Words of 32 bits, as the tracepoints' `format` files on 6.1 and 6.18 order them.
    fn told<T: FromBytes>(words: &[i32]) -> T {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        T::read_from_prefix(&bytes).expect("enough of them").0
    }

    #[test]
    fn what_is_told_is_found_where_the_kernel_puts_it() {
        let exception: Exception = told(&[-1, -1, 77, 3, 5]);
        let transmit = Loss { program: 77, interface: 5, action: 3, error: 0, target: 0 };
        assert_eq!(exception.loss(), transmit);
        let failed: RedirectError = told(&[-1, -1, 77, 4, 5, -100, 6, i32::MAX, 0]);
        let down = Loss { action: 4, error: 100, target: 6, ..transmit };
        assert_eq!(failed.loss(), down);
    }
}
