use std::{fs, sync::OnceLock};

use lb_common::counters::EVENTS;
use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::*;
use crate::recorder::{Figures, Line, Party};

const ALL: RangeInclusive<u64> = 0..=u64::MAX;

fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("recorder.bin");
    (directory, path)
}

/// A second in which so many backends had so much that each line has some 90 bytes.
fn second(at: u64, backends: u64) -> Second {
    let line = |backend: u64| Line {
        party: Party::Backend { service: "web".to_owned(), backend: format!("web-{backend}") },
        figures: Figures {
            packets: at + backend + 1,
            events: [1 << 60; EVENTS],
            ..Figures::default()
        },
        condition: None,
        before: None,
    };
    Second { at, span_ms: 1000, reasons: Vec::new(), lines: (0..backends).map(line).collect() }
}

fn times(recording: &Recording) -> Vec<u64> {
    recording.seconds.iter().map(|second| second.at).collect()
}

#[test]
fn what_is_recorded_is_read_in_its_window_by_anybody_at_any_time() {
    let (_directory, path) = directory();
    let mut ring = Ring::open(&path).expect("a ring");
    for at in 100..110 {
        ring.append(&second(at, 3), 4).expect("written");
    }
    let recording = read(&path, &(103..=105)).expect("a recording");
    assert_eq!(recording.seconds, [second(103, 3), second(104, 3), second(105, 3)]);
    assert_eq!((recording.oldest, recording.newest), (Some(100), Some(109)));
    assert_eq!(recording.damaged, 0);
}

#[test]
fn the_next_daemon_goes_on_where_the_last_one_ended() {
    let (_directory, path) = directory();
    for at in 0..20 {
        Ring::open(&path).expect("a ring").append(&second(at, 2), 4).expect("written");
    }
    let recording = read(&path, &ALL).expect("a recording");
    assert_eq!(times(&recording), (0..20).collect::<Vec<_>>());
    assert!(fs::metadata(&path).expect("a file").len() <= offset(1), "one segment, not twenty");
}

#[test]
fn an_hour_is_kept_whatever_happens_and_no_more_than_its_size() {
    let (_directory, path) = directory();
    let mut ring = Ring::open(&path).expect("a ring");
    // Three rounds, in which each second takes all it may.
    let seconds = 3 * KEPT as u64;
    for at in 0..seconds {
        ring.append(&second(at, 16), 4).expect("written");
    }
    let recording = read(&path, &ALL).expect("a recording");
    let times = times(&recording);
    assert!(times.len() >= KEPT, "{}", times.len());
    assert_eq!(times, (seconds - times.len() as u64..seconds).collect::<Vec<_>>());
    assert_eq!(recording.damaged, 0);
    let size = Size::of(4);
    assert_eq!((size.second, size.segments), (1024, 5));
    assert!(fs::metadata(&path).expect("a file").len() <= offset(5));
}

#[test]
fn the_size_follows_the_instance() {
    for (parties, second, mib) in [(0, 1024, 5), (50, 2256, 9), (1000 + 20_000, 32 << 10, 118)] {
        let size = Size::of(parties);
        assert_eq!((size.second, size.segments), (second, mib), "{parties}");
    }
}

#[test]
fn a_ring_that_grows_loses_nothing() {
    let (_directory, path) = directory();
    let mut ring = Ring::open(&path).expect("a ring");
    for at in 0..5000 {
        ring.append(&second(at, 16), 4).expect("written");
    }
    let kept = times(&read(&path, &ALL).expect("a recording"));
    for at in 5000..6000 {
        ring.append(&second(at, 16), 100).expect("written");
    }
    let now = times(&read(&path, &ALL).expect("a recording"));
    assert_eq!(now, (kept[0]..6000).collect::<Vec<_>>());
}

#[test]
fn a_record_written_by_half_is_none_and_the_next_takes_its_place() {
    let (_directory, path) = directory();
    let mut ring = Ring::open(&path).expect("a ring");
    for at in 0..3 {
        ring.append(&second(at, 3), 4).expect("written");
    }
    let whole = ring.end;
    ring.append(&second(3, 3), 4).expect("written");
    let bytes = fs::read(&path).expect("a file");
    for cut in whole..ring.end {
        fs::write(&path, &bytes[..cut]).expect("written");
        let recording = read(&path, &ALL).expect("a recording");
        assert_eq!((times(&recording), recording.damaged), (vec![0, 1, 2], 0), "cut at {cut}");
    }
    Ring::open(&path).expect("a ring").append(&second(9, 5), 4).expect("written");
    let recording = read(&path, &ALL).expect("a recording");
    assert_eq!(recording.seconds[3], second(9, 5));
}

#[test]
fn damage_costs_the_rest_of_its_segment_and_is_told() {
    let (_directory, path) = directory();
    let mut ring = Ring::open(&path).expect("a ring");
    for at in 0..3000 {
        ring.append(&second(at, 16), 4).expect("written");
    }
    let whole = times(&read(&path, &ALL).expect("a recording"));
    let mut bytes = fs::read(&path).expect("a file");
    bytes[SEGMENT + SEGMENT / 2] ^= 1;
    fs::write(&path, &bytes).expect("written");
    let recording = read(&path, &ALL).expect("a recording");
    let lost = whole.len() - recording.seconds.len();
    assert!(recording.damaged == 1 && lost > 0 && lost < SEGMENT / 1000, "{lost}");
    // A segment without its header is a free one.
    bytes[SEGMENT] ^= 1;
    fs::write(&path, &bytes).expect("written");
    assert_eq!(read(&path, &ALL).expect("a recording").damaged, 1);
    let mut ring = Ring::open(&path).expect("a ring");
    ring.append(&second(3000, 1), 4).expect("written");
    assert_eq!(read(&path, &ALL).expect("a recording").newest, Some(3000));
}

#[test]
fn what_is_no_recording_is_one_clear_error_and_begun_anew() {
    let (_directory, path) = directory();
    let error = read(&path, &ALL).expect_err("nothing is there");
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    fs::write(&path, "something else").expect("written");
    let error = read(&path, &ALL).expect_err("no recording");
    assert!(error.to_string().contains("recorder.bin is damaged"), "{error}");
    Ring::open(&path).expect("a ring").append(&second(7, 1), 4).expect("written");
    assert_eq!(times(&read(&path, &ALL).expect("a recording")), [7]);
    fs::write(&path, "").expect("written");
    assert_eq!(read(&path, &ALL).expect("nothing recorded yet"), Recording::default());
}

#[test]
fn a_segment_of_an_older_version_is_read_and_left_as_it_is() {
    let (_directory, path) = directory();
    // {at: 10, span_ms: 1000} without lines, as version 1 wrote it: the same in both.
    let (bytes, _) = Names::default().encode(&Second { at: 10, span_ms: 1000, ..second(10, 0) });
    let header = Header { format: Format::Unreturned, sequence: 7 };
    let mut old = header.bytes().to_vec();
    assert_eq!(old[8..12], [1, 0, 0, 0]);
    old.extend(record(7, &bytes));
    fs::write(&path, &old).expect("written");
    assert_eq!(times(&read(&path, &ALL).expect("a recording")), [10]);
    // The next daemon begins a segment of its own behind it, and goes on in that one.
    for at in 11..14 {
        Ring::open(&path).expect("a ring").append(&second(at, 2), 4).expect("written");
    }
    let recording = read(&path, &ALL).expect("a recording");
    assert_eq!((times(&recording), recording.damaged), (vec![10, 11, 12, 13], 0));
    assert_eq!(recording.seconds[1..], [second(11, 2), second(12, 2), second(13, 2)]);
    let file = fs::read(&path).expect("a file");
    assert_eq!(file[..old.len()], old);
    assert!(file.len() < 2 * SEGMENT, "one segment more");
    // A version that nobody has written yet is not guessed at.
    let mut newer = Header { format: Format::Today, sequence: 9 }.bytes();
    newer[8] = 3;
    newer[12..16].fill(0);
    let sum = crc32fast::hash(&newer);
    newer[12..16].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, newer).expect("written");
    assert!(matches!(read(&path, &ALL), Err(Error::Unreadable { .. })));
}

#[test]
fn a_full_disk_is_an_error_and_costs_no_more() {
    // /dev/full says ENOSPC to each write.
    let file = OpenOptions::new().read(true).write(true).open("/dev/full").expect("a device");
    let mut ring = Ring {
        file,
        sequences: Vec::new(),
        current: None,
        end: HEADER,
        names: Names::default(),
        reserved: usize::MAX,
    };
    for at in 0..3 {
        let error = ring.append(&second(at, 1), 4).expect_err("a full disk");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_seconds_come_back(seconds in vec(crate::recorder::second::tests::second(), 1..20)) {
        let (_directory, path) = directory();
        let mut ring = Ring::open(&path).expect("a ring");
        for second in &seconds {
            ring.append(second, 200).expect("written");
        }
        let recording = read(&path, &ALL).expect("a recording");
        prop_assert_eq!(recording.seconds, seconds);
    }

    #[test]
    fn any_damage_is_survived(
        places in vec((0..3 * SEGMENT, any::<u8>()), 1..50),
        length in 0..3 * SEGMENT,
    ) {
        static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
        let (_directory, path) = directory();
        let mut bytes = WHOLE.get_or_init(|| {
            let mut ring = Ring::open(&path).expect("a ring");
            for at in 0..2500 {
                ring.append(&second(at, 16), 4).expect("written");
            }
            fs::read(&path).expect("a file")
        }).clone();
        for (place, byte) in places {
            if let Some(there) = bytes.get_mut(place) {
                *there = byte;
            }
        }
        bytes.truncate(length);
        fs::write(&path, &bytes).expect("written");
        if let Ok(recording) = read(&path, &ALL) {
            let is_ours = |second: &Second| second.span_ms == 1000 && second.at < 2500;
            prop_assert!(recording.seconds.iter().all(is_ours));
        }
        let mut ring = Ring::open(&path).expect("a ring");
        ring.append(&second(9999, 1), 4).expect("written");
        prop_assert_eq!(read(&path, &ALL).expect("a recording").newest, Some(9999));
    }
}
