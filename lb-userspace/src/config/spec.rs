//! A service or backend as a file, a command or the saved state writes it: every field as text
//! or number, those that have their default left out.
//!
//! What comes from a command is checked by the same code as a file's ([`super::service`],
//! [`super::backend`]).

use std::time::Duration;

use humantime::format_duration;
use lb_common::{maglev::DEFAULT_SLOTS, service::Affinity};
use serde::{Deserialize, Serialize};

use crate::model::{self, CheckKind, HealthCheck, IdleTimeouts};

/// A `[[service]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of sluice.example.toml")]
pub struct ServiceSpec {
    pub name: String,
    pub vip: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_deadline: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_available: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_open: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<IdleTimeoutSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend: Vec<BackendSpec>,
}

/// The table `idle_timeout` of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of sluice.example.toml")]
pub struct IdleTimeoutSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embryonic: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub established: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing: Option<String>,
}

/// The table `health` of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of sluice.example.toml")]
pub struct HealthSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rise: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fall: Option<u32>,
}

/// A `[[service.backend]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of sluice.example.toml")]
pub struct BackendSpec {
    pub name: String,
    pub address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<bool>,
}

/// A value, unless it is the default.
fn unless<T: PartialEq, U>(value: T, default: &T, written: impl FnOnce(T) -> U) -> Option<U> {
    (value != *default).then(|| written(value))
}

fn time(time: Duration) -> String {
    format_duration(time).to_string()
}

impl ServiceSpec {
    /// As a file has it; without the backends that are leaving.
    pub fn of(service: &model::Service) -> Self {
        let backends = service.backends.iter().filter(|backend| !backend.leaving);
        Self {
            name: service.name.clone(),
            vip: service.vip.to_string(),
            forwarding: Some(service.forwarding.name().to_owned()),
            affinity: unless(service.affinity, &Affinity::None, |a| a.name().to_owned()),
            slots: unless(service.slots, &DEFAULT_SLOTS, i64::from),
            drain_deadline: unless(service.drain_deadline, &super::desired::DRAIN_DEADLINE, time),
            min_available: unless(service.min_available, &1, i64::from),
            fail_open: unless(service.fail_open, &true, |open| open),
            idle_timeout: unless(service.idle, &IdleTimeouts::default(), |idle| {
                let default = IdleTimeouts::default();
                IdleTimeoutSpec {
                    embryonic: unless(idle.embryonic, &default.embryonic, time),
                    established: unless(idle.established, &default.established, time),
                    closing: unless(idle.closing, &default.closing, time),
                }
            }),
            health: unless(&service.health, &&HealthCheck::default(), HealthSpec::of),
            backend: backends.map(|backend| BackendSpec::of(service, backend)).collect(),
        }
    }
}

impl HealthSpec {
    fn of(health: &HealthCheck) -> Self {
        let default = HealthCheck::default();
        let (check, path) = match &health.kind {
            CheckKind::None => ("none", None),
            CheckKind::Tcp => ("tcp", None),
            CheckKind::Http { path } => ("http", Some(path.clone())),
        };
        Self {
            check: Some(check.to_owned()),
            path,
            interval: unless(health.interval, &default.interval, time),
            timeout: unless(health.timeout, &default.timeout, time),
            rise: unless(health.rise, &default.rise, |rise| rise),
            fall: unless(health.fall, &default.fall, |fall| fall),
        }
    }
}

impl BackendSpec {
    /// As a file has it.
    pub fn of(service: &model::Service, backend: &model::Backend) -> Self {
        Self {
            name: backend.name.clone(),
            address: backend.address.to_string(),
            port: unless(backend.port, &service.vip.port(), i64::from),
            weight: unless(backend.weight, &super::desired::WEIGHT, i64::from),
            backup: unless(backend.backup, &false, |backup| backup),
        }
    }
}
