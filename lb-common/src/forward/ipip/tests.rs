use core::net::Ipv6Addr;
use std::{collections::BTreeSet, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::NextHop,
    frame::HostFrame,
    host::sample::{
        self, BALANCER_MAC, BALANCER_V4, BALANCER_V6, ClientFrame, FAMILIES, Purpose,
        internet_checksum,
    },
    parse,
};

const BACKEND_MAC: [u8; 6] = [2, 0, 0, 1, 0, 9];
const MACS: Macs = Macs { destination: BACKEND_MAC, source: BALANCER_MAC };
const BACKEND_V4: [u8; 4] = [198, 18, 1, 9];
const BACKEND_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, 9);
const HASH: u64 = 0x0123_4567_89ab_cdef;
const TAGS: [[u8; 4]; 2] = [[0x88, 0xa8, 0, 200], [0x81, 0x00, 0, 100]];

fn backend(outside: Family, mtu: u16) -> Backend {
    let address = match outside {
        Family::Ipv4 => Address::v4(BACKEND_V4),
        Family::Ipv6 => Address::v6(BACKEND_V6.octets()),
    };
    Backend { address, mtu, next_hop: NextHop::new(BACKEND_MAC, 1), ..Backend::default() }
}

fn egress() -> Egress {
    Egress {
        source_v4: BALANCER_V4,
        source_v6: Address::v6(BALANCER_V6.octets()),
        ..Egress::default()
    }
}

fn rewritten(
    frame: &HostFrame,
    backend: &Backend,
    egress: &Egress,
    hash: u64,
) -> (HostFrame, Result<(), Reason>) {
    let segment = parse::segment(frame, |_, _| true).expect("well formed");
    let mut frame = frame.clone();
    let result = rewrite(&mut frame, &segment, backend, egress, MACS, hash);
    (frame, result)
}

/// The outer header byte by byte, as the RFCs have it.
fn outer(outside: Family, inside: Family, class: u8, inner_length: usize, hash: u64) -> Vec<u8> {
    let protocol = match inside {
        Family::Ipv4 => 4,
        Family::Ipv6 => 41,
    };
    let mut header = Vec::new();
    match outside {
        Family::Ipv4 => {
            header.extend([0x45, class]);
            header.extend((20 + inner_length as u16).to_be_bytes());
            // No identification, don't fragment, 64 hops.
            header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(BALANCER_V4);
            header.extend(BACKEND_V4);
            let checksum = internet_checksum(&[&header]);
            header[10..12].copy_from_slice(&checksum);
        }
        Family::Ipv6 => {
            let label = hash as u32 & 0xf_ffff;
            header.extend((6 << 28 | u32::from(class) << 20 | label).to_be_bytes());
            header.extend((inner_length as u16).to_be_bytes());
            header.extend([protocol, 64]);
            header.extend(BALANCER_V6.octets());
            header.extend(BACKEND_V6.octets());
        }
    }
    header
}

const fn ethertype(family: Family) -> [u8; 2] {
    match family {
        Family::Ipv4 => [0x08, 0x00],
        Family::Ipv6 => [0x86, 0xdd],
    }
}

#[test]
fn all_mixes_are_packed_byte_by_byte() {
    for inside in FAMILIES {
        for outside in FAMILIES {
            for tags in 0..=2 {
                for class in [0x00, 0x03, 0xb8, 0xff] {
                    for padding in [0, 6] {
                        let sent = ClientFrame {
                            tags: TAGS[2 - tags..].to_vec(),
                            traffic_class: class,
                            payload: b"GET / HTTP/1.1".to_vec(),
                            padding,
                            ..ClientFrame::new(Purpose::InIpv4, inside, 1)
                        };
                        let before = sent.frame();
                        let l3 = 14 + 4 * tags;
                        let inner = &before.bytes[l3..before.bytes.len() - padding];
                        let outer = outer(outside, inside, class, inner.len(), HASH);
                        let mut expected = [BACKEND_MAC, BALANCER_MAC].concat();
                        expected.extend(sent.tags.iter().flatten());
                        expected.extend(ethertype(outside));
                        expected.extend(outer);
                        expected.extend(inner);

                        let (after, result) =
                            rewritten(&before, &backend(outside, 1500), &egress(), HASH);
                        assert_eq!(result, Ok(()));
                        let expected = HostFrame::new(expected);
                        assert_eq!(
                            after.bytes, expected.bytes,
                            "{inside:?} in {outside:?}, {tags} tags, class {class:#04x}\n{after:?}\n\
                             expected\n{expected:?}"
                        );
                    }
                }
            }
        }
    }
}

/// One written out in full, so that not both sides can be wrong in the same way.
#[test]
fn an_outer_ipv4_header_is_as_written_here() {
    let before = ClientFrame::new(Purpose::InIpv4, Family::Ipv4, 1).frame();
    let (after, _) = rewritten(&before, &backend(Family::Ipv4, 1500), &egress(), HASH);
    #[rustfmt::skip]
    let expected = [
        0x45, 0x00, 0x00, 0x3c, // 60 bytes
        0x00, 0x00, 0x40, 0x00, // don't fragment
        0x40, 0x04, 0xad, 0x8f, // 64 hops, IPv4; checksum
        198, 18, 0, 1,
        198, 18, 1, 9,
    ];
    assert_eq!(after.bytes[14..34], expected, "{after:?}");
}

#[test]
fn a_packet_that_just_fits_goes_and_one_byte_more_is_refused_untouched() {
    for (outside, overhead) in [(Family::Ipv4, 20), (Family::Ipv6, 40)] {
        for inside in FAMILIES {
            for tags in 0..=2 {
                // Tags and padding are no part of the packet.
                let sent = |payload: usize| ClientFrame {
                    tags: TAGS[2 - tags..].to_vec(),
                    payload: std::vec![0; payload],
                    padding: 4,
                    ..ClientFrame::new(Purpose::InIpv4, inside, 1)
                };
                let headers = if inside == Family::Ipv4 { 40 } else { 60 };
                let fits = 1500 - overhead - headers;
                let backend = backend(outside, 1500);
                let (after, result) = rewritten(&sent(fits).frame(), &backend, &egress(), HASH);
                assert_eq!(result, Ok(()), "{inside:?} in {outside:?}");
                assert_eq!(after.bytes.len(), 14 + 4 * tags + 1500);
                let before = sent(fits + 1).frame();
                let (after, result) = rewritten(&before, &backend, &egress(), HASH);
                assert_eq!(result, Err(Reason::TooBig), "{inside:?} in {outside:?}");
                assert_eq!(after, before);
                // An MTU of 0 is not known.
                let unknown = Backend { mtu: 0, ..backend };
                assert_eq!(rewritten(&before, &unknown, &egress(), HASH).1, Ok(()));
            }
        }
    }
}

#[test]
fn without_headroom_the_frame_stays_as_it_is() {
    for (outside, overhead) in [(Family::Ipv4, 20), (Family::Ipv6, 40)] {
        for headroom in [0, overhead - 1, overhead] {
            let before = HostFrame {
                headroom,
                ..ClientFrame::new(Purpose::InIpv4, Family::Ipv4, 1).frame()
            };
            let (after, result) = rewritten(&before, &backend(outside, 1500), &egress(), HASH);
            if headroom < overhead {
                assert_eq!((result, after), (Err(Reason::NoHeadroom), before));
            } else {
                assert_eq!((result, after.headroom), (Ok(()), 0));
            }
        }
    }
}

#[test]
fn the_outer_source_is_spread_over_its_prefix_and_no_further() {
    let spread = Egress {
        source_v4: [198, 19, 0, 0],
        spread_v4: [0, 0, 255, 255],
        source_v6: Address::v6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0).octets()),
        spread_v6: [0, 0, 0, 255],
        ..Egress::default()
    };
    let before = ClientFrame::new(Purpose::InIpv4, Family::Ipv4, 1).frame();
    let mut sources_v4 = BTreeSet::new();
    let mut sources_v6 = BTreeSet::new();
    let mut random = crate::host::Random(7);
    for _ in 0..1000 {
        let hash = random.word();
        let (v4, _) = rewritten(&before, &backend(Family::Ipv4, 1500), &spread, hash);
        assert_eq!(v4.bytes[26..28], [198, 19]);
        assert_eq!(internet_checksum(&[&v4.bytes[14..34]]), [0, 0], "{v4:?}");
        sources_v4.insert(v4.bytes[28..30].to_vec());
        let (v6, _) = rewritten(&before, &backend(Family::Ipv6, 1500), &spread, hash);
        let prefix = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0).octets();
        assert_eq!(v6.bytes[22..37], prefix[..15]);
        sources_v6.insert(v6.bytes[37]);
    }
    assert!(sources_v4.len() > 950, "{} of 65,536 sources", sources_v4.len());
    assert!(sources_v6.len() > 240, "{} of 256 sources", sources_v6.len());
    // A flow has one.
    let again = |hash| rewritten(&before, &backend(Family::Ipv4, 1500), &spread, hash).0;
    assert_eq!(again(HASH), again(HASH));
}

proptest! {
    /// Whatever it holds, an outer IPv4 header sums up, also where its sum is all zeros or ones.
    #[test]
    fn every_outer_checksum_is_right(
        class: u8,
        payload in 0usize..1400,
        source: [u8; 4],
        destination: [u8; 4],
        spread_v4: [u8; 4],
        hash: u64,
        inside in prop::sample::select(FAMILIES.to_vec()),
    ) {
        let frame = ClientFrame {
            traffic_class: class,
            payload: std::vec![1; payload],
            ..ClientFrame::new(Purpose::InIpv4, inside, 1)
        }
        .frame();
        let backend = Backend { address: Address::v4(destination), ..backend(Family::Ipv4, 1500) };
        let egress = Egress { source_v4: source, spread_v4, ..egress() };
        let (after, result) = rewritten(&frame, &backend, &egress, hash);
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(internet_checksum(&[&after.bytes[14..34]]), [0, 0]);
        let checksum = [after.bytes[24], after.bytes[25]];
        let mut header = after.bytes[14..34].to_vec();
        header[10..12].fill(0);
        prop_assert_eq!(checksum, internet_checksum(&[&header]));
    }
}

#[test]
fn the_sample_instance_has_the_same_addresses() {
    // The golden frames in the kernel rest on it.
    let tables = sample::tables(16);
    assert_eq!(tables.egresses[1].source_v4, BALANCER_V4);
    assert_eq!(tables.egresses[1].source_mac, BALANCER_MAC);
}
