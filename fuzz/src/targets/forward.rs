//! Forward and reset: what well-formed segments become, in flows that live, die and come back.
//!
//! An input is a script of segments from clients and from backends that answer them, of time that
//! passes and of tables that change. All checksums are right, so they must be right behind it.

use std::{collections::HashMap, net::SocketAddr};

use lb_common::{
    address::Address,
    forward::Action,
    host::{
        self, HostTables,
        sample::{self, ClientFrame, FAMILIES, Purpose, internet_checksum, tcp_checksum},
    },
    parse::{self, Family, Segment},
    wire::Tcp,
};

use super::steer::FLOWS;
use crate::{
    Seed,
    frames::{Done, Road, send},
    reader::Reader,
};

/// Steps of a script at most.
const STEPS: usize = 64;
/// Bytes of payload.
const PAYLOADS: [usize; 6] = [0, 0, 1, 16, 536, 1460];
/// Flags of most segments.
const FLAGS: [u8; 7] =
    [Tcp::SYN, Tcp::ACK, Tcp::ACK | 0x08, Tcp::FIN | Tcp::ACK, Tcp::RST, Tcp::SYN | Tcp::ACK, 0];

/// One input.
///
/// # Panics
/// If what must be true of a frame is not: see [`crate::frames`]; or if a backend's segment goes to
/// another client than the one that it answers.
pub fn run(input: &[u8]) {
    let mut tables = sample::tables(FLOWS);
    let mut reader = Reader::new(input);
    let mut talks = Talks::default();
    for _ in 0..STEPS {
        if reader.is_empty() {
            return;
        }
        match reader.below(16) {
            0..8 => {
                let sent = client_segment(&mut reader);
                let done = exact(&sent, &tables);
                talks.went_out(&sent, &done);
            }
            8..13 => {
                if let Some(sent) = talks.answer(&mut reader) {
                    let done = exact(&sent, &tables);
                    talks.came_back(&sent, &done);
                }
            }
            13 => host::pass(tables.flow_words(), *reader.choose(&[1, 4, 5, 17, 100])),
            14 => super::set_state(&mut tables, reader.byte()),
            _ => change(&mut tables, &mut reader),
        }
    }
}

/// Sends a segment; checksums that were right are right in what comes of it.
fn exact(sent: &ClientFrame, tables: &HostTables) -> Done {
    let done = send(Road::Traffic, &sent.frame(), tables, 0);
    if matches!(done.action, Action::Transmit | Action::Redirect(_))
        && let Ok(Segment { source, destination, l3, l4, ip_length, family, .. }) =
            parse::segment(&done.output, |_, _| true)
    {
        let bytes = &done.output.bytes;
        let [l3, l4, ip_length] = [l3, l4, ip_length].map(usize::from);
        let octets = |address: Address| match address.to_v4() {
            Some(octets) => octets.to_vec(),
            None => address.to_v6().to_vec(),
        };
        let tcp = &bytes[l4..l3 + ip_length];
        let sum = tcp_checksum(&octets(source), &octets(destination), tcp);
        assert_eq!(sum, [0; 2], "a wrong TCP checksum in\n{:?}of {sent:?}", done.output);
        if family == Family::Ipv4 {
            let sum = internet_checksum(&[&bytes[l3..l4]]);
            assert_eq!(sum, [0; 2], "a wrong IP checksum in\n{:?}of {sent:?}", done.output);
        }
    }
    done
}

/// Of translated flows: which client stands behind what a backend sees, by the backend and by whom
/// it takes for its client.
#[derive(Default)]
struct Talks {
    ends: HashMap<(SocketAddr, SocketAddr), (SocketAddr, SocketAddr)>,
    latest: Vec<(SocketAddr, SocketAddr)>,
}

impl Talks {
    fn went_out(&mut self, sent: &ClientFrame, done: &Done) {
        if sent.vip.port() != 80 || !is_translated(sent) {
            return;
        }
        let packets: u64 = done.counted.traffic.values().map(|traffic| traffic.packets).sum();
        let Ok(seen) = parse::segment(&done.output, |_, _| true) else { return };
        if packets == 0 {
            return;
        }
        let key = (
            socket(seen.destination, seen.ports.destination),
            socket(seen.source, seen.ports.source),
        );
        self.ends.insert(key, (sent.client, sent.vip));
        self.latest.push(key);
    }

    /// A segment of a backend to whom it takes for its client.
    fn answer(&self, reader: &mut Reader<'_>) -> Option<ClientFrame> {
        let back = reader.below(8).min(self.latest.len().checked_sub(1)?);
        let (backend, seen) = self.latest[self.latest.len() - 1 - back];
        Some(ClientFrame { client: backend, vip: seen, ..segment(reader, Purpose::Nat, seen) })
    }

    fn came_back(&self, sent: &ClientFrame, done: &Done) {
        let returned: u64 =
            done.counted.traffic.values().map(|traffic| traffic.return_packets).sum();
        if returned == 0 {
            return;
        }
        let seen = parse::segment(&done.output, |_, _| true).expect("a segment stays one");
        let is = (
            socket(seen.destination, seen.ports.destination),
            socket(seen.source, seen.ports.source),
        );
        let expected = self.ends.get(&(sent.client, sent.vip));
        assert_eq!(Some(&is), expected, "another's answer:\n{sent:?}\n{:?}", done.output);
    }
}

fn is_translated(sent: &ClientFrame) -> bool {
    let mut vips = Purpose::NAT
        .into_iter()
        .flat_map(|purpose| FAMILIES.into_iter().map(move |family| sample::vip(purpose, family)));
    vips.any(|vip| vip == sent.vip)
}

fn socket(address: Address, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address.into(), u16::from_be_bytes(port))
}

/// A segment of one of a few clients.
fn client_segment(reader: &mut Reader<'_>) -> ClientFrame {
    let purpose = *reader.choose(&Purpose::ALL);
    let family = *reader.choose(&FAMILIES);
    let mut client = sample::client(family, reader.below(4) as u16, 40_000);
    client.set_port(40_000 + reader.below(2) as u16);
    let vip = sample::vip(purpose, family);
    ClientFrame { client, vip, ..segment(reader, purpose, vip) }
}

/// A segment whose ends are to be set, of the family of `vip`.
fn segment(reader: &mut Reader<'_>, purpose: Purpose, vip: SocketAddr) -> ClientFrame {
    let family = if vip.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let mut sent = ClientFrame::new(purpose, family, 0);
    let shape = reader.byte();
    sent.flags = match reader.below(8) {
        7 => reader.byte(),
        place => FLAGS[place],
    };
    if shape & 1 != 0 {
        sent.sequence = reader.word();
        sent.acknowledgement = reader.word();
    }
    if shape & 2 != 0 {
        let options = reader.below(11) * 4;
        sent.tcp_options = reader.bytes(options).to_vec();
        sent.tcp_options.resize(options, 1);
    }
    if shape & 4 != 0 {
        sent.tags = vec![[0x81, 0, 0, 100]; reader.below(3)];
    }
    if shape & 8 != 0 && family == Family::Ipv4 {
        sent.ip_options = vec![1; reader.below(11) * 4];
    }
    if shape & 8 != 0 && family == Family::Ipv6 {
        for _ in 0..reader.below(4) {
            let more = reader.below(4) as u8;
            let mut content = vec![0; 7 + 8 * usize::from(more)];
            content[0] = more;
            sent.extensions.push((*reader.choose(&[0, 43, 60]), content));
        }
    }
    if shape & 16 != 0 {
        sent.payload = vec![reader.byte(); *reader.choose(&PAYLOADS)];
    }
    if shape & 32 != 0 {
        sent.padding = *reader.choose(&[6, 18]);
    }
    if shape & 64 != 0 {
        sent.traffic_class = reader.byte();
    }
    sent
}

/// Other slots, another MTU, other ports, a service unlisted and listed.
fn change(tables: &mut HostTables, reader: &mut Reader<'_>) {
    let service = reader.below(Purpose::ALL.len() * 2);
    match reader.below(4) {
        0 => super::move_slots(tables, service),
        1 => {
            let mtu = *reader.choose(&[sample::MTU, 576, 0]);
            tables.backends[1..].iter_mut().for_each(|backend| backend.mtu = mtu);
        }
        2 => tables.settings.nat_port_count = *reader.choose(&[sample::NAT_PORTS.1, 16, 2, 1]),
        _ => tables.services[service].listed ^= true,
    }
}

/// A flow's whole life to each service: its first byte is the step, the others as they are read.
pub fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (purpose, number) in Purpose::ALL.into_iter().zip(0_u8..) {
        for (family, version) in FAMILIES.into_iter().zip(0_u8..) {
            let client = |flags: u8| vec![0, number, version, 1, 0, 0, flags];
            let answer = |flags: u8| vec![8, 0, 0, flags];
            // SYN, SYN-ACK, ACK, data both ways, FINs, and a SYN with options.
            let mut life =
                [client(0), answer(5), client(1), answer(2), client(3), answer(3)].concat();
            life.extend([0, number, version, 2, 0, 2, 0, 1, 2, 4, 0x05, 0xb4]);
            seeds.push(Seed { name: format!("{purpose:?} {family:?} life"), bytes: life });
            let full = [0, number, version, 3, 1, 0x7f, 0, 1, 2, 3, 4, 5, 6, 7, 8];
            let rest = [2, 1, 1, 2, 4, 0xff, 0xff, 1, 1, 2, 3, 1, 0, 2, 0, 5, 4, 1, 0x2e];
            seeds.push(Seed {
                name: format!("{purpose:?} {family:?} of every kind"),
                bytes: [&full[..], &rest].concat(),
            });
            let dead = [client(0), vec![14, 2, 14, 0x42], client(1), client(0)].concat();
            seeds.push(Seed { name: format!("{purpose:?} {family:?} death"), bytes: dead });
        }
    }
    seeds
}
