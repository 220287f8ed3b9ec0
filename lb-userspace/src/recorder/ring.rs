//! The file: a ring of segments of 1 MiB, each whole in itself, so that the loss of one is the
//! loss of its seconds alone.
//!
//! ```text
//! segment: header, records, 8 zero bytes
//! header:  "SLUICE\0R", version u32, CRC-32 of the rest u32, sequence u64, zero u64
//!          version 2: of today; 1: what was forwarded to clients is not told apart
//! record:  length u32, CRC-32 of sequence, length and bytes u32, bytes (`second`)
//! ```
//!
//! All integers are little-endian. The largest sequence is the newest segment. What a segment
//! held in an earlier round has another sequence in its checksums, and so is no record any more;
//! nor is one that was written by half. Nothing is flushed each second: what the kernel was handed
//! survives the daemon, not the power. A segment of an older version is
//! read until its turn comes to be written anew; today's records are never put into one. The room is reserved when the file is made, so that a disk
//! that fills up later does not end the recording.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::RangeInclusive,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
};

use super::{
    Party, Second,
    fit::fit,
    second::{Format, Names},
};

/// Bytes of a segment.
const SEGMENT: usize = 1 << 20;
/// Bytes of a segment's header.
const HEADER: usize = 32;
/// Bytes in front of a record's own; so many zeros stand behind the last one.
const FRAME: usize = 8;
const MAGIC: &[u8; 8] = b"SLUICE\0R";
/// What the header has for a format.
const VERSIONS: [(u32, Format); 2] = [(1, Format::Unreturned), (2, Format::Today)];
/// Seconds that are kept at least.
const KEPT: usize = 3600;
/// Bytes of a second at least, and at most.
const LIMITS: RangeInclusive<usize> = 1 << 10..=32 << 10;

/// Why a recording can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("there is no recording at {}: `sluice run` makes it", .path.display())]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// The file can't be read.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has no segment of ours.
    #[error(
        "{} is damaged, or was written by another version of sluice: nothing in it can be read; \
         a running daemon begins it anew",
        .path.display()
    )]
    Unreadable {
        /// Which.
        path: PathBuf,
    },
}

/// What was read of a recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// The seconds asked for, in the order in which they were recorded.
    pub seconds: Vec<Second>,
    /// The first second of the whole recording.
    pub oldest: Option<u64>,
    /// Its last one.
    pub newest: Option<u64>,
    /// Segments that could not be read, or not to their end.
    pub damaged: usize,
}

/// How large the recording of an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    /// Bytes of a second at most.
    second: usize,
    /// Segments.
    segments: usize,
}

impl Size {
    /// For so many services and backends together: an hour, each second of it as long as may be.
    fn of(parties: usize) -> Self {
        let second = (256 + 40 * parties).clamp(*LIMITS.start(), *LIMITS.end());
        let each = (SEGMENT - HEADER - FRAME) / (second + FRAME);
        // One more: what is written anew has lost what it held.
        Self { second, segments: KEPT.div_ceil(each) + 1 }
    }
}

/// The file, written by this process alone.
#[derive(Debug)]
pub(super) struct Ring {
    file: File,
    /// By place; `None`: free.
    sequences: Vec<Option<u64>>,
    /// The place of the newest segment; `None`: the next record begins another.
    current: Option<usize>,
    /// Where in it the next record begins.
    end: usize,
    names: Names,
    /// Segments for which room was reserved.
    reserved: usize,
}

impl Ring {
    /// Goes on behind the last whole record of a file, made if need be.
    ///
    /// # Errors
    /// If it can't be made or read.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(path)?;
        let places = file.metadata()?.len().div_ceil(SEGMENT as u64) as usize;
        let mut headers = Vec::with_capacity(places);
        for place in 0..places {
            headers.push(Header::parse(&read_at(&file, place, HEADER)?));
        }
        let sequences = headers.iter().map(|header| Some((*header)?.sequence)).collect();
        let mut ring = Self {
            file,
            sequences,
            current: None,
            end: HEADER,
            names: Names::default(),
            reserved: 0,
        };
        let newest =
            headers.into_iter().zip(0..).filter_map(|(header, place)| Some((header?, place)));
        if let Some((header, place)) = newest.max_by_key(|(header, _)| header.sequence)
            && header.format == Format::Today
        {
            let bytes = read_at(&ring.file, place, SEGMENT)?;
            let mut records = Records::new(&bytes, header);
            // Its names are needed, and its end.
            while records.next().is_some() {}
            (ring.current, ring.end, ring.names) = (Some(place), records.at, records.names);
        }
        Ok(ring)
    }

    /// Writes a second of an instance that has so many services and backends together.
    ///
    /// # Errors
    /// If it can't be written: then it is lost, and the next one may be written again.
    pub fn append(&mut self, second: &Second, parties: usize) -> io::Result<()> {
        let reserved = self.reserve(parties);
        let written = self.write(second, Size::of(parties));
        // Without room of its own it may still be written, while the disk has some.
        written.and(reserved)
    }

    fn write(&mut self, second: &Second, size: Size) -> io::Result<()> {
        let (mut place, mut bytes, mut names) = self.encode(second, size);
        if place.is_none() {
            self.turn(size.segments)?;
            // All its names are new there.
            (place, bytes, names) = self.encode(second, size);
        }
        let Some((place, sequence)) = place else {
            return Err(io::Error::other("a second is larger than a segment"));
        };
        let record = record(sequence, &bytes);
        self.file.write_all_at(&record, offset(place) + self.end as u64)?;
        self.end += FRAME + bytes.len();
        self.names.learn(names);
        Ok(())
    }

    /// A second's bytes and its new names, and the segment that has room for it, with
    /// its sequence.
    fn encode(&self, second: &Second, size: Size) -> (Option<(usize, u64)>, Vec<u8>, Vec<Party>) {
        let fitted = fit(second.clone(), &self.names, size.second);
        let (bytes, names) = self.names.encode(&fitted);
        let place = self.current.filter(|_| self.end + 2 * FRAME + bytes.len() <= SEGMENT);
        (place.and_then(|place| Some((place, self.sequences[place]?))), bytes, names)
    }

    /// Begins the next segment: a new one, while there are fewer than wanted, or the oldest.
    fn turn(&mut self, wanted: usize) -> io::Result<()> {
        let newest = self.sequences.iter().flatten().max();
        let sequence = newest.map_or(1, |newest| newest.saturating_add(1));
        let place = match self.sequences.iter().position(Option::is_none) {
            Some(free) => free,
            None if self.sequences.len() < wanted => {
                self.sequences.push(None);
                self.sequences.len() - 1
            }
            None => {
                let places = self.sequences.iter().zip(0..);
                places.min_by_key(|(sequence, _)| **sequence).map_or(0, |(_, place)| place)
            }
        };
        let mut start = Header { format: Format::Today, sequence }.bytes().to_vec();
        start.extend([0; FRAME]);
        // Half a header is none: the place is then free.
        self.sequences[place] = None;
        self.file.write_all_at(&start, offset(place))?;
        self.sequences[place] = Some(sequence);
        (self.current, self.end, self.names) = (Some(place), HEADER, Names::default());
        Ok(())
    }

    /// Takes room on the disk for so many services and backends together; a file system that can't
    /// do so gives it as it comes.
    ///
    /// # Errors
    /// If the disk does not have it.
    pub fn reserve(&mut self, parties: usize) -> io::Result<()> {
        let Size { segments, .. } = Size::of(parties);
        if segments <= self.reserved {
            return Ok(());
        }
        let length = offset(segments.max(self.sequences.len()));
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length as i64) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                self.reserved = segments;
                Ok(())
            }
            Err(error) => {
                // Part of it may have been taken behind the file's end: to be given back.
                self.file.set_len(self.file.metadata()?.len())?;
                Err(error.into())
            }
        }
    }
}

/// What a recording has of the seconds in `window`.
///
/// # Errors
/// If there is none, or nothing of it can be read. What is damaged in a part is counted.
pub fn read(path: &Path, window: &RangeInclusive<u64>) -> Result<Recording, Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path: path.to_owned() },
        _ => Error::Read { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut segments = Vec::new();
    let mut recording = Recording::default();
    for place in 0..length.div_ceil(SEGMENT as u64) as usize {
        let bytes = read_at(&file, place, HEADER).map_err(failed)?;
        match Header::parse(&bytes) {
            Some(header) => segments.push((header, place)),
            None => recording.damaged += usize::from(bytes.iter().any(|byte| *byte != 0)),
        }
    }
    if segments.is_empty() && recording.damaged > 0 {
        return Err(Error::Unreadable { path: path.to_owned() });
    }
    segments.sort_unstable_by_key(|(header, place)| (header.sequence, *place));
    let newest = segments.last().map(|(header, _)| header.sequence);
    for (header, place) in segments {
        let bytes = read_at(&file, place, SEGMENT).map_err(failed)?;
        let mut records = Records::new(&bytes, header);
        for second in records.by_ref() {
            recording.oldest.get_or_insert(second.at);
            recording.newest = Some(second.at);
            if window.contains(&second.at) {
                recording.seconds.push(second);
            }
        }
        // The daemon may just be writing the newest, or have died over it.
        let is_cut = !records.is_at_end() && Some(header.sequence) != newest;
        recording.damaged += usize::from(is_cut);
    }
    Ok(recording)
}

/// The whole records of a segment, up to the first that is not.
struct Records<'b> {
    bytes: &'b [u8],
    header: Header,
    names: Names,
    /// Where the next one begins.
    at: usize,
}

impl<'b> Records<'b> {
    fn new(bytes: &'b [u8], header: Header) -> Self {
        Self { bytes, header, names: Names::default(), at: HEADER }
    }

    fn frame(&self) -> Option<(u32, u32)> {
        let frame: [u8; FRAME] = self.bytes.get(self.at..self.at + FRAME)?.try_into().ok()?;
        let [a, b, c, d, e, f, g, h] = frame;
        Some((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])))
    }

    /// Whether zeros follow, as behind the last record.
    fn is_at_end(&self) -> bool {
        self.frame() == Some((0, 0))
    }
}

impl Iterator for Records<'_> {
    type Item = Second;

    fn next(&mut self) -> Option<Second> {
        let (length, sum) = self.frame().filter(|(length, _)| *length > 0)?;
        let from = self.at + FRAME;
        let bytes = self.bytes.get(from..from.checked_add(length as usize)?)?;
        if checksum(self.header.sequence, bytes) != sum {
            return None;
        }
        let second = self.names.decode(bytes, self.header.format)?;
        self.at = from + bytes.len();
        Some(second)
    }
}

/// A record and the zeros behind it.
fn record(sequence: u64, bytes: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(bytes.len() + 2 * FRAME);
    record.extend((bytes.len() as u32).to_le_bytes());
    record.extend(checksum(sequence, bytes).to_le_bytes());
    record.extend(bytes);
    record.extend([0; FRAME]);
    record
}

fn checksum(sequence: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&(bytes.len() as u32).to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// What a segment begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Of its records.
    format: Format,
    /// The larger, the newer.
    sequence: u64,
}

impl Header {
    fn bytes(self) -> [u8; HEADER] {
        let version = VERSIONS.iter().find(|(_, format)| *format == self.format);
        let version = version.map_or(0, |(version, _)| *version);
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&version.to_le_bytes());
        header[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        let sum = crc32fast::hash(&header);
        header[12..16].copy_from_slice(&sum.to_le_bytes());
        header
    }

    /// The header that these bytes are, if they are one.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let sequence: [u8; 8] = bytes.get(16..24)?.try_into().ok()?;
        let sequence = u64::from_le_bytes(sequence);
        let mut headers = VERSIONS.iter().map(|(_, format)| Self { format: *format, sequence });
        headers.find(|header| bytes == header.bytes())
    }
}

const fn offset(place: usize) -> u64 {
    (place * SEGMENT) as u64
}

/// The first bytes of a segment, fewer if the file ends.
fn read_at(file: &File, place: usize, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset(place) + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests;
