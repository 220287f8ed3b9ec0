//! A browser without a window: what a page becomes when its style and script have run.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{Host, check};

/// Chromium's shell for this purpose, in Debian's package of the same name.
const BROWSER: &str = "chromium-headless-shell";

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View<'v> {
    /// Columns and lines of the window, in CSS pixels.
    pub size: (u16, u16),
    /// Whether the user prefers dark pages.
    pub dark: bool,
    /// How long the page lives, by its own clock.
    pub milliseconds: u32,
    /// Where a picture of it is put, PNG.
    pub picture: Option<&'v Path>,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The document as the script has made it, HTML.
    pub document: String,
    /// What the console was told: errors, and what the content security policy refused.
    pub console: Vec<String>,
}

impl Host {
    /// Opens a page here.
    pub fn browse(&self, url: &str, view: View<'_>) -> Result<Seen> {
        let home = self.directory("browser")?;
        let (width, height) = view.size;
        let mut command = self.command(BROWSER);
        command
            // It has no business outside its own page; its sandbox wants user namespaces.
            .args(["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"])
            .args(["--enable-logging=stderr", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", home.display()))
            .arg(format!("--window-size={width},{height}"))
            .arg(format!("--virtual-time-budget={}", view.milliseconds))
            .arg(format!(
                "--blink-settings=preferredColorScheme={}",
                if view.dark { 0 } else { 1 }
            ));
        if let Some(picture) = view.picture {
            command.arg(format!("--screenshot={}", picture.display()));
        }
        let output = command.arg(url).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("run {BROWSER}: `cargo xtask setup`"))?;
        let document = check(&output, BROWSER)?;
        ensure!(document.contains("<html"), "{BROWSER} shows no page: {document}");
        let errors = String::from_utf8_lossy(&output.stderr);
        let console = errors.lines().filter(|line| line.contains(":CONSOLE"));
        Ok(Seen { document, console: console.map(str::to_owned).collect() })
    }
}
