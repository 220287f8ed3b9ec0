//! `sluice flows`: which client is served by which backend.

use clap::Args;

use super::{
    Output,
    figures::{exact, plural, seconds},
    render::by_state,
    table::{Palette, Side::Left, Side::Right, Table},
};
use crate::control::{
    api::{self, Clients, FlowFilter, FlowOrder, FlowState},
    client::Client,
};

/// Which flows, and how.
#[derive(Args)]
pub struct Arguments {
    /// Of this service
    #[arg(long)]
    service: Option<String>,
    /// Of this backend
    #[arg(long)]
    backend: Option<String>,
    /// Of this client, or of all in a prefix
    #[arg(long, value_name = "IP")]
    client: Option<Clients>,
    /// In this state
    #[arg(long)]
    state: Option<FlowState>,
    /// Which come first; without it, those that are found first
    #[arg(long, value_name = "BY")]
    sort: Option<FlowOrder>,
    /// List so many at most, else 100, or none if 0; with --count so many prefixes, else 10
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(..=FlowFilter::MAX_LIMIT as i64))]
    limit: Option<u32>,
    /// List none; count them by backend and state, and by client: IPv4 by /24, IPv6 by /56, or by the
    /// address that alone has all of these
    #[arg(long, conflicts_with = "sort")]
    count: bool,
    #[command(flatten)]
    output: Output,
}

/// Lists and counts flows.
pub async fn execute(client: &Client, arguments: &Arguments) -> anyhow::Result<()> {
    let said = arguments.limit.map(|limit| limit as usize);
    let (limit, by_client) = match arguments.count {
        true => (0, Some(said.unwrap_or(FlowFilter::PREFIXES))),
        false => (said.unwrap_or(FlowFilter::LIMIT), None),
    };
    let filter = FlowFilter {
        service: arguments.service.clone(),
        backend: arguments.backend.clone(),
        client: arguments.client,
        state: arguments.state,
        sort: arguments.sort,
        limit: Some(limit),
        by_client,
    };
    arguments.output.print(&client.flows(&filter).await?, render)
}

fn render(flows: &api::Flows, palette: Palette) -> String {
    let mut text = String::new();
    if !flows.flows.is_empty() {
        text += &list(&flows.flows).render(palette);
        let more = flows.matching.saturating_sub(flows.flows.len() as u64);
        if more > 0 {
            let most = exact(FlowFilter::MAX_LIMIT as u64);
            text += &format!("and {} more: `--limit N` lists up to {most}\n", exact(more));
        }
        text.push('\n');
    }
    let states = by_state(&flows.by_state);
    text += &format!("{} matching{states}\n", plural(flows.matching, "flow"));
    if let Some(oldest) = &flows.oldest {
        let api::Flow { client, service, backend, age_seconds, .. } = oldest;
        let age = seconds(*age_seconds);
        text += &format!("the oldest is {age} old: {client} at {service}/{backend}\n");
    }
    if flows.by_backend.len() > 1 || flows.limit == 0 && !flows.by_backend.is_empty() {
        text += &format!("\n{}", shares(&flows.by_backend).render(palette));
    }
    if !flows.by_client.is_empty() {
        text += &format!("\n{}", clients(&flows.by_client).render(palette));
        let shown = flows.by_client.len() as u64;
        if flows.client_prefixes > shown {
            let [shown, all] = [shown, flows.client_prefixes].map(exact);
            text += &format!("{shown} of {all} prefixes: `--limit N` shows more\n");
        }
    }
    text
}

fn clients(prefixes: &[api::ClientFlows]) -> Table {
    let mut table = Table::new(&[("CLIENTS", Left), ("FLOWS", Right)]);
    for api::ClientFlows { clients, flows } in prefixes {
        table.row([(**clients).into(), exact(*flows).into()]);
    }
    table
}

fn list(flows: &[api::Flow]) -> Table {
    let mut table = Table::new(&[
        ("CLIENT", Left),
        ("VIP", Left),
        ("SERVICE", Left),
        ("BACKEND", Left),
        ("STATE", Left),
        ("AGE", Right),
        ("IDLE", Right),
    ]);
    for flow in flows {
        table.row([
            (*flow.client).into(),
            (*flow.vip).into(),
            (*flow.service).into(),
            (*flow.backend).into(),
            (*flow.state).into(),
            seconds(flow.age_seconds).into(),
            seconds(flow.idle_seconds).into(),
        ]);
    }
    table
}

fn shares(shares: &[api::BackendFlows]) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Left),
        ("BACKEND", Left),
        ("FLOWS", Right),
        ("EMBRYONIC", Right),
        ("YOUNG", Right),
        ("OLD", Right),
        ("CLOSING", Right),
        ("RESET", Right),
        ("OLDEST", Right),
    ]);
    for share in shares {
        let state = |name: &str| exact(share.by_state.get(name).copied().unwrap_or(0)).into();
        table.row([
            (*share.service).into(),
            (*share.backend).into(),
            exact(share.flows).into(),
            state("embryonic"),
            state("young"),
            state("old"),
            state("closing"),
            state("reset"),
            seconds(share.oldest_seconds).into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::sample;

    const PLAIN: Palette = Palette { colours: false };

    #[test]
    fn flows_are_listed_and_counted() {
        let uncounted = api::Flows { by_client: Vec::new(), ..sample::flows() };
        insta::assert_snapshot!(render(&uncounted, PLAIN), @"
        CLIENT                 VIP              SERVICE  BACKEND  STATE        AGE  IDLE
        198.51.100.7:40001     203.0.113.10:80  web      web-1    old        1d 2h    0s
        198.51.100.7:40002     203.0.113.10:80  web      web-2    embryonic     3s    3s
        [2001:db8:7::1]:50000  203.0.113.10:80  web      web-1    closing    1m 1s   12s
        and 1,231 more: `--limit N` lists up to 100,000

        1,234 flows matching: 3 embryonic, 100 young, 1,131 old, 20 closing
        the oldest is 1d 2h old: 198.51.100.7:40001 at web/web-1

        SERVICE  BACKEND  FLOWS  EMBRYONIC  YOUNG    OLD  CLOSING  RESET  OLDEST
        web      web-1    1,200          3      0  1,197        0      0   1d 2h
        web      web-2       34          3      0     31        0      0      3s
        ");
        assert_eq!(render(&api::Flows::default(), PLAIN), "0 flows matching\n");
    }

    #[test]
    fn a_count_names_backends_and_states_and_clients() {
        let mut count = sample::flows();
        count.flows.clear();
        count.limit = 0;
        count.by_backend.truncate(1);
        let text = render(&count, PLAIN);
        assert!(text.starts_with("1,234 flows matching: 3 embryonic"), "{text}");
        insta::assert_snapshot!(text.split_once("\n\n").expect("tables").1, @"
        SERVICE  BACKEND  FLOWS  EMBRYONIC  YOUNG    OLD  CLOSING  RESET  OLDEST
        web      web-1    1,200          3      0  1,197        0      0   1d 2h

        CLIENTS          FLOWS
        198.51.100.7     1,200
        2001:db8:7::/56     20
        2 of 12 prefixes: `--limit N` shows more
        ");
    }
}
