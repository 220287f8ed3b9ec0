//! The table `health` of a service → [`HealthCheck`], or none: defaults, ranges, and which field fits
//! which kind of check.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_common::forward::Forwarding;
use toml::Spanned;

use super::{
    Error, Problem, Source, raw,
    spec::default_check,
    values::{choice, duration, ranged},
};
use crate::model::{
    BODY_BYTES, CheckKind, GrpcCheck, HealthCheck, HttpCheck, Method, StatusRange, TlsCheck, Via,
    Vip,
};

const PROBE_TIMES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
const STREAKS: (i64, i64) = (1, 100);
const PORTS: (i64, i64) = (1, u16::MAX as i64);
/// Longest host, header value and gRPC service that is taken, bytes.
const TEXT_BYTES: usize = 1024;

/// What `check` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    None,
    Tcp,
    Http,
    Https,
    Grpc,
}

impl Check {
    const ALL: [Self; 5] = [Self::Tcp, Self::Http, Self::Https, Self::Grpc, Self::None];

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
            Self::Grpc => "grpc",
        }
    }
}

/// Whose backends are checked.
pub(super) struct CheckedService<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its VIP.
    pub vip: Vip,
    /// Where that is written.
    pub vip_at: Range<usize>,
    /// How frames reach its backends.
    pub forwarding: Forwarding,
}

pub(super) fn health(
    source: &Source<'_>,
    mut raw: raw::Health,
    of: &CheckedService<'_>,
) -> Result<Option<HealthCheck>, Error> {
    let CheckedService { forwarding, vip, .. } = *of;
    let default = default_check(forwarding);
    let words = Check::ALL.map(|check| (check.name(), check));
    let check = choice(source, "check", raw.check.take(), Check::Tcp, &words)?;
    refuse_misfits(source, &raw, check)?;
    let words = [Via::Vip, Via::Backend].map(|via| (via.name(), via));
    let via_at = raw.via.as_ref().map_or(0..0, Spanned::span);
    let via = choice(source, "via", raw.via.take(), default.via, &words)?;
    if via == Via::Vip && forwarding == Forwarding::Nat {
        return Err(source.refuse(via_at, Problem::VipOfNat));
    }
    let port = match &raw.port {
        Some(number) if via == Via::Vip && vip.port().is_some() => {
            return Err(source.refuse(number.span(), Problem::PortThroughVip));
        }
        Some(number) => Some(ranged(source, "port", number, PORTS)? as u16),
        None if vip.port().is_none() && check != Check::None => {
            let problem = Problem::CheckWithoutPort { service: of.name.to_owned(), vip };
            return Err(source.refuse(of.vip_at.clone(), problem));
        }
        None => None,
    };
    let interval = match &raw.interval {
        Some(text) => duration(source, "interval", text, "2s", PROBE_TIMES)?,
        None => default.interval,
    };
    let timeout = match &raw.timeout {
        Some(text) => duration(source, "timeout", text, "1s", PROBE_TIMES)?,
        None => default.timeout.min(interval),
    };
    if timeout > interval {
        let at = raw.timeout.or(raw.interval).map_or(0..0, |text| text.span());
        return Err(source.refuse(at, Problem::TimeoutExceedsInterval { timeout, interval }));
    }
    let rise = match &raw.rise {
        Some(number) => ranged(source, "rise", number, STREAKS)?,
        None => default.rise,
    };
    let fall = match &raw.fall {
        Some(number) => ranged(source, "fall", number, STREAKS)?,
        None => default.fall,
    };
    let kind = match check {
        Check::None => return Ok(None),
        Check::Tcp => CheckKind::Tcp,
        Check::Http => CheckKind::Http(http(source, &mut raw)?),
        Check::Https => {
            let tls = Some(tls(source, &mut raw)?);
            CheckKind::Http(HttpCheck { tls, ..http(source, &mut raw)? })
        }
        Check::Grpc => CheckKind::Grpc(grpc(source, &mut raw)?),
    };
    Ok(Some(HealthCheck { kind, via, port, interval, timeout, rise, fall }))
}

/// Names the first field that another kind of check has.
fn refuse_misfits(source: &Source<'_>, raw: &raw::Health, check: Check) -> Result<(), Error> {
    fn at<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
        value.as_ref().map(Spanned::span)
    }
    const PROBED: (&str, &[Check]) =
        ("checks that ask", &[Check::Tcp, Check::Http, Check::Https, Check::Grpc]);
    const HTTP: (&str, &[Check]) =
        ("`check = \"http\"` or \"https\"", &[Check::Http, Check::Https]);
    const REQUEST: (&str, &[Check]) =
        ("`check = \"http\"`, \"https\" or \"grpc\"", &[Check::Http, Check::Https, Check::Grpc]);
    const TLS: (&str, &[Check]) = ("`check = \"https\"` or \"grpc\"", &[Check::Https, Check::Grpc]);
    const GRPC: (&str, &[Check]) = ("`check = \"grpc\"`", &[Check::Grpc]);

    if let (Some(tls), Check::Http | Check::Https) = (&raw.tls, check) {
        return Err(source.refuse(tls.span(), Problem::TlsWithHttp));
    }
    let fields = [
        ("via", at(&raw.via), PROBED),
        ("port", at(&raw.port), PROBED),
        ("method", at(&raw.method), HTTP),
        ("path", at(&raw.path), HTTP),
        ("host", at(&raw.host), REQUEST),
        ("headers", at(&raw.headers), HTTP),
        ("status", at(&raw.status), HTTP),
        ("body", at(&raw.body), HTTP),
        ("service", at(&raw.service), GRPC),
        ("tls", at(&raw.tls), GRPC),
        ("server_name", at(&raw.server_name), TLS),
        ("verify", at(&raw.verify), TLS),
        ("ca_file", at(&raw.ca_file), TLS),
        ("interval", at(&raw.interval), PROBED),
        ("timeout", at(&raw.timeout), PROBED),
        ("rise", at(&raw.rise), PROBED),
        ("fall", at(&raw.fall), PROBED),
    ];
    for (field, at, (fits, checks)) in fields {
        if let Some(at) = at
            && !checks.contains(&check)
        {
            let problem = Problem::CheckField { field, fits, check: check.name() };
            return Err(source.refuse(at, problem));
        }
    }
    Ok(())
}

fn http(source: &Source<'_>, raw: &mut raw::Health) -> Result<HttpCheck, Error> {
    let words = [Method::Get, Method::Head, Method::Options].map(|m| (m.name(), m));
    let method = choice(source, "method", raw.method.take(), Method::Get, &words)?;
    if let (Method::Head, Some(body)) = (method, &raw.body) {
        return Err(source.refuse(body.span(), Problem::BodyOfHead));
    }
    let default = HttpCheck::default();
    Ok(HttpCheck {
        method,
        path: match raw.path.take() {
            Some(text) => path(source, text)?,
            None => default.path,
        },
        host: host(source, raw.host.take())?,
        headers: match raw.headers.take() {
            Some(headers) => self::headers(source, headers.into_inner())?,
            None => default.headers,
        },
        status: match raw.status.take() {
            Some(status) => self::status(source, &status)?,
            None => default.status,
        },
        body: match raw.body.take() {
            Some(text) => Some(sized(source, "body", text, BODY_BYTES)?),
            None => None,
        },
        tls: None,
    })
}

fn grpc(source: &Source<'_>, raw: &mut raw::Health) -> Result<GrpcCheck, Error> {
    let speaks_tls = raw.tls.take().is_some_and(Spanned::into_inner);
    let about_tls = [
        ("server_name", raw.server_name.as_ref().map(Spanned::span)),
        ("verify", raw.verify.as_ref().map(Spanned::span)),
        ("ca_file", raw.ca_file.as_ref().map(Spanned::span)),
    ];
    for (field, at) in about_tls {
        if let (false, Some(at)) = (speaks_tls, at) {
            return Err(source.refuse(at, Problem::WithoutTls { field }));
        }
    }
    Ok(GrpcCheck {
        service: match raw.service.take() {
            Some(text) => sized(source, "service", text, TEXT_BYTES)?,
            None => String::new(),
        },
        host: host(source, raw.host.take())?,
        tls: if speaks_tls { Some(tls(source, raw)?) } else { None },
    })
}

fn tls(source: &Source<'_>, raw: &mut raw::Health) -> Result<TlsCheck, Error> {
    let verify = raw.verify.take().is_none_or(Spanned::into_inner);
    if let (false, Some(ca_file)) = (verify, &raw.ca_file) {
        return Err(source.refuse(ca_file.span(), Problem::CaWithoutVerify));
    }
    Ok(TlsCheck {
        server_name: match raw.server_name.take() {
            Some(text) => Some(server_name(source, text)?),
            None => None,
        },
        verify,
        ca_file: match raw.ca_file.take() {
            Some(text) => Some(ca_file(source, &text)?),
            None => None,
        },
    })
}

fn path(source: &Source<'_>, text: raw::Text) -> Result<String, Error> {
    let path = text.get_ref();
    let fits = path.starts_with('/') && path.len() <= TEXT_BYTES;
    // A fragment is never sent (RFC 9110, §4.1).
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if fits && path.bytes().all(allowed) && path.parse::<hyper::Uri>().is_ok() {
        return Ok(text.into_inner());
    }
    let problem = Problem::HttpPath { path: path.clone() };
    Err(source.refuse(text.span(), problem))
}

/// A name or an address, with a port or without.
fn host(source: &Source<'_>, text: Option<raw::Text>) -> Result<Option<String>, Error> {
    let Some(text) = text else { return Ok(None) };
    let host = text.get_ref();
    let fits = (1..=TEXT_BYTES).contains(&host.len()) && !host.contains('@');
    if fits && host.parse::<hyper::http::uri::Authority>().is_ok() {
        return Ok(Some(text.into_inner()));
    }
    let problem = Problem::Host { host: host.clone() };
    Err(source.refuse(text.span(), problem))
}

fn headers(
    source: &Source<'_>,
    raw: BTreeMap<raw::Text, raw::Text>,
) -> Result<Vec<(String, String)>, Error> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for (name, value) in raw {
        let twice = headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name.get_ref()));
        if let Some(why) = wrong_header(name.get_ref(), value.get_ref(), twice) {
            let at = name.span();
            let (name, value) = (name.into_inner(), value.into_inner());
            return Err(source.refuse(at, Problem::Header { name, value, why }));
        }
        headers.push((name.into_inner(), value.into_inner()));
    }
    Ok(headers)
}

fn wrong_header(name: &str, value: &str, twice: bool) -> Option<&'static str> {
    const OURS: [&str; 5] =
        ["connection", "content-length", "expect", "transfer-encoding", "upgrade"];
    if hyper::header::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Some("a name has letters, digits and -");
    }
    if name.eq_ignore_ascii_case("host") {
        return Some("use the field `host`");
    }
    if OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours)) {
        return Some("the probe says this itself; leave it out");
    }
    if twice {
        return Some("this name is there twice, for case makes no difference; join the values");
    }
    let fits = value.len() <= TEXT_BYTES;
    let allowed = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    if !fits || !value.bytes().all(allowed) || value.trim() != value {
        return Some("a value has at most 1024 ASCII characters, no blanks around them");
    }
    None
}

fn status(source: &Source<'_>, status: &Spanned<raw::Status>) -> Result<Vec<StatusRange>, Error> {
    let refuse =
        |value: &str| source.refuse(status.span(), Problem::Status { value: value.to_owned() });
    let texts = &status.get_ref().0;
    if texts.is_empty() {
        return Err(refuse(""));
    }
    texts.iter().map(|text| range(text).ok_or_else(|| refuse(text))).collect()
}

fn range(text: &str) -> Option<StatusRange> {
    let code = |text: &str| {
        let code: u16 = text.trim().parse().ok()?;
        (100..=599).contains(&code).then_some(code)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (code(first)?, code(last)?);
    (first <= last).then_some(StatusRange { first, last })
}

fn server_name(source: &Source<'_>, text: raw::Text) -> Result<String, Error> {
    let name = text.get_ref();
    if rustls::pki_types::ServerName::try_from(name.as_str()).is_ok() {
        return Ok(text.into_inner());
    }
    let problem = Problem::ServerName { name: name.clone() };
    Err(source.refuse(text.span(), problem))
}

fn ca_file(source: &Source<'_>, text: &raw::Text) -> Result<PathBuf, Error> {
    let path = Path::new(text.get_ref());
    if path.is_absolute() && !text.get_ref().contains('\0') {
        return Ok(path.to_owned());
    }
    let problem = Problem::CaFile { path: text.get_ref().clone() };
    Err(source.refuse(text.span(), problem))
}

fn sized(
    source: &Source<'_>,
    field: &'static str,
    text: raw::Text,
    most: usize,
) -> Result<String, Error> {
    let length = text.get_ref().len();
    if (1..=most).contains(&length) {
        return Ok(text.into_inner());
    }
    Err(source.refuse(text.span(), Problem::Length { field, length, most }))
}
