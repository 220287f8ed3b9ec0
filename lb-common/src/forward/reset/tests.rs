use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    frame::HostFrame,
    host::sample::{
        BALANCER_MAC, ClientFrame, FAMILIES, Purpose, ROUTER_MAC, internet_checksum, tcp_checksum,
    },
    parse,
};

fn answered(sent: &ClientFrame) -> HostFrame {
    let mut frame = sent.frame();
    let segment = parse::segment(&frame, |_, _| true).expect("well formed");
    rewrite(&mut frame, &segment).expect("a RST is shorter than what it answers");
    frame
}

/// The RST byte by byte: RFC 9293 §3.10.7.1 and §3.1, with checksums over every byte.
fn rst(sent: &ClientFrame, sequence: u32, acknowledgement: u32, flags: u8) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(sent.vip.port().to_be_bytes());
    tcp.extend(sent.client.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledgement.to_be_bytes());
    tcp.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);

    let mut bytes = [ROUTER_MAC, BALANCER_MAC].concat();
    bytes.extend(sent.tags.iter().flatten());
    match (sent.vip.ip(), sent.client.ip()) {
        (core::net::IpAddr::V4(vip), core::net::IpAddr::V4(client)) => {
            let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
            header.extend(vip.octets());
            header.extend(client.octets());
            let checksum = internet_checksum(&[&header]);
            header[10..12].copy_from_slice(&checksum);
            let checksum = tcp_checksum(&vip.octets(), &client.octets(), &tcp);
            tcp[16..18].copy_from_slice(&checksum);
            bytes.extend([0x08, 0x00]);
            bytes.extend(header);
        }
        (core::net::IpAddr::V6(vip), core::net::IpAddr::V6(client)) => {
            let checksum = tcp_checksum(&vip.octets(), &client.octets(), &tcp);
            tcp[16..18].copy_from_slice(&checksum);
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            bytes.extend(vip.octets());
            bytes.extend(client.octets());
        }
        other => panic!("of two families: {other:?}"),
    }
    bytes.extend(tcp);
    bytes
}

const FIN: u8 = Tcp::FIN;
const SYN: u8 = Tcp::SYN;
const RST: u8 = Tcp::RST;
const ACK: u8 = Tcp::ACK;

/// Flags and bytes of payload of a segment with sequence number 1,000 and acknowledgement
/// number 2,000; sequence, acknowledgement and flags of the answer.
#[test]
fn the_answer_is_what_rfc_9293_says() {
    let cases = [
        (SYN, 0, (0, 1001, RST | ACK)),
        // Fast open.
        (SYN, 10, (0, 1011, RST | ACK)),
        (SYN | FIN, 0, (0, 1002, RST | ACK)),
        (FIN, 0, (0, 1001, RST | ACK)),
        (FIN, 7, (0, 1008, RST | ACK)),
        (0, 0, (0, 1000, RST | ACK)),
        (0, 1, (0, 1001, RST | ACK)),
        (ACK, 0, (2000, 0, RST)),
        (ACK, 1400, (2000, 0, RST)),
        (SYN | ACK, 0, (2000, 0, RST)),
        (FIN | ACK, 5, (2000, 0, RST)),
        // PSH, URG and ECN's flags have no say.
        (0xe8, 3, (0, 1003, RST | ACK)),
        (0xe8 | ACK, 3, (2000, 0, RST)),
    ];
    for (flags, payload, (sequence, acknowledgement, answer)) in cases {
        for family in FAMILIES {
            for tags in 0..=2 {
                let sent = ClientFrame {
                    tags: [[0x88, 0xa8, 0, 200], [0x81, 0, 0, 100]][2 - tags..].to_vec(),
                    payload: vec![0x5a; payload],
                    ..ClientFrame::new(Purpose::Empty, family, 1).with_flags(flags)
                };
                let expected = rst(&sent, sequence, acknowledgement, answer);
                assert_eq!(answered(&sent).bytes, expected, "{sent:?}\n{:?}", sent.frame());
            }
        }
    }
}

#[test]
fn numbers_wrap_around() {
    let sent = ClientFrame {
        sequence: u32::MAX - 1,
        payload: vec![0; 10],
        ..ClientFrame::new(Purpose::Empty, Family::Ipv4, 1).with_flags(SYN)
    };
    assert_eq!(answered(&sent).bytes, rst(&sent, 0, 9, RST | ACK));
}

/// One written out in full, so that not both sides can be wrong in the same way.
#[test]
fn a_refused_syn_is_answered_as_written_here() {
    let sent = ClientFrame::new(Purpose::Empty, Family::Ipv4, 1).with_flags(SYN);
    #[rustfmt::skip]
    let expected = [
        0x02, 0, 0, 0, 0, 0xfe,  0x02, 0, 0, 0, 0, 0x01,  0x08, 0x00,
        0x45, 0x00, 0x00, 0x28,  0, 0, 0x40, 0,  64, 6, 0x38, 0x41,
        203, 0, 113, 90,  198, 51, 0, 1,
        0x00, 0x50, 0x9c, 0x40, // ports 80 and 40,000
        0, 0, 0, 0,  0, 0, 0x03, 0xe9, // acknowledges 1,001
        0x50, 0x14, 0, 0,  0x0c, 0xc8, 0, 0,
    ];
    let answer = answered(&sent);
    assert_eq!(answer.bytes, expected, "{answer:?}");
}

#[test]
fn nothing_of_the_answered_segment_remains() {
    for family in FAMILIES {
        let sent = ClientFrame {
            ip_options: vec![1; 40],
            extensions: vec![(60, vec![1; 15]), (0, vec![0; 7])],
            tcp_options: vec![2; 40],
            payload: vec![3; 1000],
            padding: 7,
            traffic_class: 0xff,
            ..ClientFrame::new(Purpose::Empty, family, 1)
        };
        let mut sent = sent;
        // The first header's length field says 16 bytes.
        sent.extensions[0].1[0] = 1;
        assert_eq!(answered(&sent).bytes, rst(&sent, 2000, 0, RST));
    }
}

proptest! {
    #[test]
    fn every_checksum_is_right(
        number: u16,
        port: u16,
        sequence: u32,
        acknowledgement: u32,
        flags: u8,
        payload in 0usize..100,
        family in prop::sample::select(FAMILIES.to_vec()),
    ) {
        let mut sent = ClientFrame {
            sequence,
            acknowledgement,
            payload: vec![9; payload],
            ..ClientFrame::new(Purpose::Empty, family, number).with_flags(flags)
        };
        sent.client.set_port(port);
        let (sequence, acknowledgement, answer) = if flags & ACK != 0 {
            (acknowledgement, 0, RST)
        } else {
            let length = payload as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
            (0, sequence.wrapping_add(length), RST | ACK)
        };
        prop_assert_eq!(answered(&sent).bytes, rst(&sent, sequence, acknowledgement, answer));
    }

    /// A client whose IPv6 address looks like an IPv4 one: 16 bytes go into the checksum.
    #[test]
    fn a_mapped_client_gets_a_right_checksum(address: [u8; 4]) {
        let mut sent = ClientFrame::new(Purpose::Empty, Family::Ipv6, 1);
        let mapped = core::net::Ipv4Addr::from(address).to_ipv6_mapped();
        sent.client = core::net::SocketAddr::new(mapped.into(), 40_000);
        let answer = answered(&sent).bytes;
        let tcp = &answer[54..];
        let sum = tcp_checksum(&answer[22..38], &answer[38..54], tcp);
        prop_assert_eq!(sum, [0, 0]);
    }
}
