//! Parse and steer: frames as they are, one after the other, through a fresh sample instance.
//!
//! ```text
//! input: frame...
//! frame: what comes before it u8, length u16 (big-endian), bytes; the last may be cut
//! ```

use lb_common::{
    frame::HostFrame,
    host::{
        self, HostTables, corpus,
        sample::{self, ClientFrame, FAMILIES, Purpose},
    },
    wire::Tcp,
};

use crate::{
    Seed,
    frames::{Road, send},
    reader::Reader,
};

/// Words of the flow table: few, so that flows compete for them.
pub const FLOWS: usize = 128;
/// Frames of an input at most.
const FRAMES: usize = 16;

/// One input.
///
/// # Panics
/// If what must be true of a frame is not: see [`crate::frames`].
pub fn run(input: &[u8]) {
    let mut tables = sample::tables(FLOWS);
    let mut reader = Reader::new(input);
    for _ in 0..FRAMES {
        if reader.is_empty() {
            return;
        }
        let before = reader.byte();
        let length = usize::from(u16::from_be_bytes([reader.byte(), reader.byte()]));
        let mut frame = HostFrame::new(reader.bytes(length));
        let road = prepare(before, &mut tables, &mut frame);
        send(road, &frame, &tables, 0);
    }
}

/// What comes before a frame: its road in the lowest two bits, then little headroom, then two that
/// let time pass or change the tables.
pub fn prepare(before: u8, tables: &mut HostTables, frame: &mut HostFrame) -> Road {
    if before & 4 != 0 {
        frame.headroom = 16;
    }
    match before >> 3 & 7 {
        1 => host::pass(tables.flow_words(), 5),
        2 => host::pass(tables.flow_words(), 100),
        3 => super::set_state(tables, before),
        4 => tables.settings.nat_port_count = 1,
        5 => tables.settings.abi_version = 0,
        6 => tables.backends.iter_mut().for_each(|backend| backend.mtu = 576),
        // The loopback interface, where nobody's frames arrive but the daemon's.
        7 => frame.interface = 7,
        _ => {}
    }
    match before & 3 {
        0 | 1 => Road::Traffic,
        2 => Road::Probes,
        _ => Road::Answers,
    }
}

/// A frame as an input has it.
fn written(before: u8, frame: &HostFrame) -> Vec<u8> {
    let mut bytes = vec![before];
    bytes.extend((frame.bytes.len() as u16).to_be_bytes());
    bytes.extend(&frame.bytes);
    bytes
}

/// The wild, frame by frame; the first segments of a flow to each service; probes and their answers.
pub fn seeds() -> Vec<Seed> {
    let wild = corpus::cases().into_iter().chain(corpus::openings()).map(|case| {
        let name = case.name.to_owned();
        // A jumbo frame teaches nothing that a long one does not.
        Seed { name, bytes: written(0, &case.frame) }
    });
    let mut seeds: Vec<Seed> = wild.filter(|seed| seed.bytes.len() < 4096).collect();
    for purpose in Purpose::ALL {
        for family in FAMILIES {
            let sent = ClientFrame::new(purpose, family, 1);
            let life = [Tcp::SYN, Tcp::ACK, Tcp::FIN | Tcp::ACK, Tcp::RST];
            let life = life.map(|flags| written(0, &sent.clone().with_flags(flags).frame()));
            seeds.push(Seed { name: format!("{purpose:?} {family:?} flow"), bytes: life.concat() });
            let asked = sample::prober(sample::backend(purpose, family, 0), family);
            let probe = ClientFrame { client: asked, ..sent };
            let answer = ClientFrame { client: probe.vip, vip: asked, ..probe.clone() };
            let frames = [(2, &probe), (3, &answer), (0, &answer)];
            let frames = frames.map(|(before, sent)| written(before, &sent.frame()));
            let name = format!("{purpose:?} {family:?} probe");
            seeds.push(Seed { name, bytes: frames.concat() });
        }
    }
    seeds
}
