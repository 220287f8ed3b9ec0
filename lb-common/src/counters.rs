//! The one list of what is counted per backend beside its traffic.
//!
//! Packets and bytes are counted on every packet ([`Traffic`](crate::abi::Traffic));
//! everything here only when it happens.

/// Something that happened to a flow of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Event {
    /// A SYN chose this backend.
    NewFlow,
    /// A packet of an unknown flow that is no SYN went to this backend by slot: another
    /// balancer, or an eviction, or an idle time-out may stand behind it.
    Adopted,
    /// A flow went to this backend without an entry: its place in the table was full.
    Untracked,
    /// A client sent its SYN again.
    SynRetransmission,
    /// A flow of this backend was reset because the backend is gone.
    Reset,
}

/// How many there are.
pub const EVENTS: usize = 5;

impl Event {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; EVENTS] =
        [Self::NewFlow, Self::Adopted, Self::Untracked, Self::SynRetransmission, Self::Reset];

    /// The name used by metrics, CLI and docs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NewFlow => "new_flows",
            Self::Adopted => "adopted_flows",
            Self::Untracked => "untracked_flows",
            Self::SynRetransmission => "syn_retransmissions",
            Self::Reset => "reset_flows",
        }
    }

    /// What it means, in one sentence.
    pub const fn help(self) -> &'static str {
        match self {
            Self::NewFlow => "Flows that chose this backend with a SYN.",
            Self::Adopted => "Flows met in the middle and sent to this backend by slot.",
            Self::Untracked => "Flows sent to this backend without an entry, the table being full.",
            Self::SynRetransmission => "SYNs that clients sent again.",
            Self::Reset => "Flows reset because the backend is gone.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_list() {
        for (index, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, index);
        }
    }
}
