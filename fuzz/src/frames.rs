//! What must be true of every frame, whatever is in it.
//!
//! It has one verdict and is counted once. What is passed is untouched. What is sent is the frame that
//! came, but for what its verdict changes: addresses, ports, hops, an MSS, an outer header. Checksums
//! are compared with a full recomputation: who came with a right one leaves with a right one, and
//! what was damaged stays damaged by as much.

use std::ops::Range;

use lb_common::{
    abi::{Backend, PROBE_HOST_MAC, PROBE_PEER_MAC},
    address::Address,
    counters::Traffic,
    flow::Kind,
    forward::{Action, Forwarding},
    frame::{Frame as _, HostFrame},
    host::{
        Counted, HostTables,
        sample::{self, internet_checksum, tcp_checksum},
    },
    parse::{self, Family, Glance, Located, Segment},
    probe,
    reason::{Class, Reason},
    steer,
    wire::{self, Ipv4, Ipv6, Tcp, ethernet},
};

/// Which program gets a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// That of clients' frames.
    Traffic,
    /// That of the prober's own.
    Probes,
    /// That where only answers to probes concern us.
    Answers,
}

/// What became of a frame.
pub struct Done {
    /// What the kernel is to do with it.
    pub action: Action,
    /// As it is then.
    pub output: HostFrame,
    /// What was counted.
    pub counted: Counted,
}

/// Sends a frame down its road.
///
/// # Panics
/// If what must be true is not.
pub fn send(road: Road, input: &HostFrame, tables: &HostTables, now: u64) -> Done {
    parsed(input);
    tables.take_counted();
    let mut output = input.clone();
    let action = match road {
        Road::Traffic => steer::process(&mut output, tables, now),
        Road::Probes => probe::send(&mut output, tables),
        Road::Answers => probe::collect(&mut output, tables),
    };
    let done = Done { action, output, counted: tables.take_counted() };
    Judge { road, input, done: &done, tables }.judge();
    done
}

/// What parsing makes of a frame lies in the frame, and the short way agrees with the long one.
fn parsed(frame: &HostFrame) {
    let found = parse::segment(frame, |_, _| true);
    match parse::glance(frame, |_, _| true) {
        Glance::Ipv4(segment) | Glance::Ipv6(segment) => {
            assert_eq!(found, Ok(segment), "a glance tells otherwise\n{frame:?}");
        }
        // An IPv4 address in IPv6's clothes, which is nobody's.
        Glance::NotVip => {
            assert_eq!(found, Err(Reason::NotVip), "a glance tells otherwise\n{frame:?}");
        }
        Glance::Odd => {}
    }
    let Ok(Segment { l3, l4, ip_length, payload, .. }) = found else { return };
    let [l3, l4, ip_length, payload] = [l3, l4, ip_length, payload].map(usize::from);
    assert!(matches!(l3, 14 | 18 | 22) && l3 + Ipv4::LEN <= l4, "{l3}, {l4}\n{frame:?}");
    let end = l3 + ip_length;
    assert!(end <= frame.len(), "{end} of {} bytes\n{frame:?}", frame.len());
    assert!(l4 + Tcp::LEN + payload <= end, "{payload} bytes of payload\n{frame:?}");
}

struct Judge<'a> {
    road: Road,
    input: &'a HostFrame,
    done: &'a Done,
    tables: &'a HostTables,
}

impl Judge<'_> {
    fn judge(&self) {
        let Done { action, output, counted } = self.done;
        let reasons: u64 = counted.reasons.values().sum();
        let packets = counted.packets();
        let is_counted = match self.road {
            Road::Traffic => reasons + packets == 1 || self.is_self_test() && reasons == 0,
            // What is sent for the prober leaves no trace, nor what is nobody's answer.
            Road::Probes => (reasons == 1) == (*action == Action::Drop) && packets == 0,
            Road::Answers => reasons + packets == u64::from(*action != Action::Pass),
        };
        self.must(is_counted, "it is counted once");
        let reason = Reason::ALL.iter().copied().find(|reason| counted.reason(*reason) > 0);
        match (action, reason) {
            (Action::Pass, reason) => {
                let is_passed = |reason: Reason| matches!(reason.class(), Class::Pass);
                self.must(reason.is_none_or(is_passed), "what is passed has a reason for it");
                self.must(output == self.input, "what is passed is untouched");
            }
            (Action::Drop, reason) => {
                let is_dropped = |reason: Reason| !matches!(reason.class(), Class::Pass);
                self.must(packets == 0, "what is dropped was not forwarded");
                self.must(reason.is_none_or(is_dropped), "what is dropped has a reason for it");
            }
            (Action::Redirect(interface), Some(Reason::ProbeAnswer)) => {
                self.must(*interface == sample::PROBE_INTERFACE, "it goes to the prober");
                self.delivered();
            }
            (Action::Transmit, Some(Reason::TooBig)) => self.told(),
            (Action::Transmit, Some(reason)) => {
                self.must(matches!(reason.class(), Class::Answer), "a RST has a reason for it");
                self.reset();
            }
            (Action::Redirect(_), Some(_)) => self.must(false, "who is answered is where he was"),
            (Action::Transmit, None) if self.road == Road::Probes && self.is_turned() => {
                self.told();
            }
            (Action::Transmit | Action::Redirect(_), None) => self.sent(),
        }
    }

    #[track_caller]
    fn must(&self, is_true: bool, what: &str) {
        let Done { action, output, counted } = self.done;
        assert!(
            is_true,
            "{what}: not so on the road of {:?}: {action:?}, {counted:?}\n{:?}became\n{output:?}",
            self.road, self.input
        );
    }

    /// Whether it may be one of the daemon's own, which leave no trace.
    fn is_self_test(&self) -> bool {
        self.segment().is_some_and(|segment| segment.ports.source == [0; 2])
    }

    fn segment(&self) -> Option<Segment> {
        parse::segment(self.input, |_, _| true).ok()
    }

    /// Whether it goes back to where it came from.
    fn is_turned(&self) -> bool {
        let (input, output) = (&self.input.bytes, &self.done.output.bytes);
        output[..6] == input[6..12] && output[6..12] == input[..6]
    }

    /// Its sender is told that it is too big, and what is not.
    fn told(&self) {
        let output = &self.done.output.bytes;
        let answer = self.packet(output);
        let at = answer.l4(output) + 6;
        let mtu = u16::from_be_bytes([output[at], output[at + 1]]);
        let length = self.packet(&self.input.bytes).length;
        self.must(length > usize::from(mtu), "what is told is less than what was sent");
        let expected = sample::too_big(self.input, mtu);
        self.must(*output == expected.bytes, "the error is as the RFCs want it");
    }

    /// To a backend, or from one to its client.
    fn sent(&self) {
        let index = match self.road {
            Road::Traffic => self.done.counted.traffic.keys().next().copied().unwrap_or(0),
            Road::Probes | Road::Answers => {
                let port = self.segment().map(|segment| segment.ports.source);
                port.map_or(0, |port| self.tables.probes[&u16::from_be_bytes(port)])
            }
        };
        // A self-test is counted as nobody's: whose it was, where it goes tells.
        let mac = &self.done.output.bytes[..6];
        let of_mac = |backend: &&Backend| backend.next_hop.mac() == mac;
        let backend = match index {
            0 => self.tables.backends[1..].iter().find(of_mac),
            index => self.tables.backends.get(usize::from(index)),
        };
        let Some(backend) = backend else {
            return self.must(false, "what is forwarded goes to a backend");
        };
        let traffic = self.done.counted.traffic.get(&index).copied().unwrap_or_default();
        let Traffic { bytes, return_packets, return_bytes, .. } = traffic;
        if self.road == Road::Traffic {
            let length = self.input.len() as u64;
            self.must(bytes + return_bytes == length, "bytes are counted as received");
        }
        let is_return = return_packets > 0;
        if !is_return {
            let egress = self.tables.egresses[usize::from(backend.next_hop.egress())];
            self.must(of_mac(&backend), "it goes to its backend's MAC");
            self.must(self.done.output.bytes[6..12] == egress.source_mac, "from our own MAC");
            let out = match self.done.action {
                Action::Redirect(interface) => interface,
                _ => self.input.interface,
            };
            self.must(out == egress.ifindex, "by its backend's interface");
        }
        if is_return || backend.forwarding == Forwarding::Nat as u8 {
            self.translated(backend, is_return);
        } else if backend.forwarding == Forwarding::Ipip as u8 {
            self.tunnelled(backend);
        } else {
            let announced = self.announced(backend, 0);
            self.must(self.done.output.bytes[12..] == announced[12..], "only MACs change");
        }
    }

    /// What was sent, the MSS of a client's SYN lowered to what its service lets it announce, option
    /// by option (RFC 9293 §3.1, §3.2). In the output it begins so many bytes later.
    fn announced(&self, backend: &Backend, later: usize) -> Vec<u8> {
        let mut bytes = self.input.bytes.clone();
        let most = self.tables.services[usize::from(backend.service)].service.mss_clamp;
        let Some(segment) = self.segment() else { return bytes };
        let is_clients = self.road == Road::Traffic && !self.is_self_test();
        if most == 0 || !is_clients || !matches!(Kind::of(segment.flags), Kind::Syn) {
            return bytes;
        }
        let (l3, l4) = (usize::from(segment.l3), usize::from(segment.l4));
        let end = l4 + usize::from(bytes[l4 + 12] >> 4) * 4;
        let mut at = l4 + 20;
        while at + 4 <= end {
            match (bytes[at], bytes[at + 1]) {
                (1, _) => at += 1,
                (2, 4) => break,
                (0, _) | (_, 0 | 1) => return bytes,
                (_, length) => at += usize::from(length),
            }
        }
        if at + 4 > end || u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]) <= most {
            return bytes;
        }
        let tcp = l4..l3 + usize::from(segment.ip_length);
        let before = internet_checksum(&[&bytes[tcp.clone()]]);
        bytes[at + 2..at + 4].copy_from_slice(&most.to_be_bytes());
        // What was damaged stays so: the sum of the segment is what it was. Zero has two forms.
        let sum = l4 + Tcp::CHECKSUM;
        let found = &self.done.output.bytes[sum + later..][..2];
        bytes[sum..sum + 2].copy_from_slice(found);
        let same = |one: [u8; 2], other: [u8; 2]| {
            one == other || [one, other].iter().all(|sum| matches!(sum, [0, 0] | [0xff, 0xff]))
        };
        self.must(same(internet_checksum(&[&bytes[tcp]]), before), "the checksum follows the MSS");
        bytes
    }

    /// The packet stays as it is; the prober knows no VLANs.
    fn delivered(&self) {
        let output = &self.done.output.bytes;
        let l3 = self.segment().map_or(0, |segment| usize::from(segment.l3));
        self.must(output[..12] == [PROBE_PEER_MAC, PROBE_HOST_MAC].concat(), "MACs of the veth");
        let rest = ethernet::TYPE..;
        self.must(output[rest] == self.input.bytes[l3 - 2..], "the packet stays as it is");
    }

    /// The packet stays as it is, in another whose lengths and checksum are right.
    fn tunnelled(&self, backend: &Backend) {
        let (input, output) = (&self.input.bytes, &self.done.output.bytes);
        let Packet { l3, family, length, class, .. } = self.packet(input);
        let outer = self.packet(output);
        self.must(outer.l3 == l3 && input[12..l3 - 2] == output[12..l3 - 2], "tags stay");
        let header = match outer.family {
            Family::Ipv4 => Ipv4::LEN,
            Family::Ipv6 => Ipv6::LEN,
        };
        self.must(l3 + length <= input.len(), "what is no whole packet is sent in none");
        let announced = self.announced(backend, header);
        let inner = &announced[l3..l3 + length];
        self.must(
            output[l3 + header..] == *inner,
            "the inner packet stays as it is, without padding",
        );
        self.must(outer.length == header + length, "the outer length is right");
        self.must(backend.mtu == 0 || outer.length <= usize::from(backend.mtu), "it fits the MTU");
        self.must(outer.destination == backend.address, "it is addressed to the backend");
        self.must(outer.class == class, "DSCP and ECN are copied");
        let inner = match family {
            Family::Ipv4 => wire::IPV4_IN_IP,
            Family::Ipv6 => wire::IPV6_IN_IP,
        };
        self.must(outer.protocol == inner, "it says what is in it");
        if outer.family == Family::Ipv4 {
            let sum = internet_checksum(&[&output[l3..l3 + header]]);
            self.must(sum == [0; 2], "the outer header's checksum is right");
        }
    }

    /// Other addresses and ports, one hop less; checksums follow.
    fn translated(&self, backend: &Backend, is_return: bool) {
        let (input, output) = (&self.input.bytes, &self.done.output.bytes);
        self.must(input.len() == output.len(), "its length stays");
        let (was, is) = (self.packet(input), self.packet(output));
        let shape = |packet: &Packet| (packet.l3, packet.family, packet.length, packet.class);
        self.must(shape(&was) == shape(&is) && was.protocol == is.protocol, "its shape stays");
        self.must(is.hops > 0 && was.hops.checked_sub(1) == Some(is.hops), "it has one hop less");
        if is_return {
            let vips = self.tables.services.iter().map(|service| service.service.address);
            self.must(vips.clone().any(|vip| vip == is.source), "it comes from a VIP");
        } else {
            self.must(is.destination == backend.address, "it goes to the backend");
        }
        let l3 = was.l3;
        if was.family == Family::Ipv4 {
            let header = l3..was.l4(input);
            let sums = [input, output].map(|bytes| residue(&[&bytes[header.clone()]]));
            self.must(sums[0] == sums[1], "the IP header's checksum follows");
        }
        match self.segment() {
            Some(segment) => self.translated_segment(&segment, &was, &is),
            None => self.translated_error(&was, &is),
        }
    }

    fn translated_segment(&self, segment: &Segment, was: &Packet, is: &Packet) {
        let (input, output) = (&self.input.bytes, &self.done.output.bytes);
        let Segment { l3, l4, ip_length, .. } = *segment;
        let [l3, l4, ip_length] = [l3, l4, ip_length].map(usize::from);
        let tcp = l4..l3 + ip_length;
        let before = canonical(tcp_checksum(&was.ends(), &[], &input[tcp.clone()]));
        let after = canonical(tcp_checksum(&is.ends(), &[], &output[tcp]));
        self.must(before == after, "the TCP checksum follows");
        // Sequence numbers, flags, window; then all behind the header.
        let same = |range: Range<usize>| input[range.clone()] == output[range];
        self.must(same(l4 + 4..l4 + Tcp::CHECKSUM), "numbers and flags stay");
        let header = l4 + usize::from(input[l4 + 12] >> 4) * 4;
        self.must(same(header..input.len()), "what TCP carries stays");
        let options = l4 + Tcp::LEN..header;
        let differ = options.filter(|at| input[*at] != output[*at]).count();
        let is_syn = segment.flags & Tcp::SYN != 0;
        self.must(differ == 0 || is_syn && differ <= 2, "of the options only a SYN's MSS changes");
    }

    fn translated_error(&self, was: &Packet, is: &Packet) {
        let (input, output) = (&self.input.bytes, &self.done.output.bytes);
        let l4 = was.l4(input);
        self.must(input[l4..l4 + 2] == output[l4..l4 + 2], "type and code stay");
        let [before, after] = [(was, input), (is, output)].map(|(packet, bytes)| {
            // Only ICMPv6's covers the addresses (RFC 4443 §2.3).
            let ends = if packet.family == Family::Ipv6 { packet.ends() } else { Vec::new() };
            residue(&[&ends, &bytes[l4..]])
        });
        self.must(before == after, "the ICMP checksum follows");
        if was.family == Family::Ipv4 {
            let inner = l4 + 8;
            let header = inner..inner + usize::from(input[inner] & 0x0f) * 4;
            let sums = [input, output].map(|bytes| residue(&[&bytes[header.clone()]]));
            self.must(sums[0] == sums[1], "the quoted header's checksum follows");
        }
    }

    /// A RST, all of it made here.
    fn reset(&self) {
        let (input, output) = (&self.input.bytes, &self.done.output.bytes);
        let Some(asked) = self.segment() else {
            return self.must(false, "only a segment is answered by RST");
        };
        let Ok(answer) = parse::segment(&self.done.output, |_, _| true) else {
            return self.must(false, "a RST is a segment");
        };
        self.must(asked.flags & Tcp::RST == 0, "a RST is not answered");
        self.must(output[..6] == input[6..12] && output[6..12] == input[..6], "MACs are turned");
        let (l3, l4) = (usize::from(answer.l3), usize::from(answer.l4));
        self.must(answer.l3 == asked.l3 && output[12..l3] == input[12..l3], "tags stay");
        self.must(output.len() == l4 + Tcp::LEN, "nothing is behind it");
        self.must(usize::from(answer.ip_length) == output.len() - l3, "its length is right");
        self.must(
            (answer.source, answer.destination) == (asked.destination, asked.source)
                && (answer.ports.source, answer.ports.destination)
                    == (asked.ports.destination, asked.ports.source),
            "it goes where the segment came from",
        );
        self.must(answer.flags & !Tcp::ACK == Tcp::RST, "it is a RST");
        let packet = self.packet(output);
        if answer.family == Family::Ipv4 {
            let sum = internet_checksum(&[&output[l3..l4]]);
            self.must(sum == [0; 2], "its IP header's checksum is right");
        }
        let sum = tcp_checksum(&packet.ends(), &[], &output[l4..]);
        self.must(sum == [0; 2], "its TCP checksum is right");
    }

    fn packet(&self, bytes: &[u8]) -> Packet {
        let Some(packet) = Packet::of(bytes) else {
            panic!("no packet: {:?}\n{:?}", self.input, self.done.output);
        };
        packet
    }
}

/// What an IP header says.
struct Packet {
    l3: usize,
    family: Family,
    /// With its header.
    length: usize,
    class: u8,
    hops: u8,
    protocol: u8,
    source: Address,
    destination: Address,
}

impl Packet {
    fn of(bytes: &[u8]) -> Option<Self> {
        let frame = HostFrame::new(bytes);
        let Located { l3, family, .. } = parse::locate(&frame).ok()?;
        let two = u16::from_be_bytes;
        Some(match family {
            Family::Ipv4 => {
                let header: Ipv4 = frame.read(l3)?;
                Self {
                    l3,
                    family,
                    length: usize::from(two(header.length)),
                    class: header.traffic_class,
                    hops: header.ttl,
                    protocol: header.protocol,
                    source: Address::v4(header.source),
                    destination: Address::v4(header.destination),
                }
            }
            Family::Ipv6 => {
                let header: Ipv6 = frame.read(l3)?;
                let [version_class, class_label, ..] = header.version_class_label;
                Self {
                    l3,
                    family,
                    length: usize::from(two(header.payload_length)) + Ipv6::LEN,
                    class: version_class << 4 | class_label >> 4,
                    hops: header.hop_limit,
                    protocol: header.next_header,
                    source: Address::v6(header.source),
                    destination: Address::v6(header.destination),
                }
            }
        })
    }

    /// Both addresses, as a pseudo header has them.
    fn ends(&self) -> Vec<u8> {
        let octets = |address: Address| match address.to_v4() {
            Some(octets) => octets.to_vec(),
            None => address.to_v6().to_vec(),
        };
        [octets(self.source), octets(self.destination)].concat()
    }

    /// Where the header ends; of IPv6 the first one.
    fn l4(&self, bytes: &[u8]) -> usize {
        match self.family {
            Family::Ipv4 => self.l3 + usize::from(bytes[self.l3] & 0x0f) * 4,
            Family::Ipv6 => self.l3 + Ipv6::LEN,
        }
    }
}

/// By how much a checksum is wrong, its own field among the bytes: zero if it is right.
fn residue(parts: &[&[u8]]) -> [u8; 2] {
    canonical(internet_checksum(parts))
}

/// Ones' complement has two zeros.
const fn canonical(sum: [u8; 2]) -> [u8; 2] {
    match sum {
        [0xff, 0xff] => [0, 0],
        sum => sum,
    }
}
