//! Services of any port, beside one of a port of their address.

use super::*;
use crate::{
    address::Address,
    service::{ANY_PORT, index_of, is_at, key_of},
};

const ANY: Purpose = Purpose::AnyPort;
const BESIDE: Purpose = Purpose::BesideAny;

/// A client's frame to a port of the address that both share.
fn to_port(family: Family, number: u16, port: u16) -> ClientFrame {
    let mut frame = ClientFrame::new(ANY, family, number);
    frame.vip.set_port(port);
    frame
}

fn is_of(said: Said, purpose: Purpose, family: Family) -> bool {
    (0..BACKENDS).any(|number| said == Said::To(sample::backend(purpose, family, number)))
}

fn list(tables: &mut HostTables, purpose: Purpose, family: Family, listed: bool) {
    tables.services[usize::from(sample::service(purpose, family))].listed = listed;
}

#[test]
fn every_port_that_no_other_service_has_is_taken() {
    let mut tables = tables();
    for family in FAMILIES {
        for (number, port) in [1, 22, 80, 442, 444, 8080, 65_535].into_iter().enumerate() {
            let frame = to_port(family, number as u16, port);
            for (tick, flags) in [SYN, ACK, ACK, FIN].into_iter().enumerate() {
                let said = send(&tables, &frame.clone().with_flags(flags), tick as u64);
                assert!(is_of(said, ANY, family), "port {port}: {said:?}");
            }
        }
        let said = send(&tables, &to_port(family, 1, 443).with_flags(SYN), 0);
        assert!(is_of(said, BESIDE, family), "{said:?}");
        // No other address of theirs.
        let mut elsewhere = ClientFrame::new(L2, family, 1);
        elsewhere.vip.set_port(81);
        assert_eq!(send(&tables, &elsewhere, 0), Said::Leave(Reason::NotService));
        // Where it is gone, the ports of the others are still theirs.
        list(&mut tables, ANY, family, false);
        let said = send(&tables, &to_port(family, 2, 443).with_flags(SYN), 0);
        assert!(is_of(said, BESIDE, family), "{said:?}");
        let closed = to_port(family, 2, 81).with_flags(SYN);
        assert_eq!(send(&tables, &closed, 0), Said::Leave(Reason::NotService));
    }
}

#[test]
fn flows_stay_when_their_port_gets_a_service_of_its_own_and_when_it_loses_it() {
    for family in FAMILIES {
        let mut tables = tables();
        list(&mut tables, BESIDE, family, false);
        let old = to_port(family, 1, 443);
        let first = send_all(&tables, &old, &[SYN, ACK, ACK], 0);
        assert!(is_of(first, ANY, family), "{first:?}");

        list(&mut tables, BESIDE, family, true);
        assert_eq!(send_all(&tables, &old, &[ACK, ACK], 3), first);
        let new = to_port(family, 2, 443);
        let second = send_all(&tables, &new, &[SYN, ACK, ACK], 5);
        assert!(is_of(second, BESIDE, family), "{second:?}");
        // The port is used again after its flow has ended.
        assert_eq!(send_all(&tables, &old, &[FIN], 8), first);
        let again = send(&tables, &old.clone().with_flags(SYN), 9);
        assert!(is_of(again, BESIDE, family), "{again:?}");

        list(&mut tables, BESIDE, family, false);
        assert_eq!(send_all(&tables, &new, &[ACK, ACK], 10), second);
        let third = send(&tables, &to_port(family, 3, 443).with_flags(SYN), 10);
        assert!(is_of(third, ANY, family), "{third:?}");
        // Its backends are gone as well, at last: the client hears so from one that is there.
        for number in 0..BACKENDS {
            let index = usize::from(sample::backend(BESIDE, family, number));
            tables.backends[index].state = BackendState::Absent as u8;
        }
        let fourth = send(&tables, &new, 12);
        assert!(is_of(fourth, ANY, family), "{fourth:?}");
    }
}

#[test]
fn a_backend_that_is_gone_resets_flows_at_every_port() {
    let mut tables = tables();
    let frame = to_port(V4, 1, 2222);
    let Said::To(index) = send_all(&tables, &frame, &[SYN, ACK], 0) else { panic!("not sent") };
    tables.backends[usize::from(index)].state = BackendState::Reset as u8;
    assert_eq!(send(&tables, &frame, 2), Said::Reset(Reason::BackendGone));
}

#[test]
fn nobody_is_at_port_zero() {
    let tables = tables();
    for family in FAMILIES {
        for flags in [SYN, ACK, FIN, RST] {
            let frame = to_port(family, 1, 0).with_flags(flags);
            assert_eq!(send(&tables, &frame, 0), Said::Leave(Reason::NotService));
            assert_eq!(state_of(&tables, &frame), None);
        }
        // Nor is a flow that it is taken for: one with its very fingerprint, in its place.
        let frame = to_port(family, 1, 0);
        let hash = hash::of_flow(&parsed(&frame), &tables.settings.hash_keys);
        let group = tables.flow_group(flow::group_index(hash, &tables.settings));
        let group = group.expect("a group");
        let index = sample::backend(ANY, family, 0);
        let tick = flow::tick_of(&tables.settings, at(&tables, 0));
        let settings = &tables.settings;
        flow::insert(&group, hash, index, tick, State::Old, settings, |_| {}).expect("room");
        assert_eq!(send(&tables, &frame, 0), Said::Leave(Reason::NotService));
    }
}

/// Who is asked first does not matter: of two services that have a port, it is the exact one's.
#[test]
fn a_port_has_one_service_at_most() {
    let mut random = Random(7);
    let tables = tables();
    for _ in 0..20_000 {
        let family = *random.choose(&FAMILIES);
        let port =
            if random.one_in(4) { *random.choose(&[0, 80, 443]) } else { random.word() as u16 };
        let purpose = *random.choose(&Purpose::ALL);
        let address = Address::from(sample::vip(purpose, family).ip());
        let bytes = port.to_be_bytes();
        let index = index_of(&tables, address, bytes);
        let exact = tables.service_index(&key_of(address, bytes)).filter(|_| port != 0);
        let any = tables.service_index(&key_of(address, ANY_PORT)).filter(|_| port != 0);
        assert_eq!(index, exact.or(any), "{address:?} {port}");
        // What it has, a flow of it is at.
        if let Some(service) = index.and_then(|index| tables.service(index)) {
            assert!(is_at(&service.key(), address, bytes));
        }
    }
}
