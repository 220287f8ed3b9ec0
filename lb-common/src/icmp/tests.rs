use core::net::{IpAddr, SocketAddr};
use std::vec::Vec;

use super::*;
use crate::{
    frame::HostFrame,
    host::{
        HostTables,
        errors::{self, checksum_of, router, too_big},
        sample::{self, BALANCER_MAC, ClientFrame, FAMILIES, Purpose, ROUTER_MAC},
    },
    steer,
    wire::Tcp,
};

/// The ends of a packet and of the one that it quotes; all checksums are right.
fn ends(packet: &[u8]) -> (IpAddr, IpAddr, SocketAddr, SocketAddr) {
    let is_v4 = packet[0] >> 4 == 4;
    let length = if is_v4 { 20 } else { 40 };
    let of = |header: &[u8]| -> (IpAddr, IpAddr) {
        if is_v4 {
            assert_eq!(sample::internet_checksum(&[&header[..20]]), [0; 2], "IP checksum");
            let one = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).expect("four bytes");
            (one(12).into(), one(16).into())
        } else {
            let one = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen");
            (one(8).into(), one(24).into())
        }
    };
    let (from, to) = of(packet);
    let icmp = &packet[length..];
    assert_eq!(checksum_of(from, to, icmp), [0; 2], "ICMP checksum");
    let inner = &icmp[8..];
    let (quoted_from, quoted_to) = of(inner);
    let port = |at: usize| u16::from_be_bytes([inner[length + at], inner[length + at + 1]]);
    let quoted = |ip, at| SocketAddr::new(ip, port(at));
    (from, to, quoted(quoted_from, 0), quoted(quoted_to, 2))
}

/// A client's flow, and the ends of its packets as the backend sees them.
fn open(tables: &HostTables, purpose: Purpose, family: Family) -> (ClientFrame, u16, Vec<u8>) {
    let sent = ClientFrame::new(purpose, family, 7).with_flags(Tcp::SYN);
    let mut frame = sent.frame();
    assert_eq!(steer::process(&mut frame, tables, 0), Action::Transmit);
    let (&index, _) = tables.take_counted().traffic.first_key_value().expect("forwarded");
    (sent, index, frame.bytes[14..].to_vec())
}

fn process(tables: &HostTables, frame: &HostFrame) -> (Action, HostFrame) {
    let mut rewritten = frame.clone();
    (steer::process(&mut rewritten, tables, 0), rewritten)
}

#[test]
fn an_error_from_the_clients_side_goes_to_the_backend_in_every_mode() {
    for family in FAMILIES {
        for purpose in
            [Purpose::L2, Purpose::AnyPort, Purpose::InIpv4, Purpose::InIpv6, Purpose::Nat]
        {
            for quoted in [8, 20] {
                let tables = sample::tables(1024);
                let (client, index, _) = open(&tables, purpose, family);
                let sent = too_big(client.vip, client.client, quoted);
                let (action, got) = process(&tables, &sent);
                assert_eq!(action, Action::Transmit, "{purpose:?} {family:?}");
                assert_eq!(got.bytes[..6], sample::mac(index));
                let counted = tables.take_counted();
                assert_eq!(counted.traffic[&index].packets, 1);
                assert_eq!(counted.reasons.len(), 0);
                match purpose {
                    Purpose::L2 | Purpose::AnyPort => assert_eq!(got.bytes[12..], sent.bytes[12..]),
                    Purpose::InIpv4 => assert_eq!(got.bytes[34..], sent.bytes[14..]),
                    Purpose::InIpv6 => assert_eq!(got.bytes[54..], sent.bytes[14..]),
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn a_backend_is_told_of_the_packet_that_it_has_sent() {
    for family in FAMILIES {
        for purpose in [Purpose::Nat, Purpose::NatKeep] {
            let tables = sample::tables(1024);
            let (client, index, seen) = open(&tables, purpose, family);
            let (_, got) = process(&tables, &too_big(client.vip, client.client, 8));
            let (from, to, quoted_from, quoted_to) = ends(&got.bytes[14..]);
            let backend = SocketAddr::new(sample::backend_address(index, family), purpose.port());
            assert_eq!((from, to), (router(family), backend.ip()));
            // Its own packet's ends: the reverse of what we have sent to it.
            let at = if family == Family::Ipv4 { 20 } else { 40 };
            let nat_port = u16::from_be_bytes([seen[at], seen[at + 1]]);
            assert_eq!((quoted_from, quoted_to.port()), (backend, nat_port));
            let keeps = quoted_to.ip() == client.client.ip();
            assert_eq!(keeps, purpose == Purpose::NatKeep, "{quoted_to}");
        }
    }
}

#[test]
fn an_error_from_the_backends_side_goes_to_the_client_as_from_the_vip() {
    for family in FAMILIES {
        for quoted in [8, 20] {
            let tables = sample::tables(1024);
            let (client, index, seen) = open(&tables, Purpose::Nat, family);
            let at = if family == Family::Ipv4 { 20 } else { 40 };
            let ours = sample::prober(0, family).ip();
            let ours = SocketAddr::new(ours, u16::from_be_bytes([seen[at], seen[at + 1]]));
            let backend = SocketAddr::new(sample::backend_address(index, family), 8080);
            let (action, got) = process(&tables, &too_big(ours, backend, quoted));
            assert_eq!(action, Action::Transmit);
            assert_eq!(got.bytes[..12], [ROUTER_MAC, BALANCER_MAC].concat());
            let (from, to, quoted_from, quoted_to) = ends(&got.bytes[14..]);
            assert_eq!((from, to), (client.vip.ip(), client.client.ip()));
            assert_eq!((quoted_from, quoted_to), (client.client, client.vip));
            assert_eq!(tables.take_counted().traffic[&index].return_packets, 1);
            // The next port is nobody's.
            let other = SocketAddr::new(ours.ip(), ours.port() ^ 1);
            let sent = too_big(other, backend, quoted);
            assert_eq!(process(&tables, &sent), (Action::Pass, sent));
            assert_eq!(tables.take_counted().reason(Reason::NotVip), 1);
        }
    }
}

#[test]
fn what_is_no_error_about_a_known_flow_is_the_kernels() {
    for family in FAMILIES {
        let tables = sample::tables(1024);
        let (client, ..) = open(&tables, Purpose::Nat, family);
        let cases = errors::strange(client.vip, client.client);
        for (name, frame) in cases {
            let (action, after) = process(&tables, &frame);
            assert_eq!((action, &after), (Action::Pass, &frame), "{name} {family:?}");
            assert_eq!(tables.take_counted().reason(Reason::NotTcp), 1, "{name} {family:?}");
        }
    }
}

#[test]
fn an_error_that_is_too_big_is_not_answered() {
    for family in FAMILIES {
        let mut tables = sample::tables(1024);
        let (client, index, _) = open(&tables, Purpose::InIpv4, family);
        let sent = too_big(client.vip, client.client, 20);
        let length = sent.bytes.len() as u16 - 14 + 20;
        for (mtu, expected) in [(length, Action::Transmit), (length - 1, Action::Drop)] {
            tables.backends[usize::from(index)].mtu = mtu;
            assert_eq!(process(&tables, &sent).0, expected, "{family:?}");
        }
        assert_eq!(tables.take_counted().reason(Reason::TooBigUnanswered), 1);
    }
}

#[test]
fn an_error_with_its_last_hop_is_dropped() {
    for family in FAMILIES {
        let tables = sample::tables(1024);
        let (client, ..) = open(&tables, Purpose::Nat, family);
        let mut frame = too_big(client.vip, client.client, 8);
        frame.bytes[if family == Family::Ipv4 { 22 } else { 21 }] = 1;
        assert_eq!(process(&tables, &frame).0, Action::Drop);
        assert_eq!(tables.take_counted().reason(Reason::HopLimit), 1);
    }
}

/// A ping of a VIP from a client, or a fragment of one.
fn ping(family: Family, vip: IpAddr, kind: u8, fragment: Option<u16>) -> HostFrame {
    let client = sample::client(family, 7, 0).ip();
    let mut frame = errors::echo(client, vip, kind);
    match (family, fragment) {
        (_, None) => {}
        (Family::Ipv4, Some(offset)) => {
            // More of them follow.
            frame.bytes[20..22].copy_from_slice(&(0x2000 | (offset / 8)).to_be_bytes());
            frame.bytes[24..26].fill(0);
            let checksum = sample::internet_checksum(&[&frame.bytes[14..34]]);
            frame.bytes[24..26].copy_from_slice(&checksum);
        }
        (Family::Ipv6, Some(offset)) => {
            frame.bytes[20] = Ipv6::FRAGMENT;
            frame.bytes[18..20].copy_from_slice(&20u16.to_be_bytes());
            let [high, low] = (offset | 1).to_be_bytes();
            frame.bytes.splice(54..54, [wire::ICMPV6, 0, high, low, 0, 0, 0, 1]);
        }
    }
    frame
}

#[test]
fn a_ping_of_a_silent_vip_and_nothing_else_is_dropped() {
    for family in FAMILIES {
        let vip = |purpose| sample::vip(purpose, family).ip();
        let mut tables = sample::tables(1024);
        tables.silent.push(vip(Purpose::L2).into());
        // Who is no VIP is not silent, whatever the list says.
        let host = match family {
            Family::Ipv4 => IpAddr::from([192, 0, 2, 99]),
            Family::Ipv6 => "2001:db8::99".parse().expect("an address"),
        };
        tables.silent.push(host.into());
        let (echo, reply) = if family == Family::Ipv4 { (8, 0) } else { (128, 129) };
        let silent = Some(Reason::EchoUnhealthy);
        let other = Some(Reason::NotTcp);
        for (what, to, kind, fragment, reason) in [
            ("a ping", vip(Purpose::L2), echo, None, silent),
            ("a large one's first part", vip(Purpose::L2), echo, Some(0), silent),
            ("a large one's second part", vip(Purpose::L2), echo, Some(1480), other),
            ("an answer", vip(Purpose::L2), reply, None, other),
            ("a ping of another", vip(Purpose::InIpv4), echo, None, other),
        ] {
            let (action, frame) = process(&tables, &ping(family, to, kind, fragment));
            assert_eq!(frame, ping(family, to, kind, fragment), "{what}");
            let counted = tables.take_counted();
            let counts = Reason::ALL.iter().copied().find(|reason| counted.reason(*reason) == 1);
            assert_eq!(counts, reason, "{what} {family:?}");
            assert_eq!(action == Action::Drop, reason == silent, "{what}");
        }
        process(&tables, &ping(family, host, echo, None));
        assert_eq!(tables.take_counted().reason(Reason::NotVip), 1);
    }
}
