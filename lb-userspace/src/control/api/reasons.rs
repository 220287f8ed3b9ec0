//! What became of every frame.

use lb_common::reason::{Class, Reason};
use serde::{Deserialize, Serialize};

use super::{InterfaceReasons, hint};

/// `GET /v1/reasons`: what became of every frame since the program was attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reasons {
    /// All frames: the sum of those forwarded and of all counts below.
    pub received: u64,
    /// Frames sent to a backend.
    pub forwarded: u64,
    /// Frames that the interfaces received beyond that, for certain, since this daemon compares;
    /// less than 0: verdicts about frames that they do not tell of.
    pub unexplained: i64,
    /// Every reason, in the order of their numbers.
    pub reasons: Vec<ReasonCount>,
    /// The same of each configured interface, a second ago at most; frames that arrived on others,
    /// answers to our own probes, are in the sums above alone.
    pub interfaces: Vec<InterfaceReasons>,
}

/// How many frames ended for one reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// Its name.
    pub name: String,
    /// `pass`, `drop` or `answer`.
    pub class: String,
    /// What it means and what to do about it.
    pub help: String,
    /// How many frames.
    pub count: u64,
}

impl Reasons {
    /// From the counts by number; a missing count is 0.
    pub fn new(forwarded: u64, counts: &[u64]) -> Self {
        let reasons: Vec<ReasonCount> = Reason::ALL
            .iter()
            .map(|reason| ReasonCount {
                name: reason.name().to_owned(),
                class: reason.class().name().to_owned(),
                help: reason.help().to_owned(),
                count: counts.get(*reason as usize).copied().unwrap_or(0),
            })
            .collect();
        let others: u64 = reasons.iter().map(|reason| reason.count).sum();
        let interfaces = Vec::new();
        Self { received: forwarded + others, forwarded, unexplained: 0, reasons, interfaces }
    }

    /// What became of the frames of the interface with this name, or what there is instead.
    ///
    /// # Errors
    /// If none is told.
    pub fn of_interface(&self, name: &str) -> Result<Self, String> {
        let told = self.interfaces.iter().find(|interface| interface.name == name);
        let names = || hint(self.interfaces.iter().map(|interface| &*interface.name));
        let told = told.ok_or_else(|| format!("no interface {name:?}{}", names()))?;
        let count = |reason: &Reason| told.counts.get(reason.name()).copied().unwrap_or(0);
        let counts: Vec<u64> = Reason::ALL.iter().map(count).collect();
        Ok(Self { unexplained: told.unexplained, ..Self::new(told.forwarded, &counts) })
    }

    /// How many frames ended in this class.
    pub fn of_class(&self, class: Class) -> u64 {
        let of_class = self.reasons.iter().filter(|reason| reason.class == class.name());
        of_class.map(|reason| reason.count).sum()
    }
}
