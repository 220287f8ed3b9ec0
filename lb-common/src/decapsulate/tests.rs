use std::{format, vec, vec::Vec};

use proptest::prelude::*;

use super::{
    corpus::{
        BACKEND4, BACKEND6, BALANCER4, BALANCER6, MIXES, Memory, VIP4, cases, ethertype, frame,
        half_valid, inner, ipv4, outer, protocol, to_vip, tunnel,
    },
    *,
};
use crate::{
    abi::{Backend, Egress},
    checksum,
    forward::ipip,
    frame::HostFrame,
    host::Random,
    parse,
};

/// The outcome, after the checks that hold for every frame.
#[track_caller]
fn run(frame: &mut HostFrame, tables: &Memory) -> Outcome {
    let before = frame.clone();
    let outcome = process(frame, tables);
    assert_eq!(tables.take_counted(), [outcome], "counted once");
    if outcome.verdict() == Verdict::Pass {
        assert_eq!(*frame, before, "what is passed is untouched");
    }
    outcome
}

#[test]
fn every_frame_has_its_outcome() {
    let cases = cases();
    let tables = Memory::sample();
    for (index, case) in cases.iter().enumerate() {
        let outcome = run(&mut case.frame.clone(), &tables);
        assert_eq!(outcome, case.outcome, "{}\n{:?}", case.name, case.frame);
        assert!(cases[..index].iter().all(|other| other.name != case.name), "{} twice", case.name);
    }
    for outcome in Outcome::ALL {
        let provoked = cases.iter().any(|case| case.outcome == outcome);
        assert!(provoked, "{} has no case", outcome.name());
    }
}

#[test]
fn half_valid_frames_do_no_harm() {
    let (cases, tables) = (cases(), Memory::sample());
    let mut random = Random(1);
    let mut seen = [0; Outcome::ALL.len()];
    for _ in 0..20_000 {
        seen[run(&mut half_valid(&cases, &mut random), &tables) as usize] += 1;
    }
    assert!(seen.iter().all(|count| *count > 10), "one-sided: {seen:?}");
}

#[test]
fn only_the_accepted_sources_may_send_and_nobody_elses_tunnel_is_dropped() {
    let prefix = |source: Source, bits: u32| Source { prefix_length: bits, ..source };
    let v4 = |bits| prefix(Source::v4(BALANCER4), Source::IPV4_BITS + bits);
    let v6 = |bits| prefix(Source::v6(BALANCER6), Source::FAMILY_BITS + bits);
    let all = |family| prefix(family, Source::FAMILY_BITS);
    let neighbour = Source::v4([198, 18, 0, 2]);
    // What is accepted; whether the IPv4 and the IPv6 balancer are.
    let table = [
        (vec![], false, false),
        (vec![Source::ANY], true, true),
        (vec![v4(32)], true, false),
        (vec![v4(15)], true, false),
        (vec![v6(128)], false, true),
        (vec![v6(32), v4(24)], true, true),
        (vec![all(Source::v4([0; 4]))], true, false),
        (vec![all(Source::v6([0; 16]))], false, true),
        (vec![neighbour], false, false),
        (vec![prefix(neighbour, Source::IPV4_BITS + 30)], true, false),
    ];
    for (from, accepts_v4, accepts_v6) in table {
        let tables = Memory::accepting(from.clone());
        for (outside, inside) in MIXES {
            let accepted = match outside {
                Family::Ipv4 => accepts_v4,
                Family::Ipv6 => accepts_v6,
            };
            let expected = if accepted { Outcome::Decapsulated } else { Outcome::SourceRefused };
            let outcome = run(&mut tunnel(0, outside, inside), &tables);
            assert_eq!(outcome, expected, "{inside:?} in {outside:?} from {from:?}");
        }
        for case in cases().into_iter().filter(|case| case.outcome == Outcome::NotVip) {
            assert_eq!(run(&mut case.frame.clone(), &tables), Outcome::NotVip, "{}", case.name);
        }
    }
}

/// RFC 6040 §4.2, figure 4: rows by the inner field, columns by the outer one, both in the
/// order Not-ECT, ECT(0), ECT(1), CE.
#[test]
fn ecn_leaves_the_tunnel_as_rfc_6040_says() {
    const FIELDS: [u8; 4] = [0b00, 0b10, 0b01, 0b11];
    const FIGURE_4: [[Option<u8>; 4]; 4] = [
        [Some(0b00), Some(0b00), Some(0b00), None],
        [Some(0b10), Some(0b10), Some(0b01), Some(0b11)],
        [Some(0b01), Some(0b01), Some(0b01), Some(0b11)],
        [Some(0b11), Some(0b11), Some(0b11), Some(0b11)],
    ];
    // DSCP stays the inner packet's; all of its bits are set, and the outer's are not.
    const DSCP: u8 = 0b1111_1100;
    let tables = Memory::sample();
    for (row, inner_ecn) in FIELDS.into_iter().enumerate() {
        for (column, outer_ecn) in FIELDS.into_iter().enumerate() {
            for (outside, inside) in MIXES {
                let packet = inner(inside, DSCP | inner_ecn);
                let packet = outer(outside, protocol(inside), outer_ecn, &packet);
                let mut frame = frame(0, ethertype(outside), &packet);
                let outcome = run(&mut frame, &tables);
                let name = format!("{inside:?} {inner_ecn:02b} in {outside:?} {outer_ecn:02b}");
                match FIGURE_4[row][column] {
                    None => assert_eq!(outcome, Outcome::Congested, "{name}"),
                    Some(ecn) => {
                        assert_eq!(outcome, Outcome::Decapsulated, "{name}");
                        let expected = inner(inside, DSCP | ecn);
                        assert_eq!(frame.bytes[ethernet::LEN..], expected, "{name}");
                    }
                }
            }
        }
    }
}

#[test]
fn numbers_are_dense_and_names_unique() {
    for (index, outcome) in Outcome::ALL.iter().enumerate() {
        assert_eq!(*outcome as usize, index);
        assert!(Outcome::ALL[..index].iter().all(|o| o.name() != outcome.name()));
        assert!(!outcome.help().is_empty() && !outcome.verdict().name().is_empty());
    }
    assert!(Outcome::ALL.len() <= capacity::OUTCOMES);
}

/// A client's segment for the VIP, of either family, with IPv4 options or an IPv6 extension
/// header and a payload.
fn any_inner() -> impl Strategy<Value = (Family, Vec<u8>)> {
    let family = prop::sample::select(&[Family::Ipv4, Family::Ipv6][..]);
    let payload = prop::collection::vec(any::<u8>(), 0..64);
    (family, any::<u8>(), any::<bool>(), payload).prop_map(|(family, class, options, payload)| {
        let mut segment = vec![0; 20];
        segment[12] = 0x50;
        segment.extend(payload);
        let packet = match (family, options) {
            (_, false) => to_vip(family, class, &segment),
            (Family::Ipv4, true) => {
                let mut packet = to_vip(family, class, &segment);
                packet.splice(20..20, [1, 1, 1, 0]);
                packet[0] = 0x46;
                packet[3] += 4;
                packet
            }
            (Family::Ipv6, true) => {
                let extended = [&[wire::TCP, 0, 1, 4, 0, 0, 0, 0], &segment[..]].concat();
                let mut packet = to_vip(family, class, &extended);
                packet[6] = Ipv6::DESTINATION_OPTIONS;
                packet
            }
        };
        (family, packet)
    })
}

proptest! {
    /// The balancer's encapsulation and this decapsulation undo each other, to the byte; padding
    /// stays at the balancer.
    #[test]
    fn what_the_balancer_packs_is_unpacked(
        (family, packet) in any_inner(),
        to_v6: bool,
        tags in 0usize..=2,
        hash: u64,
        padding in 0usize..6,
    ) {
        let mut original = frame(tags, ethertype(family), &packet);
        let length = original.bytes.len();
        original.bytes.extend(std::iter::repeat_n(0xee, padding));
        let segment = parse::segment(&original, |_, _| true).expect("a whole segment");
        let address = if to_v6 { Address::v6(BACKEND6) } else { Address::v4(BACKEND4) };
        let backend = Backend { address, ..Backend::default() };
        let egress = Egress {
            source_v6: Address::v6(BALANCER6),
            source_v4: BALANCER4,
            spread_v4: [0, 0, 0, 6],
            ..Egress::default()
        };
        let macs: Macs = original.read(0).expect("addresses");
        let mut sent = original.clone();
        ipip::rewrite(&mut sent, &segment, &backend, &egress, macs, hash).expect("packed");
        prop_assert_ne!(&sent, &original);

        prop_assert_eq!(run(&mut sent, &Memory::sample()), Outcome::Decapsulated);
        original.bytes.truncate(length);
        prop_assert_eq!(sent, original);
    }

    /// A marked IPv4 header still has a right checksum.
    #[test]
    fn a_marked_header_has_a_right_checksum(
        source: [u8; 4],
        identification: [u8; 2],
        dscp in 0u8..64,
        ecn in prop::sample::select(&[ecn::ECT_0, ecn::ECT_1][..]),
    ) {
        let mut packet = ipv4(source, VIP4, wire::TCP, dscp << 2 | ecn, &[]);
        packet[4..6].copy_from_slice(&identification);
        packet[10..12].fill(0);
        let header = Ipv4::read_from_bytes(&packet).expect("a header");
        packet[10..12].copy_from_slice(&checksum::of_ipv4(&header));
        let packet = outer(Family::Ipv4, wire::IPV4_IN_IP, ecn::CONGESTION_EXPERIENCED, &packet);
        let mut frame = frame(0, ethernet::IPV4, &packet);
        prop_assert_eq!(run(&mut frame, &Memory::sample()), Outcome::Decapsulated);

        let marked = Ipv4::read_from_bytes(&frame.bytes[ethernet::LEN..]).expect("a header");
        prop_assert_eq!(marked.traffic_class, dscp << 2 | ecn::CONGESTION_EXPERIENCED);
        let right = checksum::of_ipv4(&Ipv4 { checksum: [0; 2], ..marked });
        prop_assert_eq!(marked.checksum, right);
    }
}
