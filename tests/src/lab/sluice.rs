//! The product under test, as its users run it: the binary, its configuration, its CLI.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{DEADLINE, Family, Host, Process, Stopped, check, leftovers, until};

/// An instance of `sluice` on a machine. Dropping it ends the daemon, detaches the data plane
/// and removes all files.
#[derive(Debug)]
pub struct Sluice {
    host: Host,
    config: PathBuf,
    log: PathBuf,
    daemon: Option<Process>,
}

impl Host {
    /// Starts `sluice run` here with this configuration and waits until it is ready; the
    /// instance goes by [`Host::name`].
    pub fn run_sluice(&self, config: &str) -> Result<Sluice> {
        let directory = self.directory("sluice")?;
        let mut sluice = Sluice {
            host: self.clone(),
            config: directory.join("sluice.toml"),
            log: directory.join("log"),
            daemon: None,
        };
        sluice.configure(config)?;
        sluice.start()?;
        Ok(sluice)
    }

    /// A command `sluice --instance NAME`, here.
    pub fn sluice(&self) -> Result<Command> {
        let mut command = self.command(sluice_binary()?);
        command.args(["--instance", self.name()]);
        Ok(command)
    }
}

impl Sluice {
    /// Starts the daemon and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.host.sluice()?;
        command.arg("run").arg("--config").arg(&self.config);
        let daemon = self.daemon.insert(Process::start("sluice run", command, &self.log)?);
        let (host, mut ended) = (&self.host, false);
        let ready = until("sluice to be ready", DEADLINE, || {
            ended = !daemon.is_running();
            let status = status(host);
            (ended || status.is_ok_and(|status| status["ready"] == true)).then_some(())
        });
        if ended {
            bail!("sluice run ended at once:\n{}", self.log());
        }
        ready.with_context(|| format!("sluice run says:\n{}", self.log()))
    }

    /// Replaces the configuration file; the daemon is not told.
    pub fn configure(&self, config: &str) -> Result<()> {
        fs::write(&self.config, config).context("write sluice.toml")
    }

    /// SIGTERM; the data plane stays.
    pub fn stop(&mut self) -> Result<Stopped> {
        self.daemon.take().context("the daemon does not run")?.stop()
    }

    /// SIGKILL; the data plane stays.
    pub fn kill9(&mut self) -> Result<()> {
        self.daemon.take().context("the daemon does not run")?.kill9()
    }

    /// Replaces the configuration file and tells the daemon (SIGHUP).
    pub fn reconfigure(&mut self, config: &str) -> Result<()> {
        self.configure(config)?;
        self.daemon.as_mut().context("the daemon does not run")?.signal(Signal::SIGHUP);
        Ok(())
    }

    /// Stop and start.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// The daemon's process, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Process::id)
    }

    /// Whether the daemon runs.
    pub fn is_running(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(Process::is_running)
    }

    /// Runs `sluice --instance NAME arguments…`.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        run(&self.host, arguments)
    }

    /// The same; an error unless it exits with 0. Answers its standard output.
    pub fn cli_ok(&self, arguments: &[&str]) -> Result<String> {
        check(&self.cli(arguments)?, &format!("sluice {}", arguments.join(" ")))
    }

    /// The same with `--json`, read.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.cli_ok(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&output).with_context(|| format!("not JSON: {output}"))
    }

    /// `sluice status --json`.
    pub fn status(&self) -> Result<Value> {
        self.json(&["status"])
    }

    /// What the daemon has written, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What of it outlives the machine.
    pub fn state(&self) -> PathBuf {
        Path::new("/var/lib/sluice").join(self.host.name())
    }

    /// Where its programs, maps and links are pinned.
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/sluice").join(self.host.name())
    }
}

impl Drop for Sluice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of sluice on {}:\n{}---", self.host.role(), self.log());
        }
        self.daemon = None;
        remove_instance(&self.host, &["detach"]);
    }
}

/// Detaches what an instance has attached, if anything, and removes its files.
pub(super) fn remove_instance(host: &Host, detach: &[&str]) {
    let pins = Path::new("/sys/fs/bpf/sluice").join(host.name());
    if pins.exists()
        && let Err(error) = run(host, detach).and_then(|output| check(&output, "sluice detach"))
    {
        eprintln!("on {}: {error:#}", host.role());
    }
    leftovers::remove_directory(&pins);
    for directory in ["/run/sluice", "/var/lib/sluice"] {
        leftovers::remove_directory(&Path::new(directory).join(host.name()));
    }
}

fn run(host: &Host, arguments: &[&str]) -> Result<Output> {
    host.sluice()?.args(arguments).stdin(Stdio::null()).output().context("run nsenter")
}

fn status(host: &Host) -> Result<Value> {
    let output = check(&run(host, &["status", "--json"])?, "sluice status")?;
    Ok(serde_json::from_str(&output)?)
}

/// The binary under test: `SLUICE_BIN`, or the one that cargo put beside this program, or the
/// workspace's newest.
pub fn sluice_binary() -> Result<&'static Path> {
    static BINARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    if let Some(named) = std::env::var_os("SLUICE_BIN") {
        let found = || fs::canonicalize(&named).ok();
        let missing = || format!("no binary at SLUICE_BIN={}", named.display());
        return BINARY.get_or_init(found).as_deref().with_context(missing);
    }
    BINARY
        .get_or_init(find_sluice)
        .as_deref()
        .context("no sluice binary: build it (cargo xtask build), or name one with SLUICE_BIN")
}

fn find_sluice() -> Option<PathBuf> {
    // target/PROFILE/demo, target/PROFILE/deps/namespaces-….
    let beside = std::env::current_exe().ok()?;
    let mut beside = beside.ancestors().skip(1).take(2).map(|directory| directory.join("sluice"));
    if let Some(binary) = beside.find(|path| path.is_file()) {
        return Some(binary);
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("target");
    let built = ["release", "debug"].map(|profile| target.join(profile).join("sluice"));
    let built = built.into_iter();
    let newest = built.filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)));
    newest.max().map(|(_, path)| path)
}

/// The `[dataplane]` of a configuration.
pub fn dataplane(interfaces: &[&str]) -> String {
    format!("[dataplane]\ninterfaces = {interfaces:?}\n\n")
}

/// A `[[service]]` of a configuration, without a health check: all backends are healthy.
pub fn service(
    name: &str,
    vip: SocketAddr,
    forwarding: &str,
    backends: &[Host],
    family: Family,
) -> String {
    service_with(name, vip, forwarding, backends, family, "health = { check = \"none\" }\n")
}

/// The same `[[service]]` with its backends on this port, which only `nat` can tell from the VIP's.
pub fn on_port(service: &str, port: u16) -> String {
    service.replace("\" },\n", &format!("\", port = {port} }},\n"))
}

/// A `[[service]]` of a configuration, with these lines for its check and whatever else it has.
pub fn service_with(
    name: &str,
    vip: SocketAddr,
    forwarding: &str,
    backends: &[Host],
    family: Family,
    lines: &str,
) -> String {
    let backends = backends.iter().map(|host| (host.role(), host.address(family))).map(
        |(name, address): (&str, IpAddr)| {
            format!("  {{ name = \"{name}\", address = \"{address}\" }},\n")
        },
    );
    format!(
        "[[service]]\n\
         name = \"{name}\"\n\
         vip = \"{vip}\"\n\
         forwarding = \"{forwarding}\"\n\
         {lines}\
         backend = [\n{}]\n\n",
        backends.collect::<String>()
    )
}
