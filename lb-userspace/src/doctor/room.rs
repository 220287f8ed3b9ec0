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
            "raise the MTU of {} (and of the route) to {needed}; or {}",
            hop.interface_name,
            lower_mss(service.vip.ip(), room),
        ),
    })
}

/// How clients are told to send packets of so many bytes at most. By the VIP, not by a route
/// (`advmss`): those to clients are others than that to the balancer, whose probes must fit, too.
pub(super) fn lower_mss(vip: IpAddr, room: u32) -> String {
    // Headers of IP and TCP; options count as payload (RFC 6691 §2).
    let (family, headers) = if vip.is_ipv4() { ("ip", 40) } else { ("ip6", 60) };
    let mss = room.saturating_sub(headers);
    // No "; ", which divides steps.
    format!(
        "lower the MSS of the service to {mss}, on its backends: `nft 'table {family} sluice {{chain \
         mss {{type filter hook output priority mangle;{family} saddr {vip} tcp flags syn tcp option \
         maxseg size set {mss};}};}}'`"
    )
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
        assert_eq!(
            finding.mend,
            "raise the MTU of eth0 (and of the route) to 1520; or lower the MSS of the service to \
             1440, on its backends: `nft 'table ip sluice {chain mss {type filter hook output \
             priority mangle;ip saddr 203.0.113.10 tcp flags syn tcp option maxseg size set \
             1440;};}'`"
        );
    }
}
