//! A VIP of any port, with real clients and servers.

use std::time::Duration;

use serde_json::Value;
use sluice_tests::lab::{
    DEADLINE, EchoServer, Family, Host, Lab, Nginx, Plan, Sluice, StreamPlan, StreamServer,
    Streams, dataplane, is_privileged, until,
};

use crate::{drain::backend, scene::address};

/// Where the long connections are.
const STREAMS: u16 = 7;

struct Ground {
    sluice: Sluice,
    _servers: (Vec<Nginx>, Vec<StreamServer>),
    lab: Lab,
    /// The VIP's address, as it is written before a port.
    vip: &'static str,
    family: Family,
}

impl Ground {
    /// Service `any` on `web-1` and `web-2`, checked through the VIP; `own`, of port 443, on
    /// `web-3`.
    fn prepare(vip: &'static str) -> Self {
        let lab = Lab::start(Plan::default()).unwrap();
        let ip = address(&format!("{vip}:1")).ip();
        let family = Family::of(ip);
        let hosts = lab.backends();
        hosts.iter().for_each(|host| host.own_vip_quietly(ip).unwrap());
        let nginx = hosts.iter().map(|host| Nginx::start(host, &[80, 81, 443]).unwrap()).collect();
        let streams =
            hosts.iter().map(|host| StreamServer::start(host, STREAMS).unwrap()).collect();
        let member = |host: &Host| {
            format!("{{ name = {:?}, address = \"{}\" }}", host.role(), host.address(family))
        };
        let config = format!(
            "{}[[service]]\nname = \"any\"\nvip = \"{vip}:*\"\n\
             health = {{ port = 80, interval = \"200ms\", timeout = \"200ms\" }}\n\
             backend = [{}, {}]\n\
             [[service]]\nname = \"own\"\nvip = \"{vip}:443\"\nhealth = {{ check = \"none\" }}\n\
             backend = [{}]\n",
            dataplane(&["eth0"]),
            member(&hosts[0]),
            member(&hosts[1]),
            member(&hosts[2]),
        );
        let sluice = lab.balancer().run_sluice(&config).unwrap();
        let ground = Self { sluice, _servers: (nginx, streams), lab, vip, family };
        until("both backends to be healthy", DEADLINE, || {
            let health = |name| ground.backend("any", name)["health"] == "healthy";
            (health("web-1") && health("web-2")).then_some(())
        })
        .unwrap();
        ground
    }

    fn backend(&self, service: &str, name: &str) -> Value {
        backend(&self.sluice, service, name)
    }

    /// Who answers at a port, by curl.
    fn curl(&self, port: u16) -> anyhow::Result<String> {
        let url = format!("http://{}:{port}/", self.vip);
        let answer = self.lab.client().run("curl", &["-gsS", "--max-time", "5", &url])?;
        Ok(answer.trim().to_owned())
    }

    fn streams(&self, count: u64) -> Streams {
        let address = address(&format!("{}:{STREAMS}", self.vip));
        let plan = StreamPlan { address, count, pace: Duration::from_millis(100) };
        let streams = Streams::open(self.lab.client(), plan).unwrap();
        streams.advance(2, DEADLINE);
        assert!(streams.broken().is_empty(), "{:?}", streams.broken());
        streams
    }

    /// The services of the flows at [`STREAMS`], as `sluice flows` tells them.
    fn flows_of(&self, service: &str) -> usize {
        let flows = self.sluice.json(&["flows", "--service", service]).unwrap();
        let vip = Value::from(format!("{}:{STREAMS}", self.vip));
        flows["flows"].as_array().unwrap().iter().filter(|flow| flow["vip"] == vip).count()
    }
}

#[test]
fn every_port_of_an_ipv4_address_is_forwarded() {
    every_port("203.0.113.10");
}

#[test]
fn every_port_of_an_ipv6_address_is_forwarded() {
    every_port("[2001:db8:f00d::10]");
}

fn every_port(vip: &'static str) {
    if !is_privileged() {
        return;
    }
    let ground = Ground::prepare(vip);
    let sluice = &ground.sluice;
    for _ in 0..10 {
        for port in [80, 81] {
            let answer = ground.curl(port).unwrap();
            assert!(["web-1", "web-2"].contains(&&*answer), "port {port}: {answer}");
        }
        assert_eq!(ground.curl(443).unwrap(), "web-3");
    }
    // Nobody listens there: the backend itself says so, at once.
    let closed = ground.curl(9).unwrap_err().to_string();
    assert!(closed.contains("exit status: 7"), "{closed}");

    // It is called what it was written as, wherever it is shown.
    let any = format!("{vip}:*");
    let status = sluice.status().unwrap();
    assert_eq!(status["services"][0]["vip"], any.as_str());
    assert_eq!(status["problems"], Value::Array(Vec::new()));
    for arguments in [&["service", "list"][..], &["status"], &["export"]] {
        let text = sluice.cli_ok(arguments).unwrap();
        assert!(text.contains(&any) && !text.contains(":0\""), "{arguments:?}: {text}");
    }
    let client = format!("{}:40000", client(&ground));
    for (port, service) in [(81, "any"), (443, "own")] {
        let told = sluice.json(&["explain", &client, &format!("{vip}:{port}")]).unwrap();
        assert_eq!(told["daemon"]["service"], service, "{told}");
    }

    // A port that gets a service of its own keeps its flows, and gives them up to nobody.
    let streams = ground.streams(20);
    assert_eq!((ground.flows_of("any"), ground.flows_of("own")), (20, 0));
    let seven = format!("{vip}:{STREAMS}");
    sluice.cli_ok(&["service", "add", "seven", &seven, "--check", "none"]).unwrap();
    let web_3 = ground.lab.backends()[2].address(ground.family).to_string();
    sluice.cli_ok(&["backend", "add", "seven", "web-3", &web_3]).unwrap();
    let newer = ground.streams(5);
    assert_eq!(newer.per_backend().into_keys().collect::<Vec<_>>(), ["web-3"]);
    streams.advance(2, DEADLINE);
    assert_eq!(streams.broken().len(), 0);
    assert_eq!((ground.flows_of("any"), ground.flows_of("seven")), (20, 5));
    // And the other way round.
    sluice.cli_ok(&["service", "remove", "seven"]).unwrap();
    let newest = ground.streams(5);
    assert!(!newest.per_backend().contains_key("web-3"), "{:?}", newest.per_backend());
    for streams in [&streams, &newer] {
        streams.advance(2, DEADLINE);
        assert_eq!(streams.broken().len(), 0);
    }
    let closed = [newer.close(), newest.close()];
    assert!(closed.iter().all(Vec::is_empty), "{closed:?}");

    // A drain takes its flows at every port with it: to its deadline, then they are reset.
    let of_web_1 = streams.per_backend()["web-1"];
    assert!((1..20).contains(&of_web_1), "{:?}", streams.per_backend());
    let drain = ["backend", "drain", "any", "web-1", "--deadline", "1s", "--wait"];
    let output = sluice.cli(&drain).unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(ground.backend("any", "web-1")["admin"], "drained");
    for port in [80, 81] {
        assert_eq!(ground.curl(port).unwrap(), "web-2");
    }
    streams.advance(2, DEADLINE);
    let broken = streams.close();
    assert!(broken.iter().all(|stream| stream.backend == "web-1"), "{broken:?}");
    assert_eq!(broken.len() as u64, of_web_1, "{broken:?}");
}

fn client(ground: &Ground) -> String {
    let address = ground.lab.client().address(ground.family);
    if address.is_ipv4() { address.to_string() } else { format!("[{address}]") }
}

#[test]
fn it_survives_a_restart_and_an_upgrade() {
    if !is_privileged() {
        return;
    }
    let mut ground = Ground::prepare("203.0.113.10");
    let streams = ground.streams(10);
    let before = ground.sluice.cli_ok(&["export"]).unwrap();
    ground.sluice.kill9().unwrap();
    ground.sluice.start().unwrap();
    assert_eq!(ground.sluice.cli_ok(&["export"]).unwrap(), before);
    ground.sluice.cli_ok(&["upgrade"]).unwrap();
    streams.advance(2, DEADLINE);
    assert_eq!(ground.flows_of("any"), 10);
    assert_eq!(streams.close().len(), 0);
    assert_eq!(ground.sluice.status().unwrap()["problems"], Value::Array(Vec::new()));
}

#[test]
fn the_hosts_own_address_is_not_taken() {
    if !is_privileged() {
        return;
    }
    let ground = Ground::prepare("203.0.113.10");
    let balancer = ground.lab.balancer();
    let _ssh = EchoServer::start(balancer, 22).unwrap();
    let own = balancer.address(Family::V4);
    let add = ["service", "add", "all", &format!("{own}:*"), "--check", "none"];
    let output = ground.sluice.cli(&add).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(says.contains("this host's own address on eth0"), "{says}");

    // One that is put there afterwards is a trouble.
    balancer.ip("address add 203.0.113.10/32 dev eth0").unwrap();
    until("the trouble to be told", 3 * DEADLINE, || {
        let problems = ground.sluice.status().unwrap()["problems"].to_string();
        problems.contains("this host's own address on eth0").then_some(())
    })
    .unwrap();
}
