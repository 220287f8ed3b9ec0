//! What is noted of a frame when nobody traces: nothing. See `notes.rs`.

use lb_common::trace::Notes;

/// Does nothing.
#[inline(always)]
pub fn take(_note: impl FnOnce(&mut Notes)) {}

/// Does nothing.
#[inline(always)]
pub fn redirected(_interface: u32) {}
