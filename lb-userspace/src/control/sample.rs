//! A small instance that answers, for the tests of all who ask or print.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use lb_common::{abi::HandshakeTimes, flow::State, reason::Reason};

use super::{Control, Peer, api};
use crate::{drain::Moment, health, intent::Refusal, metrics::Figures, model::Via};

/// Always the same answers; ready or not.
pub struct Sample {
    /// As [`api::Status::ready`].
    pub ready: AtomicBool,
}

impl Sample {
    pub fn ready() -> Self {
        Self { ready: AtomicBool::new(true) }
    }
}

impl Control for Sample {
    fn status(&self) -> api::Status {
        let mut status = status();
        status.ready = self.ready.load(Ordering::Relaxed);
        status
    }

    fn flows(&self, filter: &api::FlowFilter) -> api::Flows {
        let matches = |flow: &api::Flow| {
            filter.service.as_ref().is_none_or(|service| *service == flow.service)
                && filter.backend.as_ref().is_none_or(|backend| *backend == flow.backend)
                && filter.client.is_none_or(|wanted| {
                    let client: SocketAddr = flow.client.parse().expect("an address");
                    wanted.contains(&client.ip())
                })
                && filter.state.is_none_or(|wanted| State::from(wanted).name() == flow.state)
        };
        let mut flows = flows();
        flows.flows.retain(matches);
        flows.matching = flows.flows.len() as u64;
        flows.limit = filter.limit();
        flows.truncated = flows.flows.len() > flows.limit;
        flows.flows.truncate(flows.limit);
        flows.by_client.truncate(filter.by_client());
        flows
    }

    fn reasons(&self) -> api::Reasons {
        reasons()
    }

    fn figures(&self) -> Figures {
        Figures { status: self.status(), reasons: reasons(), drains: drains() }
    }

    fn drains(&self, filter: &api::DrainFilter) -> Vec<api::Drain> {
        let matches = |drain: &api::Drain| {
            filter.service.as_ref().is_none_or(|service| *service == drain.service)
                && filter.backend.as_ref().is_none_or(|backend| *backend == drain.backend)
        };
        drains().into_iter().filter(matches).collect()
    }

    fn events(&self, filter: &api::EventFilter) -> api::Events {
        crate::journal::select(events().events, filter)
    }

    fn export(&self) -> anyhow::Result<api::Exported> {
        Ok(api::Exported { text: "# all of it\n".to_owned() })
    }

    fn plan(&self, file: &api::ConfigFile) -> Result<api::Plan, Refusal> {
        Err(Refusal::File(format!("{}:1:1: no", file.name)))
    }

    fn apply(&self, file: &api::ConfigFile, peer: &Peer) -> Result<api::Changed, Refusal> {
        let text = format!("{} bytes from uid {}", file.text.len(), peer.uid);
        let action = api::Action::Change;
        let difference = api::Difference { action, service: None, backend: None, text };
        Ok(api::Changed {
            changed: true,
            generation: 8,
            differences: vec![difference],
            warnings: vec![],
        })
    }

    fn change(&self, asked: &api::Transaction, _: &Peer) -> Result<api::Changed, Refusal> {
        match asked.force {
            true => Ok(api::Changed { changed: true, generation: 8, ..api::Changed::default() }),
            false => Err(Refusal::TooFew { service: "web".to_owned(), left: 0, wanted: 1 }),
        }
    }
}

pub fn drains() -> Vec<api::Drain> {
    vec![api::Drain {
        service: "web".to_owned(),
        backend: "web-1".to_owned(),
        admin: api::Admin::Draining,
        since: "2026-05-01T07:30:00Z".to_owned(),
        deadline_seconds: 287.5,
        seconds: 12.5,
        flows_at_start: Some(30),
        flows_left: 2,
        oldest_seconds: Some(77),
        flows_cut: 0,
        new_flows_since_drain: 0,
    }]
}

pub fn events() -> api::Events {
    let event = |id, at: &str, kind, text: &str| api::Event {
        id,
        at: at.to_owned(),
        kind,
        service: None,
        backend: None,
        text: text.to_owned(),
        uid: None,
        pid: None,
        generation: None,
        probe: None,
    };
    let change =
        event(1, "2026-05-01T07:30:00.000001Z", api::EventKind::Change, "enabled -> draining");
    let drift = event(9, "2026-05-01T07:30:09.5Z", api::EventKind::Drift, "VIPS 203.0.113.10");
    let change = api::Event {
        service: Some("web".to_owned()),
        backend: Some("web-1".to_owned()),
        uid: Some(0),
        pid: Some(4711),
        generation: Some(8),
        ..change
    };
    api::Events { events: vec![change, drift], truncated: false }
}

pub fn status() -> api::Status {
    api::Status {
        instance: "default".to_owned(),
        version: api::VERSION.to_owned(),
        ready: true,
        since: "2026-05-01T07:30:00Z".to_owned(),
        interfaces: vec![api::Interface {
            name: "eth0".to_owned(),
            xdp_mode: "native".to_owned(),
            attached: true,
            counts: Some(api::InterfaceCounts {
                received_frames_total: 1_334_947,
                received_bytes_total: 98_765_432,
                receive_dropped_total: 3,
                sent_frames_total: 100_055,
                xdp: [("rx_queue_xdp_tx_errors".to_owned(), 2)].into(),
                ..api::InterfaceCounts::default()
            }),
        }],
        services: vec![
            service("api", "[2001:db8::10]:443", "ipip", vec![backend("api-1", "2001:db8:1::11")]),
            service(
                "web",
                "203.0.113.10:80",
                "l2",
                vec![
                    api::Backend {
                        active_flows: 12,
                        new_flows_total: 3456,
                        handshakes_total: 3,
                        client_resets_total: 1,
                        second_tries_total: 2,
                        handshake_times: handshake_times(&[0, 1, 3]),
                        packets_total: 99_999,
                        bytes_total: 12_345_678,
                        ..backend("web-1", "10.0.0.11")
                    },
                    api::Backend {
                        weight: 50,
                        declared_weight: Some(50),
                        health: api::Health::Unreachable,
                        takes_new_flows: false,
                        suspect: true,
                        probes_total: api::ProbeTotals { well: 395, failed: 5, not_made: 1 },
                        why: "no answer to SYN within 1s".to_owned(),
                        last_probe: Some(probe(
                            Some(health::Failure::NoAnswer(Duration::from_secs(1))),
                            1.5,
                        )),
                        next_hop: "no answer to ARP on eth0".to_owned(),
                        reset_flows_total: 7,
                        ..backend("web-2", "10.0.0.12")
                    },
                ],
            ),
        ],
        losses: vec![
            api::Loss {
                interface: "eth0".to_owned(),
                action: "redirect".to_owned(),
                error: Some("ENETDOWN".to_owned()),
                target: Some("eth1".to_owned()),
                frames_total: 8,
            },
            api::Loss {
                interface: "eth0".to_owned(),
                action: "transmit".to_owned(),
                error: None,
                target: None,
                frames_total: 5,
            },
        ],
        losses_watched: true,
        flows: api::FlowTable::new(
            1 << 20,
            State::ALL.into_iter().map(count).sum(),
            count,
            &[0; _],
        ),
        probes: api::Probes { targets: 3, running: 1, total: 1234, late_total: 2 },
        config: "/etc/sluice/sluice.toml".to_owned(),
        generation: 7,
        reconciliations: api::Reconciliations {
            total: 5,
            failed_total: 1,
            seconds_total: 0.75,
            maglev_builds_total: 4,
        },
        drift_repairs_total: 0,
        problems: vec!["backend web/web-2: 10.0.0.12 does not answer ARP on eth0".to_owned()],
        troubles: vec![api::Trouble {
            severity: api::Severity::Fault,
            kind: api::TroubleKind::BackendDown,
            about: "backend web/web-2".to_owned(),
            says: "is unreachable: 10.0.0.12 does not answer ARP on eth0".to_owned(),
            mend: Some("`ip route get 10.0.0.12`, `ip neigh show 10.0.0.12`".to_owned()),
            since: Some("2026-05-01T07:42:11Z".to_owned()),
        }],
    }
}

pub fn flows() -> api::Flows {
    let flow = |client: &str, backend: &str, state: State, age_seconds, idle_seconds| api::Flow {
        nat: None,
        client: client.to_owned(),
        vip: "203.0.113.10:80".to_owned(),
        service: "web".to_owned(),
        backend: backend.to_owned(),
        state: state.name().to_owned(),
        age_seconds,
        idle_seconds,
    };
    let oldest = flow("198.51.100.7:40001", "web-1", State::Old, 93_784, 0);
    api::Flows {
        oldest: Some(oldest.clone()),
        flows: vec![
            oldest,
            flow("198.51.100.7:40002", "web-2", State::Embryonic, 3, 3),
            flow("[2001:db8:7::1]:50000", "web-1", State::Closing, 61, 12),
        ],
        matching: 1234,
        by_state: api::by_state(count),
        by_backend: vec![share("web-1", 1200, 93_784), share("web-2", 34, 3)],
        by_client: [("198.51.100.7", 1200), ("2001:db8:7::/56", 20)]
            .map(|(clients, flows)| api::ClientFlows { clients: clients.to_owned(), flows })
            .into(),
        client_prefixes: 12,
        limit: 3,
        truncated: true,
    }
}

pub fn reasons() -> api::Reasons {
    let mut counts = vec![0; Reason::ALL.len()];
    counts[Reason::NotIp as usize] = 321;
    counts[Reason::NotVip as usize] = 1_234_567;
    counts[Reason::Fragment as usize] = 4;
    counts[Reason::NoBackend as usize] = 56;
    let of_interface = |name: &str, forwarded, by_reason: &[(Reason, u64)]| {
        let mut counts = vec![0; Reason::ALL.len()];
        by_reason.iter().for_each(|(reason, count)| counts[*reason as usize] = *count);
        api::InterfaceReasons::new(name, forwarded, &counts, 0)
    };
    let interfaces = vec![
        of_interface(
            "eth0",
            90_000,
            &[
                (Reason::NotIp, 320),
                (Reason::NotVip, 1_234_500),
                (Reason::Fragment, 4),
                (Reason::NoBackend, 50),
            ],
        ),
        of_interface(
            "eth1",
            9_999,
            &[(Reason::NotIp, 1), (Reason::NotVip, 67), (Reason::NoBackend, 6)],
        ),
    ];
    api::Reasons { interfaces, ..api::Reasons::new(99_999, &counts) }
}

fn service(name: &str, vip: &str, forwarding: &str, backends: Vec<api::Backend>) -> api::Service {
    api::Service {
        name: name.to_owned(),
        vip: vip.to_owned(),
        forwarding: forwarding.to_owned(),
        affinity: "none".to_owned(),
        icmp_echo: "always".to_owned(),
        mss_clamp: None,
        slots: 65_537,
        min_available: 1,
        new_flows: "healthy".to_owned(),
        held: None,
        leaving: false,
        backends,
    }
}

fn backend(name: &str, address: &str) -> api::Backend {
    api::Backend {
        name: name.to_owned(),
        address: address.parse().expect("an address"),
        port: 80,
        weight: 100,
        declared_weight: Some(100),
        backup: false,
        admin: api::Admin::Enabled,
        leaving: false,
        takes_new_flows: true,
        health: api::Health::Healthy,
        health_since: Some("2026-05-01T07:30:01Z".to_owned()),
        stale: false,
        last_probe: Some(probe(None, 0.5)),
        probes_total: api::ProbeTotals { well: 400, failed: 0, not_made: 0 },
        why: "healthy".to_owned(),
        suspect: false,
        outlier: false,
        next_hop: "eth0 02:00:00:00:00:01".to_owned(),
        active_flows: 0,
        new_flows_total: 0,
        packets_total: 0,
        bytes_total: 0,
        return_packets_total: 0,
        return_bytes_total: 0,
        nat_ports: None,
        adopted_flows_total: 0,
        untracked_flows_total: 0,
        syn_retransmissions_total: 0,
        reset_flows_total: 0,
        handshakes_total: 0,
        client_resets_total: 0,
        second_tries_total: 0,
        refusals_total: 0,
        backend_resets_total: 0,
        handshake_times: api::HandshakeTimes::new(&HandshakeTimes::default(), 250),
    }
}

/// A probe that ended so long ago.
fn probe(failure: Option<health::Failure>, age_seconds: f64) -> api::LastProbe {
    let duration = Duration::from_micros(if failure.is_some() { 1_000_000 } else { 1250 });
    let outcome = failure.map_or(Ok(()), Err);
    let probe = health::Probe { at: Moment(0), duration, outcome };
    api::LastProbe { age_seconds, ..api::LastProbe::new(Via::Vip, &probe, None, Moment(0)) }
}

/// Handshakes that took so many jiffies.
fn handshake_times(jiffies: &[u64]) -> api::HandshakeTimes {
    let mut times = HandshakeTimes::default();
    jiffies.iter().for_each(|jiffies| times.add(*jiffies));
    api::HandshakeTimes::new(&times, 250)
}

/// Three of them are embryonic, the others old.
fn share(backend: &str, flows: u64, oldest_seconds: u64) -> api::BackendFlows {
    let by_state = api::by_state(|state| match state {
        State::Embryonic => 3,
        State::Old => flows - 3,
        State::Free
        | State::Young
        | State::Closing
        | State::Reset
        | State::Answered
        | State::TimeWait => 0,
    });
    let (service, backend) = ("web".to_owned(), backend.to_owned());
    api::BackendFlows { service, backend, flows, by_state, oldest_seconds }
}

fn count(state: State) -> u64 {
    match state {
        State::Free | State::Reset | State::Answered | State::TimeWait => 0,
        State::Embryonic => 3,
        State::Young => 100,
        State::Old => 1131,
        State::Closing => 20,
    }
}
