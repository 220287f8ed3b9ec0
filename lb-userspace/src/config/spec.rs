//! A service or backend as a file, a command or the saved state writes it: every field as text
//! or number, those that have their default left out.
//!
//! What comes from a command is checked by the same code as a file's ([`super::service`],
//! [`super::backend`]).

use std::{collections::BTreeMap, time::Duration};

use humantime::format_duration;
use lb_common::{forward::Forwarding, maglev::DEFAULT_SLOTS, service::Affinity};
use serde::{Deserialize, Serialize};

use crate::model::{
    self, CheckKind, ClientAddress, GrpcCheck, HealthCheck, HttpCheck, IcmpEcho, IdleTimeouts,
    Method, Outlier, TlsCheck, Via,
};

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
    pub nat: Option<NatSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nat_addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_echo: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss_clamp: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_deadline: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_available: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_open: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_unreachable: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<IdleTimeoutSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend: Vec<BackendSpec>,
}

/// The table `nat` of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of sluice.example.toml")]
pub struct NatSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<String>,
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
    pub via: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
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
            nat: (service.client_address == ClientAddress::Kept).then(|| NatSpec {
                client_address: Some(service.client_address.name().to_owned()),
            }),
            nat_addresses: service.client_address.named().iter().map(ToString::to_string).collect(),
            affinity: unless(service.affinity, &Affinity::None, |a| a.name().to_owned()),
            icmp_echo: unless(service.icmp_echo, &IcmpEcho::Always, |e| e.name().to_owned()),
            mss_clamp: service.mss_clamp.map(i64::from),
            slots: unless(service.slots, &DEFAULT_SLOTS, i64::from),
            drain_deadline: unless(service.drain_deadline, &super::desired::DRAIN_DEADLINE, time),
            min_available: unless(service.min_available, &1, i64::from),
            fail_open: unless(service.fail_open, &true, |open| open),
            idle_timeout: unless(service.idle, &IdleTimeouts::of(service.forwarding), |idle| {
                let default = IdleTimeouts::of(service.forwarding);
                IdleTimeoutSpec {
                    embryonic: unless(idle.embryonic, &default.embryonic, time),
                    established: unless(idle.established, &default.established, time),
                    closing: unless(idle.closing, &default.closing, time),
                }
            }),
            reset_unreachable: unless(service.reset_unreachable, &true, |reset| reset),
            panic_threshold: unless(
                service.panic_threshold,
                &super::desired::PANIC_THRESHOLD,
                |share| share,
            ),
            slow_start: unless(service.slow_start, &Duration::ZERO, time),
            outlier: unless(service.outlier, &Outlier::default(), |o| o.name().to_owned()),
            health: match &service.health {
                None => Some(HealthSpec::none()),
                Some(health) => {
                    let default = default_check(service.forwarding);
                    unless(health, &&default, |health| HealthSpec::of(health, &default))
                }
            },
            backend: backends.map(|backend| BackendSpec::of(service, backend)).collect(),
        }
    }
}

/// What is checked when nothing is said of it.
pub(super) fn default_check(forwarding: Forwarding) -> HealthCheck {
    HealthCheck { via: Via::of(forwarding), ..HealthCheck::default() }
}

impl HealthSpec {
    fn none() -> Self {
        Self { check: Some("none".to_owned()), ..Self::default() }
    }

    fn of(health: &HealthCheck, default: &HealthCheck) -> Self {
        let common = Self {
            check: Some(health.kind.name().to_owned()),
            via: unless(health.via, &default.via, |via| via.name().to_owned()),
            port: health.port,
            interval: unless(health.interval, &default.interval, time),
            timeout: unless(health.timeout, &default.timeout, time),
            rise: unless(health.rise, &default.rise, |rise| rise),
            fall: unless(health.fall, &default.fall, |fall| fall),
            ..Self::default()
        };
        match &health.kind {
            CheckKind::Tcp => common,
            CheckKind::Http(check) => common.http(check),
            CheckKind::Grpc(check) => common.grpc(check),
        }
    }

    fn http(self, check: &HttpCheck) -> Self {
        let default = HttpCheck::default();
        let spec = Self {
            method: unless(check.method, &Method::Get, |method| method.name().to_owned()),
            path: unless(&check.path, &&default.path, String::clone),
            host: check.host.clone(),
            headers: unless(&check.headers, &&default.headers, |headers| {
                headers.iter().cloned().collect()
            }),
            status: unless(&check.status, &&default.status, |ranges| {
                ranges.iter().map(ToString::to_string).collect()
            }),
            body: check.body.clone(),
            ..self
        };
        spec.tls(check.tls.as_ref())
    }

    fn grpc(self, check: &GrpcCheck) -> Self {
        let spec = Self {
            service: unless(&check.service, &&String::new(), String::clone),
            host: check.host.clone(),
            tls: check.tls.as_ref().map(|_| true),
            ..self
        };
        spec.tls(check.tls.as_ref())
    }

    fn tls(self, check: Option<&TlsCheck>) -> Self {
        let Some(check) = check else { return self };
        Self {
            server_name: check.server_name.clone(),
            verify: unless(check.verify, &true, |verify| verify),
            // A config file is text, and so was the path.
            ca_file: check.ca_file.as_ref().map(|path| path.to_string_lossy().into_owned()),
            ..self
        }
    }
}

impl BackendSpec {
    /// As a file has it.
    pub fn of(service: &model::Service, backend: &model::Backend) -> Self {
        Self {
            name: backend.name.clone(),
            address: backend.address.to_string(),
            port: service.vip.port().and_then(|port| unless(backend.port, &port, i64::from)),
            weight: unless(backend.weight, &super::desired::WEIGHT, i64::from),
            backup: unless(backend.backup, &false, |backup| backup),
        }
    }
}
