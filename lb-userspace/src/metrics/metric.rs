//! What the list of metrics is made of.

use std::{borrow::Cow, fmt};

use super::{samples::Labelled, text::Family};

/// A metric: what it is called, what it means, and where its samples come from.
pub struct Metric {
    /// Begins with `sluice_`; base units; counters end with `_total`.
    pub name: Cow<'static, str>,
    /// What kind of figure it is.
    pub kind: Kind,
    /// Names of the labels that its samples have, beside `le` of a histogram's; sorted.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reference, which a test keeps"))]
    pub labels: &'static [&'static str],
    /// What it means, in sentences.
    pub help: Cow<'static, str>,
    /// Writes the samples.
    pub samples: Box<Samples>,
}

type Samples = dyn Fn(&Labelled<'_>, &mut Family<'_>) + Send + Sync;

/// What kind of figure a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, but for a start anew.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts by size.
    Histogram,
    /// A count and a sum.
    Summary,
}

impl Kind {
    /// The format's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
        }
    }
}

impl Metric {
    /// A metric of the list.
    pub fn new(
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
        labels: &'static [&'static str],
        help: impl Into<Cow<'static, str>>,
        samples: impl Fn(&Labelled<'_>, &mut Family<'_>) + Send + Sync + 'static,
    ) -> Self {
        let (name, help) = (name.into(), help.into());
        Self { name, kind, labels, help, samples: Box::new(samples) }
    }
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metric").field("name", &self.name).finish_non_exhaustive()
    }
}
