//! How long handshakes took.

use lb_common::{abi, counters};
use serde::{Deserialize, Serialize};

/// A backend's completed handshakes by the time from the client's SYN to its first ACK, which is
/// a round trip to the client and back, the backend's answer, and the wait for each SYN that had
/// to be sent again. Known to a tick of the balancer's kernel: 1 to 10 ms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HandshakeTimes {
    /// Sum of the times.
    pub sum_seconds: f64,
    /// Upper bounds, rising: whole ticks of the kernel, doubling.
    pub bounds_seconds: Vec<f64>,
    /// Handshakes in each bucket: longer than the bound before, and not longer than its own; in
    /// the last, for which there is no bound, all longer ones.
    pub counts: Vec<u64>,
}

impl HandshakeTimes {
    /// What was counted in jiffies, of which `hz` make a second.
    pub fn new(times: &abi::HandshakeTimes, hz: u32) -> Self {
        let seconds = |jiffies: u64| jiffies as f64 / f64::from(hz.max(1));
        Self {
            sum_seconds: seconds(times.jiffies),
            bounds_seconds: (0..counters::HANDSHAKE_BUCKETS)
                .filter_map(counters::handshake_bound)
                .map(seconds)
                .collect(),
            counts: times.buckets.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jiffies_become_seconds() {
        let mut times = abi::HandshakeTimes::default();
        for jiffies in [0, 1, 250, u64::MAX] {
            times.add(jiffies);
        }
        let said = HandshakeTimes::new(&times, 250);
        assert_eq!(said.bounds_seconds.len() + 1, said.counts.len());
        assert_eq!(said.bounds_seconds[..3], [0.004, 0.008, 0.016]);
        assert_eq!(said.bounds_seconds.last(), Some(&65.536));
        assert_eq!((said.counts[0], said.counts[1], said.counts[8]), (1, 1, 1));
        assert_eq!(said.counts.last(), Some(&1));
        // The longest counts as 2^16 jiffies.
        assert_eq!(said.sum_seconds, 0.0 + 0.004 + 1.0 + 262.144);
        assert_eq!(HandshakeTimes::new(&times, 0).bounds_seconds[0], 1.0, "no division by zero");
    }
}
