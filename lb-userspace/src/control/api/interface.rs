//! The interfaces where clients' frames arrive.

use std::collections::BTreeMap;

use lb_common::reason::Reason;
use serde::{Deserialize, Serialize};

use crate::network::Statistics;

/// An interface of the config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `native` or `generic`; what was asked for while it is not attached.
    pub xdp_mode: String,
    /// Whether our program is on it.
    pub attached: bool,
    /// What it counts, a second ago at most; `None`: there is no such interface, or it was not
    /// read yet.
    pub counts: Option<InterfaceCounts>,
}

/// What kernel and driver count of an interface, since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceCounts {
    /// Good frames that the driver took, those included that XDP or the host dropped.
    pub received_frames_total: u64,
    /// Their bytes.
    pub received_bytes_total: u64,
    /// Bad frames.
    pub receive_errors_total: u64,
    /// Frames that driver or host dropped, for want of room or of anybody who wants them.
    pub receive_dropped_total: u64,
    /// Frames that the card dropped because the host did not take them.
    pub receive_missed_total: u64,
    /// Frames sent.
    pub sent_frames_total: u64,
    /// Their bytes.
    pub sent_bytes_total: u64,
    /// Frames that could not be sent.
    pub send_errors_total: u64,
    /// Frames dropped on their way out.
    pub send_dropped_total: u64,
    /// What the driver counts of XDP, by its own names, all queues together.
    pub xdp: BTreeMap<String, u64>,
}

/// What became of every frame that arrived on an interface of the config, since the program was
/// attached to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceReasons {
    /// Its name.
    pub name: String,
    /// All frames with a verdict: the sum of those forwarded and of all counts below.
    pub received: u64,
    /// Frames sent to a backend, or from one to its client.
    pub forwarded: u64,
    /// Frames that it received beyond that, for certain, since this daemon compares; less than 0:
    /// verdicts about frames that it does not tell of.
    pub unexplained: i64,
    /// Frames not forwarded, by reason.
    pub counts: BTreeMap<String, u64>,
}

/// Frames that were lost after our program's decision, since this daemon watches: those that a driver
/// could not send or hand on, and told so at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Where they arrived.
    pub interface: String,
    /// What was to become of them: `transmit`, `redirect`; `aborted`, if the program failed.
    pub action: String,
    /// Why they could not be redirected, as `ENETDOWN`; `None`: it was no redirect.
    pub error: Option<String>,
    /// Where they were to go; `None`: it was no redirect.
    pub target: Option<String>,
    /// How many.
    pub frames_total: u64,
}

impl InterfaceReasons {
    /// From the counts by the reasons' numbers; a missing count is 0.
    pub fn new(name: &str, forwarded: u64, counts: &[u64], unexplained: i64) -> Self {
        let count = |reason: &Reason| counts.get(*reason as usize).copied().unwrap_or(0);
        let counts: BTreeMap<String, u64> =
            Reason::ALL.iter().map(|reason| (reason.name().to_owned(), count(reason))).collect();
        let received = forwarded + counts.values().sum::<u64>();
        Self { name: name.to_owned(), received, forwarded, unexplained, counts }
    }
}

impl InterfaceCounts {
    /// From what the kernel counts, and the driver.
    pub fn new(statistics: &Statistics, xdp: BTreeMap<String, u64>) -> Self {
        Self {
            received_frames_total: statistics.received_frames,
            received_bytes_total: statistics.received_bytes,
            receive_errors_total: statistics.receive_errors,
            receive_dropped_total: statistics.receive_dropped,
            receive_missed_total: statistics.receive_missed,
            sent_frames_total: statistics.sent_frames,
            sent_bytes_total: statistics.sent_bytes,
            send_errors_total: statistics.send_errors,
            send_dropped_total: statistics.send_dropped,
            xdp,
        }
    }
}
