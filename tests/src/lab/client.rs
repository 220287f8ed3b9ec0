//! One HTTP request over one TCP connection, with a deadline and a named cause when it fails.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who it is: its `X-Backend` header.
    pub backend: String,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection was refused (RST) at once.
    Refused,
    /// No connection within the time-out.
    NotConnected,
    /// Connected, then reset (RST).
    Reset,
    /// Connected, then silence past the time-out.
    Silent,
    /// The answer is not a whole, good HTTP answer.
    BadAnswer(String),
    /// Any other error.
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::NotConnected => f.write_str("no connection in time"),
            Self::Reset => f.write_str("connection reset"),
            Self::Silent => f.write_str("no answer in time"),
            Self::BadAnswer(what) => write!(f, "bad answer: {what}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Failure {}

/// `GET path` on a new connection, from the calling thread's network namespace.
pub fn fetch(address: SocketAddr, path: &str, timeout: Duration) -> Result<Answer, Failure> {
    let deadline = Instant::now() + timeout;
    let mut stream =
        TcpStream::connect_timeout(&address, timeout).map_err(|error| match error.kind() {
            ErrorKind::ConnectionRefused => Failure::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure::NotConnected,
            _ => Failure::Other(format!("connect: {error}")),
        })?;
    let io = |error: std::io::Error| match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure::Silent,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Failure::Reset,
        _ => Failure::Other(error.to_string()),
    };
    stream.set_write_timeout(Some(timeout)).map_err(io)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(io)?;

    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Silent);
        }
        stream.set_read_timeout(Some(left)).map_err(io)?;
        match stream.read(&mut buffer).map_err(io)? {
            0 => return parse(&answer),
            length => answer.extend_from_slice(&buffer[..length]),
        }
    }
}

fn parse(answer: &[u8]) -> Result<Answer, Failure> {
    let bad = |what: &str| Failure::BadAnswer(what.to_owned());
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let end = end.ok_or_else(|| bad(&format!("{} bytes without a header's end", answer.len())))?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| bad("header is not text"))?;
    let body = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(bad(status));
    }
    let mut backend = None;
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        match name.to_ascii_lowercase().as_str() {
            "x-backend" => backend = Some(value.to_owned()),
            "content-length" => length = value.parse().ok(),
            _ => {}
        }
    }
    if length != Some(body.len()) {
        return Err(bad(&format!("{} bytes of body, {length:?} promised", body.len())));
    }
    let backend = backend.ok_or_else(|| bad("no X-Backend header"))?;
    Ok(Answer { backend, body: body.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::{Answer, Failure, parse};

    #[test]
    fn a_cut_answer_is_a_failure() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Backend: web-1\r\n\r\nweb-1\n";
        let answer = Answer { backend: "web-1".into(), body: b"web-1\n".to_vec() };
        assert_eq!(parse(whole), Ok(answer));
        for length in 0..whole.len() {
            let parsed = parse(&whole[..length]);
            assert!(matches!(parsed, Err(Failure::BadAnswer(_))), "{length}: {parsed:?}");
        }
        assert!(parse(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").is_err());
    }
}
