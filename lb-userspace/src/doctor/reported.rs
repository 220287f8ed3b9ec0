//! What the daemon reports of itself and can't be looked at from here: it has decided what is wrong
//! with that, and `status` says the same. No I/O.

use super::{Finding, Severity};
use crate::control::api::{self, Trouble, TroubleKind};

/// What the daemon reports of `about`, as a [`Trouble`] names it.
pub(super) fn reported(troubles: &[Trouble], about: &str) -> impl Iterator<Item = Finding> {
    let troubles = troubles.iter().filter(move |trouble| trouble.about == about);
    troubles.filter(|trouble| is_known_to_daemon_alone(trouble.kind)).map(finding)
}

/// Whether it can't be found out by a look at this host and its backends.
const fn is_known_to_daemon_alone(kind: TroubleKind) -> bool {
    match kind {
        TroubleKind::FlowTable
        | TroubleKind::Flood
        | TroubleKind::NatPorts
        | TroubleKind::Losses
        | TroubleKind::Maps
        | TroubleKind::Disk
        | TroubleKind::Config
        | TroubleKind::HostAddress
        | TroubleKind::Note => true,
        // Looked at here.
        TroubleKind::NotAttached
        | TroubleKind::LinkDown
        | TroubleKind::BackendDown
        | TroubleKind::Unprobed
        | TroubleKind::NarrowRoute => false,
        // The daemon is not ready then, which is told with its problems.
        TroubleKind::NotForwarded => false,
        // About a service and its clients.
        TroubleKind::Refusing
        | TroubleKind::Held
        | TroubleKind::Stopgap
        | TroubleKind::BackendSuspect
        | TroubleKind::TakenOut => false,
    }
}

fn finding(trouble: &Trouble) -> Finding {
    // Who is sent to the doctor is here.
    let steps = trouble.mend.iter().flat_map(|mend| mend.split("; "));
    let steps: Vec<&str> = steps.filter(|step| !step.starts_with("`sluice doctor`")).collect();
    Finding {
        about: trouble.about.clone(),
        severity: match trouble.severity {
            api::Severity::Outage => Severity::Wrong,
            api::Severity::Fault | api::Severity::Notice => Severity::Doubt,
        },
        says: trouble.says.clone(),
        mend: (!steps.is_empty()).then(|| steps.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(severity: api::Severity, kind: TroubleKind, about: &str) -> Trouble {
        Trouble {
            severity,
            kind,
            about: about.to_owned(),
            says: format!("{kind:?}"),
            mend: Some("`sluice doctor` looks closer; wait".to_owned()),
            since: None,
        }
    }

    #[test]
    fn what_the_daemon_alone_knows_is_told_as_it_has_judged() {
        use api::Severity::{Fault, Outage};
        let troubles = [
            trouble(Outage, TroubleKind::Maps, "instance"),
            trouble(Outage, TroubleKind::NotAttached, "interface eth0"),
            trouble(Fault, TroubleKind::Losses, "interface eth0"),
            trouble(Fault, TroubleKind::FlowTable, "instance"),
            trouble(Fault, TroubleKind::BackendDown, "backend web/web-1"),
            trouble(Fault, TroubleKind::NatPorts, "backend web/web-1"),
        ];
        let told = |about: &str| {
            let findings = reported(&troubles, about);
            findings.map(|found| (found.severity, found.says, found.mend)).collect::<Vec<_>>()
        };
        let row = |severity, says: &str| (severity, says.to_owned(), Some("wait".to_owned()));
        assert_eq!(
            told("instance"),
            [row(Severity::Wrong, "Maps"), row(Severity::Doubt, "FlowTable")]
        );
        assert_eq!(told("interface eth0"), [row(Severity::Doubt, "Losses")]);
        assert_eq!(told("backend web/web-1"), [row(Severity::Doubt, "NatPorts")]);
        assert_eq!(told("backend web/web-2"), []);
    }
}
