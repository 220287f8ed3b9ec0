//! The control socket: what daemon and CLI say to each other, as HTTP and JSON.
//!
//! `curl --unix-socket /run/sluice/default/control.sock http://sluice/v1/status` works.

pub mod api;
mod calls;
pub mod client;
mod connections;
#[cfg(test)]
pub(crate) mod sample;
pub mod server;
#[cfg(test)]
mod tests;

pub(crate) use calls::Calls;
pub(crate) use connections::serve_connections;
pub use server::Peer;

use crate::{intent::Refusal, metrics::Figures};

/// What the daemon can tell, and be made to do. Calls may block for as long as a scan of the flow
/// table takes; the servers make them off the event loop.
pub trait Control: Send + Sync + 'static {
    /// The whole of it.
    fn status(&self) -> api::Status;

    /// Flows that match, and how many there are.
    fn flows(&self, filter: &api::FlowFilter) -> api::Flows;

    /// What became of every frame.
    fn reasons(&self) -> api::Reasons;

    /// What the metrics are made from, all of one moment.
    fn figures(&self) -> Figures;

    /// How drains go, or went.
    fn drains(&self, filter: &api::DrainFilter) -> Vec<api::Drain>;

    /// What happened, and who asked for it.
    fn events(&self, filter: &api::EventFilter) -> api::Events;

    /// What is wanted, as a file.
    ///
    /// # Errors
    /// Only by a defect.
    fn export(&self) -> anyhow::Result<api::Exported>;

    /// What a file would change.
    ///
    /// # Errors
    /// If it is not valid.
    fn plan(&self, file: &api::ConfigFile) -> Result<api::Plan, Refusal>;

    /// Takes up a file, whole or not at all.
    ///
    /// # Errors
    /// If it is refused.
    fn apply(&self, file: &api::ConfigFile, peer: &Peer) -> Result<api::Changed, Refusal>;

    /// Makes all changes of a transaction, or none.
    ///
    /// # Errors
    /// If they are refused.
    fn change(&self, transaction: &api::Transaction, peer: &Peer) -> Result<api::Changed, Refusal>;
}
