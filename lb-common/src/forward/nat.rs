//! Translation: other addresses and ports, both ways, and one hop less.
//!
//! Checksums change by what changes under them (RFC 1624), so that what was damaged on its way here
//! stays so. The MSS of a SYN, of either side, is lowered to what fits the way to the backend, because
//! what a path is too narrow for can't be fragmented here.

use zerocopy::{Immutable, IntoBytes};

use crate::{
    abi::Backend,
    address::Address,
    checksum::Change,
    forward::{
        Action, l2, leave_by,
        mss::{self, Lowered},
        way,
    },
    frame::Frame,
    nat::{self, Tuple},
    parse::{Family, Ports, Segment},
    reason::Reason,
    steer::Stages,
    tables::Tables,
    wire::{Ipv4, Ipv6, Tcp},
};

/// A segment of a translated flow, and which: no more than three words, because the kernel program
/// hands it to a function of its own, which takes two arguments besides.
#[derive(Clone, Copy, Debug)]
pub struct Carry {
    /// Hash of its tuple.
    pub hash: u64,
    /// The word of its entry.
    pub word: u32,
    /// Offsets of the IP and the TCP header, from the lowest bit on, 16 bits each; then how it is to
    /// be taken.
    pub layout: u64,
}

impl Carry {
    const L4_SHIFT: u32 = 16;
    const IPV6: u64 = 1 << 32;
    const HOMEWARD: u64 = 1 << 33;
    const SYN: u64 = 1 << 34;
    const SELF_TEST: u64 = 1 << 35;

    /// From a client to the backend.
    #[inline(always)]
    pub const fn outward(segment: &Segment, word: u32, hash: u64) -> Self {
        Self {
            hash,
            word,
            layout: segment.l3 as u64
                | (segment.l4 as u64) << Self::L4_SHIFT
                | if matches!(segment.family, Family::Ipv6) { Self::IPV6 } else { 0 }
                | if segment.flags & Tcp::SYN != 0 { Self::SYN } else { 0 },
        }
    }

    /// From the backend to a client.
    #[inline(always)]
    pub const fn homeward(segment: &Segment, word: u32, hash: u64) -> Self {
        let Self { layout, .. } = Self::outward(segment, word, hash);
        Self { hash, word, layout: layout | Self::HOMEWARD }
    }

    /// A self-test of the backend, which has no flow.
    #[inline(always)]
    pub const fn self_test(segment: &Segment, hash: u64) -> Self {
        let Self { word, layout, .. } = Self::outward(segment, 0, hash);
        Self { hash, word, layout: layout | Self::SELF_TEST }
    }

    #[inline(always)]
    const fn is(self, what: u64) -> bool {
        self.layout & what != 0
    }

    const fn l3(self) -> usize {
        self.layout as u16 as usize
    }

    const fn l4(self) -> usize {
        (self.layout >> Self::L4_SHIFT) as u16 as usize
    }
}

/// What [`Stages::carry`] does.
///
/// # Errors
/// `NatNoMapping` and `NatNoReturn` if the flow is another's, `NoNextHop`, `TooBig`, `HopLimit`.
#[inline(always)]
pub fn carry<F: Frame, T: Stages<F>>(
    frame: &mut F,
    tables: &T,
    backend: &Backend,
    carry: Carry,
) -> Result<Action, Reason> {
    if carry.is(Carry::IPV6) {
        let header: Ipv6 = frame.read(carry.l3()).ok_or(Reason::Truncated)?;
        let ends = [Address::v6(header.source), Address::v6(header.destination)];
        let length = u16::from_be_bytes(header.payload_length).saturating_add(Ipv6::LEN as u16);
        let (to, macs, action) = way_of(frame, tables, backend, carry, ends, length)?;
        let addresses = ipv6(frame, &header, carry.l3(), &to)?;
        finish(frame, tables, backend, carry, &to, macs, addresses).map(|()| action)
    } else {
        let header: Ipv4 = frame.read(carry.l3()).ok_or(Reason::Truncated)?;
        let ends = [Address::v4(header.source), Address::v4(header.destination)];
        let length = u16::from_be_bytes(header.length);
        let (to, macs, action) = way_of(frame, tables, backend, carry, ends, length)?;
        let addresses = ipv4(frame, &header, carry.l3(), &to)?;
        finish(frame, tables, backend, carry, &to, macs, addresses).map(|()| action)
    }
}

/// What the segment's tuple becomes, and by what way it leaves.
#[inline(always)]
fn way_of<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    backend: &Backend,
    carry: Carry,
    [source, destination]: [Address; 2],
    length: u16,
) -> Result<(Tuple, l2::Words, Action), Reason> {
    let ports: Ports = frame.read(carry.l4()).ok_or(Reason::Truncated)?;
    let sent = Tuple { source, destination, ports };
    if backend.mtu != 0 && length > backend.mtu {
        return Err(Reason::TooBig);
    }
    let (to, macs, ifindex) = if carry.is(Carry::HOMEWARD) {
        let to = nat::homeward(&sent, tables, backend, carry.word, carry.hash)
            .ok_or(Reason::NatNoReturn)?;
        let hop = tables.hop(carry.word).ok_or(Reason::NatNoReturn)?;
        let macs = l2::Words { first: hop.first, second: hop.second };
        (to, macs, hop.ifindex)
    } else {
        let (egress, macs) = way(tables, backend)?;
        // Each by itself: of an option that both make, the verifier finds fields unwritten.
        let to = if carry.is(Carry::SELF_TEST) {
            nat::rehearsed(&sent, tables, backend).ok_or(Reason::NatNoMapping)?
        } else {
            nat::outward(&sent, tables, backend, carry.word, carry.hash)
                .ok_or(Reason::NatNoMapping)?
        };
        (to, macs.into(), egress.ifindex)
    };
    Ok((to, macs, leave_by(frame, ifindex)))
}

/// New addresses, and one hop less; tells what of that the TCP checksum sees.
#[inline(always)]
fn ipv4<F: Frame>(frame: &mut F, header: &Ipv4, l3: usize, to: &Tuple) -> Result<Change, Reason> {
    if header.ttl <= 1 {
        return Err(Reason::HopLimit);
    }
    let word = u32::from_ne_bytes;
    let (source, destination) = (word(to.source.low()), word(to.destination.low()));
    let addresses = Change::shared()
        .word(word(header.source), source)
        .word(word(header.destination), destination);
    let hops = |ttl| u16::from_ne_bytes([ttl, header.protocol]);
    let fewer = hops(header.ttl - 1);
    let checksum =
        Change::of(header.checksum).and(addresses).pair(hops(header.ttl), fewer).finish();
    let end = Ipv4End { hops: fewer, checksum, source, destination };
    frame.write(l3 + TTL, end).ok_or(Reason::Truncated)?;
    Ok(addresses)
}

/// The same.
#[inline(always)]
fn ipv6<F: Frame>(frame: &mut F, header: &Ipv6, l3: usize, to: &Tuple) -> Result<Change, Reason> {
    if header.hop_limit <= 1 {
        return Err(Reason::HopLimit);
    }
    let one = |change: Change, old: Address, new: Address| {
        let ([a, b, c, d], [e, f, g, h]) = (old.halves(), new.halves());
        change.word(a, e).word(b, f).word(c, g).word(d, h)
    };
    let change = one(Change::shared(), Address::v6(header.source), to.source);
    let change = one(change, Address::v6(header.destination), to.destination);
    let [a, b] = to.source.words();
    let [c, d] = to.destination.words();
    frame
        .write(l3 + Ipv6::HOP_LIMIT, header.hop_limit - 1)
        .and_then(|()| frame.write(l3 + Ipv6::ADDRESSES, [a, b, c, d]))
        .ok_or(Reason::Truncated)?;
    Ok(change)
}

/// New ports, the TCP checksum, a SYN's MSS, the MAC addresses.
#[inline(always)]
fn finish<F: Frame, T: Stages<F>>(
    frame: &mut F,
    tables: &T,
    backend: &Backend,
    carry: Carry,
    to: &Tuple,
    macs: l2::Words,
    addresses: Change,
) -> Result<(), Reason> {
    let l4 = carry.l4();
    // Not before: of what is read so late nothing need lie on the stack meanwhile.
    let tcp: Tcp = frame.read(l4).ok_or(Reason::Truncated)?;
    let mut change =
        Change::of(tcp.checksum).and(addresses).word(Ports::of(&tcp).word(), to.ports.word());
    if carry.is(Carry::SYN) {
        let ip_header = if carry.is(Carry::IPV6) { Ipv6::LEN } else { Ipv4::LEN };
        let fits = backend.mtu.saturating_sub((ip_header + Tcp::LEN) as u16);
        let most = mss::least(fits, mss::most(tables.service(backend.service)));
        if most != 0
            && let Some(Lowered { old, new }) = mss::lower(frame, tables, l4, &tcp, most)
        {
            change = change.pair(old, new);
        }
    }
    let Ports { source, destination } = to.ports;
    frame
        .write(l4, Tcp { source, destination, checksum: change.finish(), ..tcp })
        .and_then(|()| frame.write(0, macs))
        .ok_or(Reason::Truncated)
}

/// What stands from the hop count to the end of an IPv4 header.
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct Ipv4End {
    /// TTL and protocol.
    hops: u16,
    checksum: [u8; 2],
    source: u32,
    destination: u32,
}

/// Offset of the TTL in an IPv4 header.
const TTL: usize = 8;

#[cfg(test)]
mod tests;
