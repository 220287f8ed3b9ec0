//! A real Prometheus, which scrapes an instance each second.

use std::{fs, io::Write as _, path::Path, process::Stdio};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::{DEADLINE, Host, Process, check, until};

/// Where it answers, on its own machine.
const ADDRESS: &str = "127.0.0.1:9190";
/// Where an instance serves its metrics if nothing else is configured.
const METRICS: &str = "127.0.0.1:9180";

/// A running Prometheus; dropping it stops it.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    host: Host,
}

impl Prometheus {
    /// Starts it where the instance is, with these alert rules, and waits until it serves.
    pub fn start(host: &Host, rules: &Path) -> Result<Self> {
        let directory = host.directory("prometheus")?;
        let config = directory.join("prometheus.yml");
        let rules = rules.display();
        let text = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [ '{rules}' ]\n\
             scrape_configs:\n\
             - job_name: sluice\n  static_configs: [ {{ targets: [ '{METRICS}' ] }} ]\n"
        );
        fs::write(&config, text).context("write prometheus.yml")?;
        let mut command = host.command("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"));
        let process = Process::start("prometheus", command, &directory.join("log"))?;
        let mut started = Self { process, host: host.clone() };
        until("prometheus to serve", DEADLINE, || {
            (started.get("-/ready", None).is_ok() || !started.process.is_running()).then_some(())
        })
        .with_context(|| started.process.log())?;
        anyhow::ensure!(started.process.is_running(), "it ended: {}", started.process.log());
        Ok(started)
    }

    /// What a query comes to now: its result's series.
    pub fn query(&self, query: &str) -> Result<Vec<Value>> {
        let answer = self.get("api/v1/query", Some(query)).with_context(|| query.to_owned())?;
        let answer: Value = serde_json::from_str(&answer).context("read Prometheus' answer")?;
        let result = answer["data"]["result"].as_array();
        result.cloned().ok_or_else(|| anyhow!("{query}: {answer}"))
    }

    /// What a query comes to now, if that is one number.
    pub fn number(&self, query: &str) -> Result<Option<f64>> {
        let series = self.query(query)?;
        let number = series.first().and_then(|series| series["value"][1].as_str());
        Ok(number.and_then(|number| number.parse().ok()).filter(|_| series.len() == 1))
    }

    /// All alert rules.
    pub fn rules(&self) -> Result<Vec<Value>> {
        let answer: Value = serde_json::from_str(&self.get("api/v1/rules", None)?)?;
        let groups = answer["data"]["groups"].as_array().context("no groups of rules")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array());
        Ok(rules.flatten().cloned().collect())
    }

    fn get(&self, path: &str, query: Option<&str>) -> Result<String> {
        let url = format!("http://{ADDRESS}/{path}");
        let query = query.map(|query| format!("query={query}"));
        let mut arguments = vec!["-sS", "--max-time", "10", &url];
        match &query {
            Some(query) => arguments.extend(["--get", "--data-urlencode", query]),
            None => arguments.push("--fail"),
        }
        self.host.run("curl", &arguments)
    }
}

/// Runs `promtool` with this input; what it says, which is an error unless it is content.
pub fn promtool(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = std::process::Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run promtool (Debian package prometheus)")?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output().context("wait for promtool")?;
    check(&output, &format!("promtool {}", arguments.join(" ")))
}
