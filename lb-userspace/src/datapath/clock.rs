//! The kernel's jiffies: how many there are in a second, and how they become ticks.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::{
    TestRun as _,
    programs::{TestRunOptions, Xdp},
};
use lb_common::flow::State;
use nix::time::{ClockId, clock_gettime};

/// Silence after which a flow is forgotten. Its packets then go by slot, to the same backend
/// as long as the backends stay the same.
pub const fn idle_timeout(state: State) -> Duration {
    Duration::from_secs(match state {
        State::Free => 0,
        // A client gives up its SYN after a minute or two, its retransmissions 32 s apart.
        State::Embryonic => 60,
        // As LVS: long enough for most keep-alives, short enough for the table.
        State::Young | State::Old => 900,
        // Half-closed, yet the server may be sending: the client's ACKs keep it.
        State::Closing => 10,
        State::Reset => 5,
    })
}

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
    /// The shortest tick of which 240 cover the longest time-out: ages are kept modulo 256,
    /// and the sweep must come by before they wrap.
    pub fn from_hz(hz: u32) -> Self {
        let longest = State::ALL.map(idle_timeout).into_iter().max().unwrap_or_default();
        let jiffies = longest.as_secs() * u64::from(hz);
        let tick_shift = (jiffies.div_ceil(240)).next_power_of_two().trailing_zeros();
        // One more, because the first tick of a silence has begun before it.
        let ticks =
            |time: Duration| ((time.as_secs() * u64::from(hz)).div_ceil(1 << tick_shift) + 1) as u8;
        let mut idle_ticks = [0; 8];
        for state in State::ALL {
            idle_ticks[state as usize] = ticks(idle_timeout(state));
        }
        Self { hz, tick_shift, idle_ticks, reuse_ticks: u32::from(ticks(REUSE)) }
    }
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
pub(super) fn measure(clock: &Xdp) -> Result<Timing> {
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
    Ok(Timing::from_hz(hz))
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
        for hz in [100, 250, 300, 1000, 1024] {
            let timing = Timing::from_hz(hz);
            let tick = f64::from(1 << timing.tick_shift) / f64::from(hz);
            for state in State::ALL {
                let covered = f64::from(timing.idle_ticks[state as usize]) * tick;
                let wanted = idle_timeout(state).as_secs_f64();
                assert!(covered >= wanted, "{hz} Hz: {state:?} covers {covered} s of {wanted} s");
            }
            assert!(timing.idle_ticks.iter().all(|&ticks| ticks <= 242), "{hz} Hz: {timing:?}");
            assert!(f64::from(timing.reuse_ticks) * tick >= 10.0);
        }
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
