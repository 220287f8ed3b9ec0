//! What monitoring reads, over TCP and without authentication: `/metrics`, `/livez`, `/readyz`, and
//! the status page with its `/status.json`.
//!
//! Nothing here changes anything, and no client's address is told.

mod page;

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    control::{Calls, Control, serve_connections},
    metrics,
};

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
    ask(&calls, |control| {
        let text = metrics::exposition(&control.figures());
        ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::control::sample::Sample;

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
    async fn metrics_are_text_for_prometheus() {
        let (address, _) = start().await;
        let (status, text) = get(address, "/metrics").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(text.starts_with("# HELP sluice_build_info "), "{text}");
    }
}
