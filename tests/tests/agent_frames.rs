//! The agent's program in the kernel does with each frame what its decision does on the host:
//! verdict, bytes and count, through `BPF_PROG_TEST_RUN`.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{HashMap, LpmTrie, MapData, PerCpuArray, lpm_trie::Key},
    programs::Xdp,
};
use lb_common::{
    decapsulate::{
        Outcome, OutcomeCounts, Verdict,
        corpus::{self, Memory},
        map, process,
    },
    frame::HostFrame,
    host::Random,
};
use lb_userspace::agent::OBJECT;
use sluice_tests::{kernel::SHORTEST, lab::is_privileged};
use zerocopy::IntoBytes as _;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

type Counts = [u64; Outcome::ALL.len()];

/// The sample agent of `corpus`, in the kernel and on the host.
struct Both {
    kernel: Ebpf,
    outcomes: PerCpuArray<MapData, OutcomeCounts>,
    host: Memory,
    /// By the host.
    counted: Counts,
}

impl Both {
    /// `None` without the privileges.
    fn start() -> Option<Self> {
        if !is_privileged() {
            return None;
        }
        let mut kernel = EbpfLoader::new().load(OBJECT).unwrap();
        let program: &mut Xdp = kernel.program_mut("agent").unwrap().try_into().unwrap();
        program.load().unwrap();
        let host = Memory::sample();
        let vips = kernel.map_mut(map::VIPS).unwrap();
        let mut vips: HashMap<_, [u8; 16], u32> = vips.try_into().unwrap();
        for vip in host.vips() {
            vips.insert(vip.to_v6(), 1, 0).unwrap();
        }
        let sources = kernel.map_mut(map::SOURCES).unwrap();
        let mut sources: LpmTrie<_, [u8; 20], u32> = sources.try_into().unwrap();
        for source in host.sources() {
            let data = source.as_bytes()[4..].try_into().unwrap();
            sources.insert(&Key::new(source.prefix_length, data), 1, 0).unwrap();
        }
        let outcomes = kernel.take_map(map::OUTCOMES).unwrap().try_into().unwrap();
        Some(Self { kernel, outcomes, host, counted: Counts::default() })
    }

    /// Runs one frame through both; answers what became of it.
    #[track_caller]
    fn run(&mut self, frame: &HostFrame) -> Outcome {
        let mut expected = frame.clone();
        let outcome = process(&mut expected, &self.host);
        self.counted[outcome as usize] += 1;

        let mut bytes = vec![0; frame.bytes.len() + 256];
        let program: &Xdp = self.kernel.program("agent").unwrap().try_into().unwrap();
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&frame.bytes),
                data_out: Some(&mut bytes),
                ..TestRunOptions::new()
            })
            .unwrap();
        bytes.truncate(result.data_size_out as usize);
        let action = match outcome.verdict() {
            Verdict::Unpack | Verdict::Pass => XDP_PASS,
            Verdict::Drop => XDP_DROP,
        };
        assert_eq!(result.return_value, action, "{} on the host\n{frame:?}", outcome.name());
        // A dropped frame's bytes are nobody's business.
        if action == XDP_PASS {
            let kernel = HostFrame { bytes, ..expected.clone() };
            assert_eq!(kernel, expected, "{} on the host\n{frame:?}", outcome.name());
        }
        outcome
    }

    fn assert_counts_agree(&self) {
        let rows = self.outcomes.get(&0, 0).unwrap();
        let kernel: Counts =
            std::array::from_fn(|outcome| rows.iter().map(|row| row[outcome]).sum());
        assert_eq!(kernel, self.counted, "in the order of {:?}", Outcome::ALL);
    }
}

#[test]
fn every_frame_of_the_corpus_has_its_outcome_in_the_kernel() {
    let Some(mut both) = Both::start() else { return };
    for case in corpus::cases().iter().filter(|case| case.frame.bytes.len() >= SHORTEST) {
        assert_eq!(both.run(&case.frame), case.outcome, "{}", case.name);
    }
    both.assert_counts_agree();
}

#[test]
fn kernel_and_host_agree_about_half_valid_frames() {
    let Some(mut both) = Both::start() else { return };
    let (cases, mut random) = (corpus::cases(), Random(2));
    for _ in 0..25_000 {
        let frame = corpus::half_valid(&cases, &mut random);
        if frame.bytes.len() >= SHORTEST {
            both.run(&frame);
        }
    }
    assert!(both.counted.iter().all(|count| *count > 10), "one-sided: {:?}", both.counted);
    both.assert_counts_agree();
}
