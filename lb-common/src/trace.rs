//! What `sluice trace` asks of the kernel program, and what it is told.
//!
//! Only a build of its own of the kernel program (`lb-ebpf/src/traced.rs`) has any of this. It
//! stands in the other one's place while somebody watches, on the same maps; when nobody does,
//! tracing costs nothing.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    abi::ServiceKey, address::Address, counters::Event, frame::Frame, parse, reason::Reason,
    service, wire,
};

/// Bytes of a frame that are copied at most, before and after.
pub const MAX_SNAP: usize = 2048;

/// Names of the maps in the object file. They live as long as the trace does.
pub mod map {
    /// Array, one [`Filter`](super::Filter).
    pub const FILTER: &str = "TRACE_FILTER";
    /// Array, one `i64`: bytes that may still be told. Who reads what is told fills it up again,
    /// and so a trace that nobody reads ends by itself.
    pub const TOKENS: &str = "TRACE_TOKENS";
    /// Per-CPU array, one [`Tally`](super::Tally).
    pub const TALLY: &str = "TRACE_TALLY";
    /// Ring buffer of [`Header`](super::Header)s, each with the bytes that it tells of.
    pub const RING: &str = "TRACE_RING";
}

/// What became of a frame, as one number below 64: a [`Reason`]'s, or one of these.
pub mod verdict {
    /// Forwarded to a backend.
    pub const FORWARDED: u32 = 62;
    /// Forwarded from a backend to its client.
    pub const RETURNED: u32 = 63;
    /// Nothing was counted: a self-test.
    pub const NOTHING: u32 = 64;
}

/// Which frames are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Filter {
    /// Source or destination, where [`mask`](Self::mask) has a bit; elsewhere zero.
    pub address: Address,
    /// Zero: any address.
    pub mask: Address,
    /// The service; protocol 0: any.
    pub service: ServiceKey,
    /// A bit for each number in [`verdict`] that is told.
    pub verdicts: u64,
    /// Index of [`service`](Self::service).
    pub service_index: u32,
    /// Index of the backend; 0: any.
    pub backend: u32,
    /// TCP flags of which a segment has one at least; 0: any frame.
    pub flags: u32,
    /// One in so many frames, by chance; 1: all.
    pub one_in: u32,
    /// Bytes copied of a frame, 1 to [`MAX_SNAP`].
    pub snap: u32,
    /// Zero.
    pub reserved: u32,
}

/// What was noted of a frame while it was decided about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Notes {
    /// See [`verdict`].
    pub verdict: u32,
    /// The backend's index; 0: none.
    pub backend: u32,
    /// A bit for each [`Event`], by its number.
    pub events: u32,
    /// Whether the packet is addressed to the filter's service.
    pub addressed: u32,
}

/// What is told of a frame; its first bytes follow as it came, then as it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Nanoseconds of `CLOCK_MONOTONIC` when it was looked at.
    pub at: u64,
    /// What was noted.
    pub notes: Notes,
    /// Index of the interface it came in by.
    pub interface: u32,
    /// Index of the interface it went out by; 0: it did not.
    pub leaves_by: u32,
    /// Its bytes as it came.
    pub length: u32,
    /// Of these, those that follow.
    pub captured: u32,
    /// Its bytes as it went; 0: it did not.
    pub length_after: u32,
    /// Of these, those that follow.
    pub captured_after: u32,
}

/// Frames that matched the filter, on one CPU.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Tally {
    /// Told.
    pub told: u64,
    /// Not told: the bytes of this moment were spent.
    pub over_limit: u64,
    /// Not told: nobody had read the ring for too long.
    pub ring_full: u64,
}

impl Notes {
    /// Of a frame that nothing is known about yet.
    pub const NONE: Self = Self { verdict: verdict::NOTHING, backend: 0, events: 0, addressed: 0 };

    /// The frame is not forwarded.
    #[inline(always)]
    pub const fn reason(&mut self, reason: Reason) {
        self.verdict = reason as u32;
    }

    /// The frame goes to a backend; index 0 is a self-test's.
    #[inline(always)]
    pub const fn traffic(&mut self, backend: u16) {
        if backend != 0 {
            self.verdict = verdict::FORWARDED;
            self.backend = backend as u32;
        }
    }

    /// The frame goes from a backend to its client.
    #[inline(always)]
    pub const fn answer(&mut self, backend: u16) {
        self.verdict = verdict::RETURNED;
        self.backend = backend as u32;
    }

    /// Something happens to the flow. Of the second try, which is told of the backend that the flow
    /// leaves, no backend is noted.
    #[inline(always)]
    pub const fn event(&mut self, backend: u16, event: Event) {
        if !matches!(event, Event::SecondTry) {
            self.backend = backend as u32;
        }
        self.events |= 1 << event as u32;
    }
}

/// What the filter says of a packet before it is decided about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// It is none of those.
    Other,
    /// It may be.
    Candidate {
        /// It is addressed to the filter's service.
        addressed: bool,
    },
}

impl Filter {
    /// All frames, whole as far as they are copied, whatever becomes of them.
    pub const ALL: Self = Self {
        address: Address::UNSPECIFIED,
        mask: Address::UNSPECIFIED,
        service: ServiceKey {
            address: Address::UNSPECIFIED,
            port: [0; 2],
            protocol: 0,
            reserved: [0; 5],
        },
        verdicts: u64::MAX,
        service_index: 0,
        backend: 0,
        flags: 0,
        one_in: 1,
        snap: MAX_SNAP as u32,
        reserved: 0,
    };

    /// Whether packets must be read at all.
    #[inline(always)]
    fn is_about_packets(&self) -> bool {
        self.mask.words() != [0; 2] || self.flags != 0 || self.service.protocol != 0
    }

    #[inline(always)]
    fn has(&self, address: Address) -> bool {
        let ([a, b], [mask_a, mask_b]) = (address.words(), self.mask.words());
        [a & mask_a, b & mask_b] == self.address.words()
    }

    /// Looks at a packet, before it is decided about.
    #[inline(always)]
    pub fn look<F: Frame>(&self, frame: &F) -> Look {
        if !self.is_about_packets() {
            return Look::Candidate { addressed: false };
        }
        if let Ok(segment) = parse::segment(frame, |_, _| true) {
            let wanted = (self.has(segment.source) || self.has(segment.destination))
                && (self.flags == 0 || self.flags & u32::from(segment.flags) != 0);
            if !wanted {
                return Look::Other;
            }
            let addressed =
                self.service.protocol == wire::TCP && service::is_for(&segment, &self.service);
            return Look::Candidate { addressed };
        }
        match parse::locate(frame) {
            Ok(located)
                if self.flags == 0
                    && (self.has(located.source) || self.has(located.destination)) =>
            {
                Look::Candidate { addressed: false }
            }
            _ => Look::Other,
        }
    }

    /// Whether a candidate is told, once it is known what became of it. `service` is the one in
    /// the record of the backend that was noted; if none was, it is nobody's.
    #[inline(always)]
    pub const fn wants(&self, notes: &Notes, service: Option<u16>) -> bool {
        if notes.verdict >= verdict::NOTHING || self.verdicts & 1 << notes.verdict == 0 {
            return false;
        }
        if self.backend != 0 && self.backend != notes.backend {
            return false;
        }
        if self.service.protocol == 0 {
            return true;
        }
        // What is addressed to a service of any port may be another's, as its backend tells.
        if notes.backend == 0 {
            notes.addressed != 0
        } else {
            matches!(service, Some(index) if index as u32 == self.service_index)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        frame::HostFrame,
        host::sample::{ClientFrame, FAMILIES, Purpose},
        parse::Segment,
        wire::Tcp,
    };

    fn segment(frame: &HostFrame) -> Segment {
        parse::segment(frame, |_, _| true).expect("a segment")
    }

    fn of(segment: &Segment) -> ServiceKey {
        ServiceKey {
            address: segment.destination,
            port: segment.ports.destination,
            protocol: wire::TCP,
            reserved: [0; 5],
        }
    }

    const ONES: Address = Address::v6([0xff; 16]);
    const CANDIDATE: Look = Look::Candidate { addressed: false };

    #[test]
    fn a_packet_is_told_by_either_of_its_addresses_and_by_its_flags() {
        for family in FAMILIES {
            let frame = ClientFrame::new(Purpose::L2, family, 1).with_flags(Tcp::SYN).frame();
            let Segment { source, destination, .. } = segment(&frame);
            for address in [source, destination] {
                let filter = Filter { address, mask: ONES, ..Filter::ALL };
                assert_eq!(filter.look(&frame), CANDIDATE);
                let wrong = Filter { flags: Tcp::ACK.into(), ..filter };
                assert_eq!(wrong.look(&frame), Look::Other);
                let one_of_them = Filter { flags: (Tcp::ACK | Tcp::SYN).into(), ..filter };
                assert_eq!(one_of_them.look(&frame), CANDIDATE);
            }
            let [high, low] = source.words();
            let stranger: [u8; 16] = zerocopy::transmute!([high, low ^ 1 << 63]);
            let filter = Filter { address: Address::v6(stranger), mask: ONES, ..Filter::ALL };
            assert_eq!(filter.look(&frame), Look::Other);
        }
    }

    #[test]
    fn what_holds_no_segment_is_told_by_its_addresses_alone() {
        let mut frame = ClientFrame::new(Purpose::L2, parse::Family::Ipv4, 1).frame();
        let Segment { source, .. } = segment(&frame);
        // A fragment.
        frame.bytes[20] |= 0x20;
        let filter = Filter { address: source, mask: ONES, ..Filter::ALL };
        assert_eq!(filter.look(&frame), CANDIDATE);
        assert_eq!(Filter { flags: 0xff, ..filter }.look(&frame), Look::Other);
        assert_eq!(Filter::ALL.look(&frame), CANDIDATE);
        let runt = HostFrame::new([0; 10]);
        assert_eq!((Filter::ALL.look(&runt), filter.look(&runt)), (CANDIDATE, Look::Other));
    }

    #[test]
    fn a_service_has_what_is_addressed_to_it_and_what_its_backends_send() {
        let frame = ClientFrame::new(Purpose::L2, parse::Family::Ipv6, 1).frame();
        let key = of(&segment(&frame));
        let filter = Filter { service: key, service_index: 0, ..Filter::ALL };
        assert_eq!(filter.look(&frame), Look::Candidate { addressed: true });
        let elsewhere = Filter { service: ServiceKey { port: [9, 9], ..key }, ..filter };
        assert_eq!(elsewhere.look(&frame), CANDIDATE);

        let mut noted = Notes::NONE;
        noted.reason(Reason::NoBackend);
        let addressed = Notes { addressed: 1, ..noted };
        assert!(filter.wants(&addressed, None));
        // Nobody's record is that of backend 0, in which stands service 0.
        assert!(!filter.wants(&noted, Some(0)));
        let mut returned = Notes::NONE;
        returned.answer(7);
        assert!(filter.wants(&returned, Some(0)) && !filter.wants(&returned, Some(1)));
    }

    #[test]
    fn verdict_and_backend_are_asked_when_they_are_known() {
        let only = |number: u32| Filter { verdicts: 1 << number, ..Filter::ALL };
        assert!(!Filter::ALL.wants(&Notes::NONE, None), "a self-test");
        let mut self_test = Notes::NONE;
        self_test.traffic(0);
        assert!(!Filter::ALL.wants(&self_test, None));

        let mut noted = Notes::NONE;
        noted.event(3, Event::NewFlow);
        noted.event(2, Event::SecondTry);
        noted.traffic(3);
        assert_eq!(noted.backend, 3);
        assert_eq!(noted.events, 1 << Event::NewFlow as u32 | 1 << Event::SecondTry as u32);
        assert!(only(verdict::FORWARDED).wants(&noted, None));
        assert!(!only(verdict::RETURNED).wants(&noted, None));
        for (backend, wanted) in [(0, true), (3, true), (2, false)] {
            assert_eq!(Filter { backend, ..Filter::ALL }.wants(&noted, None), wanted);
        }
        for reason in Reason::ALL {
            let mut noted = Notes::NONE;
            noted.reason(*reason);
            assert!(only(*reason as u32).wants(&noted, None));
            assert!(!only(verdict::FORWARDED).wants(&noted, None));
        }
        assert!((Reason::ALL.len() as u32) < verdict::FORWARDED, "a bit for each");
    }
}
