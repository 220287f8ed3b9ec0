//! `grpc.health.v1.Health/Check`: one call over HTTP/2
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>, and `PROTOCOL-HTTP2.md`
//! beside it). Its two messages have one field each and are written by hand.

use std::pin::pin;

use h2::{RecvStream, client};
use hyper::{HeaderMap, Method, StatusCode, body::Bytes, header};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    select,
};

use super::{
    Failure,
    http::{USER_AGENT, of_io, padding},
    probe::Request,
};
use crate::model::GrpcCheck;

/// Longest answer that is read, bytes; a right one has seven.
const MOST_ANSWERED: usize = 4096;
/// `grpc-status` of a success.
const OK: &str = "0";
/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// What is asked, for a person.
pub(super) fn name(check: &GrpcCheck) -> String {
    match &*check.service {
        "" => "grpc.health.v1.Health/Check".to_owned(),
        service => format!("grpc.health.v1.Health/Check of {service:?}"),
    }
}

/// Asks once, over this connection.
pub(super) async fn ask<S>(
    check: &GrpcCheck,
    request: &Request<'_>,
    stream: S,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = name(check);
    let (sender, connection) =
        client::handshake(stream).await.map_err(|error| failure(&name, &error))?;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(|error| failure(&name, &error))?;
        let message = message(check, request).map_err(|e| Failure::NotMade(e.to_string()))?;
        let (answer, mut body) =
            sender.send_request(message, false).map_err(|error| failure(&name, &error))?;
        let question = Bytes::from(question(&check.service));
        body.send_data(question, true).map_err(|error| failure(&name, &error))?;
        let answer = answer.await.map_err(|error| failure(&name, &error))?;
        if answer.status() != StatusCode::OK {
            let (status, expected) = (answer.status().as_u16(), "200".to_owned());
            return Err(Failure::Status { request: name.clone(), status, expected });
        }
        // A call that failed at once has its status here.
        refuse(&name, answer.headers())?;
        judge(&name, answer.into_body()).await
    };
    let mut exchange = pin!(exchange);
    select! {
        verdict = &mut exchange => verdict,
        ended = connection => match (exchange.await, ended) {
            // What closed it is known here alone.
            (Err(Failure::Protocol { .. }), Err(error)) => Err(failure(&name, &error)),
            (verdict, _) => verdict,
        },
    }
}

fn message(
    check: &GrpcCheck,
    request: &Request<'_>,
) -> Result<hyper::Request<()>, hyper::http::Error> {
    let scheme = if check.tls.is_some() { "https" } else { "http" };
    let host = check.host.clone().unwrap_or_else(|| request.target.address().to_string());
    let mut message = hyper::Request::builder()
        .method(Method::POST)
        .uri(format!("{scheme}://{host}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT);
    for piece in padding(request.least) {
        message = message.header("sluice-padding", piece);
    }
    message.body(())
}

/// `HealthCheckRequest { string service = 1; }` behind the five bytes of a gRPC message: not
/// compressed, and its length.
fn question(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

async fn judge(name: &str, mut body: RecvStream) -> Result<(), Failure> {
    let mut answer = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| failure(name, &error))?;
        if answer.len() + data.len() > MOST_ANSWERED {
            return Err(strange(name, "the answer is too long"));
        }
        // Never more than was given.
        let _ = body.flow_control().release_capacity(data.len());
        answer.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.map_err(|error| failure(name, &error))?;
    let trailers = trailers.ok_or_else(|| strange(name, "the answer has no grpc-status"))?;
    refuse(name, &trailers)?;
    if !trailers.contains_key("grpc-status") {
        return Err(strange(name, "the answer has no grpc-status"));
    }
    let status = serving_status(&answer)
        .ok_or_else(|| strange(name, "the answer is no HealthCheckResponse"))?;
    let status = match status {
        SERVING => return Ok(()),
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => format!("status {other}"),
    };
    Err(Failure::NotServing { request: name.to_owned(), status })
}

/// What the call itself came to, where these headers tell.
fn refuse(name: &str, headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(status) = text("grpc-status") else { return Ok(()) };
    let code = match status {
        OK => return Ok(()),
        "5" => "NOT_FOUND (the server does not know this service)".to_owned(),
        "12" => "UNIMPLEMENTED (the server has no health service)".to_owned(),
        "16" => "UNAUTHENTICATED".to_owned(),
        "14" => "UNAVAILABLE".to_owned(),
        other => format!("grpc-status {other}"),
    };
    Err(Failure::NotServing { request: name.to_owned(), status: code })
}

/// The field `ServingStatus status = 1` of a gRPC message with a `HealthCheckResponse`; a
/// field that is not there is 0, and others are passed over.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (&compressed, rest) = framed.split_first()?;
    let (length, mut message) = rest.split_first_chunk::<4>()?;
    if compressed != 0 || u32::from_be_bytes(*length) as usize != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let skipped = match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        message = message.get(skipped..)?;
    }
    Some(status)
}

/// A number of protobuf, taken off the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn strange(name: &str, what: &str) -> Failure {
    Failure::Protocol { request: name.to_owned(), what: what.to_owned() }
}

fn failure(name: &str, error: &h2::Error) -> Failure {
    match error.get_io() {
        Some(error) => of_io(name.to_owned(), error),
        None if error.is_library() => {
            let what = format!("the answer is no HTTP/2 (does the server speak it here?): {error}");
            Failure::Protocol { request: name.to_owned(), what }
        }
        None => Failure::Protocol { request: name.to_owned(), what: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_question_names_the_service_as_protobuf_does() {
        assert_eq!(question(""), [0, 0, 0, 0, 0]);
        assert_eq!(question("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = "s".repeat(300);
        let framed = question(&long);
        assert_eq!(&framed[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 2]);
        assert_eq!(&framed[8..], long.as_bytes());
    }

    #[test]
    fn an_answer_is_read_as_protobuf_writes_it() {
        let cases: [(&[u8], Option<u64>); 9] = [
            (&[0, 0, 0, 0, 2, 8, 1], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[0, 0, 0, 0, 3, 8, 0x81, 0], Some(1)),
            (&[0, 0, 0, 0, 6, 0x12, 2, 8, 2, 8, 1], Some(1)),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 9, 8, 1], None),
            (&[0, 0, 0, 0, 2, 0x12, 9], None),
            (&[0, 0], None),
        ];
        for (framed, expected) in cases {
            assert_eq!(serving_status(framed), expected, "{framed:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = serving_status(&bytes);
            let mut framed = vec![0, 0, 0, 0, bytes.len() as u8];
            framed.extend(bytes);
            let _ = serving_status(&framed);
        }
    }
}
