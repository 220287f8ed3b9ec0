//! The instance at one glance.

use serde::{Deserialize, Serialize};

use super::{Backend, FlowTable, Interface, Loss, Trouble, hint};

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
