//! The health probes of a backend: the last one, and all.

use serde::{Deserialize, Serialize};

use crate::{
    doctor::Met,
    drain::Moment,
    health::{Probe, Totals},
    model::Via,
};

/// The last health probe of a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastProbe {
    /// `vip` or `backend`: which way it went.
    pub via: String,
    /// What it met.
    pub met: Met,
    /// Why it was no success; none if it was.
    pub error: Option<String>,
    /// Why that is so and what to do about it, if a connection to the backend's own address told;
    /// only of probes by way of the VIP.
    pub cause: Option<String>,
    /// Since it ended.
    pub age_seconds: f64,
    /// How long it took.
    pub seconds: f64,
}

impl LastProbe {
    /// Of a probe that went this way.
    pub fn new(via: Via, probe: &Probe, cause: Option<&str>, now: Moment) -> Self {
        Self {
            via: via.name().to_owned(),
            met: Met::by(&probe.outcome),
            error: probe.outcome.as_ref().err().map(ToString::to_string),
            cause: cause.map(str::to_owned),
            age_seconds: probe.at.until(now).as_secs_f64(),
            seconds: probe.duration.as_secs_f64(),
        }
    }
}

/// Probes of a backend by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeTotals {
    /// That were well.
    pub well: u64,
    /// That failed.
    pub failed: u64,
    /// That could not be made, for a fault of this host.
    pub not_made: u64,
}

impl From<Totals> for ProbeTotals {
    fn from(totals: Totals) -> Self {
        let Totals { well, failed, not_made } = totals;
        Self { well, failed, not_made }
    }
}
