//! The wild (`lb_common::host::corpus`): whole segments go to their backend, all else is left
//! alone or dropped, for the reason it should be.

use lb_common::{
    host::{
        Counted, corpus,
        sample::{self, BALANCER_MAC, Purpose},
    },
    parse::Family,
    reason::Class,
};
use sluice_tests::kernel::Answer;

use crate::sides::{Sides, tables};

#[test]
fn every_frame_of_the_corpus_ends_as_it_should() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for case in corpus::cases().into_iter().chain(corpus::openings()) {
        let (answer, output) = match case.outcome {
            Ok(_) => {
                let is_v6 =
                    case.frame.bytes[12..].windows(2).take(9).any(|kind| kind == [0x86, 0xdd]);
                let family = if is_v6 { Family::Ipv6 } else { Family::Ipv4 };
                let mut output = case.frame.bytes.clone();
                output[..6].copy_from_slice(&sample::mac(sample::backend(Purpose::L2, family, 0)));
                output[6..12].copy_from_slice(&BALANCER_MAC);
                (Answer::Transmit, output)
            }
            Err(reason) if reason.class() == Class::Pass => {
                (Answer::Pass, case.frame.bytes.clone())
            }
            Err(_) => (Answer::Drop, case.frame.bytes.clone()),
        };
        let counted = sides.expect(case.name, &case.frame, answer, &output);
        if let Err(reason) = case.outcome {
            let expected = Counted { reasons: [(reason.name(), 1)].into(), ..Counted::default() };
            assert_eq!(counted, expected, "{case:?}");
        } else {
            assert_eq!(counted.packets(), 1, "{case:?}");
        }
    }
}

/// The filter is coarse: an address that is none of ours may share a VIP's bit.
#[test]
fn a_stranger_behind_the_filter_is_never_dropped() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    for case in corpus::readdressed(sample::behind_the_filter(Purpose::L2)) {
        sides.expect(case.name, &case.frame, Answer::Pass, &case.frame.bytes);
    }
}
