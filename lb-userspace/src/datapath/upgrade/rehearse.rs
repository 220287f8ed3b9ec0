//! The rehearsal: the new program runs golden frames and packets of live flows before it gets
//! any of the traffic, and its answers are compared with those of the program that runs.
//!
//! Both programs are loaded a second time for it, each on small maps of its own that are filled
//! from the live ones: so a rehearsal inserts no flow, moves no state and counts nothing where
//! anybody looks. That takes the running program's object file, which is kept beside the seed
//! (`kept.rs`). Where it is missing, the new program's answers are compared with what the maps
//! themselves say: a known flow's packet goes to its backend's MAC, what is not ours is passed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader, programs::Xdp};
use lb_common::{
    abi::{Backend, Egress, Service, ServiceKey, Settings, VipFilter, capacity, map},
    address::Address,
    flow::GROUP,
    service::BackendState,
};

use super::{
    frames::{self, Case, Expected},
    table::{FlowTable, Sampled},
};
use crate::{
    datapath::{
        Maps, PROGRAM, diagnose, load,
        run::{Answer, Mac, PASS, REDIRECT, TRANSMIT, run},
    },
    model::Vip,
};

/// Flows whose next packet is rehearsed, at most.
const FLOWS: usize = 256;
/// Services for which unknown clients are rehearsed, at most: each brings its Maglev table, and
/// one takes 130 KiB and, before Linux 6.8, 20 ms to put into a map.
const SERVICES: usize = 8;
/// Entries of a rehearsal's flow table.
const TABLE: u32 = 4096;

/// What a program needs in its maps to answer as it would on the live ones.
pub struct Scenery {
    settings: Settings,
    filter: VipFilter,
    vips: Vec<Address>,
    silent: BTreeSet<IpAddr>,
    services: BTreeMap<u32, Service>,
    listed: Vec<(ServiceKey, u32)>,
    /// Of these, where new flows come to each and to no other.
    served_at: Vec<SocketAddr>,
    slots: Vec<(u32, Vec<u16>)>,
    backends: BTreeMap<u32, Backend>,
    egresses: Vec<(u32, Egress)>,
    flows: Vec<Sampled>,
    /// Index of the interface where the frames arrive.
    interface: u32,
}

/// What was rehearsed, when all was well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rehearsed {
    /// Golden frames.
    pub frames: u32,
    /// Packets of live flows.
    pub flows: u32,
    /// Whether the running program's answers were there to compare with.
    pub compared: bool,
}

/// An answer of the new program that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{case}: {before}, but the new program's answer is: {after}")]
pub struct Difference {
    case: String,
    before: String,
    after: String,
}

impl Scenery {
    /// Reads the live maps. `tick` is now.
    pub fn read(maps: &Maps, settings: &Settings, tick: u8, interface: u32) -> Result<Self> {
        let mut listed = maps.service_index()?;
        listed.sort_by_key(|(_, index)| *index);
        let services = maps.services(capacity::SERVICES)?;
        let backends = maps.backends(capacity::BACKENDS)?;
        let step = listed.len().div_ceil(SERVICES).max(1);
        let mut scenery = Self {
            settings: *settings,
            filter: maps.filter(),
            vips: maps.vips()?.into_iter().map(Address::from).collect(),
            silent: maps.silent_vips()?,
            services: BTreeMap::new(),
            listed: Vec::new(),
            served_at: Vec::new(),
            slots: Vec::new(),
            backends: BTreeMap::new(),
            egresses: Vec::new(),
            flows: FlowTable::map(maps, settings)?.sample(settings, tick, FLOWS),
            interface,
        };
        let mut needed = BTreeSet::new();
        let vips: Vec<Vip> = listed.iter().map(|(key, _)| Vip::from(key)).collect();
        for (key, index) in listed.into_iter().step_by(step) {
            let Some(service) = services.get(index as usize) else { continue };
            scenery.served_at.push(Vip::from(&key).served_at(vips.iter().copied()));
            let slots = maps.slots(index, service.slots)?;
            needed.extend(&slots);
            scenery.services.insert(index, *service);
            scenery.listed.push((key, index));
            scenery.slots.push((index, slots));
        }
        needed.extend(scenery.flows.iter().map(|flow| flow.entry.backend()));
        // 0: no backend takes what falls on that slot.
        needed.remove(&0);
        for index in needed {
            let backend = backends[usize::from(index)];
            scenery.backends.insert(u32::from(index), backend);
            if let Some(service) = services.get(usize::from(backend.service)) {
                scenery.services.insert(u32::from(backend.service), *service);
            }
        }
        let egresses = (0..).zip(maps.egresses(capacity::EGRESSES)?);
        scenery.egresses = egresses.filter(|(_, egress)| egress.ifindex != 0).collect();
        Ok(scenery)
    }

    /// What is to be rehearsed: golden frames, then packets of flows.
    fn cases(&self) -> (Vec<Case>, Vec<Case>) {
        let flows = self.flows.iter().filter_map(|flow| {
            let backend = self.backends.get(&u32::from(flow.entry.backend()))?;
            let service = self.services.get(&u32::from(backend.service))?;
            let client = IpAddr::from(flow.record.client);
            let port = u16::from_be_bytes(flow.record.client_port);
            Some(frames::of_flow(
                SocketAddr::new(client, port),
                Vip::from(&service.key()).at(u16::from_be_bytes(flow.record.vip_port)),
                expected(backend),
            ))
        });
        (frames::golden(&self.served_at), flows.collect())
    }
}

fn expected(backend: &Backend) -> Expected {
    if BackendState::from_number(backend.state).forwards() && backend.next_hop.egress() != 0 {
        Expected::SentTo(backend.next_hop.mac())
    } else {
        Expected::Anything
    }
}

/// Runs the new program, and the running one if its object file is there.
///
/// # Errors
/// [`Difference`], if an answer is not what it should be; others, if the kernel refuses.
pub fn rehearse(scenery: &Scenery, running: Option<&[u8]>, new: &[u8]) -> Result<Rehearsed> {
    let stage = Stage::set(new, scenery)?;
    // One that this kernel does not take any more can't be compared with.
    let running = running.and_then(|object| {
        Stage::set(object, scenery)
            .inspect_err(|error| tracing::warn!("can't rehearse the running program: {error:#}"))
            .ok()
    });
    let (golden, flows) = scenery.cases();
    for case in golden.iter().chain(&flows) {
        let before = running.as_ref().map(|stage| stage.run(case)).transpose()?;
        let after = stage.run(case)?;
        compare(case, before.as_ref(), &after)?;
    }
    Ok(Rehearsed {
        frames: golden.len() as u32,
        flows: flows.len() as u32,
        compared: running.is_some(),
    })
}

/// Whether an answer is right: that of the running program if it is there, else the expected.
fn compare(case: &Case, before: Option<&Answer>, after: &Answer) -> Result<(), Difference> {
    let is_right = match (before, case.expected) {
        (Some(before), _) => before == after,
        (None, Expected::Anything) => true,
        (None, Expected::Passed) => after.action == PASS && after.frame == case.frame,
        (None, Expected::SentTo(mac)) => {
            matches!(after.action, TRANSMIT | REDIRECT) && after.frame.starts_with(&mac)
        }
    };
    if is_right {
        return Ok(());
    }
    let mut after_text = after.to_string();
    if before.is_some_and(|before| before.to_string() == after_text) {
        after_text += ", with other bytes";
    }
    Err(Difference {
        case: case.name.clone(),
        before: before.map_or_else(|| case.expected.to_string(), |b| format!("it was {b}")),
        after: after_text,
    })
}

/// A program on small maps of its own; gone when dropped.
struct Stage {
    object: Ebpf,
    interface: u32,
}

impl Stage {
    fn set(object: &[u8], scenery: &Scenery) -> Result<Self> {
        let entries = TABLE.min((scenery.settings.flow_mask + 1) * GROUP as u32);
        let mut object = EbpfLoader::new()
            .map_max_entries(map::FLOWS, entries / GROUP as u32)
            .map_max_entries(map::FLOW_RECORDS, entries)
            // What has no counter is not counted; each takes memory for each CPU.
            .map_max_entries(map::TRAFFIC, 1)
            .map_max_entries(map::RETURNS, 1)
            .map_max_entries(map::EVENTS, 1)
            .load(object)
            .map_err(diagnose::load_error)?;
        load::load_program(&mut object, PROGRAM)?;
        let mut maps = Maps::from(|name| {
            object.take_map(name).with_context(|| format!("the object file has no map {name}"))
        })?;
        let settings = Settings { flow_mask: entries / GROUP as u32 - 1, ..scenery.settings };
        maps.set_settings(&settings);
        maps.set_filter(&scenery.filter);
        for vip in &scenery.vips {
            maps.set_vip(*vip, scenery.silent.contains(&IpAddr::from(*vip)))?;
        }
        for (index, egress) in &scenery.egresses {
            maps.set_egress(*index, egress)?;
        }
        for (index, backend) in &scenery.backends {
            maps.set_backend(*index, backend)?;
        }
        for (index, service) in &scenery.services {
            maps.set_service(*index, service)?;
        }
        maps.set_slots(&scenery.slots)?;
        for (key, index) in &scenery.listed {
            maps.set_service_index(key, *index)?;
        }
        let table = FlowTable::map(&maps, &settings)?;
        for flow in &scenery.flows {
            // Where its group is full here, it is an unknown flow for both programs.
            table.put(flow);
        }
        Ok(Self { object, interface: scenery.interface })
    }

    fn run(&self, case: &Case) -> Result<Answer> {
        let program: &Xdp = self.object.program(PROGRAM).context("it is loaded")?.try_into()?;
        run(program, &case.frame, Some(self.interface))
            .with_context(|| format!("rehearse {}", case.name))
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anything => f.write_str("anything would do"),
            Self::Passed => f.write_str("it should be passed untouched"),
            Self::SentTo(mac) => write!(f, "it should be sent to {}", Mac(*mac)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 1, 0x11];

    fn case(expected: Expected) -> Case {
        Case { name: "a frame".to_owned(), frame: vec![7; 60], expected }
    }

    fn answer(action: u32, first: u8) -> Answer {
        let mut frame = vec![7; 60];
        frame[..6].copy_from_slice(&MAC);
        frame[0] = first;
        Answer { action, frame }
    }

    #[test]
    fn the_running_programs_answer_is_the_right_one() {
        let case = case(Expected::SentTo([9; 6]));
        let before = answer(TRANSMIT, 2);
        assert_eq!(compare(&case, Some(&before), &before), Ok(()));
        for (after, says) in [
            (
                answer(1, 2),
                "it was sent to 02:00:00:00:01:11, but the new program's answer is: dropped",
            ),
            (answer(TRANSMIT, 4), "answer is: sent to 04:00:00:00:01:11"),
            (answer(0, 2), "answer is: aborted"),
            (
                Answer { frame: [&MAC[..], &[8; 54]].concat(), ..before.clone() },
                "answer is: sent to 02:00:00:00:01:11, with other bytes",
            ),
        ] {
            let difference = compare(&case, Some(&before), &after).expect_err(says).to_string();
            assert!(difference.contains(says), "{difference}");
        }
    }

    #[test]
    fn without_it_the_maps_say_what_is_right() {
        let passed = Answer { action: PASS, frame: vec![7; 60] };
        for (expected, after, right) in [
            (Expected::Passed, passed.clone(), true),
            (Expected::Passed, answer(PASS, 2), false),
            (Expected::Passed, answer(1, 2), false),
            (Expected::SentTo(MAC), answer(TRANSMIT, 2), true),
            (Expected::SentTo(MAC), answer(REDIRECT, 2), true),
            (Expected::SentTo(MAC), answer(TRANSMIT, 4), false),
            (Expected::SentTo(MAC), passed, false),
            (Expected::Anything, answer(0, 2), true),
        ] {
            let case = case(expected);
            assert_eq!(compare(&case, None, &after).is_ok(), right, "{expected:?} {after}");
        }
    }
}
