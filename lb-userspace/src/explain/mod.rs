//! `sluice explain`: what becomes of one segment, step by step, on the live tables.
//!
//! The kernel program is made of `lb_common`, and so is this binary: here the same code decides on
//! the same maps, which are opened to be read. What it would write goes into an
//! `overlay` and is thrown away, so neither a flow nor a count is left behind.
//! Whether the *attached* program agrees is asked by one self-test of the watchdog's kind.
//! `decision` is pure; here is what asks the kernel, and the daemon for names and health.

mod decision;
mod live;
mod overlay;
mod steps;

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use lb_common::{
    abi::{SELF_TEST_INTERFACE, SELF_TEST_PORT},
    frame::HostFrame,
    steer,
    tables::Tables as _,
    wire::Tcp,
};
use nix::net::if_::{if_indextoname, if_nametoindex};
use serde::Serialize;

pub use self::steps::{
    Backend, Becomes, Decision, Filter, Flow, Kind, NextHop, Sent, Service, Slot, Standing, Verdict,
};
use self::{
    decision::{Question, decide},
    live::Live,
    overlay::Overlay,
};
use crate::{
    control::{api, client::Client},
    datapath::{Reading, preflight, run::Answer, segment::segment},
    instance::Instance,
    model::Vip,
};

/// The tables may be written between two looks at them: then it is looked again.
const ATTEMPTS: u32 = 3;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Who sends.
    pub client: SocketAddr,
    /// To whom; of the client's family.
    pub vip: SocketAddr,
    /// What; `None`: a SYN if the flow is not known, an ACK if it is.
    pub kind: Option<Kind>,
    /// Name of the interface where it arrives; `None`: the first that is attached.
    pub interface: Option<String>,
}

/// All that can be said about a segment.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The instance's name.
    pub instance: String,
    /// The interface that it is taken to arrive on.
    pub arrives_on: String,
    /// What the program decides, step by step; numbers are places in the maps.
    #[serde(flatten)]
    pub decision: Decision,
    /// The name of the interface to the next hop.
    pub next_hop_by: Option<String>,
    /// The name of the interface that a frame leaves by.
    pub leaves_by: Option<String>,
    /// Names and health, as the daemon has them; `None`: it was not there to ask.
    pub daemon: Option<Told>,
    /// Whether the attached program agrees.
    pub check: Check,
}

/// What the daemon says of the service and of the backends that are mentioned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Told {
    /// The service's name.
    pub service: Option<String>,
    /// The backend whose segment it is.
    pub backend: Option<Member>,
    /// The name of the backend in the flow's entry.
    pub flow_backend: Option<String>,
    /// The name of the backend in the slot.
    pub slot_backend: Option<String>,
    /// The service's backends that take no new flows.
    pub without_new_flows: Vec<Member>,
}

/// A backend, as the daemon has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// What the operator said.
    pub admin: api::Admin,
    /// What is seen.
    pub health: api::Health,
    /// Whether new flows may choose it.
    pub takes_new_flows: bool,
    /// Why, or why not.
    pub why: String,
}

/// Whether the attached program answers as this binary does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Check {
    /// To a test SYN from this client, by every attached program.
    Agrees {
        /// Whether the program is another build's.
        other_build: bool,
    },
    /// It does not: what is told here is not what happens.
    Differs {
        /// Where it is attached.
        interface: String,
        /// What this binary answers.
        expected: String,
        /// What the program answers.
        seen: String,
    },
    /// There is no service: a test of that would be counted.
    NotAsked,
}

/// Explains.
///
/// # Errors
/// If this process may not read the maps, the instance is not attached here or speaks another ABI,
/// or the kernel refuses. That no daemon answers is none.
pub async fn explain(client: &Client, instance: &Instance, ask: &Ask) -> Result<Explanation> {
    preflight()?;
    let status = client.status().await.ok();
    tokio::task::block_in_place(|| from_maps(instance, ask, status.as_ref()))
}

fn from_maps(instance: &Instance, ask: &Ask, status: Option<&api::Status>) -> Result<Explanation> {
    let reading = Reading::open(instance)?;
    let (arrives_on, interface) = arrival(instance, &reading, ask.interface.as_deref())?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let live = Live::read(&reading, ask.vip)?;
        let Ask { client, vip, kind, .. } = *ask;
        let now = u64::from(reading.now()?);
        let decision = decide(&live, &Question { client, vip, kind, interface, now })
            .map_err(|reason| anyhow::anyhow!("nothing can be decided: {}", reason.help()))?;
        let check = check(&reading, &live, ask, &decision)?;
        if attempt < ATTEMPTS && matches!(check, Check::Differs { .. }) {
            continue;
        }
        return Ok(Explanation {
            instance: instance.name().to_owned(),
            arrives_on: arrives_on.to_owned(),
            next_hop_by: decision.next_hop.as_ref().map(|hop| name(hop.interface)),
            leaves_by: decision.verdict.interface.map(name),
            daemon: status.map(|status| told(status, &decision, &live)),
            decision,
            check,
        });
    }
}

/// Name and index of the interface where it arrives: the one that is asked for, or the first.
fn arrival<'r>(
    instance: &Instance,
    reading: &'r Reading,
    wanted: Option<&str>,
) -> Result<(&'r str, u32)> {
    let mut attached = reading.interfaces().filter(|name| wanted.is_none_or(|want| *name == want));
    let found = attached.find_map(|name| Some((name, if_nametoindex(name).ok()?)));
    found.with_context(|| match wanted {
        Some(name) => format!(
            "instance {instance} is not attached to {name}: it is to {}",
            reading.interfaces().collect::<Vec<_>>().join(", ")
        ),
        None => format!("the interfaces of instance {instance} are gone: see `sluice status`"),
    })
}

/// The name of an interface.
fn name(index: u32) -> String {
    let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {index}, which is gone"))
}

/// Asks the attached programs about a SYN of the same client, from the port that no client has.
fn check(reading: &Reading, live: &Live<'_>, ask: &Ask, decision: &Decision) -> Result<Check> {
    if decision.service.is_none() {
        return Ok(Check::NotAsked);
    }
    let sent = segment(SocketAddr::new(ask.client.ip(), SELF_TEST_PORT), ask.vip, Tcp::SYN);
    let mut frame = HostFrame { interface: SELF_TEST_INTERFACE, ..HostFrame::new(&*sent) };
    let action = steer::process(&mut frame, &Overlay::over(live), 0);
    let expected = Answer::of(action, frame.bytes);
    let answers = reading.test(&sent).context("ask the attached program")?;
    let other = answers.into_iter().find(|(_, seen)| *seen != expected);
    Ok(match other {
        None => Check::Agrees { other_build: reading.is_of_another_build() },
        Some((interface, seen)) => {
            Check::Differs { interface, expected: expected.to_string(), seen: seen.to_string() }
        }
    })
}

/// What the daemon says of those that are mentioned.
fn told(status: &api::Status, decision: &Decision, live: &Live<'_>) -> Told {
    let at = |vip: Vip| {
        let vip = vip.to_string();
        let of_vip = |leaving: bool| {
            status.services.iter().find(|service| service.vip == vip && service.leaving == leaving)
        };
        // A service that was taken away may still have flows where another has its VIP.
        of_vip(false).or_else(|| of_vip(true))
    };
    let of = |index: u16| at(Vip::from(&live.service(index)?.key()));
    let asked = Vip::from(decision.segment.vip);
    let service = match &decision.service {
        Some(service) => of(service.index),
        None => at(asked).or_else(|| at(Vip::any_port(asked.ip()))),
    };
    let Some(service) = service else {
        return Told::default();
    };
    let find = |index: u16| {
        let record = live.backend(index)?;
        let address = SocketAddr::new(record.address.into(), u16::from_be_bytes(record.port));
        let is_it = |b: &&api::Backend| SocketAddr::new(b.address, b.port) == address;
        // A flow of a VIP of any port may be at one that by now is another service's.
        of(record.service)?.backends.iter().find(is_it)
    };
    let named = |index: u16| find(index).map(|backend| backend.name.clone());
    let idle = service.backends.iter().filter(|backend| !backend.takes_new_flows);
    Told {
        service: Some(service.name.clone()),
        backend: decision.backend.as_ref().and_then(|b| find(b.index)).map(Member::from),
        flow_backend: decision.flow.as_ref().and_then(|flow| named(flow.backend)),
        slot_backend: decision.slot.as_ref().and_then(|slot| named(slot.backend)),
        without_new_flows: idle.map(Member::from).collect(),
    }
}

impl From<&api::Backend> for Member {
    fn from(backend: &api::Backend) -> Self {
        let api::Backend { name, admin, health, takes_new_flows, why, .. } = backend;
        Self {
            name: name.clone(),
            admin: *admin,
            health: *health,
            takes_new_flows: *takes_new_flows,
            why: why.clone(),
        }
    }
}
