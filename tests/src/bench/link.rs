//! A veth pair in a network namespace of the bench's own: it goes with the process, however
//! that ends.

use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::{net::if_::if_nametoindex, sched::CloneFlags};

/// The end whose frames the generator's targets send.
pub const NEAR: &str = "bench";
/// That, and the one where they arrive.
const ENDS: [&str; 2] = [NEAR, "sink"];

/// The pair, by interface index.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Where the generator is attached; nothing ever arrives there.
    pub near: u32,
    /// The other end.
    pub far: u32,
}

impl Link {
    /// Moves this thread into a new network namespace, and makes the pair there.
    pub fn create() -> Result<Self> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        let [near, far] = ENDS;
        ip(&["link", "add", near, "type", "veth", "peer", "name", far])?;
        for end in ENDS {
            ip(&["link", "set", end, "addrgenmode", "none", "up"])?;
        }
        let index = |name| if_nametoindex(name).with_context(|| format!("find {name}"));
        Ok(Self { near: index(near)?, far: index(far)? })
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("run ip")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), said.trim());
    }
    Ok(())
}
