//! ICMP errors about flows that are known, whatever they quote.
//!
//! ```text
//! input: what comes before it u8 (as of `steer`), frame
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    frame::HostFrame,
    host::{
        HostTables,
        sample::{self, BALANCER_MAC, ClientFrame, FAMILIES, Purpose, ROUTER_MAC},
    },
    parse::{self, Family},
    wire::{self, Tcp},
};

use super::steer::{FLOWS, prepare};
use crate::{
    Seed,
    frames::{Road, send},
    reader::Reader,
};

/// One input.
///
/// # Panics
/// If what must be true of the frame is not: see [`crate::frames`].
pub fn run(input: &[u8]) {
    let mut tables = sample::tables(4 * FLOWS);
    begin_flows(&tables);
    let mut reader = Reader::new(input);
    let before = reader.byte();
    let mut frame = HostFrame::new(reader.rest());
    let road = prepare(before, &mut tables, &mut frame);
    send(road, &frame, &tables, 0);
}

/// The ends of a flow: the client and the VIP, and of a translated one what the backend sees.
struct Flow {
    name: String,
    client: SocketAddr,
    vip: SocketAddr,
    translated: Option<(SocketAddr, SocketAddr)>,
}

/// Begins a flow to each service that has backends.
fn begin_flows(tables: &HostTables) -> Vec<Flow> {
    let mut flows = Vec::new();
    for purpose in Purpose::ALL {
        for family in FAMILIES {
            let sent = ClientFrame::new(purpose, family, 1).with_flags(Tcp::SYN);
            let done = send(Road::Traffic, &sent.frame(), tables, 0);
            let translated = Purpose::NAT.contains(&purpose).then(|| {
                let seen = parse::segment(&done.output, |_, _| true).expect("a segment");
                let socket = |address: lb_common::address::Address, port| {
                    SocketAddr::new(address.into(), u16::from_be_bytes(port))
                };
                (
                    socket(seen.source, seen.ports.source),
                    socket(seen.destination, seen.ports.destination),
                )
            });
            let name = format!("{purpose:?} {family:?}");
            let ClientFrame { client, vip, .. } = sent;
            flows.push(Flow { name, client, vip, translated });
        }
    }
    flows
}

/// An error of each kind about what backends have sent, and what was sent to them.
pub fn seeds() -> Vec<Seed> {
    let tables = sample::tables(4 * FLOWS);
    let mut seeds = Vec::new();
    for Flow { name, client, vip, translated } in begin_flows(&tables) {
        let mut add = |what: &str, from, to| {
            for (kind, error) in ERRORS {
                for quoted in [8, 20] {
                    let frame = about(error, from, to, quoted);
                    let bytes = [&[0], &*frame].concat();
                    seeds.push(Seed {
                        name: format!("{name} {kind} {what}, {quoted} bytes"),
                        bytes,
                    });
                }
            }
        };
        add("to the client", vip, client);
        if let Some((seen, backend)) = translated {
            add("to the backend", seen, backend);
        }
    }
    seeds
}

/// Names, and type and code in both versions.
const ERRORS: [(&str, [[u8; 2]; 2]); 3] = [
    ("too big", [[3, 4], [2, 0]]),
    ("unreachable", [[3, 1], [1, 0]]),
    ("time exceeded", [[11, 0], [3, 0]]),
];

/// A router's error about a segment of which so many bytes are quoted, to whom has sent it.
fn about(error: [[u8; 2]; 2], from: SocketAddr, to: SocketAddr, quoted: usize) -> Vec<u8> {
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let tcp = [&ports[..], &[0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x10, 0xff, 0xff, 1, 2, 0, 0]].concat();
    let inner = packet(from.ip(), to.ip(), wire::TCP, &tcp[..quoted]);
    let (family, router, protocol) = match from {
        SocketAddr::V4(_) => (Family::Ipv4, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254)), wire::ICMP),
        SocketAddr::V6(_) => {
            let router = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0xfe);
            (Family::Ipv6, IpAddr::V6(router), wire::ICMPV6)
        }
    };
    let mut message = [&error[family as usize][..], &[0, 0, 0, 0, 5, 0x14], &inner].concat();
    let ends = if family == Family::Ipv6 {
        let length = (message.len() as u32).to_be_bytes();
        [octets(router), octets(from.ip()), length.to_vec(), vec![0, 0, 0, protocol]].concat()
    } else {
        Vec::new()
    };
    let sum = sample::internet_checksum(&[&ends, &message]);
    message[2..4].copy_from_slice(&sum);
    let kind = match family {
        Family::Ipv4 => wire::ethernet::IPV4,
        Family::Ipv6 => wire::ethernet::IPV6,
    };
    let packet = packet(router, from.ip(), protocol, &message);
    [&BALANCER_MAC[..], &ROUTER_MAC, &kind, &packet].concat()
}

/// An IP header, its checksum right, and what it carries.
fn packet(from: IpAddr, to: IpAddr, protocol: u8, content: &[u8]) -> Vec<u8> {
    let length = |header: usize| ((header + content.len()) as u16).to_be_bytes();
    let mut header = if from.is_ipv4() {
        let [a, b] = length(20);
        vec![0x45, 0, a, b, 0x12, 0x34, 0, 0, 60, protocol, 0, 0]
    } else {
        let [a, b] = length(0);
        vec![0x60, 0, 0, 0, a, b, protocol, 60]
    };
    header.extend(octets(from));
    header.extend(octets(to));
    if from.is_ipv4() {
        let sum = sample::internet_checksum(&[&header]);
        header[10..12].copy_from_slice(&sum);
    }
    [&header, content].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
