//! The kernel's neighbour table (ARP and neighbour discovery), as far as it is known here, and
//! when to ask the kernel to look again.
//!
//! Frames that XDP forwards neither use nor confirm the kernel's entries, so without care an
//! entry goes stale, is collected, or keeps the MAC of a host that has moved. The kernel is
//! therefore asked now and then to use it (`NTF_USE`): a stale entry is then probed. What
//! becomes of a MAC once known:
//!
//! - stale, being probed, incomplete, or gone from the table (flushed; collected because the
//!   table is full): it stays in use while the kernel is asked again;
//! - failed: it stays for [`GRACE`]. Probes of a known MAC are unicast, so a host that came
//!   back with another card fails at first and answers the broadcast that follows;
//! - failed for longer: the host is silent, until it answers.
//!
//! Entries that somebody else keeps (permanent, without ARP, managed, externally learned) are
//! left alone: `NTF_USE` *erases* a permanent one (`NEIGH_UPDATE_F_USE`, since 5.16) and takes
//! its flags from a managed or learned one.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    net::IpAddr,
    time::{Duration, Instant},
};

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
};

use super::{
    Mac,
    netlink::{CREATE_NEW, Dump, Failure, Netlink},
};

/// A known MAC survives its failure for so long: one lost broadcast is forgiven, since the
/// kernel repeats it after 1 s (`retrans_time_ms`).
const GRACE: Duration = Duration::from_millis(1500);
/// An entry is used again after so long, and up to [`REFRESH_SPREAD`] later. Collection starts
/// at 60 s of disuse (`gc_stale_time`).
const REFRESH: Duration = Duration::from_secs(15);
/// Spreads the refreshes of many neighbours.
const REFRESH_SPREAD: Duration = Duration::from_secs(10);
/// A silent neighbour is asked again after so long: as long as the kernel's own three attempts
/// take, so that it hears about one question a second.
const RETRY: Duration = Duration::from_secs(3);
/// No neighbour is asked more often than that.
const LEAST_GAP: Duration = Duration::from_millis(500);
/// Most refreshes of one round: with a round each 500 ms, 20,000 neighbours take 10 s.
const REFRESHES_PER_ROUND: usize = 1000;
/// Most silent neighbours asked again in one round, as each question is three broadcasts.
const RETRIES_PER_ROUND: usize = 100;

/// A neighbour's place: interface index and address.
pub(super) type Key = (u32, IpAddr);

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// Its MAC.
    Known(Mac),
    /// The MAC that an operator or another program has set for it; nobody asks whether it is right.
    Given(Mac),
    /// It has not answered yet.
    Asked,
    /// It does not answer.
    Silent,
    /// The kernel's table is full.
    NoRoom,
}

/// What a message of the kernel says about a neighbour.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    state: NeighbourState,
    mac: Option<Mac>,
    /// Not ours to touch.
    foreign: bool,
    /// Not the neighbour's own answer.
    given: bool,
}

impl Sighting {
    fn parse(message: &NeighbourMessage) -> Option<(Key, Self)> {
        let header = &message.header;
        if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6)
            || header.flags.contains(NeighbourFlags::Proxy)
        {
            return None;
        }
        let mut address = None;
        let given = header.flags.contains(NeighbourFlags::ExtLearned)
            || matches!(header.state, NeighbourState::Permanent | NeighbourState::Noarp);
        let mut sighting = Self { state: header.state, mac: None, foreign: given, given };
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    address = Some(IpAddr::V4(*v4));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    address = Some(IpAddr::V6(*v6));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    sighting.mac = bytes.as_slice().try_into().ok();
                }
                NeighbourAttribute::ExtFlags(flags) => {
                    sighting.foreign |= flags.contains(NeighbourExtFlags::Managed);
                }
                _ => {}
            }
        }
        Some(((header.ifindex, address?), sighting))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// Last MAC that was good.
    mac: Option<Mac>,
    /// Since when it fails.
    failed_at: Option<Instant>,
    /// The kernel has an entry.
    in_kernel: bool,
    /// Somebody else keeps it.
    foreign: bool,
    /// Somebody else has set its MAC.
    given: bool,
    /// When the kernel was last asked.
    asked_at: Option<Instant>,
    /// It refused for lack of room.
    no_room: bool,
}

/// How urgent a question is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Urgency {
    /// Traffic waits, or may go astray.
    Now,
    /// A silent neighbour may have come back.
    Retry,
    /// To keep the entry in use.
    Refresh,
}

impl Entry {
    fn learn(self, seen: Sighting, now: Instant) -> Self {
        use NeighbourState as State;
        let Sighting { foreign, given, .. } = seen;
        let entry = Self { in_kernel: true, foreign, given, no_room: false, ..self };
        match seen.state {
            State::Reachable
            | State::Stale
            | State::Delay
            | State::Probe
            | State::Noarp
            | State::Permanent => match seen.mac {
                Some(mac) => Self { mac: Some(mac), failed_at: None, ..entry },
                None => entry,
            },
            State::Failed => Self { failed_at: self.failed_at.or(Some(now)), ..entry },
            // Incomplete, none, and states yet unknown.
            _ => entry,
        }
    }

    fn neighbour(&self, now: Instant) -> Neighbour {
        match (self.mac, self.failed_at) {
            (Some(mac), None) if self.given && self.in_kernel => Neighbour::Given(mac),
            (Some(mac), None) => Neighbour::Known(mac),
            (Some(mac), Some(at)) if now < at + GRACE => Neighbour::Known(mac),
            _ if self.no_room => Neighbour::NoRoom,
            (_, Some(_)) => Neighbour::Silent,
            (None, None) => Neighbour::Asked,
        }
    }

    /// When the kernel should be asked (again), and how urgent that is; `None`: never.
    fn due(&self, key: &Key) -> Option<(Option<Instant>, Urgency)> {
        if self.in_kernel && self.foreign {
            return None;
        }
        let fine = self.mac.is_some() && self.failed_at.is_none();
        let after = |wait| self.asked_at.map(|at| at + wait);
        Some(if fine && self.in_kernel {
            (after(REFRESH + spread(key)), Urgency::Refresh)
        } else if fine || self.mac.is_some() && self.asked_at < self.failed_at {
            (after(LEAST_GAP), Urgency::Now)
        } else if self.asked_at.is_none() {
            (None, Urgency::Now)
        } else {
            (after(RETRY), Urgency::Retry)
        })
    }
}

/// The same for a neighbour each time, and different for each neighbour.
fn spread(key: &Key) -> Duration {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
    REFRESH_SPREAD.mul_f64(f64::from(hash as u16) / f64::from(u16::MAX))
}

/// The neighbours of this network namespace.
#[derive(Default)]
pub(super) struct Neighbours {
    entries: HashMap<Key, Entry>,
}

/// What a round of questions showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Somebody's state may have changed.
    pub(super) changed: bool,
    /// The kernel's table is not what we think: read it again.
    pub(super) surprised: bool,
}

/// Asks for the whole table.
pub(super) async fn dump(netlink: &Netlink) -> Result<Dump, Failure> {
    netlink.dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())).await
}

impl Neighbours {
    /// What is known of a neighbour.
    pub(super) fn find(&self, key: &Key, now: Instant) -> Neighbour {
        self.entries.get(key).map_or(Neighbour::Asked, |entry| entry.neighbour(now))
    }

    /// Takes a message in; returns whose state it changes.
    pub(super) fn learn(&mut self, message: &NeighbourMessage, now: Instant) -> Option<Key> {
        let (key, seen) = Sighting::parse(message)?;
        let entry = self.entries.entry(key).or_default();
        let next = entry.learn(seen, now);
        (std::mem::replace(entry, next) != next).then_some(key)
    }

    /// The kernel has forgotten a neighbour; returns whose state that changes.
    pub(super) fn forget(&mut self, message: &NeighbourMessage) -> Option<Key> {
        let (key, _) = Sighting::parse(message)?;
        let entry = self.entries.get_mut(&key)?;
        std::mem::take(&mut entry.in_kernel).then_some(key)
    }

    /// An interface is gone, and its neighbours with it.
    pub(super) fn forget_interface(&mut self, index: u32) {
        self.entries.retain(|(interface, _), _| *interface != index);
    }

    /// Takes the whole table in. Only those in `wanted` are remembered beyond it.
    pub(super) fn replace(&mut self, dump: &Dump, wanted: &HashSet<Key>, now: Instant) {
        let mut gone: HashSet<Key> = self.entries.keys().copied().collect();
        for message in &dump.messages {
            if let RouteNetlinkMessage::NewNeighbour(message) = message {
                self.learn(message, now);
                if let Some((key, _)) = Sighting::parse(message) {
                    gone.remove(&key);
                }
            }
        }
        for key in gone {
            if wanted.contains(&key) {
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.in_kernel = false;
                }
            } else {
                self.entries.remove(&key);
            }
        }
    }

    /// Whether time alone will change something: a failed neighbour's grace is running.
    pub(super) fn doubtful(&self, wanted: &HashSet<Key>, now: Instant) -> bool {
        wanted.iter().filter_map(|key| self.entries.get(key)).any(|entry| {
            entry.mac.is_some()
                && entry.failed_at.is_some_and(|at| now < at + GRACE + 2 * LEAST_GAP)
        })
    }

    /// Those of `wanted` that the kernel should be asked for now.
    pub(super) fn due(&self, wanted: &HashSet<Key>, now: Instant) -> Vec<Key> {
        let (mut keys, mut retries, mut refreshes) = (Vec::new(), Vec::new(), Vec::new());
        for key in wanted {
            let entry = self.entries.get(key).copied().unwrap_or_default();
            match entry.due(key) {
                Some((at, urgency)) if at.is_none_or(|at| at <= now) => match urgency {
                    Urgency::Now => keys.push(*key),
                    Urgency::Retry => retries.push((entry.asked_at, *key)),
                    Urgency::Refresh => refreshes.push((entry.asked_at, *key)),
                },
                _ => {}
            }
        }
        // Oldest first, or those beyond the budget would wait for ever.
        for (mut late, budget) in [(retries, RETRIES_PER_ROUND), (refreshes, REFRESHES_PER_ROUND)] {
            late.sort_unstable();
            keys.extend(late.into_iter().take(budget).map(|(_, key)| key));
        }
        keys
    }

    /// The message that asks for a neighbour, and the flags of its request.
    pub(super) fn question(&self, key: &Key) -> (RouteNetlinkMessage, u16) {
        let (interface, address) = *key;
        let mut message = NeighbourMessage::default();
        message.header.family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.ifindex = interface;
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        let known = self.entries.get(key).is_some_and(|entry| entry.in_kernel);
        (RouteNetlinkMessage::NewNeighbour(message), if known { 0 } else { CREATE_NEW })
    }

    /// Notes that the kernel was asked, and its answer.
    pub(super) fn asked(&mut self, key: Key, outcome: Result<(), Failure>, now: Instant) -> Asked {
        let entry = self.entries.entry(key).or_default();
        let before = entry.neighbour(now);
        entry.asked_at = Some(now);
        entry.no_room = false;
        let mut surprised = false;
        match outcome {
            Ok(()) => entry.in_kernel = true,
            Err(Failure::Errno(libc::ENOBUFS)) => entry.no_room = true,
            Err(Failure::Errno(libc::EEXIST)) => {
                entry.in_kernel = true;
                surprised = true;
            }
            Err(Failure::Errno(libc::ENOENT)) => {
                entry.in_kernel = false;
                surprised = true;
            }
            Err(failure) => {
                let (interface, address) = key;
                tracing::debug!(%address, interface, %failure, "can't ask for a neighbour");
            }
        }
        Asked { changed: entry.neighbour(now) != before, surprised }
    }
}

#[cfg(test)]
mod tests;
