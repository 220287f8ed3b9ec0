//! The headers of a frame, for people.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    frame::{Frame as _, HostFrame},
    parse::{self, Family},
    wire::{self, Ipv4, Ipv6, Macs, Tcp},
};
use serde::Serialize;

use crate::datapath::run::Mac;

/// The headers of a frame that holds a TCP segment, in a tunnel or not, with up to two VLAN tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Headers {
    /// From which MAC address.
    pub source_mac: String,
    /// To which.
    pub destination_mac: String,
    /// The addresses of the tunnel's packet, where there is one.
    pub tunnel: Option<Tunnel>,
    /// From whom.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// TCP flags, as in the header: FIN 1, SYN 2, RST 4, ACK 16.
    pub flags: u8,
    /// Bytes of the frame.
    pub bytes: usize,
}

/// The packet around another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// From whom.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
}

/// An IP header.
struct Packet {
    addresses: Tunnel,
    protocol: u8,
    /// Where its payload begins.
    payload: usize,
}

impl Headers {
    /// Reads them; `None` if there is something else in the frame.
    pub fn read(frame: &HostFrame) -> Option<Self> {
        let macs: Macs = frame.read(0)?;
        let (l3, family) = parse::network(frame).ok()?;
        let outer = match family {
            Family::Ipv4 => ipv4(frame, l3)?,
            Family::Ipv6 => ipv6(frame, l3)?,
        };
        let inner = match outer.protocol {
            wire::IPV4_IN_IP => Some(ipv4(frame, outer.payload)?),
            wire::IPV6_IN_IP => Some(ipv6(frame, outer.payload)?),
            _ => None,
        };
        let tunnel = inner.is_some().then_some(outer.addresses);
        let Packet { addresses, protocol, payload } = inner.unwrap_or(outer);
        if protocol != wire::TCP {
            return None;
        }
        let tcp: Tcp = frame.read(payload)?;
        Some(Self {
            source_mac: Mac(macs.source).to_string(),
            destination_mac: Mac(macs.destination).to_string(),
            tunnel,
            source: SocketAddr::new(addresses.source, u16::from_be_bytes(tcp.source)),
            destination: SocketAddr::new(
                addresses.destination,
                u16::from_be_bytes(tcp.destination),
            ),
            flags: tcp.flags,
            bytes: frame.len(),
        })
    }
}

/// The TCP flags that open and end connections, and ACK, by their names: `SYN, ACK`.
pub fn flag_names(flags: u8) -> String {
    const NAMES: [(u8, &str); 4] =
        [(Tcp::SYN, "SYN"), (Tcp::FIN, "FIN"), (Tcp::RST, "RST"), (Tcp::ACK, "ACK")];
    let set = NAMES.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name);
    let names = set.collect::<Vec<_>>().join(", ");
    if names.is_empty() { "no flags".to_owned() } else { names }
}

fn ipv4(frame: &HostFrame, at: usize) -> Option<Packet> {
    let Ipv4 { version_length, source, destination, protocol, .. } = frame.read(at)?;
    let addresses = Tunnel { source: source.into(), destination: destination.into() };
    Some(Packet { addresses, protocol, payload: at + usize::from(version_length & 0xf) * 4 })
}

/// Without extension headers, of which nothing here makes any and clients hardly.
fn ipv6(frame: &HostFrame, at: usize) -> Option<Packet> {
    let Ipv6 { next_header, source, destination, .. } = frame.read(at)?;
    let addresses = Tunnel { source: source.into(), destination: destination.into() };
    Some(Packet { addresses, protocol: next_header, payload: at + Ipv6::LEN })
}
