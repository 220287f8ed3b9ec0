//! Whom a probe asks, and what.

use std::{net::SocketAddr, sync::Arc};

use lb_common::forward::Forwarding;

use crate::model::{Backend, CheckKind, HealthCheck, Identity, Service, Via};

/// One backend that is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose it is, and its own address and port.
    pub id: Identity,
    /// The service's name.
    pub service: String,
    /// The backend's name.
    pub backend: String,
    /// How clients' frames get there.
    pub forwarding: Forwarding,
    /// What is asked; one for all backends of a service.
    pub check: Arc<HealthCheck>,
    /// Whether an HTTP or gRPC request is made so long that it fills a TCP segment, because an
    /// MTU too small for the tunnel lets every shorter one pass.
    pub fills_segment: bool,
}

impl Target {
    /// A backend of a service, which is checked like this.
    pub fn new(service: &Service, backend: &Backend, check: &Arc<HealthCheck>) -> Self {
        Self {
            id: service.identity(backend),
            service: service.name.clone(),
            backend: backend.name.clone(),
            forwarding: service.forwarding,
            check: check.clone(),
            fills_segment: false,
        }
    }

    /// The same backend, asked for a TCP connection to its own address and port.
    pub(super) fn directly(&self) -> Self {
        let kind = CheckKind::Tcp;
        let check = HealthCheck { kind, via: Via::Backend, ..HealthCheck::clone(&self.check) };
        Self { check: Arc::new(check), fills_segment: false, ..self.clone() }
    }

    /// The address and port that are asked, as the backend sees it.
    pub fn address(&self) -> SocketAddr {
        let (vip, own) = self.id;
        let port = self.check.port.unwrap_or(own.port());
        match self.check.via {
            Via::Vip => vip.at(port),
            Via::Backend => SocketAddr::new(own.ip(), port),
        }
    }
}
