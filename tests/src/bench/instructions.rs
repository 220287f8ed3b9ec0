//! What packets cost in instructions, on a machine that takes one nanosecond for each: a guest of
//! `cargo xtask vm --icount`. Elsewhere the figures are only nanoseconds.
//!
//! Two kinds. A *program's* are those of `BPF_PROG_TEST_RUN`, without its generator's: what the code
//! of this repository costs, and nothing else. A *path's* are the whole kernel's work on a frame that
//! really arrives and really leaves, the generator's included: live frames
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18), which XDP programs send, and which the network stack is
//! given where they pass them. So Sluice, the kernel's own balancers (IPVS by direct routing,
//! nftables' DNAT) and the floors below each meet the same TCP segments of the same flows, from the
//! same place. What XDP sends goes over a veth pair and is counted by a program at its other end; what
//! the stack sends goes into a dummy device, which costs it next to nothing: of the two it is the
//! peers who are favoured.

mod stack;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lb_common::{forward::Forwarding, parse::Family, wire::Tcp};
use serde::Serialize;

use self::stack::{Outlet, StackRoad};
use super::{
    balancer::Scene,
    case::{self, Case, Flows, Group, IPIP, Road, Sender, Subject, TX},
    machine::Machine,
    stage::Stage,
};

/// Flows of every path: a power of two. Their number goes into the first byte of the clients'
/// addresses (198), and with five bits of it all are such as a network stack takes for a host's.
const FLOWS: u32 = 32;

/// Packets of a sample.
const PACKETS: u32 = 20_000;

/// Samples of each figure.
const SAMPLES: usize = 3;

/// Instructions a packet, by what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Instructions {
    /// `uname -r`.
    pub kernel: String,
    /// `program/established/ipv4/l2/1`, `path/ipvs-dr`.
    pub figures: BTreeMap<String, f64>,
}

/// Measures all of it.
///
/// # Errors
/// If something can't be set up, or packets have taken another road than they should.
pub fn run() -> Result<Instructions> {
    let mut stage = Stage::build()?;
    let mut figures = programs(&mut stage)?;
    figures.extend(paths(&mut stage)?);
    Ok(Instructions { kernel: Machine::here().kernel, figures })
}

/// The least of some samples: what the kernel does besides, once, is not a packet's.
fn least(mut sample: impl FnMut() -> Result<f64>) -> Result<f64> {
    (0..SAMPLES).try_fold(f64::INFINITY, |least, _| Ok(least.min(sample()?)))
}

/// What programs cost without their generator.
fn programs(stage: &mut Stage) -> Result<BTreeMap<String, f64>> {
    let mut figures = BTreeMap::new();
    let (generators, floors): (Vec<Case>, Vec<Case>) =
        case::pillars().into_iter().partition(|case| case.group == Group::Generator);
    let is_meant = |case: &Case| case.name.ends_with("/1") || case.name == "pass";
    let cases = case::cases().into_iter().filter(is_meant);
    for case in floors.into_iter().filter(|floor| floor.name != TX).chain(cases) {
        stage.prepare(&case)?;
        let generator = generators.iter().find(|generator| generator.is_generator_of(&case));
        let generator = generator.with_context(|| format!("who makes frames of {}?", case.name))?;
        // Those of answers need to know them.
        let gross = least(|| stage.sample(&case, PACKETS))?;
        let own = least(|| stage.sample(generator, PACKETS))?;
        figures.insert(format!("program/{}", case.name), gross - own);
    }
    Ok(figures)
}

/// What whole paths cost, generator and all.
fn paths(stage: &mut Stage) -> Result<BTreeMap<String, f64>> {
    let mut figures = BTreeMap::new();
    let xdp = |name: &str, subject| Case {
        group: Group::Case,
        name: name.to_owned(),
        subject,
        family: Family::Ipv4,
        flags: Tcp::ACK,
        sender: Sender::Client,
        flows: Flows::Known(FLOWS),
        limit: None,
    };
    let balancer = |name, forwarding, scene, sender| Case {
        sender,
        ..xdp(name, Subject::Balancer { scene, forwarding, road: Road::Known })
    };
    let plain = Scene::Ipv4(FLOWS);
    let translated = Scene::Translated(Family::Ipv4, FLOWS);
    for case in [
        xdp("floor/tx", Subject::Floor(TX)),
        xdp("floor/ipip", Subject::Floor(IPIP)),
        balancer("l2", Forwarding::L2, plain, Sender::Client),
        balancer("ipip", Forwarding::Ipip, plain, Sender::Client),
        balancer("nat", Forwarding::Nat, translated, Sender::TranslatedClient),
    ] {
        stage.prepare(&case)?;
        let per_packet = least(|| Ok(1e9 / stage.live(&case, PACKETS)?))?;
        figures.insert(format!("path/{}", case.name), per_packet);
    }
    let outlet = Outlet::create()?;
    let passed = xdp("stack", Subject::Floor("pass"));
    for road in StackRoad::ALL {
        let set = road.set().with_context(|| format!("set up {}", road.name()))?;
        stage.prepare(&passed)?;
        // Two packets of a new flow in one batch are two new flows to connection tracking, and one
        // of them is dropped: so the first run only makes the flows known.
        stage.passed(&passed, PACKETS)?;
        let wanted = if road == StackRoad::Drop { 0 } else { u64::from(PACKETS) };
        let per_packet = least(|| {
            let before = outlet.sent()?;
            let per_packet = stage.passed(&passed, PACKETS)?;
            let sent = outlet.sent()? - before;
            ensure!(sent == wanted, "{}: {sent} packets of {wanted} were sent on", road.name());
            Ok(per_packet)
        })?;
        set.undo().with_context(|| format!("undo {}", road.name()))?;
        figures.insert(format!("path/{}", road.name()), per_packet);
    }
    Ok(figures)
}
