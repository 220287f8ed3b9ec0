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
    /// Whose frames they are.
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

/// Whose frames are made.
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
    /// of their own, and each that is met takes another's), and one random flow in 500 may be
    /// taken for another.
    pub const fn was_taken(self, tally: Tally, packets: u64) -> bool {
        let few = packets / 500;
        let Tally { forwarded, new, adopted, untracked, not_vip } = tally;
        match self {
            Self::Known => forwarded == packets && new + adopted <= few,
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

/// Floors by the names of their programs.
pub const TX: &str = "tx";
pub const IPIP: &str = "ipip";

const FAMILIES: [(Family, &str); 2] = [(Family::Ipv4, "ipv4"), (Family::Ipv6, "ipv6")];
const METHODS: [Forwarding; 2] = [Forwarding::L2, Forwarding::Ipip];

/// What every other figure leans on.
pub fn pillars() -> Vec<Case> {
    let generators =
        FAMILIES.map(|(family, name)| plain(Group::Generator, name, Subject::Floor(TX), family));
    let floors =
        [(TX, Subject::Nothing), ("mac", Subject::Floor("mac")), (IPIP, Subject::Floor(IPIP))]
            .map(|(name, subject)| plain(Group::Floor, name, subject, Family::Ipv4));
    generators.into_iter().chain(floors).collect()
}

fn plain(group: Group, name: &str, subject: Subject, family: Family) -> Case {
    let flows = Flows::Known(1);
    Case { group, name: name.to_owned(), subject, family, flags: Tcp::ACK, flows, limit: None }
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
        flows: Flows::Strangers,
        limit: Some(PASSED),
    });
    cases
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
