//! A backend: what is wanted of it, what is seen of it, and what it was given.

use std::net::IpAddr;

use lb_common::counters;
use serde::{Deserialize, Serialize};

use super::{HandshakeTimes, LastProbe, ProbeTotals};
use crate::{drain, health};

/// A backend. Totals count since the program was attached, whoever the daemon was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
    /// Where it listens; 0: at every port of its service, whose VIP is one of any port.
    pub port: u16,
    /// Share of new flows, relative to the others'.
    pub weight: u16,
    /// The weight in the file; `None`: the file does not have it.
    pub declared_weight: Option<u16>,
    /// Whether it gets new flows only when no other can.
    pub backup: bool,
    /// What the operator said.
    pub admin: Admin,
    /// Taken away: it goes with its last flow.
    pub leaving: bool,
    /// Whether new flows may choose it.
    pub takes_new_flows: bool,
    /// What is seen.
    pub health: Health,
    /// Since when it is that: RFC 3339, UTC; `None`: it is not probed.
    pub health_since: Option<String>,
    /// Whether that is what the daemon before this one saw, and nothing has been seen since.
    pub stale: bool,
    /// The last probe; `None`: none was made yet.
    pub last_probe: Option<LastProbe>,
    /// All probes since this daemon began to watch it.
    pub probes_total: ProbeTotals,
    /// Why new flows may choose it, or may not.
    pub why: String,
    /// Whether clients' SYNs go to it and none is answered: their second try goes elsewhere.
    pub suspect: bool,
    /// Whether it completes far fewer handshakes than its pool, or did so lately.
    pub outlier: bool,
    /// Interface and MAC that frames for it go to, or why there is none.
    pub next_hop: String,
    /// Flows it has now.
    pub active_flows: u64,
    /// SYNs that chose it.
    pub new_flows_total: u64,
    /// Frames forwarded to it.
    pub packets_total: u64,
    /// Their bytes, as received.
    pub bytes_total: u64,
    /// Frames forwarded from it to its clients, where they come through here.
    pub return_packets_total: u64,
    /// Their bytes, as received.
    pub return_bytes_total: u64,
    /// The ports of this host that its flows take; `None`: they take none.
    pub nat_ports: Option<NatPorts>,
    /// Flows met in the middle.
    pub adopted_flows_total: u64,
    /// Flows that found no place in the table.
    pub untracked_flows_total: u64,
    /// SYNs sent again.
    pub syn_retransmissions_total: u64,
    /// Flows reset because it was gone.
    pub reset_flows_total: u64,
    /// Flows whose client has acknowledged its answer.
    pub handshakes_total: u64,
    /// Flows that their clients reset soon after the SYN.
    pub client_resets_total: u64,
    /// SYNs sent again and given to another backend, this one being suspect.
    pub second_tries_total: u64,
    /// SYNs that it answered with a RST, where that is seen.
    pub refusals_total: u64,
    /// Connections that it reset, where that is seen.
    pub backend_resets_total: u64,
    /// How long its handshakes took.
    pub handshake_times: HandshakeTimes,
}

/// Ports of this host that the flows of a backend take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatPorts {
    /// Taken, those included that only wait until late packets have passed.
    pub used: u64,
    /// To be had, on all addresses together.
    pub capacity: u64,
}

impl NatPorts {
    /// Whether more than four of five are taken.
    pub const fn are_short(&self) -> bool {
        self.used * 5 > self.capacity * 4
    }
}

/// What the operator wants of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    /// It takes its share of new flows.
    Enabled,
    /// It keeps its flows and takes no new ones.
    Draining,
    /// As before, and none is left.
    Drained,
    /// It has no flows.
    Disabled,
}

/// What is seen of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing yet.
    Unknown,
    /// It answers.
    Healthy,
    /// It answers wrongly.
    Unhealthy,
    /// It does not answer.
    Unreachable,
}

impl Backend {
    /// Where it listens, for people.
    pub fn port_text(&self) -> String {
        if self.port == 0 { "*".to_owned() } else { self.port.to_string() }
    }

    /// The total of an event.
    pub fn total(&self, event: counters::Event) -> u64 {
        match event {
            counters::Event::NewFlow => self.new_flows_total,
            counters::Event::Adopted => self.adopted_flows_total,
            counters::Event::Untracked => self.untracked_flows_total,
            counters::Event::SynRetransmission => self.syn_retransmissions_total,
            counters::Event::Reset => self.reset_flows_total,
            counters::Event::Handshake => self.handshakes_total,
            counters::Event::ClientReset => self.client_resets_total,
            counters::Event::SecondTry => self.second_tries_total,
            counters::Event::Refusal => self.refusals_total,
            counters::Event::BackendReset => self.backend_resets_total,
        }
    }
}

impl From<drain::Admin> for Admin {
    fn from(admin: drain::Admin) -> Self {
        match admin {
            drain::Admin::Enabled => Self::Enabled,
            drain::Admin::Draining(_) => Self::Draining,
            drain::Admin::Drained(_) => Self::Drained,
            drain::Admin::Disabled => Self::Disabled,
        }
    }
}

impl Admin {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Enabled, Self::Draining, Self::Drained, Self::Disabled];

    /// The name used by JSON, metrics and CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Disabled => "disabled",
        }
    }
}

impl From<health::State> for Health {
    fn from(state: health::State) -> Self {
        match state {
            health::State::Unknown => Self::Unknown,
            health::State::Healthy => Self::Healthy,
            health::State::Unhealthy => Self::Unhealthy,
            health::State::Unreachable => Self::Unreachable,
        }
    }
}

impl Health {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Unknown, Self::Healthy, Self::Unhealthy, Self::Unreachable];

    /// The name used by JSON and CLI.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Unreachable => "unreachable",
        }
    }
}
