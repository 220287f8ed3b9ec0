//! Host and kernel with the same tables, to be asked the same.

use std::sync::atomic::Ordering;

use lb_common::{
    abi::FlowRecord,
    flow::Entry,
    frame::HostFrame,
    host::{
        self, Counted, HostTables,
        sample::{self, FAMILIES, Purpose},
    },
    parse::Family,
};
use sluice_tests::kernel::{Answer, JUMBO, Kernel, Program, SHORTEST};

/// Both, with the same tables.
pub struct Sides {
    /// The host's tables; after a change, [`Sides::refill`].
    pub tables: HostTables,
    kernel: Kernel,
}

/// The sample instance in which every service sends new flows to its first backend, and time
/// stands still: a tick is 2^40 jiffies.
pub fn tables() -> HostTables {
    let mut tables = sample::tables(1024);
    tables.settings.tick_shift = 40;
    for purpose in Purpose::ALL {
        for family in FAMILIES {
            if purpose != Purpose::Empty {
                all_slots_to(&mut tables, purpose, family, 0);
            }
        }
    }
    tables
}

/// From now on new flows of a service go to its backend with this number.
pub fn all_slots_to(tables: &mut HostTables, purpose: Purpose, family: Family, number: u16) {
    let service = usize::from(sample::service(purpose, family));
    tables.services[service].slots.fill(sample::backend(purpose, family, number));
}

impl Sides {
    /// `None` if skipped.
    pub fn start(tables: HostTables) -> Option<Self> {
        let kernel = Kernel::start(&tables).unwrap()?;
        Some(Self { tables, kernel })
    }

    /// Writes the host's tables into the kernel's maps.
    pub fn refill(&mut self) {
        self.kernel.fill(&self.tables).unwrap();
        self.tables.take_counted();
    }

    /// Forgets every flow.
    pub fn forget(&mut self) {
        self.tables.flow_words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.refill();
    }

    /// Whether the kernel's half takes frames with little headroom.
    pub fn takes_little_headroom(&mut self) -> bool {
        self.kernel.takes_little_headroom().unwrap()
    }

    /// Compares what both sides remember: the flow table, records, hops.
    #[track_caller]
    pub fn expect_same_memory(&self, name: &str) {
        let words = self.tables.flow_words().iter().zip(self.kernel.flow_words());
        for (index, (host, kernel)) in words.enumerate() {
            let [host, kernel] = [host, kernel].map(|word| Entry(word.load(Ordering::Relaxed)));
            assert_eq!(host, kernel, "{name}: word {index} of the flow table");
        }
        for (index, host) in self.tables.records() {
            // The kernel's clock is not ours.
            let kernel = FlowRecord { start: host.start, ..self.kernel.record(index) };
            assert_eq!(host, kernel, "{name}: the record of word {index}");
        }
        for (index, host) in self.tables.hops() {
            assert_eq!(host, self.kernel.hop(index).unwrap(), "{name}: the hop of word {index}");
        }
    }

    /// Lets so many ticks pass: every entry's last packet is as much longer ago.
    pub fn pass(&self, ticks: u8) {
        host::pass(self.tables.flow_words(), ticks);
        host::pass(self.kernel.flow_words(), ticks);
    }

    /// Runs a frame on both sides, which must agree; answer, frame, and what was counted.
    #[track_caller]
    pub fn run(&mut self, name: &str, input: &HostFrame) -> (Answer, HostFrame, Counted) {
        self.run_through(Program::Sluice, name, input)
    }

    /// The same for another program.
    #[track_caller]
    pub fn run_through(
        &mut self,
        program: Program,
        name: &str,
        input: &HostFrame,
    ) -> (Answer, HostFrame, Counted) {
        let mut on_host = input.clone();
        let answer = program.on_host(&mut on_host, &self.tables);
        let counted = self.tables.take_counted();
        if (SHORTEST..=JUMBO).contains(&input.bytes.len()) {
            let (in_kernel, frame) = self.kernel.run_through(program, input).unwrap();
            assert_eq!(in_kernel, answer, "{name}: kernel and host\n{input:?}");
            assert_eq!(
                frame.bytes, on_host.bytes,
                "{name}\n{input:?}became in the kernel\n{frame:?}and on the host\n{on_host:?}"
            );
            let in_kernel = self.kernel.take_counted().unwrap();
            assert_eq!(in_kernel.timeless(), counted.clone().timeless(), "{name}\n{input:?}");
        }
        (answer, on_host, counted)
    }

    /// Runs a frame on both sides: answer and bytes must be these.
    #[track_caller]
    pub fn expect(
        &mut self,
        name: &str,
        input: &HostFrame,
        answer: Answer,
        output: &[u8],
    ) -> Counted {
        let (found, frame, counted) = self.run(name, input);
        assert_eq!(found, answer, "{name}\n{input:?}{counted:?}");
        let expected = HostFrame::new(output);
        assert_eq!(
            frame.bytes, expected.bytes,
            "{name}\n{input:?}became\n{frame:?}and not\n{expected:?}"
        );
        counted
    }
}

/// Bytes written as hexadecimal text; `#` begins a comment.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: String = text
        .lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .collect();
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap())
        .collect()
}
