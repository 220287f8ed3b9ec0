//! States of both entries over a connection's life, and what is counted meanwhile.

use super::*;
use crate::counters::Traffic;

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
    let begin = [(Backend(SYN_ACK), "answered", "answered"), (Client(ACK), "old", "old")];
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
                (Backend(SYN_ACK), "answered", "answered"),
                (Backend(SYN_ACK), "answered", "answered"),
            ],
            &[NEW, HANDSHAKE],
        ),
        (
            "a SYN is sent again after its answer",
            &[
                (Backend(SYN_ACK), "answered", "answered"),
                (Client(SYN), "answered", "answered"),
                (Client(ACK), "old", "old"),
            ],
            &[NEW, HANDSHAKE, (Event::SynRetransmission, 1)],
        ),
        (
            "the first ACK is lost, what comes next is a FIN",
            &[
                (Backend(SYN_ACK), "answered", "answered"),
                (Client(FIN), "closing", "old"),
                (Backend(ACK), "closing", "old"),
            ],
            &[NEW, HANDSHAKE],
        ),
        (
            "the backend speaks and hangs up first",
            &[
                (Backend(SYN_ACK), "answered", "answered"),
                (Backend(FIN), "answered", "closing"),
                (Client(ACK), "old", "closing"),
                (Client(FIN), "time_wait", "time_wait"),
                (Backend(ACK), "time_wait", "time_wait"),
            ],
            &[NEW, HANDSHAKE],
        ),
        ("a refusal", &[(Backend(RST | ACK), "reset", "reset")], &[NEW, (Event::Refusal, 1)]),
        (
            "a client gives up",
            &[(Client(RST), "embryonic", "embryonic"), (Backend(SYN_ACK), "answered", "answered")],
            &[NEW, HANDSHAKE, (Event::ClientReset, 1)],
        ),
        (
            "a client gives up on an answer",
            &[(Backend(SYN_ACK), "answered", "answered"), (Client(RST), "embryonic", "embryonic")],
            &[NEW, HANDSHAKE, (Event::ClientReset, 1)],
        ),
        (
            "the port still rests at the backend",
            &[
                (Backend(ACK), "answered", "answered"),
                (Client(RST), "embryonic", "embryonic"),
                (Client(SYN), "embryonic", "embryonic"),
                (Backend(SYN_ACK), "answered", "answered"),
                (Client(ACK), "old", "old"),
            ],
            &[NEW, HANDSHAKE, (Event::ClientReset, 1), (Event::SynRetransmission, 1)],
        ),
        (
            "the return entry is evicted in the handshake",
            &[
                (Backend(SYN_ACK), "answered", "answered"),
                (ReturnLost, "answered", "free"),
                (Client(ACK), "old", "old"),
                (Backend(ACK), "old", "old"),
            ],
            &[NEW, HANDSHAKE],
        ),
        (
            "the return entry is evicted before the answer",
            &[
                (ReturnLost, "embryonic", "free"),
                (Client(SYN), "embryonic", "embryonic"),
                (Backend(SYN_ACK), "answered", "answered"),
            ],
            &[NEW, HANDSHAKE, (Event::SynRetransmission, 1)],
        ),
        (
            "the client's entry is evicted before the answer",
            &[
                (ClientLost, "free", "embryonic"),
                (Backend(SYN_ACK), "answered", "answered"),
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
