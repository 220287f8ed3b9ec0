//! What a valid file asks for and may not get: told by `sluice check` and when the daemon starts.

use lb_common::forward::Forwarding;

use super::desired::SLOTS_PER_BACKEND;
use crate::model::{Desired, PortRange, Service};

/// One sentence each; none is a reason to refuse the file.
pub fn warnings(desired: &Desired) -> Vec<String> {
    let mut warnings = Vec::new();
    if desired.services.is_empty() {
        warnings.push("no service: every frame is left to the kernel".to_owned());
    }
    for service in &desired.services {
        warnings.extend(of_service(service));
    }
    let has_ipip = desired.services.iter().any(|service| service.forwarding == Forwarding::Ipip);
    if !desired.dataplane.tunnel_sources.is_empty() && !has_ipip {
        warnings.push("tunnel_source has no effect: no service uses ipip".to_owned());
    }
    if desired.dataplane.nat_ports != PortRange::NAT && !desired.replaces_clients() {
        warnings.push(
            "nat_ports has no effect: no service uses nat, or those that do keep their clients' \
             addresses"
                .to_owned(),
        );
    }
    warnings
}

fn of_service(service: &Service) -> Option<String> {
    let name = &service.name;
    let takers = service.backends.iter().filter(|backend| backend.weight > 0).count();
    if service.backends.is_empty() {
        return Some(format!("service {name:?} has no backend: its clients get a RST"));
    }
    if takers == 0 {
        return Some(format!(
            "service {name:?} has only backends of weight 0: its new clients get a RST"
        ));
    }
    (takers * SLOTS_PER_BACKEND > service.slots as usize).then(|| {
        format!(
            "service {name:?} has {takers} backends in {} slots: below {SLOTS_PER_BACKEND} slots \
             a backend the shares are uneven",
            service.slots
        )
    })
}
