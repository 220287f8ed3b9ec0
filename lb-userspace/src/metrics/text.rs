//! Prometheus' text format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use std::fmt::{self, Write as _};

use super::metric::Metric;

/// What is written so far.
#[derive(Debug, Default)]
pub struct Text(String);

/// The samples of one metric, as they are written. Its head is written with the first.
#[derive(Debug)]
pub struct Family<'t> {
    text: &'t mut String,
    metric: &'t Metric,
    begun: bool,
    /// The bounds of the last histogram, and how they are written: mostly the next one's too.
    bounds: (Vec<f64>, Vec<String>),
}

/// A sample's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A count, a state, a size.
    Whole(u64),
    /// What can be negative.
    Signed(i64),
    /// Seconds.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Signed(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => value.fmt(f),
            Self::Signed(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
        }
    }
}

impl Text {
    /// With room for so many bytes.
    pub fn with_room(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    /// Begins a metric.
    pub fn family<'t>(&'t mut self, metric: &'t Metric) -> Family<'t> {
        Family { text: &mut self.0, metric, begun: false, bounds: Default::default() }
    }

    /// Appends what somebody else has written in this format.
    pub fn append(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// All of it.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// A sample; `labels` as of [`label`], parted by commas, or none.
    pub fn sample(&mut self, labels: &str, value: impl Into<Value>) {
        self.line("", labels, None, value.into());
    }

    /// A sample with one label more.
    pub fn sample_with(&mut self, labels: &str, more: (&str, &str), value: impl Into<Value>) {
        self.line("", labels, Some(more), value.into());
    }

    /// A histogram: counts by bucket, the last of which has no upper bound in `bounds`.
    pub fn histogram(&mut self, labels: &str, bounds: &[f64], counts: &[u64], sum: f64) {
        if self.bounds.0 != bounds {
            self.bounds = (bounds.to_vec(), bounds.iter().map(f64::to_string).collect());
        }
        let names = std::mem::take(&mut self.bounds.1);
        let mut below = 0;
        for (bucket, count) in counts.iter().enumerate() {
            below += count;
            let bound = names.get(bucket).map_or("+Inf", |bound| bound);
            self.line("_bucket", labels, Some(("le", bound)), below.into());
        }
        self.bounds.1 = names;
        self.summary(labels, below, sum);
    }

    /// A count and a sum.
    pub fn summary(&mut self, labels: &str, count: u64, sum: f64) {
        self.line("_sum", labels, None, sum.into());
        self.line("_count", labels, None, count.into());
    }

    fn line(&mut self, suffix: &str, labels: &str, more: Option<(&str, &str)>, value: Value) {
        if !self.begun {
            self.begin();
        }
        let text = &mut *self.text;
        text.push_str(&self.metric.name);
        text.push_str(suffix);
        if !labels.is_empty() || more.is_some() {
            text.push('{');
            text.push_str(labels);
            if let Some((name, value)) = more {
                if !labels.is_empty() {
                    text.push(',');
                }
                push_label(text, name, value);
            }
            text.push('}');
        }
        // A string takes everything.
        let _ = writeln!(text, " {value}");
    }

    fn begin(&mut self) {
        self.begun = true;
        let Metric { name, kind, help, .. } = self.metric;
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
    }
}

/// A label and its value, quoted.
pub fn label(name: &str, value: &str) -> String {
    let mut label = String::with_capacity(name.len() + value.len() + 3);
    push_label(&mut label, name, value);
    label
}

fn push_label(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push_str("=\"");
    let mut rest = value;
    while let Some(place) = rest.find(['\\', '"', '\n']) {
        let (plain, special) = rest.split_at(place);
        text.push_str(plain);
        text.push_str(match special.as_bytes()[0] {
            b'\\' => r"\\",
            b'"' => "\\\"",
            _ => r"\n",
        });
        rest = &special[1..];
    }
    text.push_str(rest);
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::metric::Kind;

    fn written(kind: Kind, samples: impl Fn(&mut Family<'_>)) -> String {
        let metric = Metric::new(kind, "m", &[], "What it\nis.", |_, _| {});
        let mut text = Text::default();
        samples(&mut text.family(&metric));
        text.into_string()
    }

    #[test]
    fn a_metric_without_a_sample_is_not_told() {
        assert_eq!(written(Kind::Gauge, |_| {}), "");
    }

    #[test]
    fn samples_follow_their_head() {
        let text = written(Kind::Gauge, |family| {
            family.sample("", 7_u64);
            family.sample("a=\"b\"", -1_i64);
            family.sample_with("a=\"b\"", ("c", "d"), 0.25);
            family.sample_with("", ("c", "d"), true);
        });
        assert_eq!(
            text,
            "# HELP m What it\\nis.\n# TYPE m gauge\nm 7\nm{a=\"b\"} -1\nm{a=\"b\",c=\"d\"} 0.25\n\
             m{c=\"d\"} 1\n"
        );
    }

    #[test]
    fn buckets_hold_those_before_them() {
        let text = written(Kind::Histogram, |family| {
            family.histogram("", &[0.5, 1.0], &[1, 2, 3], 9.5);
        });
        let expected = "m_bucket{le=\"0.5\"} 1\nm_bucket{le=\"1\"} 3\nm_bucket{le=\"+Inf\"} 6\n\
                        m_sum 9.5\nm_count 6\n";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn quotes_can_not_end_a_label() {
        assert_eq!(label("a", "x\"} 1\n\\"), r#"a="x\"} 1\n\\""#);
    }
}
