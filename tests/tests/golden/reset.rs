//! `forward/reset.rs`: the RST that answers a segment nobody takes (RFC 9293 §3.10.7.1).

use lb_common::{
    host::sample::{ClientFrame, Purpose, internet_checksum, tcp_checksum},
    parse::Family,
    reason::Reason,
    wire::Tcp,
};
use sluice_tests::kernel::Answer;

use crate::sides::{Sides, hex, tables};

/// Sent with sequence number 1,000 = 3e8 and acknowledgement number 2,000 = 7d0.
#[test]
fn each_segment_has_the_answer_written_here() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    let v4 = |flags| ClientFrame::new(Purpose::Empty, Family::Ipv4, 1).with_flags(flags);
    let v6 = |flags| ClientFrame::new(Purpose::Empty, Family::Ipv6, 1).with_flags(flags);
    // Back to the router, from 203.0.113.90 to 198.51.0.1, and the same in IPv6.
    let to_v4 = "0200000000fe 020000000001 0800
                 45 00 0028  0000 4000  40 06 3841  cb00715a c6330001";
    let to_v6 = "0200000000fe 020000000001 86dd
                 60000000 0014 06 40
                 20010db8f00d00000000000000000090
                 20010db8000c00000000000000000001";
    let ports = "0050 9c40";
    let cases = [
        ("SYN", v4(Tcp::SYN), [to_v4, ports, "00000000 000003e9 5014 0000 0cc8 0000"]),
        ("ACK", v4(Tcp::ACK), [to_v4, ports, "000007d0 00000000 5004 0000 08f1 0000"]),
        (
            "SYN with 16 bytes",
            ClientFrame { payload: vec![7; 16], ..v4(Tcp::SYN) },
            [to_v4, ports, "00000000 000003f9 5014 0000 0cb8 0000"],
        ),
        (
            "ACK with 16 bytes, options and padding",
            ClientFrame {
                payload: vec![7; 16],
                tcp_options: vec![1; 12],
                ip_options: vec![1; 12],
                padding: 6,
                traffic_class: 0xff,
                ..v4(Tcp::ACK)
            },
            [to_v4, ports, "000007d0 00000000 5004 0000 08f1 0000"],
        ),
        ("IPv6 SYN", v6(Tcp::SYN), [to_v6, ports, "00000000 000003e9 5014 0000 c33a 0000"]),
        (
            "IPv6 ACK behind options",
            ClientFrame {
                extensions: vec![(60, vec![0; 7]), (0, vec![0; 7])],
                ..v6(Tcp::FIN | Tcp::ACK)
            },
            [to_v6, ports, "000007d0 00000000 5004 0000 bf63 0000"],
        ),
    ];
    for (name, sent, output) in cases {
        let counted = sides.expect(name, &sent.frame(), Answer::Transmit, &hex(&output.concat()));
        assert_eq!(counted.reason(Reason::NoBackend), 1, "{name}");
    }
}

#[test]
fn tags_stay_and_the_checksums_are_right() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    let all_tags = [[0x88, 0xa8, 0, 200], [0x81, 0, 0, 100]];
    for family in [Family::Ipv4, Family::Ipv6] {
        for tags in 0..=2 {
            for number in 0..50 {
                let sent = ClientFrame {
                    tags: all_tags[2 - tags..].to_vec(),
                    sequence: 0xffff_fff0u32.wrapping_add(number.into()),
                    payload: vec![1; usize::from(number)],
                    ..ClientFrame::new(Purpose::Empty, family, number).with_flags(Tcp::SYN)
                };
                let input = sent.frame();
                let name = format!("{family:?}, {tags} tags, client {number}");
                let (answer, output, _) = sides.run(&name, &input);
                assert_eq!(answer, Answer::Transmit, "{name}");
                let (l3, found) = (14 + 4 * tags, &output.bytes);
                assert_eq!(found[12..l3], input.bytes[12..l3], "{name}\n{output:?}");
                let (source, destination, l4) = match family {
                    Family::Ipv4 => (l3 + 12..l3 + 16, l3 + 16..l3 + 20, l3 + 20),
                    Family::Ipv6 => (l3 + 8..l3 + 24, l3 + 24..l3 + 40, l3 + 40),
                };
                if family == Family::Ipv4 {
                    assert_eq!(internet_checksum(&[&found[l3..l4]]), [0, 0], "{name}\n{output:?}");
                }
                let sum = tcp_checksum(&found[source], &found[destination], &found[l4..]);
                assert_eq!(sum, [0, 0], "{name}\n{output:?}");
                assert_eq!(found.len(), l4 + 20, "{name}");
            }
        }
    }
}
