//! A segment's way through the program, as it is told: by `sluice explain`, to people and scripts.

use std::net::SocketAddr;

use serde::Serialize;

use crate::headers::Headers;

/// A segment's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// SYN alone.
    Syn,
    /// ACK alone.
    Ack,
}

/// A segment's way through the program, step by step.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// What it is.
    pub segment: Sent,
    /// Whether it is looked at more closely.
    pub filter: Filter,
    /// Whom it is for; `None`: no service has this address and port.
    pub service: Option<Service>,
    /// What the flow table has under its hash; `None`: nothing.
    pub flow: Option<Flow>,
    /// Words of its group of the flow table that are taken, of 16.
    pub group_taken: usize,
    /// Where the Maglev table would send a new flow; `None`: there is no service.
    pub slot: Option<Slot>,
    /// Whose it is; `None`: nobody's.
    pub backend: Option<Backend>,
    /// How that is reached; `None`: it is not known.
    pub next_hop: Option<NextHop>,
    /// The frame that leaves; `None`: none does.
    pub leaves: Option<Headers>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// What a packet from this client would count, by name.
    pub events: Vec<&'static str>,
    /// The state of the flow's entry afterwards; `None`: it has none.
    pub state_after: Option<&'static str>,
}

/// The segment that is asked about.
#[derive(Clone, Debug, Serialize)]
pub struct Sent {
    /// From whom.
    pub client: SocketAddr,
    /// To whom.
    pub vip: SocketAddr,
    /// Its flags.
    pub kind: Kind,
    /// Bytes of its frame.
    pub bytes: usize,
}

/// What the VIP filter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// It is looked at more closely.
    pub lets_through: bool,
    /// Its destination is the address of a service.
    pub is_vip: bool,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its place in the maps.
    pub index: u16,
    /// `none` or `source-ip`.
    pub affinity: &'static str,
    /// Of its Maglev table.
    pub slots: u32,
    /// What the MSS of its clients is lowered to, bytes.
    pub mss_clamp: Option<u16>,
}

/// An entry of the flow table with the fingerprint of this tuple.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flow {
    /// Its word in the table.
    pub word: u32,
    /// By the name that `flows` uses.
    pub state: &'static str,
    /// Index of its backend.
    pub backend: u16,
    /// Whether it binds this segment, or why it does not.
    pub standing: Standing,
    /// Seconds since it was entered; `None`: its record is another flow's.
    pub age_seconds: Option<f64>,
    /// Seconds since its last packet, to within a tick.
    pub idle_seconds: f64,
    /// What the backend sees for the client, where that is translated.
    pub client_at_backend: Option<SocketAddr>,
}

/// What an entry is worth to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It names the segment's backend.
    Known,
    /// It was silent for longer than its state allows.
    Expired,
    /// Its backend's flows are reset.
    BackendGone,
    /// Its backend was removed.
    BackendAbsent,
    /// It is of another service: only the fingerprint is alike.
    Stranger,
}

/// A place in a Maglev table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// The keyed hash that chose it, hexadecimal.
    pub hash: String,
    /// Its number.
    pub slot: u32,
    /// Index of the backend that has it; 0: nobody has.
    pub backend: u16,
}

/// A backend, as the program has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Its place in the maps.
    pub index: u16,
    /// Where it is.
    pub address: SocketAddr,
    /// `l2`, `ipip` or `nat`.
    pub forwarding: &'static str,
    /// `absent`, `forward`, `reset` or `suspect`.
    pub state: &'static str,
    /// Whose address it sees: `client`, `own` (this host's) or `named` (the service's).
    pub sees: &'static str,
}

/// The way to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextHop {
    /// Index of the interface.
    pub interface: u32,
    /// Our MAC address there.
    pub source_mac: String,
    /// The backend's, or that of the router before it.
    pub mac: String,
    /// MTU of the route; 0: not known, not looked at.
    pub mtu: u16,
    /// Bytes that a tunnel's header takes of that.
    pub overhead: u16,
}

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What the program does with it.
    pub becomes: Becomes,
    /// Index of the interface that a frame leaves by.
    pub interface: Option<u32>,
    /// Why it is not forwarded, by the name that `reasons` uses.
    pub reason: Option<&'static str>,
    /// What that means.
    pub help: Option<&'static str>,
}

/// Verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Becomes {
    /// It goes to a backend.
    Forwarded,
    /// It goes from a backend to its client.
    Returned,
    /// Its sender gets a RST.
    Reset,
    /// The kernel of this host gets it, untouched.
    Passed,
    /// It is forgotten.
    Dropped,
}
