//! Mutations, as libFuzzer's simple ones, that are the same on every machine.

use lb_common::host::Random;

/// Values at which arithmetic turns.
const EDGES: [u8; 8] = [0, 1, 0x0f, 0x10, 0x7f, 0x80, 0xfe, 0xff];

/// `bytes` with one to eight changes; `others` lends parts.
pub fn mutate(bytes: &[u8], others: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(8) {
        if bytes.is_empty() {
            bytes.push(random.word() as u8);
        }
        let at = random.below(bytes.len());
        let rest = bytes.len() - at;
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.word() as u8,
            2 => bytes[at] = *random.choose(&EDGES),
            3 => bytes[at] = bytes[at].wrapping_add([1, 0xff][random.below(2)]),
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..at + 1 + random.below(rest.min(16)))),
            6 => {
                let inserted = random.clone().below(16) + 1;
                let inserted = random.bytes(inserted);
                bytes.splice(at..at, inserted);
            }
            7 => {
                let part = bytes[at..at + 1 + random.below(rest.min(64))].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part);
            }
            _ if !others.is_empty() => {
                let from = random.below(others.len());
                let part = &others[from..from + 1 + random.below((others.len() - from).min(64))];
                bytes.splice(at..at, part.iter().copied());
            }
            _ => bytes.push(random.word() as u8),
        }
    }
    bytes
}
