//! Tiny XDP programs and how they are attached.
//!
//! They are bytecode, because the machine that runs the tests need not have a compiler for it,
//! and attached by links that only this process holds: they go when it goes, however it goes.
//! Encoding: Linux `Documentation/bpf/standardization/instruction-set.rst`.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper without an ELF object")]

use std::{
    ffi::c_long,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};

use super::Namespace;

/// An XDP program in the kernel.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// An XDP program on an interface; dropping it takes it off.
#[derive(Debug)]
pub struct Attached(#[expect(dead_code, reason = "held open: the link is the attachment")] OwnedFd);

const XDP_ABORTED: i32 = 0;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;

/// `opcode`, destination and source register, offset, immediate.
const fn instruction(opcode: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    opcode as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

const fn load8(dst: u8, src: u8, offset: i16) -> u64 {
    instruction(0x71, dst, src, offset, 0)
}
const fn load16(dst: u8, src: u8, offset: i16) -> u64 {
    instruction(0x69, dst, src, offset, 0)
}
const fn load32(dst: u8, src: u8, offset: i16) -> u64 {
    instruction(0x61, dst, src, offset, 0)
}
const fn store16(dst: u8, src: u8, offset: i16) -> u64 {
    instruction(0x6b, dst, src, offset, 0)
}
const fn store32(dst: u8, src: u8, offset: i16) -> u64 {
    instruction(0x63, dst, src, offset, 0)
}
const fn copy(dst: u8, src: u8) -> u64 {
    instruction(0xbf, dst, src, 0, 0)
}
const fn add(dst: u8, immediate: i32) -> u64 {
    instruction(0x07, dst, 0, 0, immediate)
}
const fn set(dst: u8, immediate: i32) -> u64 {
    instruction(0xb7, dst, 0, 0, immediate)
}
const fn jump(skip: i16) -> u64 {
    instruction(0x05, 0, 0, skip, 0)
}
const fn jump_if_not(dst: u8, immediate: i32, skip: i16) -> u64 {
    instruction(0x55, dst, 0, skip, immediate)
}
const fn jump_if_greater(dst: u8, src: u8, skip: i16) -> u64 {
    instruction(0x2d, dst, src, skip, 0)
}
const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

const PASS: &[u64] = &[set(0, XDP_PASS), EXIT];

/// Drops TCP over IPv4 and IPv6, without VLAN tags, options or extension headers.
const DROP_TCP: &[u64] = &[
    load32(2, 1, 0), // data
    load32(3, 1, 4), // data_end
    copy(4, 2),
    add(4, 34),
    jump_if_greater(4, 3, 9),
    load16(5, 2, 12),
    jump_if_not(5, 0x0008, 2), // IPv4, read in host order
    load8(6, 2, 23),           // its protocol
    jump(2),
    jump_if_not(5, 0xdd86, 4), // IPv6
    load8(6, 2, 20),           // its next header
    jump_if_not(6, 6, 2),      // TCP
    set(0, XDP_DROP),
    EXIT,
    set(0, XDP_PASS),
    EXIT,
];

/// Sends IPv4 UDP back where it came from by `XDP_TX`: MAC and IP addresses exchanged, ports
/// not (use the same on both sides; no checksum changes). All else is passed. It proves a
/// laboratory without needing a load balancer.
pub const REFLECT_UDP: &[u64] = &[
    load32(2, 1, 0), // data
    load32(3, 1, 4), // data_end
    copy(4, 2),
    add(4, 34),
    jump_if_greater(4, 3, 18),
    load16(5, 2, 12),
    jump_if_not(5, 0x0008, 16), // IPv4, read in host order
    load8(5, 2, 23),
    jump_if_not(5, 17, 14), // UDP
    load32(5, 2, 0),
    load16(6, 2, 4),
    load32(7, 2, 6),
    load16(8, 2, 10),
    store32(2, 7, 0),
    store16(2, 8, 4),
    store32(2, 5, 6),
    store16(2, 6, 10),
    load32(5, 2, 26),
    load32(6, 2, 30),
    store32(2, 6, 26),
    store32(2, 5, 30),
    set(0, XDP_TX),
    EXIT,
    set(0, XDP_PASS),
    EXIT,
];

impl Program {
    /// Passes every frame: what a veth's peer needs for `XDP_TX` and redirects to arrive.
    pub fn pass() -> Result<Self> {
        Self::load(PASS)
    }

    /// Fails on every frame.
    pub fn abort() -> Result<Self> {
        Self::load(&[set(0, XDP_ABORTED), EXIT])
    }

    /// Drops every TCP segment.
    pub fn drop_tcp() -> Result<Self> {
        Self::load(DROP_TCP)
    }

    /// Loads bytecode.
    pub fn load(instructions: &[u64]) -> Result<Self> {
        /// `BPF_PROG_LOAD`'s part of `union bpf_attr`, as far as used.
        #[repr(C)]
        struct ProgLoad {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log_buf: u64,
            kern_version: u32,
            prog_flags: u32,
        }
        const BPF_PROG_LOAD: c_long = 5;
        const BPF_PROG_TYPE_XDP: u32 = 6;
        const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5; // 5.18: jumbo frames too

        let mut log = vec![0_u8; 4096];
        let attribute = ProgLoad {
            prog_type: BPF_PROG_TYPE_XDP,
            insn_cnt: instructions.len().try_into().context("too long a program")?,
            insns: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 1,
            log_size: 4096,
            log_buf: log.as_mut_ptr() as u64,
            kern_version: 0,
            prog_flags: BPF_F_XDP_HAS_FRAGS,
        };
        // SAFETY: the attribute's pointers are to `instructions`, a C string and `log`, with
        // the lengths given, and all three outlive the call.
        let program = unsafe { bpf(BPF_PROG_LOAD, &attribute) };
        program.map(Self).with_context(|| {
            let log = String::from_utf8_lossy(&log);
            format!("load a test's XDP program: {}", log.trim_end_matches('\0'))
        })
    }

    /// Attaches to `interface` in `namespace`, to the driver's hook where it has one.
    pub fn attach(&self, namespace: &Namespace, interface: &str) -> Result<Attached> {
        /// `BPF_LINK_CREATE`'s part of `union bpf_attr`, as far as used.
        #[repr(C)]
        struct LinkCreate {
            prog_fd: u32,
            target_ifindex: u32,
            attach_type: u32,
            flags: u32,
        }
        const BPF_LINK_CREATE: c_long = 28;
        const BPF_XDP: u32 = 37;

        let link = namespace.enter(|| {
            let attribute = LinkCreate {
                prog_fd: self.0.as_raw_fd() as u32,
                target_ifindex: nix::net::if_::if_nametoindex(interface)?,
                attach_type: BPF_XDP,
                flags: 0,
            };
            // SAFETY: the attribute holds no pointers.
            unsafe { bpf(BPF_LINK_CREATE, &attribute) }
        });
        link.map(Attached)
            .with_context(|| format!("attach XDP to {interface} in {}", namespace.name()))
    }
}

/// A bpf(2) command that answers with a descriptor.
///
/// # Safety
///
/// `attribute` must be the command's part of `union bpf_attr`, and its pointers good.
unsafe fn bpf<T>(command: c_long, attribute: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the size is the attribute's own, and the kernel takes what
    // lies beyond for zeros.
    let descriptor = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size_of::<T>()) };
    match i32::try_from(descriptor) {
        // SAFETY: the kernel made it for this call, so nobody else owns it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
