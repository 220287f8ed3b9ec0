//! What came out, for a person and for a script.

use std::fmt;

use lb_common::{
    abi::FlowRecord,
    flow::{GROUP, Group},
    forward::Forwarding,
};
use serde::{Serialize, Serializer};

use super::{
    case::{self, GROWTH, GROWTH_FLOWS, TRANSLATION},
    machine::Machine,
};

/// One figure, and how far it can be trusted.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Of which case.
    pub name: String,
    /// Median: nanoseconds a packet without the generator's, or packets a second.
    pub value: f64,
    /// Half of the distance between the quartiles of its samples.
    pub spread: f64,
    /// What it may be in costs of the floor `ipip`.
    pub limit: Option<f64>,
}

/// How many services cost more than one.
#[derive(Clone, Debug)]
pub struct Growth {
    /// How they forward.
    pub forwarding: Forwarding,
    /// Cost with 500 services of 100 backends, in costs with one of three.
    pub ratio: f64,
}

/// What translation costs beside `l2`.
#[derive(Clone, Debug)]
pub struct Translation {
    /// IP version and direction.
    pub name: String,
    /// Cost of a packet of one flow, in costs with `l2`.
    pub ratio: f64,
}

/// Kernel memory for a million (2^20) flows, bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// The flow table's words.
    pub words: u64,
    /// The records that listings are made from.
    pub records: u64,
    /// An LRU hash map with as many places, 16-byte keys and 8-byte values.
    pub lru_hash: Option<u64>,
}

impl Memory {
    /// In a table of twice as many entries.
    pub const fn of_a_million(lru_hash: Option<u64>) -> Self {
        let entries = 2 << 20;
        Self {
            words: entries / GROUP as u64 * size_of::<Group>() as u64,
            records: entries * size_of::<FlowRecord>() as u64,
            lru_hash,
        }
    }
}

/// The figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What cannot be undercut.
    #[serde(serialize_with = "by_name")]
    pub floors: Vec<Figure>,
    /// What others do.
    #[serde(serialize_with = "by_name")]
    pub reference: Vec<Figure>,
    /// Sluice.
    #[serde(serialize_with = "by_name")]
    pub cases: Vec<Figure>,
    /// Empty if its cases were not measured.
    #[serde(serialize_with = "by_forwarding")]
    pub growth: Vec<Growth>,
    /// The same.
    #[serde(serialize_with = "by_translation")]
    pub translation: Vec<Translation>,
    /// Frames that went over a veth pair, on one core.
    #[serde(serialize_with = "by_name")]
    pub packets_per_second: Vec<Figure>,
    /// Of the flow table.
    pub bytes_per_million_flows: Memory,
    /// The generator's own cost, subtracted from all above.
    #[serde(serialize_with = "by_name")]
    pub generator: Vec<Figure>,
    /// Where.
    pub machine: Machine,
    /// Whether nothing else ran on the CPU.
    pub prioritised: bool,
    /// Samples of each case.
    pub rounds: usize,
    /// Packets of each sample.
    pub packets: u32,
    /// Names of what cost more than it may.
    pub missed: Vec<String>,
}

fn by_name<S: Serializer>(figures: &[Figure], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(figures.iter().map(|figure| (&figure.name, rounded(figure.value))))
}

fn by_forwarding<S: Serializer>(growth: &[Growth], serializer: S) -> Result<S::Ok, S::Error> {
    let ratio = |growth: &Growth| (growth.forwarding.name(), (growth.ratio * 1e3).round() / 1e3);
    serializer.collect_map(growth.iter().map(ratio))
}

fn by_translation<S: Serializer>(all: &[Translation], serializer: S) -> Result<S::Ok, S::Error> {
    let ratio = |one: &Translation| (one.name.clone(), (one.ratio * 1e3).round() / 1e3);
    serializer.collect_map(all.iter().map(ratio))
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

impl Report {
    /// Draws the conclusions.
    pub fn conclude(mut self) -> Self {
        let cost = |name: &String| {
            self.cases.iter().find(|figure| figure.name == *name).map(|figure| figure.value)
        };
        self.growth = [Forwarding::L2, Forwarding::Ipip, Forwarding::Nat]
            .into_iter()
            .filter_map(|forwarding| {
                let [one, many] = case::growth(forwarding);
                Some(Growth { forwarding, ratio: cost(&many)? / cost(&one)? })
            })
            .collect();
        self.translation = case::translations()
            .into_iter()
            .filter_map(|(name, [plain, translated])| {
                Some(Translation { name, ratio: cost(&translated)? / cost(&plain)? })
            })
            .collect();
        let figures = self.cases.iter().filter(|figure| self.keeps_limit(figure) == Some(false));
        let growth = self.growth.iter().filter(|growth| growth.ratio > GROWTH);
        let translation = self.translation.iter().filter(|one| one.ratio > TRANSLATION);
        self.missed = figures
            .map(|figure| figure.name.clone())
            .chain(growth.map(|growth| format!("growth/{}", growth.forwarding.name())))
            .chain(translation.map(|one| format!("translation/{}", one.name)))
            .collect();
        self
    }

    /// In costs of the floor `ipip`.
    fn ratio(&self, figure: &Figure) -> f64 {
        let floor = self.floors.iter().find(|floor| floor.name == case::IPIP);
        figure.value / floor.map_or(f64::NAN, |floor| floor.value)
    }

    fn keeps_limit(&self, figure: &Figure) -> Option<bool> {
        figure.limit.map(|limit| self.ratio(figure) <= limit)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, kernel, spectre_v2, commit } = &self.machine;
        writeln!(f, "machine   {cpu}")?;
        writeln!(f, "kernel    Linux {kernel}; Spectre 2: {spectre_v2}")?;
        writeln!(f, "commit    {commit}")?;
        writeln!(
            f,
            "samples   {} of {} packets each, thread CPU time{}; generator ({}) subtracted",
            self.rounds,
            self.packets,
            if self.prioritised { "" } else { ", NOT ahead of other programs" },
            list(&self.generator, |figure| format!("{} {:.1} ns", figure.name, figure.value)),
        )?;
        writeln!(f)?;
        writeln!(f, "{:<36} {:>9} {:>7} {:>7} {:>8}", "", "ns/packet", "±", "ratio", "at most")?;
        let groups = [("floors", &self.floors), ("reference", &self.reference), ("", &self.cases)];
        for (group, figures) in groups {
            for figure in figures {
                self.line(f, group, figure)?;
            }
            writeln!(f)?;
        }
        for Growth { forwarding, ratio } in &self.growth {
            writeln!(
                f,
                "growth    {}: {:+.1} % with 500 services of 100 backends against 1 of 3, at \
                 {GROWTH_FLOWS} flows; at most {:+.0} % {}",
                forwarding.name(),
                (ratio - 1.0) * 100.0,
                (GROWTH - 1.0) * 100.0,
                mark(Some(*ratio <= GROWTH)),
            )?;
        }
        for Translation { name, ratio } in &self.translation {
            writeln!(
                f,
                "nat       {name}: {ratio:.2} times the cost of l2 at 1 flow; at most {TRANSLATION} {}",
                mark(Some(*ratio <= TRANSLATION)),
            )?;
        }
        let Memory { words, records, lru_hash } = self.bytes_per_million_flows;
        let mib = |bytes| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "memory    {:.0} MiB for 2^20 flows in a table for twice as many: flow table {:.0}, \
             records {:.0}",
            mib(words + records),
            mib(words),
            mib(records)
        )?;
        match lru_hash {
            Some(bytes) => writeln!(f, "; an LRU hash map takes {:.0}", mib(bytes))?,
            None => writeln!(f)?,
        }
        if !self.packets_per_second.is_empty() {
            let rate = |figure: &Figure| format!("{} {:.2} M", figure.name, figure.value / 1e6);
            let rates = list(&self.packets_per_second, rate);
            writeln!(f, "live      packets a second over a veth pair, one core: {rates}")?;
        }
        writeln!(f)?;
        match &self.missed[..] {
            [] => writeln!(f, "Every limit is kept."),
            missed => writeln!(f, "MISSED: {}", missed.join(", ")),
        }
    }
}

impl Report {
    fn line(&self, f: &mut fmt::Formatter<'_>, group: &str, figure: &Figure) -> fmt::Result {
        let Figure { name, value, spread, limit } = figure;
        let name = if group.is_empty() { name.clone() } else { format!("{group}: {name}") };
        let limit = limit.map_or(String::new(), |limit| format!("{limit:.1}"));
        let ratio = self.ratio(figure);
        let mark = mark(self.keeps_limit(figure));
        writeln!(f, "{name:<36} {value:>9.1} {spread:>7.1} {ratio:>7.2} {limit:>8} {mark}")
    }
}

const fn mark(kept: Option<bool>) -> &'static str {
    match kept {
        Some(true) => "ok",
        Some(false) => "MISSED",
        None => "",
    }
}

fn list(figures: &[Figure], show: impl Fn(&Figure) -> String) -> String {
    figures.iter().map(show).collect::<Vec<_>>().join(", ")
}
