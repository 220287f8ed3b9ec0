//! What is done to the balancer and to its backends while translated connections live: none
//! breaks but those that are to be cut, and these are told on both sides.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, Shutdown, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use serde_json::Value;
use sluice_tests::lab::{
    DEADLINE, Family, Lab, Load, LoadPlan, Plan, Sluice, StreamPlan, StreamServer, Streams, builds,
    dataplane, is_privileged, service, until,
};

use super::{TALK, TALK_VIP, UNCHECKED, WEB, nat};
use crate::{
    drain::backend,
    scene::{Scene, VIP4, address, target},
};

/// Long connections.
const COUNT: u64 = 60;

/// Long connections to `talk`, and new ones to `web`. Dropped in this order.
struct Busy {
    streams: Streams,
    load: Load,
    _servers: Vec<StreamServer>,
    sluice: Sluice,
    scene: Scene,
}

impl Busy {
    fn start() -> Self {
        let scene = Scene::serving(Plan::default(), &[WEB]);
        let servers = scene.lab.backends().iter().map(|host| StreamServer::start(host, TALK));
        let servers = servers.collect::<Result<_, _>>().unwrap();
        let soon = format!("{UNCHECKED}idle_timeout = {{ closing = \"1s\" }}\n");
        let config = dataplane(&["eth0"])
            + &nat(&scene.lab, "talk", (TALK_VIP, TALK), &soon)
            + &nat(&scene.lab, "web", (VIP4, WEB), &soon);
        let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
        let pace = Duration::from_millis(100);
        let plan = StreamPlan { address: address(TALK_VIP), count: COUNT, pace };
        let client = scene.lab.client();
        let streams = Streams::open(client, plan).unwrap();
        let load = Load::start(client, LoadPlan::on([target(VIP4)])).unwrap();
        let busy = Self { streams, load, _servers: servers, sluice, scene };
        busy.go_on();
        assert_eq!(busy.streams.per_backend().len(), 3);
        busy
    }

    /// Both kinds show that they live.
    fn go_on(&self) {
        self.streams.advance(3, DEADLINE);
        self.load.run_for_requests(50, 3 * DEADLINE).unwrap();
    }

    /// Nothing has failed; gives back the machines.
    #[track_caller]
    fn end_unbroken(self) -> (Sluice, Scene) {
        let broken = self.streams.close();
        assert!(broken.is_empty(), "{broken:?}");
        let tally = self.load.stop();
        let reasons = || self.sluice.cli_ok(&["reasons"]).unwrap();
        assert_eq!(tally.failed(), 0, "of {}:\n{}\n{}", tally.requests, tally.causes(), reasons());
        (self.sluice, self.scene)
    }
}

#[test]
fn nothing_breaks_when_the_daemon_is_killed_and_another_adopts() {
    if !is_privileged() {
        return;
    }
    let mut busy = Busy::start();
    busy.sluice.kill9().unwrap();
    busy.go_on();
    busy.sluice.start().unwrap();
    busy.go_on();
    busy.sluice.restart().unwrap();
    busy.go_on();
    // It knows the mappings that were there before it.
    super::until_ports_used(&busy.sluice, COUNT);
    busy.end_unbroken();
}

#[test]
fn nothing_breaks_when_another_program_takes_over() {
    if !is_privileged() {
        return;
    }
    let busy = Busy::start();
    let balancer = busy.scene.lab.balancer();
    let newer = builds::same_program(&busy.scene.lab.directory(), 1).unwrap();
    let mut command = balancer.command(&newer);
    command.args(["--instance", balancer.name(), "upgrade", "--watch", "1", "--json"]);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["result"], "upgraded", "{report}");
    busy.go_on();
    let report = busy.sluice.json(&["upgrade", "--watch", "1"]).unwrap();
    assert_eq!(report["result"], "upgraded", "{report}");
    busy.go_on();
    busy.end_unbroken();
}

#[test]
fn a_drain_ends_with_its_flows_and_the_proof_says_so() {
    if !is_privileged() {
        return;
    }
    let busy = Busy::start();
    let drain = ["backend", "drain", "--all-services", "web-2"];
    let of_web_2 = busy.streams.per_backend()["web-2"];
    busy.sluice.cli_ok(&drain).unwrap();
    busy.go_on();
    let drained = backend(&busy.sluice, "talk", "web-2");
    assert_eq!(drained["admin"], "draining", "{drained}");
    assert_eq!(drained["active_flows"], of_web_2, "{drained}");
    let (sluice, _scene) = busy.end_unbroken();
    let proof = sluice.json(&[&drain[..], &["--wait"]].concat()).unwrap();
    let parts = proof["backends"].as_array().unwrap();
    let talk = parts.iter().find(|part| part["service"] == "talk").unwrap();
    assert_eq!(talk["flows_at_start"], of_web_2, "{proof}");
    assert_eq!((&proof["flows_cut"], &proof["new_flows_since_drain"]), (&0.into(), &0.into()));
    assert_eq!(backend(&sluice, "talk", "web-2")["admin"], "drained");
}

#[test]
fn what_is_removed_goes_with_its_last_flow() {
    if !is_privileged() {
        return;
    }
    let busy = Busy::start();
    busy.sluice.cli_ok(&["backend", "remove", "--all-services", "web-2"]).unwrap();
    busy.go_on();
    let leaving = backend(&busy.sluice, "talk", "web-2");
    assert_eq!(leaving["leaving"], true, "{leaving}");
    let (sluice, scene) = busy.end_unbroken();
    // Its ports wait for late packets for 60 s, and so long it is remembered.
    until("it to be gone", Duration::from_secs(90), || {
        let is_gone = |service| backend(&sluice, service, "web-2").is_null();
        (is_gone("talk") && is_gone("web")).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}", sluice.status().unwrap()));
    // Its index goes to another, or to itself once more.
    let address = scene.lab.backends()[1].address(Family::V4).to_string();
    let port = WEB.to_string();
    sluice.cli_ok(&["backend", "add", "web", "web-2", &address, "--port", &port]).unwrap();
    until("it to serve again", DEADLINE, || {
        let tally = scene.request(VIP4, 30);
        assert_eq!(tally.failed(), 0, "{}", tally.causes());
        tally.per_backend().contains_key("web-2").then_some(())
    })
    .unwrap();
}

/// Both ends of a connection to the only backend.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    listener: TcpListener,
}

impl Pair {
    fn new(lab: &Lab, listener: Option<TcpListener>) -> Self {
        Self::connect(lab, TALK_VIP, listener)
    }

    fn at(lab: &Lab, vip: &str) -> Self {
        Self::connect(lab, vip, None)
    }

    fn connect(lab: &Lab, vip: &str, listener: Option<TcpListener>) -> Self {
        let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, TALK)).unwrap();
        let listener = listener.unwrap_or_else(|| lab.backends()[0].enter(bind));
        let client = lab.client().enter(|| TcpStream::connect(address(vip)).unwrap());
        let (server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
        }
        let mut pair = Self { client, server, listener };
        pair.talk();
        pair
    }

    fn talk(&mut self) {
        for (from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            let (mut from, mut to) = (from, to);
            from.write_all(b"word").unwrap();
            let mut heard = [0; 4];
            to.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"word");
        }
    }

    /// Whoever speaks is told.
    fn assert_both_are_reset(&mut self) {
        for (who, stream) in [("client", &mut self.client), ("backend", &mut self.server)] {
            // It is told before it speaks if it was busy with what it had sent already.
            let _ = stream.write_all(b"word");
            let told = stream.read(&mut [0; 4]);
            let told = told.map_err(|error| error.kind());
            assert_eq!(told, Err(ErrorKind::ConnectionReset), "the {who}");
        }
    }
}

/// `talk` on one backend.
fn talk(lines: &str) -> (Lab, Sluice) {
    let lab = Lab::start(Plan { backends: 1, ..Plan::default() }).unwrap();
    let lines = format!("{UNCHECKED}{lines}");
    let config = dataplane(&["eth0"]) + &nat(&lab, "talk", (TALK_VIP, TALK), &lines);
    let sluice = lab.balancer().run_sluice(&config).unwrap();
    (lab, sluice)
}

#[test]
fn a_method_that_would_end_connections_is_taken_up_only_by_force() {
    if !is_privileged() {
        return;
    }
    let vip = format!("203.0.113.10:{TALK}");
    let lab = Lab::start(Plan { backends: 1, ..Plan::default() }).unwrap();
    let config = |forwarding| {
        dataplane(&["eth0"])
            + &service("talk", address(&vip), forwarding, lab.backends(), Family::V4)
    };
    lab.backends()[0].own_vip_quietly(address(&vip).ip()).unwrap();
    let sluice = lab.balancer().run_sluice(&config("nat")).unwrap();
    let mut pair = Pair::at(&lab, &vip);
    let file = lab.directory().join("l2.toml").display().to_string();
    fs::write(&file, config("l2")).unwrap();

    super::until_ports_used(&sluice, 1);
    let plan = sluice.json(&["plan", &file]).unwrap();
    assert_eq!(plan["flows"]["flows_cut"], 1, "{plan}");
    let why = "forwarding nat -> l2 of service \"talk\" would reset its 1 flows";
    assert!(plan["refused"].as_str().unwrap().contains(why), "{plan}");
    let refused = sluice.cli(&["apply", &file]).unwrap();
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains(why), "{complaint}");
    pair.talk();

    sluice.cli_ok(&["apply", &file, "--force"]).unwrap();
    // The backend knows nobody of the client's own address.
    let _ = pair.client.write_all(b"word");
    let told = pair.client.read(&mut [0; 4]).map_err(|error| error.kind());
    assert_eq!(told, Err(ErrorKind::ConnectionReset));
}

#[test]
fn who_is_cut_at_the_deadline_is_told_on_both_sides() {
    if !is_privileged() {
        return;
    }
    let (lab, sluice) = talk("");
    let mut pair = Pair::new(&lab, None);
    let drain = ["backend", "drain", "talk", "web-1", "--force", "--deadline", "1s", "--wait"];
    let output = sluice.cli(&[&drain[..], &["--json"]].concat()).unwrap();
    let proof: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{proof}");
    assert_eq!((&proof["flows_at_start"], &proof["flows_cut"]), (&1.into(), &1.into()));
    pair.assert_both_are_reset();
}

#[test]
fn a_disabled_backends_connections_are_reset_and_it_can_come_back() {
    if !is_privileged() {
        return;
    }
    let (lab, sluice) = talk("");
    let mut pair = Pair::new(&lab, None);
    sluice.cli_ok(&["backend", "disable", "talk", "web-1", "--force"]).unwrap();
    pair.assert_both_are_reset();
    sluice.cli_ok(&["backend", "enable", "talk", "web-1"]).unwrap();
    Pair::new(&lab, Some(pair.listener));
}

#[test]
fn half_a_connection_can_be_closed_and_the_other_lives() {
    if !is_privileged() {
        return;
    }
    // Longer than what is kept of a closing connection that is silent.
    let (lab, sluice) = talk("idle_timeout = { closing = \"2s\" }\n");
    let mut listener = None;
    for client_ends in [true, false] {
        let mut pair = Pair::new(&lab, listener);
        let Pair { client, server, .. } = &mut pair;
        let (ended, lives) = if client_ends { (client, server) } else { (server, client) };
        ended.shutdown(Shutdown::Write).unwrap();
        assert_eq!(lives.read(&mut [0; 4]).unwrap(), 0);
        // Said over a time, because of the time-out; there is nothing to wait for.
        for number in 0..8_u64 {
            thread::sleep(Duration::from_millis(500));
            lives.write_all(&number.to_be_bytes()).unwrap();
            let mut heard = [0; 8];
            ended.read_exact(&mut heard).unwrap();
            assert_eq!(u64::from_be_bytes(heard), number);
        }
        lives.shutdown(Shutdown::Write).unwrap();
        assert_eq!(ended.read(&mut [0; 4]).unwrap(), 0);
        listener = Some(pair.listener);
    }
    let reasons = sluice.json(&["reasons"]).unwrap();
    let reasons = reasons["reasons"].as_array().unwrap().iter();
    let bad = reasons.filter(|it| it["name"].as_str().unwrap().starts_with("nat_"));
    for it in bad {
        assert_eq!(it["count"], 0, "{it}");
    }
}
