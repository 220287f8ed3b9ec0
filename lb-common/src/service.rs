//! Which service, if any, is a packet for? And small enumerations of services and backends.

use crate::{
    abi::{Backend, Service, ServiceKey, capacity::FILTER_WORDS},
    address::Address,
    parse::Segment,
    tables::Tables,
    wire,
};

/// In place of a service's port: every port that no other service of its address has. Nobody can
/// be at this port itself: it is reserved (RFC 6335 §6), and what is sent to it is for no service.
pub const ANY_PORT: [u8; 2] = [0; 2];

/// What of a flow chooses its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Affinity {
    /// The whole 5-tuple.
    #[default]
    None = 0,
    /// The client's address: all its connections go to one backend.
    SourceIp = 1,
}

impl Affinity {
    /// As the configuration spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SourceIp => "source-ip",
        }
    }
}

/// What the kernel program does with flows of a backend. Whether *new* flows reach it is the
/// slots' matter alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum BackendState {
    /// No backend has this index.
    #[default]
    Absent = 0,
    /// Forward.
    Forward = 1,
    /// Reset the client: the backend is gone.
    Reset = 2,
    /// Forward, but a SYN that comes again goes to another backend: this one has answered nobody
    /// for a while.
    Suspect = 3,
}

impl BackendState {
    /// From the number in the map; anything unknown is absent.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Forward,
            2 => Self::Reset,
            3 => Self::Suspect,
            _ => Self::Absent,
        }
    }

    /// Whether its flows are forwarded.
    #[inline(always)]
    pub const fn forwards(self) -> bool {
        match self {
            Self::Forward | Self::Suspect => true,
            Self::Absent | Self::Reset => false,
        }
    }
}

/// The key of a service of TCP.
#[inline(always)]
pub fn key_of(address: Address, port: [u8; 2]) -> ServiceKey {
    let [a, b] = address.words();
    let [p, q] = port;
    // As words: by its fields it would be put together with a call of `memset`.
    zerocopy::transmute!([a, b, u64::from_ne_bytes([p, q, wire::TCP, 0, 0, 0, 0, 0])])
}

/// The identity of the service that a backend is one of.
#[inline(always)]
pub fn of_backend<T: Tables>(tables: &T, backend: &Backend) -> Option<ServiceKey> {
    tables.service(backend.service).map(Service::key)
}

/// Index of the service that new flows to an address and port are for: the one that has this very
/// port, otherwise the one that has any.
#[inline(always)]
pub fn index_of<T: Tables>(tables: &T, address: Address, port: [u8; 2]) -> Option<u16> {
    if is_any(port) {
        return None;
    }
    let exact = tables.service_index(&key_of(address, port));
    exact.or_else(|| tables.service_index(&key_of(address, ANY_PORT)))
}

/// Whether a service with this port has every port that no other has.
#[inline(always)]
pub fn is_any(port: [u8; 2]) -> bool {
    u16::from_ne_bytes(port) == u16::from_ne_bytes(ANY_PORT)
}

/// Whether a service's identity is what a segment is addressed to.
#[inline(always)]
pub fn is_for(segment: &Segment, key: &ServiceKey) -> bool {
    is_at(key, segment.destination, segment.ports.destination)
}

/// Whether a service's identity is where a segment comes from: its backend answers.
#[inline(always)]
pub fn is_from(segment: &Segment, key: &ServiceKey) -> bool {
    is_at(key, segment.source, segment.ports.source)
}

/// Whether a service's identity is this address and port. A service of any port may be at one that
/// another has by now: the flows that it had before stay with it.
#[inline(always)]
pub fn is_at(key: &ServiceKey, address: Address, port: [u8; 2]) -> bool {
    let (ours, theirs) = (key.address.words(), address.words());
    let is_its_address = || ours[1] == theirs[1] && ours[0] == theirs[0];
    // The usual case first, and alone: on the way of each packet every comparison counts.
    if u16::from_ne_bytes(key.port) == u16::from_ne_bytes(port) {
        is_its_address() && !is_any(port)
    } else {
        is_any(key.port) && is_its_address()
    }
}

/// A hash of a VIP's address, best in its upper bits. It need not be keyed: nobody outside
/// chooses the VIPs.
#[inline(always)]
pub const fn digest(address: Address) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let [a, b] = address.words();
    (a.wrapping_mul(ODD) ^ b).wrapping_mul(ODD)
}

/// Where a VIP address stands in the filter: (word, mask). Who aims at it makes only his own
/// frames a little slower.
#[inline(always)]
pub const fn filter_position(address: Address) -> (usize, u64) {
    let digest = digest(address);
    ((digest >> 54) as usize % FILTER_WORDS, 1 << (digest >> 48 & 63))
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::collections::HashSet;

    use super::*;
    use crate::host::sample::{self, ClientFrame, FAMILIES, Purpose};

    #[test]
    fn the_filter_spreads_neighbouring_addresses() {
        const ADDRESSES: u32 = 10_000;
        let v4 = |i: u32| IpAddr::V4(Ipv4Addr::from(0xcb00_7100 + i));
        let v6 = |i: u32| {
            let [.., a, b] = [(i >> 16) as u16, i as u16];
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xf00d, 0, 0, 0, a, b))
        };
        let subnets = |i: u32| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, i as u16, 0, 0, 0, 0, 1));
        let families: [(&str, &dyn Fn(u32) -> IpAddr); 3] =
            [("IPv4", &v4), ("IPv6", &v6), ("IPv6 subnets", &subnets)];
        for (name, address) in families {
            let mut bits = HashSet::new();
            for number in 0..ADDRESSES {
                let (word, mask) = filter_position(Address::from(address(number)));
                assert!(word < FILTER_WORDS && mask.is_power_of_two());
                bits.insert((word, mask));
            }
            // Thrown at random they would hit 9,275 of the 65,536 bits.
            assert!(bits.len() > 9_000, "{name}: {} bits", bits.len());
        }
    }

    #[test]
    fn a_service_is_for_its_own_address_and_port_only() {
        for family in FAMILIES {
            let frame = ClientFrame::new(Purpose::L2, family, 1);
            let segment = crate::parse::segment(&frame.frame(), |_, _| true).expect("well formed");
            let key = key_of(segment.destination, segment.ports.destination);
            assert_eq!(key, sample::key(frame.vip));
            assert!(is_for(&segment, &key));
            let mut elsewhere = frame.vip;
            elsewhere.set_port(81);
            assert!(!is_for(&segment, &sample::key(elsewhere)));
            for purpose in [Purpose::InIpv4, Purpose::SourceIp] {
                assert!(!is_for(&segment, &sample::key(sample::vip(purpose, family))));
            }
            // Alike but for one byte, whichever.
            for byte in 0..16 {
                let mut address = key.address.to_v6();
                address[byte] ^= 1;
                assert!(!is_for(&segment, &ServiceKey { address: Address::v6(address), ..key }));
            }
        }
    }

    #[test]
    fn numbers_stand_for_what_they_are_written_for() {
        use BackendState::{Absent, Forward, Reset, Suspect};
        for state in [Absent, Forward, Reset, Suspect] {
            assert_eq!(BackendState::from_number(state as u8), state);
        }
        for unknown in 4..=255 {
            assert_eq!(BackendState::from_number(unknown), Absent);
        }
    }
}
