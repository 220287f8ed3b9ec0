//! A word: what is in it, and what a segment makes of it.

use proptest::prelude::*;

use super::*;
use crate::wire::Tcp;

/// Every state, kind of segment and length of silence: to which state the flow goes, at the
/// present tick; "same": the entry stays as it is, its tick too; "new": choose anew.
#[test]
fn every_transition_is_as_written_here() {
    // Ticks of silence: 0; 1; the last before, and the first at which a SYN is believed; the
    // last before, and the first after the state's time-out.
    const REUSE: u8 = 4;
    let table: [(State, u8, [&str; 4]); 28] = [
        //                       SYN          ACK          FIN        RST
        (State::Embryonic, 0, ["embryonic", "young", "closing", "reset"]),
        (State::Embryonic, 1, ["embryonic", "young", "closing", "reset"]),
        (State::Embryonic, 16, ["embryonic", "young", "closing", "reset"]),
        (State::Embryonic, 17, ["new", "new", "new", "new"]),
        (State::Young, 0, ["same", "young", "closing", "reset"]),
        (State::Young, 1, ["same", "old", "closing", "reset"]),
        (State::Young, REUSE, ["same", "old", "closing", "reset"]),
        (State::Young, REUSE + 1, ["new", "old", "closing", "reset"]),
        (State::Young, 221, ["new", "old", "closing", "reset"]),
        (State::Young, 222, ["new", "new", "new", "new"]),
        (State::Old, 0, ["same", "old", "closing", "reset"]),
        (State::Old, 1, ["same", "old", "closing", "reset"]),
        (State::Old, REUSE, ["same", "old", "closing", "reset"]),
        (State::Old, REUSE + 1, ["new", "old", "closing", "reset"]),
        (State::Old, 221, ["new", "old", "closing", "reset"]),
        (State::Old, 222, ["new", "new", "new", "new"]),
        (State::Closing, 0, ["new", "closing", "closing", "reset"]),
        (State::Closing, 4, ["new", "closing", "closing", "reset"]),
        (State::Closing, 5, ["new", "new", "new", "new"]),
        (State::Reset, 0, ["new", "young", "closing", "reset"]),
        (State::Reset, 3, ["new", "young", "closing", "reset"]),
        (State::Reset, 4, ["new", "new", "new", "new"]),
        (State::Answered, 0, ["answered", "answered", "closing", "reset"]),
        (State::Answered, 16, ["answered", "answered", "closing", "reset"]),
        (State::Answered, 17, ["new", "new", "new", "new"]),
        (State::TimeWait, 0, ["new", "time_wait", "time_wait", "reset"]),
        (State::TimeWait, 16, ["new", "time_wait", "time_wait", "reset"]),
        (State::TimeWait, 17, ["new", "new", "new", "new"]),
    ];
    let kinds = [Kind::Syn, Kind::Ack, Kind::Fin, Kind::Rst];
    let settings = settings();
    assert_eq!(settings.reuse_ticks, u32::from(REUSE));
    for (state, silence, expected) in table {
        let before = Entry::new(hash(9, false), 77, NOW.wrapping_sub(silence), state);
        for (kind, expected) in kinds.into_iter().zip(expected) {
            let found = match before.next(kind, NOW, &settings) {
                Step::Renew => "new",
                Step::Keep(after) if after == before && silence != 0 => "same",
                Step::Keep(after) => {
                    assert_eq!(after.backend(), 77);
                    assert!(after.is_marked(hash(9, false)));
                    assert_eq!(after.tick(), NOW);
                    after.state().name()
                }
            };
            // In the present tick an entry that stays as it is can't be told from one that goes
            // to the state it is in.
            let expected = if silence == 0 && expected == "same" { state.name() } else { expected };
            assert_eq!(found, expected, "{state:?} after {silence} ticks: {kind:?}");
        }
    }
    for state in State::ALL {
        let limit = settings.idle_ticks[state as usize];
        assert!(table.iter().any(|row| row.0 == state && row.1 == limit), "{state:?} at its limit");
    }
}

#[test]
fn a_free_word_binds_nothing() {
    for word in [0, hash(9, false), hash(9, true)] {
        let entry = Entry(word);
        assert_eq!(entry.state(), State::Free);
        for kind in [Kind::Syn, Kind::Ack, Kind::Fin, Kind::Rst] {
            assert_eq!(entry.next(kind, NOW, &settings()), Step::Renew, "{word:#x} {kind:?}");
        }
    }
}

#[test]
fn the_most_final_flag_names_a_segment() {
    let cases = [
        (Tcp::SYN, Kind::Syn),
        (Tcp::SYN | Tcp::FIN, Kind::Syn),
        (Tcp::SYN | Tcp::ACK, Kind::Ack),
        (Tcp::SYN | Tcp::ACK | Tcp::FIN, Kind::Fin),
        (Tcp::SYN | Tcp::RST, Kind::Rst),
        (Tcp::ACK, Kind::Ack),
        (Tcp::FIN, Kind::Fin),
        (Tcp::FIN | Tcp::ACK, Kind::Fin),
        (Tcp::RST, Kind::Rst),
        (Tcp::RST | Tcp::ACK | Tcp::FIN, Kind::Rst),
        (0, Kind::Ack),
        // Window scaling's and ECN's flags say nothing here: an ECN-capable SYN has both.
        (Tcp::SYN | 0xc0, Kind::Syn),
        (0xff, Kind::Rst),
    ];
    for (flags, kind) in cases {
        assert_eq!(Kind::of(flags), kind, "{flags:#04x}");
    }
}

#[test]
fn a_word_is_laid_out_as_documented() {
    let entry = Entry::new(!0, 0, 0, State::Free);
    assert_eq!(entry.0, 0xffff_ffff_f000_0000);
    assert_eq!(Entry::new(0, 0, 0, State::Free).of_return().0, 0x0800_0000);
    assert_eq!(Entry::new(0, 0xffff, 0, State::Free).0, 0x07ff_f800);
    assert_eq!(Entry::new(0, 0, 0xff, State::Free).0, 0x7f8);
    assert_eq!(Entry::new(0, 0, 0, State::Reset).0, 5);
    let entry = Entry::new(0x0123_4567_89ab_cdef, 0xbeef, 0x5a, State::Old);
    assert_eq!(entry.0, 0x0123_4567_8000_0000 | 0xbeef << 11 | 0x5a << 3 | 3);
    let of_return = entry.of_return();
    assert!(of_return.is_return() && !entry.is_return() && !entry.is_same(of_return));
    assert!(of_return.with(7, State::Closing).is_return() && of_return.moved_to(9).is_return());
}

#[test]
fn ticks_follow_the_jiffies() {
    let mut settings = settings();
    let tick = |settings: &Settings, now| tick_of(settings, now);
    assert_eq!((tick(&settings, 1023), tick(&settings, 1024)), (0, 1));
    assert_eq!(tick(&settings, 1024 * 256 + 5), 0);
    // Jiffies begin 300 s before their lower 32 bits wrap: the ticks go on.
    assert_eq!(tick(&settings, 0xffff_ffff), 0xff);
    assert_eq!(tick(&settings, 0x1_0000_0000), 0x00);
    settings.tick_shift = 40;
    assert_eq!(tick(&settings, 0x1_0000_0000), 0);
    settings.tick_shift = 64;
    assert_eq!(tick(&settings, 3), 3, "nonsense, but defined");
}

proptest! {
    #[test]
    fn a_word_gives_back_what_was_put_in(
        hash: u64,
        backend: u16,
        tick: u8,
        later: u8,
        state in prop::sample::select(State::ALL.to_vec()),
    ) {
        let entry = Entry::new(hash, backend, tick, state);
        prop_assert_eq!((entry.backend(), entry.tick(), entry.state()), (backend, tick, state));
        prop_assert!(entry.is_marked(hash));
        prop_assert!(!entry.is_marked(hash ^ 1 << FINGERPRINT_SHIFT));
        let age = if later < AHEAD { later } else { 0 };
        prop_assert_eq!(entry.age(tick.wrapping_add(later)), age);
    }

    /// The score's and the entry's idea of "expired" are one.
    #[test]
    fn what_is_expired_is_free_to_take(
        word: u64,
        tick: u8,
        idle_ticks: [u8; 8],
    ) {
        let settings = Settings { idle_ticks, ..settings() };
        let entry = Entry(word);
        let class = score(word, 0, tick, &settings) >> SCORE_CLASS_SHIFT;
        if entry.is_expired(tick, &settings) {
            prop_assert_eq!(class, CLASS_FREE);
        } else {
            let expected = match entry.state() {
                State::Free => CLASS_FREE,
                State::Embryonic | State::Reset | State::TimeWait => 4,
                State::Answered => CLASS_ANSWERED,
                State::Closing => 2,
                State::Young => CLASS_YOUNG,
                State::Old => 0,
            };
            prop_assert_eq!(class, expected);
        }
    }
}

/// A CPU, or the sweep, has read the time just before a new tick; another CPU's packet of the
/// flow came just after.
#[test]
fn a_flow_that_was_seen_in_a_later_tick_is_not_expired() {
    let settings = settings();
    for state in State::ALL {
        for ahead in 1..=8 {
            let entry = Entry::new(hash(9, false), 77, NOW + ahead, state);
            assert!(!entry.is_expired(NOW, &settings), "{state:?}, {ahead} ticks ahead");
            assert!(matches!(entry.next(Kind::Ack, NOW, &settings), Step::Keep(_)));
            let class = score(entry.0, 0, NOW, &settings) >> SCORE_CLASS_SHIFT;
            assert_ne!(class, CLASS_FREE, "{state:?}, {ahead} ticks ahead");
        }
    }
}
