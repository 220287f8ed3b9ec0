use std::vec;

use proptest::prelude::*;

use super::*;
use crate::{
    frame::HostFrame,
    host::{
        Random,
        corpus::{self, Layout},
        sample::{self, ClientFrame, FAMILIES, Purpose},
    },
    reason::Class,
};

fn is_vip(_: Address, address: Address) -> bool {
    FAMILIES.iter().any(|&family| address == sample::vip(Purpose::L2, family).ip().into())
}

fn layout(segment: &Segment) -> Layout {
    let Segment { l3, l4, ip_length, payload, .. } = *segment;
    Layout { l3, l4, ip_length, payload }
}

#[test]
fn every_frame_of_the_corpus_parses_as_it_should() {
    for case in corpus::cases() {
        let parsed = segment(&case.frame, is_vip).map(|segment| layout(&segment));
        assert_eq!(parsed, case.outcome, "{case:?}");
    }
}

/// A glance tells what a look tells, or nothing.
fn glance_agrees(frame: &HostFrame, is_vip: fn(Address, Address) -> bool) -> bool {
    let seen = match glance(frame, is_vip) {
        Glance::Ipv4(segment) | Glance::Ipv6(segment) => Ok(segment),
        Glance::NotVip => Err(Reason::NotVip),
        Glance::Odd => return false,
    };
    assert_eq!(seen, segment(frame, is_vip), "{frame:?}");
    true
}

#[test]
fn a_glance_does_not_mislead() {
    for case in corpus::cases() {
        glance_agrees(&case.frame, is_vip);
    }
    for family in FAMILIES {
        for purpose in [Purpose::L2, Purpose::InIpv6] {
            let frame = ClientFrame::new(purpose, family, 1).frame();
            assert!(glance_agrees(&frame, is_vip), "odd: {frame:?}");
        }
    }
}

#[test]
fn nothing_is_dropped_before_it_is_known_to_be_for_a_vip() {
    for case in corpus::cases() {
        if let Err(reason) = segment(&case.frame, |_, _| false) {
            assert_eq!(reason.class(), Class::Pass, "{case:?}\nbecame {reason:?}");
        } else {
            panic!("not for a VIP, but steered\n{case:?}");
        }
    }
}

#[test]
fn every_prefix_of_every_frame_has_a_verdict() {
    for case in corpus::cases() {
        for len in 0..case.frame.bytes.len() {
            let frame = HostFrame::new(&case.frame.bytes[..len]);
            if let Ok(segment) = segment(&frame, is_vip) {
                // Only bytes behind the packet may be missing.
                let end = usize::from(segment.l3) + usize::from(segment.ip_length);
                assert!(end <= len, "cut to {len} bytes, still whole\n{case:?}");
            }
        }
    }
}

fn any_client_frame() -> impl Strategy<Value = ClientFrame> {
    let tags = prop::sample::select(vec![[0x81, 0, 0, 1], [0x88, 0xa8, 0x2f, 0xff]]);
    let options = (0usize..=10).prop_map(|words| vec![1; words * 4]);
    let kinds =
        prop::sample::select(vec![Ipv6::HOP_BY_HOP, Ipv6::ROUTING, Ipv6::DESTINATION_OPTIONS]);
    let extensions = prop::collection::vec(
        (kinds, 0u8..=3).prop_map(|(kind, more)| {
            let mut content = vec![0; 7 + 8 * usize::from(more)];
            content[0] = more;
            (kind, content)
        }),
        0..=8,
    );
    (
        (prop::sample::select(FAMILIES.to_vec()), any::<u16>(), any::<u16>(), any::<u8>()),
        (prop::collection::vec(tags, 0..=2), options.clone(), options, extensions),
        (any::<u8>(), any::<u32>(), any::<u32>(), 0usize..8),
        prop::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(who, layers, tcp, payload)| {
            let (family, number, port, traffic_class) = who;
            let (tags, ip_options, tcp_options, extensions) = layers;
            let (flags, sequence, acknowledgement, padding) = tcp;
            ClientFrame {
                tags,
                client: sample::client(family, number, port),
                vip: sample::vip(Purpose::L2, family),
                traffic_class,
                ip_options,
                extensions,
                flags,
                sequence,
                acknowledgement,
                tcp_options,
                payload,
                padding,
            }
        })
}

proptest! {
    #[test]
    fn a_well_formed_frame_is_read_field_by_field(sent in any_client_frame()) {
        let segment = segment(&sent.frame(), is_vip).expect("well formed");
        let family = if sent.client.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        let l3 = 14 + 4 * sent.tags.len();
        let l4 = l3 + match family {
            Family::Ipv4 => 20 + sent.ip_options.len(),
            Family::Ipv6 => {
                40 + sent.extensions.iter().map(|(_, content)| 1 + content.len()).sum::<usize>()
            }
        };
        let ip_length = l4 - l3 + 20 + sent.tcp_options.len() + sent.payload.len();
        let expected = Segment {
            source: sent.client.ip().into(),
            destination: sent.vip.ip().into(),
            ports: Ports {
                source: sent.client.port().to_be_bytes(),
                destination: sent.vip.port().to_be_bytes(),
            },
            l3: l3 as u16,
            l4: l4 as u16,
            family,
            flags: sent.flags,
            traffic_class: sent.traffic_class,
            ip_length: ip_length as u16,
            payload: sent.payload.len() as u16,
        };
        prop_assert_eq!(segment, expected);
    }

    /// Whatever bytes a segment is made of, it lies within its frame.
    #[test]
    fn what_is_read_from_noise_lies_within_the_frame(
        sent in any_client_frame(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        len in any::<prop::sample::Index>(),
    ) {
        let mut frame = sent.frame();
        for (at, value) in changes {
            // Headers, for the most part.
            let at = at.index(frame.bytes.len().min(80));
            frame.bytes[at] = value;
        }
        let len = frame.bytes.len() - len.index(frame.bytes.len()).min(40);
        frame.bytes.truncate(len);
        glance_agrees(&frame, |_, _| true);
        if let Ok(segment) = segment(&frame, |_, _| true) {
            let (l3, l4) = (usize::from(segment.l3), usize::from(segment.l4));
            let (ip_length, payload) = (usize::from(segment.ip_length), usize::from(segment.payload));
            prop_assert!(matches!(l3, 14 | 18 | 22));
            prop_assert!(l4 >= l3 + Ipv4::LEN && l4 + Tcp::LEN <= l3 + ip_length);
            prop_assert!(l3 + ip_length <= len);
            prop_assert!(l4 + Tcp::LEN + payload <= l3 + ip_length);
        }
    }
}

#[test]
fn noise_has_a_verdict() {
    let mut random = Random(1);
    let mut read = 0;
    for _ in 0..20_000 {
        let len = random.below(120);
        let mut bytes = random.bytes(len);
        // Some of it gets past the comparisons.
        let likely =
            [(12, 0x08), (13, 0x00), (14, 0x45), (16, 0), (17, 40), (20, 0), (21, 0), (23, 6)];
        for (at, value) in likely {
            if !random.one_in(8) && at < len {
                bytes[at] = value;
            }
        }
        let frame = HostFrame::new(bytes);
        glance_agrees(&frame, |_, _| true);
        read += u32::from(segment(&frame, |_, _| true).is_ok());
    }
    assert!(read > 0, "not one got through");
}
