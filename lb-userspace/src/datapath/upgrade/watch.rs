//! The watch over a new program: what was counted in a window of time just before, against what
//! is counted after; [`judge`] tells whether it got worse.
//!
//! The figures are shares, so that more traffic is no alarm, and small numbers count for
//! nothing. What a sudden attack does to them in these seconds costs an upgrade, and no more:
//! it can be repeated.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{
    counters::Event,
    reason::{Class, Reason},
};

use crate::datapath::Maps;

/// What has been counted at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    at: Instant,
    counts: Counts,
}

/// What was counted between two samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// How long it was.
    pub time: Duration,
    counts: Counts,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Counts {
    /// Frames that the interfaces received, whatever became of them.
    received: u64,
    /// Frames forwarded to backends.
    forwarded: u64,
    /// Frames by reason, in the order of [`Reason::ALL`].
    reasons: Vec<u64>,
    /// Events of all backends, in the order of [`Event::ALL`].
    events: Vec<u64>,
}

/// In what a program is worse than the one before it.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Worse {
    /// More frames are dropped, or answered with a RST.
    #[error("{after:.1} % of the frames end as {} (before: {before:.1} %)", .reason.name())]
    Reason {
        /// What grew most.
        reason: Reason,
        /// Per cent of all frames.
        before: f64,
        /// Per cent of all frames.
        after: f64,
    },
    /// Fewer frames reach a backend.
    #[error("{after:.1} % of the frames are forwarded (before: {before:.1} %)")]
    Forwarded {
        /// Per cent of all frames.
        before: f64,
        /// Per cent of all frames.
        after: f64,
    },
    /// Frames come in that the program counts nowhere: it fails, or drops them unseen.
    #[error("of the frames received, {after:.1} % are counted (before: {before:.1} %)")]
    Uncounted {
        /// Per cent of what the interfaces received.
        before: f64,
        /// Per cent of what the interfaces received.
        after: f64,
    },
    /// Clients have to send their SYNs again.
    #[error("{after:.1} % of the SYNs are sent again (before: {before:.1} %)")]
    Handshakes {
        /// Per cent of all SYNs.
        before: f64,
        /// Per cent of all SYNs.
        after: f64,
    },
    /// Known flows are not known any more.
    #[error("{after:.0} flows a second are met in the middle (before: {before:.0})")]
    Adopted {
        /// A second.
        before: f64,
        /// A second.
        after: f64,
    },
}

/// Fewer of a thing tell nothing.
const FEW: u64 = 50;
/// A share that grows by this much is worse.
const GROWTH: f64 = 0.05;
/// A share that falls below this part of what it was is worse.
const FALL: f64 = 0.5;
/// Some drivers tell what they received a second late; before, that is not looked at.
const SETTLED: Duration = Duration::from_secs(1);
/// Flows met in the middle may become this many times as many.
const ADOPTED: f64 = 4.0;

/// Whether what came after is worse than what was before.
///
/// # Errors
/// In what.
pub fn judge(before: &Window, after: &Window) -> Result<(), Worse> {
    let share = |window: &Window, part: u64| part as f64 / window.counted().max(1) as f64;
    let grown = Reason::ALL.iter().enumerate().filter_map(|(place, reason)| {
        let (was, is) = (before.reason(place), after.reason(place));
        let grown = share(after, is) - share(before, was);
        let bad = !matches!(reason.class(), Class::Pass) && is >= FEW && grown > GROWTH;
        bad.then_some((grown, *reason, share(before, was), share(after, is)))
    });
    if let Some((_, reason, before, after)) = grown.max_by(|a, b| a.0.total_cmp(&b.0)) {
        return Err(Worse::Reason { reason, before: before * 100.0, after: after * 100.0 });
    }
    if before.counts.forwarded >= FEW && after.counted() >= FEW {
        let (was, is) =
            (share(before, before.counts.forwarded), share(after, after.counts.forwarded));
        if is < was * FALL {
            return Err(Worse::Forwarded { before: was * 100.0, after: is * 100.0 });
        }
    }
    if before.counted() >= FEW && after.counts.received >= FEW && after.time >= SETTLED {
        let of_received =
            |window: &Window| window.counted() as f64 / window.counts.received.max(1) as f64;
        let (was, is) = (of_received(before).min(1.0), of_received(after));
        if is < was * FALL {
            return Err(Worse::Uncounted { before: was * 100.0, after: is * 100.0 });
        }
    }
    let again = |window: &Window| {
        let again = window.event(Event::SynRetransmission);
        again as f64 / (again + window.event(Event::NewFlow)).max(1) as f64
    };
    if after.event(Event::SynRetransmission) >= FEW && again(after) > again(before) + GROWTH {
        let (before, after) = (again(before) * 100.0, again(after) * 100.0);
        return Err(Worse::Handshakes { before, after });
    }
    let adopted = |window: &Window| {
        window.event(Event::Adopted) as f64 / window.time.as_secs_f64().max(f64::MIN_POSITIVE)
    };
    if after.event(Event::Adopted) >= FEW && adopted(after) > adopted(before) * ADOPTED {
        return Err(Worse::Adopted { before: adopted(before), after: adopted(after) });
    }
    Ok(())
}

impl Window {
    /// Frames that have a verdict.
    pub fn counted(&self) -> u64 {
        self.counts.forwarded + self.counts.reasons.iter().sum::<u64>()
    }

    /// Frames forwarded to backends.
    pub const fn forwarded(&self) -> u64 {
        self.counts.forwarded
    }

    /// Frames dropped or answered with a RST.
    pub fn refused(&self) -> u64 {
        let refused = |(_, reason): &(usize, &Reason)| !matches!(reason.class(), Class::Pass);
        let places = Reason::ALL.iter().enumerate().filter(refused);
        places.map(|(place, _)| self.reason(place)).sum()
    }

    fn reason(&self, place: usize) -> u64 {
        self.counts.reasons.get(place).copied().unwrap_or_default()
    }

    fn event(&self, event: Event) -> u64 {
        self.counts.events.get(event as usize).copied().unwrap_or_default()
    }
}

impl Sample {
    /// What has been counted by now of these backends, and received on these interfaces.
    pub fn take(maps: &Maps, backends: &[u16], interfaces: &[String]) -> Result<Self> {
        let mut counts = Counts {
            received: received(interfaces)?,
            reasons: maps.reason_counts()?,
            events: vec![0; Event::ALL.len()],
            forwarded: 0,
        };
        for backend in maps.counters(backends)? {
            counts.forwarded += backend.traffic.forwarded();
            for (sum, event) in counts.events.iter_mut().zip(Event::ALL) {
                *sum += backend.event(event);
            }
        }
        Ok(Self { at: Instant::now(), counts })
    }

    /// What was counted since an earlier one.
    pub fn since(&self, earlier: &Self) -> Window {
        let (now, then) = (&self.counts, &earlier.counts);
        let differences = |now: &[u64], then: &[u64]| {
            now.iter().zip(then).map(|(now, then)| now.saturating_sub(*then)).collect()
        };
        Window {
            time: self.at - earlier.at,
            counts: Counts {
                received: now.received.saturating_sub(then.received),
                forwarded: now.forwarded.saturating_sub(then.forwarded),
                reasons: differences(&now.reasons, &then.reasons),
                events: differences(&now.events, &then.events),
            },
        }
    }
}

/// Frames received, of this network namespace's interfaces: sysfs may show another one's.
fn received(interfaces: &[String]) -> Result<u64> {
    let path = "/proc/thread-self/net/dev";
    let table = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(received_in(&table, interfaces))
}

fn received_in(table: &str, interfaces: &[String]) -> u64 {
    table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| interfaces.iter().any(|interface| interface == name.trim()))
        // Bytes, then packets.
        .filter_map(|(_, counts)| counts.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many frames in a second: forwarded, and by reason.
    fn window(forwarded: u64, reasons: &[(Reason, u64)]) -> Window {
        let mut counts = Counts {
            forwarded,
            reasons: vec![0; Reason::ALL.len()],
            events: vec![0; Event::ALL.len()],
            received: 0,
        };
        for (reason, count) in reasons {
            counts.reasons[*reason as usize] = *count;
        }
        counts.received = forwarded + counts.reasons.iter().sum::<u64>();
        Window { time: Duration::from_secs(1), counts }
    }

    fn with(mut window: Window, events: &[(Event, u64)]) -> Window {
        for (event, count) in events {
            window.counts.events[*event as usize] = *count;
        }
        window
    }

    #[test]
    fn more_or_less_of_the_same_is_not_worse() {
        let before = window(1000, &[(Reason::NotVip, 100), (Reason::Fragment, 10)]);
        for after in [
            before.clone(),
            Window::default(),
            window(100_000, &[(Reason::NotVip, 30_000), (Reason::Fragment, 1000)]),
            window(3, &[(Reason::Fragment, 7)]),
            window(600, &[(Reason::NotVip, 500)]),
            with(before.clone(), &[(Event::NewFlow, 900), (Event::SynRetransmission, 45)]),
            with(before.clone(), &[(Event::Adopted, 49)]),
        ] {
            assert_eq!(judge(&before, &after), Ok(()), "{after:?}");
        }
        let idle = window(0, &[]);
        assert_eq!(judge(&idle, &window(1000, &[(Reason::NotVip, 100)])), Ok(()));
    }

    #[test]
    fn what_is_worse_is_named_with_its_figures() {
        let quiet = window(1000, &[(Reason::NotVip, 100)]);
        let new = with(quiet.clone(), &[(Event::NewFlow, 500), (Event::Adopted, 10)]);
        let unseen =
            Window { counts: Counts { received: 1000, ..window(0, &[]).counts }, time: SETTLED };
        for (before, after, says) in [
            (
                &quiet,
                window(900, &[(Reason::NoNextHop, 100)]),
                "10.0 % of the frames end as no_next_hop (before: 0.0 %)",
            ),
            (
                &quiet,
                window(0, &[(Reason::NoBackend, 300), (Reason::Runt, 700)]),
                "30.0 % of the frames end as no_backend (before: 0.0 %)",
            ),
            (
                &quiet,
                window(100, &[(Reason::NotVip, 900)]),
                "10.0 % of the frames are forwarded (before: 90.9 %)",
            ),
            (&quiet, unseen, "of the frames received, 0.0 % are counted (before: 100.0 %)"),
            (
                &new,
                with(quiet.clone(), &[(Event::NewFlow, 300), (Event::SynRetransmission, 100)]),
                "25.0 % of the SYNs are sent again (before: 0.0 %)",
            ),
            (
                &new,
                with(quiet.clone(), &[(Event::Adopted, 300)]),
                "300 flows a second are met in the middle (before: 10)",
            ),
        ] {
            let worse = judge(before, &after).expect_err(says);
            assert_eq!(worse.to_string(), says);
        }
    }

    #[test]
    fn what_a_driver_tells_late_is_no_alarm() {
        let before = window(1000, &[]);
        let mut after = window(100, &[]);
        after.counts.received = 1100;
        after.time = Duration::from_millis(100);
        assert_eq!(judge(&before, &after), Ok(()));
    }

    #[test]
    fn received_frames_are_read_by_interface() {
        let table = "Inter-|   Receive                            |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes\n    \
             lo:     100       1    0    0    0     0          0         0      100\n  \
             eth0: 12345      67    0    0    0     0          0         0      100\n\
             eth0.100:99     900    0    0    0     0          0         0      100\n";
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(received_in(table, &names(&["eth0"])), 67);
        assert_eq!(received_in(table, &names(&["eth0", "eth0.100", "eth7"])), 967);
    }
}
