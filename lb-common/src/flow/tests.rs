use core::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use super::*;
use crate::host::HostTables;

mod entry;
mod group;
mod table;

fn settings() -> Settings {
    HostTables::new(GROUP).settings
}

fn group() -> Vec<AtomicU64> {
    (0..GROUP).map(|_| AtomicU64::new(0)).collect()
}

/// A hash with this fingerprint, whose primary line is the first or the second.
fn hash(fingerprint: u64, second_line: bool) -> u64 {
    fingerprint << FINGERPRINT_SHIFT | u64::from(second_line) << 27
}

const NOW: u8 = 100;
