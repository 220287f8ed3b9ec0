//! `forward/ipip.rs`: the outer header to the last bit, for all four mixes.

use lb_common::{
    frame::HostFrame,
    host::sample::{self, ClientFrame, Purpose},
    limit,
    parse::Family,
    reason::Reason,
};
use sluice_tests::kernel::{Answer, Kernel, Program};

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

/// Tags stay in front of the outer header, DSCP and ECN are copied, padding does not enter.
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
                    let packet = &input.bytes[l3..input.bytes.len() - sent.padding];
                    assert_eq!(found[l3 + overhead..], *packet, "{name}\n{output:?}");
                    let copied =
                        if outer_v4 { found[l3 + 1] } else { found[l3] << 4 | found[l3 + 1] >> 4 };
                    assert_eq!(copied, class, "{name}\n{output:?}");
                }
            }
        }
    }
}

/// To the packet the tunnel is a wire: its hops, its checksum and its options are its backend's matter.
#[test]
fn the_packet_travels_as_it_came() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for (purpose, overhead) in [(InIpv4, 20), (InIpv6, 40)] {
        for (family, hops_at) in [(Ipv4, 14 + 8), (Ipv6, 14 + 7)] {
            for hops in [0, 1, 2, 255] {
                let sent =
                    ClientFrame { ip_options: vec![1; 8], ..ClientFrame::new(purpose, family, 1) };
                let mut input = sent.frame();
                // With it IPv4's checksum is wrong.
                input.bytes[hops_at] = hops;
                let name = format!("{family:?} {purpose:?}, {hops} hops");
                let (answer, output, _) = sides.run(&name, &input);
                assert_eq!(answer, Answer::Transmit, "{name}");
                assert_eq!(output.bytes[14 + overhead..], input.bytes[14..], "{name}\n{output:?}");
                let outer_hops = output.bytes[if overhead == 20 { 22 } else { 21 }];
                assert_eq!(outer_hops, 64, "{name}\n{output:?}");
            }
        }
    }
}

#[test]
fn what_just_fits_goes_and_of_what_does_not_its_sender_is_told() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for (purpose, family, room, headers) in [
        (InIpv4, Ipv4, 1500 - 20, 40),
        (InIpv4, Ipv6, 1500 - 20, 60),
        (InIpv6, Ipv4, 1500 - 40, 40),
        (InIpv6, Ipv6, 1500 - 40, 60),
    ] {
        for tags in 0..=2 {
            let sent = |length: u16| {
                let payload = vec![0x5a; usize::from(length) - headers];
                let tags = TAGS[2 - tags..].to_vec();
                ClientFrame { tags, payload, padding: 4, ..ClientFrame::new(purpose, family, 1) }
                    .frame()
            };
            let name = format!("{family:?} {purpose:?}, {tags} tags");
            let (answer, output, _) = sides.run(&name, &sent(room));
            assert_eq!((answer, output.bytes.len()), (Answer::Transmit, 1514 + 4 * tags), "{name}");
            for length in [room + 1, 1500] {
                let input = sent(length);
                let told = sample::too_big(&input, room);
                let counted = sides.expect(&name, &input, Answer::Transmit, &told.bytes);
                assert_eq!(counted.reason(Reason::TooBig), 1, "{name}");
                assert_eq!(counted.packets(), 0, "{name}");
            }
        }
    }
}

/// Written out, so that not both sides can be wrong in the same way.
#[test]
fn who_sends_too_much_is_told_as_written_here() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for (family, payload, headers) in [
        (
            Ipv4,
            1461,
            "0200000000fe 020000000001 0800
             45 c0 023c  0000 4000  40 01 35b8  # 572 bytes, internetwork control, ICMP
             cb007114 c6330001               # 203.0.113.20, the VIP, to 198.51.0.1
             03 04 0e02  0000 05c8           # fragmentation needed, 1480
             45 00 05dd  1234 4000  3f 06 219e  # the packet itself
             c6330001 cb007114",
        ),
        (
            Ipv6,
            1421,
            "0200000000fe 020000000001 86dd
             6c000000 04d8 3a 40             # 1,240 bytes of ICMPv6
             20010db8f00d00000000000000000020
             20010db8000c00000000000000000001
             02 00 a013  000005c8            # packet too big, 1480
             6000beef 05a1 06 3f
             20010db8000c00000000000000000001
             20010db8f00d00000000000000000020",
        ),
    ] {
        let payload = vec![0x5a; payload];
        let input = ClientFrame { payload, ..ClientFrame::new(InIpv4, family, 1) }.frame();
        let headers = hex(headers);
        let quoted = headers.len() - if family == Ipv4 { 42 } else { 62 };
        let most = if family == Ipv4 { 544 } else { 1232 };
        let output = [&headers, &input.bytes[14 + quoted..14 + most]].concat();
        sides.expect(&format!("{family:?}"), &input, Answer::Transmit, &output);
    }
}

/// No more of them than a second may have are sent at once.
#[test]
fn of_a_flood_a_part_is_answered_and_all_is_counted() {
    const SENT: u64 = 5 * limit::PER_SECOND;
    let Some(mut kernel) = Kernel::start(&tables()).unwrap() else { return };
    let payload = vec![0; 1461];
    let input = ClientFrame { payload, ..ClientFrame::new(InIpv4, Ipv4, 1) }.frame();
    for _ in 0..SENT {
        kernel.run_through(Program::Sluice, &input).unwrap();
    }
    let counted = kernel.take_counted().unwrap();
    let [told, silent] = [Reason::TooBig, Reason::TooBigUnanswered].map(|r| counted.reason(r));
    assert_eq!(told + silent, SENT);
    assert!(told >= limit::PER_SECOND && silent > 0, "{told} answered, {silent} not");
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
