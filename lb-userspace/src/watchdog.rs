//! The watchdog: whether the services are forwarded, seen by one frame each.
//!
//! A SYN to each service runs through the *attached* program and the *live* maps
//! (`BPF_PROG_TEST_RUN`), marked so that it enters no flow and no count. Its verdict and bytes
//! must be what `lb_common` makes of the same frame by what the daemon knows it has written. So
//! whatever is between that knowledge and a client's packet is looked at as a packet meets it:
//! a program that was exchanged, a map entry that was destroyed.
//!
//! Which of a service's backends a frame goes to is the Maglev table's matter, which the daemon
//! does not keep: the answer must be right for one of those that share it.

use std::{cell::Cell, net::SocketAddr};

use lb_common::{
    abi::{
        Backend, Egress, FlowRecord, NatHop, SELF_TEST_INTERFACE, SELF_TEST_PORT, Service,
        ServiceKey, Settings,
    },
    address::Address,
    counters::Event,
    flow::{State, Words},
    frame::HostFrame,
    reason::Reason,
    steer::{self, Stages},
    tables::Tables,
    wire::Tcp,
};

use crate::{
    datapath::{
        Datapath,
        run::{Answer, run},
        segment::{segment, stranger},
    },
    model::Vip,
    reconcile::{Image, ServiceImage},
};

/// A service that is not forwarded as it should be, or an instance that can't be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A program gave another answer than it should.
    #[error(
        "{interface}: a SYN to {vip} should be {expected}, but the program's answer is: {seen}"
    )]
    Service {
        /// The names of the interfaces where that program is attached.
        interface: String,
        /// Whose.
        vip: SocketAddr,
        /// What `lb_common` answers.
        expected: String,
        /// What the program answered.
        seen: String,
    },
    /// No frame could be run.
    #[error("the services can't be tested: {0}")]
    Untested(String),
}

/// Runs a frame for each service through each attached program; `image` is what the maps should
/// hold. A service whose slots' owners are not known, as just after an adoption, is left out, and
/// so is one that takes no new flows. Some 10 ms for 1,000 services.
pub fn self_test(datapath: &Datapath, image: &Image) -> Vec<Failure> {
    let attached = match datapath.attached() {
        Ok(attached) if attached.is_empty() => {
            return vec![Failure::Untested("no program is attached".to_owned())];
        }
        Ok(attached) => attached,
        Err(error) => return vec![Failure::Untested(format!("{error:#}"))],
    };
    let mut failures = Vec::new();
    for (index, service) in &image.services {
        let ServiceImage { service: record, listed: true, members: Some(members), .. } = service
        else {
            continue;
        };
        // Of any port one that no other service has.
        let others = image.services.values().map(|other| Vip::from(&other.service.key()));
        let vip = Vip::from(&record.key()).served_at(others);
        let sent = segment(SocketAddr::new(stranger(vip), SELF_TEST_PORT), vip, Tcp::SYN);
        let wanted =
            Wanted { settings: datapath.settings(), image, service: *index, slot: Cell::new(0) };
        let mut owners: Vec<u16> = members.iter().map(|member| member.backend).collect();
        if owners.is_empty() {
            owners.push(0);
        }
        for (interfaces, program) in &attached {
            let seen = match run(program, &sent, None) {
                Ok(seen) => seen,
                Err(error) => {
                    failures.push(Failure::Untested(format!("{error:#}")));
                    return failures;
                }
            };
            if !owners.iter().any(|owner| wanted.answer(&sent, *owner) == seen) {
                failures.push(Failure::Service {
                    interface: interfaces.join(", "),
                    vip,
                    expected: expected(&wanted, &sent, &owners),
                    seen: seen.to_string(),
                });
            }
        }
    }
    failures
}

/// In words: that of the first, and how many others would do.
fn expected(wanted: &Wanted<'_>, sent: &[u8], owners: &[u16]) -> String {
    let first = wanted.answer(sent, owners[0]);
    match owners.len() - 1 {
        0 => first.to_string(),
        1 => format!("{first}, or as befits another backend"),
        others => format!("{first}, or as befits one of {others} other backends"),
    }
}

/// What the maps should hold, as tables of `lb_common`; one service and one slot at a time.
struct Wanted<'a> {
    settings: &'a Settings,
    image: &'a Image,
    /// The index of the service that is asked.
    service: u16,
    /// Who owns its slots.
    slot: Cell<u16>,
}

impl Wanted<'_> {
    /// The answer to a self-test if this backend owns the slot; 0: nobody does.
    fn answer(&self, sent: &[u8], owner: u16) -> Answer {
        self.slot.set(owner);
        let mut frame = HostFrame { interface: SELF_TEST_INTERFACE, ..HostFrame::new(sent) };
        let action = steer::process(&mut frame, self, 0);
        Answer::of(action, frame.bytes)
    }
}

/// No flow is known, and none is remembered.
struct NoFlows;

impl Words for NoFlows {
    fn load(&self, _index: usize) -> u64 {
        0
    }

    fn replace(&self, _index: usize, _old: u64, _new: u64) -> bool {
        false
    }
}

impl Stages<HostFrame> for Wanted<'_> {}

impl Tables for Wanted<'_> {
    type Group = NoFlows;

    fn settings(&self) -> Option<&Settings> {
        Some(self.settings)
    }

    fn filter_word(&self, index: usize) -> u64 {
        self.image.filter_word(index)
    }

    fn filters_sources(&self) -> bool {
        self.image.filters_sources()
    }

    fn is_vip(&self, address: Address) -> bool {
        self.image.is_vip(address)
    }

    fn is_silent(&self, address: Address) -> bool {
        self.image.is_silent(address)
    }

    fn flow_group(&self, _index: u32) -> Option<NoFlows> {
        Some(NoFlows)
    }

    fn record_flow(&self, _index: u32, _record: FlowRecord) {}

    fn flow_record(&self, _index: u32) -> Option<FlowRecord> {
        None
    }

    fn record_hop(&self, _index: u32, _hop: NatHop) {}

    fn hop(&self, _index: u32) -> Option<NatHop> {
        None
    }

    fn nat_address(&self, index: u16) -> Option<Address> {
        self.image.nat_address(index)
    }

    fn is_nat_end(&self, _key: &ServiceKey) -> bool {
        false
    }

    fn service_index(&self, key: &ServiceKey) -> Option<u16> {
        self.service(self.service).filter(|service| service.key() == *key).map(|_| self.service)
    }

    fn service(&self, index: u16) -> Option<&Service> {
        self.image.services.get(&index).map(|image| &image.service)
    }

    fn slot(&self, _service: u16, _slot: u32) -> u16 {
        self.slot.get()
    }

    fn backend(&self, index: u16) -> Option<&Backend> {
        self.image.backends.get(&index)
    }

    fn egress(&self, index: u16) -> Option<&Egress> {
        self.image.egresses.get(&index)
    }

    fn probe(&self, _port: u16) -> u16 {
        0
    }

    fn is_probe_source(&self, _address: Address) -> bool {
        false
    }

    // Of self-tests nobody is told.
    fn may_answer(&self) -> bool {
        false
    }

    fn count_traffic(&self, _backend: u16, _bytes: u64) {}

    fn count_return(&self, _backend: u16, _bytes: u64) {}

    fn count_event(&self, _backend: u16, _event: Event) {}

    fn count_handshake(&self, _backend: u16, _jiffies: u64) {}

    fn count_eviction(&self, _victim: State) {}

    fn count_reason(&self, _reason: Reason) {}
}
