//! What the traffic itself tells of the backends: pure, from successive readings of counters.
//!
//! A balancer that sees one direction only knows of SYNs, and of the first ACKs behind them.
//! Two things follow from these, of very different weight.
//!
//! **Suspicion** is quick and costs little: nobody's handshake has been completed since some SYNs.
//! A suspect's clients get a second try elsewhere (`lb_common::steer`), and nothing else changes;
//! its next completed handshake clears it. Who forges SYNs can make a backend suspect only while
//! no client at all completes a handshake with it.
//!
//! Neither is drawn from what can't be seen: a handshake is seen through the flow's entry in the
//! table. SYNs of flows that found no place there, or were evicted before their first ACK, count
//! against nobody. A full table so makes nobody suspect, be he well or dead; the probes go on.
//!
//! **Outliers** are found slowly and may lose their new flows. One is who, over a window,
//!
//! 1. completes less than `ratio` of the handshakes that are its *due*: as many for its share of
//!    the pool's new flows as the others complete for theirs (the lower median of them), and
//! 2. completes less than `ratio` of what the others do *of the SYNs it is given*,
//!
//! both with enough samples, the first by more than chance explains. Neither is proof alone:
//!
//! - *A flood of forged SYNs* lowers everybody's second figure, and nobody's first: the hash is
//!   keyed, so it falls on all alike. Should it fill the flow table, so that real handshakes are
//!   not seen, it lowers both, but of all alike. Nobody stands out.
//! - *A flood aimed at one backend*: who has connected from his own addresses knows which of his
//!   ports lead where, and can send SYNs to one backend alone. That ruins its second figure. Its
//!   first stays, for its real clients' handshakes are still completed; if they are not, the flood
//!   has really hurt it. Retransmitted SYNs would be no better evidence: they are forged as
//!   easily, and clients whom a backend refuses (RST) send none.
//! - *Handshakes completed at the others*, to raise what is due: that takes real addresses, and as
//!   many connections with most of the pool as all real clients together make, since the median
//!   counts; and the victim must be flooded besides.
//! - *A backend that has just begun to get new flows* (it is new, enabled again, or back from an
//!   ejection) was given SYNs that far clients had no time to acknowledge, while the others'
//!   earlier ones were. It is not judged in its first quarter of a window.
//! - *A backend that merely gets less* (its clients are fewer, its weight is being raised) has a low
//!   first figure at worst, and its second is like the others'.
//!
//! What it does not find: a backend that loses every other SYN, but answers all in the end; one
//! that completes handshakes and then says nothing; a pool of one. And with `affinity =
//! "source-ip"` a client's flows are all one backend's, so that no share is anybody's due: there
//! outliers are reported and never ejected ([`Outlier::with_affinity`]).
//!
//! Whatever is found, at most `max_ejected` of a pool is ejected, and never its last.

mod outlier;
mod suspicion;
mod window;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use self::{
    outlier::{Criterion, Standing, standings},
    suspicion::Suspicion,
    window::Window,
};
pub use self::{
    suspicion::Limits,
    window::{Counts, Figures},
};
use crate::model::Outlier;

/// Who begins to get new flows is judged after this part of a window. With the default window that
/// is 2.5 s: more than twice the handshake of a client behind a satellite (some 700 ms), so that
/// most of the SYNs that it has been given can have been answered, and more than the ratio asks for.
const SETTLES: u32 = 4;

/// How a pool is watched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// When a backend is suspect.
    pub suspicion: Limits,
    /// What becomes of outliers. Default: a report.
    pub mode: Outlier,
    /// The time that backends are compared over. Default 10 s.
    pub window: Duration,
    /// SYNs that a backend must have been given in a window, and handshakes that were its due, to
    /// be judged. Default 20.
    pub minimum_samples: u64,
    /// Who completes less than this share of what the others do is an outlier; 0 to 1. Default 0.5.
    pub ratio: f64,
    /// The first ejection's length; each further one is twice as long. Default 30 s.
    pub cool_down: Duration,
    /// The longest ejection's length. Default 10 min.
    pub longest_cool_down: Duration,
    /// Share of a pool that may be ejected at a time, 0 to 1: one at least, unless it is 0, and
    /// never the last. Default 0.3.
    pub max_ejected: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            suspicion: Limits::default(),
            mode: Outlier::default(),
            window: Duration::from_secs(10),
            minimum_samples: 20,
            ratio: 0.5,
            cool_down: Duration::from_secs(30),
            longest_cool_down: Duration::from_secs(600),
            max_ejected: 0.3,
        }
    }
}

/// A backend's counters, and its part in the pool, as they are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading<K> {
    /// Which one; of a pool, each once.
    pub backend: K,
    /// What was counted in all its life; may begin anew at any time.
    pub totals: Counts,
    /// Its share of new flows, relative to the others'; 0: it gets none, for other reasons than
    /// that it is ejected.
    pub weight: u16,
}

/// What has become of a backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Nobody completes a handshake with it any more.
    Suspect,
    /// Somebody does, or nobody tries.
    Cleared,
    /// It completes much less than the others.
    Outlier {
        /// What was seen of it.
        figures: Figures,
        /// Completed handshakes, as a share of those due to it.
        completed: f64,
        /// How long it gets no new flows; `None`: that is not asked for, or the pool has lost
        /// enough already.
        ejected_for: Option<Duration>,
    },
    /// It has not stood out for a whole window.
    Recovered,
    /// It may take new flows again.
    Returned,
}

/// The backends of a service, watched. `K` says which is which: a name, rather than an index that
/// gets other owners.
#[derive(Clone, Debug)]
pub struct Pool<K> {
    backends: BTreeMap<K, Watched>,
}

#[derive(Clone, Debug)]
struct Watched {
    window: Window,
    suspicion: Suspicion,
    is_suspect: bool,
    /// Since when it gets new flows, if it does.
    given_since: Option<Instant>,
    /// When it last stood out, since it has not recovered from that.
    stood_out: Option<Instant>,
    ejected: Option<Ejection>,
    /// Ejections in a row.
    times: u32,
    /// When the last one ended, and how long it was meant to be.
    returned: Option<(Instant, Duration)>,
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    since: Instant,
    length: Duration,
}

impl<K> Default for Pool<K> {
    fn default() -> Self {
        Self { backends: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Pool<K> {
    /// Takes in a reading of all the pool's backends, some 250 ms after the last one; tells what
    /// has changed. Who is not among them is forgotten.
    pub fn observe(
        &mut self,
        readings: &[Reading<K>],
        settings: &Settings,
        now: Instant,
    ) -> Vec<(K, Change)> {
        let mut changes = Vec::new();
        let present: BTreeSet<&K> = readings.iter().map(|reading| &reading.backend).collect();
        self.backends.retain(|backend, _| present.contains(backend));
        self.count(readings, settings, now, &mut changes);
        self.end_ejections(readings, settings, now, &mut changes);
        if settings.mode != Outlier::Off {
            self.judge(readings, settings, now, &mut changes);
        }
        changes
    }

    /// Whose clients get a second try elsewhere.
    pub fn suspects(&self) -> impl Iterator<Item = &K> {
        self.backends.iter().filter(|(_, watched)| watched.is_suspect).map(|(backend, _)| backend)
    }

    /// Who gets no new flows.
    pub fn ejected(&self) -> impl Iterator<Item = &K> {
        self.backends.iter().filter(|(_, w)| w.ejected.is_some()).map(|(backend, _)| backend)
    }

    /// When a backend's ejection is over, if it is ejected.
    pub fn ejected_until(&self, backend: &K) -> Option<Instant> {
        self.backends.get(backend)?.ejected.map(|ejection| ejection.since + ejection.length)
    }

    /// Whether a backend completes much less than the others, or did so within a window.
    pub fn stands_out(&self, backend: &K) -> bool {
        self.backends.get(backend).is_some_and(|watched| watched.stood_out.is_some())
    }

    /// What was seen of a backend lately.
    pub fn figures(&self, backend: &K) -> Option<Figures> {
        self.backends.get(backend).map(|watched| watched.window.figures())
    }

    /// Windows and suspicions.
    fn count(
        &mut self,
        readings: &[Reading<K>],
        settings: &Settings,
        now: Instant,
        changes: &mut Vec<(K, Change)>,
    ) {
        let takes = |reading: &&Reading<K>| {
            self.backends.get(&reading.backend).is_none_or(|watched| watched.ejected.is_none())
        };
        let weights: f64 = readings.iter().filter(takes).map(|r| f64::from(r.weight)).sum();
        for Reading { backend, totals, weight } in readings {
            let watched = self.backends.entry(backend.clone()).or_insert_with(|| Watched {
                window: Window::new(*totals, now),
                suspicion: Suspicion::default(),
                is_suspect: false,
                given_since: None,
                stood_out: None,
                ejected: None,
                times: 0,
                returned: None,
            });
            let gets = watched.ejected.is_none() && *weight > 0;
            let share = if gets { f64::from(*weight) / weights } else { 0.0 };
            watched.given_since = watched.given_since.or(Some(now)).filter(|_| gets);
            let news = watched.window.add(*totals, share, now, settings.window);
            watched.suspicion = watched.suspicion.next(&news, now);
            let is_suspect = watched.suspicion.is_suspect(&settings.suspicion, now);
            if is_suspect != std::mem::replace(&mut watched.is_suspect, is_suspect) {
                let change = if is_suspect { Change::Suspect } else { Change::Cleared };
                changes.push((backend.clone(), change));
            }
        }
    }

    /// Those whose time is over return, and those that the pool can't do without.
    fn end_ejections(
        &mut self,
        readings: &[Reading<K>],
        settings: &Settings,
        now: Instant,
        changes: &mut Vec<(K, Change)>,
    ) {
        for (backend, watched) in &mut self.backends {
            let is_over = |e: Ejection| now.saturating_duration_since(e.since) >= e.length;
            if watched.ejected.is_some_and(|e| settings.mode != Outlier::Eject || is_over(e)) {
                watched.come_back(now);
                changes.push((backend.clone(), Change::Returned));
            }
            if settings.mode == Outlier::Off {
                watched.stood_out = None;
            }
        }
        let (mut ejected, others) = self.members(readings);
        let allowed = allowed(ejected.len() + others, settings.max_ejected);
        // Who has been away for longest comes first.
        ejected.sort_by_key(|(since, _)| *since);
        for (_, backend) in ejected.iter().take(ejected.len().saturating_sub(allowed)) {
            if let Some(watched) = self.backends.get_mut(backend) {
                watched.come_back(now);
                changes.push((backend.clone(), Change::Returned));
            }
        }
    }

    /// Of those that would get new flows: who is ejected and since when, and how many are not.
    fn members(&self, readings: &[Reading<K>]) -> (Vec<(Instant, K)>, usize) {
        let members = readings.iter().filter(|reading| reading.weight > 0);
        let (mut ejected, mut others) = (Vec::new(), 0);
        for reading in members {
            match self.backends.get(&reading.backend).and_then(|watched| watched.ejected) {
                Some(ejection) => ejected.push((ejection.since, reading.backend.clone())),
                None => others += 1,
            }
        }
        (ejected, others)
    }

    /// Compares those that get new flows; the worst are ejected first.
    fn judge(
        &mut self,
        readings: &[Reading<K>],
        settings: &Settings,
        now: Instant,
        changes: &mut Vec<(K, Change)>,
    ) {
        let judged: Vec<(&K, Figures)> = readings
            .iter()
            .filter(|reading| reading.weight > 0)
            .filter_map(|reading| self.backends.get_key_value(&reading.backend))
            .filter(|(_, watched)| watched.ejected.is_none())
            .map(|(backend, watched)| (backend, watched.window.figures()))
            .collect();
        let criterion =
            Criterion { minimum_samples: settings.minimum_samples, ratio: settings.ratio };
        let figures: Vec<Figures> = judged.iter().map(|(_, figures)| *figures).collect();
        let mut out: Vec<(f64, K, Figures)> = standings(&figures, &criterion)
            .into_iter()
            .zip(judged)
            .filter_map(|(standing, (backend, figures))| match standing {
                Standing::Out { completed } => Some((completed, backend.clone(), figures)),
                Standing::Well | Standing::Unknown => None,
            })
            .collect();
        out.sort_by(|a, b| a.0.total_cmp(&b.0));

        let (ejected, others) = self.members(readings);
        let mut room =
            allowed(ejected.len() + others, settings.max_ejected).saturating_sub(ejected.len());
        for (completed, backend, figures) in out {
            let Some(watched) = self.backends.get_mut(&backend) else { continue };
            if !watched.has_settled(settings.window, now) {
                continue;
            }
            let is_news = watched.stood_out.replace(now).is_none();
            let ejected_for = (settings.mode == Outlier::Eject && room > 0).then(|| {
                room -= 1;
                watched.eject(settings, now)
            });
            if is_news || ejected_for.is_some() {
                changes.push((backend, Change::Outlier { figures, completed, ejected_for }));
            }
        }
        for (backend, watched) in &mut self.backends {
            if watched.ejected.is_none() && watched.recover(settings.window, now) {
                changes.push((backend.clone(), Change::Recovered));
            }
        }
    }
}

impl Watched {
    /// Whether it has had new flows for so long that those whose handshake is still on its way are
    /// few: the others' were counted when these were sent.
    fn has_settled(&self, window: Duration, now: Instant) -> bool {
        let past = |since| now.saturating_duration_since(since) >= window / SETTLES;
        self.given_since.is_some_and(past)
    }

    fn eject(&mut self, settings: &Settings, now: Instant) -> Duration {
        let doubled = settings.cool_down.saturating_mul(1u32 << self.times.min(31));
        let length = doubled.min(settings.longest_cool_down).max(settings.cool_down);
        self.times = self.times.saturating_add(1);
        self.ejected = Some(Ejection { since: now, length });
        length
    }

    /// It is judged by what comes from now on.
    fn come_back(&mut self, now: Instant) {
        if let Some(Ejection { length, .. }) = self.ejected.take() {
            self.returned = Some((now, length));
            self.stood_out = self.stood_out.map(|_| now);
            self.window.restart();
        }
    }

    /// Whether it has just not stood out for a whole window. Who did well for as long as it was
    /// away begins anew: its next ejection is a short one.
    fn recover(&mut self, window: Duration, now: Instant) -> bool {
        let past = |since: Instant, time| now.saturating_duration_since(since) >= time;
        if self.stood_out.is_none()
            && self.returned.is_some_and(|(since, away)| past(since, away.max(window)))
        {
            self.returned = None;
            self.times = 0;
        }
        let recovers = self.stood_out.is_some_and(|since| past(since, window));
        if recovers {
            self.stood_out = None;
        }
        recovers
    }
}

/// How many of so many may be ejected.
fn allowed(members: usize, share: f64) -> usize {
    if share.is_nan() || share <= 0.0 {
        return 0;
    }
    let of_share = (members as f64 * share) as usize;
    of_share.max(1).min(members.saturating_sub(1))
}

#[cfg(test)]
mod tests;
