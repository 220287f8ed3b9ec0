//! Single values of the config file: names, words, numbers, durations, addresses, primes.

use std::{net::IpAddr, ops::Range, time::Duration};

use lb_common::abi::capacity;
use toml::Spanned;

use super::{Error, Problem, Source, Unusable, raw};

/// As the kernel has it (`dev_valid_name`, `net/core/dev.c`), less what no terminal can show.
pub fn is_interface_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
    (1..=15).contains(&name.len()) && name.bytes().all(allowed) && !matches!(name, "." | "..")
}

pub fn required<T>(
    source: &Source<'_>,
    at: &Range<usize>,
    thing: &str,
    field: &'static str,
    example: &'static str,
    value: Option<T>,
) -> Result<T, Error> {
    value.ok_or_else(|| {
        source.refuse(at.clone(), Problem::Missing { thing: thing.to_owned(), field, example })
    })
}

pub fn checked_name(
    source: &Source<'_>,
    what: &'static str,
    text: raw::Text,
) -> Result<String, Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let name = text.get_ref();
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(text.into_inner());
    }
    Err(source.refuse(text.span(), Problem::Name { what, name: name.clone() }))
}

/// The value of a word.
pub fn choice<T: Copy>(
    source: &Source<'_>,
    field: &'static str,
    text: Option<raw::Text>,
    default: T,
    choices: &[(&str, T)],
) -> Result<T, Error> {
    let Some(text) = text else { return Ok(default) };
    if let Some((_, value)) = choices.iter().find(|(word, _)| word == text.get_ref()) {
        return Ok(*value);
    }
    let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
    let (at, value, choices) = (text.span(), text.into_inner(), words.join(", "));
    Err(source.refuse(at, Problem::Choice { field, value, choices }))
}

/// A number from `least` to `most`, both of which fit 32 bits.
pub fn ranged(
    source: &Source<'_>,
    field: &'static str,
    number: &raw::Number,
    (least, most): (i64, i64),
) -> Result<u32, Error> {
    let value = number.get_ref().0;
    match u32::try_from(value) {
        Ok(small) if (least..=most).contains(&value) => Ok(small),
        _ => Err(source.refuse(number.span(), Problem::Range { field, value, least, most })),
    }
}

/// A share of a whole.
pub fn share(
    source: &Source<'_>,
    field: &'static str,
    number: Option<Spanned<raw::Share>>,
    default: f64,
) -> Result<f64, Error> {
    let Some(number) = number else { return Ok(default) };
    let value = number.get_ref().0;
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(source.refuse(number.span(), Problem::Share { field, value }))
}

pub fn duration(
    source: &Source<'_>,
    field: &'static str,
    text: &raw::Text,
    example: &'static str,
    (least, most): (Duration, Duration),
) -> Result<Duration, Error> {
    let value = text.get_ref().clone();
    match humantime::parse_duration(&value) {
        Ok(duration) if (least..=most).contains(&duration) => Ok(duration),
        Ok(_) => {
            let problem = Problem::DurationRange { field, value, least, most };
            Err(source.refuse(text.span(), problem))
        }
        Err(_) => Err(source.refuse(text.span(), Problem::NoDuration { field, value, example })),
    }
}

pub fn unusable(address: IpAddr) -> Option<Unusable> {
    match address {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some(Unusable::Unspecified),
        IpAddr::V4(v4) if v4.is_broadcast() => Some(Unusable::Broadcast),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(Unusable::LinkLocal),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            v6.to_ipv4_mapped().map(Unusable::Mapped)
        }
        _ if address.is_unspecified() => Some(Unusable::Unspecified),
        _ if address.is_loopback() => Some(Unusable::Loopback),
        _ if address.is_multicast() => Some(Unusable::Multicast),
        _ => None,
    }
}

/// The smallest prime from `least` on, or the largest that a table can have.
pub fn prime_from(least: u32) -> u32 {
    (least..=capacity::MAX_SLOTS).find(|n| is_prime(*n)).unwrap_or(capacity::MAX_SLOTS)
}

/// By trial: 512 divisions at most, `n` being below 2^20.
fn is_prime(n: u32) -> bool {
    let divisors = || (3..).step_by(2).take_while(|d| d * d <= n);
    n == 2 || n > 2 && n % 2 == 1 && divisors().all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_found_up_to_the_largest_table() {
        let known = [(0, 2), (2, 2), (4, 5), (9, 11), (65_536, 65_537), (65_537, 65_537)];
        for (from, prime) in known {
            assert_eq!(prime_from(from), prime);
        }
        assert_eq!(prime_from(capacity::MAX_SLOTS), capacity::MAX_SLOTS);
        assert_eq!(prime_from(u32::MAX), capacity::MAX_SLOTS);
    }

    #[test]
    fn interface_names_are_the_kernels() {
        for name in ["lo", "eth0", "enp0s31f6", "br-0123456789ab", "eth0.100", "a@b"] {
            assert!(is_interface_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "eth0:1", "a b", "sixteen-letters-", "\u{7f}", "ä"] {
            assert!(!is_interface_name(name), "{name:?}");
        }
    }
}
