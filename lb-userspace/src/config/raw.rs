//! The file as TOML has it: which fields there are and of which type, nothing more.
//!
//! Every value keeps its place in the text, so that whoever refuses it can name the line.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

/// A whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub dataplane: Option<Dataplane>,
    #[serde(default)]
    pub http: Http,
    #[serde(default)]
    pub service: Vec<Spanned<Service>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataplane {
    pub interfaces: Option<Spanned<Vec<Text>>>,
    pub xdp_mode: Option<Text>,
    pub flow_capacity: Option<Number>,
    pub hash_seed: Option<Text>,
    pub own_vips: Option<bool>,
    #[serde(default)]
    pub tunnel_source: Vec<Text>,
    pub nat_ports: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Http {
    pub listen: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub name: Option<Text>,
    pub vip: Option<Text>,
    pub forwarding: Option<Text>,
    pub nat: Option<Spanned<Nat>>,
    pub nat_addresses: Option<Spanned<Vec<Text>>>,
    pub affinity: Option<Text>,
    pub icmp_echo: Option<Text>,
    pub mss_clamp: Option<Number>,
    pub slots: Option<Number>,
    pub drain_deadline: Option<Text>,
    pub min_available: Option<Number>,
    pub fail_open: Option<bool>,
    pub reset_unreachable: Option<bool>,
    pub panic_threshold: Option<Spanned<Share>>,
    pub slow_start: Option<Text>,
    pub outlier: Option<Text>,
    #[serde(default)]
    pub idle_timeout: IdleTimeout,
    #[serde(default)]
    pub health: Health,
    #[serde(default)]
    pub backend: Vec<Spanned<Backend>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat {
    pub client_address: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct IdleTimeout {
    pub embryonic: Option<Text>,
    pub established: Option<Text>,
    pub closing: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Health {
    pub check: Option<Text>,
    pub via: Option<Text>,
    pub port: Option<Number>,
    pub method: Option<Text>,
    pub path: Option<Text>,
    pub host: Option<Text>,
    pub headers: Option<Spanned<BTreeMap<Text, Text>>>,
    pub status: Option<Spanned<Status>>,
    pub body: Option<Text>,
    pub service: Option<Text>,
    pub tls: Option<Spanned<bool>>,
    pub server_name: Option<Text>,
    pub verify: Option<Spanned<bool>>,
    pub ca_file: Option<Text>,
    pub interval: Option<Text>,
    pub timeout: Option<Text>,
    pub rise: Option<Number>,
    pub fall: Option<Number>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    pub name: Option<Text>,
    pub address: Option<Text>,
    pub port: Option<Number>,
    pub weight: Option<Number>,
    pub backup: Option<bool>,
}

/// A string and its place.
pub type Text = Spanned<String>;

/// A whole number and its place.
pub type Number = Spanned<Whole>;

/// A whole number; of its own type so that a wrong one is told in words, not as "i64".
#[derive(Clone, Copy)]
pub struct Whole(pub i64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Whole, E> {
                Ok(Whole(number))
            }
        }

        deserializer.deserialize_i64(Visitor)
    }
}

/// A number that need not be whole.
#[derive(Clone, Copy)]
pub struct Share(pub f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Share;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Share, E> {
                Ok(Share(number))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Share, E> {
                Ok(Share(number as f64))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Codes and ranges of codes, not read yet: `204`, `"200-399"` or a list of these.
pub struct Status(pub Vec<String>);

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Status;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status code, a range as \"200-399\", or a list of these")
            }

            fn visit_i64<E: de::Error>(self, code: i64) -> Result<Status, E> {
                Ok(Status(vec![code.to_string()]))
            }

            fn visit_str<E: de::Error>(self, range: &str) -> Result<Status, E> {
                Ok(Status(vec![range.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Status, A::Error> {
                let mut ranges = Vec::new();
                while let Some(Status(mut one)) = list.next_element()? {
                    ranges.append(&mut one);
                }
                Ok(Status(ranges))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
