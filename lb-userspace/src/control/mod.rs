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

/// What the daemon can tell. Calls may block for as long as a scan of the flow table takes;
/// the servers make them off the event loop.
pub trait Control: Send + Sync + 'static {
    /// The whole of it.
    fn status(&self) -> api::Status;

    /// Flows that match, and how many there are.
    fn flows(&self, filter: &api::FlowFilter) -> api::Flows;

    /// What became of every frame.
    fn reasons(&self) -> api::Reasons;
}
