//! The one list of reasons: why a frame got the verdict it got.
//!
//! Metrics, `sluice reasons`, the docs and the golden frames are made from this list. A frame
//! that is forwarded needs no reason: it is counted with its backend.

/// What becomes of a frame that is not forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Left to this host: to its kernel, untouched, or to the daemon's prober.
    Pass,
    /// Gone.
    Drop,
    /// Answered by the balancer itself.
    Answer,
}

impl Class {
    /// The name used by metrics and CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Answer => "answer",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $class:ident, $name:literal, $help:literal;)+) => {
        /// Why a frame was not forwarded. The numbers are part of the ABI: append, never reorder.
        /// A whole word, because the kernel program hands it on beside other words, and the
        /// verifier wants every access to the stack aligned.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u64)]
        pub enum Reason { $(#[doc = $help] $variant = $number,)+ }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The one with this number.
            #[inline(always)]
            pub const fn from_number(number: u64) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }

            /// What becomes of such a frame.
            #[inline(always)]
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)+ }
            }

            /// The name used by metrics, CLI and docs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means and what to do about it.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }
        }
    };
}

reasons! {
    NotIp = 0, Pass, "not_ip",
        "Neither IPv4 nor IPv6 (ARP, LLDP, a third VLAN tag and the like).";
    NotVip = 1, Pass, "not_vip",
        "The destination address is no VIP of ours: ordinary traffic of this host.";
    NotTcp = 2, Pass, "not_tcp",
        "Addressed to a VIP, but not TCP: ping, and ICMP errors about no flow that is known, are the kernel's.";
    NotService = 3, Pass, "not_service",
        "TCP to a VIP's address, but no service has this port.";
    NotReady = 4, Pass, "not_ready",
        "The daemon has not written its settings yet.";
    Runt = 5, Pass, "runt",
        "Too short for its own Ethernet or IP header, so nobody can say whom it is for.";
    Truncated = 6, Drop, "truncated",
        "The frame ends before its TCP header does.";
    BadIpHeader = 7, Drop, "bad_ip_header",
        "IP version or header length contradict themselves.";
    BadLength = 8, Drop, "bad_length",
        "The IP length exceeds the frame, or is below its own headers.";
    BadTcpHeader = 9, Drop, "bad_tcp_header",
        "The TCP header length is below 20 bytes or exceeds the packet.";
    Fragment = 10, Drop, "fragment",
        "A fragment of a TCP segment: only whole segments can be steered. Path MTU discovery or an MSS clamp avoids them.";
    ExtensionHeaders = 11, Drop, "extension_headers",
        "More IPv6 extension headers than are walked (8 headers, 1,024 bytes).";
    NoNextHop = 12, Drop, "no_next_hop",
        "The backend's neighbour is not resolved: look for its address with `ip neigh`.";
    TooBig = 13, Answer, "too_big",
        "With its tunnel header, or translated, the packet exceeds the MTU of the backend's route; its sender was told by ICMP what fits, and sends smaller ones. Many of them, again and again: ICMP does not reach the clients; raise that MTU, or lower the MSS.";
    NoHeadroom = 14, Drop, "no_headroom",
        "The driver left no room in front of the frame for the tunnel header.";
    RstUnknown = 15, Drop, "rst_unknown",
        "A client's RST for a connection that no backend has: there is nobody to tell.";
    NoBackend = 16, Answer, "no_backend",
        "No backend takes this flow; the client got a RST at once.";
    BackendGone = 17, Answer, "backend_gone",
        "The flow's backend is unreachable, disabled or past its drain deadline; the client got a RST.";
    ProbeAnswer = 18, Pass, "probe_answer",
        "A backend's answer to one of our own health probes, handed to the prober.";
    ProbeUndelivered = 19, Drop, "probe_undelivered",
        "A frame of our own prober that can't be sent on: its backend is not known any more or its neighbour is not resolved. Not a frame that an interface received.";
    NatNoMapping = 20, Answer, "nat_no_mapping",
        "A client's packet for a `nat` service that opens no connection and belongs to none known: it was silent for too long, or the balancer is not the one that has it. The client got a RST.";
    NatNoReturn = 21, Drop, "nat_no_return",
        "A packet from a backend of a `nat` service to a NAT address and port that no connection has: late, or forged.";
    NatPortsExhausted = 22, Answer, "nat_ports_exhausted",
        "No source port is left towards this backend: add `nat_addresses`, or widen `nat_ports`. The client got a RST.";
    NatTableFull = 23, Answer, "nat_table_full",
        "The flow table has no room for a connection that needs translation: raise `flow_capacity`. The client got a RST.";
    HopLimit = 24, Drop, "hop_limit",
        "A packet to be translated arrived with its last hop (TTL or hop limit 1 or 0): a routing loop, or traceroute.";
    TooBigUnanswered = 25, Drop, "too_big_unanswered",
        "As too_big, but its sender was not told: there were more than 1,000 of them in a second on one CPU, it is an ICMP error itself, or IPv6 of 1,280 bytes at most, which nobody makes smaller. Raise the MTU of the backend's route.";
    BadSource = 26, Drop, "bad_source",
        "A new flow for a service from an address that no host on a wire has (0.0.0.0/8, 127.0.0.0/8, 224.0.0.0 and above, ::, ::1, ff00::/8, an IPv4-mapped one), or from the VIP itself: forged.";
    BadPort = 27, Drop, "bad_port",
        "A new flow for a service from port 0, which nobody has.";
    BadFlags = 28, Drop, "bad_flags",
        "TCP flags with which no flow begins or goes on (none, SYN with FIN or RST, FIN or data without ACK), for a service and of no known flow: somebody scans.";
    EchoUnhealthy = 29, Drop, "echo_unhealthy",
        "A ping of a VIP for which no backend takes flows now: its service is to be silent then (`icmp_echo = \"healthy\"`).";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_names_unique() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::from_number(index as u64), Some(*reason));
            assert!(Reason::ALL[..index].iter().all(|r| r.name() != reason.name()));
        }
        assert_eq!(Reason::from_number(Reason::ALL.len() as u64), None);
    }
}
