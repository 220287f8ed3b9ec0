//! The programs of the prober: taken along by it, attached by links that only it holds, so that
//! they go with the daemon.

use anyhow::{Result, anyhow};
use aya::programs::{Xdp, links::FdLink};

use super::{ANSWERS, Datapath, PASS, PROBE, Probes, attach::attach_as};
use crate::network::Interface;

/// A program on an interface; dropped, it is taken off.
pub struct Held {
    _link: FdLink,
}

/// What the prober needs of an instance.
pub struct ProberParts {
    /// On the host's end of its veth pair.
    pub probe: ProberProgram,
    /// On the other end.
    pub pass: ProberProgram,
    /// On interfaces where answers arrive, and no clients' frames.
    pub answers: ProberProgram,
    /// The probes under way.
    pub probes: Probes,
}

/// A pinned program that is there for the prober alone.
pub struct ProberProgram(Xdp);

impl ProberParts {
    /// Of a running instance. What another daemon has left in the table of probes is forgotten.
    ///
    /// # Errors
    /// If programs or maps can't be opened.
    pub fn of(datapath: &Datapath) -> Result<Self> {
        Ok(Self {
            probe: ProberProgram(datapath.program(PROBE)?),
            pass: ProberProgram(datapath.program(PASS)?),
            answers: ProberProgram(datapath.program(ANSWERS)?),
            probes: datapath.maps.probes()?,
        })
    }
}

impl ProberProgram {
    /// Attaches to the driver's hook of an interface of this thread's network namespace.
    ///
    /// # Errors
    /// If the driver has none, or another program is there.
    pub fn attach_native(&mut self, interface: &Interface) -> Result<Held> {
        attach_as(&mut self.0, interface, true).map(|link| Held { _link: link })
    }

    /// Attaches to the generic hook.
    ///
    /// # Errors
    /// If another program is there.
    pub fn attach_generic(&mut self, interface: &Interface) -> Result<Held> {
        attach_as(&mut self.0, interface, false).map(|link| Held { _link: link })
    }

    /// Attaches to the driver's hook, or else to the generic one.
    ///
    /// # Errors
    /// If another program is there, or neither takes ours.
    pub fn attach(&mut self, interface: &Interface) -> Result<Held> {
        if let Some(other) = &interface.xdp {
            return Err(anyhow!("{} runs another XDP program (id {})", interface.name, other.id));
        }
        self.attach_native(interface).or_else(|_| self.attach_generic(interface))
    }
}
