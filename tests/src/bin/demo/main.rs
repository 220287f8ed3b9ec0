//! `cargo xtask demo`: real clients, a real daemon and real servers in network namespaces on
//! one machine; under load a server is taken out and put back, another one dies and returns, and
//! the daemon is killed; nobody notices but the clients of the server that died.

/// `println!` that goes on when nobody reads any more (`demo | head`), instead of panicking.
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($what)*);
    }};
}

mod death;
mod picture;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_tests::{
    lab::{
        Agent, DEADLINE, Family, Lab, Load, LoadPlan, Nginx, Plan, Sluice, Tally, Target,
        dataplane, is_root, on_port, service_with, sluice_binary, until,
    },
    signals,
};

use self::{
    death::{Death, Toll},
    picture::{Daemon, Picture, Server, Stand},
};

/// Shows Sluice at work: network namespaces for a client, the balancer and three backends with
/// real nginx; six services (l2, ipip and nat, IPv4 and IPv6); under load a backend drained, another
/// dead without a word and back, and the daemon killed with -9.
/// Needs root. Removes everything it made when it ends, also on Ctrl-C.
#[derive(Parser)]
struct Arguments {
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

/// The last line of `--json`.
#[derive(Serialize)]
struct Summary {
    requests: u64,
    /// But for those that are counted in `death`.
    failed: u64,
    failed_while_daemon_dead: u64,
    per_backend: BTreeMap<String, u64>,
    drain: Drain,
    death: Toll,
}

/// What `sluice backend drain --wait --json` proves.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Drain {
    flows_at_start: u64,
    flows_cut: u64,
    new_flows_since_drain: u64,
    seconds: f64,
}

/// Name, VIP, forwarding.
const SERVICES: [(&str, &str, &str); 6] = [
    ("l2-ipv4", "203.0.113.10:80", "l2"),
    ("l2-ipv6", "[2001:db8:f00d::10]:80", "l2"),
    ("ipip-ipv4", "203.0.113.20:80", "ipip"),
    ("ipip-ipv6", "[2001:db8:f00d::20]:80", "ipip"),
    ("nat-ipv4", "203.0.113.30:80", "nat"),
    ("nat-ipv6", "[2001:db8:f00d::30]:80", "nat"),
];

/// Where servers listen for `l2` and `ipip`, and for `nat`.
const PORTS: [u16; 2] = [80, 8080];

/// The server that is taken out and put back.
const DRAINED: &str = "web-2";
/// The one that dies and returns.
const MORTAL: &str = "web-3";

/// How the balancer asks the servers: by the way of traffic, as is the default. The time-out leaves room
/// for a machine that does much else.
const HEALTH: &str = "health = { check = \"http\", path = \"/healthz\", interval = \"500ms\", timeout = \"500ms\", fall = 2 }\n";
/// A closed connection is counted for so long: a drain shall not be most of the demo.
const IDLE_TIMEOUT: &str = "idle_timeout = { closing = \"1s\" }\n";

/// Each act under load lasts at least this long, and at least [`ACT_REQUESTS`].
const ACT: Duration = Duration::from_millis(1500);
const ACT_REQUESTS: u64 = 500;
/// On a machine too slow for that, an act ends here and the demo has failed.
const ACT_DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !is_root() {
        eprintln!(
            "the demo makes network namespaces and loads XDP programs: run it as root (sudo)"
        );
        return ExitCode::FAILURE;
    }
    let mut picture = Picture::new();
    let played = signals::watch().and_then(|()| play(&mut picture));
    picture.end();
    match played {
        Ok(played) => finish(&arguments, &played),
        Err(error) => {
            eprintln!("demo: {error:#}");
            if signals::interrupted() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

/// What the acts have come to.
struct Played {
    tally: Tally,
    failed_while_daemon_dead: u64,
    drain: Drain,
    death: Death,
}

/// The stage: dropped in this order, so that nothing outlives what it stands on.
struct Stage {
    sluice: Sluice,
    _agents: Vec<Agent>,
    _nginx: Vec<Nginx>,
    lab: Lab,
}

fn play(picture: &mut Picture) -> Result<Played> {
    let start = Instant::now();
    sluice_binary()?;
    let mut stage = set(picture)?;
    let targets = services()?.map(|(name, vip, _)| Target { name: name.into(), address: vip });
    let load = Load::start(stage.lab.client(), LoadPlan::on(targets))?;

    act(picture, &load, Stand::WELL)?;

    let drain = drain(picture, &load, &stage.sluice)?;
    stage.sluice.cli_ok(&["backend", "enable", "--all-services", DRAINED])?;
    picture.step(&format!("sluice backend enable: {DRAINED} takes new flows again"));

    let death = death::watch(picture, &load, &stage)?;
    let well = Stand { death: Some(death), ..Stand::WELL };
    let killed = Instant::now();
    stage.sluice.kill9()?;
    picture.step("kill -9: the daemon is dead, the load goes on");
    act(picture, &load, Stand { daemon: Daemon::Dead, ..well })?;

    stage.sluice.start().context("start the daemon again")?;
    let ready = Instant::now();
    picture.step("sluice run: adopted what was pinned, ready");
    act(picture, &load, well)?;

    let tally = load.stop();
    picture.draw(&tally, well);
    drop(stage);
    picture.step(&format!("all removed again; {:.1} s in all", start.elapsed().as_secs_f32()));
    let failed_while_daemon_dead = tally.failed_between(killed, ready);
    Ok(Played { tally, failed_while_daemon_dead, drain, death })
}

/// Machines, servers, agents, balancer: in the order in which they need each other.
fn set(picture: &mut Picture) -> Result<Stage> {
    let lab = Lab::start(Plan::default())?;
    picture.topology(&lab);
    picture.step("network namespaces and a bridge");
    let nginx = lab.backends().iter().map(|host| Nginx::start(host, &PORTS));
    let nginx = nginx.collect::<Result<_>>()?;
    picture.step("nginx on each backend");
    checkpoint()?;

    let dsr = services()?.filter(|(_, _, forwarding)| *forwarding != "nat");
    let vips = dsr.map(|(_, vip, _)| vip.ip()).collect::<Vec<IpAddr>>();
    let agents = lab.backends().iter().map(|host| host.run_agent(&vips, &[]));
    let agents = agents.collect::<Result<_>>()?;
    picture.step(
        "sluice agent on each backend: VIPs on loopback, tunnels opened by XDP; nat needs neither",
    );
    checkpoint()?;

    let sluice = lab.balancer().run_sluice(&config(&lab)?)?;
    let status = sluice.status()?;
    let mode = status["interfaces"][0]["xdp_mode"].as_str().unwrap_or("?").to_owned();
    picture.step(&format!("sluice run on the balancer: ready, XDP on eth0 ({mode})"));
    let all_healthy = || {
        let backends = backends(&sluice).unwrap_or_default();
        !backends.is_empty() && backends.iter().all(|backend| backend["health"] == "healthy")
    };
    until("all backends to be healthy", DEADLINE, || {
        (all_healthy() || signals::interrupted()).then_some(())
    })?;
    checkpoint()?;
    picture.step("all backends healthy: asked for /healthz by the way that traffic goes");
    Ok(Stage { sluice, _agents: agents, _nginx: nginx, lab })
}

fn config(lab: &Lab) -> Result<String> {
    Ok(services()?.fold(dataplane(&["eth0"]), |config, (name, vip, forwarding)| {
        let (backends, family) = (lab.backends(), Family::of(vip.ip()));
        let service = service_with(name, vip, forwarding, backends, family, HEALTH);
        let service = if forwarding == "nat" { on_port(&service, PORTS[1]) } else { service };
        config + service.trim_end() + "\n" + IDLE_TIMEOUT + "\n"
    }))
}

fn services() -> Result<impl Iterator<Item = (&'static str, SocketAddr, &'static str)>> {
    let parse = |(name, vip, forwarding): (_, &str, _)| Ok((name, vip.parse()?, forwarding));
    Ok(SERVICES.map(parse).into_iter().collect::<Result<Vec<_>>>()?.into_iter())
}

/// Watches the load for a while.
fn act(picture: &mut Picture, load: &Load, stand: Stand) -> Result<()> {
    let (start, before) = (Instant::now(), load.requests());
    while start.elapsed() < ACT || load.requests() < before + ACT_REQUESTS {
        checkpoint()?;
        if start.elapsed() > ACT_DEADLINE {
            bail!("fewer than {ACT_REQUESTS} requests in {} s", ACT_DEADLINE.as_secs());
        }
        thread::sleep(picture::FRAME);
        picture.draw(&load.tally(), stand);
    }
    Ok(())
}

/// Takes a server out, as before a deploy, and watches until its last flow has ended.
fn drain(picture: &mut Picture, load: &Load, sluice: &Sluice) -> Result<Drain> {
    let command = ["backend", "drain", "--all-services", DRAINED, "--wait"];
    picture.step(&format!("sluice {}", command.join(" ")));
    // For its `closing` time-out and a tick or two after its FIN.
    picture.note("a closed connection is counted for some seconds more");
    let drain = thread::scope(|scope| {
        let proof = scope.spawn(|| sluice.json(&command));
        let mut left = flows(sluice)?;
        for frame in 1_u32.. {
            if proof.is_finished() {
                break;
            }
            checkpoint()?;
            thread::sleep(picture::FRAME);
            // Twice a second will do.
            if frame.is_multiple_of(3) {
                left = flows(sluice)?;
            }
            let stand = Stand { server: Server::Draining(left), ..Stand::WELL };
            picture.draw(&load.tally(), stand);
        }
        let proof = proof.join().map_err(|_| anyhow!("the drain's thread has panicked"))??;
        serde_json::from_value::<Drain>(proof).context("read the drain's proof")
    })?;
    picture.step(&format!(
        "{DRAINED} drained in {:.0} s: of {} flows {} were cut, {} new ones came",
        drain.seconds, drain.flows_at_start, drain.flows_cut, drain.new_flows_since_drain
    ));
    Ok(drain)
}

/// Flows that [`DRAINED`] has, over all services.
fn flows(sluice: &Sluice) -> Result<u64> {
    let backends = backends(sluice)?;
    let drained = backends.iter().filter(|backend| backend["name"] == DRAINED);
    Ok(drained.filter_map(|backend| backend["active_flows"].as_u64()).sum())
}

/// All backends of all services, as `sluice status` has them.
fn backends(sluice: &Sluice) -> Result<Vec<Value>> {
    let status = sluice.status()?;
    let services = status["services"].as_array().into_iter().flatten();
    Ok(services.filter_map(|service| service["backends"].as_array()).flatten().cloned().collect())
}

/// The summary, in text or JSON, and whether all went well.
fn finish(arguments: &Arguments, played: &Played) -> ExitCode {
    let Played { tally, failed_while_daemon_dead, drain, death } = played;
    let (toll, of_death) = (death.toll(tally), death.in_words(tally));
    let tally = &death.others(tally);
    let summary = Summary {
        requests: tally.requests,
        failed: tally.failed(),
        failed_while_daemon_dead: *failed_while_daemon_dead,
        per_backend: tally.per_backend(),
        drain: *drain,
        death: toll,
    };
    let idle = SERVICES.iter().flat_map(|(service, ..)| {
        let answers = tally.answers.get(*service);
        let backends = ["web-1", "web-2", "web-3"].into_iter();
        backends
            .filter(move |backend| !answers.is_some_and(|answers| answers.contains_key(*backend)))
            .map(move |backend| format!("{backend} has answered nothing for {service}\n"))
    });
    let mut complaints = tally.causes() + &idle.collect::<String>();
    if drain.flows_cut + drain.new_flows_since_drain > 0 {
        complaints += &format!("the drain of {DRAINED} was none\n");
    }
    if toll.failed_after_found > 0 {
        complaints += &format!("requests failed after {MORTAL} was found dead\n");
    }

    say!();
    say!("{} real HTTP requests, each on a connection of its own.", summary.requests);
    say!(
        "{} failed, but for {MORTAL}'s death; {} of them while the daemon was dead. The slowest took {} ms.",
        summary.failed,
        summary.failed_while_daemon_dead,
        tally.slowest.as_millis()
    );
    say!(
        "{DRAINED} drained in {:.1} s under load: {} flows at the start, {} cut, {} new since.",
        drain.seconds,
        drain.flows_at_start,
        drain.flows_cut,
        drain.new_flows_since_drain
    );
    say!("{of_death}");
    eprint!("{complaints}");
    if arguments.json {
        match serde_json::to_string(&summary) {
            Ok(line) => say!("{line}"),
            Err(error) => eprintln!("demo: {error}"),
        }
    }
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn checkpoint() -> Result<()> {
    if signals::interrupted() {
        bail!("interrupted");
    }
    Ok(())
}
