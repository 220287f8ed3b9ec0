//! Flows counted by their clients' prefixes. Pure.
//!
//! It takes two looks at the flows: the first counts the prefixes, the second tells of those that have
//! the most whether one client is all there is. So nobody keeps an address for each flow.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::control::api::Clients;

/// Bits of an IPv4 prefix: the longest that is routed on the internet.
const IPV4_BITS: u8 = 24;
/// Bits of an IPv6 prefix: what one site is commonly given (RFC 6177 §2). Few enough for a [`Key`].
const IPV6_BITS: u8 = 56;

/// A prefix: its bits as a number; above those, that they are of IPv6. Eight bytes, for in a flood
/// each flow may have a prefix of its own.
type Key = u64;
const IS_IPV6: Key = 1 << 63;

/// Counts clients. It keeps 8 bytes for each: what the flow table itself has for its flow, without
/// the record.
#[derive(Default)]
pub(super) struct Tally {
    seen: Vec<Key>,
}

impl Tally {
    /// One flow more of this client.
    pub fn see(&mut self, client: IpAddr) {
        self.seen.push(key(client));
    }

    /// So many prefixes at most, those with the most flows first, and then by their addresses.
    pub fn most(mut self, limit: usize) -> Most {
        self.seen.sort_unstable();
        let mut prefixes = 0;
        // The last in the order is on top, and gives way.
        let mut kept = BinaryHeap::new();
        for alike in self.seen.chunk_by(|a, b| a == b) {
            prefixes += 1;
            kept.push((Reverse(alike.len() as u64), alike[0]));
            if kept.len() > limit {
                kept.pop();
            }
        }
        let kept = kept.into_sorted_vec().into_iter();
        let listed: Vec<_> = kept.map(|(Reverse(flows), key)| (key, flows)).collect();
        let sources = listed.iter().map(|(key, _)| (*key, Source::Unseen)).collect();
        Most { prefixes, listed, sources }
    }
}

/// The prefixes with the most flows, before and after the second look.
#[derive(Default)]
pub(super) struct Most {
    /// How many there are in all.
    prefixes: u64,
    /// With their flows, in order.
    listed: Vec<(Key, u64)>,
    /// Where the flows of each come from.
    sources: BTreeMap<Key, Source>,
}

/// Where the flows of a prefix come from, as far as the second look has come.
#[derive(Clone, Copy)]
enum Source {
    Unseen,
    One(IpAddr),
    Several,
}

impl Source {
    /// One flow more, of this client.
    fn next(self, client: IpAddr) -> Self {
        match self {
            Self::Unseen => Self::One(client),
            Self::One(known) if known == client => self,
            Self::One(_) | Self::Several => Self::Several,
        }
    }
}

impl Most {
    /// Whether there is nothing to look at again.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// One flow more of this client, at the second look.
    pub fn see(&mut self, client: IpAddr) {
        if let Some(source) = self.sources.get_mut(&key(client)) {
            *source = source.next(client);
        }
    }

    /// How many prefixes there are; and those listed with their flows, as an address where all come
    /// from it. Flows that came or went between the looks may make one client of several, and
    /// several of one.
    pub fn told(self) -> (u64, Vec<(Clients, u64)>) {
        let Self { prefixes, listed, sources } = self;
        let clients = |key: Key| match sources.get(&key) {
            Some(Source::One(address)) => Clients::from(*address),
            _ => Clients::from(prefix(key)),
        };
        (prefixes, listed.into_iter().map(|(key, flows)| (clients(key), flows)).collect())
    }
}

fn key(client: IpAddr) -> Key {
    match client {
        IpAddr::V4(address) => (address.to_bits() >> (32 - IPV4_BITS)).into(),
        IpAddr::V6(address) => (address.to_bits() >> (128 - IPV6_BITS)) as Key | IS_IPV6,
    }
}

fn prefix(key: Key) -> IpNet {
    match key & IS_IPV6 {
        0 => Ipv4Net::new_assert(((key as u32) << (32 - IPV4_BITS)).into(), IPV4_BITS).into(),
        _ => {
            let bits = u128::from(key & !IS_IPV6) << (128 - IPV6_BITS);
            Ipv6Net::new_assert(bits.into(), IPV6_BITS).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(clients: &[&str], limit: usize) -> (u64, Vec<(String, u64)>) {
        let clients = clients.iter().map(|client| client.parse().expect("an address"));
        let mut tally = Tally::default();
        clients.clone().for_each(|client| tally.see(client));
        let mut most = tally.most(limit);
        clients.for_each(|client| most.see(client));
        let (prefixes, told) = most.told();
        (prefixes, told.into_iter().map(|(clients, flows)| (clients.to_string(), flows)).collect())
    }

    #[test]
    fn who_has_the_most_flows_comes_first() {
        let clients = [
            "2001:db8:7:ff::1",
            "198.51.100.7",
            "192.0.2.1",
            "2001:db8:7:100::1",
            "198.51.100.255",
            "255.255.255.255",
            "2001:db8:7::1",
            "198.51.100.7",
            "::",
            "0.0.0.0",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ];
        let (prefixes, all) = told(&clients, 100);
        let all: Vec<(&str, u64)> = all.iter().map(|(prefix, flows)| (&**prefix, *flows)).collect();
        assert_eq!(
            all,
            [
                ("198.51.100.0/24", 3),
                ("2001:db8:7::/56", 2),
                ("0.0.0.0", 1),
                ("192.0.2.1", 1),
                ("255.255.255.255", 1),
                ("::", 1),
                ("2001:db8:7:100::1", 1),
                ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1),
            ]
        );
        assert_eq!(prefixes, 8);
        let (prefixes, most) = told(&clients, 2);
        assert_eq!((prefixes, most.len(), &*most[1].0), (8, 2, "2001:db8:7::/56"));
        assert_eq!(told(&clients, 0), (8, vec![]));
        assert_eq!(told(&[], 5), (0, vec![]));
    }

    #[test]
    fn who_is_alone_in_a_prefix_is_named() {
        let [abuser, neighbour, user] = ["198.51.100.7", "198.51.100.8", "192.0.2.1"];
        let (abuser6, neighbour6) = ("2001:db8:7::1", "2001:db8:7:ff::1");
        for (clients, expected) in [
            (vec![abuser, user, abuser, abuser], (abuser, 3)),
            (vec![abuser, abuser, neighbour], ("198.51.100.0/24", 3)),
            // Different again after it was alike.
            (vec![abuser, neighbour, abuser], ("198.51.100.0/24", 3)),
            (vec![abuser6, user, abuser6], (abuser6, 2)),
            (vec![abuser6, neighbour6], ("2001:db8:7::/56", 2)),
        ] {
            let (_, most) = told(&clients, 1);
            assert_eq!(most, [(expected.0.to_owned(), expected.1)], "{clients:?}");
        }
    }

    #[test]
    fn who_was_gone_at_the_second_look_is_told_by_prefix() {
        let mut tally = Tally::default();
        tally.see([198, 51, 100, 7].into());
        let (prefixes, told) = tally.most(1).told();
        assert_eq!((prefixes, told[0].0.to_string(), told[0].1), (1, "198.51.100.0/24".into(), 1));
    }
}
