use std::collections::BTreeMap;

use lb_common::{
    forward::Forwarding,
    service::{Affinity, BackendState},
};

use super::*;
use crate::{model::IcmpEcho, reconcile::WantedBackend};

mod nat;
mod wishes;

fn vip(number: u8) -> ServiceKey {
    ServiceKey {
        address: Address::v4([203, 0, 113, number]),
        port: 80u16.to_be_bytes(),
        protocol: 6,
        reserved: [0; 5],
    }
}

fn hop(number: u8) -> Resolved {
    let egress = Egress { ifindex: 7, source_mac: [2; 6], ..Egress::default() };
    let source = [198, 18, 0, 254].into();
    Resolved { mac: [4, 0, 0, 0, 0, number], mtu: 1500, egress, source }
}

/// `true`: the flows of all have ended.
impl<F: Fn(u16) -> bool> InUse for F {
    fn is_idle(&self, backend: u16) -> bool {
        self(backend)
    }

    fn uses_nat_address(&self, _index: u16) -> bool {
        !self(0)
    }
}

fn backend(number: u8) -> WantedBackend {
    WantedBackend {
        address: Address::v4([198, 18, 0, number]),
        port: 80u16.to_be_bytes(),
        weight: 100,
        state: BackendState::Forward,
        hashes: [u64::from(number), 1],
        next_hop: Some(hop(number)),
    }
}

fn service(number: u8, backends: &[u8]) -> WantedService {
    WantedService {
        key: vip(number),
        slots: 13,
        affinity: Affinity::None,
        mss_clamp: 0,
        icmp_echo: IcmpEcho::Always,
        forwarding: Forwarding::L2,
        client_address: ClientAddress::default(),
        listed: true,
        backends: backends.iter().map(|&number| backend(number)).collect(),
    }
}

/// Maps as a packet meets them, write by write.
#[derive(Default)]
struct World {
    image: Image,
    /// How long each service's Maglev table is, whatever its record says.
    tables: BTreeMap<u16, u32>,
    /// Where probes are to come from.
    probe_sources: BTreeSet<IpAddr>,
}

impl World {
    /// Plans and writes; nobody's flows have ended.
    fn reach(&mut self, wanted: &[WantedService]) -> Vec<Write> {
        self.reach_with(wanted, |_| false)
    }

    fn reach_with(
        &mut self,
        wanted: &[WantedService],
        is_idle: impl Fn(u16) -> bool,
    ) -> Vec<Write> {
        let writes =
            plan(&self.image, wanted, &self.probe_sources, &is_idle).expect("there is room");
        for (number, write) in writes.iter().enumerate() {
            self.write(write);
            if let Err(broken) = self.check() {
                panic!("after write {number}: {broken}\n{writes:#?}");
            }
        }
        for (index, backend) in &self.image.backends {
            let service = backend.service;
            let is_there = self.image.services.contains_key(&service);
            assert!(is_there, "backend {index} is of service {service}, which is not there");
        }
        writes
    }

    fn write(&mut self, write: &Write) {
        match write {
            Write::Slots { service, slots, .. } => {
                self.tables.insert(*service, *slots);
            }
            Write::Egress(index, _) => {
                let user = self.image.backends.values().find(|b| b.next_hop.egress() == *index);
                assert_eq!(user, None, "egress {index} is written over in use");
            }
            Write::ClearCounters(index) => {
                assert!(!self.image.backends.contains_key(index), "backend {index} is in use");
            }
            _ => {}
        }
        self.image.record(write);
    }

    /// What no packet may ever meet.
    fn check(&self) -> Result<(), String> {
        for (index, image) in &self.image.services {
            if !image.listed {
                continue;
            }
            let slots = image.service.slots;
            let table = self.tables.get(index).copied().unwrap_or(0);
            if slots == 0 || slots > table {
                return Err(format!("service {index} has {slots} slots in a table of {table}"));
            }
            for member in image.members.iter().flatten() {
                match self.image.backends.get(&member.backend) {
                    Some(backend) if backend.service == *index => {}
                    other => {
                        return Err(format!("service {index} slots {member:?}: {other:?}"));
                    }
                }
            }
        }
        for (index, backend) in &self.image.backends {
            let egress = backend.next_hop.egress();
            if egress != 0 && !self.image.egresses.contains_key(&egress) {
                return Err(format!("backend {index} leaves by {egress}, which is not there"));
            }
        }
        Ok(())
    }

    fn index_of(&self, number: u8) -> Option<u16> {
        let address = backend(number).address;
        self.image.backends.iter().find(|(_, b)| b.address == address).map(|(index, _)| *index)
    }

    /// The last bytes of the addresses of those who share a service's slots.
    fn members(&self, number: u8) -> Vec<u8> {
        let found = self.image.services.values().find(|s| s.service.key() == vip(number));
        found
            .and_then(|image| image.members.as_ref())
            .into_iter()
            .flatten()
            .map(|member| self.image.backends[&member.backend].address.low()[3])
            .collect()
    }
}

/// Writes by their names, for tests of their order.
fn names(writes: &[Write]) -> Vec<&'static str> {
    writes
        .iter()
        .map(|write| match write {
            Write::ClearCounters(_) => "clear counters",
            Write::Egress(..) => "egress",
            Write::Backend(..) => "backend",
            Write::Slots { .. } => "slots",
            Write::Service(..) => "service",
            Write::List(..) => "list",
            Write::Unlist(..) => "unlist",
            Write::Vip(..) => "add VIP",
            Write::RemoveVip(_) => "remove VIP",
            Write::AddProbeSource(_) => "add probe source",
            Write::RemoveProbeSource(_) => "remove probe source",
            Write::NatAddress(..) => "NAT address",
            Write::AddNatEnd(_) => "add NAT end",
            Write::RemoveNatEnd(_) => "remove NAT end",
            Write::Filter(_) => "filter",
            Write::Orphan(_) => "orphan",
            Write::RemoveService(_) => "remove service",
            Write::RemoveBackend(_) => "remove backend",
        })
        .collect()
}

#[test]
fn a_service_is_complete_before_it_can_be_found() {
    let mut world = World::default();
    let writes = world.reach(&[service(10, &[1, 2])]);
    assert_eq!(
        names(&writes),
        [
            "clear counters",
            "clear counters",
            "egress",
            "backend",
            "backend",
            "service",
            "slots",
            "list",
            "add VIP",
            "filter"
        ]
    );
    assert_eq!(world.members(10), [1, 2]);
    assert_eq!(world.index_of(1), Some(1), "index 0 is nobody's");
}

#[test]
fn what_is_there_is_not_written_again() {
    let mut world = World::default();
    let wanted = [service(10, &[1, 2]), service(20, &[3])];
    world.reach(&wanted);
    assert_eq!(world.reach(&wanted), []);
}

#[test]
fn after_an_adoption_only_the_slots_are_written_again() {
    let mut world = World::default();
    let wanted = [service(10, &[1, 2])];
    world.reach(&wanted);
    for image in world.image.services.values_mut() {
        image.members = None;
    }
    assert_eq!(names(&world.reach(&wanted)), ["slots"]);
}

#[test]
fn a_backend_that_leaves_stays_until_its_last_flow_has_ended() {
    let mut world = World::default();
    world.reach(&[service(10, &[1, 2])]);
    let index = world.index_of(2).expect("it is there");
    let without = [service(10, &[1])];
    assert_eq!(names(&world.reach(&without)), ["slots", "orphan"]);
    assert_eq!(world.members(10), [1]);
    assert_eq!(world.reach(&without), []);
    assert!(world.index_of(2).is_some(), "its flows go on");
    assert_eq!(world.reach_with(&without, |i| i == index), [Write::RemoveBackend(index)]);
    assert_eq!(world.index_of(2), None);
}

#[test]
fn one_that_leaves_is_not_removed_in_the_same_plan_even_if_idle() {
    // Its slots are gone only after this plan: a flow may still be on its way to it.
    let mut world = World::default();
    world.reach(&[service(10, &[1, 2])]);
    let writes = world.reach_with(&[service(10, &[1])], |_| true);
    assert_eq!(names(&writes), ["slots", "orphan"]);
}

#[test]
fn one_that_comes_back_finds_its_flows() {
    let mut world = World::default();
    world.reach(&[service(10, &[1, 2])]);
    let index = world.index_of(2);
    world.reach(&[service(10, &[1])]);
    assert_eq!(names(&world.reach(&[service(10, &[1, 2])])), ["backend", "slots"]);
    assert_eq!(world.index_of(2), index);
    assert!(world.image.orphans.is_empty());
    assert_eq!(world.reach_with(&[service(10, &[1, 2])], |_| true), []);
}

#[test]
fn an_index_gets_a_new_owner_only_when_the_old_ones_flows_have_ended() {
    let mut world = World::default();
    world.reach(&[service(10, &[1, 2])]);
    let index = world.index_of(1).expect("it is there");
    world.reach(&[service(10, &[2, 3])]);
    assert_ne!(world.index_of(3), Some(index));
    world.reach_with(&[service(10, &[2, 3])], |_| true);
    let writes = world.reach(&[service(10, &[2, 3, 4])]);
    assert_eq!(world.index_of(4), Some(index));
    assert_eq!(writes[0], Write::ClearCounters(index));
}

#[test]
fn a_service_that_leaves_is_unlisted_at_once_and_removed_with_its_last_flow() {
    let mut world = World::default();
    world.reach(&[service(10, &[1]), service(20, &[2])]);
    let rest = [service(20, &[2])];
    assert_eq!(names(&world.reach(&rest)), ["unlist", "orphan"]);
    assert!(world.image.vips.contains(&IpAddr::from([203, 0, 113, 10])), "flows come in");
    let index = world.index_of(1).expect("its flows go on");
    let writes = world.reach_with(&rest, |i| i == index);
    assert_eq!(names(&writes), ["remove backend", "remove service", "remove VIP", "filter"]);
    assert_eq!(world.image.services.len(), 1);
}

#[test]
fn a_vip_stays_while_another_service_has_its_address() {
    let mut world = World::default();
    let mut second = service(10, &[2]);
    second.key.port = 443u16.to_be_bytes();
    world.reach(&[service(10, &[1]), second.clone()]);
    world.reach(std::slice::from_ref(&second));
    let writes = world.reach_with(&[second], |_| true);
    assert_eq!(names(&writes), ["remove backend", "remove service"]);
}

#[test]
fn a_vip_is_silent_while_no_service_that_wants_it_takes_flows() {
    let asking = |number, backends: &[u8]| WantedService {
        icmp_echo: IcmpEcho::Healthy,
        ..service(number, backends)
    };
    let ill = |mut service: WantedService| {
        service.backends.iter_mut().for_each(|backend| backend.weight = 0);
        service
    };
    let at = |port: u16, mut service: WantedService| {
        service.key.port = port.to_be_bytes();
        service
    };
    let vip = IpAddr::from([203, 0, 113, 10]);
    let leaving = WantedService { listed: false, ..asking(10, &[1]) };
    for (what, wanted, silent) in [
        ("nobody asks", vec![ill(service(10, &[1]))], false),
        ("it has one", vec![asking(10, &[1])], false),
        ("it has none", vec![asking(10, &[])], true),
        ("it has none that takes flows", vec![ill(asking(10, &[1]))], true),
        ("it leaves", vec![leaving], true),
        (
            "who does not ask takes flows",
            vec![ill(asking(10, &[1])), at(81, service(10, &[2]))],
            true,
        ),
        ("another that asks does", vec![ill(asking(10, &[1])), at(81, asking(10, &[2]))], false),
        ("that of another VIP does", vec![ill(asking(10, &[1])), asking(20, &[2])], true),
    ] {
        let mut world = World::default();
        world.reach(&wanted);
        assert_eq!(world.image.silent.contains(&vip), silent, "{what}");
        assert!(world.image.vips.contains(&vip), "{what}");
    }

    let mut world = World::default();
    world.reach(&[asking(10, &[1])]);
    assert_eq!(names(&world.reach(&[ill(asking(10, &[1]))])), ["slots", "add VIP"]);
    assert_eq!(names(&world.reach(&[asking(10, &[1])])), ["slots", "add VIP"]);
    assert!(world.image.silent.is_empty());
    world.reach(&[ill(asking(10, &[1]))]);
    world.reach_with(&[], |_| true);
    world.reach_with(&[], |_| true);
    assert!(world.image.silent.is_empty(), "it is no VIP any more");
}

#[test]
fn what_the_mss_is_lowered_to_is_in_the_services_record() {
    let mut world = World::default();
    world.reach(&[service(10, &[1])]);
    let clamped = [WantedService { mss_clamp: 1360, ..service(10, &[1]) }];
    assert_eq!(names(&world.reach(&clamped)), ["service"]);
    assert_eq!(world.image.services[&0].service.mss_clamp, 1360);
}

#[test]
fn a_service_that_comes_back_is_listed_again() {
    let mut world = World::default();
    world.reach(&[service(10, &[1])]);
    world.reach(&[]);
    assert_eq!(names(&world.reach(&[service(10, &[1])])), ["backend", "list"]);
}

#[test]
fn no_packet_looks_behind_the_end_of_a_table() {
    let mut world = World::default();
    let with = |slots| [WantedService { slots, ..service(10, &[1]) }];
    world.reach(&with(13));
    assert_eq!(names(&world.reach(&with(251))), ["slots", "service"]);
    assert_eq!(names(&world.reach(&with(13))), ["service", "slots"]);
}

#[test]
fn a_backend_whose_neighbour_is_lost_keeps_the_last_one_known() {
    let mut world = World::default();
    world.reach(&[service(10, &[1, 2])]);
    let mut wanted = service(10, &[1, 2]);
    wanted.backends[1].next_hop = None;
    assert_eq!(world.reach(&[wanted]), []);
    let index = world.index_of(2).expect("it is there");
    assert_eq!(world.image.backends[&index].next_hop.mac(), hop(2).mac);
}

#[test]
fn a_backend_whose_neighbour_was_never_known_is_unresolved() {
    let mut world = World::default();
    let mut wanted = service(10, &[1, 2]);
    for backend in &mut wanted.backends {
        backend.next_hop = None;
    }
    world.reach(&[wanted]);
    assert_eq!(world.members(10), [1, 2]);
    assert!(world.image.backends.values().all(|b| b.next_hop == NextHop::UNRESOLVED));
}

#[test]
fn new_flows_are_led_away_before_flows_are_reset_and_led_back_after() {
    let mut world = World::default();
    world.reach(&[service(10, &[1, 2])]);
    let mut wanted = service(10, &[1, 2]);
    wanted.backends[0].state = BackendState::Reset;
    wanted.backends[0].weight = 0;
    assert_eq!(names(&world.reach(&[wanted])), ["slots", "backend"]);
    assert_eq!(world.members(10), [2]);
    assert_eq!(names(&world.reach(&[service(10, &[1, 2])])), ["backend", "slots"]);
}

#[test]
fn a_service_that_drains_is_unlisted_first_and_keeps_its_backends() {
    let mut world = World::default();
    world.reach(&[service(10, &[1, 2])]);
    let mut leaving = service(10, &[1, 2]);
    leaving.listed = false;
    for backend in &mut leaving.backends {
        backend.weight = 0;
    }
    let leaving = [leaving];
    assert_eq!(names(&world.reach(&leaving)), ["unlist", "slots"]);
    assert_eq!(world.reach_with(&leaving, |_| true), []);
    assert_eq!(world.image.backends.len(), 2);
    assert_eq!(names(&world.reach(&[service(10, &[1, 2])])), ["slots", "list"]);
}

#[test]
fn tables_of_all_services_are_written_side_by_side() {
    let mut world = World::default();
    let writes = world.reach(&[service(10, &[1]), service(20, &[2]), service(30, &[3])]);
    let is_table = |name: &&str| *name == "slots";
    let names = names(&writes);
    let first = names.iter().position(is_table).expect("a table");
    assert_eq!(names[first..first + 3], ["slots"; 3]);
}

#[test]
fn a_backend_without_weight_gets_no_new_flows_and_is_no_orphan() {
    let mut world = World::default();
    world.reach(&[service(10, &[1, 2])]);
    let mut wanted = service(10, &[1, 2]);
    wanted.backends[0].weight = 0;
    assert_eq!(names(&world.reach(&[wanted])), ["slots"]);
    assert_eq!(world.members(10), [2]);
    assert!(world.image.orphans.is_empty());
}

#[test]
fn a_new_mac_is_one_write() {
    let mut world = World::default();
    world.reach(&[service(10, &[1, 2])]);
    let mut wanted = service(10, &[1, 2]);
    wanted.backends[0].next_hop = Some(hop(99));
    let writes = world.reach(&[wanted]);
    assert_eq!(names(&writes), ["backend"]);
}

#[test]
fn a_way_out_is_shared_and_its_place_used_again_when_nobody_leaves_by_it() {
    let mut world = World::default();
    let by = |ifindex: u32| {
        let mut wanted = service(10, &[1, 2]);
        for backend in &mut wanted.backends {
            let mut hop = hop(1);
            hop.egress.ifindex = ifindex;
            backend.next_hop = Some(hop);
        }
        [wanted]
    };
    for ifindex in 1..=600 {
        world.reach(&by(ifindex));
        let egresses: BTreeSet<u16> =
            world.image.backends.values().map(|b| b.next_hop.egress()).collect();
        assert_eq!(egresses.len(), 1);
        let egress = egresses.first().expect("one");
        assert_eq!(world.image.egresses[egress].ifindex, ifindex);
    }
    assert!(world.image.egresses.len() < capacity::EGRESSES);
}

#[test]
fn more_than_the_maps_hold_is_refused_whole() {
    let mut wanted = service(10, &[]);
    let ports = (0..=u16::MAX).map(|port| WantedBackend { port: port.to_be_bytes(), ..backend(1) });
    wanted.backends = ports.collect();
    let error = plan(&Image::default(), &[wanted], &BTreeSet::new(), &|_| false)
        .expect_err("65,536 backends");
    assert!(error.to_string().contains("more than 65535 backends"), "{error}");
}
