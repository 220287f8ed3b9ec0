//! What is said of addresses.

use std::{fmt, net::IpAddr};

/// What keeps an address from being a VIP or a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// `0.0.0.0/8` or `::`.
    #[error("is no host's address: write out the one that clients or frames go to")]
    Unspecified,
    /// `127.0.0.0/8` or `::1`.
    #[error("is a loopback address, which never leaves its host: give one that others reach")]
    Loopback,
    /// A group.
    #[error("is a multicast address: TCP needs the address of one host")]
    Multicast,
    /// Everybody.
    #[error("is the broadcast address: TCP needs the address of one host")]
    Broadcast,
    /// Ambiguous without an interface.
    #[error(
        "is link-local, which means something else on every link: give a global or a \
             unique local (fd00::/8) address"
    )]
    LinkLocal,
    /// `::ffff:a.b.c.d`.
    #[error("is an IPv4 address written as IPv6: write {0}")]
    Mapped(std::net::Ipv4Addr),
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 4.
    V4,
    /// 6.
    V6,
}

impl Family {
    /// An address's.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
