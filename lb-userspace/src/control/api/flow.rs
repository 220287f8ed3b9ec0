//! Flows: which are asked for, and what is told of them.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use clap::ValueEnum;
use ipnet::IpNet;
use lb_common::flow::State;
use serde::{Deserialize, Serialize};

/// Which flows `GET /v1/flows` lists: those that match all that is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowFilter {
    /// Of this service.
    pub service: Option<String>,
    /// Of this backend.
    pub backend: Option<String>,
    /// Of these clients.
    pub client: Option<Clients>,
    /// In this state.
    pub state: Option<FlowState>,
    /// Which come first; without it, those found first.
    pub sort: Option<FlowOrder>,
    /// List so many at most; all that match are counted. Default [`FlowFilter::LIMIT`].
    pub limit: Option<usize>,
    /// Count by clients' prefixes, too, and tell of so many of them at most; default 0: don't.
    pub by_client: Option<usize>,
}

/// One address, or all of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Clients(IpNet);

/// A client that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address or a prefix, as 198.51.100.7, 198.51.100.0/24 or 2001:db8::/32")]
pub struct BadClients;

/// What is known of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum FlowState {
    /// A SYN, no answer to it yet.
    Embryonic,
    /// More than a SYN, all in one tick (some 4 s) of the table's clock, perhaps long ago.
    Young,
    /// Packets in two ticks or more: established for certain.
    Old,
    /// The client has sent its FIN.
    Closing,
    /// The client has sent a RST.
    Reset,
    /// Translated, and both have sent their FINs.
    TimeWait,
}

/// Which flows come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FlowOrder {
    /// The oldest.
    Age,
    /// Those that have been silent for longest.
    Idle,
    /// By service and backend, the oldest of each first.
    Backend,
}

/// `GET /v1/flows`: some flows, and the count of all that match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flows {
    /// At most `limit` of those that match.
    pub flows: Vec<Flow>,
    /// How many match.
    pub matching: u64,
    /// The same by state.
    pub by_state: BTreeMap<String, u64>,
    /// The same by backend, sorted; backends without a matching flow are left out.
    pub by_backend: Vec<BackendFlows>,
    /// The same by clients' prefixes, those with the most flows first, as many as were asked for.
    #[serde(default)]
    pub by_client: Vec<ClientFlows>,
    /// How many prefixes there are in all; 0 if nobody asked.
    #[serde(default)]
    pub client_prefixes: u64,
    /// The oldest of them.
    pub oldest: Option<Flow>,
    /// How many were to be listed at most.
    pub limit: usize,
    /// Whether more match than are listed.
    pub truncated: bool,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// The client's address and port.
    pub client: String,
    /// The VIP's address and port.
    pub vip: String,
    /// The service's name.
    pub service: String,
    /// The backend's name.
    pub backend: String,
    /// What the backend sees for the client, where that is translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<String>,
    /// `embryonic`, `young`, `old`, `closing`, `reset` or `time_wait`.
    pub state: String,
    /// Since its first packet.
    pub age_seconds: u64,
    /// Since its last packet, as exactly as the table keeps it.
    pub idle_seconds: u64,
}

/// A backend's share of the matching flows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendFlows {
    /// The service's name.
    pub service: String,
    /// The backend's name.
    pub backend: String,
    /// How many.
    pub flows: u64,
    /// The same by state.
    pub by_state: BTreeMap<String, u64>,
    /// Age of the oldest.
    pub oldest_seconds: u64,
}

/// What the clients of a prefix have of the matching flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFlows {
    /// The prefix, as `198.51.100.0/24` or `2001:db8:7::/56`: IPv4 by /24, the longest that is
    /// routed on the internet; IPv6 by /56, what one site is commonly given (RFC 6177 §2). Where all
    /// its flows come from one address, that instead, as `198.51.100.7`.
    pub clients: String,
    /// How many.
    pub flows: u64,
}

impl FlowFilter {
    /// How many flows are listed when nobody says otherwise.
    pub const LIMIT: usize = 100;
    /// The most that are listed, however many are asked for: some 20 MiB of JSON.
    pub const MAX_LIMIT: usize = 100_000;
    /// Of how many clients' prefixes `sluice flows --count` tells when nobody says otherwise.
    pub const PREFIXES: usize = 10;

    /// How many to list.
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(Self::LIMIT).min(Self::MAX_LIMIT)
    }

    /// Of how many clients' prefixes to tell.
    pub fn by_client(&self) -> usize {
        self.by_client.unwrap_or(0).min(Self::MAX_LIMIT)
    }
}

impl From<FlowState> for State {
    fn from(state: FlowState) -> Self {
        match state {
            FlowState::Embryonic => Self::Embryonic,
            FlowState::Young => Self::Young,
            FlowState::Old => Self::Old,
            FlowState::Closing => Self::Closing,
            FlowState::Reset => Self::Reset,
            FlowState::TimeWait => Self::TimeWait,
        }
    }
}

impl Clients {
    /// The prefix.
    pub const fn network(self) -> IpNet {
        self.0
    }

    /// Whether an address is among them.
    pub fn contains(&self, client: &IpAddr) -> bool {
        self.0.contains(client)
    }
}

impl From<IpAddr> for Clients {
    fn from(address: IpAddr) -> Self {
        Self(address.into())
    }
}

impl From<IpNet> for Clients {
    fn from(prefix: IpNet) -> Self {
        Self(prefix)
    }
}

impl FromStr for Clients {
    type Err = BadClients;

    fn from_str(text: &str) -> Result<Self, BadClients> {
        let prefix = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        prefix.map(Self).map_err(|_| BadClients)
    }
}

impl TryFrom<String> for Clients {
    type Error = BadClients;

    fn try_from(text: String) -> Result<Self, BadClients> {
        text.parse()
    }
}

impl From<Clients> for String {
    fn from(clients: Clients) -> Self {
        clients.to_string()
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(prefix) = self;
        if prefix.prefix_len() == prefix.max_prefix_len() {
            prefix.addr().fmt(f)
        } else {
            prefix.fmt(f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_an_address_or_a_prefix() {
        let cases = [
            ("198.51.100.7", "198.51.100.7", true),
            ("198.51.100.8", "198.51.100.8", false),
            ("198.51.100.0/24", "198.51.100.0/24", true),
            ("0.0.0.0/0", "0.0.0.0/0", true),
            ("::/0", "::/0", false),
        ];
        for (text, shown, has_it) in cases {
            let clients: Clients = text.parse().expect(text);
            assert_eq!(clients.to_string(), shown);
            assert_eq!(clients.contains(&[198, 51, 100, 7].into()), has_it, "{text}");
        }
        for text in ["", "example.com", "198.51.100.7/33", "198.51.100.7:80"] {
            assert_eq!(text.parse::<Clients>(), Err(BadClients), "{text}");
        }
    }
}
