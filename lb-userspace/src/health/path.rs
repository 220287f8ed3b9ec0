//! How a probe's connection reaches its target.

use std::{io, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use super::{Failure, Target};
use crate::model::Via;

/// A way to targets.
pub trait Path: Send + Sync {
    /// Connects to [`Target::address`]. The probe gives up after the check's time-out and drops
    /// the future; it need not watch the time itself.
    fn connect<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Connection, Failure>>;
}

/// What a path gives.
pub struct Connection {
    /// The connection.
    pub stream: TcpStream,
    /// Dropped after the stream is closed: what must be given back only then.
    pub held: Box<dyn Send>,
}

/// The path of each [`Via`].
#[derive(Clone)]
pub struct Paths {
    /// Through the VIP.
    pub vip: Arc<dyn Path>,
    /// To the backend's own address.
    pub backend: Arc<dyn Path>,
}

impl Paths {
    pub(super) fn of(&self, via: Via) -> &dyn Path {
        match via {
            Via::Vip => &*self.vip,
            Via::Backend => &*self.backend,
        }
    }
}

/// By the kernel's own routing, from the namespace of the thread that connects.
pub struct Direct;

impl Path for Direct {
    fn connect<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Connection, Failure>> {
        Box::pin(async {
            let connected = TcpStream::connect(target.address()).await;
            let stream = connected.map_err(|e| Failure::of_connect(&e, target.check.timeout))?;
            Ok(Connection { stream, held: Box::new(()) })
        })
    }
}

/// No way at all, and why.
pub struct Closed(pub String);

impl Path for Closed {
    fn connect<'a>(&'a self, _: &'a Target) -> BoxFuture<'a, Result<Connection, Failure>> {
        Box::pin(async { Err(Failure::NotMade(self.0.clone())) })
    }
}

impl Failure {
    /// What a failed `connect` tells; `timeout` is the probe's.
    pub fn of_connect(error: &io::Error, timeout: Duration) -> Self {
        use io::ErrorKind;
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset => Self::Reset { request: "connect".to_owned() },
            // The kernel gave up before the probe did.
            ErrorKind::TimedOut => Self::NoAnswer(timeout),
            ErrorKind::HostUnreachable => Self::NoWay("host unreachable".to_owned()),
            ErrorKind::NetworkUnreachable => Self::NoWay("network unreachable".to_owned()),
            // ICMP: protocol or port unreachable, also from a firewall that rejects so.
            _ if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                Self::NoWay("protocol unreachable".to_owned())
            }
            _ => Self::NotMade(format!("connect: {error}")),
        }
    }
}
