//! What is said over the control socket, and printed by `--json`. Field names are fixed:
//! scripts read them. Fields may be added.

mod change;
mod event;
mod flow;
mod handshakes;
mod interface;
mod probe;
mod trouble;

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    abi::EvictionCounts,
    counters,
    flow::State,
    reason::{Class, Reason},
};
use serde::{Deserialize, Serialize};

pub use self::change::{
    Action, Change, Changed, ConfigFile, Difference, Drain, DrainFilter, Exported, Plan,
    PlannedFlows, PlannedSlots, Target, Transaction,
};
pub use self::{
    event::{Event, EventFilter, EventKind, Events},
    flow::{BackendFlows, ClientFlows, Clients, Flow, FlowFilter, FlowOrder, FlowState, Flows},
    handshakes::HandshakeTimes,
    interface::{Interface, InterfaceCounts, InterfaceReasons, Loss},
    probe::{LastProbe, ProbeTotals},
    trouble::{Severity, Trouble, TroubleKind, Verdict},
};
use crate::{choice::Tier, drain, health};

/// This binary's version, in [`Status`] and in the `server` header of every answer.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `GET /v1/status`: the instance at one glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub instance: String,
    /// Of the daemon.
    pub version: String,
    /// Attached and forwarding.
    pub ready: bool,
    /// When this daemon started: RFC 3339, UTC. Forwarding may be older.
    pub since: String,
    /// Where clients' frames arrive.
    pub interfaces: Vec<Interface>,
    /// Sorted by name.
    pub services: Vec<Service>,
    /// Frames lost after our program's decision, by kind.
    pub losses: Vec<Loss>,
    /// Whether they are counted: not where the kernel lets nobody watch.
    pub losses_watched: bool,
    /// The flow table.
    pub flows: FlowTable,
    /// The prober.
    pub probes: Probes,
    /// The file in use; what was said at run time lies on top of it.
    pub config: String,
    /// Counts the changes of what is wanted; kept over restarts.
    pub generation: u64,
    /// What was written into the maps because something had changed.
    pub reconciliations: Reconciliations,
    /// Writes that mended what somebody else had changed in the maps, since this daemon started.
    pub drift_repairs_total: u64,
    /// What is wrong and what to do about it, one sentence each: outages and faults of `troubles`.
    pub problems: Vec<String>,
    /// What is not as it should be, or was taken out by an operator, the worst first.
    pub troubles: Vec<Trouble>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Address and port, as `203.0.113.10:80`; `203.0.113.10:*`: any port.
    pub vip: String,
    /// `l2`, `ipip` or `nat`.
    pub forwarding: String,
    /// `none` or `source-ip`.
    pub affinity: String,
    /// `always` or `healthy`: when pings of its address are answered.
    pub icmp_echo: String,
    /// What the MSS that its clients announce is lowered to, bytes.
    pub mss_clamp: Option<u16>,
    /// Of its Maglev table.
    pub slots: u32,
    /// A change that leaves fewer backends to new flows is refused.
    pub min_available: u16,
    /// Who takes new flows: `healthy`, `backup`, `fail-open`, `draining` backends, or `nobody`.
    pub new_flows: String,
    /// Why backends that are not well are kept, if they are: so many fail at once that the fault
    /// may be ours.
    pub held: Option<String>,
    /// Taken away: it goes with its last flow.
    pub leaving: bool,
    /// Sorted by name; behind them, those that were taken away and may still have flows.
    pub backends: Vec<Backend>,
}

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

/// How the prober itself does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Probes {
    /// Backends that are probed.
    pub targets: u64,
    /// Probes under way.
    pub running: u64,
    /// Probes begun since this daemon started.
    pub total: u64,
    /// Those begun more than 100 ms after they were due.
    pub late_total: u64,
}

/// How often the maps were made to follow a change; all since this daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reconciliations {
    /// How often something had to be written.
    pub total: u64,
    /// How often a map refused.
    pub failed_total: u64,
    /// How long it took in all.
    pub seconds_total: f64,
    /// Maglev tables made and put in place.
    pub maglev_builds_total: u64,
}

/// The flow table's load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowTable {
    /// How many flows it can hold.
    pub capacity: u64,
    /// How much of that is taken: a translated flow takes twice what another does.
    pub used: u64,
    /// How many it holds, by state: `embryonic`, `young`, `old`, `closing`, `reset`, `answered`,
    /// `time_wait`.
    pub by_state: BTreeMap<String, u64>,
    /// Flows that gave way to new ones before their time, by the state they were in.
    pub evicted_total: BTreeMap<String, u64>,
    /// New flows to which none gave way: they went by slot, or, translated, were refused.
    pub overflows_total: u64,
}

/// `GET /v1/reasons`: what became of every frame since the program was attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reasons {
    /// All frames: the sum of those forwarded and of all counts below.
    pub received: u64,
    /// Frames sent to a backend.
    pub forwarded: u64,
    /// Frames that the interfaces received beyond that, for certain, since this daemon compares;
    /// less than 0: verdicts about frames that they do not tell of.
    pub unexplained: i64,
    /// Every reason, in the order of their numbers.
    pub reasons: Vec<ReasonCount>,
    /// The same of each configured interface, a second ago at most; frames that arrived on others,
    /// answers to our own probes, are in the sums above alone.
    pub interfaces: Vec<InterfaceReasons>,
}

/// How many frames ended for one reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// Its name.
    pub name: String,
    /// `pass`, `drop` or `answer`.
    pub class: String,
    /// What it means and what to do about it.
    pub help: String,
    /// How many frames.
    pub count: u64,
}

/// What the server says when it can't do what was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Why, in one sentence.
    pub error: String,
}

impl Status {
    /// The service of this name, or what is there instead.
    pub fn service(&self, name: &str) -> Result<&Service, String> {
        self.services.iter().find(|service| service.name == name).ok_or_else(|| {
            format!("no service {name:?}{}", hint(self.services.iter().map(|s| &*s.name)))
        })
    }
}

impl Service {
    /// The backend of this name, or what is there instead.
    pub fn backend(&self, name: &str) -> Result<&Backend, String> {
        let names = self.backends.iter().map(|backend| &*backend.name);
        self.backends
            .iter()
            .find(|backend| backend.name == name)
            .ok_or_else(|| format!("no backend {name:?} in service {:?}{}", self.name, hint(names)))
    }
}

/// "; there are a, b and 3 more".
fn hint<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let count = names.len();
    let shown: Vec<&str> = names.take(SHOWN).collect();
    match count {
        0 => "; there is none".to_owned(),
        1..=SHOWN => format!("; there are: {}", shown.join(", ")),
        _ => format!("; there are: {} and {} more", shown.join(", "), count - SHOWN),
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

impl Action {
    /// The name used by JSON and CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Change => "change",
        }
    }
}

/// The name used by JSON and CLI.
pub const fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Healthy => "healthy",
        Tier::Backup => "backup",
        Tier::FailOpen => "fail-open",
        Tier::Draining => "draining",
        Tier::Nobody => "nobody",
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

impl FlowTable {
    /// From what a sweep counted, and the packets.
    pub fn new(
        capacity: u64,
        used: u64,
        count: impl Fn(State) -> u64,
        evictions: &EvictionCounts,
    ) -> Self {
        Self {
            capacity,
            used,
            by_state: by_state(count),
            evicted_total: by_state(|state| evictions[state as usize]),
            overflows_total: evictions[State::Free as usize],
        }
    }
}

/// Counts under the states' names.
pub fn by_state(count: impl Fn(State) -> u64) -> BTreeMap<String, u64> {
    State::ALL.into_iter().map(|state| (state.name().to_owned(), count(state))).collect()
}

impl Reasons {
    /// From the counts by number; a missing count is 0.
    pub fn new(forwarded: u64, counts: &[u64]) -> Self {
        let reasons: Vec<ReasonCount> = Reason::ALL
            .iter()
            .map(|reason| ReasonCount {
                name: reason.name().to_owned(),
                class: reason.class().name().to_owned(),
                help: reason.help().to_owned(),
                count: counts.get(*reason as usize).copied().unwrap_or(0),
            })
            .collect();
        let others: u64 = reasons.iter().map(|reason| reason.count).sum();
        let interfaces = Vec::new();
        Self { received: forwarded + others, forwarded, unexplained: 0, reasons, interfaces }
    }

    /// What became of the frames of the interface with this name, or what there is instead.
    ///
    /// # Errors
    /// If none is told.
    pub fn of_interface(&self, name: &str) -> Result<Self, String> {
        let told = self.interfaces.iter().find(|interface| interface.name == name);
        let names = || hint(self.interfaces.iter().map(|interface| &*interface.name));
        let told = told.ok_or_else(|| format!("no interface {name:?}{}", names()))?;
        let count = |reason: &Reason| told.counts.get(reason.name()).copied().unwrap_or(0);
        let counts: Vec<u64> = Reason::ALL.iter().map(count).collect();
        Ok(Self { unexplained: told.unexplained, ..Self::new(told.forwarded, &counts) })
    }

    /// How many frames ended in this class.
    pub fn of_class(&self, class: Class) -> u64 {
        let of_class = self.reasons.iter().filter(|reason| reason.class == class.name());
        of_class.map(|reason| reason.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::control::sample;

    /// Every field of `expected` is in `said` with a value of its type.
    fn assert_has(said: &Value, expected: &Value, path: &str) {
        match (said, expected) {
            (Value::Object(said), Value::Object(expected)) => {
                for (name, value) in expected {
                    let path = format!("{path}.{name}");
                    assert_has(said.get(name).unwrap_or_else(|| panic!("no {path}")), value, &path);
                }
            }
            (Value::Array(said), Value::Array(expected)) => {
                assert_has(&said[0], &expected[0], &format!("{path}[0]"));
            }
            _ => assert_eq!(
                std::mem::discriminant(said),
                std::mem::discriminant(expected),
                "{path}: {said} and {expected}"
            ),
        }
    }

    #[test]
    fn the_names_that_the_design_fixes_are_there() {
        let fixed = json!({"instance":"default","version":"0.1.0","ready":true,
         "interfaces":[{"name":"eth0","xdp_mode":"native","attached":true}],
         "services":[{"name":"web","vip":"203.0.113.10:80","forwarding":"l2",
          "backends":[{"name":"web-1","address":"10.0.0.11","weight":100,"admin":"enabled",
           "health":"healthy","active_flows":12,"new_flows_total":3456,"packets_total":99999,
           "bytes_total":12345678}]}]});
        let said = serde_json::to_value(sample::status()).expect("JSON");
        assert_has(&said, &fixed, "status");
    }

    #[test]
    fn every_event_is_a_total_of_its_name() {
        let mut backend = sample::status().services[0].backends[0].clone();
        backend.new_flows_total = 1;
        backend.adopted_flows_total = 2;
        backend.untracked_flows_total = 3;
        backend.syn_retransmissions_total = 4;
        backend.reset_flows_total = 5;
        backend.handshakes_total = 6;
        backend.client_resets_total = 7;
        backend.second_tries_total = 8;
        backend.refusals_total = 9;
        backend.backend_resets_total = 10;
        let json = serde_json::to_value(&backend).expect("JSON");
        for event in counters::Event::ALL {
            assert_eq!(json[format!("{}_total", event.name())], backend.total(event), "{event:?}");
        }
    }

    #[test]
    fn names_are_the_same_in_json_and_for_people() {
        for admin in Admin::ALL {
            assert_eq!(json!(admin), admin.name());
        }
        for health in [Health::Unknown, Health::Healthy, Health::Unhealthy, Health::Unreachable] {
            assert_eq!(json!(health), health.name());
        }
    }

    #[test]
    fn received_is_the_sum_of_all_verdicts() {
        let reasons = sample::reasons();
        let classes =
            [Class::Pass, Class::Drop, Class::Answer].map(|class| reasons.of_class(class));
        assert_eq!(classes, [1_234_888, 4, 56]);
        assert_eq!(reasons.received, reasons.forwarded + classes.iter().sum::<u64>());
        assert_eq!(Reasons::new(0, &[]).received, 0);
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        let status = sample::status();
        assert_eq!(
            status.service("wbe").expect_err("there is none"),
            "no service \"wbe\"; there are: api, web"
        );
        assert_eq!(
            status.services[0].backend("x").expect_err("there is none"),
            "no backend \"x\" in service \"api\"; there are: api-1"
        );
        let names: Vec<String> = (0..10).map(|n| format!("s{n}")).collect();
        assert_eq!(
            hint(names.iter().map(String::as_str)),
            "; there are: s0, s1, s2, s3, s4, s5, s6, s7 and 2 more"
        );
    }
}
