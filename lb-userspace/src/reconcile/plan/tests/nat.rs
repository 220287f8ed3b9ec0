//! Services whose packets are translated.

use super::*;

/// A service whose packets are translated, to these addresses, or to those that this host has.
fn nat(number: u8, backends: &[u8], by: &[[u8; 4]]) -> WantedService {
    let by = by.iter().map(|ip| IpAddr::from(*ip)).collect();
    WantedService {
        forwarding: Forwarding::Nat,
        client_address: ClientAddress::Replaced { by },
        ..service(number, backends)
    }
}

#[test]
fn what_is_translated_comes_back_through_the_filter() {
    let mut world = World::default();
    let writes = world.reach(&[nat(10, &[1, 2], &[])]);
    let expected = [
        "clear counters",
        "clear counters",
        "NAT address",
        "egress",
        "backend",
        "backend",
        "service",
        "slots",
        "list",
        "add VIP",
        "add NAT end",
        "add NAT end",
        "add NAT end",
        "filter",
    ];
    let mut seen = names(&writes);
    seen.sort_by_key(|name| expected.iter().position(|it| it == name));
    assert_eq!(seen, expected);
    let source = IpAddr::from([198, 18, 0, 254]);
    assert_eq!(world.image.nat_addresses, BTreeMap::from([(1, source)]));
    assert_eq!(world.image.egresses[&1].nat_address, 1);
    let [a, b] = [1, 2].map(|n| SocketAddr::from(([198, 18, 0, n], 80)));
    assert_eq!(world.image.nat_ends, [SocketAddr::new(source, 0), a, b].into());
    // The host's own address is no VIP, and stays the host's.
    assert_eq!(world.image.vips, [IpAddr::from([203, 0, 113, 10])].into());
    // Another that is not translated, with the same way out, has nothing to do with it.
    world.reach(&[nat(10, &[1, 2], &[]), service(11, &[1])]);
    assert_eq!(world.image.egresses[&2].nat_address, 0);
}

#[test]
fn named_addresses_follow_each_other_and_stay_until_their_last_flow() {
    let mut world = World::default();
    let [a, b, c] = [[198, 18, 0, 101], [198, 18, 0, 102], [198, 18, 0, 103]];
    world.reach(&[nat(10, &[1], &[a, b]), nat(11, &[1], &[b, c])]);
    let record = |world: &World, index| {
        let Service { nat_first, nat_count, .. } = world.image.services[&index].service;
        (nat_first, nat_count)
    };
    assert_eq!((record(&world, 0), record(&world, 1)), ((1, 2), (3, 2)));
    let numbers: Vec<_> = world.image.nat_addresses.values().copied().collect();
    assert_eq!(numbers, [a, b, b, c].map(IpAddr::from));
    assert!(world.image.vips.contains(&a.into()));
    // The same once more, and fewer.
    world.reach(&[nat(10, &[1], &[b, c]), nat(11, &[1], &[b, c])]);
    assert_eq!((record(&world, 0), record(&world, 1)), ((3, 2), (3, 2)));
    assert!(world.image.vips.contains(&a.into()), "flows are still translated to it");
    world.reach_with(&[nat(10, &[1], &[b, c])], |_| true);
    assert!(!world.image.vips.contains(&a.into()));
    assert_eq!(world.image.nat_addresses.len(), 4);
}

#[test]
fn backends_that_see_their_clients_are_told_by_their_source() {
    let mut world = World::default();
    let keep = WantedService { client_address: ClientAddress::Kept, ..nat(10, &[1], &[]) };
    world.reach(std::slice::from_ref(&keep));
    assert_eq!(world.image.services[&0].service.nat_first, KEEP_CLIENT);
    assert!(world.image.filter.as_ref().is_some_and(|filter| filter.sources));
    assert!(world.image.nat_addresses.is_empty() && world.image.nat_ends.is_empty());
    world.reach(&[service(10, &[1])]);
    assert!(world.image.filter.as_ref().is_some_and(|filter| !filter.sources));
}
