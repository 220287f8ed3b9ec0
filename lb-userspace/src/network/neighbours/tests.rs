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
        ("permanent", vec![Seen(S::Permanent, Some(MAC))], Neighbour::Given(MAC)),
        ("without ARP", vec![Seen(S::Noarp, Some(MAC))], Neighbour::Given(MAC)),
        ("permanent no more", vec![Seen(S::Permanent, Some(MAC)), Gone], known),
        ("probed", vec![reachable(), Seen(S::Probe, Some(MAC))], known),
        ("moved", vec![Seen(S::Reachable, Some(OTHER)), reachable()], known),
        ("flushed", vec![reachable(), Gone], known),
        ("flushed, then asked", vec![reachable(), Gone, Asked, Seen(S::Incomplete, None)], known),
        ("just failed", vec![reachable(), Seen(S::Failed, None), After(1.0)], known),
        (
            "failed for good",
            vec![reachable(), Seen(S::Failed, None), After(1.6)],
            Neighbour::Silent,
        ),
        (
            "failed again does not prolong the grace",
            vec![reachable(), Seen(S::Failed, None), After(1.0), Seen(S::Failed, None), After(1.0)],
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
    let (given, known) = (Neighbour::Given(MAC), Neighbour::Known(MAC));
    let cases = [
        (message(NeighbourState::Permanent, Some(MAC)), given),
        (message(NeighbourState::Noarp, Some(MAC)), given),
        // The kernel asks for it.
        (managed, known),
        (learned, given),
    ];
    let (wanted, now) = (HashSet::from([KEY]), Instant::now());
    for (case, expected) in cases {
        let mut neighbours = Neighbours::default();
        neighbours.learn(&case, now);
        assert_eq!(neighbours.find(&KEY, now), expected, "{case:?}");
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
