//! What `ethtool` does by its ioctl, which the kernel has had since 2.4: offloads of an interface,
//! and the statistics that only its driver keeps. Netlink has no such statistics, and for the
//! offloads it needs a crate.
#![expect(unsafe_code, reason = "ioctl(2) takes a pointer to a struct with a pointer in it")]

use std::{collections::BTreeMap, io, net::UdpSocket, os::fd::AsRawFd as _};

use zerocopy::IntoBytes as _;

/// `ETHTOOL_STSO`, `ETHTOOL_SGSO` and `ETHTOOL_STXCSUM` (`linux/ethtool.h`, as all below). In this
/// order: the kernel switches segmentation off by itself where there are no checksums, and
/// complains.
const OFFLOADS: [u32; 3] = [0x1f, 0x24, 0x17];
/// `ETHTOOL_GSSET_INFO`: how many strings a set has. A `struct ethtool_sset_info`.
const COUNT_STRINGS: u32 = 0x37;
/// `ETHTOOL_GSTRINGS`: the strings of a set. A `struct ethtool_gstrings`.
const STRINGS: u32 = 0x1b;
/// `ETHTOOL_GSTATS`: the values of the statistics. A `struct ethtool_stats`.
const STATISTICS: u32 = 0x1d;
/// `ETH_SS_STATS`: the set of the names of the statistics.
const NAMES: u32 = 1;
/// `ETH_GSTRING_LEN`: bytes of each string.
const NAME: usize = 32;
/// The kernel writes as many strings and values as the driver has at that moment, whatever room
/// there is: this many more than it had before find room, as new queues have some.
const SPARE: usize = 4096;
/// More statistics than any driver has: some 10,000 with 128 queues.
const MOST: usize = 1 << 17;

/// Has the kernel finish each segment and its checksum before it gives it to `interface`, in
/// the network namespace of this thread.
///
/// # Errors
/// If there is no such interface, or the kernel refuses.
pub(super) fn switch_offloads_off(interface: &str) -> io::Result<()> {
    let socket = socket()?;
    // `struct ethtool_value`: the command, and "off".
    OFFLOADS.into_iter().try_for_each(|command| ask(&socket, interface, &mut [words(command, 0)]))
}

/// The driver's own statistics of `interface` that are about XDP, in the network namespace of
/// this thread: those of its queues added up, under the name without the queue's number. Empty if
/// it has none.
///
/// # Errors
/// If there is no such interface, or the kernel refuses.
pub(super) fn xdp_statistics(interface: &str) -> io::Result<BTreeMap<String, u64>> {
    let socket = socket()?;
    let Some(count) = count(&socket, interface)? else { return Ok(BTreeMap::new()) };

    // Three words of 32 bits, then the strings.
    let mut names = vec![0; 2 + (count + SPARE) * NAME / 8];
    names[0] = words(STRINGS, NAMES);
    ask(&socket, interface, &mut names)?;
    let mut values = vec![0; 1 + count + SPARE];
    values[0] = words(STATISTICS, 0);
    ask(&socket, interface, &mut values)?;

    let names = names.as_bytes()[12..].chunks_exact(NAME).take(count).map(|name| {
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME);
        String::from_utf8_lossy(&name[..end]).into_owned()
    });
    Ok(add_up(names.zip(values[1..].iter().copied())))
}

/// How many statistics the driver has; `None`: it has none.
fn count(socket: &UdpSocket, interface: &str) -> io::Result<Option<usize>> {
    // Command, nothing, the mask of the sets, the count of each.
    let mut info = [words(COUNT_STRINGS, 0), 1 << NAMES, 0];
    match ask(socket, interface, &mut info) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(None),
        asked => asked?,
    }
    let [_, mask, counts] = info;
    let [a, b, c, d, ..] = counts.to_ne_bytes();
    let count = u32::from_ne_bytes([a, b, c, d]) as usize;
    match count {
        _ if mask == 0 => Ok(None),
        0 => Ok(None),
        MOST.. => Err(io::ErrorKind::InvalidData.into()),
        count => Ok(Some(count)),
    }
}

/// Those about XDP, a queue's added to the others'. Where a driver adds them up itself, under the
/// same name, its sum is taken.
fn add_up(statistics: impl Iterator<Item = (String, u64)>) -> BTreeMap<String, u64> {
    let (mut of_queues, mut of_all) = (BTreeMap::<String, u64>::new(), BTreeMap::new());
    for (name, value) in statistics.filter(|(name, _)| name.contains("xdp")) {
        let parts = name.split('_').map(|part| part.trim_end_matches(|c: char| c.is_ascii_digit()));
        let of = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_");
        if of == name {
            of_all.insert(of, value);
        } else {
            let sum = of_queues.entry(of).or_default();
            *sum = sum.saturating_add(value);
        }
    }
    of_queues.extend(of_all);
    of_queues
}

/// Any socket will do, and it belongs to the network namespace of this thread.
fn socket() -> io::Result<UdpSocket> {
    UdpSocket::bind(("0.0.0.0", 0))
}

/// Two words of 32 bits, one behind the other.
fn words(first: u32, second: u32) -> u64 {
    let [[a, b, c, d], [e, f, g, h]] = [first, second].map(u32::to_ne_bytes);
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// One command, which `argument` begins with, and what is answered in its place.
fn ask(socket: &UdpSocket, interface: &str, argument: &mut [u64]) -> io::Result<()> {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: argument.as_mut_ptr().cast() },
    };
    // SAFETY: the name ends with a zero. `argument` is aligned for the structs of these commands
    // and holds what they read; it has room for what is written, also if the driver has become
    // richer by `SPARE` statistics since they were counted. Both live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::lab::Namespace;

    #[test]
    fn queues_are_added_up_unless_the_driver_does() {
        let statistics = [
            ("rx_queue_0_xdp_drops", 1),
            ("rx_queue_1_xdp_drops", 2),
            ("rx_queue_0_drops", 100),
            ("rx0_xdp_redirect", 5),
            ("rx1_xdp_redirect", 6),
            ("rx_xdp_redirect", 12),
            ("queue_0_rx_xdp_aborted", u64::MAX),
            ("queue_1_rx_xdp_aborted", 1),
        ];
        let sums = add_up(statistics.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let expected = [
            ("queue_rx_xdp_aborted", u64::MAX),
            ("rx_queue_xdp_drops", 3),
            ("rx_xdp_redirect", 12),
        ];
        assert_eq!(sums, expected.map(|(name, value)| (name.to_owned(), value)).into());
    }

    #[test]
    fn a_veth_tells_of_its_queues_and_loopback_has_none() {
        let Some(namespace) = Namespace::new() else { return };
        namespace.ip("link add v0 type veth peer name v1");
        let told = namespace.run(|| ["v0", "lo", "nope"].map(xdp_statistics));
        let [veth, loopback, nope] = told;
        let veth = veth.expect("statistics");
        assert_eq!(veth.get("rx_queue_xdp_packets"), Some(&0), "{veth:?}");
        assert_eq!(veth.get("rx_queue_xdp_drops"), Some(&0), "{veth:?}");
        assert_eq!(loopback.expect("none"), BTreeMap::new());
        assert_eq!(nope.expect_err("no interface").raw_os_error(), Some(libc::ENODEV));
    }
}
