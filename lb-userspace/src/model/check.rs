//! How a service's backends are checked: what a probe asks, which way, and how often.

use std::{fmt, path::PathBuf, time::Duration};

use lb_common::forward::Forwarding;

/// How a service's backends are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub kind: CheckKind,
    /// Which way the probe goes.
    pub via: Via,
    /// The port that is asked; `None`: the one that traffic goes to. Only with [`Via::Backend`],
    /// and of a VIP of any port, which has no other.
    pub port: Option<u16>,
    /// Time between two probes of one backend: 100 ms to 1 h.
    pub interval: Duration,
    /// How long one probe may take, from its first SYN to its verdict; at most `interval`.
    pub timeout: Duration,
    /// Consecutive successes that make a backend healthy: 1 to 100.
    pub rise: u32,
    /// Consecutive failures that make it unhealthy or unreachable: 1 to 100.
    pub fall: u32,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// A TCP connection.
    Tcp,
    /// One request of HTTP/1.1, over TLS or not.
    Http(HttpCheck),
    /// `grpc.health.v1.Health/Check` over HTTP/2, with TLS or not.
    Grpc(GrpcCheck),
}

/// Which way a probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// To the VIP at that backend, by the same forwarding as traffic.
    Vip,
    /// To the backend's own address.
    Backend,
}

/// An HTTP request and the answers that are well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// What to do.
    pub method: Method,
    /// Path and query; begins with `/`, ASCII.
    pub path: String,
    /// The Host header; `None`: the address and port that are asked.
    pub host: Option<String>,
    /// Further headers, sorted by name; names are tokens, values visible ASCII or blanks.
    pub headers: Vec<(String, String)>,
    /// Codes of a good answer; at least one range.
    pub status: Vec<StatusRange>,
    /// What the first [`BODY_BYTES`] of a good answer's body have in them.
    pub body: Option<String>,
    /// Whether TLS is spoken, and how (`check = "https"`).
    pub tls: Option<TlsCheck>,
}

/// As far as an answer's body is read, bytes.
pub const BODY_BYTES: usize = 64 << 10;

/// Asks a gRPC server after itself
/// (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcCheck {
    /// Which of its services; empty: the server as a whole.
    pub service: String,
    /// The `:authority`; `None`: the address and port that are asked.
    pub host: Option<String>,
    /// Whether TLS is spoken, and how.
    pub tls: Option<TlsCheck>,
}

/// How far a server's certificate is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsCheck {
    /// Asked for (SNI) and looked for in the certificate; `None`: the check's `host`, or, without
    /// one, the address that is asked (which no SNI carries).
    pub server_name: Option<String>,
    /// Whether the certificate must be valid.
    pub verify: bool,
    /// Certificates (PEM) of those who may sign it, in place of the system's; an absolute path.
    pub ca_file: Option<PathBuf>,
}

impl Default for TlsCheck {
    fn default() -> Self {
        Self { server_name: None, verify: true, ca_file: None }
    }
}

/// What an HTTP check may do: methods that change nothing (RFC 9110, §9.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the methods of RFC 9110")]
pub enum Method {
    #[default]
    Get,
    Head,
    Options,
}

/// Status codes from `first` to `last`, both included; 100 to 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    /// The lowest.
    pub first: u16,
    /// The highest, not below `first`.
    pub last: u16,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: CheckKind::Tcp,
            via: Via::Vip,
            port: None,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        }
    }
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            method: Method::Get,
            path: "/".to_owned(),
            host: None,
            headers: Vec::new(),
            status: vec![StatusRange::WELL],
            body: None,
            tls: None,
        }
    }
}

impl CheckKind {
    /// As the configuration has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http(HttpCheck { tls: None, .. }) => "http",
            Self::Http(HttpCheck { tls: Some(_), .. }) => "https",
            Self::Grpc(_) => "grpc",
        }
    }
}

impl Via {
    /// As the configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::Backend => "backend",
        }
    }

    /// The way of traffic, where traffic reaches the backend by the VIP.
    pub fn of(forwarding: Forwarding) -> Self {
        match forwarding {
            Forwarding::L2 | Forwarding::Ipip => Self::Vip,
            Forwarding::Nat => Self::Backend,
        }
    }
}

impl Method {
    /// As HTTP has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
        }
    }
}

impl StatusRange {
    /// What is well unless something else is said.
    pub const WELL: Self = Self { first: 200, last: 399 };

    /// Whether a code is in it.
    pub fn has(self, code: u16) -> bool {
        (self.first..=self.last).contains(&code)
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}
