//! `sluice events`: what happened, and who asked for it.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use jiff::Zoned;
use tokio::time::sleep;

use super::{
    figures::plural,
    palette, print,
    table::{Palette, Tone},
    when::When,
};
use crate::{
    control::{
        api::{Event, EventFilter, EventKind},
        client::{Client, Error},
    },
    instance::Instance,
    journal,
};

/// How often the daemon is asked by those who follow.
const PAUSE: Duration = Duration::from_millis(300);

/// Which events, and how.
#[derive(Args)]
pub struct Arguments {
    /// Only what happened since then: 10m (ago), 14:03, "2026-11-21 14:03" or RFC 3339
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// Only what is about this service
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only what is about backends of this name
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only events of this kind
    #[arg(long)]
    kind: Option<EventKind>,
    /// So many at most, the latest
    #[arg(long, value_name = "N", default_value_t = EventFilter::LIMIT)]
    limit: usize,
    /// Go on as things happen, until Ctrl-C
    #[arg(long)]
    follow: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Prints events; without a daemon, those that it left behind.
pub async fn execute(
    client: &Client,
    instance: &Instance,
    arguments: &Arguments,
) -> anyhow::Result<ExitCode> {
    let since = arguments.since.map(|since| since.moment(&Zoned::now()));
    let since = since.transpose().context("find that moment in the calendar")?;
    let mut filter = EventFilter {
        // Whatever happened in that very microsecond, too.
        after: since.map(|since| u64::try_from(since.as_microsecond() - 1).unwrap_or(0)),
        service: arguments.service.clone(),
        backend: arguments.backend.clone(),
        kind: arguments.kind,
        limit: Some(arguments.limit),
    };
    loop {
        let told = match client.events(&filter).await {
            Ok(told) => told,
            Err(Error::NotRunning { .. }) => left_behind(&instance.state(), &filter),
            Err(error) => return Err(error.into()),
        };
        if told.truncated {
            // Nobody is left to tell that stderr is closed.
            let _ = writeln!(
                io::stderr(),
                "the latest {} only: `--limit N` shows more, `--since` what is older",
                plural(told.events.len() as u64, "event")
            );
        }
        for event in &told.events {
            filter.after = Some(event.id);
            print(line(event, arguments.json, palette())?.as_bytes())?;
        }
        if !arguments.follow {
            return Ok(ExitCode::SUCCESS);
        }
        filter.after = Some(filter.after.unwrap_or(0));
        sleep(PAUSE).await;
    }
}

fn left_behind(directory: &Path, filter: &EventFilter) -> crate::control::api::Events {
    journal::select(journal::read(directory), filter)
}

/// How it looks.
pub(super) const fn tone(kind: EventKind) -> Tone {
    match kind {
        EventKind::Daemon | EventKind::Change | EventKind::Upgrade => Tone::Plain,
        EventKind::Drained => Tone::Good,
        EventKind::Drift | EventKind::Attach | EventKind::NextHop | EventKind::Health => {
            Tone::Doubtful
        }
        EventKind::Trouble => Tone::Bad,
    }
}

fn line(event: &Event, json: bool, palette: Palette) -> anyhow::Result<String> {
    if json {
        return Ok(serde_json::to_string(event).context("write JSON")? + "\n");
    }
    // To the second, for people.
    let at = event.at.get(..19).unwrap_or(&event.at);
    let kind = palette.paint(tone(event.kind), &format!("{:<8}", event.kind.name()));
    let about = match (&event.service, &event.backend) {
        (Some(service), Some(backend)) => format!("{service}/{backend}  "),
        (Some(service), None) => format!("{service}  "),
        (None, _) => String::new(),
    };
    let by = match (event.uid, event.pid) {
        (Some(uid), Some(pid)) => format!("  (uid {uid}, pid {pid})"),
        (Some(uid), None) => format!("  (uid {uid})"),
        (None, _) => String::new(),
    };
    Ok(format!("{at}Z  {kind}  {about}{}{by}\n", event.text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::sample;

    #[test]
    fn an_event_is_one_line() {
        let events = sample::events().events;
        let plain = |event| line(event, false, Palette { colours: false }).expect("a line");
        assert_eq!(
            plain(&events[0]),
            "2026-05-01T07:30:00Z  change    web/web-1  enabled -> draining  (uid 0, pid 4711)\n"
        );
        assert_eq!(plain(&events[1]), "2026-05-01T07:30:09Z  drift     VIPS 203.0.113.10\n");
        let json = line(&events[0], true, Palette { colours: false }).expect("a line");
        assert_eq!(serde_json::from_str::<Event>(&json).expect("JSON"), events[0]);
        assert!(json.ends_with("}\n") && json.lines().count() == 1, "{json}");
    }
}
