//! From any wish to any other.

use proptest::prelude::*;

use super::*;

fn any_wanted() -> impl Strategy<Value = Vec<WantedService>> {
    let backends = || {
        prop::collection::btree_map(
            1u8..6,
            (0u16..3, prop::option::weighted(0.8, (1u8..4, 1u32..4))),
            0..5,
        )
    };
    let one = || {
        (prop::sample::select(vec![13u32, 251]), any::<[bool; 2]>(), backends()).prop_map(
            |(slots, [ipip, listed], backends)| {
                let mut wanted = service(0, &[]);
                wanted.slots = slots;
                wanted.listed = listed;
                wanted.forwarding = if ipip { Forwarding::Ipip } else { Forwarding::L2 };
                wanted.backends = backends
                    .into_iter()
                    .map(|(number, (weight, way))| WantedBackend {
                        weight,
                        next_hop: way.map(|(mac, ifindex)| {
                            let mut hop = hop(mac);
                            hop.egress.ifindex = ifindex;
                            hop
                        }),
                        ..backend(number)
                    })
                    .collect();
                wanted
            },
        )
    };
    prop::collection::btree_map(1u8..5, one(), 0..4).prop_map(|services| {
        services
            .into_iter()
            .map(|(number, wanted)| WantedService { key: vip(number), ..wanted })
            .collect()
    })
}

proptest! {
    /// From anywhere to anywhere: no packet meets a half-made service (`World::check`), the
    /// maps hold what is wanted, and there is nothing left to do.
    #[test]
    fn every_way_between_two_wishes_is_safe_and_ends(
        wishes in prop::collection::vec((any_wanted(), any::<u16>(), 0u8..4), 1..8),
    ) {
        let mut world = World::default();
        for (wanted, idle, source) in wishes {
            // One of them is a VIP's address as well.
            world.probe_sources = [IpAddr::from([203, 0, 113, source])].into();
            world.reach_with(&wanted, |index| idle >> (index % 16) & 1 == 1);
            prop_assert_eq!(world.reach(&wanted), []);

            let listed: BTreeSet<[u8; 4]> = world
                .image
                .services
                .values()
                .filter(|image| image.listed)
                .map(|image| image.service.address.low())
                .collect();
            let may_be_found = wanted.iter().filter(|service| service.listed);
            let keys = may_be_found.map(|service| service.key.address.low()).collect();
            prop_assert_eq!(listed, keys);
            for service in &wanted {
                let expected: Vec<u8> =
                    service.backends.iter().filter(|b| b.weight > 0).map(number_of).collect();
                let [.., number] = service.key.address.low();
                prop_assert_eq!(world.members(number), expected);
            }
            let vips: BTreeSet<IpAddr> =
                world.image.services.values().map(|s| s.service.address.into()).collect();
            let both = Filter::of(vips.union(&world.probe_sources), &BTreeSet::new());
            prop_assert_eq!(world.image.filter.as_ref(), Some(&both));
            prop_assert_eq!(&world.image.probe_sources, &world.probe_sources);
            prop_assert_eq!(&world.image.vips, &vips);
        }
        // When all is unwanted and idle, nothing stays.
        world.reach_with(&[], |_| true);
        world.reach_with(&[], |_| true);
        prop_assert!(world.image.services.is_empty() && world.image.backends.is_empty());
        prop_assert!(world.image.vips.is_empty());
    }
}

fn number_of(backend: &WantedBackend) -> u8 {
    backend.address.low()[3]
}
