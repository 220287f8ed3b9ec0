//! TCP segments in frames, for running programs by hand. TCP checksums are left zero: no program
//! looks at them.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    checksum,
    wire::{self, Ipv4, Tcp, ethernet},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// To us, from a locally administered address.
pub const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// Clients that nobody is (RFC 5737, RFC 3849).
const CLIENT_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 77));
const CLIENT_V6: IpAddr =
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x77));

/// A client of a VIP's family that nobody is.
pub const fn stranger(vip: SocketAddr) -> IpAddr {
    if vip.is_ipv4() { CLIENT_V4 } else { CLIENT_V6 }
}

/// A TCP segment without payload, in its frame.
pub fn segment(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let mut frame = MACS.to_vec();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0x45, 0, 0, 40, 0, 1, 0x40, 0, wire::TTL, wire::TCP, 0, 0].to_vec();
            header.extend(source.octets());
            header.extend(destination.octets());
            sign(&mut header);
            frame.extend(ethernet::IPV4);
            frame.extend(header);
        }
        // Of one family both are: that of the service.
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            frame.extend(ethernet::IPV6);
            frame.extend([0x60, 0, 0, 0, 0, Tcp::LEN as u8, wire::TCP, wire::TTL]);
            frame.extend(octets(source));
            frame.extend(octets(destination));
        }
    }
    frame.extend(from.port().to_be_bytes());
    frame.extend(to.port().to_be_bytes());
    // Sequence and acknowledgement number, header length, flags, window, checksum, urgent.
    frame.extend([0, 0, 0, 7, 0, 0, 0, 9, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

/// Puts the right checksum into an IPv4 header at the start of these bytes.
pub fn sign(packet: &mut [u8]) {
    if let Ok((header, _)) = Ipv4::read_from_prefix(packet) {
        let sum = checksum::of_ipv4(&Ipv4 { checksum: [0; 2], ..header });
        packet[..Ipv4::LEN].copy_from_slice(Ipv4 { checksum: sum, ..header }.as_bytes());
    }
}
