//! Whether a backend has just died: nobody's handshake is completed any more.

use std::time::{Duration, Instant};

use super::Counts;

/// When a backend is suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// SYNs in a row, sent again or not, behind which no handshake was completed though it would
    /// have been seen. Default 3.
    pub syns: u64,
    /// At least so long after the first of them: a client's ACK takes a round trip. Default 300 ms,
    /// so that who dies is suspect before its clients send their SYNs again, after 1 s
    /// (RFC 6298 §2).
    pub wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { syns: 3, wait: Duration::from_millis(300) }
    }
}

/// SYNs are forgotten so long after the last one: nobody waits for an answer to it any more.
const FORGET: Duration = Duration::from_secs(60);

/// SYNs since the last completed handshake, without those of flows that are not in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// None.
    #[default]
    Nothing,
    /// Some.
    Waiting {
        /// How many.
        syns: u64,
        /// When the first was read.
        since: Instant,
        /// When the last was.
        last: Instant,
    },
}

impl Suspicion {
    /// What another reading makes of it. Which of a reading's SYNs came before its handshakes is
    /// not known: each handshake is taken for the answer to one of them, and the rest for SYNs
    /// that have just been sent. Of the flows that were evicted it is not known whose they were:
    /// all are taken for this backend's.
    pub(super) fn next(self, news: &Counts, now: Instant) -> Self {
        let more = news.syns.saturating_add(news.retransmissions);
        let (waiting, since, last) = match self {
            _ if news.handshakes > 0 => (more.saturating_sub(news.handshakes), now, now),
            Self::Nothing => (more, now, now),
            Self::Waiting { last, .. }
                if more == 0 && now.saturating_duration_since(last) >= FORGET =>
            {
                (0, now, now)
            }
            Self::Waiting { syns, since, last } => {
                (syns.saturating_add(more), since, if more > 0 { now } else { last })
            }
        };
        match waiting.saturating_sub(news.unseen()) {
            0 => Self::Nothing,
            syns => Self::Waiting { syns, since, last },
        }
    }

    /// Whether that is too much.
    pub(super) fn is_suspect(self, limits: &Limits, now: Instant) -> bool {
        match self {
            Self::Nothing => false,
            Self::Waiting { syns, since, .. } => {
                syns >= limits.syns && now.saturating_duration_since(since) >= limits.wait
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(syns: u64, retransmissions: u64, handshakes: u64) -> Counts {
        Counts { syns, retransmissions, handshakes, ..Counts::default() }
    }

    #[test]
    fn who_completes_no_handshake_is_suspect_until_the_next() {
        let limits = Limits::default();
        let start = Instant::now();
        // Readings (milliseconds, SYNs, sent again, handshakes), and whether it is suspect then.
        type Story = (&'static str, &'static [(u64, u64, u64, u64, bool)]);
        let stories: [Story; 8] = [
            ("it dies", &[(0, 9, 0, 9, false), (250, 5, 0, 0, false), (600, 5, 0, 0, true)]),
            ("many at once, not yet late", &[(0, 900, 0, 0, false), (299, 900, 0, 0, false)]),
            ("late, but only two", &[(0, 1, 0, 0, false), (900, 0, 1, 0, false)]),
            (
                "one client alone",
                &[(0, 1, 0, 0, false), (1000, 0, 1, 0, false), (3000, 0, 1, 0, true)],
            ),
            ("it lives again", &[(0, 3, 0, 0, false), (400, 0, 0, 0, true), (500, 9, 3, 1, false)]),
            (
                "then it begins anew",
                &[(0, 9, 0, 9, false), (1, 2, 0, 0, false), (400, 0, 0, 0, false)],
            ),
            (
                "its last handshakes and the first SYNs in vain in one reading",
                &[(0, 9, 0, 4, false), (200, 0, 0, 0, false), (400, 0, 0, 0, true)],
            ),
            ("long ago", &[(0, 3, 0, 0, false), (59_999, 0, 0, 0, true), (60_000, 0, 0, 0, false)]),
        ];
        for (name, readings) in stories {
            let mut suspicion = Suspicion::default();
            for &(at, syns, again, handshakes, suspect) in readings {
                let now = start + Duration::from_millis(at);
                suspicion = suspicion.next(&counts(syns, again, handshakes), now);
                assert_eq!(suspicion.is_suspect(&limits, now), suspect, "{name}, {at} ms");
            }
        }
    }

    #[test]
    fn who_can_not_be_seen_answering_is_not_suspect() {
        let limits = Limits::default();
        let start = Instant::now();
        // Readings (SYNs, untracked, evicted), each a second after the last; whether it is suspect.
        type Story = (&'static str, &'static [(u64, u64, u64, bool)]);
        let stories: [Story; 6] = [
            ("no flow has a place", &[(9, 9, 0, false), (9, 9, 0, false), (9, 9, 0, false)]),
            ("nor its first ACK", &[(9, 17, 0, false), (9, 19, 0, false), (9, 18, 0, false)]),
            ("each is driven out by the next", &[(9, 0, 9, false), (9, 0, 70, false)]),
            (
                "those that wait are driven out",
                &[(9, 0, 0, false), (0, 0, 0, true), (0, 0, 9, false)],
            ),
            ("it is dead, half have a place", &[(9, 5, 0, false), (9, 4, 0, true)]),
            ("the table has room again", &[(9, 9, 0, false), (9, 0, 0, false), (9, 0, 0, true)]),
        ];
        for (name, readings) in stories {
            let mut suspicion = Suspicion::default();
            for (second, &(syns, untracked, evicted, suspect)) in (0..).zip(readings) {
                let now = start + Duration::from_secs(second);
                let news = Counts { untracked, evicted, ..counts(syns, 0, 0) };
                suspicion = suspicion.next(&news, now);
                assert_eq!(suspicion.is_suspect(&limits, now), suspect, "{name}, {second} s");
            }
        }
    }

    proptest! {
        #[test]
        fn a_handshake_clears_and_fewer_syns_than_the_limit_never_suffice(
            readings in prop::collection::vec((0u64..2000, 0u64..3, 0u64..2, 0u64..2), 1..50),
        ) {
            let limits = Limits::default();
            let (mut suspicion, mut now) = (Suspicion::default(), Instant::now());
            let mut unanswered = 0;
            for (wait, syns, again, handshakes) in readings {
                now += Duration::from_millis(wait);
                suspicion = suspicion.next(&counts(syns, again, handshakes), now);
                let before = if handshakes > 0 { 0 } else { unanswered };
                unanswered = (before + syns + again).saturating_sub(handshakes);
                let suspect = suspicion.is_suspect(&limits, now);
                prop_assert!(!suspect || (handshakes == 0 && unanswered >= limits.syns));
            }
        }
    }
}
