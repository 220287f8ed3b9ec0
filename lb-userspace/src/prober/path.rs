//! One connection to a VIP at one backend.

use std::{net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;

use super::{NoWay, Shared, ports::PORTS};
use crate::health::{Connection, Failure, Path, Target};

/// Makes connections by way of the VIPs; clones make them too.
#[derive(Clone)]
pub struct VipPath(Arc<Shared>);

/// A source port in use; dropped, it rests.
struct PortInUse {
    port: u16,
    shared: Arc<Shared>,
}

impl VipPath {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    async fn connect(&self, target: &Target) -> Result<Connection, Failure> {
        let vip = target.address();
        let way = self.0.way(&target.id)?;
        let not_made =
            |error| Failure::NotMade(format!("open a socket from {}: {error}", way.source));
        let socket = self.0.namespace.socket(vip.ip()).await.map_err(not_made)?;
        let port = self.0.take_port(way.backend).ok_or_else(|| {
            Failure::NotMade(format!("no source port is free: {PORTS} probes are under way"))
        })?;
        let held = PortInUse { port, shared: self.0.clone() };
        // A connection of the port's last probe may still be ending.
        socket.set_reuseaddr(true).map_err(not_made)?;
        socket.bind(SocketAddr::new(way.source, port)).map_err(not_made)?;
        let connected = socket.connect(vip).await;
        let stream =
            connected.map_err(|error| Failure::of_connect(&error, target.check.timeout))?;
        Ok(Connection { stream, held: Box::new(held) })
    }
}

impl Path for VipPath {
    fn connect<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Connection, Failure>> {
        Box::pin(self.connect(target))
    }
}

impl From<NoWay> for Failure {
    /// A backend that nobody finds does not answer; all else says nothing of it.
    fn from(why: NoWay) -> Self {
        match why {
            NoWay::Unresolved(_) => Self::NoWay(why.to_string()),
            NoWay::NotYet | NoWay::NoSource { .. } | NoWay::Unheard { .. } => {
                Self::NotMade(why.to_string())
            }
        }
    }
}

impl Drop for PortInUse {
    fn drop(&mut self) {
        self.shared.give_port_back(self.port);
    }
}
