//! What is measured, and how much it may cost.

use lb_common::{forward::Forwarding, parse::Family, wire::Tcp};

use super::balancer::{Scene, Tally};

/// One figure.
#[derive(Clone, Debug)]
pub struct Case {
    /// Where the report shows it.
    pub group: Group,
    /// As in the report: `established/ipv4/ipip/131072`.
    pub name: String,
    /// Which program runs.
    pub subject: Subject,
    /// IP version of the frames.
    pub family: Family,
    /// TCP flags of the frames.
    pub flags: u8,
    /// Who sends the frames.
    pub sender: Sender,
    /// Of which flows they are.
    pub flows: Flows,
    /// What it may cost, in costs of the floor `ipip`.
    pub limit: Option<f64>,
}

/// Where the report shows a figure, and what is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Subtracted from all the others of its family.
    Generator,
    /// What cannot be undercut. `tx` is in the generators' figures already: it is what these
    /// cost above the generator alone.
    Floor,
    /// What others do.
    Reference,
    /// Sluice.
    Case,
}

/// Which program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The generator, sending its frames itself.
    Nothing,
    /// A program of the bench's own.
    Floor(&'static str),
    /// A lookup in an LRU hash map of so many flows.
    Lru(u32),
    /// The balancer.
    Balancer {
        /// Which.
        scene: Scene,
        /// How it forwards.
        forwarding: Forwarding,
        /// What it must have done.
        road: Road,
    },
}

/// Who sends the frames that are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A client, to a VIP.
    Client,
    /// The same; what a translation changes is made good each time.
    TranslatedClient,
    /// The backend of a flow that is translated.
    Backend,
}

/// Of which flows frames are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// So many that are known: a power of two.
    Known(u32),
    /// A new one each time.
    Random,
    /// New ones for no VIP of ours.
    Strangers,
}

/// The road that all packets of a case must have taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// Forwarded, the flow being known.
    Known,
    /// Forwarded to the client, the flow being known.
    Returned,
    /// Forwarded, with a new entry in the place of another flow's.
    New,
    /// The same without a SYN.
    Adopted,
    /// Passed to the kernel.
    Passed,
}

impl Road {
    /// Whether `tally` shows that `packets` have taken it.
    ///
    /// One known flow in 500 may be without an entry (at a load of one half 0.05 % find no place
    /// of their own, and each that is met takes another's; one that is to be translated has none then),
    /// and one random flow in 500 may be taken for another.
    pub const fn was_taken(self, tally: Tally, packets: u64) -> bool {
        let few = packets / 500;
        let Tally { forwarded, returned, new, adopted, untracked, not_vip } = tally;
        match self {
            Self::Known => forwarded >= packets - few && new + adopted <= few,
            Self::Returned => returned >= packets - few && forwarded == 0,
            Self::New => forwarded == packets && new >= packets - few && untracked <= few,
            Self::Adopted => forwarded == packets && adopted >= packets - few && untracked <= few,
            Self::Passed => not_vip == packets,
        }
    }
}

/// Flows of the cases with known flows, and what a packet of theirs may cost.
const KNOWN: [(u32, f64); 3] = [(1, 3.5), (1 << 17, 10.6), (1 << 20, 12.0)];
/// What a new flow may cost.
const NEW: f64 = 21.0;
/// What a frame that is not for us may cost.
const PASSED: f64 = 1.6;
/// Flows with which many services are compared to one.
pub const GROWTH_FLOWS: u32 = 1 << 17;
/// How much more many services may cost.
pub const GROWTH: f64 = 1.10;
/// Flows of the cases that are translated.
const TRANSLATED: [u32; 2] = [1, GROWTH_FLOWS];
/// What a packet of one flow that is translated may cost, in costs of one that `l2` forwards.
pub const TRANSLATION: f64 = 1.6;

/// Floors by the names of their programs.
pub const TX: &str = "tx";
pub const IPIP: &str = "ipip";

const FAMILIES: [(Family, &str); 2] = [(Family::Ipv4, "ipv4"), (Family::Ipv6, "ipv6")];
const METHODS: [Forwarding; 2] = [Forwarding::L2, Forwarding::Ipip];

/// What every other figure leans on.
pub fn pillars() -> Vec<Case> {
    let generator = |name: &str, family| plain(Group::Generator, name, Subject::Floor(TX), family);
    let generators = FAMILIES.into_iter().flat_map(|(family, name)| {
        let translated =
            Case { sender: Sender::TranslatedClient, ..generator(&format!("{name}/nat"), family) };
        let answers = TRANSLATED.map(|flows| Case {
            sender: Sender::Backend,
            flows: Flows::Known(flows),
            ..generator(&format!("{name}/answers/{flows}"), family)
        });
        [generator(name, family), translated].into_iter().chain(answers)
    });
    let floors =
        [(TX, Subject::Nothing), ("mac", Subject::Floor("mac")), (IPIP, Subject::Floor(IPIP))]
            .map(|(name, subject)| plain(Group::Floor, name, subject, Family::Ipv4));
    generators.chain(floors).collect()
}

impl Case {
    /// Whether `self`, a generator, makes the frames of `case`.
    pub fn is_generator_of(&self, case: &Self) -> bool {
        let is_alike = self.family == case.family && self.sender == case.sender;
        // The more answers there are to look up, the longer it takes.
        is_alike && (self.sender != Sender::Backend || self.flows == case.flows)
    }
}

fn plain(group: Group, name: &str, subject: Subject, family: Family) -> Case {
    Case {
        group,
        name: name.to_owned(),
        subject,
        family,
        flags: Tcp::ACK,
        sender: Sender::Client,
        flows: Flows::Known(1),
        limit: None,
    }
}

/// The usual way to find a flow, for comparison.
pub fn references() -> Vec<Case> {
    let reference = |(flows, _)| Case {
        flows: Flows::Known(flows),
        ..plain(Group::Reference, &format!("lru_hash/{flows}"), Subject::Lru(flows), Family::Ipv4)
    };
    KNOWN.map(reference).into()
}

/// What Sluice is measured by.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (family, family_name) in FAMILIES {
        for forwarding in METHODS {
            let kind = format!("{family_name}/{}", forwarding.name());
            let case = |name, scene, road, flags, flows, limit| Case {
                group: Group::Case,
                name,
                subject: Subject::Balancer { scene, forwarding, road },
                family,
                flags,
                sender: Sender::Client,
                flows,
                limit,
            };
            for (flows, limit) in KNOWN {
                let name = format!("established/{kind}/{flows}");
                let scene = match family {
                    Family::Ipv4 => Scene::Ipv4(flows),
                    Family::Ipv6 => Scene::Ipv6(flows),
                };
                let (flows, limit) = (Flows::Known(flows), Some(limit));
                cases.push(case(name, scene, Road::Known, Tcp::ACK, flows, limit));
            }
            let full = [
                ("new", Scene::FullOfSyns, Road::New, Tcp::SYN),
                ("unknown_ack", Scene::FullOfAcks, Road::Adopted, Tcp::ACK),
            ];
            for (name, scene, road, flags) in full {
                let name = format!("{name}/{kind}");
                cases.push(case(name, scene, road, flags, Flows::Random, Some(NEW)));
            }
            if family == Family::Ipv4 {
                let flows = GROWTH_FLOWS;
                let (name, scene) = (many_services(forwarding), Scene::ManyServices(flows));
                let flows = Flows::Known(flows);
                cases.push(case(name, scene, Road::Known, Tcp::ACK, flows, None));
            }
        }
    }
    cases.extend(translated());
    cases.push(Case {
        group: Group::Case,
        name: "pass".to_owned(),
        subject: Subject::Balancer {
            scene: Scene::Ipv4(1),
            forwarding: Forwarding::L2,
            road: Road::Passed,
        },
        family: Family::Ipv4,
        flags: Tcp::ACK,
        sender: Sender::Client,
        flows: Flows::Strangers,
        limit: Some(PASSED),
    });
    cases
}

/// What is translated, in both directions.
fn translated() -> Vec<Case> {
    let case = |name: String, (family, scene, flows), sender| {
        let road = if sender == Sender::Backend { Road::Returned } else { Road::Known };
        let subject = Subject::Balancer { scene, forwarding: Forwarding::Nat, road };
        let flows = Flows::Known(flows);
        Case { sender, flows, ..plain(Group::Case, &name, subject, family) }
    };
    let mut cases = Vec::new();
    for (family, family_name) in FAMILIES {
        for flows in TRANSLATED {
            let kind = format!("{family_name}/nat/{flows}");
            let scene = (family, Scene::Translated(family, flows), flows);
            cases.push(case(format!("established/{kind}"), scene, Sender::TranslatedClient));
            cases.push(case(format!("answers/{kind}"), scene, Sender::Backend));
        }
    }
    let many = (Family::Ipv4, Scene::ManyTranslated(GROWTH_FLOWS), GROWTH_FLOWS);
    cases.push(case(many_services(Forwarding::Nat), many, Sender::TranslatedClient));
    cases
}

/// The pairs of cases that tell what translation costs beside `l2`, by what each pair is called.
pub fn translations() -> Vec<(String, [String; 2])> {
    let of_family = |(_, family): (Family, &str)| {
        ["established", "answers"].map(|direction| {
            let names =
                [format!("established/{family}/l2/1"), format!("{direction}/{family}/nat/1")];
            (format!("{family}/{direction}"), names)
        })
    };
    FAMILIES.into_iter().flat_map(of_family).collect()
}

/// The two cases that are compared: one service, and many.
pub fn growth(forwarding: Forwarding) -> [String; 2] {
    let one = format!("established/ipv4/{}/{GROWTH_FLOWS}", forwarding.name());
    [one, many_services(forwarding)]
}

fn many_services(forwarding: Forwarding) -> String {
    format!("many_services/ipv4/{}/{GROWTH_FLOWS}", forwarding.name())
}

/// What is sent over a link: nothing done to it, and two of the cases.
pub fn live() -> Vec<Case> {
    let tx = plain(Group::Floor, TX, Subject::Floor(TX), Family::Ipv4);
    let [l2, ipip] = METHODS.map(|forwarding| growth(forwarding)[0].clone());
    let of_cases = cases().into_iter().filter(|case| [&l2, &ipip].contains(&&case.name));
    [tx].into_iter().chain(of_cases).collect()
}
