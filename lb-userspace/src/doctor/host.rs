//! What is wrong on this host, from what was seen of it. No I/O.

use super::{Finding, room};
use crate::{
    model::{Backend, Service},
    network::{Interface, NextHop, Unresolved},
};

/// An interface of the config, which may not exist; `attached` is the daemon's word.
pub(super) fn interface(name: &str, attached: bool, seen: Result<&Interface, String>) -> Finding {
    let about = format!("interface {name}");
    let seen = match seen {
        Ok(seen) => seen,
        Err(error) => {
            return Finding::wrong(about, error, "correct `interfaces` in the config".to_owned());
        }
    };
    if !seen.up {
        return Finding::wrong(about, "it is down", format!("`ip link set {name} up`"));
    }
    if !seen.running {
        let mend = "check the cable and the switch port".to_owned();
        return Finding::wrong(about, "it has no carrier", mend);
    }
    match (attached, seen.xdp) {
        (false, Some(other)) => Finding::wrong(
            about,
            format!("another XDP program (id {}) is on it", other.id),
            format!("`ip link set dev {name} xdp off`, or `bpftool link` if it is a link's"),
        ),
        (_, None) => Finding::wrong(
            about,
            "our program is not on it",
            "see `sluice status` for why the daemon can't attach".to_owned(),
        ),
        (true, Some(xdp)) if !xdp.native => Finding::doubt(
            about,
            "our program is on the generic hook, which is slower",
            "use a card whose driver has XDP; on veth this is seldom worth a thought".to_owned(),
        ),
        (true, Some(_)) => Finding::well(about, format!("up, native XDP, MTU {}", seen.mtu)),
    }
}

/// The way from here to a backend. `client_mtu`: the largest packet that comes in, bytes.
pub(super) fn way(
    about: String,
    service: &Service,
    backend: &Backend,
    hop: Option<&Result<NextHop, Unresolved>>,
    client_mtu: u32,
) -> Option<Finding> {
    let hop = match hop {
        Some(Ok(hop)) => hop,
        Some(Err(error)) => {
            let mend = format!("`ip route get {0}`, `ip neigh show {0}`", backend.address);
            return Some(Finding::wrong(about, error.to_string(), mend));
        }
        None => return Some(Finding::wrong(about, "its next hop is not known", String::new())),
    };
    let narrow = room::narrow(service, backend, hop, client_mtu)?;
    Some(Finding::doubt(about, narrow.says, narrow.mend))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{doctor::Severity, network::XdpProgram};

    fn eth0() -> Interface {
        Interface {
            index: 2,
            name: "eth0".into(),
            mac: Some([2; 6]),
            mtu: 1500,
            up: true,
            running: true,
            ethernet: true,
            xdp: Some(XdpProgram { id: 7, native: true }),
            kind: "veth".into(),
        }
    }

    #[test]
    fn an_interface_is_told_by_what_is_wrong_with_it() {
        let cases = [
            (true, Ok(eth0()), Severity::Well, "up, native XDP, MTU 1500"),
            (true, Ok(Interface { up: false, ..eth0() }), Severity::Wrong, "it is down"),
            (true, Ok(Interface { running: false, ..eth0() }), Severity::Wrong, "no carrier"),
            (true, Ok(Interface { xdp: None, ..eth0() }), Severity::Wrong, "our program is not"),
            (false, Ok(eth0()), Severity::Wrong, "another XDP program (id 7)"),
            (
                true,
                Ok(Interface { xdp: Some(XdpProgram { id: 7, native: false }), ..eth0() }),
                Severity::Doubt,
                "generic hook",
            ),
            (false, Err("no interface named eth0".to_owned()), Severity::Wrong, "no interface"),
        ];
        for (attached, seen, severity, says) in cases {
            let finding = interface("eth0", attached, seen.as_ref().map_err(Clone::clone));
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(finding.says.contains(says), "{finding:?}");
        }
    }
}
