//! How flows come to be old within a moment: packets of theirs are met in ticks of two lengths.

use lb_common::{
    abi::Settings,
    flow::{Entry, State, tick_of},
};

/// Ages of a flow that is known to be old, and stays so for a while: an entry counts 256 ticks, and
/// takes the highest ages for ticks that have not begun.
const AGES: std::ops::RangeInclusive<u8> = 1..=200;

/// Of the time only so many bits are known.
const KNOWN_BITS: u32 = u32::BITS - u8::BITS;

/// By which power of two a tick must be longer, for a flow that was met in such a one to be old in
/// one of the usual length. `now`: the lower 32 bits of `jiffies64`.
///
/// `None` for some ticks before these bits wrap: all lengths have much the same number then.
pub fn longer(settings: &Settings, now: u32) -> Option<u32> {
    let tick = |longer| {
        let tick_shift = settings.tick_shift + longer;
        tick_of(&Settings { tick_shift, ..*settings }, now.into())
    };
    (1..=KNOWN_BITS.saturating_sub(settings.tick_shift))
        .find(|&longer| AGES.contains(&Entry::new(0, 0, tick(longer), State::Young).age(tick(0))))
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn at_any_time_but_before_a_wrap_some_length_will_do() {
        for tick_shift in [8, 10, 12] {
            let mut settings = Settings::new_zeroed();
            settings.tick_shift = tick_shift;
            let ticks = 1 << (u32::BITS - tick_shift);
            let without = (0..ticks).filter(|tick| longer(&settings, tick << tick_shift).is_none());
            let is_close = |tick| tick == 0 || tick > ticks - 60;
            assert!(without.into_iter().all(is_close), "{tick_shift}");
        }
    }

    #[test]
    fn one_length_would_not_always_do() {
        let mut settings = Settings::new_zeroed();
        settings.tick_shift = 10;
        let chosen = |tick: u32| longer(&settings, tick << 10);
        assert_eq!(chosen(1100), Some(1));
        // Its half seems to be a tick to come, and its quarter soon would.
        assert_eq!(chosen(1012), Some(3));
    }
}
