//! What the clients' packets tell of the backends, and the second try of a SYN.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpStream},
    thread,
    time::Duration,
};

use lb_common::{counters::Event, service::BackendState};
use lb_userspace::{
    datapath::{BackendCounters, Maps, Pins},
    instance::Instance,
};
use serde_json::Value;
use sluice_tests::lab::{DEADLINE, Family, Host, Lab, Plan, is_privileged, until};

use crate::scene::{Scene, VIP4, VIP6, address, assert_flawless};

/// Connections that are tried at a time.
const CONNECTIONS: usize = 60;

fn backends(status: &Value) -> &Vec<Value> {
    status["services"][0]["backends"].as_array().unwrap()
}

#[test]
fn every_handshake_is_counted_once_and_timed() {
    if !is_privileged() {
        return;
    }
    for (vip, forwarding) in [(VIP4, "l2"), (VIP6, "ipip")] {
        let (scene, sluice) = Scene::forwarding(Plan::default(), vip, forwarding, Family::V4);
        let tally = scene.request(vip, 300);
        assert_flawless(&scene, &tally);
        let status = sluice.status().unwrap();
        let counted = backends(&status).iter().map(|backend| {
            assert_eq!(backend["new_flows_total"], backend["handshakes_total"], "{backend}");
            assert_eq!(backend["syn_retransmissions_total"], 0, "{backend}");
            assert_eq!(backend["second_tries_total"], 0, "{backend}");
            let times = &backend["handshake_times"];
            let counts = times["counts"].as_array().unwrap().iter();
            let timed: u64 = counts.map(|count| count.as_u64().unwrap()).sum();
            assert_eq!(backend["handshakes_total"], timed, "{backend}");
            // Nobody had to wait for a second SYN.
            assert!(times["sum_seconds"].as_f64().unwrap() < timed as f64, "{backend}");
            (backend["name"].as_str().unwrap().to_owned(), timed)
        });
        assert_eq!(counted.collect::<BTreeMap<_, _>>(), tally.answers[vip]);
    }
}

#[test]
fn a_client_that_gives_up_is_counted() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    scene.lab.client().enter(|| {
        for _ in 0..20 {
            let stream = TcpStream::connect(address(VIP4)).unwrap();
            // Closed with zero linger: by a RST.
            nix::sys::socket::setsockopt(
                &stream,
                nix::sys::socket::sockopt::Linger,
                &libc::linger { l_onoff: 1, l_linger: 0 },
            )
            .unwrap();
        }
    });
    let status = sluice.status().unwrap();
    let sum = |name: &str| -> u64 {
        backends(&status).iter().map(|backend| backend[name].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("client_resets_total"), sum("handshakes_total")), (20, 20));
}

/// A dead backend of a balancer without a daemon, which would mend what is changed by hand.
struct Dead {
    maps: Maps,
    index: u16,
}

impl Dead {
    /// Kills the backend without a word.
    fn new(lab: &Lab, host: &Host, instance: &Instance) -> Self {
        let maps = Maps::pinned(&Pins::of(instance)).unwrap();
        let address = host.address(Family::V4);
        let records = maps.backends(16).unwrap();
        let index = records.iter().position(|record| IpAddr::from(record.address) == address);
        lab.unplug(host).unwrap();
        Self { maps, index: index.unwrap() as u16 }
    }

    fn set_state(&mut self, state: BackendState) {
        let mut record = self.maps.backends(16).unwrap()[usize::from(self.index)];
        record.state = state as u8;
        self.maps.set_backend(u32::from(self.index), &record).unwrap();
    }

    fn counters(&self) -> BackendCounters {
        self.maps.counters(&[self.index]).unwrap()[0]
    }
}

/// How many of [`CONNECTIONS`] come about, each with time for its second SYN, and its third.
fn connect(client: &Host) -> usize {
    thread::scope(|scope| {
        let tries = (0..CONNECTIONS).map(|_| {
            scope.spawn(|| {
                let time = Duration::from_millis(5500);
                client.enter(|| TcpStream::connect_timeout(&address(VIP4), time).is_ok())
            })
        });
        let tries = tries.collect::<Vec<_>>();
        tries.into_iter().map(|one| usize::from(one.join().unwrap())).sum()
    })
}

#[test]
fn a_syn_sent_again_to_a_dead_suspect_reaches_another_backend() {
    if !is_privileged() {
        return;
    }
    let (scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    assert_flawless(&scene, &scene.request(VIP4, 30));
    sluice.kill9().unwrap();
    let instance: Instance = scene.lab.balancer().name().parse().unwrap();
    let mut dead = Dead::new(&scene.lab, &scene.lab.backends()[0], &instance);
    let before = dead.counters();
    let since = |dead: &Dead, event| dead.counters().event(event) - before.event(event);

    // As it is without suspicion: who meets it waits in vain.
    let met = connect(scene.lab.client());
    let syns = since(&dead, Event::NewFlow) as usize;
    assert!(syns > 0 && met == CONNECTIONS - syns, "{met} of {CONNECTIONS}, {syns} to the dead");
    assert!(since(&dead, Event::SynRetransmission) as usize >= syns);
    assert_eq!(since(&dead, Event::Handshake), 0);
    assert_eq!(since(&dead, Event::SecondTry), 0);
    println!("without a second try: {syns} of {CONNECTIONS} connections failed");

    dead.set_state(BackendState::Suspect);
    let met = connect(scene.lab.client());
    let tried = since(&dead, Event::SecondTry) as usize;
    assert_eq!(met, CONNECTIONS, "all come about");
    assert_eq!(tried, since(&dead, Event::NewFlow) as usize - syns, "each at the second SYN");
    assert!(tried > 0, "nobody met the dead one");
    assert_eq!(since(&dead, Event::Handshake), 0);
    println!("with it: none failed, {tried} waited for their second SYN");

    // It lives again, and is suspect still: its first SYNs reach it.
    scene.lab.plug(&scene.lab.backends()[0]).unwrap();
    until("a handshake with the suspect", DEADLINE, || {
        assert_eq!(connect(scene.lab.client()), CONNECTIONS);
        (since(&dead, Event::Handshake) > 0).then_some(())
    })
    .unwrap();
}
