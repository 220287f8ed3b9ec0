//! What came out, for a person and for a script.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

use super::{instructions::Figures, kernels::Kernel};

/// What became of a kernel.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which it was, if it could be had.
    pub kernel: Option<Kernel>,
    /// How it went.
    pub verdict: Verdict,
    /// What was measured.
    pub figures: Option<Figures>,
    /// From the start of the machine to its end.
    pub time: Duration,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that was to be shown was; in a few words.
    Passed(String),
    /// What was not; several lines.
    Failed(String),
    /// Nobody has looked, and why. It says nothing about the kernel.
    NotRun(String),
}

/// All outcomes, by the names that were asked for; `None` is still to come.
#[derive(Clone, Debug, Default)]
pub struct Report(pub Vec<(String, Option<Outcome>)>);

/// One kernel, for a script.
#[derive(Serialize)]
struct Line<'a> {
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<&'a str>,
    seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<&'a Figures>,
}

/// All of them.
#[derive(Serialize)]
struct Lines<'a> {
    kernels: BTreeMap<&'a str, Line<'a>>,
}

impl Verdict {
    /// `passed`, `failed` or `not run`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Passed(_) => "passed",
            Self::Failed(_) => "failed",
            Self::NotRun(_) => "not run",
        }
    }
}

impl Outcome {
    /// Of a kernel, or an emulator, that can't be had.
    pub const fn not_run(why: String) -> Self {
        let verdict = Verdict::NotRun(why);
        Self { kernel: None, verdict, figures: None, time: Duration::ZERO }
    }
}

impl Report {
    fn named(&self) -> impl Iterator<Item = (&str, &Outcome)> {
        self.0.iter().filter_map(|(name, outcome)| Some((&**name, outcome.as_ref()?)))
    }

    /// All that have come.
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.named().map(|(_, outcome)| outcome)
    }

    /// The names of those that failed.
    pub fn failed(&self) -> Vec<&str> {
        let failed = |outcome: &Outcome| matches!(outcome.verdict, Verdict::Failed(_));
        self.named().filter(|(_, outcome)| failed(outcome)).map(|(name, _)| name).collect()
    }

    /// One line of JSON.
    pub fn json(&self) -> serde_json::Result<String> {
        let kernels = self.named().map(|(name, outcome)| {
            let reason = match &outcome.verdict {
                Verdict::Passed(_) => None,
                Verdict::Failed(why) | Verdict::NotRun(why) => why.lines().next(),
            };
            let line = Line {
                result: outcome.verdict.name(),
                release: outcome.kernel.as_ref().map(|kernel| &*kernel.release),
                seconds: outcome.time.as_secs(),
                reason,
                instructions: outcome.figures.as_ref(),
            };
            (name, line)
        });
        serde_json::to_string(&Lines { kernels: kernels.collect() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, Outcome { kernel, verdict, time, .. }) in self.named() {
            let release = kernel.as_ref().map_or("no image", |kernel| &kernel.release);
            let (word, told) = match verdict {
                Verdict::Passed(told) => ("passed", told),
                Verdict::Failed(why) => ("FAILED", why),
                Verdict::NotRun(why) => ("not run", why),
            };
            writeln!(f, "vm: {name} ({release}): {word} ({} s): {told}", time.as_secs())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_script_reads_what_it_was_promised() {
        let kernel = Kernel {
            release: "6.1.0-56-cloud-amd64".into(),
            version: "6.1.192-2".into(),
            image: PathBuf::new(),
            modules: PathBuf::new(),
            directory: PathBuf::new(),
        };
        let passed = Outcome {
            kernel: Some(kernel),
            verdict: Verdict::Passed("all".into()),
            figures: None,
            time: Duration::from_millis(12_900),
        };
        let report = Report(vec![
            ("6.1".into(), Some(passed)),
            ("7.x".into(), Some(Outcome::not_run("no mirror\nat all".into()))),
        ]);
        assert_eq!(
            report.json().unwrap(),
            r#"{"kernels":{"6.1":{"result":"passed","release":"6.1.0-56-cloud-amd64","seconds":12},"7.x":{"result":"not run","seconds":0,"reason":"no mirror"}}}"#
        );
        assert_eq!(report.failed(), [""; 0]);
    }
}
