//! The flow table in the kernel, under attack and under two CPUs at once.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, ScopedJoinHandle},
};

use lb_common::{
    flow::{Entry, State},
    frame::HostFrame,
    host::{
        HostTables, Random, aged, pass,
        sample::{self, ClientFrame, Purpose},
    },
    maglev::slot_of,
    parse::{self, Family, Segment},
    wire::Tcp,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use sluice_tests::kernel::{Answer, Kernel};

const SYN: u8 = Tcp::SYN;
const ACK: u8 = Tcp::ACK;

/// Offsets in a client's untagged IPv4 frame.
const CLIENT: usize = 26;
const PORT: usize = 34;
const FLAGS: usize = 47;

/// Frames of an L2 service over IPv4, one flow after another: client and port are the number's
/// bytes, but that both are somebody's. No checksum is right, nor does anybody look.
struct Flood(Vec<u8>);

impl Flood {
    fn new() -> Self {
        Self(ClientFrame::new(Purpose::L2, Family::Ipv4, 1).frame().bytes)
    }

    fn frame(&mut self, flow: u64, flags: u8) -> &[u8] {
        let [a, b, c, d, e, f, ..] = flow.to_le_bytes();
        self.0[CLIENT..CLIENT + 4].copy_from_slice(&[a & 0x3f | 0x80, b, c, d]);
        self.0[PORT..PORT + 2].copy_from_slice(&[e | 1, f]);
        self.0[FLAGS] = flags;
        &self.0
    }

    fn segment(&mut self, flow: u64) -> Segment {
        let frame = HostFrame::new(self.frame(flow, ACK));
        parse::segment(&frame, |_, _| true).unwrap()
    }
}

/// The sample instance in which time stands still but for `pass`.
fn tables(flows: usize) -> HostTables {
    let mut tables = sample::tables(flows);
    tables.settings.tick_shift = 40;
    tables
}

fn all_slots_to(tables: &mut HostTables, number: u16) {
    let service = usize::from(sample::service(Purpose::L2, Family::Ipv4));
    tables.services[service].slots.fill(sample::backend(Purpose::L2, Family::Ipv4, number));
}

fn copy(from: &[AtomicU64], to: &[AtomicU64]) {
    for (from, to) in from.iter().zip(to) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// The table is half full of established flows; then come ten times as many spoofed ones as it
/// has entries, while the established are silent.
fn survivors(attack: &[u8]) -> Option<f64> {
    const FLOWS: usize = 1 << 16;
    const SPOOFED: usize = 10 * FLOWS;
    let mut tables = tables(FLOWS);
    all_slots_to(&mut tables, 0);
    let mut kernel = Kernel::start(&tables).unwrap()?;
    let mut random = Random(1);
    let mut flood = Flood::new();
    let established: Vec<u64> = (0..FLOWS / 2).map(|_| random.word()).collect();
    for flags in [SYN, ACK, ACK] {
        for &flow in &established {
            assert_eq!(kernel.send(flood.frame(flow, flags)).unwrap(), Answer::Transmit);
        }
        pass(kernel.flow_words(), 1);
    }
    copy(kernel.flow_words(), tables.flow_words());
    let resident: Vec<u64> = established
        .iter()
        .copied()
        .filter(|&flow| tables.entry(&flood.segment(flow)).is_some())
        .collect();
    let share = resident.len() as f64 / established.len() as f64 * 100.0;
    println!("{} of {} flows have a place ({share:.3} %)", resident.len(), established.len());
    assert!(share > 99.8, "{share:.3} % of the flows have a place");

    // Whoever is not in the table goes elsewhere from now on.
    all_slots_to(&mut tables, 1);
    kernel.fill(&tables).unwrap();
    for number in 0..SPOOFED {
        let flow = random.word();
        for &flags in attack {
            assert_eq!(kernel.send(flood.frame(flow, flags)).unwrap(), Answer::Transmit);
        }
        if number % (SPOOFED / 8) == 0 {
            pass(kernel.flow_words(), 1);
        }
    }
    let home = sample::mac(sample::backend(Purpose::L2, Family::Ipv4, 0));
    let survivors = resident
        .iter()
        .filter(|&&flow| {
            let frame = HostFrame::new(flood.frame(flow, ACK));
            kernel.run(&frame).unwrap().1.bytes[..6] == home
        })
        .count();
    let share = survivors as f64 / resident.len() as f64 * 100.0;
    println!("{survivors} of {} survive ({share:.3} %)", resident.len());
    Some(share)
}

#[test]
fn established_flows_survive_a_flood_of_syns() {
    if let Some(share) = survivors(&[SYN]) {
        assert!(share >= 99.8, "{share:.3} % survive");
    }
}

#[test]
fn established_flows_survive_a_flood_of_syn_and_ack_pairs() {
    if let Some(share) = survivors(&[SYN, ACK]) {
        assert!(share >= 99.8, "{share:.3} % survive");
    }
}

/// Every slot belongs to another backend, so an entry's fingerprint, whose upper half chose the
/// slot, tells which backend must stand beside it.
#[test]
fn no_entry_tears_under_two_cpus_and_a_sweep() {
    const FLOWS: usize = 1024;
    const FRAMES: usize = 400_000;
    let service = sample::service(Purpose::L2, Family::Ipv4);
    let mut tables = tables(FLOWS);
    let example = tables.backends[usize::from(sample::backend(Purpose::L2, Family::Ipv4, 0))];
    let slots: Vec<u16> = (0..sample::SLOTS).map(|_| tables.add_backend(example)).collect();
    tables.services[usize::from(service)].slots.clone_from(&slots);
    let Some(kernel) = Kernel::start(&tables).unwrap() else { return };
    // Five times what the table holds.
    let flows: Vec<u64> = (0..5 * FLOWS).scan(Random(2), |random, _| Some(random.word())).collect();

    let check = |word: u64| {
        let entry = Entry(word);
        if entry.state() == State::Free {
            return 0;
        }
        let expected = slots[slot_of(word, sample::SLOTS) as usize];
        assert_eq!(entry.backend(), expected, "torn: {word:#018x}, {:?}", entry.state());
        1
    };
    let start = Barrier::new(3);
    let running = AtomicBool::new(true);
    let hammer = |cpu: usize| {
        let mut cpus = CpuSet::new();
        cpus.set(cpu).unwrap();
        // On a machine of one CPU both share it.
        let _ = sched_setaffinity(Pid::from_raw(0), &cpus);
        let mut random = Random(cpu as u64 + 10);
        let mut flood = Flood::new();
        start.wait();
        for _ in 0..FRAMES {
            let flow = *random.choose(&flows);
            let flags = *random.choose(&[SYN, ACK, ACK, Tcp::FIN | ACK, Tcp::RST]);
            let frame = flood.frame(flow, flags);
            assert_eq!(kernel.send(frame).unwrap(), Answer::Transmit);
        }
    };
    let sweep = || {
        let mut random = Random(3);
        let (mut seen, mut freed) = (0u64, 0u64);
        start.wait();
        while running.load(Ordering::Relaxed) {
            for word in kernel.flow_words() {
                let before = word.load(Ordering::Relaxed);
                seen += check(before);
                // Time passes for some, and who is expired is freed, as the daemon does it.
                let after = match random.below(64) {
                    0 => aged(before, 6),
                    _ if Entry(before).is_expired(0, &tables.settings) => 0,
                    _ => continue,
                };
                let changed =
                    word.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed);
                freed += u64::from(changed.is_ok() && after == 0 && before != 0);
            }
        }
        (seen, freed)
    };
    thread::scope(|scope| {
        let sweeper = scope.spawn(sweep);
        let hammers = [0, 1].map(|cpu| scope.spawn(move || hammer(cpu)));
        let results = hammers.map(ScopedJoinHandle::join);
        running.store(false, Ordering::Relaxed);
        let (seen, freed) = sweeper.join().unwrap();
        results.into_iter().for_each(|result| result.unwrap());
        println!("{} frames, {seen} entries looked at, {freed} freed, none torn", 2 * FRAMES);
        assert!(seen > 0 && freed > 0, "{seen} seen, {freed} freed");
    });
    kernel.flow_words().iter().for_each(|word| {
        check(word.load(Ordering::Relaxed));
    });
}
