//! The status: what is, in the words of the API.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use lb_common::{abi::ServiceKey, address::Address, counters::Event, flow, reason::Reason};

use super::{State, why::why};
use crate::{
    choice::choose,
    conservation::Ledger,
    control::api,
    datapath::BackendCounters,
    drain::{Admin, Moment},
    health::{self, Seen},
    model::{Backend, Identity, Service, Vip, XdpMode},
    network::{NextHop, Unresolved},
};

pub(super) fn status(state: &State) -> api::Status {
    let interfaces: Vec<api::Interface> = state
        .interfaces
        .iter()
        .map(|seen| {
            let ours = seen.xdp().filter(|xdp| state.datapath.is_ours(xdp.id));
            api::Interface {
                name: seen.name.clone(),
                xdp_mode: match (ours, state.desired.dataplane.xdp_mode) {
                    (Some(xdp), _) if xdp.native => "native",
                    (Some(_), _) | (None, XdpMode::Generic) => "generic",
                    (None, XdpMode::Native | XdpMode::Auto) => "native",
                }
                .to_owned(),
                attached: ours.is_some(),
                counts: seen.found.as_ref().and_then(|f| state.interface_counts(f.index)),
            }
        })
        .collect();
    let counted = Counted::of(state);
    let services = state.desired.services.iter().map(|s| service(state, &counted, s)).collect();
    let attached = !interfaces.is_empty() && interfaces.iter().all(|i| i.attached);
    let troubles = state.troubles(&counted.seen, counted.error.as_deref());
    let is_wrong = |trouble: &&api::Trouble| trouble.severity != api::Severity::Notice;
    api::Status {
        instance: state.instance.name().to_owned(),
        version: api::VERSION.to_owned(),
        ready: attached && state.image.filter.is_some() && state.not_forwarded.is_empty(),
        since: humantime::format_rfc3339_seconds(state.since).to_string(),
        interfaces,
        services,
        losses: state.lost(),
        losses_watched: state.watches_losses(),
        flows: flow_table(state),
        probes: probes(state),
        config: state.intent.declared().name().to_owned(),
        generation: state.intent.generation(),
        reconciliations: state.reconciliations,
        drift_repairs_total: state.drift_repairs,
        problems: troubles.iter().filter(is_wrong).map(api::Trouble::sentence).collect(),
        troubles,
    }
}

fn flow_table(state: &State) -> api::FlowTable {
    let used = u64::from(state.sweep.used());
    let evictions = state.datapath.maps.eviction_counts().unwrap_or_else(|error| {
        tracing::warn!("can't read the evictions: {error:#}");
        Default::default()
    });
    let of_state = |wanted| {
        flow::State::ALL
            .iter()
            .position(|state| *state == wanted)
            .map_or(0, |place| u64::from(state.sweep.by_state[place]))
    };
    let capacity = u64::from(state.datapath.flow_capacity());
    api::FlowTable::new(capacity, used, of_state, &evictions)
}

fn probes(state: &State) -> api::Probes {
    let figures = state.probes.as_ref().map(|probes| probes.figures()).unwrap_or_default();
    api::Probes {
        targets: figures.targets as u64,
        running: figures.running as u64,
        total: figures.probes_total,
        late_total: figures.late_total,
    }
}

/// Every backend of the maps with its counters, found by what it is.
struct Counted {
    services: HashMap<ServiceKey, u16>,
    by_identity: HashMap<(u16, Address, [u8; 2]), u16>,
    counters: BTreeMap<u16, BackendCounters>,
    /// What their probes have come to.
    seen: BTreeMap<Identity, Seen>,
    error: Option<String>,
}

impl Counted {
    fn of(state: &State) -> Self {
        let indices: Vec<u16> = state.image.backends.keys().copied().collect();
        let services = state.image.services.iter();
        let services = services.map(|(index, image)| (image.service.key(), *index)).collect();
        let by_identity = state
            .image
            .backends
            .iter()
            .map(|(index, record)| ((record.service, record.address, record.port), *index))
            .collect();
        let seen = state.probes.as_ref().map(|probes| probes.snapshot()).unwrap_or_default();
        match state.datapath.maps.counters(&indices) {
            Ok(counters) => {
                let counters = indices.into_iter().zip(counters).collect();
                Self { services, by_identity, counters, seen, error: None }
            }
            Err(error) => Self {
                services,
                by_identity,
                counters: BTreeMap::new(),
                seen,
                error: Some(format!("can't read the counters: {error:#}")),
            },
        }
    }
}

fn service(state: &State, counted: &Counted, service: &Service) -> api::Service {
    let index = counted.services.get(&service.key()).copied();
    let declared = state.intent.declared_service(&service.name);
    let choice = choose(service, |backend| state.condition(service, backend));
    let mut backends: Vec<api::Backend> = service
        .backends
        .iter()
        .zip(&choice.takes)
        .map(|(wanted, takes)| {
            let identity = (Address::from(wanted.address), wanted.port.to_be_bytes());
            let place = index
                .and_then(|index| counted.by_identity.get(&(index, identity.0, identity.1)))
                .copied();
            let standing = state.judge.standings().of(service, wanted);
            let declared = declared.and_then(|declared| declared.backend(&wanted.name));
            api::Backend {
                declared_weight: declared.map(|declared| declared.weight),
                takes_new_flows: *takes,
                why: why(wanted, standing, choice.tier, *takes),
                ..backend(state, counted, service, wanted, place)
            }
        })
        .collect();
    // Nobody wants it, nobody took it away: it was there when this daemon came.
    for orphan in &state.image.orphans {
        let Some(record) = state.image.backends.get(orphan) else { continue };
        if Some(record.service) == index {
            let gone = Backend {
                name: IpAddr::from(record.address).to_string(),
                address: record.address.into(),
                port: u16::from_be_bytes(record.port),
                weight: 0,
                backup: false,
                admin: Admin::Enabled,
                leaving: true,
            };
            let mut shown = backend(state, counted, service, &gone, Some(*orphan));
            shown.admin = api::Admin::Draining;
            backends.push(shown);
        }
    }
    api::Service {
        name: service.name.clone(),
        vip: service.vip.to_string(),
        forwarding: service.forwarding.name().to_owned(),
        affinity: service.affinity.name().to_owned(),
        icmp_echo: service.icmp_echo.name().to_owned(),
        mss_clamp: service.mss_clamp,
        slots: service.slots,
        min_available: service.min_available,
        new_flows: api::tier_name(choice.tier).to_owned(),
        held: state.judge.hold(service),
        leaving: service.leaving,
        backends,
    }
}

fn backend(
    state: &State,
    counted: &Counted,
    service: &Service,
    wanted: &Backend,
    index: Option<u16>,
) -> api::Backend {
    let counters =
        index.and_then(|index| counted.counters.get(&index)).copied().unwrap_or_default();
    let next_hop = state.next_hops.get(&wanted.address);
    let identity = service.identity(wanted);
    let standing = state.judge.standings().of(service, wanted);
    let seen = counted.seen.get(&identity);
    api::Backend {
        name: wanted.name.clone(),
        address: wanted.address,
        port: wanted.port,
        weight: wanted.weight,
        declared_weight: None,
        backup: wanted.backup,
        admin: wanted.admin.into(),
        leaving: wanted.leaving,
        takes_new_flows: false,
        health: standing.map_or(health::State::Unknown, |standing| standing.health).into(),
        health_since: seen.map(|seen| seen.since.to_string()),
        stale: seen.is_some_and(|seen| seen.stale),
        last_probe: last_probe(service, seen),
        probes_total: seen.map(|seen| seen.totals).unwrap_or_default().into(),
        why: String::new(),
        suspect: state.traffic_of(&identity).is_suspect,
        outlier: state.stands_out(&identity),
        next_hop: describe(next_hop),
        active_flows: index.map_or(0, |index| u64::from(state.sweep.active[usize::from(index)])),
        new_flows_total: counters.event(Event::NewFlow),
        packets_total: counters.traffic.packets,
        bytes_total: counters.traffic.bytes,
        return_packets_total: counters.traffic.return_packets,
        return_bytes_total: counters.traffic.return_bytes,
        nat_ports: state.nat_ports_for(
            service,
            index.map_or(0, |index| u64::from(state.sweep.nat_ports_of(index))),
        ),
        adopted_flows_total: counters.event(Event::Adopted),
        untracked_flows_total: counters.event(Event::Untracked),
        syn_retransmissions_total: counters.event(Event::SynRetransmission),
        reset_flows_total: counters.event(Event::Reset),
        handshakes_total: counters.event(Event::Handshake),
        client_resets_total: counters.event(Event::ClientReset),
        second_tries_total: counters.event(Event::SecondTry),
        refusals_total: counters.event(Event::Refusal),
        backend_resets_total: counters.event(Event::BackendReset),
        handshake_times: api::HandshakeTimes::new(
            &counters.handshakes,
            state.datapath.settings().hz,
        ),
    }
}

/// The last probe of a backend, in the words of the API.
pub(super) fn last_probe(service: &Service, seen: Option<&Seen>) -> Option<api::LastProbe> {
    let check = service.health.as_ref()?;
    let seen = seen?;
    let probe = seen.last.as_ref()?;
    Some(api::LastProbe::new(check.via, probe, seen.cause(), Moment::now()))
}

fn describe(next_hop: Option<&Result<NextHop, Unresolved>>) -> String {
    match next_hop {
        None => "not resolved yet".to_owned(),
        Some(Err(unresolved)) => unresolved.to_string(),
        Some(Ok(hop)) => {
            let [a, b, c, d, e, f] = hop.destination_mac;
            let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
            match hop.gateway {
                Some(gateway) => format!("{mac} on {} via {gateway}", hop.interface_name),
                None => format!("{mac} on {}", hop.interface_name),
            }
        }
    }
}

/// Frames sent to backends, those included that this daemon has seen go.
fn forwarded(state: &State) -> u64 {
    state.forwarded().unwrap_or_else(|error| {
        tracing::warn!("can't read the counters: {error:#}");
        0
    })
}

/// What became of every frame.
pub(super) fn reasons(state: &State) -> api::Reasons {
    let unexplained = state.ledgers.values().map(Ledger::unexplained).sum();
    let interfaces = state.frames_by_interface();
    let all = api::Reasons::new(forwarded(state), &reason_counts(state));
    api::Reasons { unexplained, interfaces, ..all }
}

/// Frames not forwarded, by reason.
fn reason_counts(state: &State) -> Vec<u64> {
    state.datapath.maps.reason_counts().unwrap_or_else(|error| {
        tracing::warn!("can't read the reasons: {error:#}");
        vec![0; Reason::ALL.len()]
    })
}

/// The names of the service and the backend that a backend index stands for.
pub(super) fn names(state: &State) -> HashMap<u16, (String, String, Vip)> {
    let mut by_service: HashMap<u16, &Service> = HashMap::new();
    for (index, image) in &state.image.services {
        if let Some(service) =
            state.desired.services.iter().find(|service| service.key() == image.service.key())
        {
            by_service.insert(*index, service);
        }
    }
    state
        .image
        .backends
        .iter()
        .map(|(index, record)| {
            let address = IpAddr::from(record.address);
            let port = u16::from_be_bytes(record.port);
            let service = by_service.get(&record.service);
            let vip = state.image.services.get(&record.service).map_or_else(
                || Vip::from(SocketAddr::new(address, port)),
                |image| Vip::from(&image.service.key()),
            );
            let name = service
                .and_then(|s| s.backends.iter().find(|b| b.address == address && b.port == port))
                .map_or_else(|| address.to_string(), |backend| backend.name.clone());
            let service = service.map_or_else(|| vip.to_string(), |service| service.name.clone());
            (*index, (service, name, vip))
        })
        .collect()
}
