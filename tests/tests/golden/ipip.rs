//! `forward/ipip.rs`: the outer header to the last bit, for all four mixes.

use lb_common::{
    frame::HostFrame,
    host::sample::{ClientFrame, Purpose},
    parse::Family,
    reason::Reason,
};
use sluice_tests::kernel::Answer;

use crate::sides::{Sides, hex, tables};

use Family::{Ipv4, Ipv6};
use Purpose::{InIpv4, InIpv6, SpreadIpv4, SpreadIpv6};

const TAGS: [[u8; 4]; 2] = [[0x88, 0xa8, 0, 200], [0x81, 0, 0, 100]];

/// Written out: what a client's bare ACK becomes. Flow labels and spread sources are bits of the
/// flow's hash (computed apart from this code), which stays the same in every version, or an
/// upgrade would part connections from their backends.
#[test]
fn each_mix_has_the_outer_header_written_here() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    let cases = [
        (
            "4 in 4",
            (InIpv4, Ipv4),
            "020000010007 020000000001 0800  # to the backend's MAC from ours
             45 00 003c  0000 4000  40 04 ad91  # 60 bytes, don't fragment, 64 hops, IPv4
             c6120001 c6120107               # 198.18.0.1 to 198.18.1.7",
        ),
        (
            "6 in 4",
            (InIpv4, Ipv6),
            "02000001000a 020000000001 0800
             45 00 0050  0000 4000  40 29 ad55
             c6120001 c612010a",
        ),
        (
            "4 in 6",
            (InIpv6, Ipv4),
            "02000001000d 020000000001 86dd
             6002464e 0028 04 40             # flow label 2464e
             20010db8000100000000000000000001
             20010db800010000000000000001000d",
        ),
        (
            "6 in 6",
            (InIpv6, Ipv6),
            "020000010010 020000000001 86dd
             60069e40 003c 29 40
             20010db8000100000000000000000001
             20010db8000100000000000000010010",
        ),
        (
            "4 in 4, from a prefix",
            (SpreadIpv4, Ipv4),
            "020000010013 020000000001 0800
             45 00 003c  0000 4000  40 04 3f07
             c6136e7e c6120113",
        ),
        (
            "4 in 6, from a prefix",
            (SpreadIpv6, Ipv4),
            "020000010019 020000000001 86dd
             6007cd5a 0028 04 40
             20010db80002000000000000b53733ee
             20010db8000100000000000000010019",
        ),
    ];
    for (name, (purpose, family), headers) in cases {
        let input = ClientFrame::new(purpose, family, 1).frame();
        let output = [hex(headers), input.bytes[14..].to_vec()].concat();
        sides.expect(name, &input, Answer::Transmit, &output);
    }
}

/// Tags stay in front of the outer header, DSCP and ECN are copied, padding stays behind.
#[test]
fn tags_and_classes_are_carried_outwards() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for purpose in [InIpv4, InIpv6, SpreadIpv4, SpreadIpv6] {
        for family in [Ipv4, Ipv6] {
            for tags in 0..=2 {
                for class in [0x00, 0x01, 0x02, 0x03, 0xb8, 0xff] {
                    let sent = ClientFrame {
                        tags: TAGS[2 - tags..].to_vec(),
                        traffic_class: class,
                        payload: b"GET / HTTP/1.1\r\n".to_vec(),
                        padding: 2,
                        ..ClientFrame::new(purpose, family, 1)
                    };
                    let input = sent.frame();
                    let name = format!("{family:?} {purpose:?}, {tags} tags, class {class:#04x}");
                    let (answer, output, _) = sides.run(&name, &input);
                    assert_eq!(answer, Answer::Transmit, "{name}");
                    let l3 = 14 + 4 * tags;
                    let outer_v4 = matches!(purpose, InIpv4 | SpreadIpv4);
                    let overhead = if outer_v4 { 20 } else { 40 };
                    let found = &output.bytes;
                    assert_eq!(found[12..l3 - 2], input.bytes[12..l3 - 2], "{name}\n{output:?}");
                    assert_eq!(found[l3 + overhead..], input.bytes[l3..], "{name}\n{output:?}");
                    let copied =
                        if outer_v4 { found[l3 + 1] } else { found[l3] << 4 | found[l3 + 1] >> 4 };
                    assert_eq!(copied, class, "{name}\n{output:?}");
                }
            }
        }
    }
}

#[test]
fn what_just_fits_goes_and_what_does_not_is_dropped_untouched() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for (purpose, family, fits) in [
        (InIpv4, Ipv4, 1500 - 20 - 40),
        (InIpv4, Ipv6, 1500 - 20 - 60),
        (InIpv6, Ipv4, 1500 - 40 - 40),
        (InIpv6, Ipv6, 1500 - 40 - 60),
    ] {
        let sent = |payload| {
            let payload = vec![0x5a; payload];
            ClientFrame { payload, padding: 4, ..ClientFrame::new(purpose, family, 1) }.frame()
        };
        let name = format!("{family:?} {purpose:?}");
        let (answer, output, _) = sides.run(&name, &sent(fits));
        assert_eq!((answer, output.bytes.len()), (Answer::Transmit, 1518), "{name}");
        let input = sent(fits + 1);
        let counted = sides.expect(&name, &input, Answer::Drop, &input.bytes);
        assert_eq!(counted.reason(Reason::TooBig), 1, "{name}");
    }
}

/// Headroom runs out where a driver leaves less than XDP's 256 bytes, or metadata has taken it.
#[test]
fn without_headroom_the_frame_is_dropped_untouched() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    if !sides.takes_little_headroom() {
        return;
    }
    for (purpose, enough) in [(InIpv4, 20), (InIpv6, 40)] {
        for headroom in [0, 4, enough - 4, enough, enough + 4] {
            let input = HostFrame { headroom, ..ClientFrame::new(purpose, Ipv4, 1).frame() };
            let name = format!("{purpose:?}, {headroom} bytes of headroom");
            if headroom < enough {
                let counted = sides.expect(&name, &input, Answer::Drop, &input.bytes);
                assert_eq!(counted.reason(Reason::NoHeadroom), 1, "{name}");
            } else {
                assert_eq!(sides.run(&name, &input).0, Answer::Transmit, "{name}");
            }
        }
    }
}
