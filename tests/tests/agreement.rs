//! The same frames through the host build and through the kernel's program, over the same
//! tables: the same answers, the same bytes, the same flow table and the same counts.
//!
//! `SLUICE_SEED` chooses other frames, `SLUICE_FRAMES` more of them or fewer.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::Ordering,
};

use lb_common::{
    abi::{ALONE, ELSEWHERE, FlowRecord, SEVERAL, capacity::INTERFACES},
    address::Address,
    counters::Event,
    flow::{Entry, State},
    frame::HostFrame,
    host::{
        self, Counted, HostTables, Random, corpus,
        sample::{self, BACKENDS, ClientFrame, FAMILIES, Purpose},
    },
    nat::seen_address,
    parse::Family,
    reason::Reason,
    service::BackendState,
    wire::Tcp,
};
use sluice_tests::kernel::{Answer, Kernel, LONGEST, Program, SHORTEST};

/// Who gets the frames: most of them the one that clients' frames run through.
const PROGRAMS: [Program; 8] = [
    Program::Sluice,
    Program::Sluice,
    Program::Sluice,
    Program::Sluice,
    Program::Sluice,
    Program::Sluice,
    Program::Probe,
    Program::Answers,
];

/// Frames, if nobody asks for another number.
const FRAMES: usize = 60_000;
/// Frames for the traced build, which differs by what it notes.
const TRACED_FRAMES: usize = 15_000;
/// After so many the tables change, and all that both sides remember is compared.
const EPOCH: usize = 1_500;
/// Words of the flow table: few, so that flows compete for them.
const FLOWS: usize = 128;

#[test]
fn host_and_kernel_agree_about_every_frame() {
    let frames = frames().unwrap_or(FRAMES);
    let tables = tables();
    let Some(kernel) = Kernel::start(&tables).unwrap() else { return };
    let (_, counted) = agree(tables, kernel, &PROGRAMS, frames);
    // All of it is met where nobody asks for fewer.
    if frames < FRAMES {
        return;
    }
    for reason in Reason::ALL.iter().filter(|&&reason| reason != Reason::NoHeadroom) {
        assert!(counted.reason(*reason) > 0, "{} did not come up", reason.name());
    }
    for victim in State::ALL.into_iter().chain([State::Free]) {
        let count = counted.evictions.get(victim.name()).copied().unwrap_or(0);
        assert_eq!(count > 0, victim != State::Old, "{} gave way {count} times", victim.name());
    }
    let told_apart = |name: &str| {
        let places = counted.by_place.keys().filter(|(_, told)| *told == name);
        places.map(|(place, _)| *place).collect::<BTreeSet<u32>>()
    };
    for name in ["forwarded", Reason::NotVip.name(), Reason::NoBackend.name()] {
        let places = told_apart(name);
        assert!(places.len() > 5 && places.contains(&ELSEWHERE), "{name} at {places:?}");
    }
    for event in Event::ALL {
        let met = counted.events.keys().any(|(_, name)| *name == event.name());
        assert!(met, "{} did not come up", event.name());
    }
}

#[test]
fn the_traced_build_agrees_as_well_and_tells_of_every_frame() {
    let tables = tables();
    let Some(mut kernel) = Kernel::start_traced(&tables).unwrap() else { return };
    // Not every kernel takes the frame with which it is asked about headroom.
    kernel.takes_little_headroom().unwrap();
    let asked = kernel.traced().unwrap();
    let (kernel, counted) =
        agree(tables, kernel, &[Program::Sluice], frames().unwrap_or(TRACED_FRAMES));
    let verdicts = counted.packets() + counted.reasons.values().sum::<u64>();
    // It is asked again, and neither is among the frames compared.
    assert_eq!(kernel.traced().unwrap(), verdicts + 2 * asked);
}

/// What both sides begin with.
fn tables() -> HostTables {
    let mut tables = sample::tables(FLOWS);
    // Time stands still, for both: a tick is 2^40 jiffies. It passes in `pass`.
    tables.settings.tick_shift = 40;
    // It does not stand still for the kernel's bucket, which is not emptied here.
    tables.answers_left.set(u64::MAX);
    tables
}

/// Runs so many frames through both.
fn agree(
    mut tables: HostTables,
    mut kernel: Kernel,
    programs: &[Program],
    frames: usize,
) -> (Kernel, Counted) {
    let seed = number("SLUICE_SEED").unwrap_or(1);
    let mut random = Random(seed);
    let source = FrameSource {
        corpus: corpus::cases().into_iter().chain(corpus::openings()).collect(),
        little: kernel.takes_little_headroom().unwrap(),
        stranger: sample::behind_the_filter(Purpose::L2),
    };

    println!("SLUICE_SEED={seed} SLUICE_FRAMES={frames}");
    let mut answers: BTreeMap<Answer, u64> = BTreeMap::new();
    let mut counted = Counted::default();
    for number in 0..frames {
        if number % EPOCH == EPOCH - 1 {
            add(&mut counted, compare(&tables, &mut kernel, number));
            change(&mut tables, &mut random);
            tables.settings.abi_version = u32::from(!(number / EPOCH).is_multiple_of(10));
            kernel.fill(&tables).unwrap();
        }
        if random.one_in(50) {
            let ticks = [1, 2, 4, 5, 17, 100][random.below(6)];
            host::pass(tables.flow_words(), ticks);
            host::pass(kernel.flow_words(), ticks);
        }
        let input = source.next(&mut random, &tables);
        let mut on_host = input.clone();
        let program = *random.choose(programs);
        let expected = program.on_host(&mut on_host, &tables);
        let (answer, in_kernel) = kernel.run_through(program, &input).unwrap();
        *answers.entry(answer).or_default() += 1;
        assert!(
            answer == expected && in_kernel.bytes == on_host.bytes,
            "seed {seed}, frame {number}, {program:?}\n{input:?}became on the host {expected:?}\n{on_host:?}\
             and in the kernel {answer:?}\n{in_kernel:?}"
        );
    }
    add(&mut counted, compare(&tables, &mut kernel, frames));

    let back: u64 = counted.traffic.values().map(|traffic| traffic.return_packets).sum();
    println!("{answers:?}\n{:#?}\n{:#?}", counted.reasons, counted.events);
    println!("{} packets forwarded, {back} of them back", counted.packets());
    // A comparison of frames that all go the same way would say little. Of few frames some kinds
    // may be missing.
    if frames >= TRACED_FRAMES {
        for answer in [Answer::Pass, Answer::Drop, Answer::Transmit, Answer::Redirect] {
            let count = answers.get(&answer).copied().unwrap_or(0);
            assert!(count > frames as u64 / 100, "{answer:?} only {count} times");
        }
        assert!(back > frames as u64 / 100, "only {back} packets came back");
    }
    (kernel, counted)
}

/// How many frames are compared, if somebody asks for another number.
fn frames() -> Option<usize> {
    number("SLUICE_FRAMES").map(|frames| frames as usize)
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().expect(variable))
}

/// Flow tables, records and counts; tells what was counted.
fn compare(tables: &HostTables, kernel: &mut Kernel, number: usize) -> Counted {
    for (index, (host, kernel)) in tables.flow_words().iter().zip(kernel.flow_words()).enumerate() {
        let [host, kernel] = [host, kernel].map(|word| Entry(word.load(Ordering::Relaxed)));
        assert_eq!(host, kernel, "before frame {number}: word {index} of the flow table");
    }
    for (index, host) in tables.records() {
        let mut kernel = kernel.record(index);
        // The kernel's clock is not ours.
        kernel.start = host.start;
        assert_eq!(host, kernel, "before frame {number}: the record of word {index}");
    }
    for (index, host) in tables.hops() {
        let kernel = kernel.hop(index).unwrap();
        assert_eq!(host, kernel, "before frame {number}: the hop of word {index}");
    }
    let (host, kernel) =
        (tables.take_counted().timeless(), kernel.take_counted().unwrap().timeless());
    // Part by part: all of it is hundreds of lines.
    assert_eq!(host.reasons, kernel.reasons, "before frame {number}");
    assert_eq!(host.evictions, kernel.evictions, "before frame {number}");
    assert_eq!(host.by_place, kernel.by_place, "before frame {number}");
    assert_eq!(host.events, kernel.events, "before frame {number}");
    assert_eq!(host.handshakes, kernel.handshakes, "before frame {number}");
    assert_eq!(host.traffic, kernel.traffic, "before frame {number}");
    host
}

fn add(sum: &mut Counted, counted: Counted) {
    for (reason, count) in counted.reasons {
        *sum.reasons.entry(reason).or_default() += count;
    }
    for (backend, traffic) in counted.traffic {
        let sum = sum.traffic.entry(backend).or_default();
        sum.packets += traffic.packets;
        sum.return_packets += traffic.return_packets;
    }
    for (victim, count) in counted.evictions {
        *sum.evictions.entry(victim).or_default() += count;
    }
    for (place, count) in counted.by_place {
        *sum.by_place.entry(place).or_default() += count;
    }
    for (event, count) in counted.events {
        *sum.events.entry(event).or_default() += count;
    }
}

/// Interfaces, backends go and come, services are unlisted and listed, slots move, ports are many and few.
fn change(tables: &mut HostTables, random: &mut Random) {
    // One interface, several, or several of which none is where the frames come from.
    tables.interfaces.place = *random.choose(&[ALONE, SEVERAL]);
    tables.interfaces.indices.fill(0);
    tables.interfaces.indices[random.below(INTERFACES)] = 1 + random.below(2) as u32;
    // Often so few ports that they do not suffice.
    tables.settings.nat_port_count = [sample::NAT_PORTS.1, 16, 2, 1][random.below(4)];
    tables.silent = tables.services.iter().map(|service| service.service.address).collect();
    tables.silent.retain(|_| random.one_in(2));
    for backend in &mut tables.backends[1..] {
        backend.state = match random.below(10) {
            0 => BackendState::Absent as u8,
            1 => BackendState::Reset as u8,
            2 | 3 => BackendState::Suspect as u8,
            _ => BackendState::Forward as u8,
        };
        backend.mtu = [sample::MTU, 576, 0][random.below(3)];
    }
    for purpose in Purpose::ALL {
        for family in FAMILIES {
            let service = &mut tables.services[usize::from(sample::service(purpose, family))];
            service.listed = !random.one_in(10);
            if purpose != Purpose::Empty {
                for slot in &mut service.slots {
                    let number = random.below(usize::from(BACKENDS)) as u16;
                    *slot = sample::backend(purpose, family, number);
                }
            }
        }
    }
}

/// Where the frames come from.
struct FrameSource {
    corpus: Vec<corpus::Case>,
    /// Whether frames may ask for little headroom.
    little: bool,
    /// Shares the bit of a VIP in the filter.
    stranger: Ipv4Addr,
}

impl FrameSource {
    fn next(&self, random: &mut Random, tables: &HostTables) -> HostFrame {
        let mut frame = match random.below(20) {
            0 => {
                let len = SHORTEST + random.below(200);
                HostFrame::new(random.bytes(len))
            }
            1 | 2 => random.choose(&self.corpus).frame.clone(),
            3..10 => {
                let mut frame = self.translated_frame(random, tables).frame();
                if random.one_in(50) {
                    // The hops that are left, where nothing stands before them.
                    let at = if frame.bytes[12] == 8 { 22 } else { 21 };
                    frame.bytes[at] = random.below(3) as u8;
                }
                frame
            }
            _ => self.client_frame(random).frame(),
        };
        // A third of them are damaged, most in their headers.
        if random.one_in(3) {
            for _ in 0..=random.below(4) {
                let headers = frame.bytes.len().clamp(1, 80);
                if let Some(byte) = frame.bytes.get_mut(random.below(headers)) {
                    *byte = match random.below(3) {
                        0 => random.word() as u8,
                        1 => *byte ^ 1 << random.below(8),
                        _ => [0, 1, 0x0f, 0x7f, 0x80, 0xff][random.below(6)],
                    };
                }
            }
        }
        match random.below(16) {
            0 => frame.bytes.truncate(random.below(frame.bytes.len() + 1)),
            1 => frame.bytes.resize(frame.bytes.len() + random.below(32), 0xee),
            _ => {}
        }
        if self.little && random.one_in(16) {
            // Metadata comes in words.
            frame.headroom = random.below(16) * 4;
        }
        frame.bytes.resize(frame.bytes.len().clamp(SHORTEST, LONGEST), 0);
        frame
    }

    /// A well-formed frame of one of a few hundred flows.
    fn client_frame(&self, random: &mut Random) -> ClientFrame {
        let family = *random.choose(&FAMILIES);
        let purpose = *random.choose(&Purpose::ALL);
        let mut sent = Self::plain_frame(random, purpose, family);
        if random.one_in(6) {
            // A probe, most often the right one.
            let asked = random.choose(&Purpose::ALL).to_owned();
            let asked = if random.one_in(4) { asked } else { purpose };
            let number = random.below(usize::from(BACKENDS)) as u16;
            sent.client = sample::prober(sample::backend(asked, family, number), family);
            if random.one_in(2) {
                // Or the answer to it.
                std::mem::swap(&mut sent.client, &mut sent.vip);
            }
        }
        if random.one_in(40) {
            sent.vip.set_port(*random.choose(&[81, 443, 0]));
        }
        if random.one_in(40) {
            sent.vip = match sent.vip {
                // Some that only the exact table of VIPs tells from them.
                SocketAddr::V4(_) if random.one_in(2) => SocketAddr::new(self.stranger.into(), 80),
                SocketAddr::V4(_) => SocketAddr::new(IpAddr::from([203, 0, 113, 9]), 80),
                SocketAddr::V6(_) => {
                    SocketAddr::new(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]), 80)
                }
            };
        }
        sent
    }

    /// What a client or a backend sends of a translated flow that lives or has lived, most often
    /// with what comes next in its life.
    fn translated_frame(&self, random: &mut Random, tables: &HostTables) -> ClientFrame {
        let known: Vec<(ClientFrame, State)> =
            tables.records().into_iter().filter_map(|flow| translated(tables, flow)).collect();
        if known.is_empty() || random.one_in(6) {
            let purpose = *random.choose(&Purpose::NAT);
            let family = *random.choose(&FAMILIES);
            return Self::plain_frame(random, purpose, family);
        }
        let (ends, state) = random.choose(&known).clone();
        let family = if ends.vip.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        let mut sent = Self::plain_frame(random, Purpose::Nat, family);
        (sent.client, sent.vip) = (ends.client, ends.vip);
        if random.one_in(2) {
            sent.flags = match state {
                State::Embryonic => Tcp::SYN | Tcp::ACK,
                State::Closing => Tcp::FIN | Tcp::ACK,
                _ => Tcp::ACK,
            };
        }
        if random.one_in(20) {
            // Nearly its own.
            let port = sent.vip.port() ^ 1 << random.below(4);
            sent.vip.set_port(port);
        }
        sent
    }

    /// A well-formed frame of a client of this service.
    fn plain_frame(random: &mut Random, purpose: Purpose, family: Family) -> ClientFrame {
        let mut sent = ClientFrame::new(purpose, family, random.below(12) as u16);
        sent.client.set_port(40_000 + random.below(2) as u16);
        sent.flags = match random.below(12) {
            0..3 => Tcp::SYN,
            3..8 => Tcp::ACK,
            8 => Tcp::FIN | Tcp::ACK,
            9 => Tcp::RST,
            10 => Tcp::SYN | Tcp::ACK,
            _ => random.word() as u8,
        };
        sent.sequence = random.word() as u32;
        sent.acknowledgement = random.word() as u32;
        sent.traffic_class = random.word() as u8;
        let tags = [0x81, 0x88, 0x81];
        for _ in 0..[0, 0, 0, 0, 1, 1, 2, 2, 3][random.below(9)] {
            let kind = *random.choose(&tags);
            let low = if kind == 0x81 { 0x00 } else { 0xa8 };
            sent.tags.push([kind, low, random.word() as u8, random.word() as u8]);
        }
        if random.one_in(4) {
            sent.ip_options = random.bytes(random.clone().below(11) * 4);
        }
        if random.one_in(4) {
            sent.tcp_options = random.bytes(random.clone().below(11) * 4);
            // Most often with an MSS that is found.
            let before = random.below(4);
            if !random.one_in(4)
                && let Some(place) = sent.tcp_options.get_mut(..before + 4)
            {
                place[..before].fill(1);
                place[before..before + 2].copy_from_slice(&[2, 4]);
            }
        }
        if family == Family::Ipv6 && random.one_in(3) {
            for _ in 0..random.below(10) {
                sent.extensions.push(extension(random));
            }
        }
        if random.one_in(3) {
            let length = [1, 16, 536, 1400, 1460][random.below(5)];
            sent.payload = random.bytes(length);
        }
        sent.padding = [0, 0, 0, 6, 18][random.below(5)];
        sent
    }
}

/// What goes to a word of the flow table whose record is of a translated flow, and the word's state;
/// of a return entry, what its backend sends.
fn translated(
    tables: &HostTables,
    (word, record): (u32, FlowRecord),
) -> Option<(ClientFrame, State)> {
    if record.nat_port == [0; 2] {
        return None;
    }
    let entry = Entry(tables.flow_words()[word as usize].load(Ordering::Relaxed));
    let backend = tables.backends.get(usize::from(entry.backend()))?;
    let socket = |address: Address, port| SocketAddr::new(address.into(), u16::from_be_bytes(port));
    let (from, to) = if entry.is_return() {
        let seen = seen_address(&record, tables);
        (socket(backend.address, backend.port), socket(seen, record.nat_port))
    } else {
        let vip = tables.services.get(usize::from(backend.service))?.service.address;
        (socket(record.client, record.client_port), socket(vip, record.vip_port))
    };
    if from.is_ipv4() != to.is_ipv4() {
        return None;
    }
    let sent =
        ClientFrame { client: from, vip: to, ..ClientFrame::new(Purpose::Nat, Family::Ipv4, 0) };
    Some((sent, entry.state()))
}

fn extension(random: &mut Random) -> (u8, Vec<u8>) {
    if random.one_in(5) {
        // An atomic fragment, or a real one.
        let offset = if random.one_in(3) { random.word() as u8 } else { 0 };
        return (44, vec![0, 0, offset, 0, 0, 0, 1]);
    }
    let more = if random.one_in(8) { random.below(120) as u8 } else { random.below(3) as u8 };
    let mut content = random.bytes(7 + 8 * usize::from(more));
    content[0] = more;
    (*random.choose(&[0, 43, 60]), content)
}
