//! The status page at `/`, and `/status.json`, which it reads. Both change nothing and tell no
//! client's address and no credentials of who changed something.
//!
//! The page is one file without anything from elsewhere. Its `Content-Security-Policy` allows its
//! own style and script, by their digests (CSP level 3, §2.3.1), and requests to this server;
//! nothing else, so that not even a backend's odd name can bring a script in.

use std::{net::IpAddr, sync::LazyLock, time::SystemTime};

use axum::{
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use lb_common::reason::Class;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::ask;
use crate::control::{
    Calls, Control,
    api::{self, Verdict},
};

/// The page.
const PAGE: &str = include_str!("page.html");
/// Events that are told at once, the latest.
const EVENTS: usize = 30;

/// `GET /`.
pub async fn page() -> Response {
    static HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
        let policy = format!(
            "default-src 'none'; connect-src 'self'; img-src data:; style-src {}; script-src {}; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            digest("style"),
            digest("script")
        );
        let mut headers = HeaderMap::new();
        // Base64 and these words are ASCII.
        if let Ok(policy) = HeaderValue::from_str(&policy) {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers
    });
    (HEADERS.clone(), Html(PAGE)).into_response()
}

/// The digest of the page's one element of this name, as a policy has it.
fn digest(element: &str) -> String {
    let inside = PAGE.split_once(&format!("<{element}>")).map_or("", |(_, after)| after);
    let inside = inside.split_once(&format!("</{element}>")).map_or("", |(inside, _)| inside);
    format!("'sha256-{}'", BASE64.encode(Sha256::digest(inside)))
}

/// Which events `GET /status.json` tells.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    /// Those with an id above this; none: the latest.
    after: Option<u64>,
}

/// `GET /status.json`.
pub async fn status(State(calls): State<Calls>, Query(after): Query<After>) -> Response {
    ask(&calls, move |control| {
        let overview = Overview::new(control, &after, SystemTime::now());
        match serde_json::to_vec(&overview) {
            Ok(json) => {
                let headers = [
                    (header::CONTENT_TYPE, "application/json"),
                    (header::CACHE_CONTROL, "no-store"),
                    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                ];
                (headers, json).into_response()
            }
            Err(error) => {
                tracing::error!("status.json: {error}");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    })
    .await
}

/// What the page shows. Fields may be added.
#[derive(Debug, Serialize)]
struct Overview {
    instance: String,
    version: String,
    /// By this host's clock, RFC 3339, UTC, and in milliseconds since 1970.
    now: String,
    at_ms: u64,
    since: String,
    /// `yes`, `in_part` or `no`.
    forwarding: &'static str,
    interfaces: Vec<api::Interface>,
    troubles: Vec<api::Trouble>,
    services: Vec<Service>,
    flows: api::FlowTable,
    /// Frames received, and those of them sent to a backend.
    received: u64,
    forwarded: u64,
    /// Reasons that have happened.
    reasons: Vec<api::ReasonCount>,
    /// That each interface's frames have one verdict each.
    sums: Vec<Sum>,
    events: Vec<Event>,
}

/// What became of an interface's frames.
#[derive(Debug, Serialize)]
struct Sum {
    interface: String,
    received: u64,
    forwarded: u64,
    passed: u64,
    dropped: u64,
    answered: u64,
    /// Less than 0: verdicts without a frame.
    unexplained: i64,
}

#[derive(Debug, Serialize)]
struct Service {
    name: String,
    vip: String,
    forwarding: String,
    new_flows: String,
    held: Option<String>,
    leaving: bool,
    backends: Vec<Backend>,
}

/// As [`api::Backend`].
#[derive(Debug, Serialize)]
struct Backend {
    name: String,
    address: IpAddr,
    weight: u16,
    backup: bool,
    admin: api::Admin,
    leaving: bool,
    takes_new_flows: bool,
    health: api::Health,
    stale: bool,
    suspect: bool,
    /// Why it takes no new flows, or takes them though it is not simply well.
    says: Option<String>,
    active_flows: u64,
    new_flows_total: u64,
    packets_total: u64,
    bytes_total: u64,
}

/// As [`api::Event`], without who asked for it.
#[derive(Debug, Serialize)]
struct Event {
    id: u64,
    at: String,
    kind: api::EventKind,
    service: Option<String>,
    backend: Option<String>,
    text: String,
}

impl Overview {
    fn new(control: &dyn Control, after: &After, now: SystemTime) -> Self {
        let status = control.status();
        let reasons = control.reasons();
        let filter = api::EventFilter {
            after: after.after,
            limit: Some(EVENTS),
            ..api::EventFilter::default()
        };
        let events = control.events(&filter).events.into_iter().map(Event::from).collect();
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            forwarding: match status.verdict() {
                Verdict::Yes => "yes",
                Verdict::InPart => "in_part",
                Verdict::No => "no",
            },
            instance: status.instance,
            version: status.version,
            now: humantime::format_rfc3339_seconds(now).to_string(),
            at_ms: since_1970.as_millis() as u64,
            since: status.since,
            interfaces: status.interfaces,
            troubles: status.troubles,
            services: status.services.into_iter().map(Service::from).collect(),
            flows: status.flows,
            received: reasons.received,
            forwarded: reasons.forwarded,
            sums: sums(&reasons),
            reasons: reasons.reasons.into_iter().filter(|reason| reason.count > 0).collect(),
            events,
        }
    }
}

fn sums(reasons: &api::Reasons) -> Vec<Sum> {
    let names = reasons.interfaces.iter().map(|interface| interface.name.clone());
    let sum = |interface: String| {
        let own = reasons.of_interface(&interface).ok()?;
        Some(Sum {
            received: own.received,
            forwarded: own.forwarded,
            passed: own.of_class(Class::Pass),
            dropped: own.of_class(Class::Drop),
            answered: own.of_class(Class::Answer),
            unexplained: own.unexplained,
            interface,
        })
    };
    names.filter_map(sum).collect()
}

impl From<api::Service> for Service {
    fn from(service: api::Service) -> Self {
        Self {
            name: service.name,
            vip: service.vip,
            forwarding: service.forwarding,
            new_flows: service.new_flows,
            held: service.held,
            leaving: service.leaving,
            backends: service.backends.into_iter().map(Backend::from).collect(),
        }
    }
}

impl From<api::Backend> for Backend {
    fn from(backend: api::Backend) -> Self {
        let words = [backend.health.name(), backend.admin.name()];
        let is_said = words.contains(&&*backend.why) || backend.why.is_empty();
        Self {
            name: backend.name,
            address: backend.address,
            weight: backend.weight,
            backup: backend.backup,
            admin: backend.admin,
            leaving: backend.leaving,
            takes_new_flows: backend.takes_new_flows,
            health: backend.health,
            stale: backend.stale,
            suspect: backend.suspect,
            says: (!is_said).then_some(backend.why),
            active_flows: backend.active_flows,
            new_flows_total: backend.new_flows_total,
            packets_total: backend.packets_total,
            bytes_total: backend.bytes_total,
        }
    }
}

impl From<api::Event> for Event {
    fn from(event: api::Event) -> Self {
        let api::Event { id, at, kind, service, backend, text, .. } = event;
        Self { id, at, kind, service, backend, text }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::control::sample::Sample;

    fn told(after: Option<u64>) -> Value {
        let now = humantime::parse_rfc3339("2026-05-01T07:54:15Z").expect("a time");
        let overview = Overview::new(&Sample::ready(), &After { after }, now);
        serde_json::to_value(&overview).expect("JSON")
    }

    #[tokio::test]
    async fn the_page_allows_itself_and_nothing_else() {
        let response = page().await;
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().expect("text");
        assert!(policy.starts_with("default-src 'none'; connect-src 'self'; "), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        for element in ["style", "script"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1);
            assert!(policy.contains(&digest(element)), "{policy}");
            // Of an empty text, as if the element had not been found.
            assert_ne!(digest(element), "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='");
        }
        // Attributes with code or style would be refused.
        for forbidden in [" style=", " onclick=", " onload=", "innerHTML", "http://", "https://"] {
            let allowed = PAGE.matches("http://www.w3.org/2000/svg").count();
            let found = PAGE.matches(forbidden).count();
            let expected = if forbidden == "http://" { allowed } else { 0 };
            assert_eq!(found, expected, "{forbidden}");
        }
    }

    #[test]
    fn the_json_tells_the_status_and_nobodys_address_or_name() {
        let told = told(None);
        assert_eq!(told["forwarding"], "yes");
        assert_eq!(told["now"], "2026-05-01T07:54:15Z");
        assert_eq!(told["at_ms"], 1_777_622_055_000_u64);
        assert_eq!(told["services"][1]["backends"][1]["says"], "no answer to SYN within 1s");
        assert_eq!(told["services"][1]["backends"][0]["says"], Value::Null);
        assert_eq!(told["troubles"][0]["severity"], "fault");
        assert_eq!(told["reasons"].as_array().map(Vec::len), Some(4));
        let sum = &told["sums"][1];
        assert_eq!((&sum["interface"], &sum["received"]), (&"eth1".into(), &10_073.into()));
        assert_eq!((&sum["passed"], &sum["answered"]), (&68.into(), &6.into()));
        assert_eq!(told["events"][0]["text"], "enabled -> draining");
        let text = told.to_string();
        for secret in ["198.51.100.", "\"uid\"", "\"pid\"", "sluice.toml", "02:00:00"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }

    #[test]
    fn those_who_ask_again_are_told_later_events_alone() {
        let id = told(None)["events"][0]["id"].as_u64();
        let later = told(id);
        assert_eq!(later["events"].as_array().map(Vec::len), Some(1), "{later}");
    }
}
