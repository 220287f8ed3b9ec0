//! The wild: frames addressed to the sample instance's `L2` services, broken and whole, each
//! with what parsing makes of it. A frame that once broke something joins it, with a line on
//! what it broke.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};
use std::{vec, vec::Vec};

use super::errors;
use super::sample::{self, ClientFrame, FAMILIES, INTERFACE, Purpose};
use crate::{frame::HostFrame, parse::Family, reason::Reason, wire::Tcp};

/// One frame and what becomes of it.
pub struct Case {
    /// What is odd about it.
    pub name: &'static str,
    /// The frame.
    pub frame: HostFrame,
    /// Where a whole segment lies, or why there is none.
    pub outcome: Result<Layout, Reason>,
}

/// What a failing test prints.
impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}\n{:?}", self.name, self.outcome, self.frame)
    }
}

/// Where a segment lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the TCP header.
    pub l4: u16,
    /// Bytes of the IP packet.
    pub ip_length: u16,
    /// Bytes of TCP payload.
    pub payload: u16,
}

const fn whole(l3: u16, l4: u16, ip_length: u16, payload: u16) -> Result<Layout, Reason> {
    Ok(Layout { l3, l4, ip_length, payload })
}

/// The customer's tag, VLAN 100, and the provider's, VLAN 200.
const TAG: [u8; 4] = [0x81, 0x00, 0x00, 100];
const SERVICE_TAG: [u8; 4] = [0x88, 0xa8, 0x00, 200];

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// An extension header of `8 + 8 * more` bytes, filled with one PadN option (RFC 8200 §4.2).
fn padding_header(kind: u8, more: u8) -> (u8, Vec<u8>) {
    let length = 7 + 8 * usize::from(more);
    let mut content = vec![0; length];
    content[0] = more;
    content[1] = 1;
    content[2] = (length - 3).min(255) as u8;
    (kind, content)
}

/// A fragment header with this offset and flag field (RFC 8200 §4.5).
fn fragment_header(offset: u16) -> (u8, Vec<u8>) {
    let [high, low] = offset.to_be_bytes();
    (FRAGMENT, vec![0, high, low, 0, 0, 0, 77])
}

fn v4() -> ClientFrame {
    ClientFrame::new(Purpose::L2, Family::Ipv4, 1)
}

fn v6(extensions: Vec<(u8, Vec<u8>)>) -> ClientFrame {
    ClientFrame { extensions, ..ClientFrame::new(Purpose::L2, Family::Ipv6, 1) }
}

/// With some bytes written over, counted from the frame's first.
fn with(mut frame: HostFrame, at: usize, bytes: &[u8]) -> HostFrame {
    frame.bytes[at..][..bytes.len()].copy_from_slice(bytes);
    frame
}

fn cut(mut frame: HostFrame, len: usize) -> HostFrame {
    frame.bytes.truncate(len);
    frame
}

fn ping(family: Family) -> HostFrame {
    let kind = if family == Family::Ipv4 { 8 } else { 128 };
    let client = sample::client(family, 1, 0).ip();
    errors::echo(client, sample::vip(Purpose::L2, family).ip(), kind)
}

/// Offsets in an untagged frame.
const L3: usize = 14;
const V4_LENGTH: usize = L3 + 2;
const V4_FRAGMENT: usize = L3 + 6;
const V4_PROTOCOL: usize = L3 + 9;
const V4_TCP_OFFSET: usize = L3 + 20 + 12;
const V6_LENGTH: usize = L3 + 4;
const V6_NEXT: usize = L3 + 6;
const V6_TCP_OFFSET: usize = L3 + 40 + 12;

/// The untagged IPv4 frames of the table that are for the VIP, for another destination instead.
pub fn readdressed(destination: Ipv4Addr) -> Vec<Case> {
    let vip = sample::vip(Purpose::L2, Family::Ipv4).ip();
    let destined = |case: &Case| {
        let field: Option<[u8; 4]> =
            case.frame.bytes.get(L3 + 16..L3 + 20).and_then(|bytes| bytes.try_into().ok());
        case.frame.bytes[12..14] == [0x08, 0x00] && field.map(IpAddr::from) == Some(vip)
    };
    let mut cases: Vec<Case> = cases()
        .into_iter()
        .filter(|case| case.frame.bytes.len() >= L3 + 20 && destined(case))
        .collect();
    for case in &mut cases {
        case.frame.bytes[L3 + 16..L3 + 20].copy_from_slice(&destination.octets());
    }
    cases
}

/// Whole segments for a service, each of a flow that is not known, with what steering makes of
/// them: such as begin a flow, and such as nobody could have sent for that.
pub fn openings() -> Vec<Case> {
    let flags = [
        ("SYN", Tcp::SYN, true),
        ("SYN with ECN's flags", Tcp::SYN | 0xc0, true),
        ("SYN, urgent", Tcp::SYN | 0x20, true),
        ("SYN and ACK", Tcp::SYN | Tcp::ACK, true),
        ("ACK", Tcp::ACK, true),
        ("ACK, PSH and URG", Tcp::ACK | 0x28, true),
        ("FIN and ACK", Tcp::FIN | Tcp::ACK, true),
        ("RST", Tcp::RST, true),
        ("RST and ACK", Tcp::RST | Tcp::ACK, true),
        ("no flags", 0, false),
        ("PSH alone", 0x08, false),
        ("FIN alone", Tcp::FIN, false),
        ("FIN, PSH and URG: a Christmas tree", Tcp::FIN | 0x28, false),
        ("all flags", 0xff, false),
        ("SYN and FIN", Tcp::SYN | Tcp::FIN, false),
        ("SYN, FIN and ACK", Tcp::SYN | Tcp::FIN | Tcp::ACK, false),
        ("SYN and RST", Tcp::SYN | Tcp::RST, false),
        ("FIN and RST", Tcp::FIN | Tcp::RST, false),
    ];
    let sources = [
        ("192.0.2.1", true),
        ("169.254.0.1", true),
        ("0.0.0.0", false),
        ("0.1.2.3", false),
        ("127.0.0.1", false),
        ("224.0.0.1", false),
        ("240.0.0.1", false),
        ("255.255.255.255", false),
        ("203.0.113.10", false),
        ("fe80::1", true),
        ("64:ff9b::192.0.2.1", true),
        ("::", false),
        ("::1", false),
        ("ff02::1", false),
        ("::ffff:192.0.2.7", false),
        ("2001:db8:f00d::10", false),
    ];
    let mut cases = Vec::new();
    let mut add = |name: &'static str, sent: ClientFrame, outcome: Result<(), Reason>| {
        let whole = if sent.vip.is_ipv4() { whole(14, 34, 40, 0) } else { whole(14, 54, 60, 0) };
        // From port 0 of the first interface come the daemon's self-tests.
        let interface = if sent.client.port() == 0 { sample::OTHER_INTERFACE } else { INTERFACE };
        let frame = HostFrame { interface, ..sent.frame() };
        cases.push(Case { name, frame, outcome: outcome.and(whole) });
    };
    for family in FAMILIES {
        for (number, (name, flags, is_good)) in (100..).zip(flags) {
            let sent = ClientFrame::new(Purpose::L2, family, number).with_flags(flags);
            add(name, sent, if is_good { Ok(()) } else { Err(Reason::BadFlags) });
        }
        for (name, from, to) in
            [("from port 0", 0, 80), ("to port 0", 40_000, 0), ("from port 0 to port 0", 0, 0)]
        {
            let mut sent = ClientFrame::new(Purpose::L2, family, 1).with_flags(Tcp::SYN);
            sent.client.set_port(from);
            sent.vip.set_port(to);
            // Of port 0 there is no service.
            let reason = if to == 0 { Reason::NotService } else { Reason::BadPort };
            add(name, sent, Err(reason));
        }
        for (source, is_good) in sources {
            let mut sent = ClientFrame::new(Purpose::L2, family, 1).with_flags(Tcp::SYN);
            let address: IpAddr = source.parse().expect("a literal address");
            if address.is_ipv4() == sent.vip.is_ipv4() {
                sent.client.set_ip(address);
                add(source, sent, if is_good { Ok(()) } else { Err(Reason::BadSource) });
            }
        }
    }
    cases
}

/// The whole table.
pub fn cases() -> Vec<Case> {
    let groups = [ethernet(), ipv4(), fragments(), tcp(), ipv6(), extension_headers()];
    let cases: Vec<Case> = groups
        .into_iter()
        .flatten()
        .map(|(name, frame, outcome)| Case { name, frame, outcome })
        .collect();
    for (index, case) in cases.iter().enumerate() {
        assert!(cases[..index].iter().all(|other| other.name != case.name), "{} twice", case.name);
    }
    cases
}

type Row = (&'static str, HostFrame, Result<Layout, Reason>);

fn ethernet() -> Vec<Row> {
    let tagged = |tags: &[[u8; 4]]| ClientFrame { tags: tags.to_vec(), ..v4() }.frame();
    let tagged_v6 = |tags: &[[u8; 4]]| ClientFrame { tags: tags.to_vec(), ..v6(vec![]) }.frame();
    let other = |kind: [u8; 2]| with(v4().frame(), 12, &kind);
    vec![
        ("IPv4", v4().frame(), whole(14, 34, 40, 0)),
        ("IPv6", v6(vec![]).frame(), whole(14, 54, 60, 0)),
        ("IPv4, a tag", tagged(&[TAG]), whole(18, 38, 40, 0)),
        ("IPv6, a tag", tagged_v6(&[TAG]), whole(18, 58, 60, 0)),
        ("a service tag", tagged(&[SERVICE_TAG]), whole(18, 38, 40, 0)),
        ("a priority tag, VLAN 0", tagged(&[[0x81, 0, 0xe0, 0]]), whole(18, 38, 40, 0)),
        ("IPv4, two tags", tagged(&[SERVICE_TAG, TAG]), whole(22, 42, 40, 0)),
        ("IPv6, two tags", tagged_v6(&[SERVICE_TAG, TAG]), whole(22, 62, 60, 0)),
        ("the same tag twice", tagged(&[TAG, TAG]), whole(22, 42, 40, 0)),
        ("three tags", tagged(&[SERVICE_TAG, TAG, TAG]), Err(Reason::NotIp)),
        ("an old QinQ tag, 0x9100", tagged(&[[0x91, 0, 0, 1]]), Err(Reason::NotIp)),
        ("ARP", other([0x08, 0x06]), Err(Reason::NotIp)),
        ("LLDP", other([0x88, 0xcc]), Err(Reason::NotIp)),
        ("PPPoE", other([0x88, 0x64]), Err(Reason::NotIp)),
        ("MPLS", other([0x88, 0x47]), Err(Reason::NotIp)),
        ("a length instead of a type", other([0x00, 40]), Err(Reason::NotIp)),
        ("nothing", HostFrame::new([]), Err(Reason::Runt)),
        ("addresses without a type", cut(v4().frame(), 13), Err(Reason::Runt)),
        ("an Ethernet header alone", cut(v4().frame(), 14), Err(Reason::Runt)),
        ("a tag without a type", cut(tagged(&[TAG]), 17), Err(Reason::Runt)),
        ("two tags, nothing else", cut(tagged(&[SERVICE_TAG, TAG]), 20), Err(Reason::Runt)),
        ("19 bytes of IPv4", cut(v4().frame(), 33), Err(Reason::Runt)),
        ("39 bytes of IPv6", cut(v6(vec![]).frame(), 53), Err(Reason::Runt)),
        ("19 bytes of IPv4, two tags", cut(tagged(&[SERVICE_TAG, TAG]), 41), Err(Reason::Runt)),
    ]
}

fn ipv4() -> Vec<Row> {
    let options = |bytes: usize| ClientFrame { ip_options: vec![1; bytes], ..v4() };
    let padded = |padding: usize| ClientFrame { padding, ..v4() }.frame();
    let length = |bytes: u16| with(padded(6), V4_LENGTH, &bytes.to_be_bytes());
    let protocol = |number: u8| with(v4().frame(), V4_PROTOCOL, &[number]);
    let to = |address: [u8; 4]| with(v4().frame(), L3 + 16, &address);
    vec![
        ("IPv4, 4 bytes of options", options(4).frame(), whole(14, 38, 44, 0)),
        ("IPv4, 40 bytes of options", options(40).frame(), whole(14, 74, 80, 0)),
        ("IPv4, reserved flag", with(v4().frame(), V4_FRAGMENT, &[0xc0, 0]), whole(14, 34, 40, 0)),
        // Whose matter it is: the backend's, which checks it anyway.
        ("IPv4, wrong checksum", with(v4().frame(), L3 + 10, &[0, 0]), whole(14, 34, 40, 0)),
        ("IPv4, no hop left", with(v4().frame(), L3 + 8, &[0]), whole(14, 34, 40, 0)),
        ("IPv4, the last hop", with(v4().frame(), L3 + 8, &[1]), whole(14, 34, 40, 0)),
        (
            "IPv4, a source route",
            with(options(8).frame(), L3 + 20, &[131, 7, 4]),
            whole(14, 42, 48, 0),
        ),
        ("IPv4, padded to 60 bytes", padded(6), whole(14, 34, 40, 0)),
        ("version 6 in IPv4", with(v4().frame(), L3, &[0x65]), Err(Reason::BadIpHeader)),
        ("version 0 in IPv4", with(v4().frame(), L3, &[0x05]), Err(Reason::BadIpHeader)),
        ("IPv4 header of 16 bytes", with(v4().frame(), L3, &[0x44]), Err(Reason::BadIpHeader)),
        ("IPv4 header of 0 bytes", with(v4().frame(), L3, &[0x40]), Err(Reason::BadIpHeader)),
        (
            "IPv4 header longer than the frame",
            with(v4().frame(), L3, &[0x4f]),
            Err(Reason::Truncated),
        ),
        (
            "IPv4 header longer than the packet",
            with(padded(46), L3, &[0x4f]),
            Err(Reason::BadLength),
        ),
        (
            "IPv4 header over the TCP header",
            with(ClientFrame { payload: vec![0; 40], ..v4() }.frame(), L3, &[0x4a]),
            Err(Reason::BadTcpHeader),
        ),
        ("IPv4 length 0", length(0), Err(Reason::BadLength)),
        ("IPv4 length 19", length(19), Err(Reason::BadLength)),
        ("IPv4 length 20", length(20), Err(Reason::BadLength)),
        ("IPv4 length 39", length(39), Err(Reason::BadLength)),
        ("IPv4 length over the padding", length(46), whole(14, 34, 46, 6)),
        ("IPv4 length 1 beyond the frame", length(47), Err(Reason::BadLength)),
        ("IPv4 length 65,535", length(u16::MAX), Err(Reason::BadLength)),
        ("ping", protocol(1), Err(Reason::NotTcp)),
        ("a whole ping", ping(Family::Ipv4), Err(Reason::NotTcp)),
        ("IPv4 in IPv4", protocol(4), Err(Reason::NotTcp)),
        ("UDP", protocol(17), Err(Reason::NotTcp)),
        ("IPv6 in IPv4", protocol(41), Err(Reason::NotTcp)),
        ("SCTP", protocol(132), Err(Reason::NotTcp)),
        ("for another host", to([192, 0, 2, 1]), Err(Reason::NotVip)),
        ("for everybody", to([255; 4]), Err(Reason::NotVip)),
        ("for a group", to([224, 0, 0, 1]), Err(Reason::NotVip)),
        (
            "nonsense for another host",
            with(to([192, 0, 2, 1]), L3, &[0xff; 12]),
            Err(Reason::NotVip),
        ),
        (
            "a fragment for another host",
            with(to([192, 0, 2, 1]), V4_FRAGMENT, &[0x20, 0]),
            Err(Reason::NotVip),
        ),
    ]
}

fn fragments() -> Vec<Row> {
    let fragment = |field: u16| with(v4().frame(), V4_FRAGMENT, &field.to_be_bytes());
    vec![
        ("may be fragmented", fragment(0), whole(14, 34, 40, 0)),
        ("first fragment", fragment(0x2000), Err(Reason::Fragment)),
        ("middle fragment", fragment(0x2001), Err(Reason::Fragment)),
        ("last fragment", fragment(0x0001), Err(Reason::Fragment)),
        ("fragment at the far end", fragment(0x1fff), Err(Reason::Fragment)),
        ("first fragment, don't fragment", fragment(0x6000), Err(Reason::Fragment)),
        ("a short last fragment", cut(fragment(0x00b9), 36), Err(Reason::Fragment)),
        ("a fragment of a ping", with(fragment(0x2000), V4_PROTOCOL, &[1]), Err(Reason::NotTcp)),
    ]
}

fn tcp() -> Vec<Row> {
    let payload = |bytes: usize| ClientFrame { payload: vec![0x5a; bytes], ..v4() }.frame();
    let options = |bytes: usize| ClientFrame { tcp_options: vec![1; bytes], ..v4() }.frame();
    let offset = |frame: HostFrame, words: u8| with(frame, V4_TCP_OFFSET, &[words << 4]);
    let v6_offset = |words: u8| with(v6(vec![]).frame(), V6_TCP_OFFSET, &[words << 4]);
    vec![
        ("a byte", payload(1), whole(14, 34, 41, 1)),
        ("a full segment", payload(1460), whole(14, 34, 1500, 1460)),
        ("a jumbo segment", payload(8960), whole(14, 34, 9000, 8960)),
        ("TCP options", options(12), whole(14, 34, 52, 0)),
        ("40 bytes of TCP options", options(40), whole(14, 34, 80, 0)),
        ("TCP options beyond the frame", cut(options(12), 60), Err(Reason::BadLength)),
        ("TCP header of 0 bytes", offset(payload(0), 0), Err(Reason::BadTcpHeader)),
        ("TCP header of 16 bytes", offset(payload(0), 4), Err(Reason::BadTcpHeader)),
        ("TCP header longer than the packet", offset(payload(0), 6), Err(Reason::BadTcpHeader)),
        ("TCP header all of the payload", offset(payload(40), 15), whole(14, 34, 80, 0)),
        ("TCP header 1 beyond the payload", offset(payload(39), 15), Err(Reason::BadTcpHeader)),
        (
            "TCP header into the padding",
            offset(ClientFrame { padding: 6, ..v4() }.frame(), 6),
            Err(Reason::BadTcpHeader),
        ),
        (
            "19 bytes of TCP, and the length says so",
            with(cut(payload(0), 53), V4_LENGTH, &[0, 39]),
            Err(Reason::Truncated),
        ),
        (
            "no TCP, and the length says so",
            with(cut(payload(0), 34), V4_LENGTH, &[0, 20]),
            Err(Reason::Truncated),
        ),
        ("19 bytes of TCP, the length says 20", cut(payload(0), 53), Err(Reason::BadLength)),
        ("IPv6, TCP header of 16 bytes", v6_offset(4), Err(Reason::BadTcpHeader)),
        ("IPv6, TCP header too long", v6_offset(6), Err(Reason::BadTcpHeader)),
    ]
}

fn ipv6() -> Vec<Row> {
    let plain = || v6(vec![]).frame();
    let padded = |padding| ClientFrame { padding, ..v6(vec![]) }.frame();
    let length = |bytes: u16| with(padded(4), V6_LENGTH, &bytes.to_be_bytes());
    let next = |number: u8| with(plain(), V6_NEXT, &[number]);
    let mapped = |at: usize, address: [u8; 4]| {
        with(with(plain(), at, &[0; 10]), at + 10, &[&[0xff; 2], &address[..]].concat())
    };
    let other = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let vip4 = match sample::vip(Purpose::L2, Family::Ipv4).ip() {
        IpAddr::V4(vip) => vip.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    vec![
        ("IPv6, padded", padded(4), whole(14, 54, 60, 0)),
        ("IPv6, no hop left", with(plain(), L3 + 7, &[0]), whole(14, 54, 60, 0)),
        ("IPv6, the last hop", with(plain(), L3 + 7, &[1]), whole(14, 54, 60, 0)),
        ("version 4 in IPv6", with(plain(), L3, &[0x45]), Err(Reason::BadIpHeader)),
        ("version 0 in IPv6", with(plain(), L3, &[0x00]), Err(Reason::BadIpHeader)),
        ("IPv6 length 0, as of a jumbogram", length(0), Err(Reason::BadLength)),
        ("IPv6 length 19", length(19), Err(Reason::BadLength)),
        ("IPv6 length over the padding", length(24), whole(14, 54, 64, 4)),
        ("IPv6 length 1 beyond the frame", length(25), Err(Reason::BadLength)),
        ("IPv6 length 65,495: 65,535 with its header", length(65_495), Err(Reason::BadLength)),
        ("IPv6 length 65,496: one more", length(65_496), Err(Reason::BadLength)),
        ("IPv6 length 65,535", length(u16::MAX), Err(Reason::BadLength)),
        ("IPv6 UDP", next(17), Err(Reason::NotTcp)),
        ("ICMPv6", next(58), Err(Reason::NotTcp)),
        ("a whole ping of IPv6", ping(Family::Ipv6), Err(Reason::NotTcp)),
        ("no next header", next(59), Err(Reason::NotTcp)),
        ("ESP", next(50), Err(Reason::NotTcp)),
        ("AH", next(51), Err(Reason::NotTcp)),
        ("IPv6 for another host", with(plain(), L3 + 24, &other), Err(Reason::NotVip)),
        // It would have passed for the IPv4 VIP.
        ("the IPv4 VIP as a mapped address", mapped(L3 + 24, vip4), Err(Reason::NotVip)),
    ]
}

fn extension_headers() -> Vec<Row> {
    let chain = |headers: &[(u8, u8)]| {
        v6(headers.iter().map(|&(kind, more)| padding_header(kind, more)).collect()).frame()
    };
    let fragment =
        |offset: u16, next: u8| with(v6(vec![fragment_header(offset)]).frame(), L3 + 40, &[next]);
    let behind_options = {
        let headers = vec![padding_header(DESTINATION_OPTIONS, 0), fragment_header(1)];
        v6(headers).frame()
    };
    let eight = [(DESTINATION_OPTIONS, 0); 8];
    let nine = [(DESTINATION_OPTIONS, 0); 9];
    // 8 + 8 * 63 = 512 bytes each.
    let full = [(HOP_BY_HOP, 63), (DESTINATION_OPTIONS, 63)];
    let too_full = [(HOP_BY_HOP, 63), (DESTINATION_OPTIONS, 64)];
    vec![
        ("hop-by-hop options", chain(&[(HOP_BY_HOP, 0)]), whole(14, 62, 68, 0)),
        ("routing header", chain(&[(ROUTING, 2)]), whole(14, 78, 84, 0)),
        ("destination options", chain(&[(DESTINATION_OPTIONS, 1)]), whole(14, 70, 76, 0)),
        (
            "one of each",
            chain(&[(HOP_BY_HOP, 0), (ROUTING, 0), (DESTINATION_OPTIONS, 0)]),
            whole(14, 78, 84, 0),
        ),
        ("8 extension headers", chain(&eight), whole(14, 118, 124, 0)),
        ("9 extension headers", chain(&nine), Err(Reason::ExtensionHeaders)),
        ("1,024 bytes of extension headers", chain(&full), whole(14, 1078, 1084, 0)),
        ("1,032 bytes of them", chain(&too_full), Err(Reason::ExtensionHeaders)),
        ("an option that lies", chain(&[(HOP_BY_HOP, 255)]), Err(Reason::ExtensionHeaders)),
        (
            "no room for an extension header",
            cut(chain(&[(HOP_BY_HOP, 0)]), 55),
            Err(Reason::Truncated),
        ),
        (
            "extension header beyond the frame",
            with(chain(&[(HOP_BY_HOP, 0)]), L3 + 41, &[9]),
            Err(Reason::Truncated),
        ),
        (
            "extension header beyond the packet",
            with(chain(&[(HOP_BY_HOP, 0)]), V6_LENGTH, &[0, 20]),
            Err(Reason::BadLength),
        ),
        (
            "UDP behind options",
            with(chain(&[(DESTINATION_OPTIONS, 0)]), L3 + 40, &[17]),
            Err(Reason::NotTcp),
        ),
        ("an atomic fragment", fragment(0, 6), whole(14, 62, 68, 0)),
        ("atomic, reserved bits set", fragment(6, 6), whole(14, 62, 68, 0)),
        ("IPv6 first fragment", fragment(1, 6), Err(Reason::Fragment)),
        ("IPv6 middle fragment", fragment(8 | 1, 6), Err(Reason::Fragment)),
        ("IPv6 last fragment", fragment(8, 6), Err(Reason::Fragment)),
        ("IPv6 fragment behind options", behind_options, Err(Reason::Fragment)),
        ("IPv6 fragment of UDP", fragment(1, 17), Err(Reason::NotTcp)),
        ("IPv6 fragment of a ping", fragment(8, 58), Err(Reason::NotTcp)),
        ("cut fragment header", cut(fragment(0, 6), 57), Err(Reason::Truncated)),
    ]
}
