use std::net::SocketAddr;

use lb_common::{
    reason::Class,
    trace::{Header, Notes},
};
use zerocopy::IntoBytes as _;

use super::{names::Member, *};
use crate::datapath::segment::segment;

const CLIENT: &str = "198.51.100.7:40001";
const VIP: &str = "203.0.113.10:80";

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

fn names() -> Names {
    let mut names = Names::default();
    names.services.insert(0, (at(VIP).into(), "web".to_owned()));
    names.services.insert(4, (at("[2001:db8::10]:443").into(), "tls".to_owned()));
    for (index, service, name) in [(1, 0, "web-1"), (2, 0, "both"), (3, 4, "both")] {
        let address = at(&format!("10.0.0.{index}:80"));
        names.backends.insert(index, Member { service, address, name: name.to_owned() });
    }
    names
}

/// As it stands in the ring: a SYN that was forwarded to backend 1.
fn told(change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let frame = segment(at(CLIENT), at(VIP), 2);
    let length = frame.len() as u32;
    let mut header = Header {
        at: 5,
        notes: Notes { verdict: verdict::FORWARDED, backend: 1, events: 1, addressed: 0 },
        interface: 1,
        leaves_by: 1,
        length: 1400,
        captured: length,
        length_after: 1420,
        captured_after: length,
    };
    change(&mut header);
    [header.as_bytes(), &*frame, &*frame].concat()
}

#[test]
fn what_is_told_becomes_a_line() {
    let bytes = told(|_| {});
    let told = Told::read(&bytes).expect("whole");
    let line = Line::of(&told, &names(), 1_000_000_000_000_000_000);
    assert_eq!(line.at, "2001-09-09T01:46:40.000000Z");
    assert_eq!((line.verdict, line.reason), (Verdict::Forward, None));
    assert_eq!(line.sentence(), "forwarded to web/web-1, new_flows");
    assert_eq!(line.ends(), format!("{CLIENT} > {VIP}"));
    let sizes = (line.bytes, line.before.map(|b| b.bytes), line.after.map(|a| a.bytes));
    assert_eq!(sizes, (1400, Some(1400), Some(1420)));
}

#[test]
fn a_frame_that_was_not_forwarded_belongs_to_whom_it_is_addressed() {
    let bytes = told(|header| {
        header.notes = Notes { verdict: Reason::NoBackend as u32, backend: 0, ..header.notes };
        (header.leaves_by, header.captured_after) = (0, 0);
    });
    let line = Line::of(&Told::read(&bytes).expect("whole"), &names(), 0);
    assert_eq!(line.verdict, Verdict::Leave(Class::Answer));
    assert_eq!(line.sentence(), "answered: no_backend (web), new_flows");
    assert_eq!((line.after, line.leaves_by), (None, None));
}

#[test]
fn what_contradicts_itself_is_nothing() {
    let whole = told(|_| {});
    for cut in 0..whole.len() {
        assert!(Told::read(&whole[..cut]).is_none(), "{cut} bytes");
    }
    assert!(Told::read(&told(|header| header.captured = 60_000)).is_none());
    // A number that only a newer program has.
    let bytes = told(|header| header.notes.verdict = 61);
    assert_eq!(Told::read(&bytes).expect("whole").verdict(), None);
}

#[test]
fn a_question_becomes_a_filter() {
    let ask = |question: Question| filter(&question, &names());
    let all = ask(Question { all: true, ..Question::default() }).expect("a filter");
    assert_eq!(all, Filter { snap: 1, ..Filter::ALL });

    let bit = |reason: Reason| 1u64 << reason as u64;
    let ours = ask(Question::default()).expect("a filter").verdicts;
    assert_eq!(ours, !(bit(Reason::NotIp) | bit(Reason::NotVip)));
    let drops = Question { verdicts: vec![Verdict::Leave(Class::Drop)], ..Question::default() };
    let drops = ask(drops).expect("a filter").verdicts;
    assert!(drops & bit(Reason::Fragment) != 0 && drops & bit(Reason::NoBackend) == 0);
    assert_eq!(drops & 1 << verdict::FORWARDED, 0);
    let named = Question { reasons: vec![Reason::NotVip], ..Question::default() };
    assert_eq!(ask(named).expect("a filter").verdicts, bit(Reason::NotVip));

    let service = Question { service: Some("tls".to_owned()), ..Question::default() };
    let filter = ask(service.clone()).expect("a filter");
    assert_eq!((filter.service_index, filter.service.port), (4, [1, 187]));
    let backend = Question { backend: Some("both".to_owned()), ..service };
    assert_eq!(ask(backend).expect("a filter").backend, 3);
}

#[test]
fn a_name_that_nobody_or_several_have_is_refused() {
    let names = names();
    let refusal = |name: &str| names.find_backend(name, None).expect_err("refused").to_string();
    assert_eq!(
        refusal("both"),
        "both is a backend of several services (web, tls): say which with --service"
    );
    assert!(refusal("web-9").starts_with("there is no backend web-9"), "{}", refusal("web-9"));
    assert!(names.find_service("nobody").is_err());
    assert_eq!(names.find_service(VIP).expect("by its VIP").0, 0);
    assert_eq!(names.find_backend("10.0.0.1", None).expect("by its address"), 1);
    assert_eq!(names.find_backend("10.0.0.3:80", None).expect("by both"), 3);
}

#[test]
fn a_prefix_masks_either_family() {
    let has = |prefix: &str, address: &str| {
        let (wanted, mask) = masked(prefix.parse().expect("a prefix"));
        let address: std::net::IpAddr = address.parse().expect("an address");
        let ([a, b], [x, y]) = (Address::from(address).words(), mask.words());
        [a & x, b & y] == wanted.words()
    };
    assert!(has("198.51.100.0/24", "198.51.100.255") && !has("198.51.100.0/24", "198.51.101.0"));
    assert!(has("198.51.100.7/32", "198.51.100.7") && !has("198.51.100.7/32", "198.51.100.6"));
    assert!(has("2001:db8::/32", "2001:db8:ffff::1") && !has("2001:db8::/32", "2001:db9::"));
    // All of one family is not all of the other.
    assert!(has("0.0.0.0/0", "192.0.2.1") && !has("0.0.0.0/0", "2001:db8::1"));
}
