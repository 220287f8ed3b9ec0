//! The kernel's side of the bench, loaded and attached.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    maps::{Array, HashMap, IterableMap as _, MapData, PerCpuArray, ProgramArray},
    programs::{ProgramFd, TestRunAttrs, TestRunOptions, Xdp, xdp::XdpMode},
};
use lb_common::{
    bench::{Answer, Plan},
    parse::Family,
    wire::Tcp,
};
use zerocopy::IntoBytes as _;

use super::{
    case::{GROWTH_FLOWS, Sender},
    frame,
    link::Link,
    machine,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BENCH_OBJECT"));

/// `XDP_PASS` and `XDP_TX` (`linux/bpf.h`).
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;

/// Frames that the kernel hands over at once in a live run: a NAPI poll's.
const BATCH: u32 = 64;

const PLAN_WORDS: usize = size_of::<Plan>() / 8;

/// The generator, and the programs that the balancer is compared to.
pub struct Generator {
    object: Ebpf,
    link: Link,
    plan: Array<MapData, [u64; PLAN_WORDS]>,
    answers: Array<MapData, u64>,
    target: ProgramArray<MapData>,
    sunk: PerCpuArray<MapData, u64>,
}

/// What a run has come to.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// CPU time of the whole run.
    pub time: Duration,
    /// What the last repeat returned.
    pub verdict: u32,
}

impl Generator {
    /// Loads everything, and attaches the generator where nothing arrives.
    pub fn load(link: Link) -> Result<Self> {
        let mut object = EbpfLoader::new()
            .map_max_entries("ANSWERS", GROWTH_FLOWS)
            .load(OBJECT)
            .context("create the bench's maps")?;
        for name in ["generate", "tx", "mac", "ipip", "pass", "sink"] {
            program_mut(&mut object, name)?
                .load()
                .with_context(|| format!("load the bench's program {name}"))?;
        }
        for (name, interface) in [("generate", link.near), ("sink", link.far)] {
            program_mut(&mut object, name)?
                .attach_to_if_index(interface, XdpMode::Driver)
                .with_context(|| format!("attach {name} to a veth"))?;
        }
        let mut map = |name| {
            object.take_map(name).ok_or_else(|| anyhow!("the bench's object has no map {name}"))
        };
        Ok(Self {
            plan: map("PLAN")?.try_into()?,
            answers: map("ANSWERS")?.try_into()?,
            target: map("TARGET")?.try_into()?,
            sunk: map("SUNK")?.try_into()?,
            object,
            link,
        })
    }

    /// Makes a program of the bench's own the target.
    pub fn aim_at(&mut self, name: &str) -> Result<()> {
        self.target.set(0, program(&self.object, name)?.fd()?, 0).context("write TARGET")
    }

    /// Makes another program the target.
    pub fn aim_at_program(&mut self, program: &ProgramFd) -> Result<()> {
        self.target.set(0, program, 0).context("write TARGET")
    }

    /// Without a target the generator sends its frames itself.
    pub fn aim_at_nothing(&mut self) -> Result<()> {
        self.target.clear_index(&0).context("write TARGET")
    }

    /// Sets what frames are made.
    pub fn set_plan(&mut self, plan: &Plan) -> Result<()> {
        let words: [u64; PLAN_WORDS] = zerocopy::transmute!(*plan);
        self.plan.set(0, words, 0).context("write PLAN")
    }

    /// Sets who answers the flows, by their numbers: of [`GROWTH_FLOWS`] at most.
    pub fn set_answers(&mut self, answers: &[Answer]) -> Result<()> {
        for (flow, answer) in (0..).zip(answers) {
            let word: u64 = zerocopy::transmute!(*answer);
            self.answers.set(flow, word, 0).context("write ANSWERS")?;
        }
        Ok(())
    }

    /// The plan, where it stands now.
    pub fn plan(&self) -> Result<Plan> {
        Ok(zerocopy::transmute!(self.plan.get(&0, 0).context("read PLAN")?))
    }

    /// Runs the generator, which goes on where it was.
    pub fn run(&self, frame: &[u8], repeat: u32) -> Result<Run> {
        self.test_run(frame, repeat, TestRunAttrs::new())
    }

    /// The same with frames that really leave; tells how many arrived.
    pub fn run_live(&self, frame: &[u8], repeat: u32) -> Result<(Duration, u64)> {
        let (before, start) = (self.sunk()?, Instant::now());
        self.test_run(frame, repeat, TestRunAttrs::new().xdp_live_frames(BATCH))?;
        Ok((start.elapsed(), self.sunk()? - before))
    }

    fn test_run(&self, frame: &[u8], repeat: u32, attrs: TestRunAttrs) -> Result<Run> {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let context = [0, frame.len() as u32, 0, self.link.near, 0, 0];
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(context.as_bytes()),
            repeat,
            attrs,
            ..TestRunOptions::default()
        };
        let generate = program(&self.object, "generate")?;
        let start = machine::cpu_time()?;
        let result = generate.test_run(options).context("BPF_PROG_TEST_RUN")?;
        Ok(Run { time: machine::cpu_time()? - start, verdict: result.return_value })
    }

    fn sunk(&self) -> Result<u64> {
        Ok(self.sunk.get(&0, 0).context("read SUNK")?.iter().sum())
    }
}

fn program<'o>(object: &'o Ebpf, name: &str) -> Result<&'o Xdp> {
    let program = object.program(name).with_context(|| format!("there is no program {name}"))?;
    Ok(program.try_into()?)
}

fn program_mut<'o>(object: &'o mut Ebpf, name: &str) -> Result<&'o mut Xdp> {
    let program = object.program_mut(name);
    Ok(program.with_context(|| format!("there is no program {name}"))?.try_into()?)
}

/// The usual flow table: an LRU hash map with room for twice its flows, and the program that
/// looks up in it.
pub struct Lru {
    object: Ebpf,
    map: HashMap<MapData, [u32; 4], u64>,
}

impl Lru {
    /// With `flows` IPv4 flows in it.
    pub fn fill(generator: &mut Generator, flows: u32) -> Result<Self> {
        // The kernel takes free elements in batches of 128 for each CPU.
        let room = (2 * flows).max(1024);
        let mut object =
            EbpfLoader::new().map_max_entries("LRU", room).load(OBJECT).context("create an LRU")?;
        for name in ["lru_insert", "lru_lookup"] {
            program_mut(&mut object, name)?.load().with_context(|| format!("load {name}"))?;
        }
        let map = object.take_map("LRU").context("there is no map LRU")?.try_into()?;
        let lru = Self { object, map };
        generator.aim_at_program(program(&lru.object, "lru_insert")?.fd()?)?;
        generator.set_plan(&frame::plan(Family::Ipv4, 1, Sender::Client).in_order(flows.into()))?;
        generator.run(&frame::template(Family::Ipv4, Tcp::ACK), flows)?;
        let entries = lru.map.keys().count();
        ensure!(entries == flows as usize, "the LRU map has {entries} of {flows} flows");
        Ok(lru)
    }

    /// The lookup.
    pub fn program(&self) -> Result<&ProgramFd> {
        Ok(program(&self.object, "lru_lookup")?.fd()?)
    }

    /// Kernel memory of the map, bytes.
    pub fn memory(&self) -> Result<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.map.map().fd().as_fd().as_raw_fd());
        let info = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        info.lines()
            .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
            .with_context(|| format!("{path} tells no memlock"))
    }
}
