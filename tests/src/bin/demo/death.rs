//! A server dies under load without a word, and returns: what its clients lose, told honestly.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use sluice_tests::lab::{DEADLINE, FailedRequest, Load, Tally};

use crate::{
    MORTAL, SERVICES, Stage, Stand, act, backends, checkpoint,
    picture::{Picture, Server},
    services,
};

/// Between two questions to the daemon: how exact the times are.
const POLL: Duration = Duration::from_millis(50);

/// Connections to [`MORTAL`] that clients hold when it dies, of each service.
const HELD: usize = 2;
/// Connections that may be opened to find these: a third of them should do.
const ATTEMPTS: usize = 100;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n";

/// When what happened to [`MORTAL`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// Connections that clients held then; each has asked once more.
    held: u64,
    unplugged: Instant,
    found: Option<Instant>,
    /// All that held a connection had a RST.
    told: Option<Instant>,
    plugged: Option<Instant>,
    returned: Option<Instant>,
}

/// What it has cost, as in `--json`.
#[derive(Clone, Copy, Serialize)]
pub struct Toll {
    /// From the cut cable until all services have found the server unreachable.
    found_after_seconds: f64,
    /// Requests that were on their way to it, or begun until then, and failed; those on held
    /// connections among them.
    failed_before_found: u64,
    /// Requests begun later that failed, until its return.
    pub failed_after_found: u64,
    /// From the mended cable until it has answered clients of all services again.
    returned_after_seconds: f64,
}

/// Cuts [`MORTAL`]'s cable, and mends it when the load has shown that the balancer knows.
pub fn watch(picture: &mut Picture, load: &Load, stage: &Stage) -> Result<Death> {
    let mortal = stage.lab.backends().iter().find(|host| host.role() == MORTAL);
    let mortal = mortal.context("no such server")?;
    let mut held = stage.lab.client().enter(hold)?;
    stage.lab.unplug(mortal)?;
    let unplugged = Instant::now();
    let mut death = Death {
        held: held.len() as u64,
        unplugged,
        found: None,
        told: None,
        plugged: None,
        returned: None,
    };
    for stream in &mut held {
        stream.write_all(REQUEST).context("ask on a held connection")?;
        stream.set_nonblocking(true).context("hold a connection")?;
    }
    picture.step(&format!("{MORTAL}'s cable is cut: no FIN, no RST, only silence"));

    wait(picture, load, death, "it to be found", || is_everywhere(stage, "unreachable"))?;
    let found = Instant::now();
    death.found = Some(found);
    picture.step(&format!(
        "{MORTAL} found unreachable after {:.1} s: no new flows, a RST for those it had",
        (found - unplugged).as_secs_f32()
    ));
    wait(picture, load, death, "its clients to be told", || {
        held.retain_mut(|stream| !is_reset(stream));
        Ok(held.is_empty())
    })?;
    let told = Instant::now();
    death.told = Some(told);
    picture.step(&format!(
        "{} clients that held connections to it have been told: RST, {:.1} s after the cut",
        death.held,
        (told - unplugged).as_secs_f32()
    ));
    act(picture, load, Stand { death: Some(death), ..Stand::WELL })?;

    let before = answers(load);
    stage.lab.plug(mortal)?;
    let plugged = Instant::now();
    death.plugged = Some(plugged);
    picture.step(&format!("{MORTAL}'s cable is mended"));
    wait(picture, load, death, "it to return", || {
        let after = answers(load);
        let serves = after.iter().zip(&before).all(|(after, before)| after > before);
        Ok(serves && is_everywhere(stage, "healthy")?)
    })?;
    let returned = Instant::now();
    death.returned = Some(returned);
    picture.step(&format!(
        "{MORTAL} answers for all services again, {:.1} s later",
        (returned - plugged).as_secs_f32()
    ));
    Ok(death)
}

/// Connections to [`MORTAL`] that have been answered once, some of each service; to be called on
/// the client.
fn hold() -> Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for (name, vip, _) in services()? {
        let goal = held.len() + HELD;
        for _ in 0..ATTEMPTS {
            let (stream, answer) =
                ask(vip).with_context(|| format!("hold a connection: {name}"))?;
            if answer.contains(&format!("X-Backend: {MORTAL}\r\n")) {
                held.push(stream);
            }
            if held.len() == goal {
                break;
            }
        }
        ensure!(held.len() == goal, "{name} gives {MORTAL} no connections");
    }
    Ok(held)
}

/// A connection that stays open, and what it was answered.
fn ask(vip: SocketAddr) -> Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect_timeout(&vip, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(REQUEST)?;
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    // The body is one line.
    while !answer.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('\n')) {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the server hung up");
        answer += &String::from_utf8_lossy(&buffer[..read]);
    }
    Ok((stream, answer))
}

fn is_reset(stream: &mut TcpStream) -> bool {
    let read = stream.read(&mut [0; 1]);
    read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

fn wait(
    picture: &mut Picture,
    load: &Load,
    death: Death,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        checkpoint()?;
        if start.elapsed() > DEADLINE {
            bail!("{MORTAL}: waited {} s for {what}", DEADLINE.as_secs());
        }
        thread::sleep(POLL);
        picture.draw(&load.tally(), Stand { death: Some(death), ..Stand::WELL });
    }
    Ok(())
}

/// Whether all services say this of [`MORTAL`].
fn is_everywhere(stage: &Stage, health: &str) -> Result<bool> {
    let backends = backends(&stage.sluice)?;
    let is_so =
        |backend: &&serde_json::Value| backend["name"] == MORTAL && backend["health"] == health;
    Ok(backends.iter().filter(is_so).count() == SERVICES.len())
}

/// What [`MORTAL`] has answered so far, service by service.
fn answers(load: &Load) -> Vec<u64> {
    let tally = load.tally();
    let of = |service: &str| tally.answers.get(service)?.get(MORTAL).copied();
    SERVICES.iter().map(|(service, ..)| of(service).unwrap_or(0)).collect()
}

impl Death {
    /// How [`MORTAL`] stands.
    pub const fn server(&self) -> Server {
        match (self.found, self.returned) {
            (None, _) => Server::Silent,
            (Some(_), None) => Server::Unreachable,
            (Some(_), Some(_)) => Server::Serving,
        }
    }

    /// Whether a request failed of it, or while it lasted.
    fn took(&self, failure: &FailedRequest) -> bool {
        failure.ended >= self.unplugged
            && self.returned.is_none_or(|returned| failure.started <= returned)
    }

    fn lost_before_found(&self, tally: &Tally) -> u64 {
        let is_before = |failure: &&FailedRequest| {
            self.took(failure) && self.found.is_none_or(|found| failure.started <= found)
        };
        tally.failures.iter().filter(is_before).count() as u64
    }

    /// How many requests of the load it has cost so far.
    pub fn lost(&self, tally: &Tally) -> u64 {
        tally.failures.iter().filter(|failure| self.took(failure)).count() as u64
    }

    /// The tally without what it has cost.
    pub fn others(&self, tally: &Tally) -> Tally {
        let mut others = tally.clone();
        others.failures.retain(|failure| !self.took(failure));
        others
    }

    /// What it has cost.
    pub fn toll(&self, tally: &Tally) -> Toll {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.duration_since(from).as_secs_f64(),
            (None, _) | (_, None) => 0.0,
        };
        Toll {
            found_after_seconds: between(Some(self.unplugged), self.found),
            failed_before_found: self.held + self.lost_before_found(tally),
            failed_after_found: self.lost(tally) - self.lost_before_found(tally),
            returned_after_seconds: between(self.plugged, self.returned),
        }
    }

    /// The same in words.
    pub fn in_words(&self, tally: &Tally) -> String {
        let toll = self.toll(tally);
        let told = self.told.map_or(0.0, |told| (told - self.unplugged).as_secs_f32());
        format!(
            "{MORTAL} died without a word and was found after {:.1} s. The {} clients that held \
             connections to it had\na RST after {told:.1} s at most; of new requests {} failed \
             before it was found, and {} after. It served again\n{:.1} s after its return.",
            toll.found_after_seconds,
            self.held,
            self.lost_before_found(tally),
            toll.failed_after_found,
            toll.returned_after_seconds,
        )
    }
}
