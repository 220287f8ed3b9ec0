//! A small instance that answers, for the tests of all who ask or print.

use std::sync::atomic::{AtomicBool, Ordering};

use lb_common::{flow::State, reason::Reason};

use super::{Control, api};

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
                && filter.client.is_none_or(|ip| flow.client.contains(&ip.to_string()))
        };
        let mut flows = flows();
        flows.flows.retain(matches);
        flows.matching = flows.flows.len() as u64;
        flows.limit = filter.limit();
        flows.truncated = flows.flows.len() > flows.limit;
        flows.flows.truncate(flows.limit);
        flows
    }

    fn reasons(&self) -> api::Reasons {
        reasons()
    }
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
                        packets_total: 99_999,
                        bytes_total: 12_345_678,
                        ..backend("web-1", "10.0.0.11")
                    },
                    api::Backend {
                        weight: 50,
                        health: api::Health::Unreachable,
                        next_hop: "no answer to ARP on eth0".to_owned(),
                        reset_flows_total: 7,
                        ..backend("web-2", "10.0.0.12")
                    },
                ],
            ),
        ],
        flows: api::FlowTable::new(1 << 20, count),
        problems: vec!["backend web/web-2: 10.0.0.12 does not answer ARP on eth0".to_owned()],
    }
}

pub fn flows() -> api::Flows {
    let flow = |client: &str, backend: &str, state: State, age_seconds, idle_seconds| api::Flow {
        client: client.to_owned(),
        vip: "203.0.113.10:80".to_owned(),
        service: "web".to_owned(),
        backend: backend.to_owned(),
        state: state.name().to_owned(),
        age_seconds,
        idle_seconds,
    };
    api::Flows {
        flows: vec![
            flow("198.51.100.7:40001", "web-1", State::Old, 93_784, 0),
            flow("198.51.100.7:40002", "web-2", State::Embryonic, 3, 3),
            flow("[2001:db8:7::1]:50000", "web-1", State::Closing, 61, 12),
        ],
        matching: 1234,
        by_state: api::by_state(count),
        by_backend: vec![share("web-1", 1200), share("web-2", 34)],
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
    api::Reasons::new(99_999, &counts)
}

fn service(name: &str, vip: &str, forwarding: &str, backends: Vec<api::Backend>) -> api::Service {
    api::Service {
        name: name.to_owned(),
        vip: vip.to_owned(),
        forwarding: forwarding.to_owned(),
        affinity: "none".to_owned(),
        slots: 65_537,
        backends,
    }
}

fn backend(name: &str, address: &str) -> api::Backend {
    api::Backend {
        name: name.to_owned(),
        address: address.parse().expect("an address"),
        port: 80,
        weight: 100,
        admin: api::Admin::Enabled,
        health: api::Health::Healthy,
        next_hop: "eth0 02:00:00:00:00:01".to_owned(),
        active_flows: 0,
        new_flows_total: 0,
        packets_total: 0,
        bytes_total: 0,
        adopted_flows_total: 0,
        untracked_flows_total: 0,
        syn_retransmissions_total: 0,
        reset_flows_total: 0,
    }
}

fn share(backend: &str, flows: u64) -> api::BackendFlows {
    api::BackendFlows { service: "web".to_owned(), backend: backend.to_owned(), flows }
}

fn count(state: State) -> u64 {
    match state {
        State::Free | State::Reset => 0,
        State::Embryonic => 3,
        State::Young => 100,
        State::Old => 1131,
        State::Closing => 20,
    }
}
