//! One connection to a VIP at one backend.

use std::{io, net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use super::{NoWay, Shared};
use crate::{
    health::{Connection, Failure, Path, Target},
    model::Identity,
};

/// Makes connections by way of the VIPs; clones make them too.
#[derive(Clone)]
pub struct VipPath(Arc<Shared>);

/// A source port in use; dropped, it rests. Close the connection first.
pub struct PortInUse {
    port: u16,
    shared: Arc<Shared>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Unconnected {
    /// It was not tried.
    #[error(transparent)]
    NoWay(#[from] NoWay),
    /// As many probes are under way as there are source ports.
    #[error("no source port is free: 64,512 probes are under way")]
    NoPort,
    /// This host gives no socket, or not from that address.
    #[error("open a socket in the probes' network namespace: {0}")]
    Socket(#[source] io::Error),
    /// It was tried.
    #[error("connect: {0}")]
    Connect(#[source] io::Error),
}

impl VipPath {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Connects to the VIP of this identity, at its backend. It takes as long as the backend does;
    /// dropped, it is given up.
    ///
    /// # Errors
    /// If there is no way to the backend, this host has no means left, or the backend says no.
    pub async fn connect(
        &self,
        identity: &Identity,
    ) -> Result<(TcpStream, PortInUse), Unconnected> {
        let (vip, _) = *identity;
        let way = self.0.way(identity)?;
        let socket = self.0.namespace.socket(vip.ip()).await.map_err(Unconnected::Socket)?;
        let port = self.0.take_port(way.backend).ok_or(Unconnected::NoPort)?;
        let held = PortInUse { port, shared: self.0.clone() };
        let own = SocketAddr::new(way.source, port);
        // A connection of the port's last probe may still be ending.
        let bound = socket.set_reuseaddr(true).and_then(|()| socket.bind(own));
        bound.map_err(Unconnected::Socket)?;
        let stream = socket.connect(vip).await.map_err(Unconnected::Connect)?;
        Ok((stream, held))
    }
}

impl Path for VipPath {
    fn connect<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Connection, Failure>> {
        Box::pin(async {
            match self.connect(&target.id).await {
                Ok((stream, held)) => Ok(Connection { stream, held: Box::new(held) }),
                Err(Unconnected::Connect(error)) => {
                    Err(Failure::of_connect(&error, target.check.timeout))
                }
                Err(error) => Err(Failure::NotMade(error.to_string())),
            }
        })
    }
}

impl Drop for PortInUse {
    fn drop(&mut self) {
        self.shared.give_port_back(self.port);
    }
}
