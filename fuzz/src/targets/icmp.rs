//! ICMP errors about flows that are known, whatever they quote.
//!
//! ```text
//! input: what comes before it u8 (as of `steer`), frame
//! ```

use std::net::SocketAddr;

use lb_common::{
    frame::HostFrame,
    host::{
        HostTables, errors,
        sample::{self, ClientFrame, FAMILIES, Purpose},
    },
    parse,
    wire::Tcp,
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
        let mut add = |what: &str, from: SocketAddr, to| {
            for (kind, error) in ERRORS {
                for quoted in [8, 20] {
                    let error = error[usize::from(from.is_ipv6())];
                    let frame = errors::about(error, from, to, quoted);
                    let bytes = [&[0], &*frame.bytes].concat();
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
