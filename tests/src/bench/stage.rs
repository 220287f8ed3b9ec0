//! Everything that cases need, made when the first of them does; and one sample of a case.

use std::collections::{BTreeMap, btree_map::Entry};

use anyhow::{Context as _, Result, ensure};
use lb_common::bench::Plan;

use super::{
    balancer::{Balancer, Scene, Tally},
    case::{Case, Flows, Road, Sender, Subject},
    frame,
    generator::{Generator, Lru, XDP_PASS, XDP_TX},
    link::Link,
};

/// Packets before a sample, so that it finds the caches as it leaves them; of known flows at
/// least one each, so that none is met for the first time in its tick.
const WARM_UP: u32 = 100_000;

/// The generator, and its targets.
pub struct Stage {
    link: Link,
    generator: Generator,
    balancers: BTreeMap<Scene, Balancer>,
    lrus: BTreeMap<u32, Lru>,
    /// Whose answers the generator knows.
    answers: Option<Scene>,
    /// Where the sequence of random flows stands: none is to come again.
    random: u64,
}

impl Stage {
    /// Only the generator, on a link of its own.
    pub fn build() -> Result<Self> {
        let link = Link::create()?;
        Ok(Self {
            link,
            generator: Generator::load(link)?,
            balancers: BTreeMap::new(),
            lrus: BTreeMap::new(),
            answers: None,
            random: 1,
        })
    }

    /// Makes what a case needs, unless it is there.
    pub fn prepare(&mut self, case: &Case) -> Result<()> {
        let Self { link, generator, balancers, lrus, .. } = self;
        match case.subject {
            Subject::Nothing | Subject::Floor(_) => {}
            Subject::Lru(flows) => {
                if let Entry::Vacant(place) = lrus.entry(flows) {
                    place.insert(Lru::fill(generator, flows)?);
                }
            }
            Subject::Balancer { scene, .. } => {
                if let Entry::Vacant(place) = balancers.entry(scene) {
                    place.insert(Balancer::play(scene, generator, *link)?);
                }
            }
        }
        Ok(())
    }

    /// Kernel memory of the LRU hash map for so many flows, bytes, if there is one.
    pub fn lru_memory(&self, flows: u32) -> Result<Option<u64>> {
        self.lrus.get(&flows).map(Lru::memory).transpose()
    }

    /// Nanoseconds a packet, the generator's included.
    ///
    /// # Errors
    /// If not every packet has taken the road that the case is about.
    pub fn sample(&mut self, case: &Case, packets: u32) -> Result<f64> {
        let template = self.set(case)?;
        let before = self.tally(case)?;
        let warm_up = match case.flows {
            Flows::Known(flows) => flows.max(WARM_UP),
            Flows::Random | Flows::Strangers => WARM_UP,
        };
        self.generator.run(&template, warm_up)?;
        let run = self.generator.run(&template, packets)?;
        let verdict = match case.subject {
            Subject::Balancer { road: Road::Passed, .. } => XDP_PASS,
            _ => XDP_TX,
        };
        ensure!(
            run.verdict == verdict,
            "{}: the last packet's verdict is {}",
            case.name,
            run.verdict
        );
        self.check(case, before, u64::from(warm_up) + u64::from(packets))?;
        if case.flows == Flows::Random {
            self.random = self.generator.plan()?.state;
        }
        Ok(run.time.as_nanos() as f64 / f64::from(packets))
    }

    /// Packets a second that arrive at the other end of the link, sent by a case's program.
    pub fn live(&mut self, case: &Case, packets: u32) -> Result<f64> {
        let template = self.set(case)?;
        let before = self.tally(case)?;
        self.generator.run_live(&template, WARM_UP)?;
        let (time, arrived) = self.generator.run_live(&template, packets)?;
        self.check(case, before, u64::from(WARM_UP) + u64::from(packets))?;
        ensure!(arrived > 0, "{}: nothing has arrived", case.name);
        Ok(arrived as f64 / time.as_secs_f64())
    }

    /// Nanoseconds a packet that a case's program leaves to the network stack, all included.
    pub fn passed(&mut self, case: &Case, packets: u32) -> Result<f64> {
        let template = self.set(case)?;
        let (time, _) = self.generator.run_live(&template, packets)?;
        Ok(time.as_nanos() as f64 / f64::from(packets))
    }

    /// Takes aim; returns what frames are made from.
    fn set(&mut self, case: &Case) -> Result<Vec<u8>> {
        let generator = &mut self.generator;
        let mut vips = 1;
        match case.subject {
            Subject::Nothing => generator.aim_at_nothing()?,
            Subject::Floor(name) => generator.aim_at(name)?,
            Subject::Lru(flows) => {
                let lru = self.lrus.get(&flows).context("the LRU map is not there")?;
                generator.aim_at_program(lru.program()?)?;
            }
            Subject::Balancer { scene, forwarding, .. } => {
                let balancer =
                    self.balancers.get_mut(&scene).context("the balancer is not there")?;
                balancer.forward(forwarding)?;
                generator.aim_at_program(balancer.program())?;
                if case.sender == Sender::Backend && self.answers != Some(scene) {
                    generator.set_answers(balancer.answers())?;
                    self.answers = Some(scene);
                }
                vips = scene.services();
            }
        }
        let plan = frame::plan(case.family, vips, case.sender);
        generator.set_plan(&match case.flows {
            Flows::Known(flows) => plan.in_disorder(flows.into()),
            Flows::Random => Plan { state: self.random, ..plan.at_random() },
            Flows::Strangers => Plan { vip: frame::stranger(case.family), ..plan.at_random() },
        })?;
        Ok(frame::template(case.family, case.flags))
    }

    fn tally(&self, case: &Case) -> Result<Option<Tally>> {
        match case.subject {
            Subject::Balancer { scene, .. } => {
                self.balancers.get(&scene).map(Balancer::tally).transpose()
            }
            _ => Ok(None),
        }
    }

    fn check(&self, case: &Case, before: Option<Tally>, packets: u64) -> Result<()> {
        let Subject::Balancer { road, .. } = case.subject else { return Ok(()) };
        if let (Some(before), Some(after)) = (before, self.tally(case)?) {
            let tally = after.since(before);
            ensure!(
                road.was_taken(tally, packets),
                "{}: not every packet of {packets} has taken the road {road:?}: {tally:?}",
                case.name
            );
        }
        Ok(())
    }
}
