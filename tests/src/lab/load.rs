//! Steady load from a client: real TCP connections, one HTTP request each, counted while it runs.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Failure, Host, fetch};

/// A service as clients know it.
#[derive(Clone, Debug)]
pub struct Target {
    /// What its counts go by.
    pub name: String,
    /// Where clients connect to.
    pub address: SocketAddr,
}

/// How much load, on whom.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Asked in turn.
    pub targets: Vec<Target>,
    /// What is asked for.
    pub path: String,
    /// Connections at a time.
    pub concurrency: usize,
    /// Between two requests of one of the [`Self::concurrency`].
    pub pause: Duration,
    /// For a whole request; then it has failed.
    pub timeout: Duration,
    /// Ends by itself after this many requests; `None`: when stopped.
    pub requests: Option<u64>,
}

impl LoadPlan {
    /// Gentle load on `targets` until it is stopped.
    pub fn on(targets: impl IntoIterator<Item = Target>) -> Self {
        Self {
            targets: targets.into_iter().collect(),
            path: "/".into(),
            concurrency: 8,
            pause: Duration::from_millis(5),
            timeout: Duration::from_secs(5),
            requests: None,
        }
    }
}

/// Running load; dropping it stops it.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct FailedRequest {
    /// The [`Target::name`].
    pub target: String,
    /// When it began.
    pub started: Instant,
    /// When it had failed.
    pub ended: Instant,
    /// Why.
    pub cause: Failure,
}

/// What load has come to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that have ended, well or not.
    pub requests: u64,
    /// Requests answered, by target and backend.
    pub answers: BTreeMap<String, BTreeMap<String, u64>>,
    /// The others.
    pub failures: Vec<FailedRequest>,
    /// The longest that one took.
    pub slowest: Duration,
}

#[derive(Debug)]
struct Shared {
    plan: LoadPlan,
    stop: AtomicBool,
    /// Requests begun: chooses the target, and ends a limited load.
    begun: AtomicU64,
    tally: Mutex<Tally>,
}

impl Load {
    /// Starts it on `client`.
    pub fn start(client: &Host, plan: LoadPlan) -> Result<Self> {
        anyhow::ensure!(!plan.targets.is_empty(), "no targets");
        let concurrency = plan.concurrency;
        let shared = Arc::new(Shared {
            plan,
            stop: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            tally: Mutex::default(),
        });
        // Before the first thread, so that a failure to start one stops those before it.
        let mut load = Self { shared, workers: Vec::new() };
        for _ in 0..concurrency {
            let shared = load.shared.clone();
            let worker = client.namespace().clone().spawn(move || shared.work());
            load.workers.push(worker.context("start a client's thread")?);
        }
        Ok(load)
    }

    /// What it has come to so far.
    pub fn tally(&self) -> Tally {
        self.shared.tally().clone()
    }

    /// Requests that have ended so far, well or not.
    pub fn requests(&self) -> u64 {
        self.shared.tally().requests
    }

    /// Waits until this many more have ended.
    pub fn run_for_requests(&self, requests: u64, deadline: Duration) -> Result<()> {
        let goal = self.requests() + requests;
        super::until(&format!("{requests} more requests"), deadline, || {
            (self.requests() >= goal).then_some(())
        })
    }

    /// Lets the requests that are on their way end, and adds all up.
    pub fn stop(mut self) -> Tally {
        self.end(true);
        self.tally()
    }

    /// Waits until a limited load has made all its requests.
    pub fn finish(mut self) -> Tally {
        self.end(false);
        self.tally()
    }

    fn end(&mut self, at_once: bool) {
        self.shared.stop.fetch_or(at_once, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so on standard error.
            let _ = worker.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end(true);
    }
}

impl Shared {
    fn work(&self) {
        let plan = &self.plan;
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            if plan.requests.is_some_and(|limit| number >= limit) {
                return;
            }
            let target = &plan.targets[number as usize % plan.targets.len()];
            let started = Instant::now();
            let result = fetch(target.address, &plan.path, plan.timeout);
            self.count(target, started, result.map(|answer| answer.backend));
            thread::sleep(plan.pause);
        }
    }

    fn count(&self, target: &Target, started: Instant, result: Result<String, Failure>) {
        let ended = Instant::now();
        let mut tally = self.tally();
        tally.requests += 1;
        tally.slowest = tally.slowest.max(ended - started);
        match result {
            Ok(backend) => {
                let answers = tally.answers.entry(target.name.clone()).or_default();
                *answers.entry(backend).or_default() += 1;
            }
            Err(cause) => {
                let target = target.name.clone();
                tally.failures.push(FailedRequest { target, started, ended, cause });
            }
        }
    }

    /// Counts stay true when another worker panicked: each is changed in one place.
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.failures.len() as u64
    }

    /// Requests that failed and were on their way at some time between `from` and `to`.
    pub fn failed_between(&self, from: Instant, to: Instant) -> u64 {
        let overlaps = |failure: &&FailedRequest| failure.started <= to && failure.ended >= from;
        self.failures.iter().filter(overlaps).count() as u64
    }

    /// Requests answered by each backend, over all targets.
    pub fn per_backend(&self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for (backend, answers) in self.answers.values().flatten() {
            *sums.entry(backend.clone()).or_default() += answers;
        }
        sums
    }

    /// Failures by target and cause, one a line.
    pub fn causes(&self) -> String {
        let mut causes = BTreeMap::<String, u64>::new();
        for failure in &self.failures {
            *causes.entry(format!("{}: {}", failure.target, failure.cause)).or_default() += 1;
        }
        causes.into_iter().map(|(cause, count)| format!("{count} × {cause}\n")).collect()
    }
}
