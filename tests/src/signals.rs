//! SIGINT, SIGTERM and SIGHUP become a flag that who waits looks at, so that an interrupted program
//! ends like any other: by dropping what it made.
//!
//! Handlers, not a blocked mask with a thread that waits: programs we start would inherit the
//! mask and be deaf to our SIGTERM (std keeps it since Rust 1.66).
#![expect(unsafe_code, reason = "sigaction(2) has no safe wrapper")]

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on signals only set the flag.
///
/// # Errors
/// If the kernel refuses a handler.
pub fn watch() -> Result<()> {
    let handler = SigHandler::Handler(interrupt);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but store an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("handle {signal}"))?;
    }
    Ok(())
}

/// Whether one has come.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

extern "C" fn interrupt(_: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}
