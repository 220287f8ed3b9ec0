//! Probes by way of the VIP take the road of traffic, whatever that is, and come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_common::reason::Reason;
use lb_userspace::{
    config,
    datapath::{Datapath, ProberParts},
    health::{Direct, Engine, Failure, Path as _, Paths, Standings, Target},
    instance::Instance,
    model::{CheckKind, Desired, HealthCheck, HttpCheck, Identity},
    network::{self, NextHops, OwnAddresses},
    prober::{Prober, Surroundings, VipPath, ways},
    reconcile::{self, Image},
};
use sluice_tests::lab::{
    DEADLINE, Family, HealthServer, Host, Nginx, Plan, Sluice, dataplane, fetch, is_privileged,
    until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Runtime,
    time::timeout,
};

use crate::scene::{Scene, VIP4, VIP6, address};

/// Longer than a handshake takes here, shorter than a SYN is sent again.
const PATIENCE: Duration = Duration::from_millis(700);

/// What the daemon does for its probes, done by the test: the instance's daemon has stopped.
struct Probing {
    path: VipPath,
    _prober: Prober,
    datapath: Datapath,
    targets: BTreeMap<String, Target>,
    /// Goes last: its threads are in the balancer's namespace.
    runtime: Runtime,
}

impl Probing {
    /// Takes the instance on `host` over.
    fn start(host: &Host, config: &str, mut sluice: Sluice) -> (Self, Sluice) {
        sluice.stop().unwrap();
        let desired = config::parse(config, "test").unwrap();
        let instance: Instance = host.name().parse().unwrap();
        let probing = host.enter(|| {
            // Its threads inherit the namespace.
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            let started = runtime.block_on(start(&instance, &desired));
            let (prober, datapath) = started;
            let check = Arc::new(HealthCheck::default());
            let targets = desired.services.iter().flat_map(|service| {
                let check = &check;
                service.backends.iter().map(move |backend| {
                    (backend.name.clone(), Target::new(service, backend, check))
                })
            });
            let targets = targets.collect();
            Self { path: prober.path(), _prober: prober, datapath, targets, runtime }
        });
        (probing, sluice)
    }

    /// Asks a backend through the VIP; its answer's last line, or why there is none.
    fn ask(&self, backend: &str) -> Result<String, Failure> {
        let answer = self.get(backend, "/")?;
        Ok(String::from_utf8_lossy(&answer).lines().last().unwrap_or_default().to_owned())
    }

    /// The same of a path; the whole answer.
    fn get(&self, backend: &str, path: &str) -> Result<Vec<u8>, Failure> {
        let target = &self.targets[backend];
        self.runtime.block_on(async {
            let connected = timeout(PATIENCE, self.path.connect(target)).await;
            let mut connection = connected.map_err(|_| Failure::NoAnswer(PATIENCE))??;
            let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
            connection.stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let read = connection.stream.read_to_end(&mut answer);
            timeout(DEADLINE, read).await.unwrap().unwrap();
            Ok(answer)
        })
    }
}

async fn start(instance: &Instance, desired: &Desired) -> (Prober, Datapath) {
    let mut datapath = Datapath::adopt(instance).unwrap().unwrap();
    let mut prober = Prober::start(instance, ProberParts::of(&datapath).unwrap()).await.unwrap();
    datapath.set_probe_interface(prober.interface()).unwrap();

    let next_hops = NextHops::start().await.unwrap();
    let backends = desired.services.iter().flat_map(|service| &service.backends);
    next_hops.watch(backends.map(|backend| backend.address).collect());
    let mut snapshots = next_hops.snapshots();
    let resolved =
        snapshots.wait_for(|found| !found.is_empty() && found.values().all(Result::is_ok));
    let next_hops = timeout(Duration::from_secs(10), resolved).await.unwrap().unwrap().clone();

    let mut front = Vec::new();
    for name in &desired.dataplane.interfaces {
        front.push(network::interface(name).await.unwrap().index);
    }
    let ways_out = next_hops.values().flatten().filter(|hop| !front.contains(&hop.interface));
    let mut others = Vec::new();
    for name in ways_out.map(|hop| hop.interface_name.clone()).collect::<BTreeSet<_>>() {
        others.push(network::interface(&name).await.unwrap());
    }
    prober.listen(&others);
    let own: OwnAddresses = network::own_addresses().await.unwrap();

    let mut image = reconcile::read(&datapath.maps).unwrap();
    let around = Surroundings {
        next_hops: &next_hops,
        own: &own,
        dataplane: &front,
        unheard: prober.unheard(),
    };
    let ways = ways(desired.services.iter(), &around, |identity| index(&image, identity));
    let sources = ways.sources.clone();
    prober.follow(ways).await.unwrap();
    let wanted =
        reconcile::wanted(desired, &next_hops, &Standings::default(), &datapath.seed(), None);
    let writes = reconcile::plan(&image, &wanted, &sources, &()).unwrap();
    reconcile::apply(&writes, &mut datapath.maps, &mut image).unwrap();
    (prober, datapath)
}

fn index(image: &Image, (vip, own): &Identity) -> Option<u16> {
    let backends = image.backends.iter().find(|(_, backend)| {
        image.services[&backend.service].service.key() == vip.key()
            && IpAddr::from(backend.address) == own.ip()
    });
    backends.map(|(index, _)| *index)
}

/// A scene with `web` on the VIP; everything works.
fn probing(plan: Plan, vip: &str, forwarding: &str, family: Family) -> (Scene, Probing, Sluice) {
    probing_with("auto", plan, vip, forwarding, family)
}

/// The same in an XDP mode.
fn probing_with(
    mode: &str,
    plan: Plan,
    vip: &str,
    forwarding: &str,
    family: Family,
) -> (Scene, Probing, Sluice) {
    let mut scene = Scene::start(plan);
    scene.own(vip, forwarding);
    let head = dataplane(&["eth0"]).trim_end().to_owned();
    let service = scene.service("web", vip, forwarding, family);
    let config = format!("{head}\nxdp_mode = \"{mode}\"\n\n{service}");
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let (probing, sluice) = Probing::start(scene.lab.balancer(), &config, sluice);
    (scene, probing, sluice)
}

#[track_caller]
fn assert_all_answer(scene: &Scene, probing: &Probing) {
    // Several of each, in turn: a probe must never reach another backend.
    for _ in 0..10 {
        for name in scene.backends() {
            assert_eq!(probing.ask(name), Ok(name.to_owned()));
        }
    }
}

#[test]
fn probes_reach_each_backend_by_the_forwarding_of_traffic() {
    if !is_privileged() {
        return;
    }
    let cases = [
        (VIP4, "l2", Family::V4),
        (VIP6, "l2", Family::V6),
        (VIP4, "ipip", Family::V4),
        (VIP4, "ipip", Family::V6),
        (VIP6, "ipip", Family::V4),
        (VIP6, "ipip", Family::V6),
    ];
    for (vip, forwarding, family) in cases {
        println!("{vip} by {forwarding} over {family:?}");
        let (scene, probing, _sluice) = probing(Plan::default(), vip, forwarding, family);
        let before = probing.datapath.maps.reason_counts().unwrap();
        assert_all_answer(&scene, &probing);
        let counted = probing.datapath.maps.reason_counts().unwrap();
        let more = |reason: Reason| counted[reason as usize] - before[reason as usize];
        // SYN and ACK, the answer, FIN: of 30 probes.
        assert!(more(Reason::ProbeAnswer) >= 90, "{}", more(Reason::ProbeAnswer));
        assert_eq!(more(Reason::ProbeUndelivered), 0, "the namespace sends nothing by itself");
        // Clients are served beside it.
        assert_eq!(scene.request(vip, 30).failed(), 0);
    }
}

#[test]
fn answers_by_another_interface_are_heard_too() {
    if !is_privileged() {
        return;
    }
    let plan = Plan { second_network: true, ..Plan::default() };
    let (scene, probing, _sluice) = probing(plan, VIP4, "l2", Family::V4);
    assert_all_answer(&scene, &probing);
}

#[test]
fn each_fault_of_a_backend_shows_in_its_probe_alone() {
    if !is_privileged() {
        return;
    }
    let (mut scene, probing, _sluice) = probing(Plan::default(), VIP4, "ipip", Family::V4);
    let vip = address(VIP4).ip();
    assert_all_answer(&scene, &probing);

    scene.agents[0].stop_decapsulating().unwrap();
    scene.agents[1].kill9().unwrap();
    scene.lab.backends()[1].disown_vip(vip).unwrap();
    scene.nginx.remove(2);
    let web_3 = &scene.lab.backends()[2];
    let own = SocketAddr::new(web_3.address(Family::V4), 80);
    let _server = HealthServer::http(web_3, own).unwrap();

    let none = Err(Failure::NoAnswer(PATIENCE));
    assert_eq!(probing.ask("web-1"), none, "it does not unpack");
    assert_eq!(probing.ask("web-2"), none, "it does not own the VIP");
    assert_eq!(probing.ask("web-3"), Err(Failure::Refused), "it listens elsewhere");
    // Asked directly, all are well.
    for host in scene.lab.backends() {
        let own = SocketAddr::new(host.address(Family::V4), 80);
        let direct = scene.lab.balancer().enter(|| fetch(own, "/", Duration::from_secs(5)));
        assert_eq!(direct.unwrap().backend, host.role());
    }
}

#[test]
fn a_large_answer_comes_whole_also_where_segments_are_joined() {
    if !is_privileged() {
        return;
    }
    for mode in ["native", "generic"] {
        let (scene, probing, _sluice) = probing_with(mode, Plan::default(), VIP4, "l2", Family::V4);
        for gro in ["off", "on"] {
            scene.lab.balancer().run("ethtool", &["-K", "eth0", "gro", gro]).unwrap();
            let answer = probing.get("web-1", "/file").unwrap();
            let length = answer.len();
            assert!(answer.ends_with(&Nginx::file()), "{length} bytes, {mode}, GRO {gro}");
        }
    }
}

#[test]
fn a_way_too_narrow_for_the_tunnel_is_told_by_a_full_segment() {
    if !is_privileged() {
        return;
    }
    let (scene, probing, _sluice) = probing(Plan::default(), VIP4, "ipip", Family::V4);
    // Room for a client's 1,500 bytes, but not in a tunnel.
    scene.lab.narrow(&scene.lab.backends()[0], 1500).unwrap();
    assert_eq!(probing.ask("web-1"), Ok("web-1".to_owned()), "small segments pass");
    let kind = CheckKind::Http(HttpCheck::default());
    let check = Arc::new(HealthCheck { kind, ..HealthCheck::default() });
    let targets: Vec<Target> = probing
        .targets
        .values()
        .map(|target| Target { check: check.clone(), fills_segment: true, ..target.clone() })
        .collect();
    let outcome = {
        let _inside = probing.runtime.enter();
        let paths = Paths { vip: Arc::new(probing.path.clone()), backend: Arc::new(Direct) };
        let engine = Engine::start(paths, 100);
        engine.watch(targets.clone(), &BTreeMap::new());
        move |target: &Target| engine.seen(target.id)?.last.map(|probe| probe.outcome)
    };
    for target in &targets {
        let what = format!("a probe of {}", target.backend);
        let outcome = until(&what, DEADLINE, || outcome(target)).unwrap();
        match &*target.backend {
            "web-1" => assert!(matches!(outcome, Err(Failure::PathMtu { .. })), "{outcome:?}"),
            name => assert_eq!(outcome, Ok(()), "{name}"),
        }
    }
}
