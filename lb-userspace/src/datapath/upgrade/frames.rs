//! The frames of a rehearsal: golden ones, of every kind that has a verdict of its own, and one
//! for each sampled flow.

use std::net::SocketAddr;

use lb_common::wire::{Tcp, ethernet};

use crate::datapath::segment::{MACS, segment, sign, stranger};

/// A frame and what it is there to show.
#[derive(Clone, Debug)]
pub struct Case {
    /// What a difference is reported with.
    pub name: String,
    /// The frame.
    pub frame: Vec<u8>,
    /// What is right, as far as that is known without another program's answer.
    pub expected: Expected,
}

/// The right answer to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nobody knows.
    Anything,
    /// It is the kernel's, and stays as it is.
    Passed,
    /// It is sent on, to this MAC.
    SentTo([u8; 6]),
}

/// SYNs of unknown clients for each service: enough to see other slots chosen.
const STRANGERS: u16 = 8;

/// Frames of every kind for these services.
pub fn golden(services: &[SocketAddr]) -> Vec<Case> {
    let arp = [&MACS[..], &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat();
    let mut cases = vec![
        passed("ARP", arp),
        passed("a frame that is only a header", [&MACS[..], &ethernet::IPV4].concat()),
        passed("half an IPv4 header", [&MACS[..], &ethernet::IPV4, &[0x45; 10]].concat()),
    ];
    let mut seen = [false; 2];
    for &vip in services {
        if !std::mem::replace(&mut seen[usize::from(vip.is_ipv6())], true) {
            cases.extend(of_family(vip));
        }
        for number in 0..STRANGERS {
            let client = SocketAddr::new(stranger(vip), 40_000 + number);
            for (what, flags) in [("a SYN", Tcp::SYN), ("the ACK after it", Tcp::ACK)] {
                let name = format!("{what} from {client} to {vip}");
                cases.push(anything(name, segment(client, vip, flags)));
            }
        }
    }
    cases
}

/// What can be wrong with a frame, once for each family.
fn of_family(vip: SocketAddr) -> Vec<Case> {
    let client = SocketAddr::new(stranger(vip), 39_999);
    let stranger = SocketAddr::new(stranger(vip), vip.port());
    let ack = segment(client, vip, Tcp::ACK);
    let ip = ethernet::LEN;
    let tcp = ack.len() - Tcp::LEN;
    let changed = |at: usize, byte: u8| {
        let mut frame = ack.clone();
        frame[at] = byte;
        if vip.is_ipv4() {
            sign(&mut frame[ip..]);
        }
        frame
    };
    let tagged = |tags: usize| {
        let tag = [ethernet::VLAN[0], ethernet::VLAN[1], 0, 42].repeat(tags);
        [&ack[..12], &tag, &ack[12..]].concat()
    };
    let mut cases = vec![
        passed("TCP to an address that is no VIP", segment(client, stranger, Tcp::ACK)),
        anything("an ACK of an unknown flow", ack.clone()),
        anything("a FIN of an unknown flow", segment(client, vip, Tcp::FIN | Tcp::ACK)),
        anything("a RST of an unknown flow", segment(client, vip, Tcp::RST)),
        anything("one VLAN tag", tagged(1)),
        anything("two VLAN tags", tagged(2)),
        anything("three VLAN tags", tagged(3)),
        anything("half a TCP header", ack[..tcp + 10].to_vec()),
        anything("a TCP header that is too short", changed(tcp + 12, 4 << 4)),
        anything("a TCP header that is too long", changed(tcp + 12, 15 << 4)),
    ];
    let other_port = (1..=u16::MAX).rev().find(|port| *port != vip.port()).unwrap_or(1);
    let closed = SocketAddr::new(vip.ip(), other_port);
    cases.push(anything("TCP to another port of a VIP", segment(client, closed, Tcp::SYN)));
    if vip.is_ipv4() {
        cases.push(anything("ICMP to a VIP", changed(ip + 9, 1)));
        cases.push(anything("a wrong IPv4 version", changed(ip, 0x65)));
        cases.push(anything("a wrong IPv4 header length", changed(ip, 0x44)));
        cases.push(anything("an IPv4 length beyond the frame", changed(ip + 2, 0x40)));
        cases.push(anything("a fragment", changed(ip + 6, 0x20)));
    } else {
        cases.push(anything("ICMPv6 to a VIP", changed(ip + 6, 58)));
        cases.push(anything("an IPv6 length beyond the frame", changed(ip + 4, 0x40)));
        cases.push(anything("an IPv6 fragment header", changed(ip + 6, 44)));
        cases.push(anything("an IPv6 hop-by-hop header", changed(ip + 6, 0)));
    }
    cases
}

/// The next packet of a flow.
pub fn of_flow(client: SocketAddr, vip: SocketAddr, expected: Expected) -> Case {
    let name = format!("an ACK of the flow from {client} to {vip}");
    Case { name, frame: segment(client, vip, Tcp::ACK), expected }
}

fn passed(name: &str, frame: Vec<u8>) -> Case {
    Case { name: name.to_owned(), frame, expected: Expected::Passed }
}

fn anything(name: impl Into<String>, frame: Vec<u8>) -> Case {
    Case { name: name.into(), frame, expected: Expected::Anything }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_common::parse;

    use super::*;

    #[test]
    fn well_formed_frames_are_what_they_say() {
        for (client, vip) in [
            ("198.51.100.7:4000", "203.0.113.10:80"),
            ("[2001:db8::7]:4000", "[2001:db8:f00d::10]:443"),
        ] {
            let (client, vip) = (client.parse().expect(client), vip.parse().expect(vip));
            let case = of_flow(client, vip, Expected::Anything);
            let frame = lb_common::frame::HostFrame::new(case.frame);
            let segment = parse::segment(&frame, |_, _| true).expect("well formed");
            let to: IpAddr = segment.destination.into();
            let from: IpAddr = segment.source.into();
            assert_eq!((from, to), (client.ip(), vip.ip()));
            assert_eq!(segment.ports.source, client.port().to_be_bytes());
            assert_eq!(segment.ports.destination, vip.port().to_be_bytes());
            assert_eq!(segment.flags, Tcp::ACK);
        }
    }

    #[test]
    fn each_golden_frame_is_another_one() {
        let vips = ["203.0.113.10:80", "[2001:db8:f00d::10]:443", "203.0.113.11:80"];
        let cases = golden(&vips.map(|vip| vip.parse().expect(vip)));
        assert!(cases.len() > 80, "{}", cases.len());
        for (index, case) in cases.iter().enumerate() {
            assert!(case.frame.len() >= ethernet::LEN, "{}", case.name);
            for other in &cases[..index] {
                assert_ne!(other.frame, case.frame, "{} and {}", other.name, case.name);
            }
        }
    }
}
