//! What the client's packets tell of a backend, and the second try of a SYN.

use super::*;
use crate::{
    abi::HandshakeTimes,
    counters::{HANDSHAKE_BUCKETS, LONGEST_HANDSHAKE},
};

/// What was counted of handshakes, if these took so many jiffies.
fn times(jiffies: &[u64]) -> HandshakeTimes {
    let mut times = HandshakeTimes::default();
    jiffies.iter().for_each(|jiffies| times.add(*jiffies));
    times
}

fn set_state(tables: &mut HostTables, number: u16, state: BackendState) {
    tables.backends[usize::from(backend(number))].state = state as u8;
}

/// A segment of the first client, as its turn comes with the entry as it is now.
fn turn_of(tables: &HostTables, flags: u8, now: u64) -> Turn {
    let segment = parsed(&client(1).with_flags(flags));
    let hash = hash::of_flow(&segment, &tables.settings.hash_keys);
    let group = tables.flow_group(flow::group_index(hash, &tables.settings)).expect("a group");
    let found = flow::find(&group, hash).unwrap_or(Found::NOTHING);
    Turn {
        segment,
        hash,
        now,
        hop: NatHop { ifindex: sample::INTERFACE, ..NatHop::default() },
        found,
    }
}

/// The first backend's counts, for those events that tell of its health.
fn told(counted: &Counted, number: u16) -> [u64; 3] {
    [Event::Handshake, Event::ClientReset, Event::SecondTry]
        .map(|event| counted.event(backend(number), event))
}

#[test]
fn a_handshake_is_counted_once_and_with_its_time() {
    for (flags, wait) in [(ACK, 0), (ACK, 1), (ACK, 700), (FIN, 3)] {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(0));
        let start = at(&tables, 0);
        for (flags, now) in [(SYN, start), (flags, start + wait), (ACK, start + 2 * wait)] {
            let sent = client(1).with_flags(flags);
            steer(&mut sent.frame(), &parsed(&sent), &tables, now);
        }
        send_all(&tables, &client(1), &[ACK, ACK], 1);
        let counted = tables.take_counted();
        assert_eq!(told(&counted, 0), [1, 0, 0], "{flags:#04x} after {wait}");
        assert_eq!(counted.handshakes[&backend(0)], times(&[wait]), "{flags:#04x}");
    }
}

#[test]
fn what_is_met_in_the_middle_is_no_handshake() {
    let mut tables = tables();
    all_slots_to(&mut tables, backend(0));
    send_all(&tables, &client(1), &[ACK, ACK, FIN, ACK], 0);
    send_all(&tables, &client(2), &[SYN, RST, ACK], 0);
    let counted = tables.take_counted();
    assert_eq!(told(&counted, 0), [0, 1, 0], "{counted:?}");
    assert!(counted.handshakes.is_empty());
}

#[test]
fn a_retransmitted_syn_does_not_start_the_time_anew() {
    let mut tables = tables();
    all_slots_to(&mut tables, backend(0));
    send_all(&tables, &client(1), &[SYN, SYN, SYN, ACK], 0);
    let waited = at(&tables, 3) - at(&tables, 0);
    assert_eq!(tables.take_counted().handshakes[&backend(0)], times(&[waited]));
}

/// The record may be another flow's, or come from a later moment on another CPU.
#[test]
fn a_record_that_is_not_the_flows_does_no_harm() {
    for (wrong, counted) in [(0, LONGEST_HANDSHAKE), (u64::MAX, 0)] {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(0));
        let late = 1 << 40;
        let syn = client(1).with_flags(SYN);
        steer(&mut syn.frame(), &parsed(&syn), &tables, late);
        let position = tables.position(&parsed(&client(1))).expect("it is in the table");
        tables.record_flow(position as u32, FlowRecord { start: wrong, ..FlowRecord::default() });
        steer(&mut client(1).frame(), &parsed(&client(1)), &tables, late);
        let found = tables.take_counted().handshakes[&backend(0)];
        assert_eq!(found, times(&[counted]), "{wrong}");
        assert_eq!(found.buckets.iter().sum::<u64>(), 1);
    }
    assert_eq!(times(&[u64::MAX]).buckets[HANDSHAKE_BUCKETS - 1], 1);
}

#[test]
fn a_clients_reset_counts_if_it_comes_soon() {
    for (life, count) in [
        (&[SYN, RST][..], 1),
        (&[SYN, ACK, RST], 1),
        (&[SYN, RST, RST], 1),
        (&[SYN, ACK, ACK, RST], 0),
        (&[SYN, ACK, FIN, RST], 0),
        (&[ACK, RST], 1),
        (&[RST], 0),
    ] {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(0));
        send_all(&tables, &client(1), life, 0);
        let counted = tables.take_counted();
        assert_eq!(counted.event(backend(0), Event::ClientReset), count, "{life:x?}");
    }
}

/// Two CPUs have found the same entry: who loses the exchange forwards, and counts nothing.
#[test]
fn two_cpus_count_a_flows_turn_once() {
    for (before, flags, event) in [
        (&[SYN][..], ACK, Event::Handshake),
        (&[SYN], RST, Event::ClientReset),
        (&[SYN, ACK], RST, Event::ClientReset),
        (&[SYN], SYN, Event::SecondTry),
    ] {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(0));
        send_all(&tables, &client(1), before, 0);
        all_slots_to(&mut tables, backend(1));
        set_state(&mut tables, 0, BackendState::Suspect);
        tables.take_counted();
        let turns = [(); 2].map(|()| turn_of(&tables, flags, at(&tables, 1)));
        let to = turns.map(|turn| turn.take(&tables));
        let counted = tables.take_counted();
        assert_eq!(counted.event(backend(0), event), 1, "{counted:?}");
        let second = if event == Event::SecondTry { backend(1) } else { backend(0) };
        assert_eq!(to.map(|to| to.map(Taken::index)), [Ok(second), Ok(backend(0))]);
        assert_eq!(tables.entry(&parsed(&client(1))).map(Entry::backend), Some(second));
    }
}

#[test]
fn a_syn_sent_again_to_a_suspect_goes_to_another_backend_and_stays_there() {
    let mut tables = tables();
    all_slots_to(&mut tables, backend(0));
    let syn = client(1).with_flags(SYN);
    assert_eq!(send(&tables, &syn, 0), Said::To(backend(0)));
    set_state(&mut tables, 0, BackendState::Suspect);
    all_slots_to(&mut tables, backend(1));
    tables.take_counted();

    assert_eq!(send(&tables, &syn, 1), Said::To(backend(1)));
    let counted = tables.take_counted();
    let again = (backend(0), Event::SynRetransmission.name());
    let second = (backend(0), Event::SecondTry.name());
    let new = (backend(1), Event::NewFlow.name());
    assert_eq!(counted.events, [again, second, new].map(|event| (event, 1)).into());
    let position = tables.position(&parsed(&syn)).expect("it is in the table");
    assert_eq!(tables.records()[&(position as u32)].start, at(&tables, 1));

    // The next one belongs to the second backend, and so does the rest.
    all_slots_to(&mut tables, backend(2));
    assert_eq!(send(&tables, &syn, 2), Said::To(backend(1)));
    assert_eq!(send_all(&tables, &client(1), &[ACK, ACK], 3), Said::To(backend(1)));
    let counted = tables.take_counted();
    assert_eq!(counted.event(backend(1), Event::SynRetransmission), 1);
    assert_eq!(told(&counted, 1), [1, 0, 0]);
    let waited = at(&tables, 3) - at(&tables, 1);
    assert_eq!(counted.handshakes, [(backend(1), times(&[waited]))].into());

    // Unless that is suspect, too.
    let other = client(2).with_flags(SYN);
    assert_eq!(send(&tables, &other, 4), Said::To(backend(2)));
    set_state(&mut tables, 2, BackendState::Suspect);
    all_slots_to(&mut tables, backend(1));
    assert_eq!(send(&tables, &other, 5), Said::To(backend(1)));
    set_state(&mut tables, 1, BackendState::Suspect);
    set_state(&mut tables, 0, BackendState::Forward);
    all_slots_to(&mut tables, backend(0));
    assert_eq!(send(&tables, &other, 6), Said::To(backend(0)));
}

#[test]
fn a_suspect_is_forwarded_to_like_any_other() {
    let mut tables = tables();
    all_slots_to(&mut tables, backend(0));
    set_state(&mut tables, 0, BackendState::Suspect);
    assert_eq!(send(&tables, &client(1).with_flags(SYN), 0), Said::To(backend(0)), "a new flow");
    all_slots_to(&mut tables, backend(1));
    let life = [ACK, ACK, SYN, FIN, ACK, RST];
    assert_eq!(send_all(&tables, &client(1), &life, 0), Said::To(backend(0)), "its life");
    all_slots_to(&mut tables, backend(0));
    assert_eq!(send(&tables, &client(2), 0), Said::To(backend(0)), "met in the middle");
    assert_eq!(tables.take_counted().event(backend(0), Event::SecondTry), 0);
}

#[test]
fn without_another_backend_a_syn_sent_again_stays_where_it_was() {
    use BackendState::{Absent, Forward, Reset, Suspect};
    // The states of the flow's backend, and of the one that has all slots since.
    for (first, other) in
        [(Suspect, Suspect), (Suspect, Reset), (Suspect, Absent), (Forward, Forward)]
    {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(0));
        send(&tables, &client(1).with_flags(SYN), 0);
        all_slots_to(&mut tables, backend(1));
        set_state(&mut tables, 0, first);
        set_state(&mut tables, 1, other);
        let said = send(&tables, &client(1).with_flags(SYN), 1);
        assert_eq!(said, Said::To(backend(0)), "{first:?}, {other:?}");
        assert_eq!(told(&tables.take_counted(), 0), [0, 0, 0], "{first:?}, {other:?}");
    }
    // No slot belongs to anybody.
    let mut tables = tables();
    all_slots_to(&mut tables, backend(0));
    send(&tables, &client(1).with_flags(SYN), 0);
    set_state(&mut tables, 0, Suspect);
    all_slots_to(&mut tables, 0);
    assert_eq!(send(&tables, &client(1).with_flags(SYN), 1), Said::To(backend(0)));
}

#[test]
fn affinity_forbids_a_second_try() {
    let purpose = Purpose::SourceIp;
    for family in FAMILIES {
        let mut tables = tables();
        let syn = ClientFrame::new(purpose, family, 5).with_flags(SYN);
        let Said::To(first) = send(&tables, &syn, 0) else { panic!("it was not forwarded") };
        tables.backends[usize::from(first)].state = BackendState::Suspect as u8;
        assert_eq!(send(&tables, &syn, 1), Said::To(first));
        assert_eq!(tables.take_counted().event(first, Event::SecondTry), 0);
    }
}

/// Whatever the backends' states and the slots: a second try goes to one that is in a slot of the
/// service, belongs to it and forwards; and if half of the slots have such a one, it is found.
#[test]
fn a_second_try_never_leaves_the_service_nor_takes_one_that_is_gone() {
    use BackendState::{Absent, Forward, Reset, Suspect};
    let mut random = Random(11);
    let (mut tried, mut could) = (0u32, 0u32);
    for round in 0..4000u64 {
        let mut tables = tables();
        let family = *random.choose(&FAMILIES);
        let service = usize::from(sample::service(L2, family));
        let members: Vec<u16> = (0..BACKENDS).map(|n| sample::backend(L2, family, n)).collect();
        let syn = ClientFrame::new(L2, family, round as u16).with_flags(SYN);
        let first = *random.choose(&members);
        tables.services[service].slots.fill(first);
        send(&tables, &syn, 0);

        for backend in &mut tables.backends[1..] {
            backend.state = *random.choose(&[Absent, Forward, Forward, Reset, Suspect]) as u8;
        }
        tables.backends[usize::from(first)].state = Suspect as u8;
        let everyone = tables.backends.len();
        for slot in &mut tables.services[service].slots {
            // Some are empty, some wrongly another service's.
            *slot = match random.below(8) {
                0 => random.below(everyone) as u16,
                _ => *random.choose(&members),
            };
        }
        let may = |index: u16| {
            let backend = &tables.backends[usize::from(index)];
            members.contains(&index) && backend.state == Forward as u8
        };
        let slots = &tables.services[service].slots;
        let good = slots.iter().filter(|index| may(**index)).count();
        let Said::To(second) = send(&tables, &syn, 1) else { panic!("it was not forwarded") };
        if second != first {
            assert!(may(second), "{second} of {members:?}");
            tried += 1;
        }
        if good * 2 >= slots.len() {
            could += 1;
            assert_ne!(second, first, "{good} of {} slots", slots.len());
        }
    }
    assert!(tried > 1000 && could > 100, "{tried} tries, {could} with half of the slots");
}
