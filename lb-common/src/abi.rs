//! The contract between the kernel program and the daemon: names, capacities, and key and
//! value layouts of every map.
//!
//! Pinned maps outlive the daemon that made them, so every layout here is part of
//! [`ABI_VERSION`]. Addresses and ports are bytes in network order; all other integers are
//! in the host's order. `zerocopy` proves at compile time that no layout has padding.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{address::Address, counters, flow};

mod places;

pub use places::{ALONE, ELSEWHERE, FIRST, FORWARDED, Interfaces, SEVERAL};

/// Changes with any change of a map's name, capacity, key or value below, and of what a value
/// means: of the hash that flows are found by, of a VIP's place in the filter.
pub const ABI_VERSION: u32 = 7;

/// How many of each thing one instance can hold.
pub mod capacity {
    /// Services of one instance.
    pub const SERVICES: usize = 4096;
    /// Backends of one instance: indices are 16 bits, 0 means "none".
    pub const BACKENDS: usize = 65_536;
    /// Distinct ways out: (interface, source MAC, tunnel source address); 0 means "unresolved".
    pub const EGRESSES: usize = 256;
    /// Words of the VIP filter.
    pub const FILTER_WORDS: usize = 1024;
    /// Slots packed into one array element: a 64-byte line.
    pub const SLOTS_PER_LINE: usize = 32;
    /// Most slots of one service: the largest prime below 2^20.
    pub const MAX_SLOTS: u32 = 1_048_573;
    /// Backends whose counters share one element of a per-CPU array: one kernel allocation
    /// serves that many, and the element stays below the 32 KiB limit of per-CPU values.
    pub const COUNTERS_PER_CHUNK: usize = 64;
    /// Elements of the per-CPU counter arrays.
    pub const COUNTER_CHUNKS: usize = BACKENDS / COUNTERS_PER_CHUNK;
    /// Flow entries when the daemon does not say otherwise.
    pub const FLOWS: usize = 1 << 20;
    /// Source ports of probes packed into one array element: a 64-byte line.
    pub const PROBES_PER_LINE: usize = 32;
    /// Elements of the array of probes: one place for each source port.
    pub const PROBE_LINES: usize = 65_536 / PROBES_PER_LINE;
    /// Addresses of this host that probes are sent from.
    pub const PROBE_SOURCES: usize = 64;
    /// Addresses that translated packets are sent from, of all services together; 0 means "the
    /// client's".
    pub const NAT_ADDRESSES: usize = 256;
    /// Interfaces of clients whose frames are counted apart, by their names, as long as the
    /// instance lives.
    pub const INTERFACES: usize = 30;
    /// Elements of `REASONS`: a place for each of them, [`ALONE`](super::ALONE) and
    /// [`ELSEWHERE`](super::ELSEWHERE).
    pub const PLACES: usize = INTERFACES + 2;
}

/// Names of the maps: in the object file, and of their pins.
pub mod map {
    /// Array, mmapable, one [`Globals`](super::Globals): written by the daemon, read by every packet.
    pub const GLOBALS: &str = "GLOBALS";
    /// Hash of the VIPs' [`Address`](crate::address::Address)es: what the filter says, exactly. The
    /// values are 0, or [`SILENT`](super::SILENT).
    pub const VIPS: &str = "VIPS";
    /// Array, mmapable, of [`flow::Group`](crate::flow::Group): written by packets and the sweep.
    pub const FLOWS: &str = "FLOWS";
    /// Array, mmapable, of [`FlowRecord`](super::FlowRecord): same index as the flow's word.
    pub const FLOW_RECORDS: &str = "FLOW_RECORDS";
    /// Hash of [`ServiceKey`](super::ServiceKey) to a `u32` index into `SERVICES`.
    pub const SERVICE_INDEX: &str = "SERVICE_INDEX";
    /// Array of [`Service`](super::Service).
    pub const SERVICES: &str = "SERVICES";
    /// Array of maps, by service index: an array of [`SlotLine`](super::SlotLine) each.
    pub const SLOTS: &str = "SLOTS";
    /// Array, mmapable, of [`Backend`](super::Backend), by backend index. Nobody maps it: the kernel
    /// lays out the values of such an array from the beginning of a page on, so two are one line.
    pub const BACKENDS: &str = "BACKENDS";
    /// Array of [`Egress`](super::Egress).
    pub const EGRESSES: &str = "EGRESSES";
    /// Per-CPU array of chunks of [`Carried`](super::Carried), by backend index: to it.
    pub const TRAFFIC: &str = "TRAFFIC";
    /// The same of what comes back from it through here.
    pub const RETURNS: &str = "RETURNS";
    /// Per-CPU array of chunks of [`Events`](super::Events), by backend index.
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array of [`ReasonCounts`](super::ReasonCounts), by an interface's place in
    /// [`Interfaces`](super::Interfaces).
    pub const REASONS: &str = "REASONS";
    /// Per-CPU array, one [`EvictionCounts`](super::EvictionCounts).
    pub const EVICTIONS: &str = "EVICTIONS";
    /// Array, mmapable, of [`ProbeLine`](super::ProbeLine): by source port, which backend a probe
    /// is for.
    pub const PROBES: &str = "PROBES";
    /// Hash of the [`Address`](crate::address::Address)es of this host that probes are sent from.
    /// The values mean nothing.
    pub const PROBE_SOURCES: &str = "PROBE_SOURCES";
    /// Array of the [`Address`](crate::address::Address)es that translated packets are sent from. An
    /// index is never given to another address while the instance lives.
    pub const NAT_ADDRESSES: &str = "NAT_ADDRESSES";
    /// Hash of the addresses and ports of backends that see a NAT address for their client, and of
    /// those addresses, with port 0, each as a [`ServiceKey`](super::ServiceKey). The values mean
    /// nothing.
    pub const NAT_ENDS: &str = "NAT_ENDS";
    /// Array of [`NatHop`](super::NatHop): same index as the word of the flow's return entry.
    pub const NAT_HOPS: &str = "NAT_HOPS";

    /// Every map of the kernel program.
    pub const ALL: [&str; 19] = [
        GLOBALS,
        VIPS,
        FLOWS,
        FLOW_RECORDS,
        SERVICE_INDEX,
        SERVICES,
        SLOTS,
        BACKENDS,
        EGRESSES,
        TRAFFIC,
        RETURNS,
        EVENTS,
        REASONS,
        EVICTIONS,
        PROBES,
        PROBE_SOURCES,
        NAT_ADDRESSES,
        NAT_ENDS,
        NAT_HOPS,
    ];
}

/// Kernel's flag: the array can be mapped into the daemon's memory (Linux 5.5).
pub const BPF_F_MMAPABLE: usize = 1 << 10;
/// Kernel's flag: the hash takes memory when it is filled, not before.
pub const BPF_F_NO_PREALLOC: usize = 1;
/// Kernel's flag: arrays of different lengths may stand in one array of maps (Linux 5.10).
pub const BPF_F_INNER_MAP: usize = 1 << 12;
/// Flags of the arrays of slots in `SLOTS`.
pub const SLOT_FLAGS: usize = BPF_F_INNER_MAP | BPF_F_MMAPABLE;

/// The MAC address of the host's end of the prober's veth pair, locally administered.
pub const PROBE_HOST_MAC: [u8; 6] = [0x02, 0x53, 0x4c, 0x50, 0x00, 0x01];
/// The MAC address of the end in the prober's network namespace.
pub const PROBE_PEER_MAC: [u8; 6] = [0x02, 0x53, 0x4c, 0x50, 0x00, 0x02];

/// The interface where self-tests arrive: loopback, which is always the first
/// (`LOOPBACK_IFINDEX` in the kernel's `include/net/flow.h`), and what `BPF_PROG_TEST_RUN` says
/// when nobody names one. Sluice is never attached there.
pub const SELF_TEST_INTERFACE: u32 = 1;
/// The source port of self-tests, which no client has (RFC 6335 §6).
pub const SELF_TEST_PORT: u16 = 0;

/// All that is one for the whole instance, side by side: what every packet reads is one look into
/// one map. [`Settings`] are first in every ABI, so that each can tell which one an instance has.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Globals {
    /// What every packet needs to know.
    pub settings: Settings,
    /// Where the frames of each interface are counted.
    pub interfaces: Interfaces,
    /// Which packets may be for us.
    pub filter: VipFilter,
}

/// What every packet needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings {
    /// [`ABI_VERSION`] of the writer; 0: not written yet, every frame is passed.
    pub abi_version: u32,
    /// Jiffies a second of this kernel (`CONFIG_HZ`), as measured by the daemon.
    pub hz: u32,
    /// A flow's tick is `jiffies64 >> tick_shift`, modulo 256.
    pub tick_shift: u32,
    /// Groups of the flow table minus one; the number of groups is a power of two.
    pub flow_mask: u32,
    /// Ticks of silence after which a flow is forgotten, by [`flow::State`].
    pub idle_ticks: [u8; 8],
    /// A SYN moves an established flow only after this many silent ticks (10 s).
    pub reuse_ticks: u32,
    /// The network namespace it is attached in: inode number of `/proc/self/ns/net`.
    pub network_namespace: u32,
    /// Index of the host's end of the prober's veth pair; 0: nobody probes by way of the VIPs.
    pub probe_interface: u32,
    /// The first source port of translated packets.
    pub nat_port_first: u16,
    /// How many source ports there are for translated packets, from the first on.
    pub nat_port_count: u16,
    /// Identifies the object file of the attached program (first 8 bytes of its SHA-256).
    pub object_id: u64,
    /// What the hash keys and the Maglev tables derive from; shared between balancers.
    pub seed: [u8; 32],
    /// Keys of the flow hash, derived from `seed`.
    pub hash_keys: [u64; crate::hash::KEYS],
}

/// One bit in a 64-bit word, chosen by hash, for each VIP address: tells frames that are
/// certainly not for us from the rest without a map lookup. 8 KiB, so it lives in L1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VipFilter {
    /// The words; see [`service::filter_position`](crate::service::filter_position).
    pub words: [u64; capacity::FILTER_WORDS],
    /// Not 0: there are backends that see their clients' own addresses, so that what comes back is
    /// told by its source. Their addresses are in the words, too.
    pub sources: u64,
}

/// A service's identity: VIP address, port and protocol.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ServiceKey {
    /// The VIP.
    pub address: Address,
    /// Its port, network order; [`ANY_PORT`](crate::service::ANY_PORT): every port that no other
    /// service of the address has.
    pub port: [u8; 2],
    /// IP protocol number; 6, TCP.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// A service, by index.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Service {
    /// The VIP; compared after a hit in the flow table, as is its port.
    pub address: Address,
    /// As in [`ServiceKey::port`].
    pub port: [u8; 2],
    /// As in [`ServiceKey::protocol`].
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
    /// What the MSS of a client's SYN is lowered to, if it is larger, bytes; 0: it stays. Of what is
    /// translated, that of the backend's SYN, too.
    pub mss_clamp: u16,
    /// Zero.
    pub spare: [u8; 2],
    /// Slots of its Maglev table; 0: no service at this index.
    pub slots: u32,
    /// [`Affinity`](crate::service::Affinity) as a number.
    pub affinity: u8,
    /// How many addresses translated packets are sent from.
    pub nat_count: u8,
    /// Index of the first in `NAT_ADDRESSES`, the others following; 0: the one of the backend's
    /// [`Egress`]; [`KEEP_CLIENT`]: the client's own.
    pub nat_first: u16,
}

impl Service {
    /// Without anything but its identity.
    pub fn of(key: &ServiceKey) -> Self {
        let ServiceKey { address, port, protocol, .. } = *key;
        Self { address, port, protocol, ..Self::default() }
    }

    /// Its identity.
    #[inline(always)]
    pub const fn key(&self) -> ServiceKey {
        let Self { address, port, protocol, .. } = *self;
        ServiceKey { address, port, protocol, reserved: [0; 5] }
    }
}

/// In `VIPS`: pings of the address are not answered now.
pub const SILENT: u32 = 1;

/// In [`Service::nat_first`]: packets keep the client's address.
pub const KEEP_CLIENT: u16 = u16::MAX;

/// Part of a service's Maglev table: backend indices in host order, 0 where no backend takes
/// new flows. A plain array: Linux 6.1 takes an array of structs that comes with a description
/// of its types for another kind than one without, and refuses it in the other's place.
pub type SlotLine = [u16; capacity::SLOTS_PER_LINE];

/// Part of the array of probes: the backend index, in host order, that the probe from a port is
/// for; 0: there is no such probe. Port `p` stands in line `p / PROBES_PER_LINE`. A plain array,
/// as [`SlotLine`] is.
pub type ProbeLine = [u16; capacity::PROBES_PER_LINE];

/// A backend, by index: half a cache line. With many backends, their records are what no cache holds,
/// so that what a known flow's packet is compared with stands in its [`Service`], which is one of few.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Backend {
    /// The backend's own address: the tunnel's destination.
    pub address: Address,
    /// Where its frames go next.
    pub next_hop: NextHop,
    /// Index of its [`Service`].
    pub service: u16,
    /// MTU of the route in bytes of IP packet; 0: unknown, not checked.
    pub mtu: u16,
    /// The backend's port, network order.
    pub port: [u8; 2],
    /// [`BackendState`](crate::service::BackendState) as a number.
    pub state: u8,
    /// [`Forwarding`](crate::forward::Forwarding) as a number.
    pub forwarding: u8,
}

/// A MAC address and the index of an [`Egress`], in one word: both change at once, so that no
/// frame leaves with the new one of one and the old one of the other.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct NextHop(u64);

impl NextHop {
    /// Not resolved.
    pub const UNRESOLVED: Self = Self(0);

    /// A resolved next hop; `egress` is not 0.
    pub const fn new(mac: [u8; 6], egress: u16) -> Self {
        let [a, b, c, d, e, f] = mac;
        let [g, h] = egress.to_ne_bytes();
        Self(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
    }

    /// The MAC address.
    #[inline(always)]
    pub const fn mac(self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.0.to_ne_bytes();
        [a, b, c, d, e, f]
    }

    /// Index of the [`Egress`]; 0: not resolved.
    #[inline(always)]
    pub const fn egress(self) -> u16 {
        let [.., g, h] = self.0.to_ne_bytes();
        u16::from_ne_bytes([g, h])
    }
}

/// A way out of this host, shared by the backends behind it.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Egress {
    /// Outer source of IPv6 tunnels.
    pub source_v6: Address,
    /// Outer source of IPv4 tunnels.
    pub source_v4: [u8; 4],
    /// Bits of `source_v4` that the flow's hash fills, so that the backend's NIC spreads load.
    pub spread_v4: [u8; 4],
    /// The same for the last four bytes of `source_v6`.
    pub spread_v6: [u8; 4],
    /// Interface index.
    pub ifindex: u32,
    /// The interface's MAC.
    pub source_mac: [u8; 6],
    /// Index of this host's own address there in `NAT_ADDRESSES`; 0: none is known.
    pub nat_address: u16,
}

/// A flow beyond its word; written once, when it is inserted. Of most flows only listings read it.
/// Of a translated flow both entries have the same, and it says where packets go.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowRecord {
    /// The client's address.
    pub client: Address,
    /// `jiffies64` when the flow was inserted, or given to another backend.
    pub start: u64,
    /// The client's port, network order.
    pub client_port: [u8; 2],
    /// The VIP's port, network order.
    pub vip_port: [u8; 2],
    /// The port that the backend sees, network order; 0: the flow is not translated.
    pub nat_port: [u8; 2],
    /// Index of the address that the backend sees in `NAT_ADDRESSES`; 0: the client's.
    pub nat_address: u16,
}

/// Where a translated flow's packets go back to: whence its client's come.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct NatHop {
    /// The first eight bytes of their frames: the MAC of the client or of its router, and the
    /// beginning of ours. As a word, which the verifier likes better than bytes.
    pub first: u64,
    /// The next four.
    pub second: u32,
    /// Interface index.
    pub ifindex: u32,
}

/// What was forwarded of one backend, in one direction, on one CPU.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Carried {
    /// Frames.
    pub packets: u64,
    /// Their bytes, as received: Ethernet header included, tunnel header not.
    pub bytes: u64,
}

/// Rare happenings of one backend on one CPU, by [`counters::Event`].
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Events {
    /// Counts.
    pub counts: [u64; counters::EVENTS],
    /// How long the handshakes took.
    pub handshakes: HandshakeTimes,
}

/// Handshakes by their time; every [`Handshake`](counters::Event::Handshake) is in one bucket.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct HandshakeTimes {
    /// Sum of their times, jiffies.
    pub jiffies: u64,
    /// Counts, by [`handshake_bucket`](counters::handshake_bucket).
    pub buckets: [u64; counters::HANDSHAKE_BUCKETS],
}

impl HandshakeTimes {
    /// Counts one more.
    #[inline(always)]
    pub fn add(&mut self, jiffies: u64) {
        let jiffies = jiffies.min(counters::LONGEST_HANDSHAKE);
        self.jiffies += jiffies;
        self.buckets[counters::handshake_bucket(jiffies)] += 1;
    }
}

/// One element of `TRAFFIC`, and of `RETURNS`.
pub type CarriedChunk = [Carried; capacity::COUNTERS_PER_CHUNK];
/// One element of `EVENTS`.
pub type EventsChunk = [Events; capacity::COUNTERS_PER_CHUNK];
/// An element of `REASONS`: frames of one place that were not forwarded, by reason, and at
/// [`FORWARDED`] those that were. Longer than the list of reasons, so that a newer one fits.
pub type ReasonCounts = [u64; 64];

/// The element of `EVICTIONS`: flows that gave way to new ones, by the [`flow::State`] that they were
/// in; at [`Free`](flow::State::Free), new ones to which none gave way.
pub type EvictionCounts = [u64; 8];

const _: () = {
    assert!(size_of::<Settings>() == 176);
    assert!(size_of::<VipFilter>() == 8200);
    assert!(size_of::<ServiceKey>() == 24);
    assert!(size_of::<Service>() == 32);
    assert!(size_of::<SlotLine>() == 64);
    assert!(size_of::<Backend>() == 32);
    assert!(size_of::<Egress>() == 40);
    assert!(size_of::<FlowRecord>() == 32);
    assert!(size_of::<NatHop>() == 16);
    assert!(size_of::<CarriedChunk>() <= 32 << 10);
    assert!(size_of::<flow::Group>() == 128);
    assert!(size_of::<Events>() == 216);
    assert!(size_of::<EventsChunk>() <= 32 << 10);
    assert!(size_of::<Interfaces>() == 608);
    assert!(offset_of!(Globals, settings) == 0);
    assert!(ELSEWHERE as usize + 1 == capacity::PLACES);
    assert!(crate::reason::Reason::ALL.len() <= FORWARDED);
    // The kernel program finds a count by a mask.
    assert!(FORWARDED + 1 == size_of::<ReasonCounts>() / 8);
};
