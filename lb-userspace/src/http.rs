//! What monitoring reads, over TCP and without authentication: `/metrics`, `/livez`, `/readyz`, and
//! the status page with its `/status.json`.
//!
//! Nothing here changes anything, and no client's address is told.

mod handshakes;
mod health;
mod page;

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use lb_common::{counters::Event, reason::Class};
use prometheus::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};
use tokio::net::TcpListener;

use crate::control::{Calls, Control, api, serve_connections};

/// Why monitoring can't be served. Forwarding and the control socket don't need it.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} for /metrics: choose another `[http] listen`, or \"off\"")]
pub struct Error {
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    pub source: io::Error,
}

/// Takes the port.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error { address, source })
}

/// Answers until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    control: Arc<dyn Control>,
    shutdown: impl Future<Output = ()>,
) {
    let pages = pages(control);
    serve_connections(listener, |_| pages.clone(), shutdown).await;
}

fn pages(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/status.json", get(page::status))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Calls::new(control))
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(calls): State<Calls>) -> Response {
    ask(&calls, |control| {
        let status = control.status();
        if status.ready {
            return "ok\n".into_response();
        }
        let mut text = "not forwarding\n".to_owned();
        for problem in &status.problems {
            text.push_str(problem);
            text.push('\n');
        }
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    })
    .await
}

async fn metrics(State(calls): State<Calls>) -> Response {
    ask(&calls, |control| match exposition(&control.status(), &control.reasons()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!("metrics: {error}");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    })
    .await
}

/// An answer made off the event loop.
async fn ask(
    calls: &Calls,
    call: impl FnOnce(&dyn Control) -> Response + Send + 'static,
) -> Response {
    calls.call(call).await.unwrap_or_else(|panicked| {
        tracing::error!("HTTP request failed: {panicked}");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
}

/// All metrics in Prometheus' text format.
fn exposition(status: &api::Status, reasons: &api::Reasons) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    register(&registry, build_info(status)?)?;
    register(
        &registry,
        gauge("sluice_ready", "1 if attached and forwarding, else 0.", u64::from(status.ready))?,
    )?;
    register(
        &registry,
        gauge(
            "sluice_problems",
            "Things that are wrong; `sluice status` names them.",
            status.problems.len() as u64,
        )?,
    )?;
    register(&registry, interfaces(status)?)?;
    register(
        &registry,
        gauge(
            "sluice_flow_capacity",
            "Flows that the flow table can hold.",
            status.flows.capacity,
        )?,
    )?;
    register(
        &registry,
        gauge(
            "sluice_config_generation",
            "Counts the changes of what is wanted; kept over restarts.",
            status.generation,
        )?,
    )?;
    let help = "Writes that mended what somebody else had changed in the maps.";
    let repairs = IntCounter::new("sluice_drift_repairs_total", help)?;
    repairs.inc_by(status.drift_repairs_total);
    register(&registry, repairs)?;
    register(&registry, flows(status)?)?;
    register(&registry, active_flows(status)?)?;
    register(&registry, takes_new_flows(status)?)?;
    register(&registry, admin_states(status)?)?;
    health::register_all(&registry, status)?;
    for (name, help, count) in backend_counters() {
        let counter = IntCounterVec::new(Opts::new(name, help), &["service", "backend"])?;
        for (service, backend) in backends(status) {
            counter.with_label_values(&[&service.name, &backend.name]).inc_by(count(backend));
        }
        register(&registry, counter)?;
    }
    register(&registry, frames(reasons)?)?;
    let mut families = registry.gather();
    families.extend(handshakes::family(status));
    TextEncoder::new().encode_to_string(&families)
}

type Count = Box<dyn Fn(&api::Backend) -> u64>;

/// What is counted per backend: its traffic and each [`Event`].
fn backend_counters() -> Vec<(String, String, Count)> {
    let mut counters: Vec<(String, String, Count)> = vec![
        (
            "sluice_backend_packets_total".to_owned(),
            "Frames forwarded to this backend.".to_owned(),
            Box::new(|backend| backend.packets_total),
        ),
        (
            "sluice_backend_bytes_total".to_owned(),
            "Bytes of these frames as received, Ethernet header included.".to_owned(),
            Box::new(|backend| backend.bytes_total),
        ),
    ];
    for event in Event::ALL {
        counters.push((
            format!("sluice_backend_{}_total", event.name()),
            event.help().to_owned(),
            Box::new(move |backend| backend.total(event)),
        ));
    }
    counters
}

fn backends(status: &api::Status) -> impl Iterator<Item = (&api::Service, &api::Backend)> {
    status.services.iter().flat_map(|service| service.backends.iter().map(move |b| (service, b)))
}

fn build_info(status: &api::Status) -> Result<IntGaugeVec, prometheus::Error> {
    let help = "1; the label is the daemon's version.";
    let info = IntGaugeVec::new(Opts::new("sluice_build_info", help), &["version"])?;
    info.with_label_values(&[&status.version]).set(1);
    Ok(info)
}

fn interfaces(status: &api::Status) -> Result<IntGaugeVec, prometheus::Error> {
    let help = "1 if the program is on this interface, else 0.";
    let attached = IntGaugeVec::new(Opts::new("sluice_interface_attached", help), &["interface"])?;
    for interface in &status.interfaces {
        attached.with_label_values(&[&interface.name]).set(interface.attached.into());
    }
    Ok(attached)
}

fn flows(status: &api::Status) -> Result<IntGaugeVec, prometheus::Error> {
    let flows = IntGaugeVec::new(Opts::new("sluice_flows", "Flows in the table."), &["state"])?;
    for (state, count) in &status.flows.by_state {
        flows.with_label_values(&[state]).set(saturated(*count));
    }
    Ok(flows)
}

fn active_flows(status: &api::Status) -> Result<IntGaugeVec, prometheus::Error> {
    let help = "Flows that this backend has now.";
    let opts = Opts::new("sluice_backend_active_flows", help);
    let active = IntGaugeVec::new(opts, &["service", "backend"])?;
    for (service, backend) in backends(status) {
        let labels = [&service.name, &backend.name];
        active.with_label_values(&labels).set(saturated(backend.active_flows));
    }
    Ok(active)
}

fn takes_new_flows(status: &api::Status) -> Result<IntGaugeVec, prometheus::Error> {
    let help = "1 if new flows may choose this backend, else 0.";
    let opts = Opts::new("sluice_backend_eligible", help);
    let takes = IntGaugeVec::new(opts, &["service", "backend"])?;
    for (service, backend) in backends(status) {
        let labels = [&service.name, &backend.name];
        takes.with_label_values(&labels).set(backend.takes_new_flows.into());
    }
    Ok(takes)
}

fn admin_states(status: &api::Status) -> Result<IntGaugeVec, prometheus::Error> {
    let names = api::Admin::ALL.map(api::Admin::name).join(", ");
    let help = format!("1; the label is what the operator wants of this backend: {names}.");
    let opts = Opts::new("sluice_backend_admin_state", help);
    let states = IntGaugeVec::new(opts, &["service", "backend", "state"])?;
    for (service, backend) in backends(status) {
        let labels = [&*service.name, &*backend.name, backend.admin.name()];
        states.with_label_values(&labels).set(1);
    }
    Ok(states)
}

/// Each frame once: the sum over all labels is what was received.
fn frames(reasons: &api::Reasons) -> Result<IntCounterVec, prometheus::Error> {
    let classes = [Class::Pass, Class::Drop, Class::Answer].map(Class::name).join(", ");
    let help = format!("Frames by what became of them (forward, {classes}) and why.");
    let frames =
        IntCounterVec::new(Opts::new("sluice_frames_total", help), &["verdict", "reason"])?;
    frames.with_label_values(&["forward", "forwarded"]).inc_by(reasons.forwarded);
    for reason in &reasons.reasons {
        frames.with_label_values(&[&reason.class, &reason.name]).inc_by(reason.count);
    }
    Ok(frames)
}

fn gauge(name: &str, help: &str, value: u64) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    gauge.set(saturated(value));
    Ok(gauge)
}

fn saturated(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn register(
    registry: &Registry,
    metric: impl Collector + 'static,
) -> Result<(), prometheus::Error> {
    registry.register(Box::new(metric))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::control::sample::{self, Sample};

    async fn start() -> (SocketAddr, Arc<Sample>) {
        let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let sample = Arc::new(Sample::ready());
        let control: Arc<dyn Control> = sample.clone();
        tokio::spawn(serve(listener, control, std::future::pending()));
        (address, sample)
    }

    /// Status line and body.
    async fn get(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("a write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn readiness_is_forwarding_and_liveness_is_not() {
        let (address, sample) = start().await;
        assert_eq!(get(address, "/readyz").await, ("HTTP/1.1 200 OK".into(), "ok\n".into()));
        sample.ready.store(false, Ordering::Relaxed);
        let (status, body) = get(address, "/readyz").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(
            body,
            "not forwarding\nbackend web/web-2: 10.0.0.12 does not answer ARP on eth0\n"
        );
        assert_eq!(get(address, "/livez").await, ("HTTP/1.1 200 OK".into(), "ok\n".into()));
        assert!(get(address, "/").await.1.starts_with("<!doctype html>"));
        assert!(get(address, "/status.json").await.1.starts_with("{\"instance\":\"default\""));
        assert_eq!(get(address, "/nope").await.0, "HTTP/1.1 404 Not Found");
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_with_a_way_out() {
        let (address, _) = start().await;
        let error = anyhow::Error::from(bind(address).await.expect_err("the port is taken"));
        assert_eq!(
            format!("{error:#}"),
            format!(
                "listen on {address} for /metrics: choose another `[http] listen`, or \"off\": \
                 Address already in use (os error 98)"
            )
        );
    }

    #[tokio::test]
    async fn metrics_tell_what_status_and_reasons_tell() {
        let (address, _) = start().await;
        let (status, text) = get(address, "/metrics").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        let expected = [
            "sluice_build_info{version=\"0.1.0\"} 1",
            "sluice_ready 1",
            "sluice_problems 1",
            "sluice_interface_attached{interface=\"eth0\"} 1",
            "sluice_flow_capacity 1048576",
            "sluice_flows{state=\"old\"} 1131",
            "sluice_backend_active_flows{backend=\"web-1\",service=\"web\"} 12",
            "sluice_backend_eligible{backend=\"web-1\",service=\"web\"} 1",
            "sluice_backend_admin_state{backend=\"web-1\",service=\"web\",state=\"enabled\"} 1",
            "sluice_config_generation 7",
            "sluice_drift_repairs_total 0",
            "sluice_backend_packets_total{backend=\"web-1\",service=\"web\"} 99999",
            "sluice_backend_bytes_total{backend=\"web-1\",service=\"web\"} 12345678",
            "sluice_backend_new_flows_total{backend=\"web-1\",service=\"web\"} 3456",
            "sluice_backend_adopted_flows_total{backend=\"api-1\",service=\"api\"} 0",
            "sluice_backend_untracked_flows_total{backend=\"api-1\",service=\"api\"} 0",
            "sluice_backend_syn_retransmissions_total{backend=\"web-2\",service=\"web\"} 0",
            "sluice_backend_reset_flows_total{backend=\"web-2\",service=\"web\"} 7",
            "sluice_backend_handshakes_total{backend=\"web-1\",service=\"web\"} 3",
            "sluice_backend_client_resets_total{backend=\"web-1\",service=\"web\"} 1",
            "sluice_backend_second_tries_total{backend=\"web-1\",service=\"web\"} 2",
            "sluice_backend_health_state{backend=\"web-2\",service=\"web\",state=\"unreachable\"} 1",
            "sluice_backend_probes_total{backend=\"web-1\",result=\"well\",service=\"web\"} 400",
            "sluice_backend_probes_total{backend=\"web-2\",result=\"failed\",service=\"web\"} 5",
            "sluice_backend_probes_total{backend=\"web-2\",result=\"not_made\",service=\"web\"} 1",
            "sluice_backend_probe_age_seconds{backend=\"web-2\",service=\"web\"} 1.5",
            "sluice_backend_probe_duration_seconds{backend=\"web-1\",service=\"web\"} 0.00125",
            "sluice_backend_suspect{backend=\"web-1\",service=\"web\"} 0",
            "sluice_backend_suspect{backend=\"web-2\",service=\"web\"} 1",
            "sluice_backend_outlier{backend=\"web-2\",service=\"web\"} 0",
            "sluice_service_held{service=\"web\"} 0",
            "sluice_probes_late_total 2",
            "sluice_probes_running 1",
            "sluice_frames_total{reason=\"forwarded\",verdict=\"forward\"} 99999",
            "sluice_frames_total{reason=\"no_backend\",verdict=\"answer\"} 56",
        ];
        for line in expected {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
        let frames: u64 = text
            .lines()
            .filter(|line| line.starts_with("sluice_frames_total{"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum();
        assert_eq!(frames, sample::reasons().received);
    }

    #[test]
    fn a_backend_has_one_state_and_none_of_its_probes_is_made_up() {
        let mut status = sample::status();
        let web = &mut status.services[1];
        web.held = Some("2 of 2 backends fail at once, so the fault may be ours".to_owned());
        web.backends[0].last_probe = None;
        web.backends[0].outlier = true;
        let text = exposition(&status, &sample::reasons()).expect("metrics");
        let of = |metric: &str| text.lines().filter(|line| line.starts_with(metric)).count();
        assert_eq!(of("sluice_backend_health_state{"), 3, "{text}");
        assert_eq!(of("sluice_backend_probes_total{"), 3 * 3, "{text}");
        assert_eq!(of("sluice_backend_probe_age_seconds{"), 2, "{text}");
        assert_eq!(of("sluice_backend_probe_duration_seconds{"), 2, "{text}");
        for line in [
            "sluice_service_held{service=\"web\"} 1",
            "sluice_backend_outlier{backend=\"web-1\",service=\"web\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn handshake_times_are_a_histogram() {
        let text = exposition(&sample::status(), &sample::reasons()).expect("metrics");
        assert!(text.contains("# TYPE sluice_backend_handshake_seconds histogram\n"), "{text}");
        let of_web_1: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("sluice_backend_handshake_seconds_"))
            .filter(|line| line.contains("backend=\"web-1\",service=\"web\""))
            .collect();
        assert_eq!(of_web_1.len(), 15 + 1 + 2, "{of_web_1:?}");
        for line in [
            "bucket{backend=\"web-1\",service=\"web\",le=\"0.004\"} 1",
            "bucket{backend=\"web-1\",service=\"web\",le=\"0.008\"} 2",
            "bucket{backend=\"web-1\",service=\"web\",le=\"0.016\"} 3",
            "bucket{backend=\"web-1\",service=\"web\",le=\"65.536\"} 3",
            "bucket{backend=\"web-1\",service=\"web\",le=\"+Inf\"} 3",
            "sum{backend=\"web-1\",service=\"web\"} 0.016",
            "count{backend=\"web-1\",service=\"web\"} 3",
        ] {
            assert!(of_web_1.contains(&line), "no {line} in {of_web_1:?}");
        }
        let nobody = api::Status { services: Vec::new(), ..sample::status() };
        assert!(exposition(&nobody, &sample::reasons()).is_ok());
    }

    /// What `promtool check metrics` asks for.
    #[test]
    fn names_follow_the_conventions() {
        let text = exposition(&sample::status(), &sample::reasons()).expect("metrics");
        let mut kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        assert!(kinds.clone().count() > 10);
        assert!(kinds.all(|line| {
            let (name, kind) = line.split_once(' ').unwrap_or_default();
            name.starts_with("sluice_") && (kind == "counter") == name.ends_with("_total")
        }));
        let sentences = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
        assert!(sentences.clone().all(|line| line.ends_with('.')), "{text}");
        assert!(!text.contains("198.51.100."), "no client's address");
    }
}
