//! Start, stop, crash, adopt, detach: what forwarding owes to the daemon, and what is left of it.

use std::{
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use sluice_tests::lab::{
    Conversations, DEADLINE, EchoServer, Family, Host, Nginx, Plan, Process, Program, Stopped,
    dataplane, fetch, is_privileged, until,
};

use crate::scene::{Scene, VIP4, VIP6, address, assert_flawless};

#[test]
fn a_restart_under_load_breaks_no_connection() {
    survives_under_load(VIP4, "l2", Family::V4, true);
}

#[test]
fn a_restart_under_load_breaks_no_tunnelled_connection() {
    survives_under_load(VIP6, "ipip", Family::V4, true);
}

#[test]
fn kill_9_under_load_breaks_no_connection() {
    survives_under_load(VIP4, "l2", Family::V4, false);
}

#[test]
fn kill_9_under_load_breaks_no_tunnelled_connection() {
    survives_under_load(VIP6, "ipip", Family::V6, false);
}

/// Long connections that live through it.
const CONVERSATIONS: u64 = 100;

fn survives_under_load(vip: &str, forwarding: &str, backends: Family, gently: bool) {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    scene.own(vip, forwarding);
    let echo = SocketAddr::new(address(vip).ip(), 7);
    let config = dataplane(&["eth0"])
        + &scene.service("web", vip, forwarding, backends)
        + &scene.service("echo", &echo.to_string(), forwarding, backends);
    let mut sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    let _echo = scene.lab.backends().iter().map(|host| EchoServer::start(host, 7).unwrap());
    let _echo = _echo.collect::<Vec<_>>();
    let client = scene.lab.client();
    let program =
        || scene.lab.balancer().xdp("eth0").unwrap().expect("XDP on eth0")["prog"]["id"].clone();
    let before = program();
    let load = scene.load(vip);
    let conversations = Conversations::start(client, echo, CONVERSATIONS).unwrap();
    // A few seconds long: it begins before the daemon goes and ends after it is back.
    thread::scope(|scope| {
        let download =
            scope.spawn(|| client.enter(|| fetch(address(vip), "/slow", Duration::from_secs(30))));
        load.run_for_requests(200, Duration::from_secs(20)).unwrap();

        if gently {
            assert!(matches!(sluice.stop().unwrap(), Stopped::Exited(status) if status.success()));
        } else {
            sluice.kill9().unwrap();
        }
        assert!(!download.is_finished(), "the download was too short to tell anything");
        load.run_for_requests(500, Duration::from_secs(20)).unwrap();
        assert_eq!(program(), before, "without a daemon");

        sluice.start().unwrap();
        load.run_for_requests(500, Duration::from_secs(20)).unwrap();
        assert_eq!(program(), before, "adopted, not attached anew");
        let download = download.join().unwrap().unwrap();
        assert!(download.body == Nginx::file(), "the download came changed");
    });
    conversations.run_for_messages(200).unwrap();
    let report = conversations.stop();
    assert_eq!(report.broken, [""; 0], "of {CONVERSATIONS}");
    let tally = load.stop();
    assert_flawless(&scene, &tally);
    assert_eq!(tally.answers[vip].keys().collect::<Vec<_>>(), scene.backends());

    // What was counted before is still counted, and adopted flows are not new.
    let status = sluice.status().unwrap();
    let services = status["services"].as_array().unwrap().iter();
    let backends = services.flat_map(|service| service["backends"].as_array().unwrap());
    let flows = backends.map(|backend| backend["new_flows_total"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(flows, tally.requests + CONVERSATIONS + 1, "and the download");
}

#[test]
fn a_wrong_configuration_leaves_what_runs_as_it_is() {
    if !is_privileged() {
        return;
    }
    let (scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    sluice.stop().unwrap();
    for wrong in ["[dataplane]\ninterfaces = [\"eth7\"]\n", "what?\n", ""] {
        sluice.configure(wrong).unwrap();
        assert!(sluice.start().is_err(), "{wrong:?}");
        assert_flawless(&scene, &scene.request(VIP4, 60));
    }
}

#[test]
fn a_service_that_is_gone_from_the_configuration_is_gone_after_the_restart() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, "l2");
    scene.own(VIP6, "l2");
    let four = dataplane(&["eth0"]) + &scene.service("four", VIP4, "l2", Family::V4);
    let both = four.clone() + &scene.service("six", VIP6, "l2", Family::V6);
    let mut sluice = scene.lab.balancer().run_sluice(&both).unwrap();
    assert_flawless(&scene, &scene.request(VIP6, 30));
    sluice.configure(&four).unwrap();
    sluice.restart().unwrap();
    assert_flawless(&scene, &scene.request(VIP4, 30));
    assert_eq!(scene.attempt(VIP6, 4).failed(), 4);
    // Its address stays while connections may end in peace.
    until("the VIP to go with its last flow", 6 * DEADLINE, || {
        let owned = scene.lab.balancer().addresses("lo").unwrap();
        (!owned.contains(&address(VIP6).ip())).then_some(())
    })
    .unwrap();
    assert_eq!(sluice.status().unwrap()["services"].as_array().unwrap().len(), 1);

    sluice.configure(&both).unwrap();
    sluice.restart().unwrap();
    assert_flawless(&scene, &scene.request(VIP6, 30));
}

#[test]
fn a_start_that_is_killed_half_way_can_be_repeated() {
    if !is_privileged() {
        return;
    }
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, "l2");
    let balancer = scene.lab.balancer();
    let path = scene.lab.directory().join("killed.toml");
    let config = dataplane(&["eth0"]) + &scene.service("web", VIP4, "l2", Family::V4);
    fs::write(&path, &config).unwrap();
    // How long a start takes on this machine today; then kills all along the way.
    let started = Instant::now();
    drop(balancer.run_sluice(&config).unwrap());
    let whole = started.elapsed();
    for part in 1..=16 {
        let mut command = balancer.sluice().unwrap();
        command.arg("run").arg("--config").arg(&path);
        let log = scene.lab.directory().join("killed.log");
        let mut process = Process::start("sluice run", command, &log).unwrap();
        // The moment is what is varied here; there is nothing to wait for.
        thread::sleep(whole * part / 16);
        assert!(process.is_running(), "{part}/16 of {whole:?}:\n{}", process.log());
        process.kill9().unwrap();
    }
    let _sluice = balancer.run_sluice(&config).unwrap();
    assert_flawless(&scene, &scene.request(VIP4, 60));
}

#[test]
fn a_program_of_somebody_else_is_left_alone() {
    if !is_privileged() {
        return;
    }
    let scene = Scene::start(Plan { backends: 0, ..Plan::default() });
    let balancer = scene.lab.balancer();
    let _foreign = Program::pass().unwrap().attach(balancer.namespace(), "eth0").unwrap();
    let before = balancer.xdp("eth0").unwrap();
    let refused = balancer.run_sluice(&dataplane(&["eth0"])).unwrap_err();
    assert!(format!("{refused:#}").contains("eth0"), "{refused:#}");
    assert_eq!(balancer.xdp("eth0").unwrap(), before);
    let pins = std::path::Path::new("/sys/fs/bpf/sluice").join(balancer.name());
    assert!(!pins.exists(), "{}", pins.display());
}

#[test]
fn an_interface_that_lost_the_program_gets_it_again() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    assert_eq!(sluice.cli_ok(&["check-ready"]).unwrap(), "ready\n");
    // The link's pin gone, the kernel takes the program off.
    fs::remove_file(sluice.pins().join("links/eth0")).unwrap();
    until("the program to be back", DEADLINE, || {
        let status = sluice.status().unwrap();
        let is_back = sluice.pins().join("links/eth0").exists() && status["ready"] == true;
        is_back.then_some(())
    })
    .unwrap();
    let events = sluice.cli_ok(&["events", "--since", "1m"]).unwrap();
    assert!(events.contains("eth0 ran no program: attached"), "{events}");
    assert_flawless(&scene, &scene.request(VIP4, 60));
}

#[test]
fn a_second_daemon_of_the_same_instance_is_refused() {
    if !is_privileged() {
        return;
    }
    let (scene, mut sluice) = Scene::forwarding(Plan::default(), VIP4, "l2", Family::V4);
    let config = scene.lab.directory().join("second.toml");
    fs::write(&config, dataplane(&["eth0"])).unwrap();
    let second = sluice.cli(&["run", "--config", config.to_str().unwrap()]).unwrap();
    let complaint = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains(scene.lab.balancer().name()), "{complaint}");
    assert!(sluice.is_running());
    assert_flawless(&scene, &scene.request(VIP4, 60));
}

#[test]
fn detach_leaves_nothing_behind() {
    if !is_privileged() {
        return;
    }
    for stopped in [true, false] {
        let scene = Scene::start(Plan { backends: 1, ..Plan::default() });
        let balancer = scene.lab.balancer();
        let before = trace(balancer);
        let config = dataplane(&["eth0"])
            + &scene.service("four", VIP4, "l2", Family::V4)
            + &scene.service("six", VIP6, "ipip", Family::V4);
        let mut sluice = balancer.run_sluice(&config).unwrap();
        let owned = balancer.addresses("lo").unwrap();
        assert!([VIP4, VIP6].iter().all(|vip| owned.contains(&address(vip).ip())), "{owned:?}");
        assert!(balancer.xdp("eth0").unwrap().is_some());
        assert!(sluice.pins().exists());

        if stopped {
            sluice.stop().unwrap();
            assert!(balancer.xdp("eth0").unwrap().is_some(), "only detach takes it off");
        }
        sluice.cli_ok(&["detach"]).unwrap();
        assert_eq!(trace(balancer), before, "daemon stopped first: {stopped}");
        assert!(!sluice.pins().exists(), "{}", sluice.pins().display());
        assert!(!sluice.state().join("state.json").exists(), "what was said at run time");
    }
}

#[test]
fn detach_takes_an_instance_off_whose_maps_it_does_not_know() {
    if !is_privileged() {
        return;
    }
    let scene = Scene::start(Plan { backends: 1, ..Plan::default() });
    let balancer = scene.lab.balancer();
    let before = trace(balancer);
    let config = dataplane(&["eth0"]) + &scene.service("four", VIP4, "l2", Family::V4);
    let mut sluice = balancer.run_sluice(&config).unwrap();
    sluice.stop().unwrap();
    // As if an older build had made it: what stands for backends is none of ours.
    let maps = sluice.pins().join("maps");
    fs::remove_file(maps.join("BACKENDS")).unwrap();
    fs::hard_link(maps.join("VIPS"), maps.join("BACKENDS")).unwrap();
    sluice.cli_ok(&["detach"]).unwrap();
    assert_eq!(trace(balancer), before);
    assert!(!sluice.pins().exists(), "{}", sluice.pins().display());
}

#[test]
fn detach_keeps_an_address_that_was_there_before() {
    if !is_privileged() {
        return;
    }
    let scene = Scene::start(Plan { backends: 1, ..Plan::default() });
    let balancer = scene.lab.balancer();
    balancer.ip("address add 203.0.113.10/32 dev lo").unwrap();
    let before = trace(balancer);
    let config = dataplane(&["eth0"])
        + &scene.service("four", VIP4, "l2", Family::V4)
        + &scene.service("six", VIP6, "l2", Family::V6);
    let mut sluice = balancer.run_sluice(&config).unwrap();
    sluice.restart().unwrap();
    sluice.stop().unwrap();
    sluice.cli_ok(&["detach"]).unwrap();
    assert_eq!(trace(balancer), before);
}

#[test]
fn vips_stay_off_loopback_when_told_so() {
    if !is_privileged() {
        return;
    }
    let scene = Scene::start(Plan { backends: 1, ..Plan::default() });
    let config = dataplane(&["eth0"]).trim_end().to_owned()
        + "\nown_vips = false\n"
        + &scene.service("web", VIP4, "l2", Family::V4);
    scene.lab.backends()[0].own_vip_quietly(address(VIP4).ip()).unwrap();
    let _sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    assert!(!scene.lab.balancer().addresses("lo").unwrap().contains(&address(VIP4).ip()));
    assert_flawless(&scene, &scene.request(VIP4, 30));
}

/// What an instance could leave on a machine.
fn trace(host: &Host) -> (Vec<std::net::IpAddr>, bool) {
    (host.addresses("lo").unwrap(), host.xdp("eth0").unwrap().is_some())
}
