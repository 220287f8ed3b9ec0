//! Which backend a probe is for, by the port that it comes from: what the prober tells the kernel
//! program before it connects.

use std::{os::fd::BorrowedFd, sync::atomic::Ordering};

use anyhow::{Context as _, Result};
use lb_common::abi::{ProbeLine, capacity::PROBE_LINES};

use super::Mapping;

/// Places in one word of the array.
const PER_WORD: usize = size_of::<u64>() / size_of::<u16>();

/// The probes under way. Shared with the kernel: a change is seen by the next packet, and takes
/// no system call.
pub struct Probes {
    mapping: Mapping,
}

impl Probes {
    /// Of the map `PROBES`, emptied.
    pub(super) fn map(fd: BorrowedFd<'_>) -> Result<Self> {
        let bytes = PROBE_LINES * size_of::<ProbeLine>();
        let mapping = Mapping::writable(fd, bytes).context("map PROBES")?;
        mapping.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        Ok(Self { mapping })
    }

    /// From now on a probe from this port is for the backend with this index, which is not 0, and
    /// what answers it is handed to the prober; `None`: no more, and what still comes is the host's.
    pub fn set(&self, port: u16, backend: Option<u16>) {
        let (word, place) = (usize::from(port) / PER_WORD, usize::from(port) % PER_WORD);
        let changed = |word| Some(with_place(word, place, backend.unwrap_or(0)));
        // It never fails: there always is a changed word.
        let _ =
            self.mapping.words()[word].fetch_update(Ordering::Release, Ordering::Relaxed, changed);
    }
}

/// A word with another index in one of its places.
fn with_place(word: u64, place: usize, backend: u16) -> u64 {
    let mut bytes = word.to_ne_bytes();
    bytes[place * 2..][..2].copy_from_slice(&backend.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use lb_common::abi::capacity::PROBES_PER_LINE;
    use zerocopy::transmute;

    use super::*;

    #[test]
    fn each_port_has_a_place_of_its_own() {
        for port in 0..PROBES_PER_LINE {
            let mut words = [u64::MAX; PROBES_PER_LINE / PER_WORD];
            let word = &mut words[port / PER_WORD];
            *word = with_place(*word, port % PER_WORD, 0x1234);
            let mut expected: ProbeLine = [u16::MAX; PROBES_PER_LINE];
            expected[port] = 0x1234;
            let line: ProbeLine = transmute!(words);
            assert_eq!(line, expected, "port {port}");
        }
    }
}
