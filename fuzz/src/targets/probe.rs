//! What servers answer to probes: any bytes are a success, or one failure that a person can read.
//!
//! ```text
//! input: which check u8, then the answer's bytes; then the server hangs up
//! ```

use std::sync::{Arc, OnceLock};

use lb_userspace::{
    config,
    health::{self, Target},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::runtime;
use crate::{Seed, reader::Reader};

/// A service for each check.
const CHECKS: &str = r#"
[dataplane]
interfaces = ["eth0"]
[[service]]
name = "get"
vip = "203.0.113.1:80"
health = { check = "http", path = "/healthz" }
backend = [{ name = "a", address = "10.0.0.1" }]
[[service]]
name = "body"
vip = "203.0.113.2:80"
health = { check = "http", path = "/healthz", status = [200, "204-299"], body = "well" }
backend = [{ name = "a", address = "10.0.0.1" }]
[[service]]
name = "head"
vip = "203.0.113.3:80"
health = { check = "http", method = "HEAD", path = "/" }
backend = [{ name = "a", address = "10.0.0.1" }]
[[service]]
name = "grpc"
vip = "203.0.113.4:80"
health = { check = "grpc", service = "web" }
backend = [{ name = "a", address = "10.0.0.1" }]
"#;

/// More than any answer of an input, so that nobody waits for room.
const ROOM: usize = 1 << 20;

/// One input.
///
/// # Panics
/// If the failure is nothing that a terminal can show on one line.
pub fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    let targets = targets();
    let target = &targets[reader.below(targets.len())];
    let answer = reader.rest();
    let asked = runtime().block_on(async {
        let (ours, mut theirs) = duplex(ROOM);
        let served = async {
            // Who answers before he was asked is no server.
            let mut request = [0; 4096];
            let _ = theirs.read(&mut request).await;
            let _ = theirs.write_all(answer).await;
            let _ = theirs.shutdown().await;
            // What else is asked finds nobody.
            theirs
        };
        tokio::join!(health::ask_over(target, ours), served).0
    });
    if let Err(failure) = asked {
        let says = failure.to_string();
        assert!(!says.is_empty() && !says.contains(char::is_control), "{says:?}");
    }
}

fn targets() -> &'static [Target] {
    static TARGETS: OnceLock<Vec<Target>> = OnceLock::new();
    TARGETS.get_or_init(|| {
        let desired = config::parse(CHECKS, "checks.toml").expect("valid");
        let of = |service: &lb_userspace::model::Service| {
            let check = Arc::new(service.health.clone().expect("a check"));
            Target::new(service, &service.backends[0], &check)
        };
        desired.services.iter().map(of).collect()
    })
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], content].concat()
}

/// A header that HPACK has as it is (RFC 7541 §6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    let (name_length, value_length) = (name.len() as u8, value.len() as u8);
    [&[0, name_length], name.as_bytes(), &[value_length], value.as_bytes()].concat()
}

/// Calls' answers, frame by frame; those of HTTP/1.1 are texts and lie in files.
pub fn seeds() -> Vec<Seed> {
    const SETTINGS: u8 = 4;
    const HEADERS: u8 = 1;
    const DATA: u8 = 0;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, 1, 0, &[])].concat();
    // `:status: 200` has the number 8.
    let headers = [vec![0x88], literal("content-type", "application/grpc")].concat();
    let headers = frame(HEADERS, END_HEADERS, 1, &headers);
    let data = |message: &[u8]| frame(DATA, 0, 1, message);
    let trailers =
        |status: &str| frame(HEADERS, END_HEADERS | END_STREAM, 1, &literal("grpc-status", status));
    let failed = [vec![0x88], literal("grpc-status", "5")].concat();
    let cases = [
        ("gRPC serving", [data(&[0, 0, 0, 0, 2, 8, 1]), trailers("0")].concat()),
        ("gRPC not serving", [data(&[0, 0, 0, 0, 2, 8, 2]), trailers("0")].concat()),
        ("gRPC long numbers", [data(&[0, 0, 0, 0, 4, 0x88, 0, 0x81, 0]), trailers("0")].concat()),
        ("gRPC lying length", [data(&[0, 0, 0, 0, 9, 8, 1]), trailers("0")].concat()),
        ("gRPC error behind", [data(&[]), trailers("14")].concat()),
        ("gRPC without an end", data(&[0, 0, 0, 0, 2, 8, 1])),
    ];
    let mut seeds: Vec<Seed> = cases
        .into_iter()
        .map(|(name, rest)| {
            let bytes = [&[3][..], &settings, &headers, &rest].concat();
            Seed { name: name.to_owned(), bytes }
        })
        .collect();
    let at_once = frame(HEADERS, END_HEADERS | END_STREAM, 1, &failed);
    seeds.push(Seed {
        name: "gRPC error at once".to_owned(),
        bytes: [&[3][..], &settings, &at_once].concat(),
    });
    seeds
}
