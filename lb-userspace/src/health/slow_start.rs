//! Slow start: who has just become well, or been enabled, gets its share of new flows by steps.
//!
//! Each step is another Maglev table, which moves only new flows.

use std::time::Duration;

/// Steps from nothing to the whole weight.
const STEPS: u32 = 10;

/// The weight of a backend that has been in for `elapsed`, of the `slow_start` that it has; 0
/// stays 0, and all else is at least 1.
pub fn weight(weight: u16, slow_start: Duration, elapsed: Duration) -> u16 {
    if elapsed >= slow_start || weight == 0 {
        return weight;
    }
    let step = elapsed.as_nanos() * u128::from(STEPS) / slow_start.as_nanos() + 1;
    // At most the weight itself, as the step is at most `STEPS`.
    let share = u128::from(weight) * step / u128::from(STEPS);
    u16::try_from(share).unwrap_or(weight).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_weight_comes_in_ten_steps() {
        let slow = Duration::from_secs(30);
        let at = |seconds| weight(100, slow, Duration::from_secs(seconds));
        assert_eq!([0, 2, 3, 15, 29, 30, 31].map(at), [10, 10, 20, 60, 100, 100, 100]);
        assert_eq!(weight(0, slow, Duration::ZERO), 0);
        assert_eq!(weight(3, slow, Duration::ZERO), 1);
        assert_eq!(weight(7, Duration::ZERO, Duration::ZERO), 7);
    }

    proptest! {
        #[test]
        fn it_never_falls_and_never_exceeds_the_whole(
            whole in 0..1000u16, slow in 1..100_000u64, first in 0..200_000u64, later in 0..200_000u64,
        ) {
            let at = |elapsed| weight(whole, Duration::from_millis(slow), Duration::from_millis(elapsed));
            prop_assert!(at(first) <= at(first + later));
            prop_assert!(at(first) <= whole);
            prop_assert_eq!(at(first) == 0, whole == 0);
        }
    }
}
