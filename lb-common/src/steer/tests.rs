use core::sync::atomic::Ordering;
use std::{collections::BTreeSet, vec::Vec};

use super::*;
use crate::{
    abi::{FlowRecord, Service},
    counters::{Event, Traffic},
    flow::State,
    frame::HostFrame,
    host::{
        Counted, HostTables, Random, corpus,
        sample::{self, BACKENDS, ClientFrame, FAMILIES, Purpose},
    },
    maglev,
    parse::Family,
    reason::Class,
    wire::{Ipv4, Ipv6, Tcp},
};

mod any_port;
mod clamp;
mod counted;
mod passive;

const FLOWS: usize = 1024;
const L2: Purpose = Purpose::L2;
const V4: Family = Family::Ipv4;

fn tables() -> HostTables {
    sample::tables(FLOWS)
}

/// A moment: this many ticks after an arbitrary one.
fn at(tables: &HostTables, tick: u64) -> u64 {
    (1000 + tick) << tables.settings.tick_shift
}

/// A verdict that can be compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Said {
    To(u16),
    Back(u16),
    Reset(Reason),
    Leave(Reason),
    Failed,
}

fn parsed(frame: &ClientFrame) -> Segment {
    parse::segment(&frame.frame(), |_, _| true).expect("well formed")
}

/// Sends a segment `tick` ticks after the beginning.
fn send(tables: &HostTables, frame: &ClientFrame, tick: u64) -> Said {
    match steer(&mut frame.frame(), &parsed(frame), tables, at(tables, tick)) {
        Verdict::Forward { backend, index, hash, .. } => {
            assert_eq!(*backend, tables.backends[usize::from(index)]);
            assert_eq!(hash, hash::of_flow(&parsed(frame), &tables.settings.hash_keys));
            Said::To(index)
        }
        Verdict::Reset(reason) => Said::Reset(reason),
        Verdict::Return { index, .. } => Said::Back(index),
        Verdict::Failed => Said::Failed,
        Verdict::Deliver => Said::Leave(Reason::ProbeAnswer),
        Verdict::Leave(reason) => Said::Leave(reason),
    }
}

fn backend(number: u16) -> u16 {
    sample::backend(L2, V4, number)
}

/// From now on every new flow of the L2 service goes to this backend.
fn all_slots_to(tables: &mut HostTables, index: u16) {
    tables.services[usize::from(sample::service(L2, V4))].slots.fill(index);
}

fn state_of(tables: &HostTables, frame: &ClientFrame) -> Option<State> {
    tables.entry(&parsed(frame)).map(Entry::state)
}

fn client(number: u16) -> ClientFrame {
    ClientFrame::new(L2, V4, number)
}

const SYN: u8 = Tcp::SYN;
const ACK: u8 = Tcp::ACK;
const FIN: u8 = Tcp::FIN | Tcp::ACK;
const RST: u8 = Tcp::RST;

/// Sends all of it, one tick after the other; the last verdict.
fn send_all(tables: &HostTables, frame: &ClientFrame, flags: &[u8], from: u64) -> Said {
    let mut said = None;
    for (tick, &flags) in (from..).zip(flags) {
        said = Some(send(tables, &frame.clone().with_flags(flags), tick));
    }
    said.expect("something was sent")
}

#[test]
fn a_flow_stays_with_its_backend_when_the_slots_change() {
    let mut tables = tables();
    all_slots_to(&mut tables, backend(0));
    assert_eq!(send_all(&tables, &client(1), &[SYN, ACK, ACK], 0), Said::To(backend(0)));
    assert_eq!(state_of(&tables, &client(1)), Some(State::Old));
    // Its backend is drained: it has no slot any more.
    all_slots_to(&mut tables, backend(1));
    assert_eq!(send(&tables, &client(1), 3), Said::To(backend(0)));
    assert_eq!(send_all(&tables, &client(1), &[FIN, ACK], 4), Said::To(backend(0)));
    assert_eq!(send(&tables, &client(2).with_flags(SYN), 4), Said::To(backend(1)));
}

/// What an unknown flow's first segment leaves behind.
#[test]
fn an_unknown_flow_goes_by_slot_and_is_remembered_by_its_first_segment() {
    let cases = [
        (SYN, Some(State::Embryonic), Some(Event::NewFlow)),
        (ACK, Some(State::Young), Some(Event::Adopted)),
        (SYN | ACK, Some(State::Young), Some(Event::Adopted)),
        (FIN, Some(State::Closing), Some(Event::Adopted)),
        (RST, None, None),
    ];
    for (flags, state, event) in cases {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(2));
        assert_eq!(send(&tables, &client(1).with_flags(flags), 0), Said::To(backend(2)));
        assert_eq!(state_of(&tables, &client(1)), state, "{flags:#04x}");
        let mut expected = Counted::default();
        expected.events.extend(event.map(|event| ((backend(2), event.name()), 1)));
        assert_eq!(tables.take_counted(), expected, "{flags:#04x}");
        assert_eq!(tables.records().len(), usize::from(state.is_some()));
    }
}

#[test]
fn a_new_flow_is_recorded_beside_its_word() {
    let tables = tables();
    for (family, purpose) in [(Family::Ipv4, L2), (Family::Ipv6, Purpose::InIpv4)] {
        let frame = ClientFrame::new(purpose, family, 3).with_flags(SYN);
        send(&tables, &frame, 7);
        let position = tables.position(&parsed(&frame)).expect("it is in the table");
        let expected = FlowRecord {
            client: frame.client.ip().into(),
            start: at(&tables, 7),
            client_port: frame.client.port().to_be_bytes(),
            vip_port: frame.vip.port().to_be_bytes(),
            nat_port: [0; 2],
            nat_address: 0,
        };
        assert_eq!(tables.records()[&(position as u32)], expected);
        // It is the flow's, not the packet's.
        send(&tables, &frame, 8);
        assert_eq!(tables.records()[&(position as u32)], expected);
    }
}

#[test]
fn a_retransmitted_syn_goes_to_the_same_backend_and_is_counted() {
    let mut tables = tables();
    all_slots_to(&mut tables, backend(0));
    let syn = client(1).with_flags(SYN);
    send(&tables, &syn, 0);
    all_slots_to(&mut tables, backend(1));
    assert_eq!(send(&tables, &syn, 0), Said::To(backend(0)));
    assert_eq!(send(&tables, &syn, 1), Said::To(backend(0)));
    let counted = tables.take_counted();
    assert_eq!(counted.event(backend(0), Event::NewFlow), 1);
    assert_eq!(counted.event(backend(0), Event::SynRetransmission), 2);
}

#[test]
fn a_spoofed_syn_moves_no_live_flow_and_keeps_none_alive() {
    for before in [&[SYN, ACK][..], &[SYN, ACK, ACK]] {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(0));
        send_all(&tables, &client(1), before, 0);
        let last = before.len() as u64 - 1;
        let entry = tables.entry(&parsed(&client(1)));
        all_slots_to(&mut tables, backend(1));
        for tick in 0..=u64::from(tables.settings.reuse_ticks) {
            let syn = client(1).with_flags(SYN);
            assert_eq!(send(&tables, &syn, last + tick), Said::To(backend(0)), "{tick} ticks on");
            assert_eq!(tables.entry(&parsed(&client(1))), entry, "{tick} ticks on");
        }
    }
}

#[test]
fn a_port_that_is_used_again_after_silence_is_a_new_flow() {
    let mut tables = tables();
    all_slots_to(&mut tables, backend(0));
    send_all(&tables, &client(1), &[SYN, ACK, ACK], 0);
    let position = tables.position(&parsed(&client(1)));
    all_slots_to(&mut tables, backend(1));
    let tick = 2 + u64::from(tables.settings.reuse_ticks) + 1;
    assert_eq!(send(&tables, &client(1).with_flags(SYN), tick), Said::To(backend(1)));
    assert_eq!(state_of(&tables, &client(1)), Some(State::Embryonic));
    assert_eq!(tables.position(&parsed(&client(1))), position, "in the same place");
    let record = tables.records()[&(position.expect("it is in the table") as u32)];
    assert_eq!(record.start, at(&tables, tick));
}

#[test]
fn a_port_that_is_used_again_after_the_end_is_a_new_flow_at_once() {
    for end in [FIN, RST] {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(0));
        send_all(&tables, &client(1), &[SYN, ACK, end], 0);
        all_slots_to(&mut tables, backend(1));
        assert_eq!(send(&tables, &client(1).with_flags(SYN), 2), Said::To(backend(1)));
        assert_eq!(state_of(&tables, &client(1)), Some(State::Embryonic));
    }
}

#[test]
fn a_forged_rst_does_not_part_a_flow_from_its_backend() {
    let mut tables = tables();
    all_slots_to(&mut tables, backend(0));
    send_all(&tables, &client(1), &[SYN, ACK, ACK], 0);
    all_slots_to(&mut tables, backend(1));
    assert_eq!(send(&tables, &client(1).with_flags(RST), 2), Said::To(backend(0)));
    assert_eq!(state_of(&tables, &client(1)), Some(State::Reset));
    assert_eq!(send(&tables, &client(1), 4), Said::To(backend(0)));
    assert_eq!(state_of(&tables, &client(1)), Some(State::Young));
}

#[test]
fn a_flow_that_was_silent_for_too_long_goes_by_slot() {
    for (before, state) in [(&[SYN][..], State::Embryonic), (&[SYN, ACK, ACK], State::Old)] {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(0));
        send_all(&tables, &client(1), before, 0);
        assert_eq!(state_of(&tables, &client(1)), Some(state));
        all_slots_to(&mut tables, backend(1));
        let last = before.len() as u64 - 1;
        let limit = u64::from(tables.settings.idle_ticks[state as usize]);
        let mut expired = last + limit + 1;
        if state == State::Old {
            assert_eq!(send(&tables, &client(1), last + limit), Said::To(backend(0)));
            expired = last + limit + limit + 1;
        }
        tables.take_counted();
        assert_eq!(send(&tables, &client(1), expired), Said::To(backend(1)));
        assert_eq!(state_of(&tables, &client(1)), Some(State::Young));
        assert_eq!(tables.take_counted().event(backend(1), Event::Adopted), 1);
    }
}

#[test]
fn flows_of_a_backend_that_is_gone_are_reset_and_forgotten() {
    for (flags, said) in [
        (ACK, Said::Reset(Reason::BackendGone)),
        (FIN, Said::Reset(Reason::BackendGone)),
        (RST, Said::Leave(Reason::RstUnknown)),
    ] {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(0));
        send_all(&tables, &client(1), &[SYN, ACK, ACK], 0);
        all_slots_to(&mut tables, backend(1));
        tables.backends[usize::from(backend(0))].state = BackendState::Reset as u8;
        tables.take_counted();

        assert_eq!(send(&tables, &client(1).with_flags(flags), 3), said);
        assert_eq!(state_of(&tables, &client(1)), None);
        let counted = tables.take_counted();
        assert_eq!(counted.event(backend(0), Event::Reset), 1);
        // A segment behind it is one of an unknown flow.
        assert_eq!(send(&tables, &client(1), 3), Said::To(backend(1)));
    }
}

#[test]
fn a_syn_to_a_backend_that_is_gone_chooses_anew() {
    let mut tables = tables();
    all_slots_to(&mut tables, backend(0));
    send_all(&tables, &client(1), &[SYN, ACK, ACK], 0);
    let position = tables.position(&parsed(&client(1)));
    all_slots_to(&mut tables, backend(1));
    tables.backends[usize::from(backend(0))].state = BackendState::Reset as u8;
    assert_eq!(send(&tables, &client(1).with_flags(SYN), 3), Said::To(backend(1)));
    assert_eq!(tables.position(&parsed(&client(1))), position, "in the same place");
    assert_eq!(state_of(&tables, &client(1)), Some(State::Embryonic));
}

#[test]
fn flows_of_a_backend_that_was_removed_choose_anew() {
    for flags in [SYN, ACK, FIN] {
        let mut tables = tables();
        all_slots_to(&mut tables, backend(0));
        send_all(&tables, &client(1), &[SYN, ACK, ACK], 0);
        let position = tables.position(&parsed(&client(1)));
        all_slots_to(&mut tables, backend(1));
        tables.backends[usize::from(backend(0))] = Backend::default();
        assert_eq!(send(&tables, &client(1).with_flags(flags), 3), Said::To(backend(1)));
        assert_eq!(tables.position(&parsed(&client(1))), position, "in the same place");
    }
}

#[test]
fn without_a_backend_the_client_is_told_at_once() {
    // No slot; a slot of one that is gone; of one that was removed.
    for state in [None, Some(BackendState::Reset), Some(BackendState::Absent)] {
        let mut tables = tables();
        all_slots_to(&mut tables, if state.is_some() { backend(0) } else { 0 });
        if let Some(state) = state {
            tables.backends[usize::from(backend(0))].state = state as u8;
        }
        for flags in [SYN, ACK, FIN] {
            let said = send(&tables, &client(1).with_flags(flags), 0);
            assert_eq!(said, Said::Reset(Reason::NoBackend), "{state:?} {flags:#04x}");
        }
        let said = send(&tables, &client(1).with_flags(RST), 0);
        assert_eq!(said, Said::Leave(Reason::RstUnknown), "a RST is never answered by one");
        assert_eq!(state_of(&tables, &client(1)), None);
    }
}

#[test]
fn what_is_no_service_is_the_kernels() {
    let mut tables = tables();
    let other_port =
        ClientFrame { vip: "203.0.113.10:81".parse().expect("an address"), ..client(1) };
    assert_eq!(send(&tables, &other_port, 0), Said::Leave(Reason::NotService));
    // No longer listed: known flows go on, new ones don't come in.
    send(&tables, &client(1).with_flags(SYN), 0);
    tables.services[usize::from(sample::service(L2, V4))].listed = false;
    assert!(matches!(send(&tables, &client(1), 0), Said::To(_)));
    assert_eq!(send(&tables, &client(2).with_flags(SYN), 0), Said::Leave(Reason::NotService));
    // Removed: its flows are nobody's, and its address is no VIP, whether or not its backends are there.
    tables.services[usize::from(sample::service(L2, V4))].service = Service::default();
    assert_eq!(send(&tables, &client(1), 0), Said::Leave(Reason::NotVip));
}

#[test]
fn before_the_daemon_has_written_its_settings_all_is_the_kernels() {
    let mut tables = tables();
    tables.settings.abi_version = 0;
    assert_eq!(send(&tables, &client(1), 0), Said::Leave(Reason::NotReady));
    let mut tables = sample::tables(16);
    tables.settings.flow_mask = 1;
    // The half of the flows that belong to a group that is not there.
    let verdicts: Vec<Said> = (0..32).map(|n| send(&tables, &client(n), 0)).collect();
    assert!(verdicts.contains(&Said::Leave(Reason::NotReady)), "{verdicts:?}");
    assert!(verdicts.iter().any(|said| matches!(said, Said::To(_))), "{verdicts:?}");
}

#[test]
fn affinity_keeps_a_client_with_one_backend_and_its_absence_spreads_it() {
    let chosen = |purpose| {
        let tables = tables();
        let ports = (0..200u16).map(|port| {
            let mut frame = ClientFrame::new(purpose, V4, 5).with_flags(SYN);
            frame.client.set_port(2000 + port);
            send(&tables, &frame, 0)
        });
        ports.map(|said| std::format!("{said:?}")).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(chosen(Purpose::SourceIp), 1);
    assert_eq!(chosen(L2), usize::from(BACKENDS));
    let tables = tables();
    let clients = (0..200u16).map(|number| {
        send(&tables, &ClientFrame::new(Purpose::SourceIp, V4, number).with_flags(SYN), 0)
    });
    let clients: BTreeSet<_> = clients.map(|said| std::format!("{said:?}")).collect();
    assert_eq!(clients.len(), usize::from(BACKENDS), "clients are spread");
}

#[test]
fn new_flows_go_where_their_slots_say() {
    let tables = tables();
    let service = sample::service(L2, V4);
    for number in 0..500 {
        let frame = client(number).with_flags(SYN);
        let hash = hash::of_flow(&parsed(&frame), &tables.settings.hash_keys);
        let slot = maglev::slot_of(hash, sample::SLOTS);
        assert_eq!(send(&tables, &frame, 0), Said::To(tables.slot(service, slot)));
    }
}

#[test]
fn a_full_table_drops_nobody() {
    let mut tables = sample::tables(flow::GROUP);
    all_slots_to(&mut tables, backend(0));
    let old =
        Entry::new(0, backend(1), flow::tick_of(&tables.settings, at(&tables, 0)), State::Old);
    for (number, word) in (1..).zip(tables.flow_words()) {
        word.store(old.0 | number << 40, Ordering::Relaxed);
    }
    let before: Vec<u64> =
        tables.flow_words().iter().map(|word| word.load(Ordering::Relaxed)).collect();
    for flags in [SYN, ACK, FIN] {
        assert_eq!(send(&tables, &client(1).with_flags(flags), 0), Said::To(backend(0)));
    }
    let counted = tables.take_counted();
    assert_eq!(counted.event(backend(0), Event::Untracked), 3);
    assert_eq!(counted.event(backend(0), Event::NewFlow), 1);
    assert_eq!(counted.event(backend(0), Event::Adopted), 2);
    assert!(tables.records().is_empty());
    let after: Vec<u64> =
        tables.flow_words().iter().map(|word| word.load(Ordering::Relaxed)).collect();
    assert_eq!(before, after);
}

#[test]
fn a_strangers_fingerprint_never_takes_a_flow_to_another_service() {
    let mut tables = sample::tables(flow::GROUP);
    all_slots_to(&mut tables, backend(0));
    let hash = hash::of_flow(&parsed(&client(1)), &tables.settings.hash_keys);
    let tick = flow::tick_of(&tables.settings, at(&tables, 0));
    // Alike to the last bit, but of a backend of the IPv6 service, and of one on another VIP.
    for stranger in [sample::backend(L2, Family::Ipv6, 0), sample::backend(Purpose::InIpv4, V4, 0)]
    {
        let entry = Entry::new(hash, stranger, tick, State::Old);
        tables.flow_words()[3].store(entry.0, Ordering::Relaxed);
        for flags in [SYN, ACK, FIN, RST] {
            let said = send(&tables, &client(1).with_flags(flags), 1);
            assert_eq!(said, Said::To(backend(0)), "{flags:#04x}");
        }
        assert_eq!(tables.entry(&parsed(&client(1))), Some(entry), "the stranger's is untouched");
        assert_eq!(tables.take_counted().event(backend(0), Event::Untracked), 3);
    }
}

/// The filter is coarse: an address that is none of ours may share a VIP's bit.
#[test]
fn a_stranger_behind_the_filter_is_never_dropped() {
    let tables = tables();
    let stranger = sample::behind_the_filter(L2);
    let cases = corpus::readdressed(stranger);
    assert!(cases.len() > 20, "{} cases", cases.len());
    for case in cases {
        let mut frame = case.frame.clone();
        let action = process(&mut frame, &tables, 0);
        assert_eq!((action, &frame), (Action::Pass, &case.frame), "for {stranger}: {case:?}");
    }
}

/// Nobody could have sent them; but to an address that is none of ours they are the kernel's.
#[test]
fn an_opening_that_nobody_could_send_is_dropped_and_forgotten() {
    for case in corpus::openings() {
        let tables = tables();
        let action = process(&mut case.frame.clone(), &tables, 0);
        let counted = tables.take_counted();
        match case.outcome {
            Ok(_) => assert_eq!((action, counted.packets()), (Action::Transmit, 1), "{case:?}"),
            Err(reason) => {
                let left = if reason.class() == Class::Pass { Action::Pass } else { Action::Drop };
                assert_eq!((action, counted.reason(reason)), (left, 1), "{case:?}");
                assert_eq!(counted.events, [].into(), "{case:?}");
                let words = tables.flow_words().iter();
                assert!(words.map(|w| w.load(Ordering::Relaxed)).all(|word| word == 0), "{case:?}");
            }
        }
        let mut stranger = case.frame.clone();
        if stranger.bytes[12..14] == [0x08, 0x00] {
            stranger.bytes[30..34].copy_from_slice(&sample::behind_the_filter(L2).octets());
            assert_eq!(process(&mut stranger, &tables, 0), Action::Pass, "{case:?}");
        }
    }
}

/// What a known flow carries is its backend's to judge.
#[test]
fn odd_flags_of_a_known_flow_go_to_its_backend() {
    for family in FAMILIES {
        for flags in 0..=u8::MAX {
            let tables = tables();
            let sent = ClientFrame::new(L2, family, 1);
            for flags in [SYN, ACK, flags] {
                let mut frame = sent.clone().with_flags(flags).frame();
                assert_eq!(process(&mut frame, &tables, 0), Action::Transmit, "{flags:#04x}");
            }
            assert_eq!(tables.take_counted().packets(), 3, "{flags:#04x}");
        }
    }
}
