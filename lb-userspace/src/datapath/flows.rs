//! The flow table as the daemon sees it: swept, counted, listed. It is the kernel's own
//! memory: a pass over a million entries takes milliseconds and no system call.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};
use lb_common::{
    abi::{FlowRecord, Settings, capacity},
    flow::{Entry, GROUP, State, tick_of},
    hash,
    parse::{Family, Ports, Segment},
};

use super::{
    Maps, clock,
    memory::{Mapping, read},
};

/// Words of one flow record.
const RECORD_WORDS: usize = size_of::<FlowRecord>() / 8;

/// The flow table and its records.
pub(super) struct FlowMemory {
    words: Mapping,
    records: Mapping,
}

/// What one pass over the flow table saw.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Active flows of each backend, by backend index.
    pub active: Vec<u32>,
    /// Entries of each backend, whatever their state: while there is one, the index is taken.
    pub entries: Vec<u32>,
    /// Entries by state, as in [`State::ALL`].
    pub by_state: [u32; State::ALL.len()],
    /// Ports in use towards each backend from each address, by their indices.
    pub nat_ports: HashMap<(u16, u16), u32>,
    /// Entries that had expired and were freed.
    pub freed: u32,
}

impl Default for Sweep {
    fn default() -> Self {
        Self {
            active: vec![0; capacity::BACKENDS],
            entries: vec![0; capacity::BACKENDS],
            by_state: [0; State::ALL.len()],
            nat_ports: HashMap::new(),
            freed: 0,
        }
    }
}

impl Sweep {
    /// Entries in use; a translated flow has two.
    pub fn used(&self) -> u32 {
        self.by_state.iter().sum::<u32>() + self.nat_ports.values().sum::<u32>()
    }

    /// Ports in use towards a backend.
    pub fn nat_ports_of(&self, backend: u16) -> u32 {
        self.nat_ports.iter().filter(|((of, _), _)| *of == backend).map(|(_, used)| used).sum()
    }

    /// Whether flows are translated to this address of ours, by its index.
    pub fn uses_nat_address(&self, index: u16) -> bool {
        self.nat_ports.keys().any(|(_, address)| *address == index)
    }
}

/// How long flows may be silent, backend by backend. The kernel knows one limit for each state,
/// the longest of any service; the sweep, which comes by each second, keeps the services' own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleLimits {
    /// Ticks by state; the first are the kernel's own.
    classes: Vec<[u8; 8]>,
    /// Class of each backend, by index.
    class: Vec<u8>,
}

impl IdleLimits {
    /// `own` are the limits of single backends; the others', the kernel's.
    pub(super) fn new(kernel: [u8; 8], own: impl Iterator<Item = (u16, [u8; 8])>) -> Self {
        let mut limits = Self { classes: vec![kernel], class: vec![0; capacity::BACKENDS] };
        for (backend, ticks) in own {
            let known = limits.classes.iter().position(|class| *class == ticks);
            let class = known.unwrap_or_else(|| {
                limits.classes.push(ticks);
                limits.classes.len() - 1
            });
            // Past 255 different time-outs the kernel's has to do.
            limits.class[usize::from(backend)] = u8::try_from(class).unwrap_or(0);
        }
        limits
    }

    fn are_passed(&self, entry: Entry, tick: u8) -> bool {
        let class = self.class[usize::from(entry.backend())];
        entry.age(tick) > self.classes[usize::from(class)][entry.state() as usize]
    }
}

/// One flow of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowView {
    /// Who connects.
    pub client: SocketAddr,
    /// The port connected to.
    pub vip_port: u16,
    /// What the backend sees for the client, where that is translated: the index of an address in
    /// `NAT_ADDRESSES`, 0 for the client's own, and a port.
    pub nat: Option<(u16, u16)>,
    /// Index of the backend.
    pub backend: u16,
    /// What is known of it.
    pub state: State,
    /// Seconds since it was inserted.
    pub age_seconds: f64,
    /// Seconds since its last packet, to within a tick; never more than since the first.
    pub idle_seconds: f64,
}

impl FlowView {
    /// The hash by which the kernel finds it, and its slot.
    pub fn hash(&self, vip: IpAddr, keys: &[u64; hash::KEYS]) -> u64 {
        let segment = Segment {
            source: self.client.ip().into(),
            destination: vip.into(),
            ports: Ports {
                source: self.client.port().to_be_bytes(),
                destination: self.vip_port.to_be_bytes(),
            },
            // The rest is not part of the tuple.
            l3: 0,
            l4: 0,
            family: if vip.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 },
            flags: 0,
            traffic_class: 0,
            ip_length: 0,
            payload: 0,
        };
        hash::of_flow(&segment, keys)
    }
}

impl FlowMemory {
    pub fn map(maps: &Maps, settings: &Settings) -> Result<Self> {
        let flows = (settings.flow_mask as usize + 1) * GROUP;
        Ok(Self {
            words: Mapping::writable(maps.flows_fd(), flows * 8).context("map FLOWS")?,
            records: Mapping::readable(maps.flow_records_fd(), flows * size_of::<FlowRecord>())
                .context("map FLOW_RECORDS")?,
        })
    }

    /// Frees what has expired, and counts the rest.
    pub fn sweep(&self, settings: &Settings, limits: &IdleLimits, now: u32) -> Sweep {
        let record =
            |word: usize| read(&self.records.words()[word * RECORD_WORDS..][..RECORD_WORDS]);
        sweep(self.words.words(), record, limits, tick_of(settings, u64::from(now)))
    }

    /// Hands every flow of the backends that `of` names to `each`, until that has enough.
    pub fn each(
        &self,
        settings: &Settings,
        now: u32,
        of: impl Fn(u16) -> bool,
        mut each: impl FnMut(&FlowView) -> bool,
    ) {
        let tick = tick_of(settings, u64::from(now));
        let tick_seconds = clock::seconds(1 << settings.tick_shift, settings.hz);
        let records = self.records.words().chunks_exact(RECORD_WORDS);
        for (word, record) in self.words.words().iter().zip(records) {
            let entry = Entry(word.load(Ordering::Relaxed));
            let is_free = matches!(entry.state(), State::Free) || entry.is_return();
            if is_free || entry.is_expired(tick, settings) {
                continue;
            }
            // The record is another cache line, for each flow.
            if !of(entry.backend()) {
                continue;
            }
            let record = read::<FlowRecord>(record);
            let age_seconds = clock::seconds(age(now, record.start as u32), settings.hz);
            let view = FlowView {
                client: SocketAddr::new(
                    IpAddr::from(record.client),
                    u16::from_be_bytes(record.client_port),
                ),
                vip_port: u16::from_be_bytes(record.vip_port),
                nat: (record.nat_port != [0; 2])
                    .then_some((record.nat_address, u16::from_be_bytes(record.nat_port))),
                backend: entry.backend(),
                state: entry.state(),
                age_seconds,
                idle_seconds: idle(entry.age(tick), tick_seconds, age_seconds),
            };
            if !each(&view) {
                return;
            }
        }
    }
}

fn sweep(
    words: &[AtomicU64],
    record: impl Fn(usize) -> FlowRecord,
    limits: &IdleLimits,
    tick: u8,
) -> Sweep {
    let mut sweep = Sweep::default();
    for (place, word) in words.iter().enumerate() {
        let entry = Entry(word.load(Ordering::Relaxed));
        let state = entry.state();
        if matches!(state, State::Free) {
            continue;
        }
        if limits.are_passed(entry, tick) {
            // If a packet was quicker, the flow lives.
            if word.compare_exchange(entry.0, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                sweep.freed += 1;
                continue;
            }
        }
        let backend = usize::from(entry.backend());
        sweep.entries[backend] += 1;
        if entry.is_return() {
            // The other half of a flow that is counted by its client's entry.
            let address = record(place).nat_address;
            *sweep.nat_ports.entry((entry.backend(), address)).or_default() += 1;
            continue;
        }
        sweep.active[backend] += u32::from(state.is_active());
        sweep.by_state[state as usize - 1] += 1;
    }
    sweep
}

/// Jiffies from then to now; 0 for a flow that began after the time was read.
fn age(now: u32, start: u32) -> u32 {
    /// Far longer than a look at the table takes, far shorter than 32 bits of jiffies.
    const AHEAD: u32 = 1 << 20;
    let age = now.wrapping_sub(start);
    if age > u32::MAX - AHEAD { 0 } else { age }
}

/// Seconds of so many ticks, the first of which had begun before the flow's packet came.
fn idle(ticks: u8, tick_seconds: f64, age_seconds: f64) -> f64 {
    (f64::from(ticks) * tick_seconds).min(age_seconds)
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::{datapath::clock::Timing, model::IdleTimeouts};

    fn settings() -> Settings {
        let timing = Timing::from_hz(250, &IdleTimeouts::default());
        let mut settings = Settings::new_zeroed();
        settings.hz = timing.hz;
        settings.tick_shift = timing.tick_shift;
        settings.idle_ticks = timing.idle_ticks;
        settings.reuse_ticks = timing.reuse_ticks;
        settings
    }

    #[test]
    fn a_sweep_frees_what_is_silent_for_too_long_and_counts_the_rest() {
        let settings = settings();
        let entry = |backend, tick, state| AtomicU64::new(Entry::new(!0, backend, tick, state).0);
        let words = [
            entry(1, 100, State::Old),
            entry(1, 99, State::Closing),
            entry(2, 100, State::Embryonic),
            entry(2, 100, State::Reset),
            entry(2, 50, State::Embryonic),
            entry(3, 0, State::Closing),
            AtomicU64::new(0),
            AtomicU64::new(Entry::new(!0, 4, 100, State::Old).of_return().0),
        ];
        let limits = IdleLimits::new(settings.idle_ticks, std::iter::empty());
        let record = |_| FlowRecord { nat_address: 7, ..FlowRecord::default() };
        let sweep = sweep(&words, record, &limits, 100);
        assert_eq!((sweep.active[1], sweep.active[2], sweep.active[3]), (2, 1, 0));
        assert_eq!((sweep.entries[1], sweep.entries[2], sweep.entries[3]), (2, 2, 0));
        assert_eq!(sweep.by_state, [1, 0, 1, 1, 1, 0, 0]);
        assert_eq!((sweep.used(), sweep.freed), (5, 2));
        // Of a translated flow the client's entry counts; the other takes a port, and a word.
        assert_eq!((sweep.active[4], sweep.entries[4], sweep.nat_ports_of(4)), (0, 1, 1));
        assert!(sweep.uses_nat_address(7) && !sweep.uses_nat_address(0));
        assert_eq!(words[4].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_flow_that_begins_while_others_are_listed_is_new_not_ancient() {
        assert_eq!(age(1000, 400), 600);
        assert_eq!(age(1000, 1003), 0);
        assert_eq!(age(5, u32::MAX - 4), 10, "jiffies wrap");
    }

    #[test]
    fn nobody_is_silent_for_longer_than_he_is_there() {
        // Its SYN came at the end of a tick of 4 s, and the next has just begun.
        assert_eq!(idle(1, 4.096, 0.5), 0.5);
        assert_eq!(idle(0, 4.096, 0.5), 0.0);
        assert_eq!(idle(2, 4.096, 60.0), 8.192);
    }

    #[test]
    fn a_services_own_time_out_is_kept_by_the_sweep() {
        let settings = settings();
        let mut own = settings.idle_ticks;
        own[State::Old as usize] = 2;
        let limits = IdleLimits::new(settings.idle_ticks, [(1, own)].into_iter());
        let old = |backend| AtomicU64::new(Entry::new(!0, backend, 96, State::Old).0);
        let words = [old(1), old(2)];
        let record = |_| FlowRecord::default();
        assert_eq!(sweep(&words, record, &limits, 98).freed, 0);
        assert_eq!(sweep(&words, record, &limits, 99).freed, 1);
        assert_eq!(words.each_ref().map(|word| word.load(Ordering::Relaxed) != 0), [false, true]);
    }
}
