//! How many ICMP messages are made here: RFC 4443 §2.4 (f) asks for a token bucket, RFC 1812
//! §4.3.2.8 for a limit.

/// Messages a second and CPU, and at most at once.
pub const PER_SECOND: u64 = 1000;

/// A token bucket over jiffies. New, it fills at the first question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bucket {
    /// What is left; a message costs `hz`.
    credit: u64,
    /// `jiffies64` of the last question.
    last: u64,
}

impl Bucket {
    /// Whether one more message may be sent at `now`, in `jiffies64`, of which a second has `hz`.
    #[inline(always)]
    pub fn take(&mut self, now: u64, hz: u32) -> bool {
        let hz = u64::from(hz);
        let full = PER_SECOND * hz;
        let elapsed = now.wrapping_sub(self.last);
        let earned = if elapsed < hz { elapsed * PER_SECOND } else { full };
        self.last = now;
        self.credit = (self.credit + earned).min(full);
        let is_enough = self.credit >= hz;
        if is_enough {
            self.credit -= hz;
        }
        is_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many questions at one moment, how many are granted.
    fn granted(bucket: &mut Bucket, now: u64, hz: u32, questions: u64) -> u64 {
        (0..questions).map(|_| u64::from(bucket.take(now, hz))).sum()
    }

    #[test]
    fn a_second_is_granted_at_once_and_no_more_than_a_second_has_after_it() {
        for hz in [100, 250, 300, 1000] {
            // Where the kernel's jiffies begin.
            let mut now = u64::from(u32::MAX) - 300 * u64::from(hz);
            let mut bucket = Bucket::default();
            assert_eq!(granted(&mut bucket, now, hz, 3 * PER_SECOND), PER_SECOND, "{hz}");
            let mut total = 0;
            for _ in 0..10 * hz {
                now += 1;
                total += granted(&mut bucket, now, hz, 50);
            }
            assert_eq!(total, 10 * PER_SECOND, "{hz}");
            // However long it was silent.
            assert_eq!(granted(&mut bucket, now + (1 << 40), hz, 3 * PER_SECOND), PER_SECOND);
        }
    }

    #[test]
    fn who_asks_too_early_earns_all_the_same() {
        let (mut bucket, hz) = (Bucket::default(), 1000);
        assert_eq!(granted(&mut bucket, 5000, hz, 2 * PER_SECOND), PER_SECOND);
        // A token a jiffy; questions between are refused and lose nothing.
        assert_eq!(granted(&mut bucket, 5001, hz, 7), 1);
        assert_eq!(granted(&mut bucket, 5003, hz, 7), 2);
    }
}
