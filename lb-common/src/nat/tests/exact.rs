//! Nothing is ever delivered to who is not meant: forged packets, and flows that look alike.

use std::collections::BTreeMap;

use super::*;
use crate::{host::Random, parse::Ports, steer::Stages};

/// A backend's packet of an established flow, with one thing changed.
#[test]
fn a_forged_return_packet_reaches_nobody() {
    type Change = fn(&mut ClientFrame, &Scene);
    let changes: [(&str, Change, Reason, Reason); 6] = [
        (
            "to another port",
            |sent, _| {
                let port = sent.vip.port() ^ 1;
                sent.vip.set_port(port);
            },
            Reason::NatNoReturn,
            Reason::NotVip,
        ),
        (
            "to a port that is no NAT's",
            |sent, _| sent.vip.set_port(40_123),
            Reason::NotVip,
            Reason::NotVip,
        ),
        (
            "to another address",
            |sent, scene| {
                let other = sample::nat_address(1, scene.family);
                sent.vip.set_ip(if sent.vip.ip() == other {
                    sample::nat_address(0, scene.family)
                } else {
                    other
                });
            },
            Reason::NatNoReturn,
            // Of those only sources are known.
            Reason::NatNoReturn,
        ),
        (
            "from another backend",
            |sent, scene| sent.client = scene.server(1),
            Reason::NatNoReturn,
            Reason::NotVip,
        ),
        ("from another port", |sent, _| sent.client.set_port(8081), Reason::NotVip, Reason::NotVip),
        (
            "from a client",
            |sent, scene| sent.client = scene.client(9).client,
            Reason::NotVip,
            Reason::NotVip,
        ),
    ];
    for purpose in Purpose::NAT {
        for family in FAMILIES {
            for (name, change, translated, kept) in changes {
                let scene = Scene::new(purpose, family);
                let pair = scene.establish(1);
                let before = scene.words();
                let mut forged = pair.backend.clone();
                change(&mut forged, &scene);
                for flags in [SYN, SYN_ACK, ACK, FIN, RST] {
                    let reason = match purpose {
                        // Nobody keeps addresses there.
                        Purpose::NatKeep if name == "to another address" => Reason::NotVip,
                        Purpose::NatKeep => kept,
                        _ => translated,
                    };
                    let said = scene.send(&forged, flags);
                    assert_eq!(said, Said::Left(reason), "{name}, {purpose:?}, {flags:#04x}");
                }
                assert_eq!(scene.words(), before, "{name}, {purpose:?}");
                scene.goes_on(&pair, true);
            }
        }
    }
}

#[test]
fn a_backend_opens_no_connections_by_a_nat_address() {
    let scene = Scene::new(Purpose::Nat, V4);
    let mut sent = scene.client(1);
    sent.client = scene.server(0);
    sent.vip = SocketAddr::new(sample::prober(0, V4).ip(), 2000);
    assert_eq!(scene.send(&sent, SYN), Said::Left(Reason::NatNoReturn));
    // From its other ports it may well speak with this host.
    sent.client.set_port(50_001);
    assert_eq!(scene.send(&sent, SYN), Said::Left(Reason::NotVip));
    sent = ClientFrame { client: scene.server(0), ..sent };
    sent.vip.set_port(22);
    assert_eq!(scene.send(&sent, ACK), Said::Left(Reason::NotVip));
}

/// Client tuples of this service whose hashes have the same fingerprint. In a table of one group,
/// such are each other's.
fn alike(scene: &Scene) -> [ClientFrame; 2] {
    let keys = &scene.tables.settings.hash_keys;
    let mut seen = BTreeMap::new();
    for number in 0..16 {
        for port in 1..=u16::MAX {
            let SocketAddr::V4(client) = sample::client(V4, number, port) else { continue };
            let tuple = (
                Address::v4(client.ip().octets()),
                Ports { source: port.to_be_bytes(), destination: scene.vip().port().to_be_bytes() },
            );
            let vip = scene.vip().ip().into();
            let hash = hash::of_tuple(tuple.0, vip, tuple.1, V4, keys);
            if let Some((number, port)) = seen.insert(hash >> 28, (number, port)) {
                let with = |client| ClientFrame { client, ..scene.client(0) };
                return [with(sample::client(V4, number, port)), with(client.into())];
            }
        }
    }
    panic!("no two of 2^20 have the same 36 bits");
}

#[test]
fn of_two_flows_with_the_same_fingerprint_neither_gets_the_others_payload() {
    let mut scene = Scene::with_flows(Purpose::Nat, V4, GROUP);
    let [first, second] = alike(&scene);
    assert_ne!(first.client, second.client);
    let pair = scene.try_to_open(&first).expect("the table is empty");
    scene.goes_on(&pair, true);
    // In the same tick, where the entry is settled, and in the next.
    for _ in 0..2 {
        let before = scene.words();
        for flags in [SYN, ACK, FIN, RST] {
            let said = scene.send(&second, flags);
            let refused = match flags {
                RST => [Said::Left(Reason::RstUnknown), Said::Left(Reason::NatNoMapping)],
                _ => [Said::Reset(Reason::NatNoMapping), Said::Left(Reason::NatNoMapping)],
            };
            assert!(refused.contains(&said), "{flags:#04x}: {said:?}");
        }
        assert_eq!(scene.words(), before);
        scene.tick += 1;
    }
    scene.goes_on(&pair, true);
    assert_eq!(scene.tables.counted().event(scene.backend(0), Event::ClientReset), 0);
}

/// Writes the word of one flow with another's fingerprint where that is looked for, over a record
/// of the first: so it would be, were their hashes alike.
fn disguise(scene: &Scene, of: &ClientFrame, as_if: &ClientFrame) {
    let from = scene.position(of);
    let hash = hash::of_flow(&parsed(&as_if.frame()), &scene.tables.settings.hash_keys);
    let to = flow::group_index(hash, &scene.tables.settings) as usize * GROUP + 5;
    let entry = Entry(scene.words()[from]);
    let disguised = Entry::new(hash, entry.backend(), entry.tick(), entry.state());
    let disguised = if entry.is_return() { disguised.of_return() } else { disguised };
    scene.tables.flow_words()[to].store(disguised.0, Ordering::Relaxed);
    scene.tables.record_flow(to as u32, scene.tables.records()[&(from as u32)]);
    scene.tables.record_hop(
        to as u32,
        scene.tables.hops().get(&(from as u32)).copied().unwrap_or_default(),
    );
}

#[test]
fn a_fingerprint_alone_never_decides_in_either_direction() {
    for purpose in Purpose::NAT {
        for family in FAMILIES {
            let variants = [(false, false), (false, true), (true, false), (true, true)];
            for (home, other_address) in variants {
                let mut scene = Scene::new(purpose, family);
                let pair = scene.establish(1);
                let (real, mut like) = if home {
                    (pair.backend.clone(), pair.backend.clone())
                } else {
                    (pair.client.clone(), pair.client.clone())
                };
                if other_address {
                    let end = if home { &mut like.vip } else { &mut like.client };
                    let others = [0, 1].map(|number| sample::nat_address(number, family));
                    end.set_ip(others[usize::from(end.ip() == others[0])]);
                } else if home {
                    let port = like.vip.port() ^ 0x10;
                    like.vip.set_port(port);
                } else {
                    like.client.set_port(41_000);
                }
                disguise(&scene, &real, &like);
                for _ in 0..2 {
                    for flags in [ACK, FIN, RST, SYN] {
                        let said = scene.send(&like, flags);
                        let name =
                            format!("{purpose:?}, {home} {other_address}, {flags:#04x}: {said:?}");
                        assert!(!matches!(said, Said::Through { .. }), "{name}");
                        assert_eq!(scene.states(&pair), ["old"; 2], "{name}");
                    }
                    scene.tick += 1;
                }
                scene.goes_on(&pair, true);
            }
        }
    }
}

/// An entry is written in three steps; until the last nobody follows it.
#[test]
fn a_claim_is_followed_by_nobody() {
    let scene = Scene::new(Purpose::Nat, V4);
    let pair = scene.establish(1);
    for sent in [&pair.client, &pair.backend] {
        let position = scene.position(sent);
        let whole = Entry(scene.words()[position]);
        let claim = Entry::new(whole.0, 0, whole.tick(), State::Embryonic);
        scene.tables.flow_words()[position].store(claim.0, Ordering::Relaxed);
        for flags in [ACK, FIN, RST] {
            let said = scene.send(sent, flags);
            assert!(!matches!(said, Said::Through { .. }), "{flags:#04x}: {said:?}");
        }
        scene.tables.flow_words()[position].store(whole.0, Ordering::Relaxed);
        scene.goes_on(&pair, true);
    }
}

#[test]
fn what_comes_back_goes_where_its_client_last_came_from() {
    let mut scene = Scene::new(Purpose::Nat, V4);
    let pair = scene.establish(1);
    let macs_of_return = |scene: &Scene| {
        let mut frame = pair.backend.frame();
        let action = steer::process(&mut frame, &scene.tables, scene.now());
        let macs: String = frame.bytes[..12].iter().map(|byte| format!("{byte:02x}")).collect();
        (action, macs)
    };
    assert_eq!(macs_of_return(&scene), (Action::Transmit, "0200000000fe020000000001".into()));
    // Another router, on another interface, which is noticed in the next tick.
    scene.tick += 1;
    let mut frame = pair.client.frame();
    frame.bytes[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 0xfd]);
    frame.interface = sample::OTHER_INTERFACE;
    steer::process(&mut frame, &scene.tables, scene.now());
    let expected = (Action::Redirect(sample::OTHER_INTERFACE), "0200000000fd020000000002".into());
    assert_eq!(macs_of_return(&scene), expected);
}

/// Many clients, few ports, a small table, any segment at any time, entries evicted: what a client
/// sends goes by a port only while that is its own, and what comes back to a port goes only to whose
/// it is.
#[test]
fn whatever_happens_a_ports_packets_are_those_of_who_has_it() {
    for (seed, purpose) in (0u64..).zip(Purpose::NAT.into_iter().cycle().take(6)) {
        let mut random = Random(seed);
        let mut scene = Scene::with_flows(purpose, V4, 64);
        scene.tables.settings.nat_port_count = 8;
        // By the backend and what it sees, who has opened a connection that way, and its return
        // entry, as long as that is there.
        let mut owners: BTreeMap<(SocketAddr, SocketAddr), (SocketAddr, usize, Entry)> =
            BTreeMap::new();
        let (mut outward, mut homeward) = (0, 0);
        for step in 0..20_000 {
            let flags = *random.choose(&[SYN, SYN, ACK, ACK, ACK, FIN, RST]);
            match random.below(200) {
                0..6 => scene.tick += random.below(6) as u64,
                6 => scene.tick += 300,
                7 => scene.all_slots_to(random.below(3) as u16),
                8 => {
                    let state = *random.choose(&[BackendState::Suspect, BackendState::Forward]);
                    scene.set_state(random.below(3) as u16, state);
                }
                9..100 if !owners.is_empty() => {
                    let ends: Vec<_> = owners.iter().collect();
                    let (&(server, seen), &(owner, ..)) = *random.choose(&ends);
                    let flags = if flags == SYN { SYN_ACK } else { flags };
                    let sent = ClientFrame { client: server, vip: seen, ..scene.client(0) };
                    if let Said::Through { from, to } = scene.send(&sent, flags) {
                        assert_eq!((from, to), (scene.vip(), owner), "seed {seed}, step {step}");
                        homeward += 1;
                    }
                }
                _ => {
                    let sent = scene.client(random.below(20) as u16);
                    if let Said::Through { from, to } = scene.send(&sent, flags) {
                        outward += 1;
                        let back = ClientFrame { client: to, vip: from, ..sent.clone() };
                        let owner = owners.get(&(to, from)).map(|(client, ..)| *client);
                        let is_own = owner.is_none_or(|owner| owner == sent.client);
                        assert!(is_own || flags == SYN, "seed {seed}, step {step}: {owner:?}");
                        if let Some(position) = scene.tables.position(&parsed(&back.frame())) {
                            let entry = Entry(scene.words()[position]);
                            owners.insert((to, from), (sent.client, position, entry));
                        }
                    }
                }
            }
            let words = scene.words();
            owners.retain(|_, (_, position, entry)| {
                let now = Entry(words[*position]);
                now.is_same(*entry) && now.state() != State::Free
            });
        }
        assert!(outward > 2_000 && homeward > 200, "{purpose:?}: {outward} and {homeward}");
    }
}

/// Two CPUs that have looked for a flow at the same moment, and have found none.
#[test]
fn of_two_syns_at_once_only_one_opens_a_connection() {
    let scene = Scene::new(Purpose::Nat, V4);
    let client = scene.client(1);
    let segment = parsed(&client.clone().with_flags(SYN).frame());
    let turn = || Turn {
        segment,
        hash: hash::of_flow(&segment, &scene.tables.settings.hash_keys),
        now: scene.now(),
        hop: crate::abi::NatHop::default(),
        found: Found::NOTHING,
    };
    let results = [turn(), turn()].map(|turn| Stages::<HostFrame>::turn(&scene.tables, turn));
    assert!(results[0].is_ok());
    assert_eq!(results[1], Err(Reason::NatTableFull));
    assert_eq!(scene.entries(), 2, "the other has left nothing");
    let pair = scene.open(1);
    scene.goes_on(&pair, true);
}
