//! What is told of one frame, in words: pure, but for the names of interfaces.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use lb_common::{
    counters::Event,
    frame::HostFrame,
    parse,
    reason::{Class, Reason},
    trace::{Header, verdict},
};
use serde::{Serialize, Serializer};
use zerocopy::FromBytes as _;

use super::names::{self, Names};
use crate::headers::Headers;

/// What the kernel program told of one frame.
#[derive(Debug)]
pub struct Told<'b> {
    /// What was noted.
    pub header: Header,
    /// Its first bytes as it came.
    pub before: &'b [u8],
    /// Its first bytes as it went; nothing if it did not.
    pub after: &'b [u8],
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It went to a backend.
    Forward,
    /// It went from a backend to its client.
    Return,
    /// It was passed, dropped or answered.
    Leave(Class),
}

/// A frame, for people and scripts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// When it was looked at: RFC 3339, UTC, with microseconds.
    pub at: String,
    /// Where it came in.
    pub interface: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was not forwarded.
    pub reason: Option<&'static str>,
    /// The service that it belongs to.
    pub service: Option<String>,
    /// The backend that it belongs to.
    pub backend: Option<String>,
    /// What happened to its flow, by the names of `sluice_backend_…_total`.
    pub events: Vec<&'static str>,
    /// Where it went out.
    pub leaves_by: Option<String>,
    /// Its bytes as it came.
    pub bytes: u32,
    /// Its source, if it holds an IP packet.
    pub source: Option<IpAddr>,
    /// Its destination, if it holds an IP packet.
    pub destination: Option<IpAddr>,
    /// Its headers as it came, if it holds a TCP segment.
    pub before: Option<Headers>,
    /// Its headers as it went.
    pub after: Option<Headers>,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Forward,
        Self::Return,
        Self::Leave(Class::Pass),
        Self::Leave(Class::Drop),
        Self::Leave(Class::Answer),
    ];

    /// The name used by CLI and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Return => "return",
            Self::Leave(class) => class.name(),
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'b> Told<'b> {
    /// Takes apart what was in the ring; `None` if it contradicts itself.
    pub fn read(bytes: &'b [u8]) -> Option<Self> {
        let (header, bytes) = Header::read_from_prefix(bytes).ok()?;
        let (before, bytes) = bytes.split_at_checked(header.captured as usize)?;
        let after = bytes.get(..header.captured_after as usize)?;
        Some(Self { header, before, after })
    }

    /// The index of the backend that was noted.
    pub fn backend(&self) -> Option<u16> {
        u16::try_from(self.header.notes.backend).ok().filter(|backend| *backend != 0)
    }

    /// What was decided; a reason where it was not forwarded. `None` if this build knows no such
    /// number.
    pub fn verdict(&self) -> Option<(Verdict, Option<Reason>)> {
        match self.header.notes.verdict {
            verdict::FORWARDED => Some((Verdict::Forward, None)),
            verdict::RETURNED => Some((Verdict::Return, None)),
            number => {
                let reason = Reason::from_number(number.into())?;
                Some((Verdict::Leave(reason.class()), Some(reason)))
            }
        }
    }

    /// Nanoseconds since 1970, where the kernel's clock began at `epoch`.
    pub fn since_1970(&self, epoch: i128) -> i128 {
        epoch + i128::from(self.header.at)
    }
}

impl Line {
    /// In words. `epoch`: nanoseconds from 1970 to the start of the kernel's clock.
    pub fn of(told: &Told<'_>, names: &Names, epoch: i128) -> Self {
        let Header { notes, interface, leaves_by, length, .. } = told.header;
        let before = frame(told.before);
        let packet = parse::locate(&before).ok();
        let headers = Headers::read(&before);
        let (verdict, reason) = told.verdict().unwrap_or((Verdict::Leave(Class::Drop), None));
        let member = told.backend().and_then(|index| names.backends.get(&index));
        let service = match member {
            Some(member) => names.services.get(&member.service).map(|(_, name)| name.as_str()),
            None => headers.as_ref().and_then(|h| names.service_named(h.destination)),
        };
        let events = Event::ALL.into_iter().filter(|event| notes.events & 1 << *event as u32 != 0);
        let at = Timestamp::from_nanosecond(told.since_1970(epoch)).unwrap_or_default();
        Self {
            at: format!("{at:.6}"),
            interface: names::interface(interface),
            verdict,
            reason: reason.map(Reason::name),
            service: service.map(str::to_owned),
            backend: member.map(|member| member.name.clone()),
            events: events.map(Event::name).collect(),
            leaves_by: (leaves_by != 0).then(|| names::interface(leaves_by)),
            bytes: length,
            source: packet.map(|packet| packet.source.into()),
            destination: packet.map(|packet| packet.destination.into()),
            after: Headers::read(&frame(told.after)).map(|h| whole(h, told.header.length_after)),
            before: headers.map(|headers| whole(headers, length)),
        }
    }

    /// What was decided, in one sentence.
    pub fn sentence(&self) -> String {
        let to = match (&self.service, &self.backend) {
            (Some(service), Some(backend)) => format!("{service}/{backend}"),
            (Some(name), None) | (None, Some(name)) => name.clone(),
            (None, None) => String::new(),
        };
        let mut sentence = match (self.verdict, self.reason) {
            (Verdict::Forward, _) => format!("forwarded to {to}"),
            (Verdict::Return, _) => format!("returned from {to}"),
            (Verdict::Leave(class), reason) => {
                let done = match class {
                    Class::Pass => "passed",
                    Class::Drop => "dropped",
                    Class::Answer => "answered",
                };
                let of = if to.is_empty() { to } else { format!(" ({to})") };
                format!("{done}: {}{of}", reason.unwrap_or("unknown"))
            }
        };
        if !self.events.is_empty() {
            sentence += &format!(", {}", self.events.join(", "));
        }
        sentence
    }

    /// From whom to whom, as far as can be told.
    pub fn ends(&self) -> String {
        match (&self.before, self.source, self.destination) {
            (Some(Headers { source, destination, .. }), ..) => ends(source, destination),
            (None, Some(source), Some(destination)) => format!("{source} > {destination}"),
            _ => "no IP packet".to_owned(),
        }
    }
}

/// As `tcpdump` has it.
pub fn ends(source: &SocketAddr, destination: &SocketAddr) -> String {
    format!("{source} > {destination}")
}

fn frame(bytes: &[u8]) -> HostFrame {
    HostFrame::new(bytes)
}

/// Not only what was copied.
fn whole(headers: Headers, length: u32) -> Headers {
    Headers { bytes: length as usize, ..headers }
}
