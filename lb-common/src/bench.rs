//! The bench's frames: what its generator (`lb-ebpf/src/bench.rs`) does before each run of the
//! program under test, and the [`Plan`] by which `tests/src/bench` tells it.
//!
//! `BPF_PROG_TEST_RUN` with `repeat` does not restore the frame: what the last run changed is
//! undone here. No packet of anybody ever comes by.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    address::Address,
    frame::Frame,
    wire::{Ipv4, Ipv6, ethernet},
};

/// Bits of a frame's number that make the client's address, the others make its port: so many
/// flows have one port. Of an IPv4 address the last three bytes: by the first it is somebody's.
const ADDRESS_BITS: u32 = 24;

/// Which frames to make. An element of the generator's map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Plan {
    /// A linear congruential sequence modulo 2^64. Its lowest bits are one of their own, which
    /// meets every number once in a period (Hull and Dobell 1962).
    pub state: u64,
    /// Of the sequence; 1 modulo 4.
    pub multiplier: u64,
    /// Of the sequence; odd.
    pub increment: u64,
    /// The number of a frame's flow is `state >> flow_shift & flow_mask`.
    pub flow_shift: u64,
    /// See `flow_shift`.
    pub flow_mask: u64,
    /// Flows are spread over this many VIPs that follow each other; not 0.
    pub vips: u64,
    /// Bytes of a fresh frame.
    pub length: u64,
    /// The first eight bytes of the MAC addresses.
    pub macs: u64,
    /// The other four.
    pub more_macs: u32,
    /// EtherType, network order.
    pub kind: u16,
    /// Network order.
    pub vip_port: u16,
    /// Whether frames are a client's or the answers of its backend: 1 for these.
    pub answers: u32,
    /// The four bytes of the IP header with the TTL or hop limit in them, which translation changes;
    /// 0: they are left as they are.
    pub hops: u32,
    /// Exclusive-or the flow's number: the client. Of answers, the backends' prefix.
    pub client: Address,
    /// The first VIP. Of answers, the prefix of the addresses that backends see.
    pub vip: Address,
}

/// Who answers a flow, and to whom: what [`Plan`] leaves open of it. An element of the generator's
/// map of answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Answer {
    /// The last bytes of the backend's address.
    pub backend: [u8; 4],
    /// The last bytes of the address that it sees.
    pub seen: [u8; 2],
    /// The port that it sees, network order.
    pub port: [u8; 2],
}

/// Knuth's, of MMIX (The Art of Computer Programming 2, §3.3.4).
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const INCREMENT: u64 = 1_442_695_040_888_963_407;

impl Plan {
    /// Meets `flows` (a power of two) in their order.
    pub const fn in_order(self, flows: u64) -> Self {
        Self {
            state: flows - 1,
            multiplier: 1,
            increment: 1,
            flow_shift: 0,
            flow_mask: flows - 1,
            ..self
        }
    }

    /// Meets `flows` (a power of two) again and again, each once before any comes again, but
    /// not in their order.
    pub const fn in_disorder(self, flows: u64) -> Self {
        Self {
            state: 0,
            multiplier: MULTIPLIER,
            increment: INCREMENT,
            flow_shift: 0,
            flow_mask: flows - 1,
            ..self
        }
    }

    /// Meets a flow once, of 2^40 (two of them may have one address and port).
    pub const fn at_random(self) -> Self {
        Self { flow_shift: 24, flow_mask: (1 << 40) - 1, ..self.in_disorder(1) }
    }

    /// The next flow's number.
    #[inline(always)]
    pub const fn next_flow(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(self.multiplier).wrapping_add(self.increment);
        self.state >> (self.flow_shift & 63) & self.flow_mask
    }

    /// The number of a flow's VIP.
    #[inline(always)]
    const fn vip_of(&self, flow: u64) -> u32 {
        let scrambled = (flow as u32).wrapping_mul(0x9e37_79b1) as u64;
        ((scrambled * self.vips) >> 32) as u32
    }
}

/// Makes `frame` the next of the plan; `answer` tells the flow's.
///
/// Words are written in the widths in which they are read: a load that needs two stores waits
/// for both, which no frame from a card makes it do.
#[inline(always)]
pub fn renew<F: Frame>(
    frame: &mut F,
    plan: &mut Plan,
    answer: impl FnOnce(u32) -> Option<Answer>,
) -> Option<()> {
    let flow = plan.next_flow();
    // Also by nothing: so it costs the same whether there is a tunnel header or not.
    frame.shrink_front(frame.len().wrapping_sub(plan.length as usize))?;
    // One by one: an array would be copied byte by byte.
    frame.write(0, plan.macs)?;
    frame.write(8, plan.more_macs)?;
    frame.write(ethernet::TYPE, plan.kind)?;
    let [a, b, c, source] = plan.client.halves();
    let [d, e, f, destination] = plan.vip.halves();
    let prefix: u64 = zerocopy::transmute!([a, b]);
    let host: u64 = zerocopy::transmute!([c, source]);
    let (host, destination, ports) = if plan.answers != 0 {
        let Answer { backend, seen, port } = answer(flow as u32)?;
        let [prefix, _]: [u16; 2] = zerocopy::transmute!(destination);
        let seen: u32 = zerocopy::transmute!([prefix, u16::from_ne_bytes(seen)]);
        let ports: u32 = zerocopy::transmute!([plan.vip_port, u16::from_ne_bytes(port)]);
        (zerocopy::transmute!([c, u32::from_ne_bytes(backend)]), seen, ports)
    } else {
        // Odd in its first byte: port 0 begins no flow.
        let port = (flow >> ADDRESS_BITS) as u16 | 1;
        let ports: u32 = zerocopy::transmute!([port, plan.vip_port]);
        let vip = u32::from_be(destination).wrapping_add(plan.vip_of(flow)).to_be();
        // In IPv4 the low half is the address, in IPv6 both are.
        let number = if plan.client.is_v4() { flow << (u64::BITS - ADDRESS_BITS) } else { flow };
        (host ^ number, vip, ports)
    };
    let l4 = if plan.client.is_v4() {
        let [_, source]: [u32; 2] = zerocopy::transmute!(host);
        let addresses: u64 = zerocopy::transmute!([source, destination]);
        let l4 = ethernet::LEN + Ipv4::LEN;
        frame.write(l4 - size_of_val(&addresses), addresses)?;
        if plan.hops != 0 {
            frame.write(ethernet::LEN + offset_of!(Ipv4, ttl), plan.hops)?;
        }
        l4
    } else {
        let vip: [u64; 2] = zerocopy::transmute!([d, e, f, destination]);
        let l4 = ethernet::LEN + Ipv6::LEN;
        frame.write(l4 - 2 * size_of_val(&vip), [prefix, host, vip[0], vip[1]])?;
        if plan.hops != 0 {
            frame.write(ethernet::LEN + offset_of!(Ipv6, payload_length), plan.hops)?;
        }
        l4
    };
    frame.write(l4, ports)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, vec, vec::Vec};

    use zerocopy::FromZeros as _;

    use super::*;
    use crate::frame::HostFrame;

    #[test]
    fn a_period_meets_every_flow_once_and_not_in_order() {
        let mut plan = Plan::new_zeroed().in_disorder(1 << 10);
        let flows: Vec<u64> = (0..1 << 10).map(|_| plan.next_flow()).collect();
        assert_eq!(flows.iter().collect::<BTreeSet<_>>().len(), 1 << 10);
        let neighbours = flows.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 8).count();
        assert!(neighbours < 40, "{neighbours} of 1,023 are close together");

        let mut plan = Plan::new_zeroed().in_order(1 << 10);
        assert!((0..1 << 10).all(|flow| plan.next_flow() == flow));
    }

    #[test]
    fn what_a_tunnel_has_put_in_front_is_gone_again() {
        for vip in [Address::v4([203, 0, 113, 10]), Address::v6([0x20; 16])] {
            let client =
                if vip.is_v4() { Address::v4([198, 18, 0, 0]) } else { Address::v6([0x30; 16]) };
            let mut plan = Plan {
                vips: 1,
                length: 74,
                macs: 1,
                more_macs: 2,
                kind: 3,
                vip_port: 4,
                client,
                vip,
                ..Plan::new_zeroed()
            };
            plan = plan.in_order(4);
            let mut frame = HostFrame::new(vec![0; 74]);
            renew(&mut frame, &mut plan, |_| None).expect("a frame with room");
            let first = frame.clone();
            frame.grow_front(20).expect("a vector grows");
            frame.write(0, [9u8; 34]).expect("there is room");
            plan = plan.in_order(4);
            renew(&mut frame, &mut plan, |_| None).expect("a frame with room");
            assert_eq!(frame, first);
            renew(&mut frame, &mut plan, |_| None).expect("a frame with room");
            assert_ne!(frame, first, "the next flow has another client");
        }
    }

    #[test]
    fn an_answer_is_from_the_flows_backend_to_what_that_sees() {
        let mut plan = Plan {
            vips: 1,
            length: 54,
            vip_port: u16::from_ne_bytes([0, 80]),
            answers: 1,
            hops: u32::from_ne_bytes([64, 6, 0, 0]),
            client: Address::v4([198, 18, 9, 9]),
            vip: Address::v4([198, 51, 9, 9]),
            ..Plan::new_zeroed().in_order(4)
        };
        let mut frame = HostFrame::new(vec![1; 54]);
        let answer = |flow| {
            assert_eq!(flow, 0);
            Some(Answer { backend: [198, 19, 0, 7], seen: [100, 3], port: [4, 1] })
        };
        renew(&mut frame, &mut plan, answer).expect("a frame with room");
        let expected = [&[64, 6, 0, 0][..], &[198, 19, 0, 7], &[198, 51, 100, 3], &[0, 80, 4, 1]];
        assert_eq!(frame.bytes[22..38], expected.concat());
    }
}
