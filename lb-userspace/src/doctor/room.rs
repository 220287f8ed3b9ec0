//! Whether clients' packets fit the way to a backend. No I/O.

use std::net::IpAddr;

use lb_common::forward::Forwarding;

use crate::{
    model::{Backend, Service},
    network::NextHop,
};

/// Largest IP packet of clients who come by the Internet, bytes.
pub(crate) const CLIENT_MTU: u32 = 1500;

/// Bytes that forwarding to a backend at this address puts before a packet.
pub(super) fn overhead(forwarding: Forwarding, backend: IpAddr) -> u32 {
    match (forwarding, backend) {
        (Forwarding::L2 | Forwarding::Nat, _) => 0,
        (Forwarding::Ipip, IpAddr::V4(_)) => 20,
        (Forwarding::Ipip, IpAddr::V6(_)) => 40,
    }
}

/// A way into which a client's largest packet does not fit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Narrow {
    /// What fits, bytes of a client's packet.
    pub room: u32,
    /// What is wrong with that, without its subject.
    pub says: String,
    /// What to do about it.
    pub mend: String,
}

/// Whether the way to a backend is narrower than clients' packets are, in a tunnel. `client_mtu`: the
/// largest that comes in, bytes.
pub(crate) fn narrow(
    service: &Service,
    backend: &Backend,
    hop: &NextHop,
    client_mtu: u32,
) -> Option<Narrow> {
    let overhead = overhead(service.forwarding, backend.address);
    let (mtu, needed) = (u32::from(hop.mtu), client_mtu + overhead);
    if overhead == 0 || mtu >= needed {
        return None;
    }
    let room = mtu.saturating_sub(overhead);
    Some(Narrow {
        room,
        says: format!(
            "the MTU towards it is {mtu}, a client's packet of {client_mtu} bytes in its tunnel has \
             {needed}: who sends more than {room} is told so by ICMP (reason too_big), and waits in \
             vain where that does not reach him"
        ),
        mend: format!(
            "raise the MTU of {} (and of the route) to {needed}, or lower the MSS of the service to \
             {} (`ip route … advmss` on the backends)",
            hop.interface_name,
            // Headers of IP and TCP.
            room.saturating_sub(if service.vip.is_ipv4() { 40 } else { 60 }),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample;

    #[test]
    fn a_tunnel_needs_room_for_a_clients_full_packet() {
        let mut service = sample::service("web", 1);
        let hop = |mtu| NextHop {
            interface: 2,
            interface_name: "eth0".into(),
            source_mac: [2; 6],
            destination_mac: [4; 6],
            mtu,
            source: [10, 0, 0, 1].into(),
            gateway: None,
            is_given: false,
        };
        let says = |service: &Service, mtu, client_mtu| {
            narrow(service, &service.backends[0], &hop(mtu), client_mtu)
        };
        assert_eq!(says(&service, 1500, 1500), None, "l2 needs no more");
        service.forwarding = Forwarding::Ipip;
        assert_eq!(says(&service, 1520, 1500), None);
        assert_eq!(says(&service, 1500, 1480), None, "clients send less");
        let finding = says(&service, 1500, 1500).expect("it does not fit");
        assert_eq!(finding.room, 1480);
        assert!(finding.says.contains("has 1520"), "{finding:?}");
        assert!(
            finding.mend.contains("to 1520") && finding.mend.contains("to 1440"),
            "{finding:?}"
        );
    }
}
