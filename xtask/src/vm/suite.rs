//! What is done in a guest, and whether it was done well.
//!
//! The tests are the privileged crate's own, started by name: what they prove here they prove of
//! another kernel. A test that is renamed is missed, not forgotten: a step counts only if as many
//! tests have passed as it names.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::{
    initramfs::{AT_ONCE, TESTS},
    instructions::{self, Figures},
    kernels::Series,
    machine::Ran,
    report::Verdict,
};

/// The oldest kernel that the program is made for.
pub const FLOOR: (u32, u32) = (6, 1);

/// Frames of the agreement: on the host there are 60,000. The emulator is some thirty times as slow.
pub const FRAMES: u32 = 20_000;

/// What goes into a guest: tests, and programs.
pub const PROGRAMS: [&str; 2] = ["sluice", "bench"];
/// See [`PROGRAMS`].
pub const BINARIES: [&str; 4] = ["agent_frames", "agreement", "golden", "namespaces"];

/// What a namespace test proves here: each way of forwarding, attached to the driver and in generic
/// mode, and an instance's life.
const SMOKE: [&str; 7] = [
    "forwarding::many_services_of_all_kinds_share_one_balancer",
    "forwarding::generic_xdp_forwards_too",
    "forwarding::ipip_is_decapsulated_by_a_kernel_tunnel_device_too",
    "life::kill_9_under_load_breaks_no_connection",
    "life::detach_leaves_nothing_behind",
    "networks::backends_behind_another_interface_are_reached_by_redirect",
    "upgrade::an_upgrade_that_is_killed_is_undone_by_the_next_daemon",
];

/// The same with the balancer on a virtio_net card, and frames larger than a page, which that driver
/// hands to XDP programs since [`JUMBO_ON_VIRTIO`].
const ON_VIRTIO: [&str; 2] = [
    "forwarding::many_services_of_all_kinds_share_one_balancer",
    "forwarding::jumbo_frames_are_forwarded_natively",
];

/// The first with `xdp.frags` in `virtio_net`: before, it refuses a program where the MTU is larger.
const JUMBO_ON_VIRTIO: (u32, u32) = (6, 3);

/// A program that is started in a guest, and what its answer is held against.
struct Step {
    name: &'static str,
    /// As a shell reads it.
    command: String,
    proves: Proves,
}

/// What makes a step a good one.
enum Proves {
    /// Tests of a binary: this many, or any number but none. Then the words for a report.
    Tests(Option<usize>, String),
    /// A refusal that says this.
    Refusal([&'static str; 2]),
    /// Figures.
    Figures,
}

/// What is to be done with a kernel.
pub struct Suite(Vec<Step>);

impl Suite {
    /// Of a claimed kernel: golden frames, agreement, and a smoke of namespaces and of virtio_net.
    /// Of one that is too old: that it is told so.
    pub fn of(series: &Series) -> Self {
        if series.is_before(FLOOR.0, FLOOR.1) {
            return Self(vec![refusal()]);
        }
        let exactly = |names: &[&str]| format!("--exact {}", names.join(" "));
        let (major, minor) = JUMBO_ON_VIRTIO;
        let on_virtio = if series.is_before(major, minor) { &ON_VIRTIO[..1] } else { &ON_VIRTIO };
        Self(vec![
            // A table of every length, full: minutes here, and no kernel reads it in its own way.
            tests("golden", "", "golden --skip maglev::", None, "golden frames"),
            tests("agent", "", "agent_frames", None, "the agent's frames"),
            tests(
                "agreement",
                &format!("SLUICE_FRAMES={FRAMES}"),
                "agreement",
                None,
                &format!("agreement ({FRAMES} frames)"),
            ),
            tests(
                "namespaces",
                "",
                &format!("namespaces {}", exactly(&SMOKE)),
                Some(SMOKE.len()),
                "namespaces",
            ),
            tests(
                "virtio",
                "SLUICE_LAB_CARDS=virtio_net",
                &format!("namespaces {}", exactly(on_virtio)),
                Some(on_virtio.len()),
                "virtio_net",
            ),
        ])
    }

    /// Only the steps of these names, or all if none is named.
    ///
    /// # Errors
    /// If none of them is a step here.
    pub fn only(mut self, names: &[String]) -> Result<Self> {
        let known = self.0.iter().map(|step| step.name).collect::<Vec<_>>().join(", ");
        self.0.retain(|step| names.is_empty() || names.iter().any(|name| name == step.name));
        ensure!(!self.0.is_empty(), "no step is named {}: there are {known}", names.join(", "));
        Ok(self)
    }

    /// What measures, in place of tests.
    pub fn figures() -> Self {
        let command = format!("{TESTS}/bench instructions");
        Self(vec![Step { name: "instructions", command, proves: Proves::Figures }])
    }

    /// What the guest's first process reads.
    pub fn plan(&self) -> String {
        let modules = AT_ONCE.map(|module| format!("modprobe {module}\n")).concat();
        let mut plan =
            format!("{modules}export SLUICE_BIN={TESTS}/sluice RUST_BACKTRACE=0\ncd /tmp\n");
        for Step { name, command, .. } in &self.0 {
            // A String takes all that is written.
            let _ = writeln!(plan, "step {name} {command}");
        }
        plan
    }

    /// Reads what the guest has said; `compare` has a word on its figures, if there are some.
    pub fn judge(
        &self,
        ran: &Ran,
        compare: impl Fn(&Figures) -> Verdict,
    ) -> (Verdict, Option<Figures>) {
        let mut held = Vec::new();
        let mut figures = None;
        for step in &self.0 {
            let Some((code, said)) = ran.step(step.name) else {
                let last: Vec<&str> = ran.said.lines().rev().take(30).collect();
                let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
                let why = format!("{} has not ended ({:?}):\n{last}", step.name, ran.end);
                return (Verdict::Failed(why), None);
            };
            match step.proves.judge(code, said) {
                Ok(Proof::Words(words)) => held.push(words),
                Ok(Proof::Figures(measured)) => figures = Some(measured),
                Err(why) => {
                    return (Verdict::Failed(format!("{}: {why}:\n{said}", step.name)), None);
                }
            }
        }
        let verdict = if let Some(line) = ran.complaint() {
            Verdict::Failed(format!("the kernel said: {line}"))
        } else if !ran.is_done() {
            Verdict::Failed(format!("the guest has not come to its end ({:?})", ran.end))
        } else if let Some(figures) = &figures {
            compare(figures)
        } else {
            Verdict::Passed(held.join(", "))
        };
        (verdict, figures)
    }
}

/// What a step has shown.
enum Proof {
    /// In a few words.
    Words(String),
    Figures(Figures),
}

fn tests(
    name: &'static str,
    environment: &str,
    binary: &str,
    count: Option<usize>,
    words: &str,
) -> Step {
    let command = format!("env {environment} {TESTS}/{binary}");
    Step { name, command, proves: Proves::Tests(count, words.to_owned()) }
}

fn refusal() -> Step {
    let config = "[dataplane]\\ninterfaces = [\"lo\"]\\n";
    Step {
        name: "refusal",
        command: format!(
            "sh -c 'printf \"{}\" >sluice.toml; exec {TESTS}/sluice run --config sluice.toml'",
            config.replace('"', "\\\"")
        ),
        proves: Proves::Refusal(["sluice needs 6.1 or newer", "this one lacks"]),
    }
}

impl Proves {
    fn judge(&self, code: i32, said: &str) -> Result<Proof, String> {
        match self {
            Self::Tests(count, words) => {
                let passed = passed(said).ok_or("no result of tests")?;
                if code != 0 {
                    return Err(format!("tests have failed (exit code {code})"));
                }
                if passed == 0 || count.is_some_and(|count| count != passed) {
                    return Err(format!("{passed} tests have run: were they renamed?"));
                }
                Ok(Proof::Words(format!("{words}: {passed}")))
            }
            Self::Refusal(words) => {
                if code != 1 {
                    return Err(format!("no refusal (exit code {code})"));
                }
                match words.iter().find(|word| !said.contains(*word)) {
                    Some(word) => Err(format!("the refusal does not say \"{word}\"")),
                    None => {
                        Ok(Proof::Words(format!("refused: {}", said.lines().last().unwrap_or(""))))
                    }
                }
            }
            Self::Figures if code != 0 => Err(format!("nothing measured (exit code {code})")),
            Self::Figures => {
                instructions::read(said).map(Proof::Figures).ok_or("no figures".into())
            }
        }
    }
}

/// How many tests have passed, from the harness's last line.
fn passed(said: &str) -> Option<usize> {
    let result = said.lines().rev().find_map(|line| line.strip_prefix("test result: "))?;
    let (_, counts) = result.split_once(". ")?;
    counts.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use super::{super::machine::End, *};

    const GOOD: &str = "running 1 test\ntest a ... ok\n\n\
        test result: ok. 26 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";

    fn said(steps: &[(&str, i32, &str)]) -> Ran {
        let steps = steps
            .iter()
            .map(|(name, code, said)| format!("@@ begin {name}\n{said}@@ end {code} {name}\n"));
        Ran {
            end: End::Exited(ExitStatus::from_raw(0)),
            said: format!("@@ kernel 6.1.0\n{}@@ done\n", steps.collect::<String>()),
            console: String::new(),
        }
    }

    fn suite() -> Suite {
        Suite(vec![tests("one", "", "one", Some(26), "ones")])
    }

    fn judge(suite: &Suite, ran: &Ran) -> Verdict {
        suite.judge(ran, |_| panic!("no figures")).0
    }

    #[test]
    fn tests_that_did_not_run_prove_nothing() {
        assert_eq!(judge(&suite(), &said(&[("one", 0, GOOD)])), Verdict::Passed("ones: 26".into()));
        for (code, lines) in
            [(101, GOOD), (0, ""), (0, &*GOOD.replace("26", "25")), (0, &*GOOD.replace("26", "0"))]
        {
            let proof = judge(&suite(), &said(&[("one", code, lines)]));
            assert!(matches!(proof, Verdict::Failed(_)), "{code} {lines}");
        }
        assert!(matches!(judge(&suite(), &said(&[])), Verdict::Failed(_)));
    }

    #[test]
    fn what_the_kernel_complains_of_is_no_success() {
        let mut ran = said(&[("one", 0, GOOD)]);
        ran.console = "[  3.1] BUG: sleeping function called from invalid context\n".into();
        assert!(matches!(judge(&suite(), &ran), Verdict::Failed(_)));
    }

    #[test]
    fn an_old_kernel_is_asked_for_a_refusal_that_helps() {
        let suite = Suite::of(&"5.10".parse().unwrap());
        let good = "error: this kernel is 5.10, sluice needs 6.1 or newer: this one lacks much\n";
        assert!(matches!(judge(&suite, &said(&[("refusal", 1, good)])), Verdict::Passed(_)));
        for (code, words) in [(0, good), (1, "error: no\n"), (139, good)] {
            let proof = judge(&suite, &said(&[("refusal", code, words)]));
            assert!(matches!(proof, Verdict::Failed(_)), "{code} {words}");
        }
    }
}
