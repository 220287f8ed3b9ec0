//! What may begin a flow: a segment that some host could have sent to open a connection or to go
//! on with one.
//!
//! Asked once in a flow's life, and only of segments for a service: what belongs to a flow that is
//! known is its backend's to judge (RFC 5961), what no service is for is the kernel's.

use crate::{
    address::Address,
    parse::{Family, Segment},
    reason::Reason,
    wire::Tcp,
};

/// Whether a segment may begin a flow. A self-test comes from port 0, so that it is nobody's.
///
/// # Errors
/// `BadSource`, `BadPort` or `BadFlags`: the reason to drop it.
#[inline(always)]
pub(super) fn check(segment: &Segment, is_self_test: bool) -> Result<(), Reason> {
    if is_nobody(segment.source, segment.family) || segment.source == segment.destination {
        return Err(Reason::BadSource);
    }
    if u16::from_ne_bytes(segment.ports.source) == 0 && !is_self_test {
        return Err(Reason::BadPort);
    }
    if !may_begin(segment.flags) {
        return Err(Reason::BadFlags);
    }
    Ok(())
}

/// Whether no host on a wire has this address: "this network" and loopback (RFC 1122 §3.2.1.3),
/// groups, reserved ones and everybody (RFC 1112 §4, RFC 6890 §2.2.2); the unspecified address,
/// loopback, groups and IPv4-mapped ones (RFC 4291 §2, RFC 6890 §2.2.3).
#[inline(always)]
fn is_nobody(source: Address, family: Family) -> bool {
    match family {
        Family::Ipv4 => matches!(source.low()[0], 0 | 127 | 224..),
        Family::Ipv6 => {
            const LOOPBACK: u32 = 1u32.to_be();
            let [a, b, c, d] = source.halves();
            let is_low = a | b | c == 0 && (d == 0 || d == LOOPBACK);
            is_low || a.to_ne_bytes()[0] == 0xff || source.is_v4()
        }
    }
}

/// Whether a segment with these flags opens a connection, or goes on with one, after RFC 9293 §3.10:
/// all but the first SYN and some RST have an ACK, and SYN, FIN and RST exclude each other. The
/// other flags are free: ECN sets them on a SYN (RFC 3168 §6.1.1).
#[inline(always)]
const fn may_begin(flags: u8) -> bool {
    const FLAGS: u8 = Tcp::FIN | Tcp::SYN | Tcp::RST | Tcp::ACK;
    const ALLOWED: u32 = 1 << Tcp::SYN
        | 1 << (Tcp::SYN | Tcp::ACK)
        | 1 << Tcp::ACK
        | 1 << (Tcp::FIN | Tcp::ACK)
        | 1 << Tcp::RST
        | 1 << (Tcp::RST | Tcp::ACK);
    ALLOWED >> (flags & FLAGS) & 1 != 0
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn an_address_is_somebodys_or_not_by_its_range() {
        for (text, expected) in [
            ("0.0.0.0", true),
            ("0.255.255.255", true),
            ("1.0.0.0", false),
            ("10.0.0.1", false),
            ("126.255.255.255", false),
            ("127.0.0.1", true),
            ("127.255.255.255", true),
            ("128.0.0.0", false),
            ("169.254.0.1", false),
            ("223.255.255.255", false),
            ("224.0.0.0", true),
            ("240.0.0.1", true),
            ("255.255.255.255", true),
            ("::", true),
            ("::1", true),
            ("::2", false),
            ("::1:0:0:1", false),
            ("::100", false),
            ("::ffff:192.0.2.1", true),
            ("::fffe:192.0.2.1", false),
            ("64:ff9b::192.0.2.1", false),
            ("2001:db8::1", false),
            ("fe80::1", false),
            ("fdff::1", false),
            ("ff02::1", true),
            ("ff00::", true),
        ] {
            let address: IpAddr = text.parse().expect("a literal address");
            let family = if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
            assert_eq!(is_nobody(address.into(), family), expected, "{text}");
        }
    }

    /// Against the rule, flag by flag.
    #[test]
    fn flags_begin_a_flow_as_the_rfc_says() {
        for flags in 0..=u8::MAX {
            let has = |flag| flags & flag != 0;
            let (syn, ack, fin, rst) = (has(Tcp::SYN), has(Tcp::ACK), has(Tcp::FIN), has(Tcp::RST));
            let one_at_most = u8::from(syn) + u8::from(fin) + u8::from(rst) <= 1;
            assert_eq!(may_begin(flags), one_at_most && (ack || syn || rst), "{flags:#04x}");
        }
    }
}
