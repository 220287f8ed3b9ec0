//! An HTTP/1.1 request and whether its answer is a good one.

use std::{error::Error, io, pin::pin};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    select,
};

use super::{Failure, probe::Request};
use crate::model::{BODY_BYTES, HttpCheck};

/// What the probes call themselves.
pub(super) const USER_AGENT: &str =
    concat!("sluice/", env!("CARGO_PKG_VERSION"), " (health check)");
/// Fills requests up.
const PADDING: &str = "sluice-padding";
/// Longest value of such a header, bytes; there are as many as are needed.
const PIECE: usize = 1000;

/// Asks once, over this connection.
pub(super) async fn ask<S>(
    check: &HttpCheck,
    request: &Request<'_>,
    stream: S,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let name = format!("{} {}", check.method.name(), check.path);
    let message = message(check, request).map_err(|error| Failure::NotMade(error.to_string()))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| failure(&name, &error))?;
    let exchange = async {
        let answer = sender.send_request(message).await;
        judge(check, &name, answer.map_err(|error| failure(&name, &error))?).await
    };
    let mut exchange = pin!(exchange);
    select! {
        verdict = &mut exchange => verdict,
        ended = connection => match (exchange.await, ended) {
            // What closed it is known here alone.
            (Err(Failure::Closed { .. }), Err(error)) => Err(failure(&name, &error)),
            (verdict, _) => verdict,
        },
    }
}

fn message(
    check: &HttpCheck,
    request: &Request<'_>,
) -> Result<hyper::Request<Empty<Bytes>>, hyper::http::Error> {
    let host = check.host.clone().unwrap_or_else(|| request.target.address().to_string());
    let mut message = hyper::Request::builder()
        .method(check.method.name())
        .uri(&*check.path)
        .header(header::HOST, host);
    for (name, value) in &check.headers {
        message = message.header(name, value);
    }
    let is = |name: &str, header: header::HeaderName| name.eq_ignore_ascii_case(header.as_str());
    if !check.headers.iter().any(|(name, _)| is(name, header::USER_AGENT)) {
        message = message.header(header::USER_AGENT, USER_AGENT);
    }
    if !check.headers.iter().any(|(name, _)| is(name, header::ACCEPT)) {
        message = message.header(header::ACCEPT, "*/*");
    }
    for piece in padding(request.least) {
        message = message.header(PADDING, piece);
    }
    message.body(Empty::new())
}

/// Values of headers that together have at least so many bytes.
pub(super) fn padding(least: usize) -> impl Iterator<Item = String> {
    // A letter that HPACK too needs a byte for (RFC 7541, appendix B).
    (0..least.div_ceil(PIECE)).map(move |piece| "X".repeat(PIECE.min(least - piece * PIECE)))
}

async fn judge(
    check: &HttpCheck,
    name: &str,
    mut answer: Response<Incoming>,
) -> Result<(), Failure> {
    let status = answer.status().as_u16();
    if !check.status.iter().any(|range| range.has(status)) {
        let expected: Vec<String> = check.status.iter().map(ToString::to_string).collect();
        let expected = expected.join(", ");
        return Err(Failure::Status { request: name.to_owned(), status, expected });
    }
    let Some(expected) = &check.body else { return Ok(()) };
    let mut body = Vec::new();
    while body.len() < BODY_BYTES
        && let Some(frame) = answer.body_mut().frame().await
    {
        let frame = frame.map_err(|error| failure(name, &error))?;
        if let Some(data) = frame.data_ref() {
            body.extend_from_slice(&data[..data.len().min(BODY_BYTES - body.len())]);
        }
    }
    if body.windows(expected.len()).any(|part| part == expected.as_bytes()) {
        return Ok(());
    }
    let (request, expected) = (name.to_owned(), expected.clone());
    Err(Failure::Body { request, expected, read: body.len() })
}

fn failure(name: &str, error: &hyper::Error) -> Failure {
    let request = name.to_owned();
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match source {
        Some(error) => of_io(request, error),
        None if error.is_incomplete_message() || error.is_closed() || error.is_canceled() => {
            Failure::Closed { request }
        }
        None => Failure::Protocol { request, what: format!("the answer is no HTTP: {error}") },
    }
}

/// What an error of a connection tells that had been made.
pub(super) fn of_io(request: String, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset { request },
        io::ErrorKind::UnexpectedEof => Failure::Closed { request },
        _ => Failure::Protocol { request, what: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_as_long_as_asked_and_in_pieces() {
        for least in [0, 1, 999, 1000, 1001, 1448, 8960] {
            let pieces: Vec<String> = padding(least).collect();
            assert_eq!(pieces.iter().map(String::len).sum::<usize>(), least);
            assert!(pieces.iter().all(|piece| (1..=PIECE).contains(&piece.len())));
        }
    }
}
