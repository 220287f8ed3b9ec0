//! Flows: listed with their names, and counted.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::flow;

use super::{State, status::names};
use crate::{control::api, datapath::FlowView};

/// What a backend sees for a client.
fn seen(state: &State, client: SocketAddr, (address, port): (u16, u16)) -> Option<String> {
    let address = match address {
        0 => client.ip(),
        index => *state.image.nat_addresses.get(&index)?,
    };
    Some(SocketAddr::new(address, port).to_string())
}

pub(super) fn flows(state: &State, filter: &api::FlowFilter) -> api::Flows {
    let mut names = names(state);
    names.retain(|_, (service, backend, _)| {
        filter.service.as_ref().is_none_or(|wanted| wanted == service)
            && filter.backend.as_ref().is_none_or(|wanted| wanted == backend)
    });
    let limit = filter.limit();
    let mut listed = Vec::new();
    let mut matching = 0;
    let mut by_state = [0u64; flow::State::ALL.len() + 1];
    let mut by_backend: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let of = |backend: u16| names.contains_key(&backend);
    let scanned = state.datapath.each_flow(of, |flow: &FlowView| {
        let Some((service, backend, vip)) = names.get(&flow.backend) else { return true };
        if filter.client.is_some_and(|wanted| wanted != flow.client.ip()) {
            return true;
        }
        matching += 1;
        by_state[flow.state as usize] += 1;
        *by_backend.entry((service, backend)).or_default() += 1;
        if listed.len() < limit {
            let mut vip = *vip;
            vip.set_port(flow.vip_port);
            listed.push(api::Flow {
                client: flow.client.to_string(),
                vip: vip.to_string(),
                service: service.clone(),
                backend: backend.clone(),
                nat: flow.nat.and_then(|nat| seen(state, flow.client, nat)),
                state: flow.state.name().to_owned(),
                age_seconds: flow.age_seconds as u64,
                idle_seconds: flow.idle_seconds as u64,
            });
        }
        true
    });
    if let Err(error) = scanned {
        tracing::warn!("can't list the flows: {error:#}");
    }
    api::Flows {
        truncated: matching > listed.len() as u64,
        flows: listed,
        matching,
        by_state: api::by_state(|state| by_state[state as usize]),
        by_backend: by_backend
            .into_iter()
            .map(|((service, backend), flows)| api::BackendFlows {
                service: service.to_owned(),
                backend: backend.to_owned(),
                flows,
            })
            .collect(),
        limit,
    }
}
