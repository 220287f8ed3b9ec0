//! The kernel's jiffies: how many there are in a second, and how they become ticks.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::{
    TestRun as _,
    programs::{TestRunOptions, Xdp},
};
use lb_common::flow::State;
use nix::time::{ClockId, clock_gettime};

use crate::model::IdleTimeouts;

/// How long a flow is kept after the client's RST.
const RESET: Duration = Duration::from_secs(5);

/// How long a translated flow's port is kept when both its ends have closed: Linux's own
/// TIME-WAIT (`TCP_TIMEWAIT_LEN`).
const TIME_WAIT: Duration = Duration::from_secs(60);

/// Ticks that a time may take at most: ages are kept modulo 256, and the sweep must come by
/// before they wrap.
const MAX_TICKS: u64 = 240;

/// An established flow is moved by a SYN only after this much silence.
const REUSE: Duration = Duration::from_secs(10);

/// Frame for the program that tells the time; it is not looked at, but must be one.
const FRAME: [u8; 14] = [0; 14];

/// How long is watched to tell how many jiffies make a second.
const WATCH: Duration = Duration::from_millis(100);

/// What follows from the kernel's `HZ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Jiffies a second.
    pub hz: u32,
    /// A tick is this power of two of jiffies.
    pub tick_shift: u32,
    /// Ticks of silence allowed, by state.
    pub idle_ticks: [u8; 8],
    /// Ticks of silence after which a SYN moves an established flow.
    pub reuse_ticks: u32,
}

impl Timing {
    /// The shortest tick of which 240 cover the longest time-out.
    pub fn from_hz(hz: u32, idle: &IdleTimeouts) -> Self {
        let longest = idle.embryonic.max(idle.established).max(idle.closing).max(TIME_WAIT);
        let jiffies = longest.as_secs() * u64::from(hz);
        let tick_shift = jiffies.div_ceil(MAX_TICKS).next_power_of_two().trailing_zeros();
        let idle_ticks = idle_ticks(idle, hz, tick_shift);
        let reuse_ticks = u32::from(ticks(REUSE, hz, tick_shift));
        Self { hz, tick_shift, idle_ticks, reuse_ticks }
    }
}

/// Ticks of silence that flows are allowed, by state.
pub(super) fn idle_ticks(idle: &IdleTimeouts, hz: u32, tick_shift: u32) -> [u8; 8] {
    let mut by_state = [0; 8];
    for state in State::ALL {
        let time = match state {
            State::Free => Duration::ZERO,
            State::Embryonic | State::Answered => idle.embryonic,
            State::Young | State::Old => idle.established,
            State::Closing => idle.closing,
            State::Reset => RESET,
            State::TimeWait => TIME_WAIT,
        };
        by_state[state as usize] = ticks(time, hz, tick_shift);
    }
    by_state
}

/// Of so many ticks at least one more than a time begins: an age above them is a longer silence.
/// A time longer than ticks can count is cut.
fn ticks(time: Duration, hz: u32, tick_shift: u32) -> u8 {
    let jiffies = time.as_millis() as u64 * u64::from(hz) / 1000;
    jiffies.div_ceil(1 << tick_shift).clamp(1, MAX_TICKS) as u8
}

/// Seconds of a number of jiffies.
pub fn seconds(jiffies: u32, hz: u32) -> f64 {
    f64::from(jiffies) / f64::from(hz.max(1))
}

/// The kernel's jiffies now, their lower 32 bits.
pub(super) fn now(clock: &Xdp) -> Result<u32> {
    let result = clock
        .test_run(TestRunOptions { data_in: Some(&FRAME), ..TestRunOptions::default() })
        .context("ask the kernel for its jiffies (BPF_PROG_TEST_RUN)")?;
    Ok(result.return_value)
}

/// Measures `HZ`: the coarse clock advances with each jiffy, so their ratio is exact but for
/// one jiffy at the edges.
pub(super) fn measure(clock: &Xdp, idle: &IdleTimeouts) -> Result<Timing> {
    let sample = || -> Result<(u32, Duration)> {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).context("read the clock")?;
        Ok((now(clock)?, time.into()))
    };
    let (jiffies_before, before) = sample()?;
    std::thread::sleep(WATCH);
    let (jiffies_after, after) = sample()?;
    let jiffies = jiffies_after.wrapping_sub(jiffies_before);
    let Some(hz) = nearest_hz(jiffies, after.saturating_sub(before)) else {
        bail!("the kernel counted {jiffies} jiffies in {WATCH:?}: that is no clock");
    };
    Ok(Timing::from_hz(hz, idle))
}

/// The `HZ` among those Linux is built with (`kernel/Kconfig.hz` and Alpha's 1024) that
/// explains a count best; another if none comes near.
fn nearest_hz(jiffies: u32, time: Duration) -> Option<u32> {
    let measured = f64::from(jiffies) / time.as_secs_f64();
    if !measured.is_finite() || measured < 10.0 {
        return None;
    }
    let distance = |hz: &u32| (f64::from(*hz) - measured).abs() / measured;
    [100, 250, 300, 1000, 1024]
        .into_iter()
        .filter(|hz| distance(hz) < 0.12)
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        .or(Some(measured.round() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_cover_the_longest_time_out_and_do_not_wrap() {
        let hour = Duration::from_secs(3600);
        let long = IdleTimeouts { established: hour, ..IdleTimeouts::default() };
        for (hz, idle) in [100, 250, 300, 1000, 1024]
            .into_iter()
            .flat_map(|hz| [(hz, IdleTimeouts::default()), (hz, long)])
        {
            let timing = Timing::from_hz(hz, &idle);
            let tick = f64::from(1 << timing.tick_shift) / f64::from(hz);
            let wanted = [
                (State::Embryonic, idle.embryonic),
                (State::Young, idle.established),
                (State::Old, idle.established),
                (State::Closing, idle.closing),
                (State::Reset, RESET),
                (State::TimeWait, TIME_WAIT),
            ];
            for (state, wanted) in wanted {
                // An age above the limit: at least so many whole ticks have gone by.
                let covered = f64::from(timing.idle_ticks[state as usize]) * tick;
                assert!(covered >= wanted.as_secs_f64(), "{hz} Hz: {state:?} {covered} s");
            }
            assert!(timing.idle_ticks.iter().all(|&ticks| ticks <= 240), "{hz} Hz: {timing:?}");
            assert!(f64::from(timing.reuse_ticks) * tick >= 10.0);
        }
    }

    #[test]
    fn a_time_that_ticks_can_not_count_is_cut() {
        let timing = Timing::from_hz(250, &IdleTimeouts::default());
        let long = IdleTimeouts { established: Duration::from_secs(86_400), ..Default::default() };
        let ticks = idle_ticks(&long, timing.hz, timing.tick_shift);
        assert_eq!(ticks[State::Old as usize], 240);
        assert_eq!(ticks[State::Closing as usize], timing.idle_ticks[State::Closing as usize]);
    }

    #[test]
    fn hz_is_told_from_a_count_that_is_one_off() {
        for hz in [100u32, 250, 300, 1000] {
            for off in [-1i32, 0, 1] {
                let jiffies = (hz / 10).saturating_add_signed(off);
                assert_eq!(nearest_hz(jiffies, Duration::from_millis(100)), Some(hz));
            }
        }
        assert_eq!(nearest_hz(0, Duration::from_millis(100)), None);
        assert_eq!(nearest_hz(50, Duration::ZERO), None);
    }
}
