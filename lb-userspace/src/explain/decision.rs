//! What becomes of one segment, and by which steps: pure, over any tables.
//!
//! The verdict is that of [`steer::process`], the very function that the kernel program is made of.
//! What is told of the steps before it is read from the same tables by the same functions.

use std::net::SocketAddr;

use lb_common::{
    abi::{self, KEEP_CLIENT, Settings},
    flow::{self, Found, GROUP, State, Words as _},
    forward::{Action, Forwarding},
    frame::HostFrame,
    hash, maglev, nat,
    parse::{self, Segment},
    reason::Reason,
    service::{self, Affinity, BackendState},
    steer,
    tables::Tables,
    wire::{Ipv4, Ipv6, Tcp},
};

use super::{
    overlay::{Counted, Overlay},
    steps::{
        Backend, Becomes, Decision, Filter, Flow, Kind, NextHop, Sent, Service, Slot, Standing,
        Verdict,
    },
};
use crate::{
    datapath::{run::Mac, segment::segment},
    headers::Headers,
};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Who sends.
    pub client: SocketAddr,
    /// To whom; of the client's family.
    pub vip: SocketAddr,
    /// What; `None`: a SYN if the flow is not known, an ACK if it is.
    pub kind: Option<Kind>,
    /// Index of the interface where it arrives.
    pub interface: u32,
    /// `jiffies64`; its lower 32 bits will do.
    pub now: u64,
}

/// Decides what becomes of a segment. Nothing is written into `tables`.
///
/// # Errors
/// If the tables are not ready to decide about anything.
pub fn decide<T: Tables>(tables: &T, question: &Question) -> Result<Decision, Reason> {
    let settings = tables.settings().ok_or(Reason::NotReady)?;
    let Question { client, vip, now, .. } = *question;
    let overlay = Overlay::over(tables);
    let frame = |kind| HostFrame {
        interface: question.interface,
        ..HostFrame::new(segment(client, vip, flags(kind)))
    };
    let tuple = parse::segment(&frame(Kind::Ack), |_, _| true)?;
    let filter = Filter {
        lets_through: steer::may_be_ours(tables, tuple.source, tuple.destination),
        is_vip: tables.is_vip(tuple.destination),
    };
    let hash = hash::of_flow(&tuple, &settings.hash_keys);
    let group_index = flow::group_index(hash, settings);
    let group = overlay.flow_group(group_index).ok_or(Reason::NotReady)?;
    let taken = (0..GROUP).map(|place| flow::Entry(group.load(place)));
    let group_taken = taken.filter(|entry| !matches!(entry.state(), State::Free)).count();
    // What the filter does not let through, the program asks nothing more about.
    let found = flow::find(&group, hash).filter(|_| filter.lets_through);
    let flow = found.map(|found| flow_of(&overlay, settings, &tuple, found, group_index, now));
    let served = service::index_of(tables, tuple.destination, tuple.ports.destination)
        .filter(|_| filter.lets_through)
        .and_then(|index| Some((index, tables.service(index)?)));
    let slot = served.map(|(index, service)| slot_of(tables, settings, index, service, &tuple));

    // Who has a flow at a backend that is gone hears of it by his next ACK.
    let is_known = |flow: &Flow| matches!(flow.standing, Standing::Known | Standing::BackendGone);
    let usual = if flow.as_ref().is_some_and(is_known) { Kind::Ack } else { Kind::Syn };
    let kind = question.kind.unwrap_or(usual);
    let mut frame = frame(kind);
    let bytes = frame.bytes.len();
    let action = steer::process(&mut frame, &overlay, now);
    let counted = overlay.counted();
    let after = flow::find(&group, hash).map(|found| found.entry);
    // Where nobody was sent to, it is whose flow it was, or would have been.
    let owner = counted.backend.or_else(|| match &flow {
        Some(flow) if is_known(flow) => Some(flow.backend),
        _ => slot.as_ref().map(|slot| slot.backend),
    });
    let owner = owner.and_then(|index| Some((index, tables.backend(index)?)));
    let leaves = match action {
        Action::Transmit | Action::Redirect(_) => Headers::read(&frame),
        Action::Pass | Action::Drop => None,
    };
    Ok(Decision {
        segment: Sent { client, vip, kind, bytes },
        filter,
        service: served.map(|(index, service)| Service {
            index,
            affinity: affinity(service).name(),
            slots: service.slots,
            mss_clamp: (service.mss_clamp != 0).then_some(service.mss_clamp),
        }),
        flow,
        group_taken,
        slot,
        backend: owner
            .map(|(index, backend)| backend_of(tables, index, backend, tuple.ports.destination)),
        next_hop: owner.and_then(|(_, backend)| next_hop(tables, backend)),
        leaves,
        verdict: verdict(action, &counted, question.interface),
        events: counted.events.iter().map(|(_, event)| event.name()).collect(),
        state_after: after.filter(|_| filter.lets_through).map(|entry| entry.state().name()),
    })
}

/// TCP flags.
const fn flags(kind: Kind) -> u8 {
    match kind {
        Kind::Syn => Tcp::SYN,
        Kind::Ack => Tcp::ACK,
    }
}

fn flow_of<T: Tables>(
    tables: &T,
    settings: &Settings,
    tuple: &Segment,
    found: Found,
    group: u32,
    now: u64,
) -> Flow {
    let Found { index, entry } = found;
    let tick = flow::tick_of(settings, now);
    let backend = tables.backend(entry.backend());
    let is_ours = backend.is_some_and(|backend| {
        service::of_backend(tables, backend).is_some_and(|vip| {
            service::is_for(tuple, &vip) || entry.is_return() && nat::is_from(tuple, backend)
        })
    });
    let state = backend.map_or(BackendState::Absent, |b| BackendState::from_number(b.state));
    let standing = match state {
        BackendState::Absent => Standing::BackendAbsent,
        _ if !is_ours => Standing::Stranger,
        BackendState::Reset => Standing::BackendGone,
        _ if entry.is_expired(tick, settings) => Standing::Expired,
        BackendState::Forward | BackendState::Suspect => Standing::Known,
    };
    let word = group * GROUP as u32 + index as u32;
    let of_client = |record: &abi::FlowRecord| {
        entry.is_return()
            || record.client == tuple.source && record.client_port == tuple.ports.source
    };
    let record = tables.flow_record(word).filter(of_client);
    let seconds = |jiffies: u32| f64::from(jiffies) / f64::from(settings.hz.max(1));
    let seen = |record: abi::FlowRecord| {
        let port = u16::from_be_bytes(record.nat_port);
        SocketAddr::new(nat::seen_address(&record, tables).into(), port)
    };
    let age = record
        .map(|record| (now as u32).wrapping_sub(record.start as u32))
        // One that has begun since the time was read.
        .map(|age| seconds(if age > u32::MAX / 2 { 0 } else { age }));
    let idle = seconds(u32::from(entry.age(tick)) << settings.tick_shift.min(24));
    Flow {
        word,
        state: entry.state().name(),
        backend: entry.backend(),
        standing,
        age_seconds: age,
        idle_seconds: age.map_or(idle, |age| idle.min(age)),
        client_at_backend: record.filter(|record| record.nat_port != [0; 2]).map(seen),
    }
}

const fn affinity(service: &abi::Service) -> Affinity {
    if service.affinity == Affinity::SourceIp as u8 { Affinity::SourceIp } else { Affinity::None }
}

/// As [`steer::Turn::take`] chooses for a new flow.
fn slot_of<T: Tables>(
    tables: &T,
    settings: &Settings,
    index: u16,
    service: &abi::Service,
    tuple: &Segment,
) -> Slot {
    let hash = match affinity(service) {
        Affinity::None => hash::of_flow(tuple, &settings.hash_keys),
        Affinity::SourceIp => hash::of_client(tuple.source, &settings.hash_keys),
    };
    let slot = maglev::slot_of(hash, service.slots);
    Slot { hash: format!("{hash:016x}"), slot, backend: tables.slot(index, slot) }
}

/// `asked` is the port that the client has asked for.
fn backend_of<T: Tables>(
    tables: &T,
    index: u16,
    backend: &abi::Backend,
    asked: [u8; 2],
) -> Backend {
    let port = if service::is_any(backend.port) { asked } else { backend.port };
    let nat_first = tables.service(backend.service).map_or(0, |service| service.nat_first);
    Backend {
        index,
        address: SocketAddr::new(backend.address.into(), u16::from_be_bytes(port)),
        forwarding: forwarding(backend).name(),
        state: match BackendState::from_number(backend.state) {
            BackendState::Absent => "absent",
            BackendState::Forward => "forward",
            BackendState::Reset => "reset",
            BackendState::Suspect => "suspect",
        },
        sees: match (forwarding(backend), nat_first) {
            (Forwarding::L2 | Forwarding::Ipip, _) | (Forwarding::Nat, KEEP_CLIENT) => "client",
            (Forwarding::Nat, 0) => "own",
            (Forwarding::Nat, _) => "named",
        },
    }
}

const fn forwarding(backend: &abi::Backend) -> Forwarding {
    if backend.forwarding == Forwarding::Ipip as u8 {
        Forwarding::Ipip
    } else if nat::translates(backend) {
        Forwarding::Nat
    } else {
        Forwarding::L2
    }
}

fn next_hop<T: Tables>(tables: &T, backend: &abi::Backend) -> Option<NextHop> {
    let hop = backend.next_hop;
    let egress = tables.egress(hop.egress()).filter(|_| hop.egress() != 0)?;
    let overhead = match forwarding(backend) {
        Forwarding::Ipip if backend.address.is_v4() => Ipv4::LEN,
        Forwarding::Ipip => Ipv6::LEN,
        Forwarding::L2 | Forwarding::Nat => 0,
    };
    Some(NextHop {
        interface: egress.ifindex,
        source_mac: Mac(egress.source_mac).to_string(),
        mac: Mac(hop.mac()).to_string(),
        mtu: backend.mtu,
        overhead: overhead as u16,
    })
}

fn verdict(action: Action, counted: &Counted, arrived: u32) -> Verdict {
    let (becomes, interface) = match action {
        Action::Pass => (Becomes::Passed, None),
        Action::Drop => (Becomes::Dropped, None),
        Action::Transmit | Action::Redirect(_) => {
            let becomes = match counted.backend {
                Some(_) if counted.is_return => Becomes::Returned,
                Some(_) => Becomes::Forwarded,
                None => Becomes::Reset,
            };
            let out = if let Action::Redirect(index) = action { index } else { arrived };
            (becomes, Some(out))
        }
    };
    Verdict {
        becomes,
        interface,
        reason: counted.reason.map(Reason::name),
        help: counted.reason.map(Reason::help),
    }
}

#[cfg(test)]
mod tests;
