//! Flows counted by their clients' prefixes. Pure.

use std::{cmp::Reverse, collections::BinaryHeap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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

    /// How many prefixes there are; and so many of them at most with their flows, those with the
    /// most first, and then by their addresses.
    pub fn most(mut self, limit: usize) -> (u64, Vec<(IpNet, u64)>) {
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
        (prefixes, kept.map(|(Reverse(flows), key)| (prefix(key), flows)).collect())
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
        let mut tally = Tally::default();
        for client in clients {
            tally.see(client.parse().expect("an address"));
        }
        let (prefixes, most) = tally.most(limit);
        (prefixes, most.into_iter().map(|(prefix, flows)| (prefix.to_string(), flows)).collect())
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
                ("0.0.0.0/24", 1),
                ("192.0.2.0/24", 1),
                ("255.255.255.0/24", 1),
                ("::/56", 1),
                ("2001:db8:7:100::/56", 1),
                ("ffff:ffff:ffff:ff00::/56", 1),
            ]
        );
        assert_eq!(prefixes, 8);
        let (prefixes, most) = told(&clients, 2);
        assert_eq!((prefixes, most.len(), &*most[1].0), (8, 2, "2001:db8:7::/56"));
        assert_eq!(told(&clients, 0), (8, vec![]));
        assert_eq!(told(&[], 5), (0, vec![]));
    }
}
