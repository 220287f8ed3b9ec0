//! `sluice trace`: frames as they come, with what becomes of them.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{
    Args, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser as _},
};
use lb_common::{reason::Reason, wire::Tcp};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    figures::plural,
    palette,
    table::{Palette, Tone},
};
use crate::{
    control::{api, client::Client},
    headers::{Headers, flag_names},
    instance::Instance,
    trace::{self, Bounds, Ended, HEADERS, Line, Question, Sink, Verdict, WHOLE},
};

/// Which frames, how many, and how they are shown.
#[derive(Args)]
pub struct Arguments {
    /// Only from or to this address or network
    #[arg(long, value_name = "PREFIX")]
    client: Option<api::Clients>,
    /// Only of this service: its name, or VIP:PORT
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only of this backend: its name or address
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only what this became of; several: any of them
    #[arg(long, value_name = "VERDICT", value_delimiter = ',')]
    verdict: Vec<Verdict>,
    /// Only what was not forwarded for this reason (`sluice reasons --all`); several: any of them
    #[arg(long, value_name = "REASON", value_delimiter = ',', value_parser = reason(), hide_possible_values = true)]
    reason: Vec<Reason>,
    /// Only segments with one of these TCP flags, such as syn,rst
    #[arg(long, value_name = "FLAGS", value_delimiter = ',')]
    flags: Vec<Flag>,
    /// Also this host's own traffic, which is not addressed to any VIP
    #[arg(long)]
    all: bool,
    /// Only one in so many frames, by chance
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    one_in: u32,
    /// End after so many frames
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after so long
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// Copy so many KiB a second at most; what is beyond is counted
    #[arg(long, value_name = "KIB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    rate: u32,
    /// Copy so many bytes of each frame [default: 256; with --pcap 2048, the most]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(64..=i64::from(WHOLE)))]
    snap: Option<u32>,
    /// Write a capture file for Wireshark instead, each frame as it came and as it went; - is stdout
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pcap: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// A TCP flag.
#[derive(Clone, Copy, ValueEnum)]
enum Flag {
    Syn,
    Fin,
    Rst,
    Ack,
}

impl Flag {
    const fn bit(self) -> u8 {
        match self {
            Self::Syn => Tcp::SYN,
            Self::Fin => Tcp::FIN,
            Self::Rst => Tcp::RST,
            Self::Ack => Tcp::ACK,
        }
    }
}

impl ValueEnum for Verdict {
    fn value_variants<'v>() -> &'v [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// A reason by its name.
fn reason() -> impl clap::builder::TypedValueParser<Value = Reason> {
    let names = Reason::ALL.iter().map(|reason| reason.name());
    PossibleValuesParser::new(names).try_map(|name| {
        let mut reasons = Reason::ALL.iter().copied();
        reasons.find(|reason| reason.name() == name).ok_or("no such reason")
    })
}

impl Arguments {
    fn question(&self) -> Question {
        let copied = if self.pcap.is_some() { WHOLE } else { HEADERS };
        Question {
            network: self.client.map(api::Clients::network),
            service: self.service.clone(),
            backend: self.backend.clone(),
            verdicts: self.verdict.clone(),
            reasons: self.reason.clone(),
            flags: self.flags.iter().fold(0, |flags, flag| flags | flag.bit()),
            one_in: self.one_in,
            snap: self.snap.unwrap_or(copied),
            all: self.all,
        }
    }

    const fn bounds(&self) -> Bounds {
        let bytes_per_second = self.rate * 1024;
        Bounds { bytes_per_second, frames: self.count, time: self.time }
    }
}

/// Traces until Ctrl-C or one of the bounds.
pub async fn execute(
    client: &Client,
    instance: &Instance,
    arguments: &Arguments,
) -> Result<ExitCode> {
    let (question, bounds) = (arguments.question(), arguments.bounds());
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut hang_up = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let interrupted = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    };
    let started = |interfaces: &[&str]| {
        // Nobody is left to tell that stderr is closed.
        let _ = writeln!(io::stderr(), "tracing {}; Ctrl-C ends it", interfaces.join(", "));
    };
    let ended = if let Some(path) = &arguments.pcap {
        let mut file = open(path)?;
        let sink = Sink::Capture(&mut file);
        trace::trace(client, instance, &question, &bounds, sink, started, interrupted).await?
    } else {
        let mut show = |line: &Line| show(line, arguments.json);
        let sink = Sink::Lines(&mut show);
        trace::trace(client, instance, &question, &bounds, sink, started, interrupted).await?
    };
    let _ = writeln!(io::stderr(), "{}", summary(&ended, arguments.pcap.as_deref()));
    Ok(ExitCode::SUCCESS)
}

fn open(path: &Path) -> Result<Box<dyn Write>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    Ok(Box::new(BufWriter::new(file)))
}

/// Prints a line; tells whether somebody still reads.
fn show(line: &Line, json: bool) -> Result<bool> {
    let text = if json {
        serde_json::to_string(line).context("write JSON")? + "\n"
    } else {
        render(line, palette())
    };
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("write to stdout"),
    }
}

/// One line for people.
fn render(line: &Line, palette: Palette) -> String {
    let tone = match line.verdict {
        Verdict::Forward | Verdict::Return => Tone::Good,
        Verdict::Leave(lb_common::reason::Class::Pass) => Tone::Plain,
        Verdict::Leave(_) => Tone::Bad,
    };
    // The time of the day, for people.
    let at = line.at.get(11..26).unwrap_or(&line.at);
    let segment = line.before.as_ref().map(|headers| format!(" {}", flag_names(headers.flags)));
    let went = line.leaves_by.as_ref().map(|by| format!(" -> {}", went(line, by)));
    format!(
        "{at} {} {}{} {} B  {}{}\n",
        line.interface,
        line.ends(),
        segment.unwrap_or_default(),
        line.bytes,
        palette.paint(tone, &line.sentence()),
        went.unwrap_or_default(),
    )
}

/// How it went out, as far as that differs from how it came.
fn went(line: &Line, by: &str) -> String {
    let Some(Headers { destination_mac, tunnel, source, destination, .. }) = &line.after else {
        return by.to_owned();
    };
    let mut went = format!("{by} {destination_mac}");
    if let Some(tunnel) = tunnel {
        went += &format!(" in {} > {}", tunnel.source, tunnel.destination);
    }
    let is_same = |before: &Headers| (before.source, before.destination) == (*source, *destination);
    if !line.before.as_ref().is_some_and(is_same) {
        went += &format!(" as {source} > {destination}");
    }
    went
}

/// What is said at the end.
fn summary(ended: &Ended, path: Option<&Path>) -> String {
    let Ended { shown, tally, is_replaced } = ended;
    let mut summary = plural(*shown, "frame");
    summary += &match path {
        Some(path) if path != Path::new("-") => format!(" written to {}", path.display()),
        Some(_) => " written".to_owned(),
        None => " shown".to_owned(),
    };
    if tally.over_limit != 0 {
        let more = plural(tally.over_limit, "frame");
        summary += &format!(
            ", {more} left out by --rate (raise it, or ask for less: --one-in, --client, --snap)"
        );
    }
    if tally.ring_full != 0 {
        let more = plural(tally.ring_full, "frame");
        summary += &format!(", {more} lost because they were not read in time");
    }
    if *is_replaced {
        summary += "; ended because another program was put on the interfaces (an upgrade, or \
                    `sluice detach`)";
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{reason::Class, trace::Tally};

    const PLAIN: Palette = Palette { colours: false };

    fn headers(source: &str, destination: &str, mac: &str) -> Headers {
        Headers {
            source_mac: "02:00:00:00:00:09".to_owned(),
            destination_mac: mac.to_owned(),
            tunnel: None,
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            flags: Tcp::SYN,
            bytes: 74,
        }
    }

    fn line() -> Line {
        let (client, vip) = ("198.51.100.7:40001", "203.0.113.10:80");
        Line {
            at: "2026-05-01T07:30:00.123456Z".to_owned(),
            interface: "eth0".to_owned(),
            verdict: Verdict::Forward,
            reason: None,
            service: Some("web".to_owned()),
            backend: Some("web-1".to_owned()),
            events: vec!["new_flows"],
            leaves_by: Some("eth0".to_owned()),
            bytes: 74,
            source: Some("198.51.100.7".parse().expect("an address")),
            destination: Some("203.0.113.10".parse().expect("an address")),
            before: Some(headers(client, vip, "02:00:00:00:00:01")),
            after: Some(headers(client, vip, "02:00:00:00:01:01")),
        }
    }

    #[test]
    fn a_frame_is_one_line() {
        assert_eq!(
            render(&line(), PLAIN),
            "07:30:00.123456 eth0 198.51.100.7:40001 > 203.0.113.10:80 SYN 74 B  forwarded to \
             web/web-1, new_flows -> eth0 02:00:00:00:01:01\n"
        );
        let (translated, backend) = ("10.0.0.1:1025", "10.0.0.11:8080");
        let nat = Line { after: Some(headers(translated, backend, "02:00:00:00:01:01")), ..line() };
        assert!(
            render(&nat, PLAIN).ends_with("02:00:00:00:01:01 as 10.0.0.1:1025 > 10.0.0.11:8080\n")
        );
        let dropped = Line {
            verdict: Verdict::Leave(Class::Drop),
            reason: Some("fragment"),
            backend: None,
            events: Vec::new(),
            leaves_by: None,
            before: None,
            after: None,
            ..line()
        };
        assert_eq!(
            render(&dropped, PLAIN),
            "07:30:00.123456 eth0 198.51.100.7 > 203.0.113.10 74 B  dropped: fragment (web)\n"
        );
    }

    #[test]
    fn what_was_left_out_is_told() {
        let tally = Tally { told: 5, over_limit: 2, ring_full: 1 };
        let ended = Ended { shown: 5, tally, is_replaced: true };
        let told = summary(&ended, None);
        for part in ["5 frames shown", "2 frames left out by --rate", "1 frame lost", "upgrade"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let whole = Ended { shown: 1, tally: Tally::default(), is_replaced: false };
        assert_eq!(summary(&whole, Some(Path::new("a.pcapng"))), "1 frame written to a.pcapng");
    }
}
