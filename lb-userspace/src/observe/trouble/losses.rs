//! Frames lost after our program's decision: what is wrong with that, and what mends it.

use nix::errno::Errno;

use crate::{
    control::api::{Severity, Trouble, TroubleKind},
    observe::losses::Kind,
};

/// What is lost now, of one kind.
pub fn of_loss(kind: &Kind, frames: u64) -> Trouble {
    Trouble {
        severity: Severity::Fault,
        kind: TroubleKind::Losses,
        about: format!("interface {}", kind.interface),
        says: format!("{}: {frames} so far", says(kind)),
        mend: Some(mend(kind)),
        since: None,
    }
}

/// What is wrong, without its subject.
pub fn says(kind: &Kind) -> String {
    match &kind.redirect {
        Some((error, target)) => {
            let error = Errno::from_raw(*error);
            format!(
                "loses frames that it should redirect to {target} ({error:?}: {})",
                error.desc()
            )
        }
        None if kind.action == "aborted" => "loses frames on which our program fails".to_owned(),
        None => format!("loses frames that its driver can't {}", kind.action),
    }
}

fn mend(kind: &Kind) -> String {
    let Kind { interface, redirect, action } = kind;
    let rings = |of: &str| {
        format!(
            "`ethtool -S {of}` shows what its driver lacks: longer rings (`ethtool -G`), more queues"
        )
    };
    match redirect {
        Some((error, target)) => match Errno::from_raw(*error) {
            Errno::ENETDOWN => format!("`ip link set {target} up`"),
            Errno::EOPNOTSUPP | Errno::ENXIO => format!(
                "{target} takes no redirected frames: of a veth the other end needs an XDP program \
                 (one that passes all will do), a card a driver with `ndo_xdp_xmit`"
            ),
            Errno::EINVAL | Errno::ENODEV => format!(
                "{target} is not there: the way to the backends behind it is looked up anew, see \
                 `sluice backend list`"
            ),
            Errno::EMSGSIZE => format!("raise the MTU of {target} to that of {interface}"),
            _ => rings(target),
        },
        None if *action == "aborted" => {
            "a defect of this build: `sluice upgrade` by another one, and tell us".to_owned()
        }
        None => rings(interface),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_has_a_cause_and_a_mend() {
        let redirect = |error: Errno| Kind {
            interface: "eth0".to_owned(),
            action: "redirect",
            redirect: Some((error as i32, "eth1".to_owned())),
        };
        let exception = |action| Kind { action, redirect: None, ..redirect(Errno::EIO) };
        for (kind, sentence) in [
            (
                redirect(Errno::ENETDOWN),
                "eth0 loses frames that it should redirect to eth1 (ENETDOWN: Network is down): 7 so \
                 far: `ip link set eth1 up`",
            ),
            (exception("transmit"), "eth0 loses frames that its driver can't transmit: 7 so far"),
            (exception("aborted"), "eth0 loses frames on which our program fails: 7 so far"),
            (redirect(Errno::EOPNOTSUPP), "of a veth the other end needs an XDP program"),
            (redirect(Errno::EINVAL), "eth1 is not there"),
            (redirect(Errno::EMSGSIZE), "raise the MTU of eth1"),
            (redirect(Errno::ENOSPC), "`ethtool -S eth1`"),
        ] {
            let told = of_loss(&kind, 7).sentence();
            assert!(told.contains(sentence), "{told}");
        }
    }
}
