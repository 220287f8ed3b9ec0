//! What `cargo xtask bench` measures with: the generator, and what the balancer is compared to.
//!
//! Never attached where frames arrive. `BPF_PROG_TEST_RUN` repeats `generate`, which makes a
//! fresh frame and tail-calls the program under test.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "what LLVM knows of an offset has no stable question")]

mod frame;
mod object;

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, LruHashMap, PerCpuArray, ProgramArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    bench::{self, Answer, Plan},
    frame::Frame as _,
    wire::{self, Ipv4, Tcp, ethernet},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::frame::XdpFrame;

/// The program under test; empty: the generator alone. Programs with `frags` are called by such
/// only, so all here have it.
#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();

#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();

/// By the number of the flow, for plans of answers; the bench sets its size.
#[btf_map]
static ANSWERS: Array<Answer, 1> = Array::new();

/// Frames that `sink` has swallowed.
#[btf_map]
static SUNK: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The usual flow table, for comparison; the bench sets its size.
#[btf_map]
static LRU: LruHashMap<[u32; 4], u64, 1> = LruHashMap::new();

/// Makes the next frame, and hands it over.
#[xdp(frags)]
pub fn generate(ctx: XdpContext) -> u32 {
    let Some(plan) = PLAN.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the bench runs on one CPU, and reads the plan between the runs.
    let plan = unsafe { &mut *plan };
    // SAFETY: as the plan.
    let answer = |flow| ANSWERS.get_ptr(flow).map(|answer| unsafe { *answer });
    if bench::renew(&mut XdpFrame::new(&ctx), plan, answer).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: nothing here is left to be done.
    unsafe { TARGET.tail_call(&ctx, 0) };
    xdp_action::XDP_TX
}

/// The first floor: nothing.
#[xdp(frags)]
pub fn tx(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Both MAC addresses, as words: arrays would be copied byte by byte.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, packed)]
struct Macs {
    first: u64,
    last: u32,
}

impl Macs {
    /// Back to where it came from.
    #[inline(always)]
    const fn swapped(self) -> Self {
        let destination = self.first << 16 >> 16;
        let source = self.first >> 48 | (self.last as u64) << 16;
        Self { first: source | destination << 48, last: (destination >> 16) as u32 }
    }
}

/// A frame as the floors want it: no VLAN tag, no options. Only what they look at has a name.
#[derive(FromBytes)]
#[repr(C, packed)]
struct Headers {
    macs: Macs,
    kind: [u8; 2],
    version_length: u8,
    _to_protocol: [u8; 8],
    protocol: u8,
    _checksum: [u8; 2],
    addresses: [u32; 2],
    ports: u32,
    _tcp: [u8; Tcp::LEN - 4],
}

#[inline(always)]
fn parse(frame: &XdpFrame) -> Option<Headers> {
    let headers: Headers = frame.read(0)?;
    let plain = headers.kind == ethernet::IPV4
        && headers.version_length == 0x45
        && headers.protocol == wire::TCP;
    plain.then_some(headers)
}

/// The second floor: parses, and swaps the MAC addresses.
#[xdp(frags)]
pub fn mac(ctx: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(&ctx);
    let sent = parse(&frame).and_then(|Headers { macs, .. }| frame.write(0, macs.swapped()));
    verdict(sent)
}

/// What the third floor puts in front of a packet.
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct Tunnel {
    macs: Macs,
    kind: [u8; 2],
    version_to_identification: [u8; 6],
    fragment_to_checksum: [u8; 6],
    source: [u8; 4],
    destination: [u8; 4],
}

/// The third floor: parses, and puts an IPv4 header in front that is always the same.
#[xdp(frags)]
pub fn ipip(ctx: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(&ctx);
    let sent = parse(&frame).and_then(|Headers { macs, .. }| {
        frame.grow_front(Ipv4::LEN)?;
        let tunnel = Tunnel {
            macs: macs.swapped(),
            kind: ethernet::IPV4,
            version_to_identification: [0x45, 0, 0, 66, 0, 0],
            fragment_to_checksum: [0x40, 0, wire::TTL, wire::IPV4_IN_IP, 0xae, 0x90],
            source: [198, 18, 0, 1],
            destination: [198, 18, 0, 2],
        };
        frame.write(0, tunnel)
    });
    verdict(sent)
}

/// The key of an IPv4 flow, padded to 16 bytes.
#[inline(always)]
const fn key(headers: &Headers) -> [u32; 4] {
    let [source, destination] = headers.addresses;
    [source, destination, headers.ports, 0]
}

/// Puts the flow into the LRU map.
#[xdp(frags)]
pub fn lru_insert(ctx: XdpContext) -> u32 {
    let inserted =
        parse(&XdpFrame::new(&ctx)).and_then(|headers| LRU.insert(key(&headers), 1, 0).ok());
    verdict(inserted)
}

/// The reference: parses, and looks the flow up in the LRU map.
#[xdp(frags)]
pub fn lru_lookup(ctx: XdpContext) -> u32 {
    let found = parse(&XdpFrame::new(&ctx)).and_then(|headers| LRU.get_ptr(key(&headers)));
    verdict(found.map(|_| ()))
}

#[inline(always)]
const fn verdict(done: Option<()>) -> u32 {
    if done.is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
}

/// Word of an IPv4 header with time to live, protocol and checksum, and where it is in the frame.
const TTL_TO_CHECKSUM: usize = ethernet::LEN + 8;

/// Leaves the frame to the network stack, as it would have come from a wire: the stack that had the
/// page before has counted its time to live down, and refuses headers whose checksum is wrong.
#[xdp(frags)]
pub fn pass(ctx: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(&ctx);
    let restored = parse(&frame).and_then(|_| {
        frame.write(TTL_TO_CHECKSUM, [wire::TTL, wire::TCP, 0, 0])?;
        let header: [u16; Ipv4::LEN / 2] = frame.read(ethernet::LEN)?;
        let sum = header.iter().fold(0_u32, |sum, &word| sum + u32::from(word));
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        frame.write(TTL_TO_CHECKSUM + 2, !(sum as u16))
    });
    if restored.is_some() { xdp_action::XDP_PASS } else { xdp_action::XDP_ABORTED }
}

/// Swallows what arrives at the other end of the veth pair, and counts it.
#[xdp(frags)]
pub fn sink(_ctx: XdpContext) -> u32 {
    if let Some(count) = SUNK.get_ptr_mut(0) {
        // SAFETY: no other CPU has this element.
        unsafe { *count += 1 };
    }
    xdp_action::XDP_DROP
}
