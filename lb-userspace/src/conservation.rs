//! Nothing vanishes: each frame that an interface received has one verdict.
//!
//! Of each interface by itself, the kernel counts the frames, our program counts verdicts, and nobody can read both at one
//! moment. So the verdicts are read before and after the frames, and what follows is a
//! range: how many frames more than verdicts there were at least, and at most. Where no frame
//! arrives meanwhile, it is one number. A driver may also tell of its frames later than it hands
//! them to the program, by a second at most: the frames of about that time are in doubt.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Readings, a second apart, that must agree.
const AGREEING: usize = 3;
/// From one word about a residual to the next.
const SILENCE: Duration = Duration::from_secs(60);

/// Frames and verdicts of about one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Index of the interface.
    pub interface: u32,
    /// Frames that it has received since it was made.
    pub received: u64,
    /// Verdicts about its frames, before `received` was read.
    pub verdicts_before: u64,
    /// The same after it.
    pub verdicts_after: u64,
    /// Another number: the verdicts of before can't be compared with these.
    pub epoch: u64,
}

/// A difference that can't be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residual {
    /// Frames received without a verdict, at least; less than 0: verdicts without a frame.
    pub frames: i64,
    /// How many were received since they are compared.
    pub received: u64,
}

/// Frames and verdicts, compared again and again.
#[derive(Debug, Default)]
pub struct Ledger {
    /// What all later readings are compared with.
    origin: Option<Origin>,
    last: Option<Reading>,
    /// Frames more than verdicts, at least and at most, by the latest readings.
    ranges: VecDeque<(i64, i64)>,
    /// What was unexplained when the origin moved.
    carried: i64,
    told: Option<(i64, Instant)>,
}

#[derive(Debug)]
struct Origin {
    reading: Reading,
    /// Frames that it may have had already without telling; `None`: nobody knows yet.
    doubt: Option<u64>,
}

impl Reading {
    /// Whether what lies between an earlier reading and this one can be told from both.
    fn follows(&self, earlier: &Self) -> bool {
        (self.epoch, self.interface) == (earlier.epoch, earlier.interface)
            && self.verdicts_before >= earlier.verdicts_after
            && self.received >= earlier.received
    }
}

impl Ledger {
    /// Takes a reading in; tells of a residual that is new, once a minute at most.
    pub fn take(&mut self, reading: Reading, now: Instant) -> Option<Residual> {
        let last = self.last.replace(reading.clone());
        let (Some(origin), Some(last)) = (&mut self.origin, last) else {
            self.begin(reading);
            return None;
        };
        if !reading.follows(&last) {
            self.carried = self.unexplained();
            self.begin(reading);
            return None;
        }
        let lately = reading.received - last.received;
        let doubt = *origin.doubt.get_or_insert(lately);
        let before = &origin.reading;
        let received = reading.received - before.received;
        let most_verdicts = reading.verdicts_after - before.verdicts_before;
        let fewest_verdicts = reading.verdicts_before - before.verdicts_after;
        let low = difference(received, most_verdicts.saturating_add(doubt));
        let high = difference(received + lately, fewest_verdicts);
        if self.ranges.len() == AGREEING {
            self.ranges.pop_front();
        }
        self.ranges.push_back((low, high));
        self.tell(received, now)
    }

    /// Frames received without a verdict, at least; less than 0: verdicts without a frame.
    pub fn unexplained(&self) -> i64 {
        let is_certain = self.ranges.len() == AGREEING;
        let low = self.ranges.iter().map(|(low, _)| *low).min().filter(|_| is_certain);
        let high = self.ranges.iter().map(|(_, high)| *high).max().filter(|_| is_certain);
        let since = match (low, high) {
            (Some(low @ 1..), _) => low,
            (_, Some(high @ ..0)) => high,
            _ => 0,
        };
        self.carried.saturating_add(since)
    }

    fn begin(&mut self, reading: Reading) {
        self.origin = Some(Origin { reading, doubt: None });
        self.ranges.clear();
    }

    fn tell(&mut self, received: u64, now: Instant) -> Option<Residual> {
        let frames = self.unexplained();
        let is_new = match self.told {
            Some((told, at)) => told != frames && now.saturating_duration_since(at) >= SILENCE,
            None => frames != 0,
        };
        if !is_new {
            return None;
        }
        self.told = Some((frames, now));
        Some(Residual { frames, received })
    }
}

fn difference(more: u64, less: u64) -> i64 {
    i64::try_from(i128::from(more) - i128::from(less)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [i64; 0] = [];

    /// An interface with so many frames, and so many verdicts, both at rest.
    fn quiet(received: u64, verdicts: u64) -> Reading {
        busy(received, verdicts, verdicts)
    }

    fn busy(received: u64, verdicts_before: u64, verdicts_after: u64) -> Reading {
        Reading { interface: 2, received, verdicts_before, verdicts_after, epoch: 0 }
    }

    /// Takes readings that are a second apart; all that was told.
    fn told(ledger: &mut Ledger, readings: impl IntoIterator<Item = Reading>) -> Vec<i64> {
        let start = Instant::now();
        let seconds = (0..).map(Duration::from_secs);
        let taken = readings.into_iter().zip(seconds);
        taken.filter_map(|(r, at)| Some(ledger.take(r, start + at)?.frames)).collect()
    }

    #[test]
    fn frames_with_a_verdict_each_are_no_news() {
        let mut ledger = Ledger::default();
        let readings = (0..100).map(|second| quiet(70 + second * 1000, second * 1000));
        assert_eq!(told(&mut ledger, readings), NOTHING);
        assert_eq!(ledger.unexplained(), 0);
    }

    #[test]
    fn a_single_frame_without_a_verdict_is_told_when_it_is_quiet_again() {
        let mut ledger = Ledger::default();
        let readings = [quiet(0, 0), quiet(0, 0), quiet(5, 4)];
        assert_eq!(told(&mut ledger, readings), NOTHING);
        assert_eq!(told(&mut ledger, vec![quiet(5, 4); 3]), [1]);
        assert_eq!(ledger.unexplained(), 1);
        assert_eq!(told(&mut ledger, vec![quiet(5, 4); 10]), NOTHING, "once is enough");
    }

    #[test]
    fn so_is_a_verdict_without_a_frame() {
        let mut ledger = Ledger::default();
        assert_eq!(told(&mut ledger, [quiet(0, 0), quiet(0, 0)]), NOTHING);
        assert_eq!(told(&mut ledger, vec![quiet(0, 3); 5]), [-3]);
    }

    #[test]
    fn a_residual_that_grows_is_told_once_a_minute() {
        let mut ledger = Ledger::default();
        told(&mut ledger, [quiet(0, 0), quiet(0, 0)]);
        let growing = (1..=123).map(|second| quiet(second * 2, second));
        assert_eq!(told(&mut ledger, growing), [1, 61, 121]);
    }

    #[test]
    fn frames_under_way_are_not_missing() {
        let mut ledger = Ledger::default();
        // The frames are read amid the verdicts, somewhere.
        let readings = (0..50).map(|second| {
            let verdicts = second * 100_000;
            busy(verdicts + second % 7 * 300, verdicts, verdicts + 2000)
        });
        assert_eq!(told(&mut ledger, readings), NOTHING);
        // All the same: what is more than that is seen.
        let readings = (50..60).map(|second| {
            let verdicts = second * 100_000;
            busy(verdicts + 200_000, verdicts, verdicts + 2000)
        });
        let told = told(&mut ledger, readings);
        assert!(matches!(told[..], [90_000..=100_000]), "{told:?}");
    }

    #[test]
    fn a_driver_that_counts_a_second_late_is_not_suspected() {
        for begins_busy in [true, false] {
            let mut ledger = Ledger::default();
            let lead = if begins_busy { 0 } else { 5 };
            let readings = (0..60_u64).map(|second| {
                let verdicts = second.saturating_sub(lead) * 1000;
                quiet(verdicts.saturating_sub(1000), verdicts)
            });
            assert_eq!(told(&mut ledger, readings), NOTHING, "{begins_busy}");
            assert_eq!(told(&mut ledger, vec![quiet(59_000, 59_000); 5]), NOTHING);
        }
    }

    #[test]
    fn what_can_not_be_compared_begins_anew() {
        let mut ledger = Ledger::default();
        told(&mut ledger, [quiet(0, 0), quiet(0, 0)]);
        assert_eq!(told(&mut ledger, vec![quiet(2, 0); 3]), [2]);
        // Counters were cleared, the interface was made anew, and its own counts were cleared.
        let cleared = Reading { epoch: 1, ..quiet(10, 0) };
        let other = Reading { interface: 3, received: 1000, ..cleared.clone() };
        let anew = Reading { received: 0, ..other.clone() };
        assert_eq!(told(&mut ledger, [cleared, other, anew.clone()]), NOTHING);
        assert_eq!(ledger.unexplained(), 2);
        assert_eq!(told(&mut ledger, vec![anew; 5]), NOTHING);
        assert_eq!(ledger.unexplained(), 2, "what is known stays known");
    }
}
