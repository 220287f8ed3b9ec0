//! What Sluice asks of the host's network, by netlink, ioctl and `/proc/sys`: where the next hop
//! of each backend is, which interfaces there are and what they count, the VIPs and NAT addresses
//! on loopback, ARP settings, the ports of the host's own sockets.
//!
//! Everything happens in the network namespace of the calling thread. The kernel answers a
//! netlink request inside `sendto`, so a driver that holds the kernel's network lock for
//! seconds stalls the asking thread as long: run on tokio's multi-threaded runtime.

mod addresses;
mod ethtool;
#[cfg(test)]
pub(crate) mod lab;
mod links;
mod neighbours;
mod netlink;
mod next_hop;
mod probe_namespace;
mod resolver;
mod routes;
mod statistics;
mod sysctl;

use std::{io, path::PathBuf};

pub use self::{
    addresses::{
        OwnAddresses, add_vip, host_addresses, own_addresses, own_vips, remove_vip, remove_vips,
        vips_added,
    },
    links::{Interface, XdpProgram, interface},
    netlink::Failure,
    next_hop::{NextHop, Unresolved},
    probe_namespace::{NamespaceError, ProbeNamespace},
    resolver::{NextHops, Snapshot},
    statistics::{Statistics, statistics, xdp_statistics},
    sysctl::{Ipv4Setting, Sysctl, port_clash},
};

/// A link-layer address, in the order of its bytes on the wire.
pub type Mac = [u8; 6];

/// What can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket could be had.
    #[error("can't open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused, or did not answer.
    #[error("can't {attempt}: {failure}")]
    Request {
        /// What was attempted, on what.
        attempt: String,
        /// What became of it.
        #[source]
        failure: Failure,
    },
    /// There is no such interface.
    #[error("no interface named {name}; there are: {}", .existing.join(", "))]
    NoInterface {
        /// The name that was asked for.
        name: String,
        /// The names that would have done.
        existing: Vec<String>,
    },
    /// A setting under `/proc/sys` could not be read or written.
    #[error("can't {attempt} {}: {source}{}", .path.display(), sysctl::remedy(.source))]
    Sysctl {
        /// `read` or `write`.
        attempt: &'static str,
        /// The setting.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
