//! The machines, which all cases share, and one instance under load at a time.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    change::{Build, File, Step},
    pace,
};
use crate::lab::{
    Agent, DEADLINE, Family, Host, Lab, Load, LoadPlan, Nginx, Plan, Sluice, StreamPlan,
    StreamServer, Streams, Target, builds, dataplane, service_with, sluice_binary, until,
};

/// How frames reach the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Another MAC address.
    L2,
    /// IP in IP.
    Ipip,
    /// Other addresses and ports, both ways.
    Nat,
}

impl Mode {
    /// As in the config.
    pub const fn name(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::Ipip => "ipip",
            Self::Nat => "nat",
        }
    }

    /// Whether a flow that finds no place in the flow table is forwarded nevertheless. What is
    /// translated can't be: it is refused.
    pub(super) const fn needs_no_table(self) -> bool {
        match self {
            Self::L2 | Self::Ipip => true,
            Self::Nat => false,
        }
    }
}

/// Machines with servers that own the VIP.
pub(super) struct Stage {
    _agents: Vec<Agent>,
    _nginx: Vec<Nginx>,
    _servers: Vec<StreamServer>,
    other_build: PathBuf,
    lab: Lab,
}

/// Ports of the services: long connections, and new ones.
const STREAMS: u16 = 7;
const WEB: u16 = 80;
const SERVICES: [(&str, u16); 2] = [("streams", STREAMS), ("web", WEB)];
/// By the way of traffic, with a time-out that a busy machine keeps.
const HEALTH: &str = "health = { check = \"tcp\", interval = \"1s\", timeout = \"1s\" }\n";
/// The longest that a backend's silence goes unnoticed, with room for a busy machine: an interval,
/// and three probes that wait for their time-outs.
const UNNOTICED: Duration = Duration::from_secs(20);
/// Between two new connections of one of eight clients.
const PAUSE: Duration = Duration::from_millis(20);

fn vip(family: Family, port: u16) -> SocketAddr {
    let address = match family {
        Family::V4 => [203, 0, 113, 10].into(),
        Family::V6 => [0x2001, 0xdb8, 0xf00d, 0, 0, 0, 0, 0x10].into(),
    };
    SocketAddr::new(address, port)
}

impl Stage {
    /// Who dies suddenly.
    pub(super) const MORTAL: &str = "web-4";

    pub(super) fn set() -> Result<Self> {
        let lab = Lab::start(Plan { backends: 5, ..Plan::default() })?;
        let vips = [Family::V4, Family::V6].map(|family| vip(family, WEB).ip());
        let hosts = || lab.backends().iter();
        Ok(Self {
            _agents: hosts().map(|host| host.run_agent(&vips, &[])).collect::<Result<_>>()?,
            _nginx: hosts().map(|host| Nginx::start(host, &[WEB])).collect::<Result<_>>()?,
            _servers: hosts()
                .map(|host| StreamServer::start(host, STREAMS))
                .collect::<Result<_>>()?,
            other_build: builds::same_program(&lab.directory(), 1)?,
            lab,
        })
    }

    /// An instance, and new connections that come to it.
    pub(super) fn run(
        &self,
        mode: Mode,
        family: Family,
        flow_capacity: Option<u64>,
    ) -> Result<Running<'_>> {
        let config = |file| self.config(mode, family, flow_capacity, file);
        let sluice = self.lab.balancer().run_sluice(&config(File::First))?;
        let target = Target { name: "web".into(), address: vip(family, WEB) };
        let load = LoadPlan { pause: PAUSE, ..LoadPlan::on([target]) };
        let load = Load::start(self.lab.client(), load)?;
        let other = self.lab.directory().join("other.toml");
        let first = self.lab.directory().join("first.toml");
        for (path, file) in [(&first, File::First), (&other, File::Other)] {
            fs::write(path, config(file)).context("write a config")?;
        }
        Ok(Running { load, sluice, stage: self, mode, family, flow_capacity })
    }

    fn config(&self, mode: Mode, family: Family, capacity: Option<u64>, file: File) -> String {
        let capacity = capacity.map(|capacity| format!("flow_capacity = {capacity}\n\n"));
        let head = dataplane(&["eth0"]).trim_end().to_owned() + "\n";
        let backends = match file {
            File::First => &self.lab.backends()[..4],
            File::Other => &self.lab.backends()[1..],
        };
        let services = SERVICES.map(|(name, port)| {
            service_with(name, vip(family, port), mode.name(), backends, family, HEALTH)
        });
        let services = match file {
            File::First => services.concat(),
            File::Other => services.concat().replace("\"web-3\",", "\"web-3\", weight = 30,"),
        };
        head + &capacity.unwrap_or_default() + &services
    }

    fn host(&self, name: &str) -> Result<&Host> {
        self.lab.backends().iter().find(|host| host.role() == name).context("no such backend")
    }
}

/// An instance under load; dropped in this order.
pub(super) struct Running<'a> {
    pub(super) load: Load,
    sluice: Sluice,
    stage: &'a Stage,
    pub(super) mode: Mode,
    pub(super) family: Family,
    flow_capacity: Option<u64>,
}

impl Running<'_> {
    /// Long connections.
    pub(super) fn open(&self, count: u64) -> Result<Streams> {
        let address = vip(self.family, STREAMS);
        Streams::open(self.stage.lab.client(), StreamPlan { address, count, pace: pace(count) })
    }

    /// One step; when it answers, it has been done.
    pub(super) fn perform(&mut self, step: &Step) -> Result<()> {
        let commands = |words: &[&str], names: &[&str]| {
            names.iter().try_for_each(|name| {
                self.sluice.cli_ok(&[words, &["--all-services", *name]].concat()).map(|_| ())
            })
        };
        match *step {
            Step::Drain(names) => commands(&["backend", "drain"], names)?,
            Step::Enable(names) => commands(&["backend", "enable"], names)?,
            Step::Remove(name) => commands(&["backend", "remove"], &[name])?,
            Step::Add(name) => {
                let address = self.stage.host(name)?.address(self.family).to_string();
                for (service, _) in SERVICES {
                    self.sluice.cli_ok(&["backend", "add", service, name, &address])?;
                }
            }
            Step::Weigh(weights) => {
                for (service, _) in SERVICES {
                    for (name, weight) in weights {
                        let weight = weight.to_string();
                        self.sluice.cli_ok(&["backend", "weight", service, name, &weight])?;
                    }
                }
            }
            Step::Apply(file) => {
                let name = match file {
                    File::First => "first.toml",
                    File::Other => "other.toml",
                };
                let path = self.stage.lab.directory().join(name);
                self.sluice.cli_ok(&["apply", &path.display().to_string()])?;
            }
            Step::Reload(file) => {
                let before = self.generation()?;
                let Self { mode, family, flow_capacity, .. } = *self;
                self.sluice.reconfigure(&self.stage.config(mode, family, flow_capacity, file))?;
                until("the file to be taken up", DEADLINE, || {
                    self.generation().is_ok_and(|now| now > before).then_some(())
                })?;
            }
            Step::Restart => self.sluice.restart()?,
            Step::Kill => self.sluice.kill9()?,
            Step::Start => self.sluice.start()?,
            Step::Upgrade(build) => {
                let balancer = self.stage.lab.balancer();
                let program = match build {
                    Build::This => sluice_binary()?,
                    Build::Other => &self.stage.other_build,
                };
                let program = program.display().to_string();
                let upgrade = ["--instance", balancer.name(), "upgrade", "--watch", "1", "--json"];
                let report = balancer.run(&program, &upgrade)?;
                let report: Value = serde_json::from_str(&report).context("read its report")?;
                ensure!(report["result"] == "upgraded", "{report}");
            }
        }
        Ok(())
    }

    pub(super) fn unplug(&self, name: &str) -> Result<()> {
        self.stage.lab.unplug(self.stage.host(name)?)
    }

    pub(super) fn plug(&self, name: &str) -> Result<()> {
        self.stage.lab.plug(self.stage.host(name)?)
    }

    pub(super) fn wait_for_health(&self, name: &str, health: &str) -> Result<()> {
        until(&format!("{name} to be {health}"), UNNOTICED, || {
            let status = self.sluice.status().ok()?;
            let is_so = |backend: &&Value| backend["name"] == name && backend["health"] == health;
            (backends(&status).filter(is_so).count() == SERVICES.len()).then_some(())
        })
    }

    /// Waits until all requests that were begun by then have ended.
    pub(super) fn wait_for_requests_begun_before(&self, then: Instant) -> Result<()> {
        // And a moment for those whose time is up to be counted.
        let end = LoadPlan::on([]).timeout + Duration::from_secs(1);
        until("requests to end", end + DEADLINE, || (then.elapsed() > end).then_some(()))
    }

    /// New connections that have failed and were not over by then.
    pub(super) fn failed_since(&self, then: Instant) -> u64 {
        self.load.tally().failed_between(then, Instant::now())
    }

    /// New connections that failed, of those begun between two moments.
    pub(super) fn failed_of_those_begun(&self, from: Instant, to: Instant) -> u64 {
        let failures = self.load.tally().failures;
        let begun = failures.iter().filter(|failure| (from..=to).contains(&failure.started));
        begun.count() as u64
    }

    /// Flows that found no place in the table.
    pub(super) fn untracked(&self) -> Result<u64> {
        let status = self.sluice.status()?;
        Ok(backends(&status).filter_map(|b| b["untracked_flows_total"].as_u64()).sum())
    }

    /// SYNs that clients had to send again, so far.
    pub(super) fn syns_again(&self) -> u64 {
        self.stage.lab.client().syn_retransmissions().unwrap_or_default()
    }

    fn generation(&self) -> Result<u64> {
        self.sluice.status()?["generation"].as_u64().context("no generation in status")
    }
}

fn backends(status: &Value) -> impl Iterator<Item = &Value> {
    let services = status["services"].as_array().into_iter().flatten();
    services.flat_map(|service| service["backends"].as_array().into_iter().flatten())
}
