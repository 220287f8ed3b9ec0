//! A short run of every target, the same on every machine: seeds, what earlier runs kept, and
//! mutations of both. `SLUICE_SEED` chooses other mutations, `SLUICE_MUTATIONS` more of them.

use std::{
    env, panic,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use lb_common::host::Random;
use sluice_fuzz::{Seed, TARGETS, mutate};

/// Mutations of each target, if nobody asks for more; the tests are not optimised.
const MUTATIONS: u64 = 1500;

/// Panics so far, also those that a server survives.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Drives a target; a panic says what it was about.
fn drive(name: &str) {
    static HOOK: Once = Once::new();
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    HOOK.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            tell(panic);
        }));
    });
    // Whose panic it is must be known.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    PANICS.store(0, Ordering::Relaxed);
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let mut inputs = target.seeds().expect("seeds");
    assert!(inputs.len() > 5, "{name} has {} seeds", inputs.len());
    inputs.extend(target.corpus().expect("a corpus"));
    let run = |what: &str, bytes: &[u8]| {
        let done = panic::catch_unwind(|| (target.run)(bytes));
        let is_well = done.is_ok() && PANICS.load(Ordering::Relaxed) == 0;
        assert!(is_well, "{name}, {what}: {}", bytes.escape_ascii());
    };
    for Seed { name, bytes } in &inputs {
        run(name, bytes);
    }
    let seed = number("SLUICE_SEED").unwrap_or(1);
    let mut random = Random(seed);
    for number in 0..number("SLUICE_MUTATIONS").unwrap_or(MUTATIONS) {
        let [one, other] = [0; 2].map(|_| &inputs[random.below(inputs.len())]);
        let bytes = mutate(&one.bytes, &other.bytes, &mut random);
        run(&format!("SLUICE_SEED={seed}, mutation {number}, of {:?}", one.name), &bytes);
    }
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().expect(variable))
}

#[test]
fn frames_are_parsed_and_steered_as_defined() {
    drive("steer");
}

#[test]
fn icmp_errors_are_followed_as_defined() {
    drive("icmp");
}

#[test]
fn segments_are_forwarded_and_reset_as_defined() {
    drive("forward");
}

#[test]
fn configurations_are_read_or_refused() {
    drive("config");
}

#[test]
fn requests_are_answered() {
    drive("control");
}

#[test]
fn answers_to_probes_are_judged() {
    drive("probe");
}

#[test]
fn what_was_kept_is_used_or_set_aside() {
    drive("state");
}
