//! What the daemon knows: what is wanted, what the maps hold, what was last seen.

use std::time::{Instant, SystemTime};

use anyhow::Result;

use crate::{
    datapath::{Datapath, Sweep},
    instance::Instance,
    model::Desired,
    network::{Snapshot, XdpProgram},
    reconcile::{self, Image},
};

/// Everything the daemon holds.
pub struct State {
    /// Who we are.
    pub instance: Instance,
    /// When the daemon started.
    pub since: SystemTime,
    /// What the operator wants.
    pub desired: Desired,
    /// Programs and maps.
    pub datapath: Datapath,
    /// What the maps hold.
    pub image: Image,
    /// Where the backends are.
    pub next_hops: Snapshot,
    /// The last pass over the flow table.
    pub sweep: Sweep,
    /// The interfaces as last seen.
    pub interfaces: Vec<InterfaceSeen>,
    /// Why the last reconciliation failed, if it did.
    pub reconcile_error: Option<String>,
    /// What else went wrong and stays so.
    pub notes: Vec<String>,
    /// When the maps were last changed: what a sweep begun before says of idle backends is old.
    changed: Instant,
    /// When the last sweep began.
    swept: Option<Instant>,
}

/// A configured interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSeen {
    /// Its name.
    pub name: String,
    /// The program on it; `None` if there is none, or no such interface.
    pub xdp: Option<XdpProgram>,
}

impl State {
    /// A state about which nothing has been seen yet.
    pub fn new(instance: Instance, desired: Desired, datapath: Datapath, image: Image) -> Self {
        Self {
            instance,
            since: SystemTime::now(),
            desired,
            datapath,
            image,
            next_hops: Snapshot::default(),
            sweep: Sweep::default(),
            interfaces: Vec::new(),
            reconcile_error: None,
            notes: Vec::new(),
            changed: Instant::now(),
            swept: None,
        }
    }

    /// Makes the maps hold what is wanted.
    ///
    /// # Errors
    /// At the first write that fails; the next call goes on from there.
    pub fn reconcile(&mut self) -> Result<()> {
        let wanted = reconcile::wanted(&self.desired, &self.next_hops, &self.datapath.seed());
        let sweep_is_newer = self.swept.is_some_and(|swept| swept > self.changed);
        let is_idle = |index: u16| sweep_is_newer && self.sweep.entries[usize::from(index)] == 0;
        let writes = reconcile::plan(&self.image, &wanted, is_idle)?;
        if writes.is_empty() {
            return Ok(());
        }
        tracing::debug!(writes = writes.len(), "reconciling");
        let result = reconcile::apply(&writes, &mut self.datapath.maps, &mut self.image);
        self.changed = Instant::now();
        result
    }

    /// Frees what has expired in the flow table, and counts the rest.
    pub fn sweep(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.sweep = self.datapath.sweep()?;
        self.swept = Some(begun);
        Ok(())
    }

    /// Whether some backend only waits for its last flow to end.
    pub fn has_orphans(&self) -> bool {
        !self.image.orphans.is_empty()
            || self.image.services.values().any(|service| !service.listed)
    }
}
