//! What the file says of the instance itself: `[dataplane]` and `[http]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use lb_common::abi::capacity;
use toml::Spanned;

use super::{
    Error, Family, Problem, Source,
    desired::Places,
    nat, raw,
    values::{choice, is_interface_name, ranged, unusable},
};
use crate::model::{Dataplane, IdleTimeouts, XdpMode};

/// The most flows that a flow table is made for.
pub const FLOW_CAPACITY_MAX: u32 = 1 << 28;
const FLOW_CAPACITY: (i64, i64) = (1 << 10, FLOW_CAPACITY_MAX as i64);
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9180);

pub(super) fn dataplane(
    source: &Source<'_>,
    raw: Option<raw::Dataplane>,
) -> Result<Dataplane, Error> {
    let Some(raw) = raw else {
        return Err(source.refuse(0..0, Problem::NoInterface));
    };
    let flow_capacity = match raw.flow_capacity {
        Some(number) => ranged(source, "flow_capacity", &number, FLOW_CAPACITY)?,
        None => capacity::FLOWS as u32,
    };
    Ok(Dataplane {
        interfaces: interfaces(source, raw.interfaces)?,
        xdp_mode: choice(
            source,
            "xdp_mode",
            raw.xdp_mode,
            XdpMode::Auto,
            &[("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)],
        )?,
        flow_capacity: flow_capacity.next_power_of_two(),
        hash_seed: hash_seed(source, raw.hash_seed)?,
        own_vips: raw.own_vips.unwrap_or(true),
        tunnel_sources: tunnel_sources(source, raw.tunnel_source)?,
        nat_ports: nat::ports(source, raw.nat_ports)?,
        longest_idle: IdleTimeouts::default(),
    })
}

fn interfaces(
    source: &Source<'_>,
    raw: Option<Spanned<Vec<raw::Text>>>,
) -> Result<Vec<String>, Error> {
    let at = raw.as_ref().map_or(0..0, Spanned::span);
    let names = raw.map(Spanned::into_inner).unwrap_or_default();
    if names.is_empty() {
        return Err(source.refuse(at, Problem::NoInterface));
    }
    let mut seen = Places::default();
    for name in &names {
        if !is_interface_name(name.get_ref()) {
            let problem = Problem::InterfaceName { name: name.get_ref().clone() };
            return Err(source.refuse(name.span(), problem));
        }
        seen.insert(source, name.get_ref().clone(), name.span(), || {
            (format!("interface {:?}", name.get_ref()), "name it once")
        })?;
    }
    Ok(names.into_iter().map(Spanned::into_inner).collect())
}

fn hash_seed(source: &Source<'_>, raw: Option<raw::Text>) -> Result<Option<String>, Error> {
    let Some(seed) = raw else { return Ok(None) };
    let length = seed.get_ref().len();
    if !(1..=256).contains(&length) {
        return Err(source.refuse(seed.span(), Problem::HashSeed { length }));
    }
    Ok(Some(seed.into_inner()))
}

fn tunnel_sources(source: &Source<'_>, raw: Vec<raw::Text>) -> Result<Vec<IpNet>, Error> {
    let mut prefixes: Vec<IpNet> = Vec::new();
    for text in raw {
        let refuse = |problem| source.refuse(text.span(), problem);
        let value = text.get_ref();
        let Ok(prefix) = value.parse::<IpNet>() else {
            return Err(refuse(Problem::NoPrefix { value: value.clone() }));
        };
        if prefix != prefix.trunc() {
            let problem = Problem::LongPrefix { value: value.clone(), prefix: prefix.trunc() };
            return Err(refuse(problem));
        }
        if let Some(why) = unusable(prefix.addr()) {
            let problem = Problem::Unusable { what: "tunnel_source", address: prefix.addr(), why };
            return Err(refuse(problem));
        }
        let family = Family::of(prefix.addr());
        if prefixes.iter().any(|other| Family::of(other.addr()) == family) {
            return Err(refuse(Problem::SecondPrefix { family }));
        }
        prefixes.push(prefix);
    }
    Ok(prefixes)
}

pub(super) fn listen(source: &Source<'_>, raw: raw::Http) -> Result<Option<SocketAddr>, Error> {
    let Some(text) = raw.listen else { return Ok(Some(LISTEN)) };
    match text.get_ref().as_str() {
        "off" => Ok(None),
        value => match value.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) => {
                let problem = Problem::Listen { value: value.to_owned() };
                Err(source.refuse(text.span(), problem))
            }
        },
    }
}
