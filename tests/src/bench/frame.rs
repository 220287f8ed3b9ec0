//! The frames that the generator starts from, and the plans by which it makes others of them.

use std::net::Ipv6Addr;

use lb_common::{
    address::Address,
    bench::Plan,
    parse::Family,
    wire::{self, Ipv4, Ipv6, Tcp, ethernet},
};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::case::Sender;

/// The shortest frame on a wire, without its check sequence.
const SHORTEST: usize = 60;

/// The VIPs' port.
pub const PORT: u16 = 80;

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// Whom frames are for: the first half of [`MACS`].
pub const DESTINATION_MAC: &str = "02:00:00:00:00:01";

/// The first VIP; others follow it.
pub fn vip(family: Family, number: u32) -> Address {
    match family {
        Family::Ipv4 => Address::v4((0xcb00_7100 + number).to_be_bytes()),
        Family::Ipv6 => {
            let first = Ipv6Addr::new(0x2001, 0xdb8, 0xf00d, 0, 0, 0, 0, 0).to_bits();
            Address::v6((first + u128::from(number)).to_be_bytes())
        }
    }
}

/// An address that nobody balances.
pub fn stranger(family: Family) -> Address {
    match family {
        Family::Ipv4 => Address::v4([192, 0, 2, 1]),
        Family::Ipv6 => Address::v6([0x20; 16]),
    }
}

/// Prefix of the clients' addresses.
pub const fn clients(family: Family) -> Address {
    match family {
        Family::Ipv4 => Address::v4([198, 18, 0, 0]),
        Family::Ipv6 => Address::v6([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    }
}

/// The backends' addresses.
pub fn backend(family: Family, number: u32) -> Address {
    match family {
        Family::Ipv4 => Address::v4((0xc613_0001 + number).to_be_bytes()),
        Family::Ipv6 => {
            let [_, _, c, d] = number.to_be_bytes();
            Address::v6([0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, c, d])
        }
    }
}

/// The addresses that backends of translated flows see.
pub fn nat_address(family: Family, number: u8) -> Address {
    match family {
        Family::Ipv4 => Address::v4([198, 51, 100, 1 + number]),
        Family::Ipv6 => {
            Address::v6([0x20, 1, 0xd, 0xb8, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 + number])
        }
    }
}

/// Plans frames of some sender's, a client's to the first VIPs; of which flows is still to be said.
pub fn plan(family: Family, vips: u32, sender: Sender) -> Plan {
    let clients = plan_of_clients(family, vips);
    match sender {
        Sender::Client => clients,
        Sender::TranslatedClient => Plan { hops: hops(family), ..clients },
        Sender::Backend => Plan {
            answers: 1,
            hops: hops(family),
            client: backend(family, 0),
            vip: nat_address(family, 0),
            ..clients
        },
    }
}

/// See [`Plan::hops`].
const fn hops(family: Family) -> u32 {
    let bytes = match family {
        Family::Ipv4 => [wire::TTL, wire::TCP, 0, 0],
        Family::Ipv6 => [0, Tcp::LEN as u8, wire::TCP, wire::TTL],
    };
    u32::from_ne_bytes(bytes)
}

fn plan_of_clients(family: Family, vips: u32) -> Plan {
    let [first @ .., a, b, c, d] = MACS;
    Plan {
        vips: vips.into(),
        length: template(family, 0).len() as u64,
        macs: u64::from_ne_bytes(first),
        more_macs: u32::from_ne_bytes([a, b, c, d]),
        kind: u16::from_ne_bytes(kind(family)),
        vip_port: PORT.to_be(),
        client: clients(family),
        vip: vip(family, 0),
        ..Plan::new_zeroed()
    }
}

const fn kind(family: Family) -> [u8; 2] {
    match family {
        Family::Ipv4 => ethernet::IPV4,
        Family::Ipv6 => ethernet::IPV6,
    }
}

/// A TCP segment that fills the shortest frame, so that there is no padding: tunnels cut that off, and
/// the generator could not put it back. The generator fills in who it is from and for whom.
pub fn template(family: Family, flags: u8) -> Vec<u8> {
    let mut frame = [&MACS[..], &kind(family)].concat();
    match family {
        Family::Ipv4 => frame.extend(
            Ipv4 {
                version_length: 0x45,
                length: ((SHORTEST - ethernet::LEN) as u16).to_be_bytes(),
                fragment: [Ipv4::DONT_FRAGMENT, 0],
                ttl: wire::TTL,
                protocol: wire::TCP,
                ..Ipv4::new_zeroed()
            }
            .as_bytes(),
        ),
        Family::Ipv6 => frame.extend(
            Ipv6 {
                version_class_label: [0x60, 0, 0, 0],
                payload_length: (Tcp::LEN as u16).to_be_bytes(),
                next_header: wire::TCP,
                hop_limit: wire::TTL,
                ..Ipv6::new_zeroed()
            }
            .as_bytes(),
        ),
    }
    frame.extend(Tcp { offset: 5 << 4, flags, ..Tcp::new_zeroed() }.as_bytes());
    frame.resize(frame.len().max(SHORTEST), 0);
    frame
}
