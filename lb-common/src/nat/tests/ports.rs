//! Source ports: which, whose, and what when there are none left.

use super::*;
use crate::{
    abi::KEEP_CLIENT,
    host::{Random, sample::nat_address},
};

/// Opens flows until one is refused, and a few more, which may find what that has not; what each
/// backend's answers come back to.
fn exhaust(scene: &Scene, from: u16) -> Vec<Pair> {
    let pairs: Vec<Pair> =
        (from..from + 400).filter_map(|n| scene.try_to_open(&scene.client(n)).ok()).collect();
    let ends: BTreeSet<SocketAddr> = pairs.iter().map(|pair| pair.backend.vip).collect();
    assert_eq!(ends.len(), pairs.len(), "two have the same port");
    pairs
}

fn ports(pairs: &[Pair]) -> Vec<u16> {
    let mut ports: Vec<u16> = pairs.iter().map(|pair| pair.backend.vip.port()).collect();
    ports.sort_unstable();
    ports
}

#[test]
fn a_port_is_one_of_the_range_and_an_address_one_of_the_services() {
    for family in FAMILIES {
        let own = sample::prober(0, family).ip();
        let two = [nat_address(0, family), nat_address(1, family)];
        for purpose in [Purpose::Nat, Purpose::NatAddresses] {
            let expected = if purpose == Purpose::Nat { vec![own] } else { two.to_vec() };
            let scene = Scene::with_flows(purpose, family, 1 << 13);
            let mut ports = BTreeSet::new();
            let mut addresses = BTreeSet::new();
            for number in 0..1000 {
                let seen = scene.open(number).backend.vip;
                assert!((1024..1024 + 31_744).contains(&seen.port()), "{seen}");
                ports.insert(seen.port());
                addresses.insert(seen.ip());
            }
            assert_eq!(addresses, expected.into_iter().collect());
            // Of 1000 random ones of 31,744, some 15 come twice.
            assert!(ports.len() > 950, "{} ports", ports.len());
            assert!(ports.iter().zip(ports.iter().skip(1)).any(|(a, b)| b - a > 100));
        }
        let scene = Scene::new(Purpose::NatKeep, family);
        let client = scene.client(7);
        assert_eq!(scene.open(7).backend.vip, client.client);
    }
}

#[test]
fn every_port_is_used_once_and_then_new_flows_are_refused() {
    let scene = Scene::with_ports(Purpose::Nat, 16);
    let pairs = exhaust(&scene, 0);
    assert_eq!(ports(&pairs), (1024..1040).collect::<Vec<_>>());
    let counted = scene.tables.counted();
    assert_eq!(counted.reason(Reason::NatPortsExhausted), 400 - 16);
    assert_eq!(counted.event(scene.backend(0), Event::NewFlow), 16);
    assert_eq!(scene.entries(), 32, "who was refused has left nothing");
    // Not of another backend: there every port is free.
    for pair in &pairs {
        scene.goes_on(pair, true);
    }
    let mut scene = scene;
    scene.all_slots_to(1);
    assert_eq!(ports(&exhaust(&scene, 500)), (1024..1040).collect::<Vec<_>>());
}

#[test]
fn every_port_of_every_address_is_used_once() {
    let scene = Scene::with_ports(Purpose::NatAddresses, 16);
    let pairs = exhaust(&scene, 0);
    assert_eq!(pairs.len(), 32, "two addresses of 16 ports");
    for pair in &pairs {
        scene.goes_on(pair, true);
    }
}

#[test]
fn a_range_to_the_last_port_does_not_wrap() {
    let mut scene = Scene::with_ports(Purpose::Nat, 16);
    scene.tables.settings.nat_port_first = 65_520;
    assert_eq!(ports(&exhaust(&scene, 0)), (65_520..=65_535).collect::<Vec<_>>());
}

#[test]
fn without_ports_or_an_address_nothing_is_opened() {
    let mut none = Scene::with_ports(Purpose::Nat, 0);
    assert_eq!(none.send(&none.client(1), SYN), Said::Reset(Reason::NatPortsExhausted));
    none.tables.settings.nat_port_count = 16;
    for egress in &mut none.tables.egresses {
        egress.nat_address = 0;
    }
    assert_eq!(none.send(&none.client(1), SYN), Said::Reset(Reason::NatPortsExhausted));
    assert_eq!(none.entries(), 0);
}

/// What an established connection ends by, and whether its port is given to others at once when
/// there is no other.
#[test]
fn a_port_is_given_up_when_its_connection_has_ended_and_no_sooner() {
    let ends: [(&str, Segments, bool); 6] = [
        ("not at all", &[], false),
        ("the client has closed", &[(false, FIN)], false),
        ("the backend has closed", &[(true, FIN)], false),
        ("both have closed", &[(false, FIN), (true, FIN)], true),
        ("the client has hung up", &[(false, RST)], true),
        ("the backend has hung up", &[(true, RST)], true),
    ];
    for (name, end, given_up) in ends {
        let scene = Scene::with_ports(Purpose::Nat, 1);
        let first = scene.establish(1);
        for &(home, flags) in end {
            scene.send(if home { &first.backend } else { &first.client }, flags);
        }
        match scene.try_to_open(&scene.client(2)) {
            Ok(second) => {
                assert!(given_up, "{name}");
                assert_eq!(second.backend.vip, first.backend.vip, "{name}");
                scene.goes_on(&second, true);
            }
            Err(said) => {
                assert_eq!(
                    (said, given_up),
                    (Said::Reset(Reason::NatPortsExhausted), false),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn a_resting_port_is_taken_last() {
    let scene = Scene::with_ports(Purpose::Nat, 8);
    let first = scene.establish(0);
    for (sent, flags) in [(&first.client, FIN), (&first.backend, FIN)] {
        scene.send(sent, flags);
    }
    let others = (1..8).map(|n| scene.open(n).backend.vip).collect::<BTreeSet<_>>();
    assert_eq!(others.len(), 7);
    assert!(!others.contains(&first.backend.vip));
    assert_eq!(scene.open(8).backend.vip, first.backend.vip);
}

#[test]
fn a_flow_that_never_began_gives_its_port_up_in_the_next_tick() {
    for answered in [false, true] {
        let mut scene = Scene::with_ports(Purpose::Nat, 1);
        let first = scene.open(1);
        if answered {
            scene.send(&first.backend, SYN_ACK);
        }
        assert_eq!(scene.send(&scene.client(2), SYN), Said::Reset(Reason::NatPortsExhausted));
        scene.tick += 1;
        let second = scene.open(2);
        assert_eq!(second.backend.vip, first.backend.vip);
        scene.goes_on(&second, true);
    }
}

/// Whoever had a port before has no part in the connection that has it now.
#[test]
fn who_has_lost_its_port_does_nothing_to_who_has_it() {
    let ends: [(&str, Segments, u64); 5] = [
        ("both had closed", &[(true, SYN_ACK), (false, ACK), (false, FIN), (true, FIN)], 0),
        ("the client had hung up", &[(true, SYN_ACK), (false, ACK), (false, RST)], 0),
        ("never answered", &[], 1),
        ("answered, never acknowledged", &[(true, SYN_ACK)], 1),
        // The client may be silent for longer.
        ("the backend had closed", &[(true, SYN_ACK), (false, ACK), (true, FIN)], 5),
    ];
    for (name, life, silence) in ends {
        for flags in [ACK, FIN, RST, SYN] {
            let mut scene = Scene::with_ports(Purpose::Nat, 1);
            let first = scene.open(1);
            for &(home, flags) in life {
                scene.send(if home { &first.backend } else { &first.client }, flags);
            }
            scene.tick += silence;
            let second = scene.open(2);
            scene.goes_on(&second, true);
            let said = scene.send(&first.client, flags);
            assert!(!matches!(said, Said::Through { .. }), "{name}, {flags:#04x}: {said:?}");
            assert_eq!(scene.states(&second), ["old"; 2], "{name}, {flags:#04x}");
            scene.goes_on(&second, true);
        }
    }
}

#[test]
fn a_syn_sent_again_whose_port_is_lost_gets_another() {
    let mut scene = Scene::with_ports(Purpose::Nat, 1);
    let first = scene.open(1);
    scene.tick += 1;
    scene.establish(2);
    scene.tables.settings.nat_port_count = 2;
    let again = scene.open(1);
    assert_ne!(again.backend.vip, first.backend.vip);
    scene.goes_on(&again, true);
}

/// Two services of one server, and a client that goes to both by the same port.
#[test]
fn of_two_vips_over_one_client_tuple_only_one_can_keep_it() {
    let mut scene = Scene::new(Purpose::NatKeep, V4);
    let index = usize::from(sample::backend(Purpose::Nat, V4, 0));
    let other = sample::service(Purpose::Nat, V4);
    scene.tables.services[usize::from(other)].service.nat_first = KEEP_CLIENT;
    scene.tables.services[usize::from(other)].slots.fill(index as u16);
    scene.tables.backends[index].address = scene.server(0).ip().into();
    let first = scene.establish(1);
    let sent = ClientFrame { client: first.client.client, ..ClientFrame::new(Purpose::Nat, V4, 1) };
    assert_eq!(scene.send(&sent, SYN), Said::Reset(Reason::NatPortsExhausted));
    scene.goes_on(&first, true);
    // When the first has ended, the second may have it.
    for (sent, flags) in [(&first.client, FIN), (&first.backend, FIN)] {
        scene.send(sent, flags);
    }
    let second = scene.try_to_open(&sent).expect("it is free");
    scene.goes_on(&second, true);
    for flags in [ACK, FIN, RST] {
        let said = scene.send(&first.client, flags);
        assert!(!matches!(said, Said::Through { .. }), "{said:?}");
        scene.goes_on(&second, true);
    }
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_others() {
    let mut scene = Scene::with_flows(Purpose::Nat, V4, GROUP);
    let tick = flow::tick_of(&scene.tables.settings, scene.now());
    let pair = scene.establish(1);
    for (number, word) in (1..).zip(scene.tables.flow_words()) {
        if word.load(Ordering::Relaxed) == 0 {
            let old = Entry::new(number << 40, scene.backend(1), tick, State::Old);
            word.store(old.0, Ordering::Relaxed);
        }
    }
    let before = scene.words();
    for number in 10..60 {
        let said = scene.send(&scene.client(number), SYN);
        // No room for a return entry looks like no port.
        assert_eq!(said, Said::Reset(Reason::NatPortsExhausted));
    }
    // Room for one, and one is needed for each direction.
    let last = (0..GROUP).rev().find(|&index| {
        ![&pair.client, &pair.backend].map(|sent| scene.position(sent)).contains(&index)
    });
    scene.tables.flow_words()[last.expect("a group has more")].store(0, Ordering::Relaxed);
    let refused = (10..60).filter(|&number| {
        matches!(scene.send(&scene.client(number), SYN), Said::Reset(Reason::NatTableFull))
    });
    assert_eq!(refused.count(), 50);
    scene.tick += 1;
    scene.goes_on(&pair, true);
    assert_eq!(scene.words().len(), before.len());
}

#[test]
fn a_flood_of_syns_evicts_no_established_connection() {
    let mut scene = Scene::with_flows(Purpose::Nat, V4, 256);
    // A quarter of the table.
    let pairs: Vec<Pair> = (0..32).map(|number| scene.establish(number)).collect();
    let mut random = Random(5);
    for _ in 0..20 {
        scene.tick += 1;
        for _ in 0..2_000 {
            let mut client = scene.client(random.word() as u16 | 1 << 15);
            client.client.set_port(random.word() as u16);
            scene.send(&client, SYN);
        }
        for pair in &pairs {
            scene.goes_on(pair, true);
            assert_eq!(scene.states(pair), ["old"; 2]);
        }
    }
    // And when it is over, new ones find room.
    scene.tick += 17;
    for number in 100..140 {
        let pair = scene.open(number);
        scene.goes_on(&pair, true);
    }
}

#[test]
fn nothing_is_left_of_connections_that_have_ended() {
    let mut scene = Scene::new(Purpose::Nat, V4);
    for number in 0..100 {
        let pair = scene.establish(number);
        let end: Segments = match number % 4 {
            0 => &[(false, FIN), (true, FIN), (false, ACK)],
            1 => &[(true, FIN), (false, FIN), (true, ACK)],
            2 => &[(false, RST)],
            _ => &[(true, RST)],
        };
        for &(home, flags) in end {
            scene.send(if home { &pair.backend } else { &pair.client }, flags);
        }
        assert!(scene.states(&pair).iter().all(|state| ["time_wait", "reset"].contains(state)));
    }
    scene.tick += 17;
    let tick = flow::tick_of(&scene.tables.settings, scene.now());
    for word in scene.words() {
        let entry = Entry(word);
        let settings = &scene.tables.settings;
        assert!(entry.state() == State::Free || entry.is_expired(tick, settings), "{entry:?}");
    }
}

/// A client that uses its port again at once (`tcp_tw_reuse`, few ephemeral ports) has the same hash
/// each time, and so the same row of ports: none of them may be the one that its backend has just
/// closed, and keeps in TIME-WAIT, while others are free.
#[test]
fn who_uses_a_client_port_again_and_again_gets_other_ports() {
    for family in FAMILIES {
        let scene = Scene::new(Purpose::Nat, family);
        let mut ports = BTreeSet::new();
        for round in 0..100 {
            let pair = scene.establish(7);
            for sent in [&pair.backend, &pair.client] {
                scene.send(sent, FIN);
            }
            assert_eq!(scene.states(&pair), ["time_wait", "time_wait"]);
            assert!(ports.insert(pair.backend.vip.port()), "{family:?}: again in round {round}");
        }
    }
}

/// In a full table a new entry takes the place of one that gives way: not of the flow's own other
/// half, while there is another group.
#[test]
fn a_flow_never_takes_the_place_of_its_own_other_half() {
    let scene = Scene::with_flows(Purpose::Nat, V4, 2 * GROUP);
    // Both groups full of flows that may be replaced.
    (0..500).for_each(|number| drop(scene.try_to_open(&scene.client(number))));
    assert_eq!(scene.entries(), 2 * GROUP);
    for number in 1000..1200 {
        let opened = scene.try_to_open(&scene.client(number));
        assert!(opened.is_ok(), "{number}: {opened:?}");
        scene.goes_on(&opened.expect("it is"), true);
        // Make room for the next: its entries are nobody's any more.
        let pair = scene.client(number);
        scene.send(&pair, RST);
    }
}
