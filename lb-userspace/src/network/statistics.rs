//! What the kernel and its drivers count of each interface.

use std::collections::BTreeMap;

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, Stats64},
};
use tokio::task::block_in_place;

use super::{Error, ethtool, links, netlink::Netlink};

/// Counts of an interface since it was made, as `ip -s link` shows them.
///
/// Received are all good frames that the driver took, those too that XDP or the host dropped
/// (`struct rtnl_link_stats64`, `include/uapi/linux/if_link.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames received.
    pub received_frames: u64,
    /// Their bytes; whether the Ethernet header is among them is the driver's matter.
    pub received_bytes: u64,
    /// Frames received that were bad.
    pub receive_errors: u64,
    /// Frames received and dropped by driver or host: no room, or nobody wanted them.
    pub receive_dropped: u64,
    /// Frames that the card dropped because the host did not take them.
    pub receive_missed: u64,
    /// Frames sent; whether those of XDP are among them is the driver's matter.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that could not be sent.
    pub send_errors: u64,
    /// Frames dropped on their way out.
    pub send_dropped: u64,
}

/// The statistics of all interfaces, by index.
///
/// # Errors
/// If the kernel does not list them.
pub async fn statistics() -> Result<BTreeMap<u32, Statistics>, Error> {
    let netlink = Netlink::open()?;
    let dump = links::dump(&netlink)
        .await
        .map_err(|failure| failure.during("read the interfaces' statistics"))?;
    let read = |message: &RouteNetlinkMessage| match message {
        RouteNetlinkMessage::NewLink(link) => Some((link.header.index, Statistics::of(link)?)),
        _ => None,
    };
    Ok(dump.messages.iter().filter_map(read).collect())
}

/// What an interface's driver counts of XDP, by its own names, all queues together; empty if it
/// counts nothing.
///
/// # Errors
/// If there is no such interface, or the driver refuses.
pub fn xdp_statistics(interface: &str) -> std::io::Result<BTreeMap<String, u64>> {
    // A card's firmware may have to be asked.
    block_in_place(|| ethtool::xdp_statistics(interface))
}

impl Statistics {
    fn of(link: &LinkMessage) -> Option<Self> {
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(Self::from(stats)),
            _ => None,
        })
    }
}

impl From<&Stats64> for Statistics {
    fn from(stats: &Stats64) -> Self {
        Self {
            received_frames: stats.rx_packets,
            received_bytes: stats.rx_bytes,
            receive_errors: stats.rx_errors,
            receive_dropped: stats.rx_dropped,
            receive_missed: stats.rx_missed_errors,
            sent_frames: stats.tx_packets,
            sent_bytes: stats.tx_bytes,
            send_errors: stats.tx_errors,
            send_dropped: stats.tx_dropped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::lab::{Namespace, block_on};

    #[test]
    fn frames_are_counted_where_they_arrive() {
        let Some(namespace) = Namespace::new() else { return };
        namespace.ip("link set lo up");
        let received = || block_on(statistics()).expect("statistics")[&1].received_frames;
        let (before, after) = namespace.run(move || {
            let before = received();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
            let own = socket.local_addr().expect("an address");
            socket.send_to(b"x", own).expect("sent");
            (before, received())
        });
        assert_eq!(after - before, 1);
    }
}
