//! What NAT needs of this host and of its backends, from what was seen. No I/O.

use lb_common::forward::Forwarding;

use super::Finding;
use crate::{
    model::{ClientAddress, PortClash, Service},
    network::{self, Interface, NextHop},
};

/// The ports that NAT takes, against those of the host's own sockets.
pub(super) fn ports(clash: Result<Option<PortClash>, network::Error>) -> Finding {
    let about = "nat_ports".to_owned();
    match clash {
        Ok(None) => Finding::well(about, "this host's own sockets get other ports"),
        Ok(Some(clash)) => Finding::wrong(about, clash.to_string(), String::new()),
        Err(error) => Finding::doubt(about, error.to_string(), String::new()),
    }
}

/// What a service asks of its backends that can't be seen from here.
pub(super) fn backends_route(service: &Service) -> Option<Finding> {
    let keeps = service.forwarding == Forwarding::Nat
        && service.client_address == ClientAddress::Kept
        && !service.leaving;
    keeps.then(|| {
        Finding::well(
            format!("service {}", service.name),
            "its backends see their clients' addresses (client_address = \"keep\"), so each must \
             route its answers to clients through this host; from here that can't be seen",
        )
    })
}

/// Whether a NAT backend's answers arrive where our program is; `front`: the interfaces that have
/// it. They come in where frames for it go out, unless routes differ by direction.
pub(super) fn answers(
    about: String,
    service: &Service,
    hop: &NextHop,
    front: &[Interface],
) -> Option<Finding> {
    let has_program = front.iter().any(|interface| interface.index == hop.interface);
    (service.forwarding == Forwarding::Nat && !has_program).then(|| {
        let name = &hop.interface_name;
        Finding::wrong(
            about,
            format!("its answers come in by {name}, where nobody translates them back"),
            format!("add {name:?} to `interfaces`"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::Severity,
        model::{PortRange, sample},
    };

    fn nat(client_address: ClientAddress) -> Service {
        Service { forwarding: Forwarding::Nat, client_address, ..sample::service("web", 1) }
    }

    #[test]
    fn who_keeps_clients_addresses_is_told_what_backends_need() {
        let finding = backends_route(&nat(ClientAddress::Kept)).expect("a note");
        assert_eq!((finding.severity, &*finding.about), (Severity::Well, "service web"));
        assert!(finding.says.contains("through this host"), "{finding:?}");
        assert_eq!(backends_route(&nat(ClientAddress::default())), None);
        assert_eq!(backends_route(&sample::service("web", 1)), None);
    }

    #[test]
    fn answers_need_our_program_where_they_arrive() {
        let front = |index| Interface {
            index,
            name: "eth0".into(),
            mac: Some([2; 6]),
            mtu: 1500,
            up: true,
            running: true,
            ethernet: true,
            xdp: None,
            kind: "veth".into(),
        };
        let hop = NextHop {
            interface: 3,
            interface_name: "eth1".into(),
            source_mac: [2; 6],
            destination_mac: [4; 6],
            mtu: 1500,
            source: [10, 0, 0, 1].into(),
            gateway: None,
            is_given: false,
        };
        let nat = nat(ClientAddress::default());
        let found =
            |service: &Service, index| answers("web-1".to_owned(), service, &hop, &[front(index)]);
        assert_eq!(found(&nat, 3), None);
        assert_eq!(found(&sample::service("web", 1), 2), None, "others answer their clients");
        let finding = found(&nat, 2).expect("nobody is on eth1");
        assert_eq!(finding.severity, Severity::Wrong);
        assert_eq!(finding.mend.as_deref(), Some("add \"eth1\" to `interfaces`"));
    }

    #[test]
    fn ports_that_sockets_use_too_are_wrong() {
        let sockets = PortRange { first: 20_000, last: 60_999 };
        let clash = PortClash::of(PortRange::NAT, sockets);
        assert_eq!(ports(Ok(clash)).severity, Severity::Wrong);
        assert_eq!(ports(Ok(None)).severity, Severity::Well);
    }
}
