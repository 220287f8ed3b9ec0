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
        let mut sighting = Self {
            state: header.state,
            mac: None,
            foreign: header.flags.contains(NeighbourFlags::ExtLearned)
                || matches!(header.state, NeighbourState::Permanent | NeighbourState::Noarp),
        };
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
        let entry = Self { in_kernel: true, foreign: seen.foreign, no_room: false, ..self };
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
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const KEY: Key = (7, IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 11)));

    fn message(state: NeighbourState, mac: Option<Mac>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = KEY.0;
        message.header.state = state;
        message.attributes.push(NeighbourAttribute::Destination(KEY.1.into()));
        message.attributes.extend(mac.map(|m| NeighbourAttribute::LinkLayerAddress(m.to_vec())));
        message
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// What may happen to a neighbour.
    enum Step {
        Seen(NeighbourState, Option<Mac>),
        Gone,
        Asked,
        Refused(i32),
        After(f64),
    }

    fn after(steps: Vec<Step>) -> (Neighbours, Instant) {
        let (mut neighbours, mut now) = (Neighbours::default(), Instant::now());
        for step in steps {
            match step {
                Step::Seen(state, mac) => {
                    neighbours.learn(&message(state, mac), now);
                }
                Step::Gone => {
                    neighbours.forget(&message(NeighbourState::None, None));
                }
                Step::Asked => {
                    neighbours.asked(KEY, Ok(()), now);
                }
                Step::Refused(errno) => {
                    neighbours.asked(KEY, Err(Failure::Errno(errno)), now);
                }
                Step::After(wait) => now += seconds(wait),
            }
        }
        (neighbours, now)
    }

    #[test]
    fn a_mac_stays_in_use_until_its_owner_is_silent() {
        use NeighbourState as S;
        use Step::*;
        let known = Neighbour::Known(MAC);
        let reachable = || Seen(S::Reachable, Some(MAC));
        let cases = [
            ("never heard of", vec![], Neighbour::Asked),
            ("being asked", vec![Asked, Seen(S::Incomplete, None)], Neighbour::Asked),
            ("reachable", vec![reachable()], known),
            ("stale", vec![Seen(S::Stale, Some(MAC))], known),
            ("permanent", vec![Seen(S::Permanent, Some(MAC))], known),
            ("without ARP", vec![Seen(S::Noarp, Some(MAC))], known),
            ("probed", vec![reachable(), Seen(S::Probe, Some(MAC))], known),
            ("moved", vec![Seen(S::Reachable, Some(OTHER)), reachable()], known),
            ("flushed", vec![reachable(), Gone], known),
            (
                "flushed, then asked",
                vec![reachable(), Gone, Asked, Seen(S::Incomplete, None)],
                known,
            ),
            ("just failed", vec![reachable(), Seen(S::Failed, None), After(1.0)], known),
            (
                "failed for good",
                vec![reachable(), Seen(S::Failed, None), After(1.6)],
                Neighbour::Silent,
            ),
            (
                "failed again does not prolong the grace",
                vec![
                    reachable(),
                    Seen(S::Failed, None),
                    After(1.0),
                    Seen(S::Failed, None),
                    After(1.0),
                ],
                Neighbour::Silent,
            ),
            (
                "flushed by an operator: failed and gone at once",
                vec![reachable(), Seen(S::Failed, None), Gone],
                known,
            ),
            (
                "silent while asked again",
                vec![Seen(S::Failed, None), Asked, Seen(S::Incomplete, None)],
                Neighbour::Silent,
            ),
            ("back", vec![Seen(S::Failed, None), After(9.0), reachable()], known),
            ("table full", vec![Refused(libc::ENOBUFS)], Neighbour::NoRoom),
            ("table full, MAC known", vec![reachable(), Gone, Refused(libc::ENOBUFS)], known),
            ("table no longer full", vec![Refused(libc::ENOBUFS), Asked], Neighbour::Asked),
            ("a state of the future", vec![Seen(S::Other(0x100), Some(MAC))], Neighbour::Asked),
            ("no Ethernet address", vec![Seen(S::Reachable, None)], Neighbour::Asked),
        ];
        for (case, steps, expected) in cases {
            let (neighbours, now) = after(steps);
            assert_eq!(neighbours.find(&KEY, now), expected, "{case}");
        }
    }

    #[test]
    fn the_kernel_is_asked_when_due() {
        use NeighbourState as S;
        use Step::*;
        let reachable = || Seen(S::Reachable, Some(MAC));
        // After these steps: seconds of waiting in which no question is due, and in which it is.
        let cases = [
            ("unknown", vec![], None, 0.0),
            ("known, never asked", vec![reachable()], None, 0.0),
            ("fine", vec![reachable(), Asked], Some(14.9), 25.1),
            ("vanished", vec![reachable(), Asked, After(1.0), Gone], None, 0.0),
            ("vanished at once", vec![reachable(), Asked, Gone], Some(0.4), 0.6),
            ("failed", vec![reachable(), Asked, After(1.0), Seen(S::Failed, None)], None, 0.0),
            (
                "failed and asked",
                vec![reachable(), Seen(S::Failed, None), After(1.0), Asked],
                Some(2.9),
                3.1,
            ),
            ("silent", vec![Asked, Seen(S::Failed, None)], Some(2.9), 3.1),
            ("no room", vec![Refused(libc::ENOBUFS)], Some(2.9), 3.1),
        ];
        for (case, steps, not_yet, by_then) in cases {
            let (neighbours, now) = after(steps);
            let wanted = HashSet::from([KEY]);
            if let Some(not_yet) = not_yet {
                assert_eq!(neighbours.due(&wanted, now + seconds(not_yet)), [], "{case}");
            }
            assert_eq!(neighbours.due(&wanted, now + seconds(by_then)), [KEY], "{case}");
        }
    }

    #[test]
    fn what_others_keep_is_not_touched() {
        let mut managed = message(NeighbourState::Stale, Some(MAC));
        managed.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        let mut learned = message(NeighbourState::Stale, Some(MAC));
        learned.header.flags = NeighbourFlags::ExtLearned;
        let cases = [
            message(NeighbourState::Permanent, Some(MAC)),
            message(NeighbourState::Noarp, Some(MAC)),
            managed,
            learned,
        ];
        let (wanted, now) = (HashSet::from([KEY]), Instant::now());
        for case in cases {
            let mut neighbours = Neighbours::default();
            neighbours.learn(&case, now);
            assert_eq!(neighbours.find(&KEY, now), Neighbour::Known(MAC), "{case:?}");
            assert_eq!(neighbours.due(&wanted, now + seconds(1e6)), [], "{case:?}");
            // The operator deletes it: now it is ours to find, and the MAC serves meanwhile.
            neighbours.forget(&case);
            assert_eq!(neighbours.due(&wanted, now), [KEY], "{case:?}");
            assert_eq!(neighbours.find(&KEY, now), Neighbour::Known(MAC), "{case:?}");
        }
    }

    #[test]
    fn a_question_makes_a_new_entry_or_touches_one_that_is_there_but_replaces_none() {
        let (mut neighbours, now) = (Neighbours::default(), Instant::now());
        assert_eq!(neighbours.question(&KEY).1, CREATE_NEW);
        let asked = neighbours.asked(KEY, Err(Failure::Errno(libc::EEXIST)), now);
        assert!(asked.surprised, "somebody else made it: look before touching it");
        assert_eq!(neighbours.question(&KEY).1, 0);
        let asked = neighbours.asked(KEY, Err(Failure::Errno(libc::ENOENT)), now);
        assert!(asked.surprised, "it was collected");
        assert_eq!(neighbours.question(&KEY).1, CREATE_NEW);
    }

    #[test]
    fn many_questions_are_spread_and_none_waits_for_ever() {
        let (mut neighbours, mut now) = (Neighbours::default(), Instant::now());
        let wanted: HashSet<Key> =
            (0..20_000u32).map(|n| (7, IpAddr::from((0xC612_0000 + n).to_be_bytes()))).collect();
        assert_eq!(neighbours.due(&wanted, now).len(), wanted.len(), "unknown: all at once");
        for key in &wanted {
            neighbours.asked(*key, Ok(()), now);
            let mut failed = message(NeighbourState::Failed, None);
            failed.attributes = vec![NeighbourAttribute::Destination(key.1.into())];
            neighbours.learn(&failed, now);
        }
        let mut served = HashSet::new();
        for _ in 0..wanted.len() / RETRIES_PER_ROUND + 10 {
            now += Duration::from_millis(500);
            let due = neighbours.due(&wanted, now);
            assert!(due.len() <= RETRIES_PER_ROUND);
            for key in due {
                neighbours.asked(key, Ok(()), now);
                served.insert(key);
            }
        }
        assert_eq!(served.len(), wanted.len());
    }

    #[test]
    fn the_whole_table_corrects_what_events_missed() {
        let (mut neighbours, now) = (Neighbours::default(), Instant::now());
        let wanted = HashSet::from([KEY]);
        let unwanted: Key = (7, "2001:db8::1".parse().expect("a literal address"));
        neighbours.learn(&message(NeighbourState::Reachable, Some(MAC)), now);
        neighbours.asked(unwanted, Ok(()), now);
        neighbours.replace(&Dump { messages: vec![], complete: true }, &wanted, now);
        assert_eq!(neighbours.due(&wanted, now), [KEY], "it vanished, unseen");
        assert_eq!(neighbours.entries.len(), 1, "the other is forgotten");
        let table =
            vec![RouteNetlinkMessage::NewNeighbour(message(NeighbourState::Stale, Some(OTHER)))];
        neighbours.replace(&Dump { messages: table, complete: true }, &wanted, now);
        assert_eq!(neighbours.find(&KEY, now), Neighbour::Known(OTHER));
        neighbours.forget_interface(7);
        assert_eq!(neighbours.find(&KEY, now), Neighbour::Asked);
    }

    #[test]
    fn strange_messages_do_no_harm() {
        let (mut neighbours, now) = (Neighbours::default(), Instant::now());
        let mut proxy = message(NeighbourState::Permanent, Some(MAC));
        proxy.header.flags = NeighbourFlags::Proxy;
        let mut bridge = message(NeighbourState::Permanent, Some(MAC));
        bridge.header.family = AddressFamily::Bridge;
        let mut nameless = message(NeighbourState::Reachable, Some(MAC));
        nameless.attributes.remove(0);
        for strange in [proxy, bridge, nameless, NeighbourMessage::default()] {
            assert_eq!(neighbours.learn(&strange, now), None, "{strange:?}");
            assert_eq!(neighbours.forget(&strange), None, "{strange:?}");
        }
    }
}
