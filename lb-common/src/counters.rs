//! What is counted per backend: its traffic, on every packet, and the one list of everything else,
//! only when it happens.
//!
//! Of backends that answer their clients directly only the client's packets are seen: that a
//! handshake was completed is told by the client's first ACK. Where the answers come through here
//! (`nat`), a handshake is the backend's SYN-ACK, and its time the backend's own.

use crate::abi::Carried;

/// Traffic of one backend, both directions together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Frames forwarded to it.
    pub packets: u64,
    /// Their bytes, as received: Ethernet header included, tunnel header not.
    pub bytes: u64,
    /// Frames forwarded from it to its clients, where they come through here.
    pub return_packets: u64,
    /// Their bytes, as received.
    pub return_bytes: u64,
}

impl Traffic {
    /// Adds what one CPU has forwarded to the backend, and from it.
    pub const fn add(&mut self, to: &Carried, from: &Carried) {
        self.packets += to.packets;
        self.bytes += to.bytes;
        self.return_packets += from.packets;
        self.return_bytes += from.bytes;
    }

    /// Frames forwarded in either direction.
    pub const fn forwarded(&self) -> u64 {
        self.packets + self.return_packets
    }
}

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
    /// A client sent its SYN again; counted for the backend that had the first one.
    SynRetransmission,
    /// A flow of this backend was reset because the backend is gone.
    Reset,
    /// The first segment behind a flow's SYN that is neither another nor a RST: the backend has
    /// answered, or somebody forges both ends of a handshake. Of a translated flow, the backend's
    /// SYN-ACK.
    Handshake,
    /// A client's RST ended a flow that was embryonic or young.
    ClientReset,
    /// A SYN sent again was given to another backend, this one being suspect; for that one it is
    /// a new flow.
    SecondTry,
    /// A backend answered a SYN with a RST. Seen only where its packets come through here.
    Refusal,
    /// A backend's RST ended a connection that it had taken. Seen only where its packets come
    /// through here.
    BackendReset,
}

/// How many there are.
pub const EVENTS: usize = 10;

impl Event {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; EVENTS] = [
        Self::NewFlow,
        Self::Adopted,
        Self::Untracked,
        Self::SynRetransmission,
        Self::Reset,
        Self::Handshake,
        Self::ClientReset,
        Self::SecondTry,
        Self::Refusal,
        Self::BackendReset,
    ];

    /// The name used by metrics, CLI and docs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NewFlow => "new_flows",
            Self::Adopted => "adopted_flows",
            Self::Untracked => "untracked_flows",
            Self::SynRetransmission => "syn_retransmissions",
            Self::Reset => "reset_flows",
            Self::Handshake => "handshakes",
            Self::ClientReset => "client_resets",
            Self::SecondTry => "second_tries",
            Self::Refusal => "refusals",
            Self::BackendReset => "backend_resets",
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
            Self::Handshake => "Flows whose client has acknowledged this backend's answer.",
            Self::ClientReset => "Flows that their clients reset soon after the SYN.",
            Self::SecondTry => "SYNs sent again and given to another backend.",
            Self::Refusal => "SYNs that this backend answered with a RST (nat only).",
            Self::BackendReset => "Connections that this backend reset (nat only).",
        }
    }
}

/// Buckets that handshakes are counted in by their time, from the flow's SYN to its first ACK.
///
/// What is known of a time is how many jiffies began meanwhile: it was shorter than one more of
/// them, and on average as long. So bucket `k`, in which fewer than 2^`k` began, has none that
/// took longer than 2^`k` jiffies, and the sum of what is counted is the sum of the times. The
/// last bucket has all that took longer than 2^14: 65 s at 250 Hz, 16 s at 1000.
pub const HANDSHAKE_BUCKETS: usize = 16;

/// A handshake of more jiffies counts as one of so many: a flow's record may be another's, left
/// there long ago (65 s at 1000 Hz, longer than clients wait).
pub const LONGEST_HANDSHAKE: u64 = 1 << 16;

/// The bucket of a handshake during which so many jiffies began.
#[inline(always)]
pub const fn handshake_bucket(jiffies: u64) -> usize {
    const LAST: usize = HANDSHAKE_BUCKETS - 1;
    let bucket = (u64::BITS - jiffies.leading_zeros()) as usize;
    if bucket < LAST { bucket } else { LAST }
}

/// Jiffies that no handshake of a bucket took longer than; `None` of the last.
pub const fn handshake_bound(bucket: usize) -> Option<u64> {
    if bucket < HANDSHAKE_BUCKETS - 1 { Some(1 << bucket) } else { None }
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

    #[test]
    fn a_handshake_lies_below_its_buckets_bound_and_not_below_the_one_before() {
        let edges = (0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1u64 << bit) + 1]);
        for jiffies in edges.chain([u64::MAX]) {
            let bucket = handshake_bucket(jiffies);
            assert!(bucket < HANDSHAKE_BUCKETS, "{jiffies} in {bucket}");
            if let Some(bound) = handshake_bound(bucket) {
                assert!(jiffies < bound, "{jiffies} in {bucket}");
            }
            if let Some(before) = bucket.checked_sub(1) {
                assert!(handshake_bound(before).is_some_and(|bound| jiffies >= bound));
            }
        }
        assert_eq!(handshake_bound(HANDSHAKE_BUCKETS - 1), None);
    }
}
