//! What the file says of NAT: a service's `nat` and `nat_addresses`, the instance's `nat_ports`.

use std::net::IpAddr;

use lb_common::forward::Forwarding;
use toml::Spanned;

use super::{
    Error, Family, Problem, Source,
    desired::{Places, Seen},
    raw,
    values::{choice, unusable},
};
use crate::model::{ClientAddress, MAX_NAT_ADDRESSES, PortRange, Vip};

/// What is wrong with what a file says of NAT.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NatProblem {
    /// Where nothing is translated.
    #[error(
        "`{field}` is for `forwarding = \"nat\"`, but this service's is {forwarding:?}: leave one \
         of them out"
    )]
    OtherMode {
        /// Which field.
        field: &'static str,
        /// The service's, as the configuration has it.
        forwarding: &'static str,
    },
    /// Addresses that nothing is replaced by.
    #[error("`nat_addresses` have no use with `client_address = \"keep\"`: leave one of them out")]
    KeptClients,
    /// No address.
    #[error(
        "`nat_addresses` {value:?}: write an IP address of this host's, as \"198.18.0.5\" or \
         \"2001:db8::5\"; it takes no prefix and no port"
    )]
    NoAddress {
        /// As written.
        value: String,
    },
    /// NAT translates no families.
    #[error(
        "`nat_addresses` {address} is {}, but the VIP {vip} is {}: name addresses of its family",
        Family::of(*.address), Family::of(.vip.ip())
    )]
    OtherFamily {
        /// As written.
        address: IpAddr,
        /// The service's.
        vip: Vip,
    },
    /// More than there is room for.
    #[error("`nat_addresses` has {count} addresses: a service has at most {MAX_NAT_ADDRESSES}")]
    TooMany {
        /// As written.
        count: usize,
    },
    /// Answers could not be told from clients' segments.
    #[error("NAT address {address} is a VIP: name one that no client connects to")]
    IsVip {
        /// Which.
        address: IpAddr,
    },
    /// This host would take the backend's frames for its own.
    #[error("NAT address {address} is a backend's: name one of this host alone")]
    IsBackend {
        /// Which.
        address: IpAddr,
    },
    /// No range, or one that is not NAT's to use.
    #[error(
        "`nat_ports = {value:?}`: write the first and the last port, as \"{}\"; they go from {} \
         to {}", PortRange::NAT, PortRange::USABLE.first, PortRange::USABLE.last
    )]
    Ports {
        /// As written.
        value: String,
    },
}

/// What a service says of its clients' addresses.
pub(super) fn client_address(
    source: &Source<'_>,
    nat: Option<Spanned<raw::Nat>>,
    addresses: Option<Spanned<Vec<raw::Text>>>,
    forwarding: Forwarding,
    vip: Vip,
    seen: &mut Seen,
) -> Result<ClientAddress, Error> {
    let places = [
        ("nat", nat.as_ref().map(Spanned::span)),
        ("nat_addresses", addresses.as_ref().map(Spanned::span)),
    ];
    if forwarding != Forwarding::Nat
        && let Some((field, at)) = places.into_iter().find_map(|(field, at)| Some((field, at?)))
    {
        let forwarding = forwarding.name();
        return Err(source.refuse(at, NatProblem::OtherMode { field, forwarding }.into()));
    }
    let word = nat.and_then(|nat| nat.into_inner().client_address);
    let words = [(ClientAddress::default(), false), (ClientAddress::Kept, true)]
        .map(|(client_address, is_kept)| (client_address.name(), is_kept));
    let is_kept = choice(source, "client_address", word, false, &words)?;
    match (is_kept, addresses) {
        (true, None) => Ok(ClientAddress::Kept),
        (true, Some(addresses)) => {
            Err(source.refuse(addresses.span(), NatProblem::KeptClients.into()))
        }
        (false, None) => Ok(ClientAddress::default()),
        (false, Some(addresses)) => {
            let by = self::addresses(source, addresses, vip, seen)?;
            Ok(ClientAddress::Replaced { by })
        }
    }
}

/// In the order of the file, in which they are used.
fn addresses(
    source: &Source<'_>,
    raw: Spanned<Vec<raw::Text>>,
    vip: Vip,
    seen: &mut Seen,
) -> Result<Vec<IpAddr>, Error> {
    let at = raw.span();
    let raw = raw.into_inner();
    if raw.len() > MAX_NAT_ADDRESSES {
        return Err(source.refuse(at, NatProblem::TooMany { count: raw.len() }.into()));
    }
    let mut places = Places::default();
    let mut addresses = Vec::with_capacity(raw.len());
    for text in raw {
        let refuse = |problem: Problem| Err(source.refuse(text.span(), problem));
        let Ok(address) = text.get_ref().parse::<IpAddr>() else {
            return refuse(NatProblem::NoAddress { value: text.get_ref().clone() }.into());
        };
        if let Some(why) = unusable(address) {
            return refuse(Problem::Unusable { what: "NAT address", address, why });
        }
        if Family::of(address) != Family::of(vip.ip()) {
            return refuse(NatProblem::OtherFamily { address, vip }.into());
        }
        places.insert(source, address, text.span(), || {
            (format!("NAT address {address} of this service"), "name it once")
        })?;
        seen.add_nat_address(address, text.span().start);
        addresses.push(address);
    }
    Ok(addresses)
}

/// The instance's `nat_ports`.
pub(super) fn ports(source: &Source<'_>, raw: Option<raw::Text>) -> Result<PortRange, Error> {
    let Some(text) = raw else { return Ok(PortRange::NAT) };
    let value = text.get_ref();
    let range = value.split_once('-').and_then(|(first, last)| {
        let port = |text: &str| text.trim().parse().ok();
        Some(PortRange { first: port(first)?, last: port(last)? })
    });
    let is_fit = |range: &PortRange| (PortRange::USABLE.first..=range.last).contains(&range.first);
    range.filter(is_fit).ok_or_else(|| {
        source.refuse(text.span(), NatProblem::Ports { value: value.clone() }.into())
    })
}
