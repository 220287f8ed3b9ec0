//! What was counted of one backend lately.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use lb_common::counters::Event;

/// A window's figures are kept in so many steps: it is by one of them too long at most.
const STEPS: u32 = 10;

/// Counts of one backend: since they began, or of a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// SYNs that chose it.
    pub syns: u64,
    /// SYNs that clients sent to it again.
    pub retransmissions: u64,
    /// Of these, given to another backend.
    pub second_tries: u64,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Flows that their clients reset soon after the SYN.
    pub client_resets: u64,
    /// Flows that found no place in the flow table: their handshakes are not seen. Of those whose
    /// SYN found none, the first ACK may count again.
    pub untracked: u64,
    /// Flows of all backends, whose is not counted, that were evicted while only their SYN was
    /// seen: the rest of their handshakes is not.
    pub evicted: u64,
}

impl Counts {
    /// Picks them out of all that is counted per backend; `evicted` is that of the whole table.
    pub fn of(count: impl Fn(Event) -> u64, evicted: u64) -> Self {
        Self {
            syns: count(Event::NewFlow),
            retransmissions: count(Event::SynRetransmission),
            second_tries: count(Event::SecondTry),
            handshakes: count(Event::Handshake),
            client_resets: count(Event::ClientReset),
            untracked: count(Event::Untracked),
            evicted,
        }
    }

    /// SYNs that it has been given and whose handshakes would be seen: as few as those can be.
    /// Evictions are left out, for a flood drives out everybody's alike: shares compare in it.
    pub fn attempts(&self) -> u64 {
        let given = self.syns.saturating_add(self.retransmissions);
        let tracked = given.saturating_sub(self.second_tries).saturating_sub(self.untracked);
        tracked.max(self.handshakes)
    }

    /// Flows whose handshakes can't be seen: as many as those can be.
    pub(super) const fn unseen(&self) -> u64 {
        self.untracked.saturating_add(self.evicted)
    }

    /// What came after an earlier reading; `None` if the counters have begun anew since.
    fn since(&self, earlier: &Self) -> Option<Self> {
        Some(Self {
            syns: self.syns.checked_sub(earlier.syns)?,
            retransmissions: self.retransmissions.checked_sub(earlier.retransmissions)?,
            second_tries: self.second_tries.checked_sub(earlier.second_tries)?,
            handshakes: self.handshakes.checked_sub(earlier.handshakes)?,
            client_resets: self.client_resets.checked_sub(earlier.client_resets)?,
            untracked: self.untracked.checked_sub(earlier.untracked)?,
            evicted: self.evicted.checked_sub(earlier.evicted)?,
        })
    }

    const fn plus(&self, more: &Self) -> Self {
        Self {
            syns: self.syns.saturating_add(more.syns),
            retransmissions: self.retransmissions.saturating_add(more.retransmissions),
            second_tries: self.second_tries.saturating_add(more.second_tries),
            handshakes: self.handshakes.saturating_add(more.handshakes),
            client_resets: self.client_resets.saturating_add(more.client_resets),
            untracked: self.untracked.saturating_add(more.untracked),
            evicted: self.evicted.saturating_add(more.evicted),
        }
    }
}

/// What was seen of a backend in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// How long that is: shorter than asked for while the backend is new.
    pub time: Duration,
    /// What was counted.
    pub counts: Counts,
    /// The share of the pool's new flows that was its due, over the time: seconds of all of them.
    pub due: f64,
}

impl Figures {
    /// So many of these a second; 0 where no time has passed.
    pub fn per_second(&self, count: u64) -> f64 {
        let seconds = self.time.as_secs_f64();
        if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
    }
}

/// A sliding window over a backend's counters.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// The counters as last read.
    last: Counts,
    /// All that was counted since the window was made, whatever became of the counters.
    sum: (Counts, f64),
    /// The sum at earlier moments, the first at the window's beginning.
    marks: VecDeque<(Instant, (Counts, f64))>,
    /// When it was last added to.
    now: Instant,
}

impl Window {
    /// A window that begins with this reading.
    pub(super) fn new(totals: Counts, now: Instant) -> Self {
        let sum = (Counts::default(), 0.0);
        Self { last: totals, sum, marks: [(now, sum)].into(), now }
    }

    /// Adds a reading, and the share of the time since the last one that was the backend's due;
    /// tells what was counted meanwhile. Of counters that have begun anew nothing is known: they
    /// may have been copied some moments before, or be another's.
    pub(super) fn add(
        &mut self,
        totals: Counts,
        share: f64,
        now: Instant,
        length: Duration,
    ) -> Counts {
        let news = totals.since(&self.last).unwrap_or_default();
        let time = now.saturating_duration_since(self.now);
        self.last = totals;
        self.now = now;
        self.sum = (self.sum.0.plus(&news), self.sum.1 + share * time.as_secs_f64());
        let age = |mark: &(Instant, _)| now.saturating_duration_since(mark.0);
        if self.marks.back().is_none_or(|mark| age(mark) >= length / STEPS) {
            self.marks.push_back((now, self.sum));
        }
        while self.marks.get(1).is_some_and(|mark| age(mark) >= length) {
            self.marks.pop_front();
        }
        news
    }

    /// Forgets what was seen until now.
    pub(super) fn restart(&mut self) {
        self.marks = [(self.now, self.sum)].into();
    }

    pub(super) fn figures(&self) -> Figures {
        let (begin, (counts, due)) = self.marks.front().copied().unwrap_or((self.now, self.sum));
        Figures {
            time: self.now.saturating_duration_since(begin),
            // The sum only grows.
            counts: self.sum.0.since(&counts).unwrap_or_default(),
            due: self.sum.1 - due,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn syns(syns: u64) -> Counts {
        Counts { syns, ..Counts::default() }
    }

    #[test]
    fn a_window_slides() {
        let start = Instant::now();
        let mut window = Window::new(syns(1000), start);
        for second in 1..=30 {
            let now = start + SECOND * second;
            let news = window.add(syns(1000 + 7 * u64::from(second)), 0.5, now, 10 * SECOND);
            assert_eq!(news, syns(7));
            let figures = window.figures();
            let length = second.min(10);
            assert_eq!(figures.counts, syns(7 * u64::from(length)), "after {second} s");
            assert_eq!(figures.time, SECOND * length);
            assert_eq!(figures.due, f64::from(length) / 2.0);
            assert_eq!(figures.per_second(figures.counts.syns), 7.0);
        }
        assert!(window.marks.len() <= STEPS as usize + 2);
        window.restart();
        assert_eq!(window.figures(), Figures::default());
    }

    #[test]
    fn a_syn_without_a_place_is_no_attempt() {
        let given = Counts { syns: 100, retransmissions: 10, second_tries: 5, ..syns(0) };
        assert_eq!(given.attempts(), 105);
        assert_eq!(Counts { untracked: 60, evicted: 1000, ..given }.attempts(), 45);
        // Both the SYN and the ACK of a flow: nobody completes more than he was given.
        assert_eq!(Counts { untracked: 130, handshakes: 7, ..given }.attempts(), 7);
    }

    #[test]
    fn readings_close_together_are_kept_in_few_steps() {
        let start = Instant::now();
        let mut window = Window::new(syns(0), start);
        for step in 1..=10_000u32 {
            let now = start + Duration::from_millis(10) * step;
            window.add(syns(u64::from(step)), 1.0, now, 10 * SECOND);
            assert!(window.marks.len() <= STEPS as usize + 2, "{} marks", window.marks.len());
            if step > 1000 {
                let time = window.figures().time;
                assert!(time >= 10 * SECOND && time <= 11 * SECOND, "{time:?}");
            }
        }
    }

    #[test]
    fn counters_that_begin_anew_are_not_counted_once_more() {
        let start = Instant::now();
        let mut window = Window::new(syns(5000), start);
        let mut now = start;
        let mut add = |totals| {
            now += SECOND;
            window.add(syns(totals), 1.0, now, 60 * SECOND)
        };
        // From zero; a few copied too early; on from there.
        for (totals, news) in [(5003, 3), (2, 0), (9, 7), (8, 0), (8, 0), (10, 2)] {
            assert_eq!(add(totals), syns(news), "at {totals}");
        }
        assert_eq!(window.figures().counts, syns(12));
    }

    #[test]
    fn a_clock_that_goes_back_is_no_time() {
        let start = Instant::now() + SECOND;
        let mut window = Window::new(syns(0), start);
        window.add(syns(4), 1.0, start - SECOND, SECOND);
        let figures = window.figures();
        assert_eq!((figures.counts, figures.due), (syns(4), 0.0));
        assert_eq!(figures.per_second(4), 0.0);
    }
}
