//! Raw TOML → [`Desired`]: defaults, ranges, and what fits together.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    ops::Range,
    time::Duration,
};

use lb_common::{abi::capacity, forward::Forwarding, maglev::DEFAULT_SLOTS, service::Affinity};
use toml::Spanned;

use super::{
    Error, Family, MAX_WEIGHT, Problem, Source,
    dataplane::{dataplane, listen},
    health::{CheckedService, health},
    nat::{self, NatProblem},
    raw,
    values::{checked_name, choice, duration, prime_from, ranged, required, share, unusable},
};
use crate::{
    drain::Admin,
    model::{Backend, Dataplane, Desired, IcmpEcho, IdleTimeouts, NoVip, Outlier, Service, Vip},
};

pub(super) const DRAIN_DEADLINE: Duration = Duration::from_secs(5 * 60);
pub(super) const WEIGHT: u16 = 100;
pub(super) const PANIC_THRESHOLD: f64 = 0.5;

const DRAIN_DEADLINES: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(30 * 86_400));
const SLOW_STARTS: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(3600));
/// The MSS of who announces none (RFC 9293 §3.7.1).
const LEAST_MSS_V4: i64 = 536;
/// What IPv6's smallest MTU leaves of it (RFC 8200 §5).
const LEAST_MSS_V6: i64 = 1220;
const MIN_AVAILABLE: (i64, i64) = (0, capacity::BACKENDS as i64 - 1);
/// A time-out below a tick of the flow table, some seconds, could not be kept.
const IDLE_TIMES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(86_400));

/// Slots a backend that keep the shares even within 1 % (Maglev, NSDI 2016, §3.4).
pub(super) const SLOTS_PER_BACKEND: usize = 100;

pub(super) fn desired(source: &Source<'_>, raw: raw::File) -> Result<Desired, Error> {
    let dataplane = dataplane(source, raw.dataplane)?;
    let http = listen(source, raw.http)?;
    let mut seen = Seen::default();
    let mut services = Vec::with_capacity(raw.service.len());
    for (index, service) in raw.service.into_iter().enumerate() {
        if index == capacity::SERVICES {
            return Err(source.refuse(service.span(), Problem::TooManyServices));
        }
        services.push(self::service(source, service, &mut seen)?);
    }
    seen.refuse_loops(source)?;
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let longest = |longest: IdleTimeouts, service: &Service| longest.max(service.idle);
    let longest_idle = services.iter().fold(IdleTimeouts::default(), longest);
    let dataplane = Dataplane { longest_idle, ..dataplane };
    Ok(Desired { dataplane, http, services })
}

pub(super) fn service(
    source: &Source<'_>,
    raw: Spanned<raw::Service>,
    seen: &mut Seen,
) -> Result<Service, Error> {
    let at = raw.span();
    let raw = raw.into_inner();
    let name = required(source, &at, "this [[service]]", "name", "web", raw.name)?;
    let name_at = name.span();
    let name = checked_name(source, "service", name)?;
    seen.services.insert(source, name.clone(), name_at, || {
        (format!("service {name:?}"), "give each service a name of its own")
    })?;
    let of = format!("service {name:?}");
    let vip = required(source, &at, &of, "vip", "203.0.113.10:80", raw.vip)?;
    let vip_at = vip.span();
    let vip = self::vip(source, vip)?;
    seen.vips.insert(source, vip, vip_at.clone(), || {
        (format!("VIP {vip}"), "give each service a port or an address of its own")
    })?;
    seen.vip_addresses.entry(vip.ip()).or_insert(Some(vip_at.start));
    let forwarding = choice(
        source,
        "forwarding",
        raw.forwarding,
        Forwarding::L2,
        &[
            (Forwarding::L2.name(), Forwarding::L2),
            (Forwarding::Ipip.name(), Forwarding::Ipip),
            (Forwarding::Nat.name(), Forwarding::Nat),
        ],
    )?;
    let client_address =
        nat::client_address(source, raw.nat, raw.nat_addresses, forwarding, vip, seen)?;
    let affinity = choice(
        source,
        "affinity",
        raw.affinity,
        Affinity::None,
        &[(Affinity::None.name(), Affinity::None), (Affinity::SourceIp.name(), Affinity::SourceIp)],
    )?;
    let icmp_echo = choice(
        source,
        "icmp_echo",
        raw.icmp_echo,
        IcmpEcho::default(),
        &[IcmpEcho::Always, IcmpEcho::Healthy].map(|word| (word.name(), word)),
    )?;
    let mss_clamp = raw.mss_clamp.map(|number| {
        let least = if vip.ip().is_ipv4() { LEAST_MSS_V4 } else { LEAST_MSS_V6 };
        ranged(source, "mss_clamp", &number, (least, i64::from(u16::MAX)))
    });
    let mss_clamp = mss_clamp.transpose()?.map(|most| most as u16);
    let slots_at = raw.slots.as_ref().map_or(at, Spanned::span);
    let slots = slots(source, raw.slots)?;
    let drain_deadline = match raw.drain_deadline {
        Some(text) => duration(source, "drain_deadline", &text, "5m", DRAIN_DEADLINES)?,
        None => DRAIN_DEADLINE,
    };
    if vip.port().is_none() && forwarding == Forwarding::Nat {
        return Err(source.refuse(vip_at, Problem::AnyPortOfNat { service: name }));
    }
    let checked = CheckedService { name: &name, vip, vip_at, forwarding };
    let health = health(source, raw.health, &checked)?;
    let min_available = match raw.min_available {
        Some(number) => ranged(source, "min_available", &number, MIN_AVAILABLE)? as u16,
        None => 1,
    };
    let idle = idle(source, raw.idle_timeout, forwarding)?;
    let count = raw.backend.len();
    if let Some(problem) = few_slots(&name, slots, count) {
        return Err(source.refuse(slots_at, problem));
    }
    let mut service = Service {
        name,
        vip,
        forwarding,
        client_address,
        affinity,
        icmp_echo,
        mss_clamp,
        slots,
        drain_deadline,
        health,
        min_available,
        fail_open: raw.fail_open.unwrap_or(true),
        reset_unreachable: raw.reset_unreachable.unwrap_or(true),
        panic_threshold: share(source, "panic_threshold", raw.panic_threshold, PANIC_THRESHOLD)?,
        slow_start: match raw.slow_start {
            Some(text) => duration(source, "slow_start", &text, "30s", SLOW_STARTS)?,
            None => Duration::ZERO,
        },
        outlier: choice(
            source,
            "outlier",
            raw.outlier,
            Outlier::default(),
            &[Outlier::Off, Outlier::Report, Outlier::Eject].map(|word| (word.name(), word)),
        )?,
        idle,
        backends: Vec::with_capacity(count),
        leaving: false,
    };
    let mut members = Members::default();
    for raw in raw.backend {
        if seen.backends.len() == capacity::BACKENDS - 1 {
            return Err(source.refuse(raw.span(), Problem::TooManyBackends));
        }
        let backend = backend(source, raw, &service, seen, &mut members)?;
        service.backends.push(backend);
    }
    service.backends.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(service)
}

/// Why that many backends can't share so many slots.
pub(super) fn few_slots(service: &str, slots: u32, backends: usize) -> Option<Problem> {
    if slots as usize >= backends {
        return None;
    }
    let fitting = u32::try_from(backends * SLOTS_PER_BACKEND)
        .ok()
        .map(prime_from)
        .filter(|prime| *prime >= (backends * SLOTS_PER_BACKEND) as u32);
    Some(Problem::FewSlots { service: service.to_owned(), backends, slots, fitting })
}

fn vip(source: &Source<'_>, text: raw::Text) -> Result<Vip, Error> {
    let at = text.span();
    let value = text.into_inner();
    let vip = match value.parse::<Vip>() {
        Ok(vip) => vip,
        Err(NoVip::Malformed) => return Err(source.refuse(at, Problem::NoVip { value })),
        Err(NoVip::PortZero) => return Err(source.refuse(at, Problem::PortZero { value })),
    };
    if let Some(why) = unusable(vip.ip()) {
        return Err(source.refuse(at, Problem::Unusable { what: "VIP", address: vip.ip(), why }));
    }
    Ok(vip)
}

fn slots(source: &Source<'_>, raw: Option<raw::Number>) -> Result<u32, Error> {
    let Some(number) = raw else { return Ok(DEFAULT_SLOTS) };
    let slots = ranged(source, "slots", &number, (2, i64::from(capacity::MAX_SLOTS)))?;
    let next = prime_from(slots);
    if next != slots {
        let problem = Problem::NoPrime { value: number.get_ref().0, next };
        return Err(source.refuse(number.span(), problem));
    }
    Ok(slots)
}

fn idle(
    source: &Source<'_>,
    raw: raw::IdleTimeout,
    forwarding: Forwarding,
) -> Result<IdleTimeouts, Error> {
    let default = IdleTimeouts::of(forwarding);
    let time = |field, text: Option<raw::Text>, default| match text {
        Some(text) => duration(source, field, &text, "15m", IDLE_TIMES),
        None => Ok(default),
    };
    Ok(IdleTimeouts {
        embryonic: time("embryonic", raw.embryonic, default.embryonic)?,
        established: time("established", raw.established, default.established)?,
        closing: time("closing", raw.closing, default.closing)?,
    })
}

pub(super) fn backend(
    source: &Source<'_>,
    raw: Spanned<raw::Backend>,
    service: &Service,
    seen: &mut Seen,
    members: &mut Members,
) -> Result<Backend, Error> {
    let at = raw.span();
    let raw = raw.into_inner();
    let of = format!("a backend of service {:?}", service.name);
    let name = required(source, &at, &of, "name", "web-1", raw.name)?;
    let name_at = name.span();
    let name = checked_name(source, "backend", name)?;
    members.names.insert(source, name.clone(), name_at, || {
        (format!("backend {name:?} of service {:?}", service.name), "give each a name of its own")
    })?;
    let of = format!("backend {name:?}");
    let text = required(source, &at, &of, "address", "10.0.0.11", raw.address)?;
    let Ok(address) = text.get_ref().parse::<IpAddr>() else {
        let problem = Problem::NoAddress { value: text.get_ref().clone() };
        return Err(source.refuse(text.span(), problem));
    };
    if let Some(why) = unusable(address) {
        let problem = Problem::Unusable { what: "backend address", address, why };
        return Err(source.refuse(text.span(), problem));
    }
    let (vip, forwarding) = (service.vip, service.forwarding);
    if forwarding != Forwarding::Ipip && Family::of(address) != Family::of(vip.ip()) {
        let problem = Problem::FamilyMismatch { backend: name, address, vip, forwarding };
        return Err(source.refuse(text.span(), problem));
    }
    let port = match raw.port {
        Some(number) => {
            let port = ranged(source, "port", &number, (1, i64::from(u16::MAX)))? as u16;
            if forwarding != Forwarding::Nat && vip.port() != Some(port) {
                let forwarding = forwarding.name();
                let problem = match vip.port() {
                    Some(vip) => Problem::PortMismatch { backend: name, port, vip, forwarding },
                    None => Problem::PortOfAnyPort { backend: name, port, vip },
                };
                return Err(source.refuse(number.span(), problem));
            }
            port
        }
        None => vip.port().unwrap_or(0),
    };
    members.addresses.insert(source, (address, port), text.span(), || {
        (format!("a backend at {address} port {port}"), "give one server one entry and its weight")
    })?;
    seen.backends.push((address, text.span().start));
    let weight = match raw.weight {
        Some(number) => ranged(source, "weight", &number, (0, i64::from(MAX_WEIGHT)))? as u16,
        None => WEIGHT,
    };
    Ok(Backend {
        name,
        address,
        port,
        weight,
        backup: raw.backup.unwrap_or(false),
        admin: Admin::Enabled,
        leaving: false,
    })
}

/// What must be unique in an instance, and where it was first.
#[derive(Default)]
pub(super) struct Seen {
    services: Places<String>,
    vips: Places<Vip>,
    vip_addresses: HashMap<IpAddr, Option<usize>>,
    backends: Vec<(IpAddr, usize)>,
    nat_addresses: Vec<(IpAddr, usize)>,
}

impl Seen {
    /// All that is in an instance already, but what is leaving it.
    pub(super) fn of(desired: &Desired) -> Self {
        let mut seen = Self::default();
        for service in desired.services.iter().filter(|service| !service.leaving) {
            seen.services.0.insert(service.name.clone(), None);
            seen.vips.0.insert(service.vip, None);
            seen.vip_addresses.insert(service.vip.ip(), None);
            let staying = service.backends.iter().filter(|backend| !backend.leaving);
            seen.backends.extend(staying.map(|backend| (backend.address, 0)));
            let named = service.client_address.named().iter();
            seen.nat_addresses.extend(named.map(|address| (*address, 0)));
        }
        seen
    }

    pub(super) fn add_nat_address(&mut self, address: IpAddr, at: usize) {
        self.nat_addresses.push((address, at));
    }

    /// A backend at an address of ours would get its frames from itself; what comes to a NAT
    /// address is a backend's answer and nothing else.
    pub(super) fn refuse_loops(&self, source: &Source<'_>) -> Result<(), Error> {
        for (address, at) in &self.backends {
            if let Some(vip) = self.vip_addresses.get(address) {
                let line = vip.map(|vip| source.line(vip));
                let problem = Problem::BackendIsVip { address: *address, line };
                return Err(source.refuse(*at..*at, problem));
            }
        }
        if self.nat_addresses.is_empty() {
            return Ok(());
        }
        let backends: HashSet<IpAddr> = self.backends.iter().map(|(address, _)| *address).collect();
        for &(address, at) in &self.nat_addresses {
            let problem = if self.vip_addresses.contains_key(&address) {
                NatProblem::IsVip { address }
            } else if backends.contains(&address) {
                NatProblem::IsBackend { address }
            } else {
                continue;
            };
            return Err(source.refuse(at..at, problem.into()));
        }
        Ok(())
    }
}

/// What must be unique in a service.
#[derive(Default)]
pub(super) struct Members {
    names: Places<String>,
    addresses: Places<(IpAddr, u16)>,
}

impl Members {
    /// All that is in a service already, but what is leaving it.
    pub(super) fn of(service: &Service) -> Self {
        let mut members = Self::default();
        for backend in service.backends.iter().filter(|backend| !backend.leaving) {
            members.names.0.insert(backend.name.clone(), None);
            members.addresses.0.insert((backend.address, backend.port), None);
        }
        members
    }
}

/// Where each thing stands in the file; `None`: not there, but in what runs.
pub(super) struct Places<T>(HashMap<T, Option<usize>>);

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> Places<T> {
    pub(super) fn insert(
        &mut self,
        source: &Source<'_>,
        thing: T,
        at: Range<usize>,
        words: impl FnOnce() -> (String, &'static str),
    ) -> Result<(), Error> {
        match self.0.insert(thing, Some(at.start)) {
            None => Ok(()),
            Some(first) => {
                let (what, way_out) = words();
                let line = first.map(|first| source.line(first));
                Err(source.refuse(at, Problem::Duplicate { what, line, way_out }))
            }
        }
    }
}
