//! The watchdog's frames: they tell what no daemon would see by looking at its own books.

use std::collections::BTreeSet;

use aya::programs::links::{FdLink, PinnedLink};
use lb_common::{
    abi::{Backend, Egress, VipFilter, capacity::FILTER_WORDS},
    maglev::Member,
    reason::{Class, Reason},
};
use lb_userspace::{
    datapath::{Datapath, PASS},
    reconcile::{self, Image},
    watchdog::{Failure, self_test},
};
use sluice_tests::lab::{Family, Plan, Sluice, dataplane, is_privileged};

use crate::scene::{Scene, VIP4, VIP6, assert_flawless};

const TUNNELS: [&str; 2] = ["203.0.113.20:80", "[2001:db8:f00d::20]:80"];

/// Services of both families and methods, forwarded without a daemon: nobody mends anything.
fn ground() -> (Scene, Sluice) {
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, "l2");
    let [over_v4, over_v6] = TUNNELS;
    let config = dataplane(&["eth0"])
        + &scene.service("web", VIP4, "l2", Family::V4)
        + &scene.service("web6", VIP6, "l2", Family::V6)
        + &scene.service("over4", over_v4, "ipip", Family::V4)
        + &scene.service("over6", over_v6, "ipip", Family::V6);
    let mut sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    sluice.kill9().unwrap();
    (scene, sluice)
}

/// The instance as a daemon knows it that has written its maps.
fn adopted(scene: &Scene) -> (Datapath, Image) {
    let instance = scene.lab.balancer().name().parse().unwrap();
    let datapath = Datapath::adopt(&instance).unwrap().expect("it is attached");
    let mut image = reconcile::read(&datapath.maps).unwrap();
    for (index, service) in &mut image.services {
        let slots = datapath.maps.slots(u32::from(*index), service.service.slots).unwrap();
        let owners: BTreeSet<u16> = slots.into_iter().collect();
        let member = |backend| Member { backend, weight: 1, hashes: [0; 2] };
        service.members = Some(owners.into_iter().map(member).collect());
    }
    (datapath, image)
}

/// The VIPs that are not forwarded, each with what the program made of its frame.
fn failed(datapath: &Datapath, image: &Image) -> Vec<(String, String)> {
    let failures = self_test(datapath, image).into_iter().map(|failure| match failure {
        Failure::Service { interface, vip, expected, seen } => {
            assert_eq!(interface, "eth0");
            assert!(expected.starts_with("sent to 02:"), "{expected}");
            (vip.to_string(), seen)
        }
        Failure::Untested(why) => panic!("{why}"),
    });
    failures.collect()
}

/// Everything that clients' frames leave: backends' counters, frames refused, flows.
fn traces(datapath: &Datapath, image: &Image) -> impl PartialEq + std::fmt::Debug + use<> {
    let backends: Vec<u16> = image.backends.keys().copied().collect();
    let counters = datapath.maps.counters(&backends).unwrap();
    let reasons = datapath.maps.reason_counts().unwrap();
    let refused = Reason::ALL.iter().zip(reasons).filter(|(r, _)| r.class() != Class::Pass);
    let refused: Vec<(Reason, u64)> = refused.map(|(reason, count)| (*reason, count)).collect();
    let mut flows = 0;
    let count = |_: &_| {
        flows += 1;
        true
    };
    datapath.each_flow(|_| true, count).unwrap();
    (counters, refused, flows)
}

#[test]
fn the_watchdogs_frames_leave_no_trace_and_see_what_was_destroyed() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = ground();
    assert_flawless(&scene, &scene.request(VIP4, 50));
    let pins = sluice.pins();
    scene.lab.balancer().enter(|| {
        let (mut datapath, image) = adopted(&scene);
        let before = traces(&datapath, &image);
        for _ in 0..100 {
            assert_eq!(failed(&datapath, &image), []);
        }
        assert_eq!(traces(&datapath, &image), before);

        let all: BTreeSet<String> =
            [&[VIP4, VIP6][..], &TUNNELS].concat().into_iter().map(str::to_owned).collect();
        let each = |failures: Vec<(String, String)>, seen: &str| {
            assert!(failures.iter().all(|(_, it)| it.starts_with(seen)), "{failures:?}");
            failures.into_iter().map(|(vip, _)| vip).collect::<BTreeSet<_>>()
        };

        // One service is not found any more; one has lost its backends.
        for (index, service) in &image.services {
            let key = service.service.key();
            let vip = std::net::SocketAddr::new(key.address.into(), 80).to_string();
            datapath.maps.remove_service_index(&key).unwrap();
            assert_eq!(failed(&datapath, &image), [(vip.clone(), "dropped".to_owned())]);
            datapath.maps.set_service_index(&key, u32::from(*index)).unwrap();

            let own = || image.backends.iter().filter(|(_, record)| record.service == *index);
            for (backend, _) in own() {
                datapath.maps.set_backend(u32::from(*backend), &Backend::default()).unwrap();
            }
            assert_eq!(failed(&datapath, &image), [(vip.clone(), "dropped".to_owned())]);
            // Back, but at another MAC address.
            for (backend, record) in own() {
                let astray = lb_common::abi::NextHop::new([6; 6], record.next_hop.egress());
                let record = Backend { next_hop: astray, ..*record };
                datapath.maps.set_backend(u32::from(*backend), &record).unwrap();
            }
            let seen = "sent to 06:06:06:06:06:06".to_owned();
            assert_eq!(failed(&datapath, &image), [(vip, seen)]);
            for (backend, record) in own() {
                datapath.maps.set_backend(u32::from(*backend), record).unwrap();
            }
        }
        assert_eq!(failed(&datapath, &image), []);

        // The way out, and the filter, are everybody's.
        for index in image.egresses.keys() {
            datapath.maps.set_egress(u32::from(*index), &Egress::default()).unwrap();
        }
        assert_eq!(each(failed(&datapath, &image), "sent to 02:"), all);
        for (index, egress) in &image.egresses {
            datapath.maps.set_egress(u32::from(*index), egress).unwrap();
        }
        let filter = datapath.maps.filter();
        datapath.maps.set_filter(&VipFilter { words: [0; FILTER_WORDS], sources: 0 });
        assert_eq!(each(failed(&datapath, &image), "passed"), all);
        datapath.maps.set_filter(&filter);
        assert_eq!(failed(&datapath, &image), []);

        // Another program on our own link, which stays as pinned as it was.
        let path = pins.join("links").join("eth0");
        let exchange = |name: &str| {
            let link = FdLink::from(PinnedLink::from_pin(&path).unwrap()).try_into().unwrap();
            let mut program = datapath.program(name).unwrap();
            let id = program.attach_to_link(link).unwrap();
            drop(program.take_link(id).unwrap());
        };
        exchange(PASS);
        assert_eq!(each(failed(&datapath, &image), "passed"), all);
        exchange("sluice");
        assert_eq!(failed(&datapath, &image), []);

        std::fs::remove_file(&path).unwrap();
        let nothing = Failure::Untested("no program is attached".to_owned());
        assert_eq!(self_test(&datapath, &image), [nothing]);
    });
}
