//! `drain --wait`: how it goes, and the proof in the end.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::bail;
use serde::Serialize;

use super::{Output, change::is_watched, figures::plural};
use crate::{
    control::{
        api::{self, Target},
        client::{Client, Error},
    },
    drain::Moment,
};

/// How often the daemon is asked.
const PAUSE: Duration = Duration::from_millis(200);
/// How often somebody who reads a log is told.
const LINE: Duration = Duration::from_secs(5);
/// A daemon that restarts meanwhile goes on with the drain; so long is waited for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// "Connections were cut".
const CUT: u8 = 3;

/// The proof: what `--json` prints.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Summary {
    flows_at_start: u64,
    flows_cut: u64,
    new_flows_since_drain: u64,
    seconds: f64,
    backends: Vec<Ended>,
}

/// One backend's part of it.
#[derive(Debug, PartialEq, Serialize)]
struct Ended {
    service: String,
    backend: String,
    admin: api::Admin,
    flows_at_start: u64,
    flows_cut: u64,
    new_flows_since_drain: u64,
    seconds: f64,
}

/// Waits until all backends that `target` means are drained.
pub async fn wait(
    client: &Client,
    target: &Target,
    asked: Moment,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let filter =
        api::DrainFilter { service: target.service.clone(), backend: Some(target.backend.clone()) };
    let mut progress = Progress::default();
    let mut silent_since: Option<Instant> = None;
    loop {
        match client.drains(&filter).await {
            Ok(drains) => {
                silent_since = None;
                let open = drains.iter().filter(|d| d.admin == api::Admin::Draining).count();
                if open == 0 {
                    progress.end();
                    return finish(client, target, drains, asked, output).await;
                }
                progress.show(&drains);
            }
            Err(Error::NotRunning { .. }) => {
                let since = *silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    progress.end();
                    bail!(
                        "the daemon has not answered for {} s; the drain goes on when it runs \
                         again, new flows stay away meanwhile",
                        PATIENCE.as_secs()
                    );
                }
            }
            Err(error) => {
                progress.end();
                return Err(error.into());
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn finish(
    client: &Client,
    target: &Target,
    drains: Vec<api::Drain>,
    asked: Moment,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let mut summary = Summary::default();
    for drain in drains {
        summary.add(Ended {
            flows_at_start: drain.flows_at_start.unwrap_or(0),
            service: drain.service,
            backend: drain.backend,
            admin: drain.admin,
            flows_cut: drain.flows_cut,
            new_flows_since_drain: drain.new_flows_since_drain,
            seconds: drain.seconds,
        });
    }
    // Who was disabled has no flows; who was enabled again did not want to be drained.
    for service in client.status().await?.services {
        let is_meant = target.service.as_ref().is_none_or(|name| *name == service.name);
        for backend in service.backends.iter().filter(|b| is_meant && b.name == target.backend) {
            match backend.admin {
                api::Admin::Disabled => summary.add(Ended {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                    admin: backend.admin,
                    flows_at_start: 0,
                    flows_cut: 0,
                    new_flows_since_drain: 0,
                    seconds: asked.until(Moment::now()).as_secs_f64(),
                }),
                api::Admin::Enabled => bail!(
                    "{}/{} was enabled meanwhile, so it is not drained",
                    service.name,
                    backend.name
                ),
                api::Admin::Draining | api::Admin::Drained => {}
            }
        }
    }
    if summary.backends.is_empty() {
        bail!("{} was removed meanwhile", target.backend);
    }
    output.print(&summary, |summary, _| summary.text())?;
    Ok(if summary.flows_cut > 0 { ExitCode::from(CUT) } else { ExitCode::SUCCESS })
}

impl Summary {
    fn add(&mut self, ended: Ended) {
        self.flows_at_start += ended.flows_at_start;
        self.flows_cut += ended.flows_cut;
        self.new_flows_since_drain += ended.new_flows_since_drain;
        self.seconds = self.seconds.max(ended.seconds);
        self.backends.push(ended);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for ended in &self.backends {
            text += &format!(
                "{}/{} {} after {:.1} s: {} at the start, {} cut, {} since\n",
                ended.service,
                ended.backend,
                ended.admin.name(),
                ended.seconds,
                plural(ended.flows_at_start, "flow"),
                ended.flows_cut,
                plural(ended.new_flows_since_drain, "new flow"),
            );
        }
        text
    }
}

/// What is told meanwhile, on stderr.
#[derive(Default)]
struct Progress {
    told: Option<(Instant, u64)>,
    is_open: bool,
}

impl Progress {
    fn show(&mut self, drains: &[api::Drain]) {
        let left: u64 = drains.iter().map(|drain| drain.flows_left).sum();
        let line = line(drains);
        if is_watched() {
            // Over the last one, to the end of the line.
            let _ = write!(io::stderr(), "\r{line}\x1b[K");
            let _ = io::stderr().flush();
            self.is_open = true;
            return;
        }
        let is_news = self.told.is_none_or(|(when, before)| {
            when.elapsed() >= LINE || before != left && when.elapsed() >= Duration::from_secs(1)
        });
        if is_news {
            let _ = writeln!(io::stderr(), "{line}");
            self.told = Some((Instant::now(), left));
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.is_open) {
            let _ = writeln!(io::stderr());
        }
    }
}

fn line(drains: &[api::Drain]) -> String {
    let sum = |count: fn(&api::Drain) -> u64| drains.iter().map(count).sum::<u64>();
    let most = |time: fn(&api::Drain) -> f64| drains.iter().map(time).fold(0.0, f64::max);
    let oldest = drains.iter().filter_map(|drain| drain.oldest_seconds).max();
    let names: Vec<String> = match drains {
        [one] => vec![format!("{}/{}", one.service, one.backend)],
        many => vec![plural(many.len() as u64, "backend")],
    };
    format!(
        "draining {}: {} of {} left{}, {:.0} s gone, {:.0} s to the deadline",
        names.concat(),
        sum(|drain| drain.flows_left),
        plural(sum(|drain| drain.flows_at_start.unwrap_or(0)), "flow"),
        oldest.map(|age| format!(", the oldest {age} s old")).unwrap_or_default(),
        most(|drain| drain.seconds),
        most(|drain| drain.deadline_seconds),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain() -> api::Drain {
        api::Drain {
            service: "web".into(),
            backend: "web-1".into(),
            admin: api::Admin::Draining,
            since: "2026-01-01T00:00:00Z".into(),
            deadline_seconds: 287.6,
            seconds: 12.4,
            flows_at_start: Some(30),
            flows_left: 2,
            oldest_seconds: Some(77),
            flows_cut: 0,
            new_flows_since_drain: 0,
        }
    }

    #[test]
    fn progress_is_one_line() {
        assert_eq!(
            line(&[drain()]),
            "draining web/web-1: 2 of 30 flows left, the oldest 77 s old, 12 s gone, 288 s to the \
             deadline"
        );
        let none = api::Drain { oldest_seconds: None, ..drain() };
        assert_eq!(
            line(&[none.clone(), none]),
            "draining 2 backends: 4 of 60 flows left, 12 s gone, 288 s to the deadline"
        );
    }

    #[test]
    fn the_proof_has_the_names_that_are_promised() {
        let mut summary = Summary::default();
        for flows_cut in [0, 2] {
            summary.add(Ended {
                service: "web".into(),
                backend: "web-1".into(),
                admin: api::Admin::Drained,
                flows_at_start: 30,
                flows_cut,
                new_flows_since_drain: 0,
                seconds: 12.5,
            });
        }
        let json = serde_json::to_value(&summary).expect("JSON");
        assert_eq!((&json["flows_at_start"], &json["flows_cut"]), (&60.into(), &2.into()));
        assert_eq!((&json["new_flows_since_drain"], &json["seconds"]), (&0.into(), &12.5.into()));
        assert_eq!(
            summary.text().lines().last(),
            Some("web/web-1 drained after 12.5 s: 30 flows at the start, 2 cut, 0 new flows since")
        );
    }
}
