//! The flight recorder: what was counted in each second of the last hour, in a file of bounded
//! size in the state directory, readable when the daemon is dead.
//!
//! Each second the daemon [tallies](Tally) its counters into a [`Second`] and hands it to the
//! [`Recorder`], a thread that fits it (`fit`) into its share of the file and writes it into a ring
//! of segments (`ring`). [`read`] reads the file back, and a [`Story`] says what happened.
//! A full, slow or broken disk costs seconds of the recording and nothing else.

mod fit;
mod ring;
mod second;
mod story;
mod tally;
mod writer;

use std::path::{Path, PathBuf};

pub use self::{
    ring::{Error, Recording, read},
    second::{Condition, Figures, Line, Party, Returned, Second},
    story::{Counts, Gap, Portion, Story, Told, Wanted, second_of},
    tally::{Reading, Tally},
    writer::Recorder,
};

/// The recording in a state directory.
pub fn path(directory: &Path) -> PathBuf {
    directory.join("recorder.bin")
}
