//! Flows: listed with their names, and counted. The state is needed only to [`begin`](Look::begin):
//! however many flows there are, nobody waits until they are listed.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap, HashMap},
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use lb_common::{abi::capacity, flow};

use super::{State, clients, status::names};
use crate::{
    control::api::{self, FlowFilter, FlowOrder},
    datapath::{FlowTable, FlowView},
    model::Vip,
};

/// A look at the flow table, about to be taken.
pub(super) struct Look {
    table: Result<FlowTable>,
    names: Names,
    nat_addresses: NatAddresses,
}

/// What backends see for clients, by index.
type NatAddresses = BTreeMap<u16, IpAddr>;

/// The names of service and backend, and the VIP, by backend index.
type Names = HashMap<u16, (String, String, Vip)>;

impl Look {
    /// What is needed of the state.
    pub fn begin(state: &State) -> Self {
        let nat_addresses = state.image.nat_addresses.clone();
        Self { table: state.datapath.flow_table(), names: names(state), nat_addresses }
    }

    /// Lists and counts what matches.
    pub fn take(self, filter: &FlowFilter) -> api::Flows {
        let Self { table, mut names, nat_addresses } = self;
        names.retain(|_, (service, backend, _)| {
            filter.service.as_ref().is_none_or(|wanted| wanted == service)
                && filter.backend.as_ref().is_none_or(|wanted| wanted == backend)
        });
        let mut listing = Listing::new(&names, &nat_addresses, filter);
        match table {
            Ok(table) => {
                let of = |backend: u16| names.contains_key(&backend);
                let each = |see: &mut dyn FnMut(&FlowView)| {
                    table.each(of, |flow| {
                        see(flow);
                        true
                    });
                };
                each(&mut |flow| listing.see(flow));
                if listing.begin_second_look() {
                    each(&mut |flow| listing.see_again(flow));
                }
            }
            Err(error) => tracing::warn!("can't list the flows: {error:#}"),
        }
        listing.end()
    }
}

/// What has been seen of the matching flows. However many there are, it has no more than `limit`
/// of them.
struct Listing<'f> {
    names: &'f Names,
    nat_addresses: &'f NatAddresses,
    filter: &'f FlowFilter,
    limit: usize,
    kept: BinaryHeap<Kept>,
    /// By backend index: how many in each state, and the oldest one's age.
    counts: Vec<Tally>,
    /// By clients' prefixes, if that was asked for.
    clients: Option<clients::Tally>,
    /// Of those, the prefixes to tell of.
    most: clients::Most,
    oldest: Option<FlowView>,
    /// The names' order, by backend index.
    ranks: HashMap<u16, u64>,
    matching: u64,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    by_state: [u64; flow::State::ALL.len() + 1],
    oldest_seconds: f64,
}

/// A flow, and its place in the list: the smallest come first, and the last of them gives way.
struct Kept {
    place: (u64, u64),
    flow: FlowView,
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for Kept {}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place.cmp(&other.place)
    }
}

impl<'f> Listing<'f> {
    fn new(names: &'f Names, nat_addresses: &'f NatAddresses, filter: &'f FlowFilter) -> Self {
        let mut sorted: Vec<(&str, &str, u16)> = names
            .iter()
            .map(|(index, (service, backend, _))| (&**service, &**backend, *index))
            .collect();
        sorted.sort_unstable();
        Self {
            names,
            nat_addresses,
            filter,
            limit: filter.limit(),
            kept: BinaryHeap::new(),
            counts: vec![Tally::default(); capacity::BACKENDS],
            clients: (filter.by_client() > 0).then(clients::Tally::default),
            most: clients::Most::default(),
            oldest: None,
            ranks: sorted.into_iter().zip(0..).map(|((.., index), rank)| (index, rank)).collect(),
            matching: 0,
        }
    }

    fn see(&mut self, flow: &FlowView) {
        let Some(rank) = self.ranks.get(&flow.backend).copied() else { return };
        if !self.is_wanted(flow) {
            return;
        }
        if let Some(clients) = &mut self.clients {
            clients.see(flow.client.ip());
        }
        let tally = &mut self.counts[usize::from(flow.backend)];
        tally.by_state[flow.state as usize] += 1;
        tally.oldest_seconds = tally.oldest_seconds.max(flow.age_seconds);
        if self.oldest.as_ref().is_none_or(|oldest| oldest.age_seconds < flow.age_seconds) {
            self.oldest = Some(flow.clone());
        }
        // Milliseconds, the longest first.
        let longest = |seconds: f64| u64::MAX - (seconds * 1000.0) as u64;
        let (age, idle) = (longest(flow.age_seconds), longest(flow.idle_seconds));
        let place = match self.filter.sort {
            None => (self.matching, 0),
            Some(FlowOrder::Age) => (age, idle),
            Some(FlowOrder::Idle) => (idle, age),
            Some(FlowOrder::Backend) => (rank, age),
        };
        self.matching += 1;
        if self.kept.len() < self.limit {
            self.kept.push(Kept { place, flow: flow.clone() });
        } else if let Some(mut last) = self.kept.peek_mut()
            && place < last.place
        {
            *last = Kept { place, flow: flow.clone() };
        }
    }

    /// Whether client and state are those asked for.
    fn is_wanted(&self, flow: &FlowView) -> bool {
        let FlowFilter { client, state, .. } = self.filter;
        client.is_none_or(|wanted| wanted.contains(&flow.client.ip()))
            && state.is_none_or(|wanted| flow::State::from(wanted) == flow.state)
    }

    /// Chooses the clients' prefixes to tell of; tells whether the flows must be seen again, for
    /// who is in them.
    fn begin_second_look(&mut self) -> bool {
        let clients = self.clients.take();
        self.most = clients.map(|c| c.most(self.filter.by_client())).unwrap_or_default();
        !self.most.is_empty()
    }

    fn see_again(&mut self, flow: &FlowView) {
        if self.ranks.contains_key(&flow.backend) && self.is_wanted(flow) {
            self.most.see(flow.client.ip());
        }
    }

    fn end(self) -> api::Flows {
        let Self { names, nat_addresses, limit, kept, counts, most, oldest, .. } = self;
        let matching = self.matching;
        let (client_prefixes, most) = most.told();
        let by_client = most
            .into_iter()
            .map(|(clients, flows)| api::ClientFlows { clients: clients.to_string(), flows });
        let flows: Vec<api::Flow> = kept
            .into_sorted_vec()
            .iter()
            .filter_map(|kept| tell(&kept.flow, names, nat_addresses))
            .collect();
        let mut all = Tally::default();
        // One name may stand for several backends: two that were removed.
        let mut shares: BTreeMap<(&str, &str), Tally> = BTreeMap::new();
        for (index, (service, backend, _)) in names {
            let counted = &counts[usize::from(*index)];
            if counted.total() > 0 {
                shares.entry((service, backend)).or_default().add(counted);
                all.add(counted);
            }
        }
        let by_backend = shares.into_iter().map(|((service, backend), tally)| api::BackendFlows {
            service: service.to_owned(),
            backend: backend.to_owned(),
            flows: tally.total(),
            by_state: tally.told(),
            oldest_seconds: tally.oldest_seconds as u64,
        });
        api::Flows {
            truncated: matching > flows.len() as u64,
            flows,
            matching,
            by_state: all.told(),
            by_backend: by_backend.collect(),
            by_client: by_client.collect(),
            client_prefixes,
            oldest: oldest.and_then(|flow| tell(&flow, names, nat_addresses)),
            limit,
        }
    }
}

impl Tally {
    fn total(&self) -> u64 {
        self.by_state.iter().sum()
    }

    fn add(&mut self, other: &Self) {
        for (sum, count) in self.by_state.iter_mut().zip(other.by_state) {
            *sum += count;
        }
        self.oldest_seconds = self.oldest_seconds.max(other.oldest_seconds);
    }

    fn told(&self) -> BTreeMap<String, u64> {
        api::by_state(|state| self.by_state[state as usize])
    }
}

/// What a backend sees for a client.
fn seen(nat: &NatAddresses, client: SocketAddr, (address, port): (u16, u16)) -> Option<String> {
    let address = match address {
        0 => client.ip(),
        index => *nat.get(&index)?,
    };
    Some(SocketAddr::new(address, port).to_string())
}

fn tell(flow: &FlowView, names: &Names, nat: &NatAddresses) -> Option<api::Flow> {
    let (service, backend, vip) = names.get(&flow.backend)?;
    let vip = SocketAddr::new(vip.ip(), flow.vip_port);
    Some(api::Flow {
        client: flow.client.to_string(),
        vip: vip.to_string(),
        service: service.clone(),
        backend: backend.clone(),
        nat: flow.nat.and_then(|translated| seen(nat, flow.client, translated)),
        state: flow.state.name().to_owned(),
        age_seconds: flow.age_seconds as u64,
        idle_seconds: flow.idle_seconds as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::FlowState;

    fn names() -> Names {
        let name = |index: u16, service: &str, backend: &str| {
            let vip = Vip::from(SocketAddr::from(([203, 0, 113, 10], 80)));
            (index, (service.to_owned(), backend.to_owned(), vip))
        };
        // The order of the names is not that of the indices.
        [name(1, "web", "web-1"), name(2, "web", "web-2"), name(3, "api", "api-1")].into()
    }

    /// Of so many flows, in a disorder that is always the same.
    fn list(filter: &FlowFilter, count: u32) -> api::Flows {
        let names = names();
        let nat = NatAddresses::new();
        let mut listing = Listing::new(&names, &nat, filter);
        let flow = |number: u32| {
            // Coprime to any power of two: each age below `count` once.
            let age = number.wrapping_mul(2_654_435_761) % count;
            let [_, b, c, d] = number.to_be_bytes();
            FlowView {
                client: SocketAddr::from(([10, b, c, d], 40_000)),
                vip_port: 443,
                nat: None,
                backend: (number % 4) as u16,
                state: flow::State::ALL[(number / 4 % 2) as usize],
                age_seconds: f64::from(age),
                idle_seconds: f64::from(age / 2),
            }
        };
        (0..count).for_each(|number| listing.see(&flow(number)));
        if listing.begin_second_look() {
            (0..count).for_each(|number| listing.see_again(&flow(number)));
        }
        listing.end()
    }

    fn sorted(sort: FlowOrder) -> api::Flows {
        list(&FlowFilter { sort: Some(sort), limit: Some(5), ..FlowFilter::default() }, 1 << 10)
    }

    #[test]
    fn a_million_flows_are_counted_and_few_of_them_kept() {
        let filter =
            FlowFilter { sort: Some(FlowOrder::Age), limit: Some(1000), ..FlowFilter::default() };
        let flows = list(&filter, 1 << 20);
        // Nobody has backend 0.
        assert_eq!(flows.matching, 3 << 18);
        assert_eq!((flows.flows.len(), flows.truncated), (1000, true));
        assert_eq!(flows.by_state["embryonic"] + flows.by_state["young"], 3 << 18);
        let shares = flows.by_backend.iter().map(|share| (&*share.backend, share.flows));
        assert_eq!(
            shares.collect::<Vec<_>>(),
            [("api-1", 1 << 18), ("web-1", 1 << 18), ("web-2", 1 << 18)]
        );
        assert!(flows.flows.is_sorted_by_key(|flow| std::cmp::Reverse(flow.age_seconds)));
        assert_eq!(flows.oldest.as_ref(), flows.flows.first());
        assert_eq!(
            flows.by_backend.iter().map(|share| share.oldest_seconds).max(),
            flows.oldest.map(|f| f.age_seconds)
        );
    }

    #[test]
    fn the_first_are_those_that_were_asked_for() {
        let ages =
            |flows: &api::Flows| flows.flows.iter().map(|f| f.age_seconds).collect::<Vec<_>>();
        let idle = sorted(FlowOrder::Idle);
        assert_eq!(
            ages(&sorted(FlowOrder::Age)),
            ages(&idle),
            "who is silent for longest is oldest"
        );
        assert_eq!(idle.flows[0].idle_seconds, idle.flows[0].age_seconds / 2);
        let first = sorted(FlowOrder::Backend);
        assert!(first.flows.iter().all(|flow| flow.backend == "api-1"), "{first:?}");
        assert_eq!(first.flows[0].age_seconds, first.by_backend[0].oldest_seconds);
        assert_eq!(first.flows[0].vip, "203.0.113.10:443");
        let unsorted = list(&FlowFilter { limit: Some(2), ..FlowFilter::default() }, 1 << 10);
        let clients: Vec<&str> = unsorted.flows.iter().map(|flow| &*flow.client).collect();
        assert_eq!(clients, ["10.0.0.1:40000", "10.0.0.2:40000"]);
    }

    #[test]
    fn filters_hold_for_counts_too() {
        let client = Some("10.0.1.0/24".parse().expect("a prefix"));
        let state = Some(FlowState::Young);
        let filter = FlowFilter { client, state, limit: Some(0), ..FlowFilter::default() };
        let flows = list(&filter, 1 << 10);
        assert_eq!((flows.matching, flows.flows.len(), flows.truncated), (96, 0, true));
        assert_eq!((flows.by_state["young"], flows.by_state["embryonic"]), (96, 0));
        assert!(flows.oldest.is_some_and(|flow| flow.client.starts_with("10.0.1.")));
        assert_eq!((flows.by_client.len(), flows.client_prefixes), (0, 0), "nobody asked");
    }

    #[test]
    fn clients_are_counted_by_prefix_as_filtered() {
        let filter = FlowFilter {
            state: Some(FlowState::Young),
            by_client: Some(3),
            limit: Some(0),
            ..FlowFilter::default()
        };
        let flows = list(&filter, (1 << 10) + 16);
        assert_eq!(flows.client_prefixes, 5);
        let told: Vec<_> = flows.by_client.iter().map(|one| (&*one.clients, one.flows)).collect();
        assert_eq!(told, [("10.0.0.0/24", 96), ("10.0.1.0/24", 96), ("10.0.2.0/24", 96)]);
    }

    #[test]
    fn a_client_is_named_who_alone_of_his_prefix_is_asked_for() {
        let told = |client: &str| {
            let client = Some(client.parse().expect("an address or a prefix"));
            let filter = FlowFilter { client, by_client: Some(3), ..FlowFilter::default() };
            let flows = list(&filter, 1 << 10);
            flows.by_client.iter().map(|one| one.clients.clone()).collect::<Vec<_>>()
        };
        assert_eq!(told("10.0.1.7"), ["10.0.1.7"]);
        assert_eq!(told("10.0.1.0/24"), ["10.0.1.0/24"]);
    }
}
