//! `mss_clamp`: what a SYN announces, in every mode, against frames that announce less to begin with.

use std::{vec, vec::Vec};

use super::*;

const MODES: [Purpose; 6] = [
    Purpose::L2,
    Purpose::AnyPort,
    Purpose::SourceIp,
    Purpose::InIpv4,
    Purpose::InIpv6,
    Purpose::Nat,
];

fn clamping(most: u16) -> HostTables {
    let mut tables = tables();
    for service in &mut tables.services {
        service.service.mss_clamp = most;
    }
    tables
}

fn announcing(purpose: Purpose, family: Family, mss: u16) -> ClientFrame {
    let [high, low] = mss.to_be_bytes();
    // Behind a NOP, its bytes stand in two words of the checksum's.
    let tcp_options = vec![1, 2, 4, high, low, 1, 1, 0];
    ClientFrame { tcp_options, ..ClientFrame::new(purpose, family, 1).with_flags(SYN) }
}

/// What a client's segments become, one after the other.
fn all(tables: &HostTables, sent: &[ClientFrame]) -> Vec<HostFrame> {
    sent.iter()
        .map(|sent| {
            let mut frame = sent.frame();
            assert_eq!(process(&mut frame, tables, at(tables, 0)), Action::Transmit);
            frame
        })
        .collect()
}

#[test]
fn a_syn_announces_no_more_than_its_service_lets_it() {
    for family in FAMILIES {
        for purpose in MODES {
            for (mss, most, lowered) in
                [(1460, 1200, 1200), (1200, 1200, 1200), (1000, 1200, 1000), (1460, 0, 1460)]
            {
                // Sent again it is the one that arrives.
                let twice =
                    |mss| [announcing(purpose, family, mss), announcing(purpose, family, mss)];
                let found = all(&clamping(most), &twice(mss));
                let expected = all(&clamping(0), &twice(lowered));
                assert_eq!(found, expected, "{purpose:?} {family:?}: {mss} of {most}");
            }
        }
    }
}

#[test]
fn nothing_else_is_clamped() {
    for family in FAMILIES {
        for purpose in MODES {
            let syn = announcing(purpose, family, 1000);
            for flags in [ACK, FIN, RST] {
                // An option that only a SYN may have (RFC 9293 §3.2).
                let other = announcing(purpose, family, 1460).with_flags(flags);
                let sent = [syn.clone(), other];
                assert_eq!(all(&clamping(1200), &sent), all(&clamping(0), &sent), "{purpose:?}");
            }
            let none = [ClientFrame::new(purpose, family, 1).with_flags(SYN)];
            assert_eq!(all(&clamping(1200), &none), all(&clamping(0), &none), "{purpose:?}");
        }
    }
}

#[test]
fn of_what_is_translated_the_narrower_of_both_counts() {
    for family in FAMILIES {
        let headers = if family == V4 { 40 } else { 60 };
        for (mtu, most, lowered) in
            [(1300, 1400, 1300 - headers), (1500, 1200, 1200), (0, 1200, 1200)]
        {
            let narrow = |most| {
                let mut tables = clamping(most);
                tables.backends.iter_mut().for_each(|backend| backend.mtu = mtu);
                tables
            };
            let [found, expected] = [(most, 9000), (0, lowered)]
                .map(|(most, mss)| all(&narrow(most), &[announcing(Purpose::Nat, family, mss)]));
            assert_eq!(found, expected, "MTU {mtu}, {most}");
        }
    }
}

#[test]
fn who_was_suspect_hands_on_a_clamped_syn() {
    let mut tables = clamping(1200);
    all_slots_to(&mut tables, backend(0));
    let syn = announcing(L2, V4, 1460);
    let first = all(&tables, core::slice::from_ref(&syn));
    tables.backends[usize::from(backend(0))].state = BackendState::Suspect as u8;
    all_slots_to(&mut tables, backend(1));
    let second = all(&tables, &[syn]);
    assert_eq!(second[0].bytes[..6], sample::mac(backend(1)));
    assert_eq!(second[0].bytes[12..], first[0].bytes[12..]);
    assert_eq!(first[0].bytes[57..59], 1200u16.to_be_bytes());
}
