//! What becomes of a frame that the agent sees, and why.

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The inner packet goes to the network stack.
    Unpack,
    /// The frame goes to the network stack, untouched.
    Pass,
    /// It is gone.
    Drop,
}

impl Verdict {
    /// The name used by the CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unpack => "unpack",
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

/// What became of a frame, and why: the one list. The numbers are part of the ABI: append,
/// never reorder. A whole word, as [`Reason`](crate::reason::Reason) is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u64)]
pub enum Outcome {
    /// A VIP's packet left its tunnel.
    Decapsulated,
    /// No packet in a packet.
    NotTunnel,
    /// The inner destination is no VIP.
    NotVip,
    /// A fragment of a tunnelled packet.
    Fragment,
    /// Too short to tell.
    Runt,
    /// The outer source is not accepted.
    SourceRefused,
    /// The inner IP header contradicts itself.
    BadIpHeader,
    /// A packet is longer than what it travels in.
    BadLength,
    /// Marked "congestion experienced", but the inner packet's sender does not speak ECN.
    Congested,
    /// Somebody asks who has the VIP.
    Solicitation,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Decapsulated,
        Self::NotTunnel,
        Self::NotVip,
        Self::Fragment,
        Self::Runt,
        Self::SourceRefused,
        Self::BadIpHeader,
        Self::BadLength,
        Self::Congested,
        Self::Solicitation,
    ];

    /// What becomes of such a frame.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Decapsulated => Verdict::Unpack,
            Self::NotTunnel | Self::NotVip | Self::Fragment | Self::Runt => Verdict::Pass,
            Self::SourceRefused
            | Self::BadIpHeader
            | Self::BadLength
            | Self::Congested
            | Self::Solicitation => Verdict::Drop,
        }
    }

    /// The name used by CLI and docs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decapsulated => "decapsulated",
            Self::NotTunnel => "not_tunnel",
            Self::NotVip => "not_vip",
            Self::Fragment => "fragment",
            Self::Runt => "runt",
            Self::SourceRefused => "source_refused",
            Self::BadIpHeader => "bad_ip_header",
            Self::BadLength => "bad_length",
            Self::Congested => "congested",
            Self::Solicitation => "solicitation",
        }
    }

    /// What it means and what to do about it.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Decapsulated => "A VIP's packet, taken out of its tunnel.",
            Self::NotTunnel => "No packet in a packet: ordinary traffic of this host.",
            Self::NotVip => {
                "A tunnelled packet whose inner destination is no VIP here: somebody else's \
                 tunnel, or a VIP that the balancer has and --vip lacks."
            }
            Self::Fragment => {
                "A fragment of a tunnelled packet, which only the kernel can put together: raise \
                 the MTU between balancer and backend."
            }
            Self::Runt => "Too short for its own headers, so nobody can say whom it is for.",
            Self::SourceRefused => {
                "A tunnelled packet for a VIP from a source outside --from: not the balancer, or \
                 a balancer whose address is missing there."
            }
            Self::BadIpHeader => {
                "IP version or header length of the inner packet contradict themselves."
            }
            Self::BadLength => {
                "The inner packet is longer than the outer one, or the outer one than the frame."
            }
            Self::Congested => {
                "Marked \"congestion experienced\" on the way though the inner packet's sender \
                 does not speak ECN: losing it is how that sender learns (RFC 6040 §4.2)."
            }
            Self::Solicitation => {
                "An ARP request or neighbour solicitation for a VIP: the balancer answers those."
            }
        }
    }
}
