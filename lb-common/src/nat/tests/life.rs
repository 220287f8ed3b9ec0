//! What belongs to no connection, begins anew, or has lost its backend.

use super::*;

#[test]
fn a_handshakes_time_is_the_backends() {
    let mut scene = Scene::new(Purpose::Nat, V4);
    let pair = scene.open(1);
    scene.tick += 3;
    scene.send(&pair.backend, SYN_ACK);
    scene.tick += 5;
    scene.send(&pair.client, ACK);
    let times = scene.tables.take_counted().handshakes[&scene.backend(0)];
    assert_eq!(times.jiffies, 3 << scene.tables.settings.tick_shift);
}

#[test]
fn what_belongs_to_no_connection_is_answered_or_dropped() {
    for purpose in Purpose::NAT {
        for family in FAMILIES {
            let scene = Scene::new(purpose, family);
            let client = scene.client(1);
            for flags in [ACK, FIN, SYN_ACK] {
                assert_eq!(scene.send(&client, flags), Said::Reset(Reason::NatNoMapping));
            }
            assert_eq!(scene.send(&client, RST), Said::Left(Reason::RstUnknown));
            assert_eq!(scene.entries(), 0);
        }
    }
}

#[test]
fn a_flow_that_was_silent_for_too_long_is_none() {
    for (steps, silence) in [(&[][..], 17), (&[(true, SYN_ACK), (false, ACK)], 222)] {
        let mut scene = Scene::new(Purpose::Nat, V4);
        let pair = scene.open(1);
        for &(home, flags) in steps {
            scene.send(if home { &pair.backend } else { &pair.client }, flags);
        }
        scene.tick += silence;
        assert_eq!(scene.send(&pair.client, ACK), Said::Reset(Reason::NatNoMapping));
        assert_eq!(scene.send(&pair.client, RST), Said::Left(Reason::RstUnknown));
        // And may begin anew.
        let again = scene.open(1);
        scene.goes_on(&again, true);
    }
}

#[test]
fn a_client_whose_entry_is_lost_is_reset() {
    let scene = Scene::new(Purpose::Nat, V4);
    let pair = scene.establish(1);
    scene.forget(&pair.client);
    assert_eq!(scene.send(&pair.client, ACK), Said::Reset(Reason::NatNoMapping));
    // It may begin anew, by another port: the old one is its backend's still.
    let again = scene.open(1);
    assert_ne!(again.backend.vip, pair.backend.vip);
    scene.goes_on(&again, true);
}

/// A SYN of a tuple that has had a connection.
#[test]
fn a_port_that_is_used_again_after_the_end_is_a_new_connection_at_once() {
    // How the connection before has ended, and by whom.
    let ends: [(&str, Segments); 4] = [
        ("both have closed", &[(false, FIN), (true, FIN), (false, ACK)]),
        ("the client has closed", &[(false, FIN)]),
        ("the client has hung up", &[(false, RST)]),
        ("the backend has hung up", &[(true, RST)]),
    ];
    for purpose in Purpose::NAT {
        for (name, end) in ends {
            let scene = Scene::new(purpose, V4);
            let before = scene.establish(1);
            for &(home, flags) in end {
                scene.send(if home { &before.backend } else { &before.client }, flags);
            }
            let again = scene
                .try_to_open(&before.client)
                .unwrap_or_else(|said| panic!("{name}, {purpose:?}: {said:?}"));
            if purpose == Purpose::NatKeep {
                assert_eq!(again.backend.vip, before.backend.vip);
                assert_eq!(scene.states(&again), ["embryonic"; 2], "{name}");
            } else {
                assert_ne!(again.backend.vip, before.backend.vip, "{name}: the port rests");
                // What is late of the one before does nothing to the new one.
                for flags in [ACK, FIN, RST] {
                    scene.send(&before.backend, flags);
                    assert_eq!(scene.states(&again), ["embryonic"; 2], "{name}, {flags:#04x}");
                }
            }
            scene.goes_on(&again, true);
            assert_eq!(scene.states(&again), ["old"; 2], "{name}");
        }
    }
}

#[test]
fn a_port_that_is_used_again_after_silence_is_a_new_connection() {
    for purpose in Purpose::NAT {
        let mut scene = Scene::new(purpose, V4);
        let before = scene.establish(1);
        scene.tick += u64::from(scene.tables.settings.reuse_ticks);
        scene.send(&before.client, SYN);
        assert_eq!(scene.states(&before), ["old"; 2], "{purpose:?}: it is forged, or late");
        scene.tick += 1;
        let again = scene.open(1);
        scene.goes_on(&again, true);
    }
}

#[test]
fn a_syn_sent_again_keeps_its_port_and_its_backend() {
    for purpose in Purpose::NAT {
        let mut scene = Scene::new(purpose, V4);
        let first = scene.open(1);
        scene.all_slots_to(1);
        for ticks in [0, 1, 16] {
            scene.tick += ticks;
            let again = scene.open(1);
            assert_eq!(again.backend.vip, first.backend.vip);
            assert_eq!(again.backend.client, first.backend.client);
        }
        assert_eq!(scene.entries(), 2);
    }
}

#[test]
fn a_second_try_has_a_mapping_of_its_own_and_the_first_has_none() {
    for purpose in Purpose::NAT {
        let mut scene = Scene::new(purpose, V4);
        let first = scene.open(1);
        scene.all_slots_to(1);
        scene.set_state(0, BackendState::Suspect);
        let second = scene.open(1);
        assert_eq!(
            (first.backend.client, second.backend.client),
            (scene.server(0), scene.server(1))
        );
        assert_eq!(scene.entries(), 2, "{purpose:?}");
        let lost = if purpose == Purpose::NatKeep { Reason::NotVip } else { Reason::NatNoReturn };
        assert_eq!(scene.send(&first.backend, SYN_ACK), Said::Left(lost));
        scene.goes_on(&second, true);
        let first: BTreeSet<_> = scene.events(0).into_iter().collect();
        assert_eq!(
            first,
            [("new_flows", 1), ("second_tries", 1), ("syn_retransmissions", 1)].into()
        );
        assert_eq!(scene.events(1), [("handshakes", 1), ("new_flows", 1)]);
    }
}

#[test]
fn when_a_backend_is_gone_both_ends_are_told() {
    for purpose in Purpose::NAT {
        for family in FAMILIES {
            let mut scene = Scene::new(purpose, family);
            let pair = scene.establish(1);
            scene.set_state(0, BackendState::Reset);
            assert_eq!(scene.send(&pair.client, ACK), Said::Reset(Reason::BackendGone));
            assert_eq!(scene.send(&pair.backend, ACK), Said::Reset(Reason::BackendGone));
            assert_eq!(scene.entries(), 0, "{purpose:?}");
            assert_eq!(scene.tables.counted().event(scene.backend(0), Event::Reset), 1);
            let said = scene.send(&pair.client, SYN);
            assert_eq!(said, Said::Reset(Reason::NoBackend), "{purpose:?}");
        }
    }
}

#[test]
fn a_gone_backends_clients_begin_anew_at_another() {
    let mut scene = Scene::new(Purpose::Nat, V4);
    let pair = scene.establish(1);
    scene.set_state(0, BackendState::Reset);
    scene.all_slots_to(1);
    let again = scene.try_to_open(&pair.client).expect("a SYN chooses anew");
    assert_eq!(again.backend.client, scene.server(1));
    scene.goes_on(&again, true);
}

#[test]
fn when_a_backend_was_removed_nothing_of_it_is_translated() {
    for (purpose, lost) in [(Purpose::Nat, Reason::NatNoReturn), (Purpose::NatKeep, Reason::NotVip)]
    {
        let mut scene = Scene::new(purpose, V4);
        let pair = scene.establish(1);
        scene.set_state(0, BackendState::Absent);
        assert_eq!(scene.send(&pair.backend, ACK), Said::Left(lost));
        assert_eq!(scene.send(&pair.client, ACK), Said::Reset(Reason::NoBackend));
    }
}

/// A service that was forwarded otherwise when the flow began.
#[test]
fn a_flow_that_has_no_port_is_not_translated() {
    let mut scene = Scene::new(Purpose::Nat, V4);
    let index = usize::from(scene.backend(0));
    let nat = scene.tables.backends[index].forwarding;
    scene.tables.backends[index].forwarding = Forwarding::L2 as u8;
    let client = scene.client(1);
    scene.send(&client, SYN);
    scene.send(&client, ACK);
    scene.tables.backends[index].forwarding = nat;
    // In the same tick its entry is settled, in the next not.
    assert_eq!(scene.send(&client, ACK), Said::Left(Reason::NatNoMapping));
    scene.tick += 1;
    assert_eq!(scene.send(&client, ACK), Said::Reset(Reason::NatNoMapping));
}
