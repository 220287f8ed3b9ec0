//! What is wrong, since when, and what mends it.

use serde::{Deserialize, Serialize};

use super::Status;

/// Something that is not as it should be, or that an operator has made so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of thing: the same words for as long as this version's API.
    pub kind: TroubleKind,
    /// What it is about: `instance`, `interface NAME`, `service NAME` or `backend SERVICE/NAME`.
    pub about: String,
    /// What is wrong with that, in one sentence without its subject.
    pub says: String,
    /// What to do about it.
    pub mend: Option<String>,
    /// Since when: RFC 3339, UTC; `None`: it was so when this daemon started.
    pub since: Option<String>,
}

/// How bad a trouble is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Clients are turned away, or their packets are lost.
    Outage,
    /// Clients are served, with less to spare than there should be.
    Fault,
    /// Somebody wants it so, or it can be lived with.
    Notice,
}

/// Kinds of troubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleKind {
    /// An interface does not run our program.
    NotAttached,
    /// An interface carries no frames.
    LinkDown,
    /// Frames are lost after our program's decision.
    Losses,
    /// The attached program does something else with a service's frames than it should.
    NotForwarded,
    /// The maps are not as wanted.
    Maps,
    /// A service has nobody for new connections.
    Refusing,
    /// A service's pool is held: the fault may be ours.
    Held,
    /// A service's new connections go to those that should not have them.
    Stopgap,
    /// A backend is ill.
    BackendDown,
    /// A backend can't be probed, for a fault of this host.
    Unprobed,
    /// A backend's clients are served worse than its probes.
    BackendSuspect,
    /// An operator keeps a backend from new connections.
    TakenOut,
    /// The flow table has little room.
    FlowTable,
    /// Far more connections are begun than followed up.
    Flood,
    /// Clients' full packets do not fit the way to a service's backends.
    NarrowRoute,
    /// Few ports of this host are left for connections to a backend.
    NatPorts,
    /// Something can't be kept on disk.
    Disk,
    /// The config file could not be taken up.
    Config,
    /// A service has every port of an address of this host's own.
    HostAddress,
    /// Something else that stays so until the daemon starts again.
    Note,
}

impl Severity {
    /// The name used by JSON and CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::Fault => "fault",
            Self::Notice => "notice",
        }
    }
}

impl Trouble {
    /// All of it but its age, as [`Status::problems`] has it.
    pub fn sentence(&self) -> String {
        let subject = match self.about.split_once(' ') {
            Some(("backend" | "service", name)) => format!("{name}: "),
            Some(("interface", name)) => format!("{name} "),
            _ => String::new(),
        };
        let mend = self.mend.as_ref().map(|mend| format!(": {mend}")).unwrap_or_default();
        format!("{subject}{}{mend}", self.says)
    }
}

/// Whether clients are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of them.
    Yes,
    /// Some service, or some interface, is out.
    InPart,
    /// None.
    No,
}

impl Status {
    /// What is wrong with the flow table, if anything: backends may look ill for it.
    pub fn doubt(&self) -> Option<TroubleKind> {
        let mut kinds = self.troubles.iter().map(|trouble| trouble.kind);
        kinds.find(|kind| matches!(kind, TroubleKind::Flood | TroubleKind::FlowTable))
    }

    /// Whether clients are served: by the services, and by the interfaces on which they come in.
    pub fn verdict(&self) -> Verdict {
        let is_out = |about: &str| {
            let mut outages = self.troubles.iter().filter(|t| t.severity == Severity::Outage);
            outages.any(|trouble| trouble.about == about)
        };
        let all_out = |names: &mut dyn Iterator<Item = String>| {
            let outs: Vec<bool> = names.map(|name| is_out(&name)).collect();
            !outs.is_empty() && outs.iter().all(|out| *out)
        };
        let interfaces_out =
            all_out(&mut self.interfaces.iter().map(|i| format!("interface {}", i.name)));
        let services_out =
            all_out(&mut self.services.iter().map(|s| format!("service {}", s.name)));
        if !self.ready || interfaces_out || services_out {
            Verdict::No
        } else if self.troubles.iter().any(|trouble| trouble.severity == Severity::Outage) {
            Verdict::InPart
        } else {
            Verdict::Yes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::sample;

    #[test]
    fn clients_are_served_when_every_service_and_interface_is() {
        let mut status = sample::status();
        assert_eq!(status.verdict(), Verdict::Yes, "a fault is no outage");
        let out = |about: &str| Trouble {
            severity: Severity::Outage,
            about: about.to_owned(),
            ..status.troubles[0].clone()
        };
        let outs = ["service web", "service api", "interface eth0", "instance"].map(out);
        let cases = [
            (vec![0], Verdict::InPart),
            (vec![0, 1], Verdict::No),
            (vec![2], Verdict::No),
            (vec![3], Verdict::InPart),
        ];
        for (troubles, expected) in cases {
            status.troubles = troubles.iter().map(|index| outs[*index].clone()).collect();
            assert_eq!(status.verdict(), expected, "{:?}", status.troubles);
        }
        status.troubles.clear();
        status.ready = false;
        assert_eq!(status.verdict(), Verdict::No);
    }

    #[test]
    fn a_flow_table_in_trouble_is_a_reason_to_doubt() {
        let mut status = sample::status();
        assert_eq!(status.doubt(), None);
        for kind in [TroubleKind::FlowTable, TroubleKind::Flood] {
            status.troubles.truncate(1);
            status.troubles.push(Trouble { kind, ..status.troubles[0].clone() });
            assert_eq!(status.doubt(), Some(kind));
        }
    }

    #[test]
    fn a_sentence_begins_with_its_subject() {
        let trouble = |about: &str, says: &str, mend: Option<&str>| Trouble {
            severity: Severity::Fault,
            kind: TroubleKind::Note,
            about: about.to_owned(),
            says: says.to_owned(),
            mend: mend.map(str::to_owned),
            since: None,
        };
        let cases = [
            (
                trouble("interface eth0", "is down", Some("bring it up")),
                "eth0 is down: bring it up",
            ),
            (trouble("backend web/web-1", "is unhealthy", None), "web/web-1: is unhealthy"),
            (trouble("instance", "the disk is full", None), "the disk is full"),
        ];
        for (trouble, expected) in cases {
            assert_eq!(trouble.sentence(), expected);
        }
        assert!(Severity::Outage < Severity::Fault && Severity::Fault < Severity::Notice);
    }
}
