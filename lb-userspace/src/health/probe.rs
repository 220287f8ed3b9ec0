//! One probe, from its SYN to its verdict.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::{
    getsockopt_impl, sockopt_impl,
    sys::socket::{getsockopt, setsockopt, sockopt},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{Connection, Failure, Paths, Target, grpc, http, tls::Tls};
use crate::model::{CheckKind, TlsCheck};

/// A time-out noticed so much too late says something of this process, which did not run, and
/// nothing of the backend.
const STALLED: Duration = Duration::from_millis(250);
/// Longest request that is filled up to, bytes: servers refuse much longer ones, and no path of
/// packets but a jumbo one has longer segments.
const MOST_FILLED: usize = 8960;

/// How a TCP connection goes: the beginning of `struct tcp_info` (`linux/tcp.h`), of which every
/// kernel gives as much as is asked for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Going {
    _states: [u8; 2],
    /// Time-outs in a row.
    retransmits: u8,
    _options: [u8; 5],
    _timeouts_us: [u32; 2],
    /// What a full segment carries, bytes.
    segment: u32,
    _received_segment: u32,
    /// Segments sent and not acknowledged.
    unacknowledged: u32,
}

sockopt_impl!(
    /// How a TCP connection goes.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    Going
);

/// What a request is made of, beside the check.
pub(super) struct Request<'a> {
    /// Whom it goes to.
    pub target: &'a Target,
    /// How long it must be at least, bytes.
    pub least: usize,
}

/// Asks a target once.
pub(super) async fn probe(paths: &Paths, tls: &Tls, target: &Target) -> Result<(), Failure> {
    let timeout = target.check.timeout;
    let deadline = Instant::now() + timeout;
    let path = paths.of(target.check.via);
    let Ok(connected) = timeout_at(deadline, path.connect(target)).await else {
        return Err(stalled(deadline).unwrap_or(Failure::NoAnswer(timeout)));
    };
    let Connection { stream, held } = connected?;
    let asked = ask(tls, target, stream, deadline).await;
    drop(held);
    asked
}

async fn ask(
    tls: &Tls,
    target: &Target,
    stream: TcpStream,
    deadline: Instant,
) -> Result<(), Failure> {
    // A connection that is closed by RST leaves no TIME_WAIT on either side.
    let reset_on_close = libc::linger { l_onoff: 1, l_linger: 0 };
    let set_up = |option: &str, error| Failure::NotMade(format!("set {option}: {error}"));
    setsockopt(&stream, sockopt::Linger, &reset_on_close).map_err(|e| set_up("SO_LINGER", e))?;
    setsockopt(&stream, sockopt::TcpNoDelay, &true).map_err(|e| set_up("TCP_NODELAY", e))?;
    let (name, about_tls) = match &target.check.kind {
        CheckKind::Tcp => return Ok(()),
        CheckKind::Http(check) => (check.method.name().to_owned() + " " + &check.path, &check.tls),
        CheckKind::Grpc(check) => (grpc::name(check), &check.tls),
    };
    // Outlives the exchange, which owns the stream, to ask the kernel how it went.
    let socket = stream.as_fd().try_clone_to_owned();
    let socket = socket.map_err(|error| Failure::NotMade(format!("duplicate: {error}")))?;
    let request =
        Request { target, least: if target.fills_segment { segment(&socket) } else { 0 } };
    let mut in_tls = about_tls.is_some();
    let exchange = timeout_at(deadline, exchange(tls, about_tls, &request, stream, &mut in_tls));
    let done = exchange.await;
    done.unwrap_or_else(|_| {
        let request = if in_tls { "TLS handshake".to_owned() } else { name };
        Err(stalled(deadline)
            .or_else(|| target.fills_segment.then(|| stuck(&socket)).flatten())
            .unwrap_or(Failure::Silent { request, timeout: target.check.timeout }))
    })
}

/// Speaks TLS if need be, and then the check's protocol; `in_tls` tells whether it got so far.
async fn exchange(
    tls: &Tls,
    about_tls: &Option<TlsCheck>,
    request: &Request<'_>,
    stream: TcpStream,
    in_tls: &mut bool,
) -> Result<(), Failure> {
    let Some(about) = about_tls else { return speak(request, stream).await };
    let target = request.target;
    let (host, protocol): (_, &[u8]) = match &target.check.kind {
        CheckKind::Tcp => return Ok(()),
        CheckKind::Http(check) => (check.host.as_deref(), b"http/1.1"),
        CheckKind::Grpc(check) => (check.host.as_deref(), b"h2"),
    };
    let stream = tls.handshake(about, host, protocol, target.address(), stream).await?;
    *in_tls = false;
    speak(request, stream).await
}

/// Speaks the check's protocol.
async fn speak<S>(request: &Request<'_>, stream: S) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match &request.target.check.kind {
        CheckKind::Tcp => Ok(()),
        CheckKind::Http(check) => http::ask(check, request, stream).await,
        CheckKind::Grpc(check) => grpc::ask(check, request, stream).await,
    }
}

/// Asks over a connection that is there, without TLS and for as long as it takes.
#[cfg(feature = "fuzz")]
pub async fn ask_over<S>(target: &Target, stream: S) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    speak(&Request { target, least: 0 }, stream).await
}

/// Whether the time-out was noticed so late that the answer may well lie in the socket.
fn stalled(deadline: Instant) -> Option<Failure> {
    let late = deadline.elapsed();
    (late > STALLED).then(|| {
        let late = humantime::format_duration(Duration::from_millis(late.as_millis() as u64));
        Failure::NotMade(format!("this process did not run for {late}"))
    })
}

/// How much a full segment carries, bytes; zero if the kernel does not say.
fn segment(socket: &OwnedFd) -> usize {
    getsockopt(socket, sockopt::TcpMaxSeg).map_or(0, |size| (size as usize).min(MOST_FILLED))
}

/// Whether what was sent keeps being sent again.
fn stuck(socket: &OwnedFd) -> Option<Failure> {
    let going = getsockopt(socket, TcpInfo).ok()?;
    let is_stuck = going.unacknowledged > 0 && going.retransmits > 0;
    is_stuck.then_some(Failure::PathMtu { segment: going.segment as usize })
}
