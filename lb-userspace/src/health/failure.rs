//! Why a probe was no success: the one list, with the words a person reads.

use std::time::Duration;

use humantime::format_duration;

/// Why a probe was no success. `request` is what was being asked: "GET /healthz", "TLS".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The fault is on this side: no source port, no file descriptor, an unreadable CA file.
    #[error("not probed: {0}")]
    NotMade(String),
    /// Neither SYN and ACK nor RST came.
    #[error("no answer to SYN within {}", format_duration(*.0))]
    NoAnswer(Duration),
    /// There is no way there: no route, no neighbour, or a router says so by ICMP.
    #[error("can't be reached: {0}")]
    NoWay(String),
    /// A RST answered the SYN: nobody listens there.
    #[error("connection refused")]
    Refused,
    /// A RST came later.
    #[error("{request}: connection reset")]
    Reset {
        /// What was being asked.
        request: String,
    },
    /// It accepted and then said too little, or nothing.
    #[error("{request}: no answer within {}", format_duration(*.timeout))]
    Silent {
        /// What was being asked.
        request: String,
        /// Of the whole probe.
        timeout: Duration,
    },
    /// It accepted and hung up.
    #[error("{request}: connection closed without an answer")]
    Closed {
        /// What was being asked.
        request: String,
    },
    /// Small packets arrive, full ones don't.
    #[error(
        "connected, but a full-size segment ({segment} bytes) is not acknowledged: the path's MTU \
         is too small for the tunnel"
    )]
    PathMtu {
        /// TCP payload of the segment, bytes.
        segment: usize,
    },
    /// No TLS, or a certificate that is not believed.
    #[error("TLS: {0}")]
    Tls(String),
    /// An answer that is none in its protocol.
    #[error("{request}: {what}")]
    Protocol {
        /// What was being asked.
        request: String,
        /// What is wrong with it.
        what: String,
    },
    /// Another status.
    #[error("{request}: status {status}, expected {expected}")]
    Status {
        /// What was being asked.
        request: String,
        /// What came.
        status: u16,
        /// What is well, as the configuration has it.
        expected: String,
    },
    /// Another body.
    #[error("{request}: {expected:?} is not in the first {read} bytes of the body")]
    Body {
        /// What was being asked.
        request: String,
        /// What was looked for.
        expected: String,
        /// How much was looked through, bytes.
        read: usize,
    },
    /// A gRPC server that says it is not well, or says nothing of it.
    #[error("{request}: {status}, expected SERVING")]
    NotServing {
        /// What was being asked.
        request: String,
        /// What it says.
        status: String,
    },
}

/// What a failure tells of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing: the fault is this side's.
    Nothing,
    /// There is no TCP there.
    Unreachable,
    /// There is, and it answers wrongly.
    Unhealthy,
}

impl Failure {
    /// What it tells of the backend.
    pub fn class(&self) -> Class {
        match self {
            Self::NotMade(_) => Class::Nothing,
            Self::NoAnswer(_) | Self::NoWay(_) => Class::Unreachable,
            Self::Refused
            | Self::Reset { .. }
            | Self::Silent { .. }
            | Self::Closed { .. }
            | Self::PathMtu { .. }
            | Self::Tls(_)
            | Self::Protocol { .. }
            | Self::Status { .. }
            | Self::Body { .. }
            | Self::NotServing { .. } => Class::Unhealthy,
        }
    }
}
