//! What is wrong with a backend, told from the two ways to it: by the VIP, as traffic goes, and
//! straight to its own address. Neither alone tells; the difference does.

use std::net::{IpAddr, SocketAddr};

use lb_common::forward::Forwarding;
use serde::{Deserialize, Serialize};

use super::room::{CLIENT_MTU, lower_mss, overhead};
use crate::health::Failure;

/// What a connection met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Met {
    /// Somebody who accepts it, and is well as far as was asked.
    Well,
    /// Somebody who accepts it and then answers wrongly, or not.
    Ill,
    /// Somebody who accepts it and gets no full-size segment.
    Narrow,
    /// A RST: the host is there, nobody listens.
    Refused,
    /// Nothing came back.
    Silence,
    /// Something on the way says that it can't be reached.
    NoWay,
    /// It was not tried, for a fault of this host.
    NotTried,
}

impl Met {
    /// What a health probe met.
    pub fn by(outcome: &Result<(), Failure>) -> Self {
        match outcome {
            Ok(()) => Self::Well,
            Err(Failure::NotMade(_)) => Self::NotTried,
            Err(Failure::NoAnswer(_)) => Self::Silence,
            Err(Failure::NoWay(_)) => Self::NoWay,
            Err(Failure::Refused) => Self::Refused,
            Err(Failure::PathMtu { .. }) => Self::Narrow,
            Err(
                Failure::Reset { .. }
                | Failure::Silent { .. }
                | Failure::Closed { .. }
                | Failure::Tls(_)
                | Failure::Protocol { .. }
                | Failure::Status { .. }
                | Failure::Body { .. }
                | Failure::NotServing { .. },
            ) => Self::Ill,
        }
    }

    /// Whether somebody has accepted it.
    fn is_accepted(self) -> bool {
        matches!(self, Self::Well | Self::Ill | Self::Narrow)
    }
}

/// What is wrong with a backend, as far as it can be known from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is there, and does nothing with frames for the VIP.
    NotTaken,
    /// It takes the VIP's frames, and its service listens elsewhere.
    NotListeningOnVip,
    /// It is there, and nobody listens.
    ServiceDown,
    /// Nothing comes from it, either way.
    HostDown,
    /// There is no way to it.
    NoWay,
    /// Its tunnel has room for small packets only.
    Narrow,
    /// It accepts, and answers wrongly.
    AnswersWrongly,
    /// Its own address is well; the VIP's way was not tried.
    NotTried,
}

/// What is wrong with a backend by what was met: by the VIP, if it is asked that way, and directly.
/// `None`: nothing.
pub fn cause(by_vip: Option<Met>, direct: Met) -> Option<Cause> {
    match (by_vip, direct) {
        (Some(Met::Well), _) | (None, Met::Well) => None,
        (Some(Met::Ill), _) | (None, Met::Ill) => Some(Cause::AnswersWrongly),
        (Some(Met::Narrow), _) | (None, Met::Narrow) => Some(Cause::Narrow),
        // Who refuses there has no service; who is silent there may have a firewall.
        (Some(Met::Refused), Met::Refused) | (None, Met::Refused) => Some(Cause::ServiceDown),
        (Some(Met::Refused), _) => Some(Cause::NotListeningOnVip),
        // Its host is there: also one that refuses, for its service may listen on the VIP alone.
        (Some(Met::Silence), direct) if direct.is_accepted() || direct == Met::Refused => {
            Some(Cause::NotTaken)
        }
        (Some(Met::NoWay), _) | (_, Met::NoWay) => Some(Cause::NoWay),
        (Some(Met::Silence), _) | (_, Met::Silence) => Some(Cause::HostDown),
        (Some(Met::NotTried), Met::Refused) => Some(Cause::ServiceDown),
        (Some(Met::NotTried), _) | (None, Met::NotTried) => Some(Cause::NotTried),
    }
}

impl Cause {
    /// In one sentence.
    pub fn says(self, vip: SocketAddr, backend: SocketAddr) -> String {
        let own = backend.ip();
        match self {
            Self::NotTaken => format!("{own} is up, but takes no frames for {}", vip.ip()),
            Self::NotListeningOnVip => {
                format!("{own} takes frames for {}, but nobody listens on {vip} there", vip.ip())
            }
            Self::ServiceDown => {
                format!("{own} is up, but nobody listens on port {}", backend.port())
            }
            Self::HostDown => format!("nothing comes from {own}: it is down, or a firewall drops"),
            Self::NoWay => format!("there is no way to {own}"),
            Self::Narrow => {
                format!("full-size segments do not reach {own}: an MTU is too small for the tunnel")
            }
            Self::AnswersWrongly => format!("{backend} accepts connections, but is not well"),
            Self::NotTried => format!("{own} can't be asked by way of {vip}"),
        }
    }

    /// The cause and, if anything can be said, what to do about it.
    pub fn explained(self, forwarding: Forwarding, vip: SocketAddr, backend: SocketAddr) -> String {
        let says = self.says(vip, backend);
        match self.mend(forwarding, vip, backend) {
            Some(mend) => format!("{says}: {mend}"),
            None => says,
        }
    }

    /// What to do about it; `None`: the last probe's error says it.
    pub fn mend(
        self,
        forwarding: Forwarding,
        vip: SocketAddr,
        backend: SocketAddr,
    ) -> Option<String> {
        let (address, own) = (vip.ip(), backend.ip());
        match self {
            Self::NotTaken => Some(not_taken(forwarding, address)),
            Self::NotListeningOnVip => Some(format!(
                "let its service listen on {vip}, or on all addresses, not on {own} alone"
            )),
            Self::ServiceDown => Some(format!("start its service on {own}")),
            Self::HostDown => Some(format!(
                "look whether {own} is up, and whether a firewall on it, or before it, drops port {}",
                backend.port()
            )),
            Self::NoWay => Some(format!("look at `ip route get {own}` and `ip neigh show {own}`")),
            Self::Narrow => {
                let overhead = overhead(forwarding, own);
                Some(format!(
                    "raise the MTU on the whole way to {own} to {} or more; or, if {CLIENT_MTU} bytes \
                     get there, {}",
                    CLIENT_MTU + overhead,
                    lower_mss(address, CLIENT_MTU - overhead)
                ))
            }
            Self::AnswersWrongly | Self::NotTried => None,
        }
    }
}

/// What makes a host a backend.
fn not_taken(forwarding: Forwarding, vip: IpAddr) -> String {
    let agent = format!("`sluice agent run --interface IF --vip {vip}`");
    match forwarding {
        Forwarding::L2 => {
            format!("the VIP is missing on its loopback interface: run {agent} there")
        }
        Forwarding::Ipip => unpacked(vip, &agent),
        Forwarding::Nat => "look whether a firewall there drops it".to_owned(),
    }
}

/// What makes a host unpack the tunnel, from its own agent's counts on: one cause, one step.
fn unpacked(vip: IpAddr, agent: &str) -> String {
    // The protocol is that of what is inside: RFC 2003 §3.1, RFC 2473 §4.
    let protocol = if vip.is_ipv4() { 4 } else { 41 };
    let mut steps = vec![
        "look at `sluice agent status` there first".to_owned(),
        format!("nobody unpacks the tunnel, or {vip} is not there: {agent}"),
        format!(
            "it runs, and no frame comes: a firewall drops the tunnel, let IP protocol {protocol} pass"
        ),
        "it runs, and its source_refused grows: `--from` lacks the tunnel's source address"
            .to_owned(),
    ];
    if vip.is_ipv4() {
        // IPv6 has no such filter.
        steps.push("a tunnel device of the kernel unpacks: set its rp_filter to 0".to_owned());
    }
    steps.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_between_the_ways_tells_the_cause() {
        use Cause as C;
        use Met as M;
        let cases = [
            (Some(M::Well), M::Well, None),
            (Some(M::Well), M::Silence, None),
            (None, M::Well, None),
            (Some(M::Silence), M::Well, Some(C::NotTaken)),
            (Some(M::Silence), M::Ill, Some(C::NotTaken)),
            (Some(M::Silence), M::Refused, Some(C::NotTaken)),
            (Some(M::Silence), M::Silence, Some(C::HostDown)),
            (Some(M::Silence), M::NotTried, Some(C::HostDown)),
            (Some(M::Silence), M::NoWay, Some(C::NoWay)),
            (Some(M::Refused), M::Well, Some(C::NotListeningOnVip)),
            (Some(M::Refused), M::Silence, Some(C::NotListeningOnVip)),
            (Some(M::Refused), M::Refused, Some(C::ServiceDown)),
            (Some(M::Narrow), M::Well, Some(C::Narrow)),
            (Some(M::Ill), M::Well, Some(C::AnswersWrongly)),
            (Some(M::NoWay), M::Silence, Some(C::NoWay)),
            (Some(M::NotTried), M::Well, Some(C::NotTried)),
            (Some(M::NotTried), M::Refused, Some(C::ServiceDown)),
            (Some(M::NotTried), M::Silence, Some(C::HostDown)),
            (None, M::Refused, Some(C::ServiceDown)),
            (None, M::Silence, Some(C::HostDown)),
            (None, M::NoWay, Some(C::NoWay)),
        ];
        for (by_vip, direct, expected) in cases {
            assert_eq!(cause(by_vip, direct), expected, "{by_vip:?} and {direct:?}");
        }
    }

    #[test]
    fn the_mend_names_what_to_do_there() {
        let vip = "203.0.113.10:80".parse().expect("a literal");
        let backend = "[2001:db8::11]:80".parse().expect("a literal");
        let mend = |cause: Cause, forwarding| cause.mend(forwarding, vip, backend);
        let cases = [
            (
                Cause::NotTaken,
                Forwarding::L2,
                "`sluice agent run --interface IF --vip 203.0.113.10`",
            ),
            (Cause::NotTaken, Forwarding::Ipip, "look at `sluice agent status` there first; "),
            (Cause::Narrow, Forwarding::Ipip, "to 1540 or more"),
            (Cause::NotListeningOnVip, Forwarding::L2, "not on 2001:db8::11 alone"),
        ];
        for (cause, forwarding, expected) in cases {
            let mend = mend(cause, forwarding).expect("something can be done");
            assert!(mend.contains(expected), "{cause:?}: {mend}");
        }

        // What a way of 1,500 bytes leaves to segments, by tunnel and VIP.
        for (vip, backend, mtu, table, mss) in [
            ("203.0.113.10:80", "10.0.0.11:80", 1520, "table ip sluice ", 1440),
            ("203.0.113.10:80", "[2001:db8::11]:80", 1540, "table ip sluice ", 1420),
            ("[2001:db8::10]:80", "10.0.0.11:80", 1520, "table ip6 sluice ", 1420),
            ("[2001:db8::10]:80", "[2001:db8::11]:80", 1540, "table ip6 sluice ", 1400),
        ] {
            let [vip, backend] = [vip, backend].map(|text: &str| text.parse().expect("a literal"));
            let mend = Cause::Narrow.mend(Forwarding::Ipip, vip, backend).expect("a mend");
            let steps: Vec<&str> = mend.split("; ").collect();
            assert!(steps[0].ends_with(&format!("to {mtu} or more")), "{steps:?}");
            assert!(steps[1].starts_with("or, if 1500 bytes get there, "), "{steps:?}");
            assert!(steps[1].contains(&format!("MSS of the service to {mss}, ")), "{steps:?}");
            assert!(steps[1].contains(table), "{steps:?}");
            assert!(steps[1].ends_with(&format!("size set {mss};}};}}'`")), "{steps:?}");
            assert_eq!(steps.len(), 2, "{steps:?}");
        }

        // Each cause of a silent tunnel is a step, in the words of this tunnel.
        for (vip, protocol, other, steps) in [
            ("203.0.113.10:80", "IP protocol 4 pass", "41", 5),
            ("[2001:db8::10]:80", "41", "rp_filter", 4),
        ] {
            let vip = vip.parse().expect("a literal");
            let mend = Cause::NotTaken.mend(Forwarding::Ipip, vip, backend).expect("a mend");
            assert!(mend.contains(protocol) && !mend.contains(other), "{mend}");
            assert_eq!(mend.split("; ").count(), steps, "{mend}");
        }

        // With nat it may listen on another port than the VIP's.
        let other = "10.0.0.11:8080".parse().expect("a literal");
        let says = Cause::ServiceDown.explained(Forwarding::Nat, vip, other);
        assert!(says.contains("nobody listens on port 8080"), "{says}");
        let says = Cause::HostDown.explained(Forwarding::Nat, vip, other);
        assert!(says.contains("drops port 8080"), "{says}");
    }
}
