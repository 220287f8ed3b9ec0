//! Probes each target when it is due, and keeps what is seen.
//!
//! Each target has a task of its own, so that one more, one less, or another check disturbs no
//! other. What runs at once is bounded; a probe that had to wait is made late, never left out,
//! and counted.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    runtime::Handle,
    select,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{Kept, Paths, Probe, Seen, State, Target, Thresholds, probe::probe, tls::Tls};
use crate::{
    doctor::Met,
    drain::Moment,
    model::{HealthCheck, Identity, Via},
};

/// New targets are asked first within so long for each of them: soon, but not all at once.
const SPREAD_OF_EACH: Duration = Duration::from_millis(1);
/// ... and within so long for all of them.
const MOST_SPREAD: Duration = Duration::from_secs(2);
/// How far an interval is from what is configured, at most: so probes that met part again.
const JITTER: f64 = 0.1;
/// The part of an interval after which a failing target is asked again.
const SOONER: u32 = 4;
/// ... but not sooner than this after the probe that failed.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// A probe that begins so much after it was due is counted as late.
const LATE: Duration = Duration::from_millis(100);

/// Probes under way at once, at most, however many files the process may have: ten thousand
/// dead backends at an interval of two seconds and a time-out of one need half of them.
const MOST_PLACES: usize = 16_384;
/// Files of this process for one probe that may be under way: two that it takes, and as many as
/// half of them for all else.
const FILES_OF_EACH: u64 = 3;

/// Checks targets, until dropped.
pub struct Engine {
    shared: Arc<Shared>,
    runtime: Handle,
    attended: Mutex<BTreeMap<Identity, Attended>>,
}

/// How the engine itself does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Targets that are watched.
    pub targets: usize,
    /// Probes under way.
    pub running: usize,
    /// Probes begun.
    pub probes_total: u64,
    /// Probes that began more than 100 ms after they were due.
    pub late_total: u64,
    /// The longest that one began after it was due.
    pub latest: Duration,
}

struct Shared {
    paths: Paths,
    tls: Tls,
    places: Semaphore,
    most: usize,
    probes_total: AtomicU64,
    late_total: AtomicU64,
    latest_ms: AtomicU64,
    /// How many states have changed, or were explained.
    changes: watch::Sender<u64>,
}

/// One target and its task, which ends when this is dropped.
struct Attended {
    target: watch::Sender<Arc<Target>>,
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

/// How many probes may be under way at once: by the number of files this process may have, which
/// is raised as far as that goes without privileges.
pub fn places() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 256 };
    let files = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    usize::try_from(files / FILES_OF_EACH).unwrap_or(usize::MAX).clamp(1, MOST_PLACES)
}

impl Engine {
    /// Starts on this thread's runtime, with nothing to check; no more than `most` probes are
    /// under way at once ([`places`]).
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn start(paths: Paths, most: usize) -> Self {
        let shared = Shared {
            paths,
            tls: Tls::default(),
            places: Semaphore::new(most),
            most,
            probes_total: AtomicU64::new(0),
            late_total: AtomicU64::new(0),
            latest_ms: AtomicU64::new(0),
            changes: watch::Sender::new(0),
        };
        let attended = Mutex::default();
        Self { shared: Arc::new(shared), runtime: Handle::current(), attended }
    }

    /// Checks these targets instead of those before. What is seen of one that stays, by its
    /// identity, stays; of a new one the state is what is kept of it, as stale, or unknown.
    pub fn watch(
        &self,
        targets: impl IntoIterator<Item = Target>,
        kept: &BTreeMap<Identity, Kept>,
    ) {
        let mut attended = self.attended();
        let mut before = std::mem::take(&mut *attended);
        let mut new = Vec::new();
        for target in targets {
            match before.remove(&target.id) {
                None => new.push(target),
                Some(known) => {
                    known.target.send_if_modified(|old| {
                        let changed = **old != target;
                        if changed {
                            *old = Arc::new(target.clone());
                        }
                        changed
                    });
                    attended.insert(target.id, known);
                }
            }
        }
        let spread = MOST_SPREAD.min(SPREAD_OF_EACH * u32::try_from(new.len()).unwrap_or(u32::MAX));
        for target in new {
            let first = spread.min(target.check.interval).mul_f64(fastrand::f64());
            let seen = match kept.get(&target.id) {
                Some(kept) => Seen::restored(*kept),
                None => Seen::unknown(Moment::now()),
            };
            attended.insert(target.id, self.attend(target, seen, first));
        }
    }

    fn attend(&self, target: Target, seen: Seen, first: Duration) -> Attended {
        let seen = Arc::new(Mutex::new(seen));
        let (target, target_here) = watch::channel(Arc::new(target));
        let mut task = JoinSet::new();
        let attending = attend(self.shared.clone(), target_here, seen.clone(), first);
        task.spawn_on(attending, &self.runtime);
        Attended { target, seen, _task: task }
    }

    /// Changes whenever a state has, or its cause is known; many changes may be told as one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// What each target is.
    pub fn states(&self) -> BTreeMap<Identity, State> {
        let attended = self.attended();
        attended.iter().map(|(id, attended)| (*id, lock(&attended.seen).state)).collect()
    }

    /// All that is seen of one target.
    pub fn seen(&self, id: Identity) -> Option<Seen> {
        self.attended().get(&id).map(|attended| lock(&attended.seen).clone())
    }

    /// All that is seen of every target.
    pub fn snapshot(&self) -> BTreeMap<Identity, Seen> {
        let attended = self.attended();
        attended.iter().map(|(id, attended)| (*id, lock(&attended.seen).clone())).collect()
    }

    /// What a later daemon needs.
    pub fn kept(&self) -> BTreeMap<Identity, Kept> {
        let attended = self.attended();
        attended.iter().map(|(id, attended)| (*id, lock(&attended.seen).kept())).collect()
    }

    /// How the engine itself does.
    pub fn figures(&self) -> Figures {
        let shared = &self.shared;
        Figures {
            targets: self.attended().len(),
            running: shared.most - shared.places.available_permits(),
            probes_total: shared.probes_total.load(Relaxed),
            late_total: shared.late_total.load(Relaxed),
            latest: Duration::from_millis(shared.latest_ms.load(Relaxed)),
        }
    }

    fn attended(&self) -> MutexGuard<'_, BTreeMap<Identity, Attended>> {
        lock(&self.attended)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Probes one target for ever.
async fn attend(
    shared: Arc<Shared>,
    mut target: watch::Receiver<Arc<Target>>,
    seen: Arc<Mutex<Seen>>,
    first: Duration,
) {
    let mut due = Instant::now() + first;
    // From the second probe on, targets that are new together are far from each other.
    let mut share = 1.0 - 0.9 * fastrand::f64();
    let mut explaining = JoinSet::new();
    loop {
        select! {
            changed = target.changed() => match changed {
                Ok(()) => {
                    let interval = target.borrow_and_update().check.interval;
                    lock(&seen).explanation = None;
                    due = due.min(Instant::now() + interval.min(MOST_SPREAD).mul_f64(fastrand::f64()));
                    continue;
                }
                // The engine is gone.
                Err(_) => return,
            },
            () = sleep_until(due) => {}
        }
        // Nobody closes the semaphore.
        let Ok(place) = shared.places.acquire().await else { return };
        let asked = target.borrow_and_update().clone();
        let begun = Instant::now();
        shared.count(begun.saturating_duration_since(due));
        let outcome = probe(&shared.paths, &shared.tls, &asked).await;
        drop(place);
        let ended = Instant::now();
        let probe = Probe { at: Moment::now(), duration: ended - begun, outcome };
        let is_falling = shared.note(&seen, probe, thresholds(&asked.check));
        due = next(&asked.check, is_falling, begun, ended, share * jitter());
        share = 1.0;
        // Beside the probes, so that it delays none.
        while explaining.try_join_next().is_some() {}
        if asked.check.via == Via::Vip
            && explaining.is_empty()
            && let Some(met) = lock(&seen).unexplained(thresholds(&asked.check))
        {
            explaining.spawn(explain(shared.clone(), asked, seen.clone(), met));
        }
    }
}

/// Asks the own address of a backend, whose probes by way of the VIP `met` something else than an
/// answer. If all places are taken it is left to the next probe that fails.
async fn explain(shared: Arc<Shared>, target: Arc<Target>, seen: Arc<Mutex<Seen>>, met: Met) {
    let Ok(place) = shared.places.try_acquire() else { return };
    let outcome = probe(&shared.paths, &shared.tls, &target.directly()).await;
    drop(place);
    let Some(says) = target.explanation(met, Met::by(&outcome)) else { return };
    if lock(&seen).explain(met, says) {
        shared.changes.send_modify(|changes| *changes += 1);
    }
}

/// When to probe again.
fn next(
    check: &HealthCheck,
    is_falling: bool,
    begun: Instant,
    ended: Instant,
    factor: f64,
) -> Instant {
    if is_falling {
        let sooner = check.interval / SOONER;
        return (begun + sooner.mul_f64(factor)).max(ended + LEAST_PAUSE);
    }
    (begun + check.interval.mul_f64(factor)).max(ended)
}

fn jitter() -> f64 {
    1.0 - JITTER + 2.0 * JITTER * fastrand::f64()
}

fn thresholds(check: &HealthCheck) -> Thresholds {
    Thresholds { rise: check.rise, fall: check.fall }
}

impl Shared {
    fn count(&self, late: Duration) {
        self.probes_total.fetch_add(1, Relaxed);
        if late > LATE {
            self.late_total.fetch_add(1, Relaxed);
        }
        self.latest_ms.fetch_max(late.as_millis() as u64, Relaxed);
    }

    /// Takes a probe in; returns whether the target is falling.
    fn note(&self, seen: &Mutex<Seen>, probe: Probe, thresholds: Thresholds) -> bool {
        let mut seen = lock(seen);
        let before = (seen.state, seen.stale);
        let after = seen.clone().next(probe, thresholds);
        let changed = before != (after.state, after.stale);
        let is_falling = after.is_falling(thresholds);
        *seen = after;
        drop(seen);
        if changed {
            self.changes.send_modify(|changes| *changes += 1);
        }
        is_falling
    }
}
