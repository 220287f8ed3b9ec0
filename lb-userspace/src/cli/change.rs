//! Commands that change something: what is asked, and how it is told what came of it.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use clap::Args;

use super::{Output, differences, drain};
use crate::{
    config::{self, BackendSpec, HealthSpec, NatSpec, ServiceSpec},
    control::{
        api::{self, Change, Target, Transaction},
        client::Client,
    },
    drain::Moment,
};

/// A backend, or all of one name.
#[derive(Args)]
pub struct Which {
    /// The service
    #[arg(required_unless_present = "all_services", requires = "backend")]
    service: Option<String>,
    /// The backend
    backend: Option<String>,
    /// The backend of this name in every service that has one: a whole server
    #[arg(long, value_name = "NAME", conflicts_with_all = ["service", "backend"])]
    all_services: Option<String>,
}

impl Which {
    fn target(self) -> Target {
        match (self.service, self.backend.or(self.all_services)) {
            (service, Some(backend)) => Target { service, backend },
            // Refused by clap before.
            (service, None) => Target { service, backend: String::new() },
        }
    }
}

/// A new service.
#[derive(Args)]
pub struct NewService {
    /// Its name
    name: String,
    /// Address and port, as 203.0.113.10:80 or [2001:db8::10]:443; '203.0.113.10:*': every port that
    /// no other service of the address has
    vip: String,
    /// l2, ipip or nat
    #[arg(long, value_name = "MODE")]
    forwarding: Option<String>,
    /// With nat: whether backends see their clients' addresses: replace or keep
    #[arg(long, value_name = "WHAT")]
    client_address: Option<String>,
    /// With nat: an address of this host that flows to backends come from; more by saying it again
    #[arg(long, value_name = "ADDRESS")]
    nat_address: Vec<String>,
    /// none or source-ip
    #[arg(long, value_name = "WHAT")]
    affinity: Option<String>,
    /// When pings of the VIP are answered: always, or while a backend takes flows: healthy
    #[arg(long, value_name = "WHEN")]
    icmp_echo: Option<String>,
    /// Lower the MSS that clients announce to this, in bytes
    #[arg(long, value_name = "N")]
    mss_clamp: Option<i64>,
    /// Slots of its Maglev table, a prime
    #[arg(long, value_name = "N")]
    slots: Option<i64>,
    /// How long a drain waits for flows to end
    #[arg(long, value_name = "TIME")]
    drain_deadline: Option<String>,
    /// Refuse changes that leave fewer backends than this to new flows
    #[arg(long, value_name = "N")]
    min_available: Option<i64>,
    #[command(flatten)]
    check: NewCheck,
    #[command(flatten)]
    output: Output,
}

/// How a new service's backends are checked; the config file can say more.
#[derive(Args)]
pub struct NewCheck {
    /// How backends are checked: tcp, http, https, grpc or none
    #[arg(long, value_name = "KIND")]
    check: Option<String>,
    /// Which way they are checked: vip or backend
    #[arg(long, value_name = "WAY")]
    via: Option<String>,
    /// Port that is checked, by default the backend's; a VIP of any port needs one
    #[arg(long, value_name = "N")]
    check_port: Option<u16>,
    /// What an http or https check asks for
    #[arg(long, value_name = "PATH", requires = "check")]
    path: Option<String>,
    /// Host that an http, https or grpc check asks for
    #[arg(long, value_name = "HOST", requires = "check")]
    host: Option<String>,
    /// Name in the certificate of an https check
    #[arg(long, value_name = "NAME", requires = "check")]
    server_name: Option<String>,
    /// Certificates that an https check believes, PEM
    #[arg(long, value_name = "FILE", requires = "check")]
    ca_file: Option<String>,
    /// Time from check to check
    #[arg(long, value_name = "TIME")]
    interval: Option<String>,
}

impl NewCheck {
    /// `None`: nothing was said, and the default holds.
    fn spec(self) -> Option<HealthSpec> {
        let spec = HealthSpec {
            check: self.check,
            via: self.via,
            port: self.check_port,
            path: self.path,
            host: self.host,
            server_name: self.server_name,
            ca_file: self.ca_file,
            interval: self.interval,
            ..HealthSpec::default()
        };
        (spec != HealthSpec::default()).then_some(spec)
    }
}

/// A new backend.
#[derive(Args)]
pub struct NewBackend {
    /// The service
    service: String,
    /// Its name
    name: String,
    /// Its own IP address
    address: String,
    /// Its port, by default the VIP's; only nat can change it
    #[arg(long, value_name = "N")]
    port: Option<i64>,
    /// Share of new flows relative to the others', 0 to 1000
    #[arg(long, value_name = "N")]
    weight: Option<i64>,
    /// It gets new flows only when no other can
    #[arg(long)]
    backup: bool,
    #[command(flatten)]
    output: Output,
}

/// A drain.
#[derive(Args)]
pub struct NewDrain {
    #[command(flatten)]
    which: Which,
    /// Reset what is left after this time, as 30s or 5m; default: the service's drain_deadline
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,
    /// Wait until it is over and tell how it went; exit 3 if connections were cut
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    output: Output,
}

/// Against the guard rails.
#[derive(Args, Default)]
pub struct Force {
    /// Even if fewer backends than min_available are left to new flows, or another method of forwarding
    /// ends flows
    #[arg(long)]
    pub force: bool,
}

/// `service add`.
pub async fn add_service(client: &Client, new: NewService) -> anyhow::Result<ExitCode> {
    let service = ServiceSpec {
        name: new.name,
        vip: new.vip,
        forwarding: new.forwarding,
        nat: new.client_address.map(|word| NatSpec { client_address: Some(word) }),
        nat_addresses: new.nat_address,
        affinity: new.affinity,
        icmp_echo: new.icmp_echo,
        mss_clamp: new.mss_clamp,
        slots: new.slots,
        drain_deadline: new.drain_deadline,
        min_available: new.min_available,
        health: new.check.spec(),
        ..ServiceSpec::default()
    };
    let service = Box::new(service);
    one(client, Change::AddService { service }, false, &new.output).await
}

/// `backend add`.
pub async fn add_backend(client: &Client, new: NewBackend) -> anyhow::Result<ExitCode> {
    let backend = BackendSpec {
        name: new.name,
        address: new.address,
        port: new.port,
        weight: new.weight,
        backup: new.backup.then_some(true),
    };
    one(client, Change::AddBackend { service: new.service, backend }, false, &new.output).await
}

/// `backend enable`, `disable`, `weight` and `remove`.
pub async fn about(
    client: &Client,
    which: Which,
    change: impl FnOnce(Target) -> Change,
    force: &Force,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    one(client, change(which.target()), force.force, output).await
}

/// A transaction of one change.
pub async fn one(
    client: &Client,
    change: Change,
    force: bool,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let changed = client.change(&Transaction { changes: vec![change], force }).await?;
    tell(&changed, output)
}

/// `backend drain`.
pub async fn drain(client: &Client, new: NewDrain) -> anyhow::Result<ExitCode> {
    let target = new.which.target();
    let deadline_ms = new.deadline.map(|deadline| deadline.as_millis() as u64);
    let change = Change::Drain { target: target.clone(), deadline_ms };
    let asked = Moment::now();
    let transaction = Transaction { changes: vec![change], force: new.force.force };
    let changed = client.change(&transaction).await?;
    if !new.wait {
        return tell(&changed, &new.output);
    }
    for warning in &changed.warnings {
        warn(warning);
    }
    drain::wait(client, &target, asked, &new.output).await
}

/// `apply`.
pub async fn apply(
    client: &Client,
    file: &Path,
    force: &Force,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let changed = client.apply(&read(file, force.force)?).await?;
    tell(&changed, output)
}

/// `plan`.
pub async fn plan(client: &Client, file: &Path, output: &Output) -> anyhow::Result<ExitCode> {
    let plan = client.plan(&read(file, false)?).await?;
    output.print(&plan, differences::plan)?;
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path, force: bool) -> anyhow::Result<api::ConfigFile> {
    // The daemon's errors name the file as it was given here.
    let name = file.display().to_string();
    Ok(api::ConfigFile { name, text: config::read(file)?, force })
}

fn tell(changed: &api::Changed, output: &Output) -> anyhow::Result<ExitCode> {
    output.print(changed, differences::changed)?;
    for warning in changed.warnings.iter().filter(|_| !output.json) {
        warn(warning);
    }
    Ok(ExitCode::SUCCESS)
}

fn warn(warning: &str) {
    // Nobody is left to tell that stderr is closed.
    let _ = writeln!(io::stderr(), "warning: {warning}");
}

/// Whether somebody watches stderr.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}
