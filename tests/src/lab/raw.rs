//! Whole Ethernet frames, out of and into an interface: packet(7).
#![expect(unsafe_code, reason = "packet sockets have no safe wrapper that tells the VLAN tag")]

use std::{
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
    time::Duration,
};

use anyhow::{Context, Result};

use super::Namespace;

/// A socket bound to one interface. It hears frames that come in, not those that go out, and
/// after XDP has passed them.
#[derive(Debug)]
pub struct RawSocket(OwnedFd);

/// A frame that came in.
#[derive(Debug)]
pub struct Received<'a> {
    /// Without the outermost VLAN tag, which the kernel takes off before anyone can look.
    pub frame: &'a [u8],
    /// That tag's VLAN.
    pub vlan: Option<u16>,
}

impl RawSocket {
    /// Opens `interface` in `namespace`; reads give up after `patience`.
    pub fn open(namespace: &Namespace, interface: &str, patience: Duration) -> Result<Self> {
        namespace
            .enter(|| Self::open_here(interface, patience))
            .with_context(|| format!("open frames of {interface} in {}", namespace.name()))
    }

    fn open_here(interface: &str, patience: Duration) -> io::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers.
        let socket = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into())
        };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, nobody else's.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(socket) });
        // SAFETY: `sockaddr_ll` is plain numbers, for which zeros are good.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = nix::net::if_::if_nametoindex(interface)? as i32;
        // SAFETY: the address is a whole `sockaddr_ll`, and its size is its own.
        let bound = unsafe {
            let address = (&raw const address).cast();
            libc::bind(socket.0.as_raw_fd(), address, size_of::<libc::sockaddr_ll>() as u32)
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        socket.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        let patience = libc::timeval {
            tv_sec: patience.as_secs() as _,
            tv_usec: patience.subsec_micros().into(),
        };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience)?;
        Ok(socket)
    }

    fn set<T: Copy>(&self, level: i32, option: i32, value: &T) -> io::Result<()> {
        // SAFETY: the value is whole and its size is its own.
        let set = unsafe {
            let value = ptr::from_ref(value).cast();
            libc::setsockopt(self.0.as_raw_fd(), level, option, value, size_of::<T>() as u32)
        };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is whole and its length is its own.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame, cut to `buffer`; `None`: nothing came in time.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<Received<'a>>> {
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut control = [MaybeUninit::<u64>::zeroed(); 16];
        // SAFETY: `msghdr` is plain numbers and pointers, for which zeros are good.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the message points to `buffer` and `control` with their own lengths.
        let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        };
        let vlan = vlan(&message);
        Ok(Some(Received { frame: &buffer[..length.min(buffer.len())], vlan }))
    }
}

fn vlan(message: &libc::msghdr) -> Option<u16> {
    // SAFETY: recvmsg has filled the message's control part, which is aligned for `cmsghdr`;
    // the macros stay within it, and the kernel writes auxiliary data whole.
    let auxiliary = unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        loop {
            let found = header.as_ref()?;
            if (found.cmsg_level, found.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
                break libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned();
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    };
    let tagged = auxiliary.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
    tagged.then_some(auxiliary.tp_vlan_tci & 0x0fff)
}
