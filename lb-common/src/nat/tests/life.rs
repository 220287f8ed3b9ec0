//! States of both entries over a connection's life, and what is counted meanwhile.

use super::*;
use crate::abi::Traffic;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// The client sends.
    Client(u8),
    /// The backend sends.
    Backend(u8),
    /// So many ticks pass.
    Wait(u64),
    /// The return entry is evicted.
    ReturnLost,
    /// The client's entry is evicted.
    ClientLost,
}

use Next::{Backend, Client, ClientLost, ReturnLost, Wait};

/// Begins with a SYN; then what happens next, and the states of both entries after it. Every
/// segment goes through. At last what was counted.
type Story = (&'static str, Vec<(Next, &'static str, &'static str)>, &'static [(Event, u64)]);

fn established(
    then: &[(Next, &'static str, &'static str)],
) -> Vec<(Next, &'static str, &'static str)> {
    let begin = [(Backend(SYN_ACK), "embryonic", "answered"), (Client(ACK), "old", "old")];
    begin.iter().chain(then).copied().collect()
}

fn stories() -> Vec<Story> {
    const NEW: (Event, u64) = (Event::NewFlow, 1);
    const HANDSHAKE: (Event, u64) = (Event::Handshake, 1);
    vec_of(&[
        (
            "a SYN, and no answer",
            &[(Client(SYN), "embryonic", "embryonic")][..],
            &[NEW, (Event::SynRetransmission, 1)],
        ),
        (
            "an ACK that answers nothing",
            &[(Client(ACK), "embryonic", "embryonic"), (Client(FIN), "embryonic", "embryonic")],
            &[NEW],
        ),
        (
            "a SYN-ACK is sent again",
            &[
                (Backend(SYN_ACK), "embryonic", "answered"),
                (Backend(SYN_ACK), "embryonic", "answered"),
            ],
            &[NEW, HANDSHAKE],
        ),
        (
            "a SYN is sent again after its answer",
            &[
                (Backend(SYN_ACK), "embryonic", "answered"),
                (Client(SYN), "embryonic", "answered"),
                (Client(ACK), "old", "old"),
            ],
            &[NEW, HANDSHAKE, (Event::SynRetransmission, 1)],
        ),
        (
            "the first ACK is lost, what comes next is a FIN",
            &[
                (Backend(SYN_ACK), "embryonic", "answered"),
                (Client(FIN), "closing", "old"),
                (Backend(ACK), "closing", "old"),
            ],
            &[NEW, HANDSHAKE],
        ),
        (
            "the backend speaks and hangs up first",
            &[
                (Backend(SYN_ACK), "embryonic", "answered"),
                (Backend(FIN), "embryonic", "closing"),
                (Client(ACK), "old", "closing"),
                (Client(FIN), "time_wait", "time_wait"),
                (Backend(ACK), "time_wait", "time_wait"),
            ],
            &[NEW, HANDSHAKE],
        ),
        ("a refusal", &[(Backend(RST | ACK), "reset", "reset")], &[NEW, (Event::Refusal, 1)]),
        (
            "a client gives up",
            &[(Client(RST), "embryonic", "embryonic"), (Backend(SYN_ACK), "embryonic", "answered")],
            &[NEW, HANDSHAKE, (Event::ClientReset, 1)],
        ),
        (
            "a client gives up on an answer",
            &[(Backend(SYN_ACK), "embryonic", "answered"), (Client(RST), "embryonic", "embryonic")],
            &[NEW, HANDSHAKE, (Event::ClientReset, 1)],
        ),
        (
            "the port still rests at the backend",
            &[
                (Backend(ACK), "embryonic", "answered"),
                (Client(RST), "embryonic", "embryonic"),
                (Client(SYN), "embryonic", "embryonic"),
                (Backend(SYN_ACK), "embryonic", "answered"),
                (Client(ACK), "old", "old"),
            ],
            &[NEW, HANDSHAKE, (Event::ClientReset, 1), (Event::SynRetransmission, 1)],
        ),
        (
            "the return entry is evicted in the handshake",
            &[
                (Backend(SYN_ACK), "embryonic", "answered"),
                (ReturnLost, "embryonic", "free"),
                (Client(ACK), "embryonic", "embryonic"),
                (Backend(ACK), "embryonic", "answered"),
                (Client(ACK), "old", "old"),
            ],
            &[NEW, HANDSHAKE],
        ),
        (
            "the return entry is evicted before the answer",
            &[
                (ReturnLost, "embryonic", "free"),
                (Client(SYN), "embryonic", "embryonic"),
                (Backend(SYN_ACK), "embryonic", "answered"),
            ],
            &[NEW, HANDSHAKE, (Event::SynRetransmission, 1)],
        ),
        (
            "the client's entry is evicted before the answer",
            &[
                (ClientLost, "free", "embryonic"),
                (Backend(SYN_ACK), "embryonic", "answered"),
                (Client(ACK), "old", "old"),
            ],
            &[NEW, HANDSHAKE],
        ),
        (
            "the client's entry is evicted before a refusal",
            &[(ClientLost, "free", "embryonic"), (Backend(RST | ACK), "free", "reset")],
            &[NEW, (Event::Refusal, 1)],
        ),
    ])
    .into_iter()
    .chain(
        [
            (
                "the client closes first",
                &[
                    (Client(ACK), "old", "old"),
                    (Backend(ACK), "old", "old"),
                    (Client(FIN), "closing", "old"),
                    (Backend(ACK), "closing", "old"),
                    (Client(ACK), "closing", "old"),
                    (Backend(FIN), "time_wait", "time_wait"),
                    (Client(ACK), "time_wait", "time_wait"),
                    (Wait(1), "time_wait", "time_wait"),
                    // The last ACK was lost.
                    (Backend(FIN), "time_wait", "time_wait"),
                    (Client(ACK), "time_wait", "time_wait"),
                ][..],
                &[][..],
            ),
            (
                "the backend closes first",
                &[
                    (Backend(FIN), "old", "closing"),
                    (Client(ACK), "old", "closing"),
                    (Wait(1), "old", "closing"),
                    (Client(ACK), "old", "closing"),
                    (Backend(ACK), "old", "closing"),
                    (Client(FIN), "time_wait", "time_wait"),
                    (Backend(ACK), "time_wait", "time_wait"),
                ],
                &[],
            ),
            (
                "both close at once",
                &[(Client(FIN), "closing", "old"), (Backend(FIN), "time_wait", "time_wait")],
                &[],
            ),
            (
                "a backend hangs up",
                &[(Backend(RST), "reset", "reset"), (Client(RST), "reset", "reset")],
                &[(Event::BackendReset, 1)],
            ),
            (
                "a backend hangs up in the middle of the end",
                &[(Client(FIN), "closing", "old"), (Backend(RST), "reset", "reset")],
                &[(Event::BackendReset, 1)],
            ),
            (
                "a client hangs up, and the backend has something under way",
                &[(Client(RST), "reset", "reset"), (Backend(ACK), "reset", "reset")],
                &[],
            ),
            (
                "a forged RST",
                &[
                    (Client(RST), "reset", "reset"),
                    (Client(ACK), "old", "old"),
                    (Backend(ACK), "old", "old"),
                ],
                &[],
            ),
            (
                "a forged RST, and the client closes",
                &[
                    (Client(RST), "reset", "reset"),
                    (Client(FIN), "reset", "reset"),
                    (Client(ACK), "old", "old"),
                    (Client(FIN), "closing", "old"),
                ],
                &[],
            ),
            ("a forged SYN", &[(Client(SYN), "old", "old"), (Backend(ACK), "old", "old")], &[]),
            (
                "silence",
                &[
                    (Wait(221), "old", "old"),
                    (Client(ACK), "old", "old"),
                    (Wait(221), "old", "old"),
                    (Backend(ACK), "old", "old"),
                ],
                &[],
            ),
            (
                "one side speaks, the other acknowledges, for long",
                &[
                    (Wait(200), "old", "old"),
                    (Client(ACK), "old", "old"),
                    (Backend(ACK), "old", "old"),
                    (Wait(200), "old", "old"),
                    (Client(ACK), "old", "old"),
                    (Backend(ACK), "old", "old"),
                ],
                &[],
            ),
            (
                "the return entry is evicted",
                &[
                    (ReturnLost, "old", "free"),
                    (Wait(1), "old", "free"),
                    (Client(ACK), "old", "old"),
                    (Backend(ACK), "old", "old"),
                ],
                &[],
            ),
            (
                "the client's entry is evicted",
                &[
                    (ClientLost, "free", "old"),
                    (Wait(1), "free", "old"),
                    (Backend(ACK), "old", "old"),
                    (Client(ACK), "old", "old"),
                ],
                &[],
            ),
        ]
        .into_iter()
        .map(|(name, then, events)| {
            let events: Vec<_> = [NEW, HANDSHAKE].iter().chain(events).copied().collect();
            (name, established(then), &*events.leak())
        }),
    )
    .collect()
}

type Short = (&'static str, &'static [(Next, &'static str, &'static str)], &'static [(Event, u64)]);

fn vec_of(stories: &[Short]) -> Vec<Story> {
    stories.iter().map(|(name, next, events)| (*name, next.to_vec(), *events)).collect()
}

#[test]
fn both_entries_follow_a_connection_through_its_life() {
    for purpose in Purpose::NAT {
        for family in FAMILIES {
            for (story, next, events) in stories() {
                tell(Scene::new(purpose, family), &format!("{story}, {purpose:?}"), &next, events);
            }
        }
    }
}

fn tell(mut scene: Scene, story: &str, next: &[(Next, &str, &str)], events: &[(Event, u64)]) {
    let pair = scene.open(1);
    assert_eq!(scene.states(&pair), ["embryonic"; 2], "{story}");
    let mut sent = Traffic { packets: 1, ..Traffic::default() };
    for (step, &(next, client, back)) in next.iter().enumerate() {
        let said = match next {
            Client(flags) => {
                sent.packets += 1;
                let to = Said::Through { from: pair.backend.vip, to: pair.backend.client };
                Some((scene.send(&pair.client, flags), to))
            }
            Backend(flags) => {
                sent.return_packets += 1;
                let to = Said::Through { from: pair.client.vip, to: pair.client.client };
                Some((scene.send(&pair.backend, flags), to))
            }
            Wait(ticks) => {
                scene.tick += ticks;
                None
            }
            ReturnLost => {
                scene.forget(&pair.backend);
                None
            }
            ClientLost => {
                scene.forget(&pair.client);
                None
            }
        };
        if let Some((said, expected)) = said {
            assert_eq!(said, expected, "{story}: step {step}, {next:?}");
        }
        assert_eq!(scene.states(&pair), [client, back], "{story}: step {step}, {next:?}");
    }
    let found: BTreeSet<_> = scene.events(0).into_iter().collect();
    let expected: BTreeSet<_> =
        events.iter().map(|(event, count)| (event.name(), *count)).collect();
    assert_eq!(found, expected, "{story}");
    let length = pair.client.frame().bytes.len() as u64;
    let traffic = Traffic {
        bytes: sent.packets * length,
        return_bytes: sent.return_packets * length,
        ..sent
    };
    assert_eq!(scene.tables.counted().traffic[&scene.backend(0)], traffic, "{story}");
}

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
