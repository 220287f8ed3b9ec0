//! `cargo xtask fuzz`: libFuzzer drives the targets of `fuzz/` for as long as one likes.
//!
//! cargo-fuzz builds them with our own toolchain: `RUSTC_BOOTSTRAP=1` makes a stable compiler take
//! what it asks for. No sanitizer: what is fuzzed is safe Rust, which panics instead, and runs several
//! times as fast without. What libFuzzer finds lies below the target directory, where the next run
//! goes on from.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{cargo, root, run, target_dir},
    setup::{self, Purpose},
};

/// One input may take so long, seconds; then it is a find.
const SLOWEST: u32 = 20;

/// What became of a target.
struct Outcome {
    target: String,
    result: End,
    took: Duration,
    executions: u64,
}

/// How a run ended.
enum End {
    /// Nothing was found.
    Passed,
    /// These inputs do what is not defined.
    Found(Vec<PathBuf>),
    /// libFuzzer could not be run.
    NotRun(String),
}

/// Runs one target, or all of them, each for so long.
pub fn fuzz(target: Option<&str>, time: Duration, json: bool) -> Result<()> {
    setup::ensure(&[Purpose::Build, Purpose::Fuzz])?;
    let targets = chosen(target, &targets()?)?;
    eprintln!("fuzz: building {} …", targets.join(", "));
    let mut build = cargo_fuzz("build");
    if let [only] = &*targets {
        build.arg(only);
    }
    run(&mut build)?;
    run(&mut cargo(&["build", "--quiet", "--package", "sluice-fuzz", "--example", "seeds"]))?;
    let mut outcomes = Vec::new();
    for target in targets {
        eprintln!("fuzz: {target}, {} s …", time.as_secs());
        let outcome = drive(target, time)?;
        println!("{}", line(&outcome));
        outcomes.push(outcome);
    }
    if json {
        println!("{}", as_json(&outcomes));
    }
    let failed = outcomes.iter().filter(|outcome| !matches!(outcome.result, End::Passed));
    match failed.count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} targets did not pass", outcomes.len()),
    }
}

/// The targets that there are: a program each.
fn targets() -> Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()));
    let mut targets = Vec::new();
    for entry in entries? {
        let path = entry?.path();
        targets.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    targets.sort();
    Ok(targets)
}

fn chosen(target: Option<&str>, all: &[String]) -> Result<Vec<String>> {
    match target {
        None => Ok(all.to_vec()),
        Some(name) if all.iter().any(|target| target == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!("there is no target {name}; there are {}", all.join(", ")),
    }
}

fn cargo_fuzz(task: &str) -> Command {
    let mut command = cargo(&["fuzz", task, "--sanitizer", "none", "--features", "libfuzzer"]);
    command.env("RUSTC_BOOTSTRAP", "1");
    command
}

fn drive(target: String, time: Duration) -> Result<Outcome> {
    let home = target_dir().join("fuzz").join(&target);
    let [corpus, seeds, found] = ["corpus", "seeds", "found"].map(|name| home.join(name));
    for directory in [&corpus, &seeds, &found] {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    run(Command::new(target_dir().join("debug/examples/seeds")).arg(&target).arg(&seeds))?;
    let before = files(&found)?;
    let log = home.join("log");
    let mut command = cargo_fuzz("run");
    command.arg(&target).args([&corpus, &seeds]);
    let committed = root().join("fuzz/corpus").join(&target);
    if committed.is_dir() {
        command.arg(committed);
    }
    command.arg("--").args([
        format!("-max_total_time={}", time.as_secs()),
        format!("-timeout={SLOWEST}"),
        format!("-artifact_prefix={}/", found.display()),
        "-print_final_stats=1".to_owned(),
    ]);
    let file = File::create(&log).with_context(|| format!("write {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file);
    let start = Instant::now();
    let status = command.status().context("run cargo fuzz")?;
    let took = start.elapsed();
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let new: Vec<PathBuf> =
        files(&found)?.into_iter().filter(|file| !before.contains(file)).collect();
    let result = if status.success() {
        End::Passed
    } else if new.is_empty() {
        End::NotRun(format!("{status}; {} tells more", log.display()))
    } else {
        eprintln!("{}", panic_of(&said));
        End::Found(new)
    };
    Ok(Outcome { executions: executions(&said), target, result, took })
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()));
    entries?.map(|entry| Ok(entry?.path())).collect()
}

/// How many inputs libFuzzer says that it has run.
fn executions(log: &str) -> u64 {
    let counts =
        log.lines().filter_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).next_back().unwrap_or(0)
}

/// The panic that ended a run, as it was told.
fn panic_of(log: &str) -> String {
    let told = log.lines().skip_while(|line| !line.contains("panicked at"));
    let told: Vec<&str> = told.take_while(|line| !line.starts_with("==")).take(40).collect();
    if told.is_empty() {
        "no panic: too slow, or too much memory".to_owned()
    } else {
        told.join("\n")
    }
}

fn line(outcome: &Outcome) -> String {
    let Outcome { target, result, took, executions } = outcome;
    let seconds = took.as_secs();
    let result = match result {
        End::Passed => "passed".to_owned(),
        End::Found(files) => {
            let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            format!("FOUND {}", files.join(", "))
        }
        End::NotRun(why) => format!("not run: {why}"),
    };
    format!("fuzz: {target}: {executions} executions in {seconds} s, {result}")
}

/// `{"targets":{"steer":{"result":"passed|found|not run","executions":N,"seconds":N,"found":[…]},…}}`
fn as_json(outcomes: &[Outcome]) -> String {
    let mut targets = String::new();
    for Outcome { target, result, took, executions } in outcomes {
        let (result, found) = match result {
            End::Passed => ("passed", &[][..]),
            End::Found(files) => ("found", &files[..]),
            End::NotRun(_) => ("not run", &[][..]),
        };
        let found: Vec<String> = found.iter().map(|file| text(&file.to_string_lossy())).collect();
        let comma = if targets.is_empty() { "" } else { "," };
        let _ = write!(
            targets,
            "{comma}{}:{{\"result\":\"{result}\",\"executions\":{executions},\"seconds\":{},\"found\":[{}]}}",
            text(target),
            took.as_secs(),
            found.join(",")
        );
    }
    format!("{{\"targets\":{{{targets}}}}}")
}

/// A text in JSON (RFC 8259, §7).
fn text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => drop(write!(quoted, "\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_read() {
        let log = "#2 INITED\n\nthread '<unnamed>' panicked at fuzz/src/frames.rs:1:1:\nnot so\n\
                   ==7== ERROR: libFuzzer: deadly signal\nstat::number_of_executed_units: 1234\n\
                   stat::average_exec_per_sec:     0\n";
        assert_eq!(executions(log), 1234);
        assert!(panic_of(log).ends_with("frames.rs:1:1:\nnot so"), "{}", panic_of(log));
        assert_eq!(executions("error: no such target"), 0);
    }

    #[test]
    fn the_last_line_is_json() {
        let outcome = |target: &str, result| Outcome {
            target: target.to_owned(),
            result,
            took: Duration::from_millis(2700),
            executions: 7,
        };
        let outcomes = [
            outcome("icmp", End::Passed),
            outcome("state", End::Found(vec![PathBuf::from("/a \"b\"/crash-1")])),
        ];
        assert_eq!(
            as_json(&outcomes),
            r#"{"targets":{"icmp":{"result":"passed","executions":7,"seconds":2,"found":[]},"#
                .to_owned()
                + r#""state":{"result":"found","executions":7,"seconds":2,"found":["/a \"b\"/crash-1"]}}}"#
        );
    }

    #[test]
    fn a_target_that_nobody_has_is_told_with_those_that_there_are() {
        let all = targets().expect("the directory");
        assert!(all.contains(&"steer".to_owned()), "{all:?}");
        let error = chosen(Some("stear"), &all).unwrap_err().to_string();
        assert!(error.contains("there is no target stear; there are config, "), "{error}");
        assert_eq!(chosen(Some("icmp"), &all).unwrap(), ["icmp"]);
    }
}
