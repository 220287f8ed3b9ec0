//! Servers that health checks ask, each of them well or ill at the test's word: HTTP, HTTPS with
//! a private certificate authority, and gRPC's health service with TLS and without.

use std::{
    convert::Infallible,
    fs,
    future::ready,
    io,
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime, spawn,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::Host;

/// A running server; dropping it cuts its connections.
#[derive(Debug)]
pub struct HealthServer {
    state: Arc<State>,
    authority: Option<PathBuf>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    role: String,
    is_well: AtomicBool,
    requests: AtomicU64,
}

/// What is spoken.
#[derive(Clone)]
enum Speech {
    Http,
    Https(TlsAcceptor),
    Grpc(Option<TlsAcceptor>),
}

/// Bytes of the health service's answers: `HealthCheckResponse.status`, field 1, is `SERVING` (1)
/// or `NOT_SERVING` (2), after gRPC's prefix: not compressed, two bytes long.
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 0x08, 1];
const NOT_SERVING: [u8; 7] = [0, 0, 0, 0, 2, 0x08, 2];

impl HealthServer {
    /// Every address of a machine, both families.
    pub fn everywhere(port: u16) -> SocketAddr {
        (Ipv6Addr::UNSPECIFIED, port).into()
    }

    /// HTTP/1.1: any path answers 200 with the host's role, or 503.
    pub fn http(host: &Host, at: SocketAddr) -> Result<Self> {
        Self::start(host, at, Speech::Http, None)
    }

    /// The same over TLS. The certificate is for `name` and signed by an authority made for the
    /// occasion: [`Self::authority`].
    pub fn https(host: &Host, at: SocketAddr, name: &str) -> Result<Self> {
        let file = host.directory("authority")?.join("ca.pem");
        let acceptor = certify(name, None, &file).context("make a certificate")?;
        Self::start(host, at, Speech::Https(acceptor), Some(file))
    }

    /// gRPC without TLS: any method answers `SERVING`, or `NOT_SERVING`.
    pub fn grpc(host: &Host, at: SocketAddr) -> Result<Self> {
        Self::start(host, at, Speech::Grpc(None), None)
    }

    /// The same over TLS, certified as [`Self::https`] is.
    pub fn grpc_in_tls(host: &Host, at: SocketAddr, name: &str) -> Result<Self> {
        let file = host.directory("authority")?.join("ca.pem");
        let acceptor = certify(name, Some(b"h2"), &file).context("make a certificate")?;
        Self::start(host, at, Speech::Grpc(Some(acceptor)), Some(file))
    }

    /// From now on it answers that it is well, or that it is not.
    pub fn set_well(&self, is_well: bool) {
        self.state.is_well.store(is_well, Ordering::Relaxed);
    }

    /// Requests it has answered.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// The certificate (PEM) of who signed the server's, with [`Self::https`].
    pub fn authority(&self) -> Option<&Path> {
        self.authority.as_deref()
    }

    fn start(
        host: &Host,
        at: SocketAddr,
        speech: Speech,
        authority: Option<PathBuf>,
    ) -> Result<Self> {
        let (stop, mut stopped) = watch::channel(false);
        let state = Arc::new(State {
            role: host.role().to_owned(),
            is_well: AtomicBool::new(true),
            requests: AtomicU64::new(0),
        });
        let listener = host
            .enter(|| std::net::TcpListener::bind(at))
            .with_context(|| format!("listen on {at} of {}", host.role()))?;
        let inside = state.clone();
        let serve = async move {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (stream, _) = tokio::select! {
                    accepted = listener.accept() => accepted?,
                    // An error: who would tell us to stop is gone.
                    _ = stopped.wait_for(|stop| *stop) => return Ok(()),
                };
                // What breaks is told by who asks.
                spawn(converse(stream, speech.clone(), inside.clone()));
            }
        };
        let thread = host.namespace().clone().spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let ended: io::Result<()> = runtime.and_then(|runtime| runtime.block_on(serve));
            if let Err(error) = ended {
                eprintln!("a health server has stopped: {error}");
            }
        });
        let thread = Some(thread.context("start the health server's thread")?);
        Ok(Self { state, authority, stop, thread })
    }
}

impl Drop for HealthServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn converse(stream: TcpStream, speech: Speech, state: Arc<State>) {
    match speech {
        Speech::Http => answer_http(stream, &state).await,
        Speech::Https(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                answer_http(stream, &state).await;
            }
        }
        Speech::Grpc(None) => answer_grpc(stream, &state).await,
        Speech::Grpc(Some(acceptor)) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                answer_grpc(stream, &state).await;
            }
        }
    }
}

async fn answer_http(stream: impl AsyncRead + AsyncWrite + Unpin, state: &State) {
    let service = service_fn(|_: Request<Incoming>| ready(state.http()));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer_grpc(stream: impl AsyncRead + AsyncWrite + Unpin, state: &State) {
    let service = service_fn(|_: Request<Incoming>| ready(state.grpc()));
    let server = http2::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

impl State {
    fn http(&self) -> Result<Response<Full<Bytes>>, Infallible> {
        let mut response = Response::new(Full::from(format!("{}\n", self.role)));
        if let Ok(role) = HeaderValue::from_str(&self.role) {
            response.headers_mut().insert("x-backend", role);
        }
        if !self.count() {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(response)
    }

    fn grpc(&self) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
        let message = if self.count() { SERVING } else { NOT_SERVING };
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = Full::from(Bytes::copy_from_slice(&message));
        let body = body.with_trailers(ready(Some(Ok(trailers))));
        let mut response = Response::new(BoxBody::new(body));
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }

    /// One more request; tells whether the answer is that all is well.
    fn count(&self) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.is_well.load(Ordering::Relaxed)
    }
}

/// A certificate for `name`, with that of its signer in `file`; `protocol` is what the server
/// agrees to speak (ALPN).
fn certify(name: &str, protocol: Option<&[u8]>, file: &Path) -> Result<TlsAcceptor> {
    let mut authority = CertificateParams::default();
    // Without a name of its own, OpenSSL would take the server's certificate for its signer's.
    authority.distinguished_name.push(DnType::CommonName, "laboratory");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    fs::write(file, authority.pem())?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &authority)?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], key)?;
    config.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}
