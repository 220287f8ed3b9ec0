//! From a verdict to a rewritten frame: one function for all families and methods.

use crate::{
    abi::{Backend, Egress},
    forward::nat::Carry,
    frame::Frame,
    parse::Segment,
    probe,
    reason::{Class, Reason},
    steer::{Stages, Verdict},
    tables::Tables,
    wire::Macs,
};

pub mod ipip;
pub mod l2;
pub mod mss;
pub mod nat;
pub mod reset;
pub mod too_big;

/// How frames reach a service's backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Forwarding {
    /// The destination MAC becomes the backend's; the packet stays as it is.
    #[default]
    L2 = 0,
    /// The packet travels in another one, addressed to the backend.
    Ipip = 1,
    /// Addresses and ports are rewritten both ways.
    Nat = 2,
}

impl Forwarding {
    /// As the configuration spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::Ipip => "ipip",
            Self::Nat => "nat",
        }
    }
}

/// What the kernel is to do with the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Leave it to the network stack.
    Pass,
    /// Forget it.
    Drop,
    /// Send it out of the interface it came from.
    Transmit,
    /// Send it out of the interface with this index.
    Redirect(u32),
}

/// Counts a frame that is left alone.
#[inline(always)]
pub fn leave<T: Tables>(tables: &T, reason: Reason) -> Action {
    tables.count_reason(reason);
    match reason.class() {
        Class::Pass => Action::Pass,
        Class::Drop | Class::Answer => Action::Drop,
    }
}

/// Rewrites the frame as the verdict says, and counts it; `length` tells its bytes.
#[inline(always)]
pub fn apply<F: Frame, T: Stages<F>>(
    frame: &mut F,
    segment: &Segment,
    tables: &T,
    verdict: Verdict<'_>,
    length: impl Fn(&F) -> usize,
) -> Action {
    match verdict {
        Verdict::Leave(reason) => leave(tables, reason),
        Verdict::Failed => Action::Drop,
        Verdict::Reset(reason) => match tables.reset(frame, segment) {
            Some(()) => {
                tables.count_reason(reason);
                Action::Transmit
            }
            None => leave(tables, Reason::Truncated),
        },
        Verdict::Deliver => probe::hand_over(frame, segment, tables),
        Verdict::Return { backend, index, word, hash } => {
            let bytes = length(frame) as u64;
            let carry = Carry::homeward(segment, word, hash);
            match tables.carry(frame, backend, carry) {
                Ok(action) => {
                    tables.count_return(index, bytes);
                    action
                }
                Err(reason) => unsent(frame, tables, index, reason),
            }
        }
        Verdict::Forward { backend, index, word, hash } => {
            let bytes = length(frame) as u64;
            let sent = if crate::nat::translates(backend) {
                let carry = if index == 0 {
                    Carry::self_test(segment, hash)
                } else {
                    Carry::outward(segment, word, hash)
                };
                tables.carry(frame, backend, carry)
            } else {
                rewrite(frame, segment, tables, backend, hash)
            };
            match sent {
                Ok(action) => {
                    tables.count_traffic(index, bytes);
                    action
                }
                // A self-test's.
                Err(_) if index == 0 => Action::Drop,
                Err(reason) => unsent(frame, tables, index, reason),
            }
        }
    }
}

/// A segment of a flow of this backend that can't be sent on: who has sent too large a one is told,
/// all else is left.
#[inline(always)]
fn unsent<F: Frame, T: Stages<F>>(
    frame: &mut F,
    tables: &T,
    backend: u16,
    reason: Reason,
) -> Action {
    let reason = tables.unsent(frame, backend, reason);
    tables.count_reason(reason);
    if matches!(reason, Reason::TooBig) { Action::Transmit } else { Action::Drop }
}

/// Rewrites the frame for a backend.
///
/// # Errors
/// The reason to drop it: `NoNextHop`, or what the method of forwarding says.
#[inline(always)]
pub fn rewrite<F: Frame, T: Tables>(
    frame: &mut F,
    segment: &Segment,
    tables: &T,
    backend: &Backend,
    hash: u64,
) -> Result<Action, Reason> {
    let (egress, macs) = way(tables, backend)?;
    if backend.forwarding == Forwarding::Ipip as u8 {
        ipip::rewrite(frame, segment, backend, egress, macs, hash)?;
    } else {
        l2::rewrite(frame, macs).ok_or(Reason::Truncated)?;
    }
    Ok(leave_by(frame, egress.ifindex))
}

/// The way out to a backend.
#[inline(always)]
pub(crate) fn way<'t, T: Tables>(
    tables: &'t T,
    backend: &Backend,
) -> Result<(&'t Egress, Macs), Reason> {
    let next_hop = backend.next_hop;
    if next_hop.egress() == 0 {
        return Err(Reason::NoNextHop);
    }
    let egress = tables.egress(next_hop.egress()).ok_or(Reason::NoNextHop)?;
    Ok((egress, Macs { destination: next_hop.mac(), source: egress.source_mac }))
}

/// Out of the interface with this index.
#[inline(always)]
pub(crate) fn leave_by<F: Frame>(frame: &F, ifindex: u32) -> Action {
    if ifindex == frame.interface() { Action::Transmit } else { Action::Redirect(ifindex) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        abi::NextHop,
        frame::HostFrame,
        host::{
            HostTables,
            sample::{
                self, BALANCER_MAC, ClientFrame, FAMILIES, OTHER_INTERFACE, OTHER_MAC, Purpose,
            },
        },
        parse::Family,
        steer,
        wire::Tcp,
    };

    fn process(tables: &HostTables, sent: &ClientFrame) -> (Action, HostFrame) {
        let mut frame = sent.frame();
        (steer::process(&mut frame, tables, 0), frame)
    }

    #[test]
    fn a_frame_leaves_by_the_interface_its_backend_is_behind() {
        for family in FAMILIES {
            for (purpose, expected, mac) in [
                (Purpose::L2, Action::Transmit, BALANCER_MAC),
                (Purpose::InIpv4, Action::Transmit, BALANCER_MAC),
                (Purpose::Elsewhere, Action::Redirect(OTHER_INTERFACE), OTHER_MAC),
            ] {
                let tables = sample::tables(16);
                let sent = ClientFrame::new(purpose, family, 1);
                let (action, frame) = process(&tables, &sent);
                assert_eq!(action, expected, "{purpose:?}");
                let (&backend, _) =
                    tables.take_counted().traffic.first_key_value().expect("counted");
                assert_eq!(frame.bytes[..6], sample::mac(backend), "{purpose:?}\n{frame:?}");
                assert_eq!(frame.bytes[6..12], mac, "{purpose:?}\n{frame:?}");
                // The same, as it arrives behind the other one.
                let mut other = HostFrame { interface: OTHER_INTERFACE, ..sent.frame() };
                let action = steer::process(&mut other, &tables, 0);
                let elsewhere = purpose == Purpose::Elsewhere;
                let back = Action::Redirect(sample::INTERFACE);
                assert_eq!(action, if elsewhere { Action::Transmit } else { back });
            }
        }
    }

    #[test]
    fn without_a_next_hop_the_frame_is_dropped_and_not_counted_as_traffic() {
        for egress in [0, 77] {
            let mut tables = sample::tables(16);
            for backend in &mut tables.backends {
                backend.next_hop = NextHop::new([2; 6], egress);
            }
            let sent = ClientFrame::new(Purpose::L2, Family::Ipv4, 1);
            assert_eq!(process(&tables, &sent), (Action::Drop, sent.frame()));
            let counted = tables.take_counted();
            assert_eq!((counted.reason(Reason::NoNextHop), counted.packets()), (1, 0));
        }
    }

    #[test]
    fn a_tunnels_bytes_are_counted_as_received() {
        let tables = sample::tables(16);
        let sent = ClientFrame::new(Purpose::InIpv6, Family::Ipv4, 1);
        let (_, frame) = process(&tables, &sent);
        assert_eq!(frame.bytes.len(), 54 + 40);
        let traffic: u64 = tables.take_counted().traffic.values().map(|t| t.bytes).sum();
        assert_eq!(traffic, 54);
    }

    #[test]
    fn a_rst_goes_back_where_the_frame_came_from() {
        let tables = sample::tables(16);
        let sent = ClientFrame::new(Purpose::Empty, Family::Ipv4, 1).with_flags(Tcp::SYN);
        let mut frame = HostFrame { interface: 77, ..sent.frame() };
        assert_eq!(steer::process(&mut frame, &tables, 0), Action::Transmit);
        assert_eq!(tables.take_counted().reason(Reason::NoBackend), 1);
    }
}
