use std::vec;

use super::*;
use crate::{
    forward::Action,
    frame::HostFrame,
    host::{
        HostTables,
        sample::{self, ClientFrame, FAMILIES, MTU, Purpose},
    },
    limit, steer,
};

const TAGS: [[u8; 4]; 2] = [[0x88, 0xa8, 0, 200], [0x81, 0, 0, 100]];

/// A packet of so many bytes.
fn packet(purpose: Purpose, family: Family, length: usize) -> ClientFrame {
    let headers = if family == Family::Ipv4 { 40 } else { 60 };
    ClientFrame {
        payload: (0..length - headers).map(|byte| byte as u8).collect(),
        ..ClientFrame::new(purpose, family, 1)
    }
}

/// What becomes of it, and as what it is counted.
fn process(tables: &HostTables, sent: &HostFrame) -> (Action, HostFrame, Option<Reason>) {
    let mut frame = sent.clone();
    let action = steer::process(&mut frame, tables, 0);
    let counted = tables.take_counted();
    let reason = Reason::ALL.iter().copied().find(|&reason| counted.reason(reason) == 1);
    assert_eq!(counted.packets(), u64::from(reason.is_none()));
    (action, frame, reason)
}

#[test]
fn the_sender_is_told_what_would_have_fitted() {
    for (purpose, overhead) in [(Purpose::InIpv4, 20), (Purpose::InIpv6, 40)] {
        for family in FAMILIES {
            for tags in 0..=2 {
                for length in [1461, 1481, 1500] {
                    let tables = sample::tables(16);
                    let sent = ClientFrame {
                        tags: TAGS[2 - tags..].to_vec(),
                        padding: 3,
                        ..packet(purpose, family, length)
                    };
                    let sent = sent.frame();
                    let (action, frame, reason) = process(&tables, &sent);
                    assert_eq!(action, Action::Transmit);
                    let room = MTU - overhead;
                    if length > usize::from(room) {
                        assert_eq!(frame, sample::too_big(&sent, room), "{purpose:?} {family:?}");
                        assert_eq!(reason, Some(Reason::TooBig));
                    } else {
                        assert_eq!(reason, None);
                    }
                }
            }
        }
    }
}

#[test]
fn options_and_extension_headers_are_quoted_as_they_are() {
    for (sent, family) in [
        (ClientFrame { ip_options: vec![1; 40], ..packet(Purpose::InIpv4, Family::Ipv4, 1460) }, 4),
        (
            ClientFrame {
                extensions: vec![(60, vec![0, 1, 4, 0, 0, 0, 0])],
                ..packet(Purpose::InIpv4, Family::Ipv6, 1490)
            },
            6,
        ),
    ] {
        let sent = sent.frame();
        let (action, frame, _) = process(&sample::tables(16), &sent);
        let expected = sample::too_big(&sent, MTU - 20);
        assert_eq!((action, frame), (Action::Transmit, expected), "version {family}");
    }
}

/// Routes as narrow as there are, and such as nobody has.
#[test]
fn little_is_quoted_of_what_is_little() {
    for mtu in [1, 20, 68, 100, 576, 600, 1299, 1300, 1301, 1399] {
        for family in FAMILIES {
            for length in [61, 68, 69, 576, 580, 581, 1280, 1281, 1400] {
                let mut tables = sample::tables(16);
                for backend in &mut tables.backends {
                    backend.mtu = mtu;
                }
                let sent = packet(Purpose::InIpv4, family, length).frame();
                let (action, frame, reason) = process(&tables, &sent);
                let room = mtu.saturating_sub(20);
                let told = if family == Family::Ipv6 { room.max(1280) } else { room };
                let what = std::format!("{family:?}, {length} bytes, MTU {mtu}");
                if length <= usize::from(room) {
                    assert_eq!((action, reason), (Action::Transmit, None), "{what}");
                } else if length <= usize::from(told) {
                    let unanswered = Some(Reason::TooBigUnanswered);
                    assert_eq!((action, frame, reason), (Action::Drop, sent, unanswered), "{what}");
                } else {
                    let answer = sample::too_big(&sent, told);
                    let expected = (Action::Transmit, answer, Some(Reason::TooBig));
                    assert_eq!((action, frame, reason), expected, "{what}");
                }
            }
        }
    }
}

#[test]
fn who_may_not_answer_or_has_no_room_drops_it_as_it_was() {
    for (purpose, family, room) in
        [(Purpose::InIpv4, Family::Ipv4, 28), (Purpose::InIpv6, Family::Ipv6, 48)]
    {
        let tables = sample::tables(16);
        let sent = packet(purpose, family, 1500).frame();
        let narrow = HostFrame { headroom: room - 1, ..sent.clone() };
        let dropped = (Action::Drop, narrow.clone(), Some(Reason::TooBigUnanswered));
        assert_eq!(process(&tables, &narrow), dropped);
        let enough = HostFrame { headroom: room, ..sent.clone() };
        assert_eq!(process(&tables, &enough).2, Some(Reason::TooBig));
        for number in 2..limit::PER_SECOND {
            assert_eq!(process(&tables, &sent).2, Some(Reason::TooBig), "{number}");
        }
        let dropped = (Action::Drop, sent.clone(), Some(Reason::TooBigUnanswered));
        assert_eq!(process(&tables, &sent), dropped);
        // What fits is none of it.
        assert_eq!(process(&tables, &packet(purpose, family, 1460).frame()).2, None);
    }
}
