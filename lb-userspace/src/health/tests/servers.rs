//! Servers to be probed, well and ill, each on a port of its own until it is dropped.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future;
use h2::server::SendResponse;
use http_body_util::{BodyExt as _, Full, channel::Channel, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::{
    ServerConfig, crypto,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// A server that runs.
pub struct Server {
    pub address: SocketAddr,
    task: JoinSet<()>,
}

impl Server {
    /// Its port is free then.
    pub async fn stop(mut self) {
        self.task.shutdown().await;
    }
}

/// Serves each connection by `serve`.
async fn serve<F>(address: &str, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(address).await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(connections.spawn(serve(stream))),
                // The probe was faster with its RST.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    Server { address, task }
}

/// Of HTTP, which knows the paths that [`answer`] does.
pub async fn http() -> Server {
    http_at("127.0.0.1:0").await
}

pub async fn http_at(address: &str) -> Server {
    serve(address, speak_http).await
}

async fn speak_http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) {
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
    // Probes reset their connections.
    let _ = served.await;
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let text = |status, text: Vec<u8>| {
        let mut response = Response::new(Full::from(text).boxed());
        *response.status_mut() = status;
        response
    };
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    Ok(match request.uri().path() {
        "/" | "/healthz" => text(StatusCode::OK, b"all is well".to_vec()),
        "/ill" => text(StatusCode::SERVICE_UNAVAILABLE, b"ill".to_vec()),
        "/long" => {
            let mut body = b"begin".to_vec();
            body.resize(5 + 65_530, b'.');
            body.extend_from_slice(b"end");
            text(StatusCode::OK, body)
        }
        "/never" => future::pending().await,
        "/endless" => {
            let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
            let _ = sender.send_data(Bytes::from_static(b"begin")).await;
            tokio::spawn(async move {
                let _sender = sender;
                future::pending::<()>().await;
            });
            Response::new(body.boxed())
        }
        "/asked" => {
            let wanted = request.uri().query().unwrap_or_default().split('&');
            let mut wanted = wanted.filter_map(|pair| pair.split_once('='));
            let all = wanted.all(|(name, value)| header(name) == Some(value));
            text(if all { StatusCode::OK } else { StatusCode::BAD_REQUEST }, Vec::new())
        }
        "/padded" => {
            let is_padded = padding(request.headers()) >= 1000;
            text(if is_padded { StatusCode::OK } else { StatusCode::BAD_REQUEST }, Vec::new())
        }
        _ => text(StatusCode::NOT_FOUND, Vec::new()),
    })
}

fn padding(headers: &HeaderMap) -> usize {
    headers.get_all("sluice-padding").iter().map(hyper::header::HeaderValue::len).sum()
}

/// Nobody: a port that was free a moment ago.
pub async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("it is bound")
}

/// Whose queue is full: further SYNs are dropped.
pub async fn full() -> Server {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let listener = socket.listen(0).expect("it listens");
    let address = listener.local_addr().expect("it is bound");
    let mut waiting = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
    {
        waiting.push(connected.expect("it is taken, or not"));
    }
    let mut task = JoinSet::new();
    task.spawn(async move {
        let _held = (listener, waiting);
        future::pending::<()>().await;
    });
    Server { address, task }
}

/// Accepts, reads and says nothing.
pub async fn silent() -> Server {
    serve("127.0.0.1:0", |mut stream| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await
}

/// Resets when something comes.
pub async fn resetting() -> Server {
    serve("127.0.0.1:0", |mut stream| async move {
        let _ = stream.read_u8().await;
        let reset = libc::linger { l_onoff: 1, l_linger: 0 };
        let linger = nix::sys::socket::sockopt::Linger;
        nix::sys::socket::setsockopt(&stream, linger, &reset).expect("SO_LINGER");
    })
    .await
}

/// Closes when all has come.
pub async fn closing() -> Server {
    serve("127.0.0.1:0", |mut stream| async move {
        let mut taken = [0; 4096];
        let _ = stream.read(&mut taken).await;
    })
    .await
}

/// Answers something else.
pub async fn babbling() -> Server {
    serve("127.0.0.1:0", |mut stream| async move {
        let _ = stream.read_u8().await;
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await
}

/// Somebody who signs certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("a file");
        Self { issuer, directory }
    }

    /// Its certificate, until it is dropped.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn acceptor(&self, names: &[&str], protocol: Option<&[u8]>, expired: bool) -> TlsAcceptor {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        if expired {
            params.not_after = date_time_ymd(2020, 1, 1);
            params.not_before = date_time_ymd(2019, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a certificate of this key");
        config.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

pub async fn https(authority: &Authority, names: &[&str]) -> Server {
    tls(authority.acceptor(names, None, false)).await
}

pub async fn https_expired(authority: &Authority, names: &[&str]) -> Server {
    tls(authority.acceptor(names, None, true)).await
}

async fn tls(acceptor: TlsAcceptor) -> Server {
    serve("127.0.0.1:0", move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                speak_http(stream).await;
            }
        }
    })
    .await
}

/// A gRPC health server, plain or in TLS; what it says depends on the service it is asked after.
pub async fn grpc(secret: Option<(&Authority, &[&str])>) -> Server {
    let acceptor = secret.map(|(authority, names)| authority.acceptor(names, Some(b"h2"), false));
    serve("127.0.0.1:0", move |stream| {
        let acceptor = acceptor.clone();
        async move {
            match acceptor {
                None => speak_grpc(stream).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        speak_grpc(stream).await;
                    }
                }
            }
        }
    })
    .await
}

async fn speak_grpc<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut calls = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        calls.spawn(call(request, respond));
    }
}

async fn call(mut request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["te"], "trailers");
    let mut question = Vec::new();
    while let Some(Ok(data)) = request.body_mut().data().await {
        question.extend_from_slice(&data);
    }
    // Five bytes of gRPC, two of protobuf, if there is a service.
    let service = String::from_utf8_lossy(question.get(7..).unwrap_or_default()).into_owned();
    let serving = match &*service {
        "never" => return future::pending().await,
        "unheard-of" | "unimplemented" => {
            let code = if service == "unheard-of" { "5" } else { "12" };
            let response = Response::builder().header("grpc-status", code);
            let _ = respond.send_response(response.body(()).expect("a response"), true);
            return;
        }
        "ill" => 2,
        "padded" if padding(request.headers()) < 1000 => 2,
        _ => 1,
    };
    let response = Response::builder().header("content-type", "application/grpc");
    let mut body = respond
        .send_response(response.body(()).expect("a response"), false)
        .expect("the stream is open");
    let answer = Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]);
    body.send_data(answer, service == "half").expect("the stream is open");
    if service != "half" {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a value"));
        body.send_trailers(trailers).expect("the stream is open");
    }
}
