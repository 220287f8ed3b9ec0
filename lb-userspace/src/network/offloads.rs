//! Offloads of an interface, switched off by ethtool's ioctl, which the kernel has had since 2.4;
//! `ethtool` over netlink sets no more than this and needs a crate.
#![expect(unsafe_code, reason = "ioctl(2) takes a pointer to a struct with a pointer in it")]

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

/// `ETHTOOL_STSO`, `ETHTOOL_SGSO` and `ETHTOOL_STXCSUM` (`linux/ethtool.h`). In this order: the
/// kernel switches segmentation off by itself where there are no checksums, and complains.
const COMMANDS: [u32; 3] = [0x1f, 0x24, 0x17];

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Has the kernel finish each segment and its checksum before it gives it to `interface`, in
/// the network namespace of this thread.
///
/// # Errors
/// If there is no such interface, or the kernel refuses.
pub(super) fn switch_off(interface: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    for command in COMMANDS {
        let mut value = Value { command, data: 0 };
        let mut name = [0; libc::IFNAMSIZ];
        if interface.len() >= name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        let mut request = libc::ifreq {
            ifr_name: name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
        };
        // SAFETY: the name ends with a zero, and `value` is what these commands read; both live
        // until the call returns.
        let result =
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
