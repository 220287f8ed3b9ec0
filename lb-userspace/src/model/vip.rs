//! A VIP: the one place where it is parsed and printed, and made into the kernel's key.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
};

use lb_common::{
    abi::ServiceKey,
    address::Address,
    service::{self, ANY_PORT},
};
use serde::{Deserialize, Serialize};

/// Address and port that clients connect to; or any port, which is every one that no other service
/// of the address has. Written `203.0.113.10:80` and `203.0.113.10:*`, with IPv6
/// `[2001:db8::10]:80` and `[2001:db8::10]:*`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Vip {
    address: IpAddr,
    port: Option<NonZeroU16>,
}

/// What is not a VIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoVip {
    /// Not an address and a port.
    #[error("write an address and a port, as \"203.0.113.10:80\" or \"[2001:db8::10]:443\"")]
    Malformed,
    /// Nobody can connect there, and `0` is not the word for any port.
    #[error("clients can't connect to port 0; for every port write `*`")]
    PortZero,
}

impl Vip {
    /// Any port of an address.
    pub const fn any_port(address: IpAddr) -> Self {
        Self { address, port: None }
    }

    /// Its address.
    pub const fn ip(self) -> IpAddr {
        self.address
    }

    /// Its port; `None`: any.
    pub fn port(self) -> Option<u16> {
        self.port.map(NonZeroU16::get)
    }

    /// Whether the address is one of IPv4.
    pub const fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether the address is one of IPv6.
    pub const fn is_ipv6(self) -> bool {
        self.address.is_ipv6()
    }

    /// Its port there; of any port this one.
    pub fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, self.port().unwrap_or(port))
    }

    /// Where new flows to it can be sent that come to no other of `others`, of which those at other
    /// addresses do not matter: its port; of any port the highest that none of them has. If they
    /// have all, it is one of theirs.
    pub fn served_at(self, others: impl IntoIterator<Item = Self>) -> SocketAddr {
        if self.port.is_some() {
            return self.at(0);
        }
        let mut taken: Vec<u16> = others
            .into_iter()
            .filter(|o| o.address == self.address)
            .filter_map(Self::port)
            .collect();
        taken.sort_unstable();
        let free = (1..=u16::MAX).rev().find(|port| taken.binary_search(port).is_err());
        self.at(free.unwrap_or(u16::MAX))
    }

    /// The service's identity in the kernel's maps.
    pub fn key(self) -> ServiceKey {
        let port = self.port().map_or(ANY_PORT, u16::to_be_bytes);
        service::key_of(Address::from(self.address), port)
    }
}

impl From<SocketAddr> for Vip {
    /// Port 0 becomes any.
    fn from(at: SocketAddr) -> Self {
        Self { address: at.ip(), port: NonZeroU16::new(at.port()) }
    }
}

impl From<&ServiceKey> for Vip {
    fn from(key: &ServiceKey) -> Self {
        Self::from(SocketAddr::new(key.address.into(), u16::from_be_bytes(key.port)))
    }
}

impl From<Vip> for String {
    fn from(vip: Vip) -> Self {
        vip.to_string()
    }
}

impl TryFrom<String> for Vip {
    type Error = NoVip;

    fn try_from(text: String) -> Result<Self, NoVip> {
        text.parse()
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (address, Some(port)) => SocketAddr::new(address, port.get()).fmt(f),
            (IpAddr::V4(address), None) => f.pad(&format!("{address}:*")),
            (IpAddr::V6(address), None) => f.pad(&format!("[{address}]:*")),
        }
    }
}

impl FromStr for Vip {
    type Err = NoVip;

    fn from_str(text: &str) -> Result<Self, NoVip> {
        // In place of `*` a number that is none of its own: what stands before is read as ever.
        let (text, is_any) = match text.strip_suffix(":*") {
            Some(address) => (format!("{address}:1"), true),
            None => (text.to_owned(), false),
        };
        // `[fe80::1%2]:80`: a scope, or a flow label, has no place in a VIP.
        let at: SocketAddr = text.parse().map_err(|_| NoVip::Malformed)?;
        match (is_any, NonZeroU16::new(at.port())) {
            (true, _) => Ok(Self::any_port(at.ip())),
            (false, None) => Err(NoVip::PortZero),
            (false, port) => Ok(Self { address: at.ip(), port }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vip(text: &str) -> Vip {
        text.parse().expect(text)
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for text in ["203.0.113.10:80", "203.0.113.10:*", "[2001:db8::10]:443", "[2001:db8::10]:*"]
        {
            assert_eq!(vip(text).to_string(), text);
            assert_eq!(Vip::from(&vip(text).key()), vip(text));
        }
        assert_eq!(format!("{:<18}|", vip("203.0.113.10:*")), "203.0.113.10:*    |");
        assert_eq!(vip("203.0.113.10:*").port(), None);
        assert_eq!(vip("203.0.113.10:*"), Vip::any_port([203, 0, 113, 10].into()));
        assert_eq!(vip("[fe80::1%2]:*").to_string(), "[fe80::1]:*");
    }

    #[test]
    fn what_is_no_vip_is_refused() {
        for text in ["", ":*", "*", "*:80", "203.0.113.10", "203.0.113.10:**", "203.0.113.10:80:*"]
        {
            assert_eq!(text.parse::<Vip>(), Err(NoVip::Malformed), "{text}");
        }
        for text in ["2001:db8::10:*", "[2001:db8::10]*", "web:*", "203.0.113.10: *"] {
            assert_eq!(text.parse::<Vip>(), Err(NoVip::Malformed), "{text}");
        }
        assert_eq!("203.0.113.10:0".parse::<Vip>(), Err(NoVip::PortZero));
    }

    #[test]
    fn a_port_is_found_that_only_this_service_has() {
        let any = vip("203.0.113.10:*");
        let at = |others: &[&str]| any.served_at(others.iter().map(|text| vip(text))).port();
        assert_eq!(at(&[]), 65_535);
        assert_eq!(at(&["203.0.113.10:*", "203.0.113.11:65535"]), 65_535);
        assert_eq!(at(&["203.0.113.10:65534", "203.0.113.10:80", "203.0.113.10:65535"]), 65_533);
        let all = (1..=u16::MAX).map(|port| Vip::from(SocketAddr::new(any.ip(), port)));
        assert_eq!(any.served_at(all).port(), 65_535);
        assert_eq!(vip("203.0.113.10:80").served_at([]).port(), 80);
    }
}
