//! An instance whose daemon is gone: whether it forwards, told from the kernel alone.

use std::time::{Duration, SystemTime};

use super::{Screen, age, wrapped};
use crate::{
    cli::{
        figures::{exact, plural, seconds},
        table::{Palette, Tone},
    },
    control::api::Event,
};

/// What can be known without a daemon.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// The instance's name.
    pub instance: String,
    /// What the kernel does; an error: why that can't be known.
    pub kernel: Result<Unattended, String>,
    /// The last entry of the journal.
    pub last: Option<Event>,
}

/// What the kernel does by itself.
#[derive(Clone, Debug)]
pub struct Unattended {
    /// Where the instance is attached, or was.
    pub interfaces: Vec<Front>,
    /// Services in its maps.
    pub services: u64,
    /// Their backends.
    pub backends: u64,
    /// Packets that it forwarded while it was looked at.
    pub packets: u64,
    /// For how long it was looked at.
    pub during: Duration,
}

/// An interface that a link of the instance holds.
#[derive(Clone, Debug)]
pub struct Front {
    /// Its name.
    pub name: String,
    /// Why nothing is balanced that arrives there; `None`: it is.
    pub fault: Option<String>,
}

/// What `status` prints then.
pub fn without_daemon(
    orphan: &Orphan,
    now: SystemTime,
    screen: Screen,
    palette: Palette,
) -> String {
    let mut text = match &orphan.kernel {
        Err(_) => palette.paint(Tone::Doubtful, "forwarding: unknown"),
        Ok(seen) if seen.interfaces.is_empty() => palette.paint(Tone::Bad, "forwarding: NO"),
        Ok(seen) if seen.interfaces.iter().all(|interface| interface.fault.is_some()) => {
            palette.paint(Tone::Bad, "forwarding: NO")
        }
        Ok(_) => format!(
            "{}, {}",
            palette.paint(Tone::Good, "forwarding: yes"),
            palette.paint(Tone::Bad, "without a daemon")
        ),
    };
    let mut lines = Vec::new();
    match &orphan.kernel {
        Err(error) => lines.push(format!("the kernel can't be asked: {error}")),
        Ok(seen) if seen.interfaces.is_empty() => {
            lines.push(format!("instance {} is not attached to any interface", orphan.instance));
        }
        Ok(seen) => {
            for interface in &seen.interfaces {
                let state = interface.fault.as_deref().unwrap_or("runs the program");
                lines.push(format!("{} {state}", interface.name));
            }
            let forwarded = exact(seen.packets);
            lines.push(format!(
                "{} and {} as they were last known; {forwarded} packets forwarded in the last \
                 {} ms",
                plural(seen.services, "service"),
                plural(seen.backends, "backend"),
                seen.during.as_millis(),
            ));
        }
    }
    lines.push(
        "no daemon answers: nobody looks after the backends, drains them, or takes changes"
            .to_owned(),
    );
    if let Some(last) = &orphan.last {
        let ago = age(&last.at, now).map_or_else(String::new, |a| format!(", {} ago", seconds(a)));
        let at = last.at.get(..19).unwrap_or(&last.at);
        lines.push(format!("its last word, {at}Z{ago}: {}", last.text));
    }
    let width = screen.width.map(|width| width.saturating_sub(2));
    for line in lines {
        text += &format!("\n  {}", wrapped(&line, width).join("\n  "));
    }
    let mend = "-> start it: `sluice run --config FILE`, or the unit that does; it takes up what runs, \
                without a gap";
    text += &format!("\n  {}\n", wrapped(mend, width).join("\n  "));
    text
}
