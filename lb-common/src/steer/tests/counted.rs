//! What holds for every frame, whatever becomes of it.

use super::*;

/// Where a frame's packet ends, and padding may begin.
fn packet_end(frame: &HostFrame) -> usize {
    let (l3, family) = parse::network(frame).expect("forwarded, so it has one");
    let length = |at: usize| frame.read::<[u8; 2]>(l3 + at).map_or(0, u16::from_be_bytes);
    l3 + match family {
        Family::Ipv4 => usize::from(length(2)),
        Family::Ipv6 => Ipv6::LEN + usize::from(length(4)),
    }
}

/// Sends frames of all kinds and checks what holds for every one of them.
fn run(tables: &HostTables, frame: &mut HostFrame, now: u64) -> Action {
    let before = frame.clone();
    let action = process(frame, tables, now);
    let counted = tables.take_counted();
    let reasons: u64 = counted.reasons.values().sum();
    assert_eq!(counted.packets() + reasons, 1, "counted once: {counted:?}\n{before:?}");
    let length = frame.bytes.len();
    match action {
        Action::Pass | Action::Drop => {
            assert_eq!(*frame, before, "left, but not alone");
            assert_eq!(reasons, 1);
        }
        Action::Transmit | Action::Redirect(_) if reasons == 1 => {
            let reason = Reason::ALL.iter().find(|&&reason| counted.reason(reason) == 1);
            assert_eq!(reason.map(|reason| reason.class()), Some(Class::Answer));
            assert_eq!(action, Action::Transmit);
            assert!(length <= before.bytes.len(), "a RST is never longer\n{before:?}\n{frame:?}");
        }
        Action::Transmit | Action::Redirect(_) => {
            let packet = packet_end(&before);
            let is_tunnelled = [Ipv4::LEN, Ipv6::LEN].contains(&(length - packet));
            assert!(length == before.bytes.len() || is_tunnelled, "{length} bytes\n{before:?}");
            let bytes = before.bytes.len() as u64;
            let (_, traffic) = counted.traffic.first_key_value().expect("one backend");
            assert_eq!(*traffic, Traffic { packets: 1, bytes, ..Traffic::default() });
        }
    }
    action
}

#[test]
fn every_frame_is_counted_once_whatever_becomes_of_it() {
    let tables = tables();
    for case in corpus::cases() {
        for len in 0..=case.frame.bytes.len() {
            run(&tables, &mut HostFrame::new(&case.frame.bytes[..len]), at(&tables, 0));
        }
    }
}

#[test]
fn noise_is_counted_once_too() {
    let mut tables = tables();
    // A service whose flows are reset.
    for number in 0..BACKENDS {
        let index = sample::backend(Purpose::L2, Family::Ipv6, number);
        tables.backends[usize::from(index)].state = BackendState::Reset as u8;
    }
    let mut random = Random(6);
    let mut seen = BTreeSet::new();
    for _ in 0..30_000 {
        let purpose = *random.choose(&Purpose::ALL);
        let family = *random.choose(&FAMILIES);
        let flags = [SYN, ACK, FIN, RST][random.below(4)];
        let payload = random.below(100);
        let mut frame = ClientFrame {
            tags: (0..random.below(3)).map(|_| [0x81, 0, 0, 9]).collect(),
            payload: random.bytes(payload),
            padding: random.below(4),
            ..ClientFrame::new(purpose, family, random.below(50) as u16).with_flags(flags)
        }
        .frame();
        for _ in 0..random.below(4) {
            let at = random.below(frame.bytes.len().min(74));
            frame.bytes[at] = random.word() as u8;
        }
        if random.one_in(4) {
            frame.bytes.truncate(random.below(frame.bytes.len() + 1));
        }
        let now = at(&tables, random.below(300) as u64);
        seen.insert(std::format!("{:?}", run(&tables, &mut frame, now)));
    }
    assert_eq!(seen.len(), 4, "pass, drop, transmit and redirect: {seen:?}");
}
