//! Why a config file is refused: the one list. Each message names the place, the thing and
//! the way out.

mod address;
mod words;

use std::{fmt, io, net::IpAddr, path::PathBuf, time::Duration};

use humantime::format_duration;
use lb_common::{abi::capacity, forward::Forwarding};

pub use self::address::{Family, Unusable};
use self::words::{in_field, keeps_family, the_vip, there, way_out};
use super::{MAX_FILE_BYTES, nat::NatProblem};
use crate::model::Vip;

/// Why there is no [`Desired`](crate::model::Desired).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody writes such a file by hand; reading it whole would be no favour.
    #[error("{path} is larger than {} MiB: is it a config file?", MAX_FILE_BYTES >> 20)]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// The file can't be what is wanted.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where.
        place: Place,
        /// What, and the way out.
        problem: Box<Problem>,
    },
}

/// A place in a file; lines and columns (in characters) count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name as given.
    pub file: String,
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    /// A byte that is no text.
    #[error("not UTF-8: save the file as UTF-8 text")]
    NotText,
    /// No TOML, an unknown field, or a value of another type.
    #[error("{message}{}", in_field(.field))]
    Toml {
        /// TOML's or serde's words.
        message: String,
        /// Path of the field, where known.
        field: Option<String>,
    },
    /// Nothing behind `=`.
    #[error("a value is missing: write one, or leave the field out")]
    NoValue,
    /// A bare word, which TOML takes for a number gone wrong.
    #[error("`{word}` is neither a number nor true or false: a text needs quotes, as {word:?}")]
    Unquoted {
        /// As written.
        word: String,
    },
    /// Nothing to attach to.
    #[error(
        "no interface: name those where clients' frames arrive, as in `[dataplane]` \
         `interfaces = [\"eth0\"]`"
    )]
    NoInterface,
    /// The kernel would never give an interface this name.
    #[error(
        "interface {name:?}: a name has 1 to 15 characters, without blanks, `/` and `:`; \
         see `ip link`"
    )]
    InterfaceName {
        /// As written.
        name: String,
    },
    /// A field that has no default.
    #[error("{thing} has no `{field}`: add `{field} = {example:?}`")]
    Missing {
        /// What it belongs to.
        thing: String,
        /// Which.
        field: &'static str,
        /// What it could be.
        example: &'static str,
    },
    /// A name that metrics and commands could not carry.
    #[error("{what} name {name:?}: use 1 to 63 of A-Z a-z 0-9 . _ -")]
    Name {
        /// Whose.
        what: &'static str,
        /// As written.
        name: String,
    },
    /// The same thing twice.
    #[error("{what} is already {}: {way_out}", there(.line))]
    Duplicate {
        /// What.
        what: String,
        /// Where it was first; `None`: not in this text, but in what runs.
        line: Option<usize>,
        /// What to do.
        way_out: &'static str,
    },
    /// None of the words a field takes.
    #[error("`{field} = {value:?}`: it is one of {choices}")]
    Choice {
        /// Which field.
        field: &'static str,
        /// As written.
        value: String,
        /// What it can be.
        choices: String,
    },
    /// A number too small or too large.
    #[error("`{field} = {value}`: it goes from {least} to {most}")]
    Range {
        /// Which field.
        field: &'static str,
        /// As written.
        value: i64,
        /// Smallest allowed.
        least: i64,
        /// Largest allowed.
        most: i64,
    },
    /// No duration.
    #[error("`{field} = {value:?}`: a duration has a number and a unit, as in \"{example}\"")]
    NoDuration {
        /// Which field.
        field: &'static str,
        /// As written.
        value: String,
        /// What it could be.
        example: &'static str,
    },
    /// A duration too short or too long.
    #[error(
        "`{field} = {value:?}`: it goes from {} to {}",
        format_duration(*.least),
        format_duration(*.most)
    )]
    DurationRange {
        /// Which field.
        field: &'static str,
        /// As written.
        value: String,
        /// Shortest allowed.
        least: Duration,
        /// Longest allowed.
        most: Duration,
    },
    /// Probes would overlap.
    #[error(
        "`timeout` {} is longer than `interval` {}: a probe must end before the next one; \
         shorten it or lengthen `interval`",
        format_duration(*.timeout),
        format_duration(*.interval)
    )]
    TimeoutExceedsInterval {
        /// Of one probe.
        timeout: Duration,
        /// Between two.
        interval: Duration,
    },
    /// A field of another kind of check.
    #[error("`{field}` is for {fits}, but this check is {check:?}: leave one of them out")]
    CheckField {
        /// Which field.
        field: &'static str,
        /// What it fits, as the configuration has it.
        fits: &'static str,
        /// What it is.
        check: &'static str,
    },
    /// A port that the data plane does not forward.
    #[error(
        "`port` can't be asked through the VIP, of which only its own port is forwarded: add \
         `via = \"backend\"`, or leave `port` out"
    )]
    PortThroughVip,
    /// Nobody would answer.
    #[error(
        "`via = \"vip\"` is for l2 and ipip: with nat no backend has the VIP, and its own address is \
         the way of traffic; leave `via` out"
    )]
    VipOfNat,
    /// HTTP over TLS by another name.
    #[error("`tls` is for `check = \"grpc\"`: with HTTP, use `check = \"https\"`")]
    TlsWithHttp,
    /// A field about TLS without TLS.
    #[error("`{field}` is about TLS, which this check does not speak: add `tls = true`")]
    WithoutTls {
        /// Which field.
        field: &'static str,
    },
    /// Those who sign certificates that nobody looks at.
    #[error("`ca_file` has no use with `verify = false`: leave one of them out")]
    CaWithoutVerify,
    /// The daemon's directory is not the file's.
    #[error("`ca_file = {path:?}`: write the whole path, from `/` on")]
    CaFile {
        /// As written.
        path: String,
    },
    /// No name that a certificate could have.
    #[error(
        "`server_name = {name:?}`: write a host's name, as \"web.example\", or an IP address; \
         no port"
    )]
    ServerName {
        /// As written.
        name: String,
    },
    /// No Host header.
    #[error("`host = {host:?}`: write a host's name, with a port if need be, as \"web.example\"")]
    Host {
        /// As written.
        host: String,
    },
    /// No header.
    #[error("header {name:?} = {value:?}: {why}")]
    Header {
        /// Its name, as written.
        name: String,
        /// Its value, as written.
        value: String,
        /// What is wrong, and the way out.
        why: &'static str,
    },
    /// No status code.
    #[error(
        "`status` {value:?}: write codes from 100 to 599, as 204 or \"200-399\", or a list of \
         these"
    )]
    Status {
        /// As written.
        value: String,
    },
    /// A body that is never sent.
    #[error("no answer to `method = \"HEAD\"` has a body: use \"GET\", or leave `body` out")]
    BodyOfHead,
    /// Nothing, or more than is read.
    #[error("`{field}` has {length} bytes: it is a text of 1 to {most}")]
    Length {
        /// Which field.
        field: &'static str,
        /// As written.
        length: usize,
        /// Longest allowed.
        most: usize,
    },
    /// No share.
    #[error("`{field} = {value}`: it is a share, from 0 to 1")]
    Share {
        /// Which field.
        field: &'static str,
        /// As written.
        value: f64,
    },
    /// No path of a URL.
    #[error(
        "`path = {path:?}`: a path begins with `/` and has at most 1024 ASCII characters, \
         no blanks; write others as %20"
    )]
    HttpPath {
        /// As written.
        path: String,
    },
    /// No address to listen on.
    #[error("`listen = {value:?}`: write an address and a port, as \"127.0.0.1:9180\", or \"off\"")]
    Listen {
        /// As written.
        value: String,
    },
    /// A seed that would be the same everywhere, or is no seed but a file.
    #[error(
        "`hash_seed` has {length} bytes: it is a text of 1 to 256; leave it out and one is made"
    )]
    HashSeed {
        /// As written.
        length: usize,
    },
    /// No prefix.
    #[error("`tunnel_source` {value:?}: write a prefix, as \"10.255.0.0/16\" or \"fd00:255::/64\"")]
    NoPrefix {
        /// As written.
        value: String,
    },
    /// An address and a length, where a prefix is wanted.
    #[error("`tunnel_source` {value:?} has bits beyond its length: write \"{prefix}\"")]
    LongPrefix {
        /// As written.
        value: String,
        /// What was probably meant.
        prefix: ipnet::IpNet,
    },
    /// Two prefixes of one family.
    #[error("`tunnel_source` has a second {family} prefix: at most one of each family")]
    SecondPrefix {
        /// Which.
        family: Family,
    },
    /// No VIP.
    #[error(
        "`vip = {value:?}`: write an address and a port, as \"203.0.113.10:80\" or \
         \"[2001:db8::10]:443\", or `*` for any port; names are not looked up"
    )]
    NoVip {
        /// As written.
        value: String,
    },
    /// Port 0.
    #[error(
        "`vip = {value:?}`: clients can't connect to port 0; name the port they use, or `*` for \
         any"
    )]
    PortZero {
        /// As written.
        value: String,
    },
    /// No address.
    #[error(
        "`address = {value:?}`: write an IP address, as \"10.0.0.11\" or \"2001:db8::11\"; \
         names are not looked up, and the port has a field of its own"
    )]
    NoAddress {
        /// As written.
        value: String,
    },
    /// An address that no frame can be sent to through us.
    #[error("{what} {address} {why}")]
    Unusable {
        /// Whose.
        what: &'static str,
        /// Which.
        address: IpAddr,
        /// What it is and what to do.
        why: Unusable,
    },
    /// A loop.
    #[error("backend address {address} is {}: give the server's own address", the_vip(.line))]
    BackendIsVip {
        /// Which.
        address: IpAddr,
        /// Where the VIP is; `None`: not in this text, but in what runs.
        line: Option<usize>,
    },
    /// Only a tunnel joins families.
    #[error(
        "backend {backend:?} is {}, but the VIP {vip} is {}: {}; \
         give it an {} address, or use `forwarding = \"ipip\"`",
        Family::of(*.address), Family::of(.vip.ip()), keeps_family(*.forwarding),
        Family::of(.vip.ip())
    )]
    FamilyMismatch {
        /// Its name.
        backend: String,
        /// Its address.
        address: IpAddr,
        /// Its service's.
        vip: Vip,
        /// Which mode it is.
        forwarding: Forwarding,
    },
    /// Direct return can't change ports.
    #[error(
        "backend {backend:?} has port {port}, but the VIP's is {}: {forwarding} keeps the \
         packet's port; leave `port` out and let the server listen on {}, or use \
         `forwarding = \"nat\"`",
        .vip, .vip
    )]
    PortMismatch {
        /// Its name.
        backend: String,
        /// As written.
        port: u16,
        /// Its service's.
        vip: u16,
        /// Which mode it is.
        forwarding: &'static str,
    },
    /// The client chooses the port.
    #[error(
        "backend {backend:?} has port {port}, but the VIP is {vip}: packets keep the port that \
         their client has asked for; leave `port` out"
    )]
    PortOfAnyPort {
        /// Its name.
        backend: String,
        /// As written.
        port: u16,
        /// Its service's.
        vip: Vip,
    },
    /// A flow's entries don't hold the port.
    #[error(
        "service {service:?} has a VIP of any port, which `forwarding = \"nat\"` can't translate: \
         use \"l2\" or \"ipip\", or one service for each port"
    )]
    AnyPortOfNat {
        /// Its name.
        service: String,
    },
    /// Nothing says where to ask.
    #[error(
        "service {service:?} has the VIP {vip}, of any port: say which one its checks ask, as \
         `health = {{ port = 443 }}`, or turn them off, `health = {{ check = \"none\" }}`"
    )]
    CheckWithoutPort {
        /// Its name.
        service: String,
        /// Its VIP.
        vip: Vip,
    },
    /// About NAT.
    #[error(transparent)]
    Nat(#[from] NatProblem),
    /// Maglev's table needs a prime.
    #[error("`slots = {value}` is not a prime: the next one is {next}")]
    NoPrime {
        /// As written.
        value: i64,
        /// The smallest prime above it, or the largest allowed.
        next: u32,
    },
    /// Some backends would get nothing.
    #[error(
        "service {service:?} has {backends} backends in {slots} slots: 100 slots a backend keep \
         the shares even, so {}",
        way_out(.fitting)
    )]
    FewSlots {
        /// Which.
        service: String,
        /// How many it has.
        backends: usize,
        /// As written, or the default.
        slots: u32,
        /// A prime that would do, if there is one.
        fitting: Option<u32>,
    },
    /// More than the maps hold.
    #[error(
        "this is service number {}: one instance has at most {}; use a second one (`--instance`)",
        capacity::SERVICES + 1,
        capacity::SERVICES
    )]
    TooManyServices,
    /// More than 16 bits count.
    #[error(
        "this is backend number {}: one instance has at most {}; use a second one (`--instance`)",
        capacity::BACKENDS,
        capacity::BACKENDS - 1
    )]
    TooManyBackends,
}
