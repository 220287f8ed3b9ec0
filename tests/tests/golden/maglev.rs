//! `maglev.rs` as the kernel reads it: packed slots, of any length, the first and the last.

use lb_common::{
    hash,
    host::sample::{self, BACKENDS, ClientFrame, Purpose},
    maglev::{DEFAULT_SLOTS, slot_of},
    parse::{self, Family},
};
use sluice_tests::kernel::Answer;

use crate::sides::Sides;

#[test]
fn a_new_flow_goes_where_its_slot_says() {
    let service = usize::from(sample::service(Purpose::L2, Family::Ipv4));
    let first = sample::backend(Purpose::L2, Family::Ipv4, 0);
    let mut tables = sample::tables(1024);
    tables.settings.tick_shift = 40;
    let Some(mut sides) = Sides::start(tables) else { return };
    for slots in [2, 31, 32, 33, 251, DEFAULT_SLOTS] {
        sides.tables.services[service].service.slots = slots;
        // Neighbours differ, and so do the slots at the same place in two lines.
        sides.tables.services[service].slots = (0..slots)
            .map(|slot| first + ((slot + slot / 32) % u32::from(BACKENDS)) as u16)
            .collect();
        sides.forget();
        let mut met = std::collections::BTreeSet::new();
        for number in 0..400 {
            let sent = ClientFrame::new(Purpose::L2, Family::Ipv4, number);
            let segment = parse::segment(&sent.frame(), |_, _| true).unwrap();
            let slot = slot_of(hash::of_flow(&segment, &sides.tables.settings.hash_keys), slots);
            let backend = sides.tables.services[service].slots[slot as usize];
            let (answer, output, _) = sides.run("by slot", &sent.frame());
            assert_eq!(answer, Answer::Transmit);
            let to = &output.bytes[..6];
            assert_eq!(*to, sample::mac(backend), "{slots} slots, slot {slot}\n{output:?}");
            met.insert(slot);
        }
        if slots <= 33 {
            assert_eq!(met.len(), slots as usize, "every slot was met");
        }
    }
}
