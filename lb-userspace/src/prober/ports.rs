//! Source ports of probes. Each tells the kernel program which backend its probe is for, so no two
//! probes share one, whatever their family and source address.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// From this port up: those below are for servers (RFC 6335 §6).
const FIRST: u16 = 1024;
/// How many there are.
pub const PORTS: usize = (u16::MAX - FIRST) as usize + 1;
/// A port rests for so long after its probe: what a slow server still sends, and the answer to
/// that, finds its way meanwhile.
const REST: Duration = Duration::from_secs(10);

/// Which ports are free. The one that has been free for longest is used next.
pub struct Ports {
    free: VecDeque<u16>,
    /// With when they were given back, in that order.
    resting: VecDeque<(Instant, u16)>,
}

impl Ports {
    /// All of them are free: 1024 to 65,535.
    pub fn new() -> Self {
        Self { free: (FIRST..=u16::MAX).collect(), resting: VecDeque::new() }
    }

    /// A port for a probe; one that is not rested only if there is no other. `None`: as many
    /// probes are under way as there are ports.
    pub fn take(&mut self) -> Option<u16> {
        self.free.pop_front().or_else(|| self.resting.pop_front().map(|(_, port)| port))
    }

    /// A probe has ended.
    pub fn give_back(&mut self, port: u16, now: Instant) {
        self.resting.push_back((now, port));
    }

    /// A port that has rested enough, if there is one: it is free from now on, and its probe may
    /// be forgotten. Ask again until there is none.
    pub fn rested(&mut self, now: Instant) -> Option<u16> {
        let (since, port) = *self.resting.front()?;
        if now.saturating_duration_since(since) < REST {
            return None;
        }
        self.resting.pop_front();
        self.free.push_back(port);
        Some(port)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_port_is_given_once_and_then_none() {
        let mut ports = Ports::new();
        let taken: HashSet<u16> = std::iter::from_fn(|| ports.take()).collect();
        assert_eq!(taken.len(), PORTS);
        assert!(taken.iter().all(|port| *port >= 1024));
        assert_eq!(ports.take(), None);
    }

    #[test]
    fn a_port_rests_and_the_longest_free_one_comes_first() {
        let (mut ports, start) = (Ports::new(), Instant::now());
        let (one, two) = (ports.take().expect("free"), ports.take().expect("free"));
        ports.give_back(two, start);
        ports.give_back(one, start + Duration::from_secs(1));
        assert_eq!(ports.rested(start + Duration::from_secs(9)), None);
        let later = start + REST;
        assert_eq!((ports.rested(later), ports.rested(later)), (Some(two), None));
        // All the others are before it; and one that rests comes only after it.
        let taken: Vec<u16> = std::iter::from_fn(|| ports.take()).collect();
        assert_eq!(taken[taken.len() - 2..], [two, one]);
    }
}
