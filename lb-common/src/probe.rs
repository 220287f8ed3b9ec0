//! Health probes on the road of traffic.
//!
//! The daemon's prober sits in a network namespace of its own, at one end of a veth pair. Its
//! connections go to a VIP, from one of this host's own addresses; which backend a connection is
//! for, its source port tells. At the host's end [`send`] forwards them as traffic is forwarded,
//! so that a backend which does not take traffic does not take probes either. The backend answers
//! as it would answer a client, straight to the source address, which is this host: there
//! [`is_answer`] tells the answer from the host's own traffic, and [`deliver`] hands it to the
//! prober. The host's kernel, to which a packet from a VIP may be a martian, sees none of it.
//!
//! Probes leave no trace in the flow table, in traffic and in events.

use zerocopy::{Immutable, IntoBytes};

use crate::{
    abi::{Backend, PROBE_HOST_MAC, PROBE_PEER_MAC, Settings},
    forward::{self, Action},
    frame::Frame,
    hash, nat,
    parse::{self, Family, Glance, Segment},
    reason::Reason,
    service::{self, BackendState},
    steer::{self, Stages},
    tables::Tables,
    wire::{Macs, ethernet},
};

/// What becomes of a frame from the prober: the way of a probe to its backend, whatever state
/// that is in. If it is too big for that, the prober is told as a client is, so that a probe fails
/// of its size only where clients are told nothing.
#[inline(always)]
pub fn send<F: Frame, T: Stages<F>>(frame: &mut F, tables: &T) -> Action {
    // The prober is a Linux kernel of our own: what it sends has neither VLAN tags nor IP options.
    let sent = match parse::glance(frame, |_, _| true) {
        Glance::Ipv4(segment) => forward(frame, &segment, tables),
        Glance::Ipv6(segment) => forward(frame, &segment, tables),
        Glance::NotVip | Glance::Odd => None,
    };
    sent.unwrap_or_else(|| forward::leave(tables, Reason::ProbeUndelivered))
}

#[inline(always)]
fn forward<F: Frame, T: Stages<F>>(frame: &mut F, segment: &Segment, tables: &T) -> Option<Action> {
    let settings = tables.settings()?;
    let (index, backend) = target(tables, segment.ports.source)?;
    if !service::is_for(segment, &service::of_backend(tables, backend)?) {
        return None;
    }
    // Who is reached by translation has no VIP to be asked at.
    if nat::translates(backend) {
        return None;
    }
    let hash = hash::of_flow(segment, &settings.hash_keys);
    match forward::rewrite(frame, segment, tables, backend, hash) {
        Ok(action) => Some(action),
        Err(reason) => match tables.unsent(frame, index, reason) {
            Reason::TooBig => Some(Action::Transmit),
            _ => None,
        },
    }
}

/// Whose the probe from a port is, and the service that it asks.
#[inline(always)]
fn target<T: Tables>(tables: &T, port: [u8; 2]) -> Option<(u16, &Backend)> {
    let index = tables.probe(u16::from_be_bytes(port));
    if index == 0 {
        return None;
    }
    let backend = tables.backend(index)?;
    if matches!(BackendState::from_number(backend.state), BackendState::Absent) {
        return None;
    }
    Some((index, backend))
}

/// Whether a segment is a backend's answer to a probe that is under way: to an address and port
/// that the probe came from, from the very service that it asked.
#[inline(always)]
pub fn is_answer<T: Tables>(segment: &Segment, tables: &T, settings: &Settings) -> bool {
    settings.probe_interface != 0
        && target(tables, segment.ports.destination)
            .and_then(|(_, asked)| service::of_backend(tables, asked))
            .is_some_and(|asked| service::is_from(segment, &asked))
        && tables.is_probe_source(segment.destination)
}

/// What becomes of a frame on an interface where only answers to probes concern us.
#[inline(always)]
pub fn collect<F: Frame, T: Stages<F>>(frame: &mut F, tables: &T) -> Action {
    let segment =
        match parse::glance(frame, |_, destination| steer::may_be_vip(tables, destination)) {
            Glance::Ipv4(segment) | Glance::Ipv6(segment) => segment,
            Glance::NotVip => return Action::Pass,
            Glance::Odd => match tables.odd_segment(frame) {
                Ok(segment) => segment,
                Err(_) => return Action::Pass,
            },
        };
    match tables.settings() {
        Some(settings) if is_answer(&segment, tables, settings) => {
            hand_over(frame, &segment, tables)
        }
        _ => Action::Pass,
    }
}

/// Hands an answer to the prober, and counts it.
#[inline(always)]
pub fn hand_over<F: Frame, T: Stages<F>>(frame: &mut F, segment: &Segment, tables: &T) -> Action {
    match tables.deliver(frame, segment.l3, segment.family) {
        Some(interface) => {
            tables.count_reason(Reason::ProbeAnswer);
            Action::Redirect(interface)
        }
        None => forward::leave(tables, Reason::Truncated),
    }
}

/// An untagged Ethernet header.
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct Header {
    macs: forward::l2::Words,
    kind: [u8; 2],
}

/// What [`Stages::deliver`] does: the prober knows no VLANs.
#[inline(always)]
pub fn deliver<F: Frame, T: Tables>(
    frame: &mut F,
    l3: u16,
    family: Family,
    tables: &T,
) -> Option<u32> {
    let interface = tables.settings()?.probe_interface;
    let tags = usize::from(l3).checked_sub(ethernet::LEN)?;
    if tags != 0 {
        frame.shrink_front(tags)?;
    }
    let macs = Macs { destination: PROBE_PEER_MAC, source: PROBE_HOST_MAC };
    let kind = match family {
        Family::Ipv4 => ethernet::IPV4,
        Family::Ipv6 => ethernet::IPV6,
    };
    frame.write(0, Header { macs: macs.into(), kind })?;
    Some(interface)
}
