use lb_common::{
    abi::NextHop as Hop,
    frame::Frame as _,
    host::{
        HostTables,
        sample::{self, FAMILIES, Purpose},
    },
    parse::Family,
};

use super::*;

const NOW: u64 = 1 << 20;

fn ask(purpose: Purpose, family: Family, port: u16) -> Question {
    Question {
        client: sample::client(family, 7, port),
        vip: sample::vip(purpose, family),
        kind: None,
        interface: sample::INTERFACE,
        now: NOW,
    }
}

/// The same segment on the tables themselves, which remember it.
fn send(tables: &HostTables, question: &Question, kind: Kind) -> (Action, HostFrame) {
    let bytes = segment(question.client, question.vip, flags(kind));
    let mut frame = HostFrame { interface: question.interface, ..HostFrame::new(bytes) };
    (steer::process(&mut frame, tables, question.now), frame)
}

fn words(tables: &HostTables) -> Vec<u64> {
    let load =
        |word: &std::sync::atomic::AtomicU64| word.load(std::sync::atomic::Ordering::Relaxed);
    tables.flow_words().iter().map(load).collect()
}

#[test]
fn what_is_told_is_what_then_happens_and_nothing_is_left_by_telling() {
    for family in FAMILIES {
        for purpose in Purpose::ALL {
            let tables = sample::tables(1024);
            for port in 40_000..40_020 {
                let question = ask(purpose, family, port);
                for (kind, is_known) in [(Kind::Syn, false), (Kind::Ack, true)] {
                    let before = (words(&tables), tables.records(), tables.hops());
                    let told = decide(&tables, &question).expect("ready");
                    assert_eq!((words(&tables), tables.records(), tables.hops()), before);
                    assert_eq!(tables.take_counted(), Default::default(), "{purpose:?}");

                    let forwards = !matches!(purpose, Purpose::Empty | Purpose::Unresolved);
                    if !forwards && is_known {
                        continue;
                    }
                    assert_eq!(told.segment.kind, kind, "{purpose:?} {told:?}");
                    assert_eq!(told.flow.is_some(), is_known, "{purpose:?} {told:?}");
                    let (action, frame) = send(&tables, &question, kind);
                    let sent = matches!(action, Action::Transmit | Action::Redirect(_));
                    let headers = sent.then(|| Headers::read(&frame)).flatten();
                    assert_eq!(told.leaves, headers, "{purpose:?} {family:?}");
                    let counted = tables.take_counted();
                    if forwards {
                        let backend = told.backend.expect("one").index;
                        assert_eq!(told.verdict.becomes, Becomes::Forwarded, "{purpose:?}");
                        let to: Vec<u16> = counted.traffic.into_keys().collect();
                        assert_eq!(to, [backend], "{purpose:?} {family:?} {port}");
                        let flow = told.flow.map(|flow| flow.backend);
                        assert_eq!(flow, is_known.then_some(backend));
                        assert_eq!(told.slot.expect("a service").backend, backend);
                    } else {
                        let reason = told.verdict.reason.expect("not forwarded");
                        assert_eq!(counted.reasons.get(reason), Some(&1), "{reason}");
                    }
                    let events: Vec<&str> = counted.events.keys().map(|(_, name)| *name).collect();
                    assert_eq!(told.events, events, "{purpose:?}");
                }
            }
        }
    }
}

#[test]
fn a_translated_flow_is_told_with_what_its_backend_sees() {
    let tables = sample::tables(1024);
    let question = ask(Purpose::Nat, Family::Ipv4, 40_001);
    let (_, frame) = send(&tables, &question, Kind::Syn);
    let told = decide(&tables, &question).expect("ready");
    let sees = Headers::read(&frame).expect("it was sent").source;
    assert_eq!(told.flow.expect("known").client_at_backend, Some(sees));
    assert_eq!(told.backend.expect("one").sees, "own");

    // What the backend answers is told, too.
    let headers = Headers::read(&frame).expect("it was sent");
    let answer = Question {
        client: headers.destination,
        vip: headers.source,
        kind: Some(Kind::Ack),
        ..question
    };
    let told = decide(&tables, &answer).expect("ready");
    assert_eq!(told.verdict.becomes, Becomes::Returned);
    assert_eq!(told.leaves.expect("it is sent").destination, question.client);
    assert_eq!(told.service, None);
}

#[test]
fn who_is_no_vip_is_passed() {
    let tables = sample::tables(1024);
    let mut question = ask(Purpose::L2, Family::Ipv4, 40_001);
    question.vip.set_ip([192, 0, 2, 1].into());
    let told = decide(&tables, &question).expect("ready");
    assert_eq!(told.filter, Filter { lets_through: false, is_vip: false });
    assert_eq!((told.service, told.flow, told.backend), (None, None, None));
    assert_eq!(told.verdict.becomes, Becomes::Passed);
    assert_eq!(told.verdict.reason, Some("not_vip"));

    let mut question = ask(Purpose::L2, Family::Ipv4, 40_001);
    question.vip.set_port(81);
    let told = decide(&tables, &question).expect("ready");
    assert_eq!(told.filter, Filter { lets_through: true, is_vip: true });
    assert_eq!(told.verdict.reason, Some("not_service"));
}

#[test]
fn why_a_known_flow_does_not_go_on_is_told() {
    let mut tables = sample::tables(1024);
    let question = ask(Purpose::L2, Family::Ipv4, 40_001);
    send(&tables, &question, Kind::Syn);
    let known = decide(&tables, &question).expect("ready");
    let backend = usize::from(known.backend.expect("one").index);
    assert_eq!(known.flow.expect("known").standing, Standing::Known);

    let later = Question { now: NOW + (100 << tables.settings.tick_shift), ..question };
    let expired = decide(&tables, &later).expect("ready");
    let flow = expired.flow.expect("still there");
    assert_eq!((flow.standing, flow.age_seconds.map(f64::round)), (Standing::Expired, Some(410.0)));
    assert_eq!((expired.segment.kind, expired.state_after), (Kind::Syn, Some("embryonic")));

    tables.backends[backend].next_hop = Hop::UNRESOLVED;
    let nowhere = decide(&tables, &question).expect("ready");
    assert_eq!((nowhere.verdict.becomes, nowhere.next_hop), (Becomes::Dropped, None));
    assert_eq!(nowhere.verdict.reason, Some("no_next_hop"));

    tables.backends[backend].state = BackendState::Reset as u8;
    let gone = decide(&tables, &question).expect("ready");
    assert_eq!(gone.segment.kind, Kind::Ack);
    assert_eq!(gone.flow.expect("still there").standing, Standing::BackendGone);
    assert_eq!(usize::from(gone.backend.expect("its").index), backend);
    assert_eq!((gone.verdict.becomes, gone.verdict.reason), (Becomes::Reset, Some("backend_gone")));
    assert_eq!(gone.state_after, None);
    assert_eq!(gone.leaves.expect("a RST").destination, question.client);

    tables.backends[backend].state = BackendState::Absent as u8;
    let absent = decide(&tables, &question).expect("ready");
    assert_eq!(absent.flow.expect("still there").standing, Standing::BackendAbsent);
}

#[test]
fn a_tunnel_is_told_with_both_packets_and_what_fits_into_it() {
    for (purpose, overhead) in [(Purpose::InIpv4, 20), (Purpose::InIpv6, 40)] {
        for family in FAMILIES {
            let tables = sample::tables(1024);
            let question = ask(purpose, family, 40_001);
            let told = decide(&tables, &question).expect("ready");
            let headers = told.leaves.expect("it is sent");
            assert_eq!((headers.source, headers.destination), (question.client, question.vip));
            let backend = told.backend.expect("one");
            let tunnel = headers.tunnel.expect("a tunnel");
            assert_eq!(tunnel.destination, backend.address.ip());
            let hop = told.next_hop.expect("resolved");
            assert_eq!((hop.mtu, hop.overhead), (sample::MTU, overhead));
            assert_eq!(headers.bytes, send(&tables, &question, Kind::Syn).1.len());
        }
    }
}
