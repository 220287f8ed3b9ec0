//! The five broken laboratories of `docs/troubleshooting.md`: `sluice status` names each cause, and
//! what it says to do next shows it, or mends it.

use std::{net::Ipv4Addr, time::Duration};

use serde_json::Value;
use sluice_tests::lab::{
    DEADLINE, Family, Plan, RawSocket, Sluice, dataplane, is_privileged, until,
};

use crate::{
    doctor::wrong,
    health::{check, until_well},
    scene::{ACK, SYN, Scene, VIP4, address, segment},
};

/// `web` on three backends, whose probes are well.
fn well(forwarding: &str) -> (Scene, Sluice) {
    let mut scene = Scene::start(Plan::default());
    scene.own(VIP4, forwarding);
    let lines = check(r#"check = "http""#);
    let config = dataplane(&["eth0"]) + &scene.service_with("web", VIP4, forwarding, &lines);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    until_well(&sluice, "web");
    (scene, sluice)
}

/// What `sluice status` says when it says all of these; in JSON there is a trouble of this kind.
#[track_caller]
fn until_status(sluice: &Sluice, kind: &str, parts: &[&str]) -> String {
    let text = || sluice.cli_ok(&["status"]).unwrap();
    let found = until(&format!("status to say {parts:?}"), 2 * DEADLINE, || {
        let text = text();
        parts.iter().all(|part| text.contains(part)).then_some(text)
    });
    let found = found.unwrap_or_else(|error| panic!("{error:#}:\n{}", text()));
    let status = sluice.status().unwrap();
    let mut troubles = status["troubles"].as_array().unwrap().iter();
    assert!(troubles.any(|trouble| trouble["kind"] == kind), "no {kind}: {status}");
    println!("{found}");
    found
}

/// A command between backticks that a text names.
#[track_caller]
fn named(text: &str, beginning: &str) -> Vec<String> {
    let mut commands = text.split('`').skip(1).step_by(2);
    let command = commands.find(|command| command.starts_with(beginning));
    let command = command.unwrap_or_else(|| panic!("no `{beginning} …` in:\n{text}"));
    command.split(' ').skip(1).map(str::to_owned).collect()
}

/// Runs a `sluice` command that a text names.
fn run_named(sluice: &Sluice, text: &str, beginning: &str, json: bool) -> Value {
    let mut arguments = named(text, beginning);
    println!("$ sluice {}", arguments.join(" "));
    let plain: Vec<&str> = arguments.iter().map(String::as_str).collect();
    println!("{}", sluice.cli_ok(&plain).unwrap());
    arguments.extend(json.then(|| "--json".to_owned()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    serde_json::from_str(&sluice.cli_ok(&arguments).unwrap()).unwrap()
}

#[test]
fn a_backend_without_the_vip() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = well("l2");
    let vip = address(VIP4).ip();
    let backend = &scene.lab.backends()[1];
    backend.disown_vip(vip).unwrap();
    let says = [
        "FAULT   backend web/web-2 is unreachable: no answer to SYN",
        "-> 198.18.1.12 is up, but takes no frames for 203.0.113.10: the VIP is missing on its \
         loopback interface: run `sluice agent run --interface IF --vip 203.0.113.10` there",
    ];
    let text = until_status(&sluice, "backend_down", &says);
    assert_eq!(named(&text, "sluice agent")[..2], ["agent", "run"]);
    let _agent = backend.run_agent(&[vip], &[]).unwrap();
    until_well(&sluice, "web");
}

/// The same silence, by way of a tunnel, has a step for each cause.
#[test]
fn a_tunnel_that_leads_nowhere() {
    if !is_privileged() {
        return;
    }
    let (mut scene, sluice) = well("ipip");
    scene.agents[1].stop_decapsulating().unwrap();
    let says = [
        "FAULT   backend web/web-2 is unreachable: no answer to SYN",
        "\n        -> 198.18.1.12 is up, but takes no frames for 203.0.113.10: look at `sluice agent \
         status` there first\n",
        "\n        -> nobody unpacks the tunnel, or 203.0.113.10 is not there: `sluice agent run \
         --interface IF --vip 203.0.113.10`\n",
        "\n        -> it runs, and no frame comes: a firewall drops the tunnel, let IP protocol 4 pass\n",
        "\n        -> a tunnel device of the kernel unpacks: set its rp_filter to 0\n",
    ];
    let text = until_status(&sluice, "backend_down", &says);
    assert_eq!(named(&text, "sluice agent")[..], ["agent", "status"]);
    let _agent = scene.lab.backends()[1].run_agent(&[address(VIP4).ip()], &[]).unwrap();
    until_well(&sluice, "web");
}

#[test]
fn a_wrong_mac() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = well("l2");
    let balancer = scene.lab.balancer();
    balancer
        .ip("neigh replace 198.18.1.12 lladdr 02:00:00:00:00:99 nud permanent dev eth0")
        .unwrap();
    let says = [
        "FAULT   backend web/web-2 is unreachable: no answer to SYN",
        "-> its MAC 02:00:00:00:00:99 was set by hand (`ip neigh show 198.18.1.12`)",
    ];
    let text = until_status(&sluice, "backend_down", &says);
    let show = named(&text, "ip neigh show");
    let show: Vec<&str> = show.iter().map(String::as_str).collect();
    let shown = balancer.run("ip", &show).unwrap();
    println!("{shown}");
    assert!(shown.contains("02:00:00:00:00:99 PERMANENT"), "{shown}");
    balancer.ip(&named(&text, "ip neigh del").join(" ")).unwrap();
    until_well(&sluice, "web");
}

#[test]
fn an_mtu_too_small() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = well("ipip");
    let backend = &scene.lab.backends()[1];
    // Room for a client's 1,500 bytes, but not in a tunnel.
    scene.lab.narrow(backend, 1500).unwrap();
    let says = [
        "FAULT   backend web/web-2 is unhealthy: ",
        "-> raise the MTU on the whole way to 198.18.1.12 to 1520 or more\n",
        "-> or, if 1500 bytes get there, lower the MSS of the service to 1440, on its backends: `nft '",
    ];
    let text = until_status(&sluice, "backend_down", &says);
    let doctor = wrong(&sluice, "backend web/web-2");
    assert_eq!(doctor.matches("full-size").count(), 1, "{doctor}");
    // Pasted as it is.
    let lower = format!("nft {}", named(&text, "nft").join(" "));
    backend.run("sh", &["-c", &lower]).unwrap();
    until_well(&sluice, "web");
    backend.run("nft", &["delete", "table", "ip", "sluice"]).unwrap();
    until_status(&sluice, "backend_down", &says);
    scene.lab.narrow(backend, 1600).unwrap();
    until_well(&sluice, "web");

    // The same at home: who sends too much is told, clients and probes, and it goes on.
    scene.lab.balancer().ip("link set eth0 mtu 1500").unwrap();
    let says = [
        "NOTICE  service web reaches web-1 by too narrow a route",
        "the MTU towards it is 1500, a client's packet of 1500 bytes in its tunnel has 1520",
        "-> raise the MTU of eth0 (and of the route) to 1520\n",
        "-> or lower the MSS of the service to 1440, on its backends: `nft '",
    ];
    until_status(&sluice, "narrow_route", &says);
    let doctor = sluice.cli_ok(&["doctor"]).unwrap();
    println!("{doctor}");
    assert!(doctor.contains("-> raise the MTU of eth0 (and of the route) to 1520"), "{doctor}");
    let client = scene.lab.client().address(Family::V4);
    let told = sluice.cli_ok(&["explain", &format!("{client}:40001"), VIP4]).unwrap();
    println!("{told}");
    assert!(told.contains("packets of up to 1,480 bytes fit into the tunnel"), "{told}");
}

/// Many times the entries that the table has.
const CAPACITY: u32 = 1024;

/// `web`, and `api` whose VIP spoofed clients send these to.
fn flooded(flags: &[u8]) -> (Scene, Sluice) {
    let mut scene = Scene::start(Plan::default());
    let vip = "203.0.113.10:81";
    scene.own(VIP4, "l2");
    let config = dataplane(&["eth0"]).trim_end().to_owned()
        + &format!("\nflow_capacity = {CAPACITY}\n")
        + &scene.service_with("web", VIP4, "l2", &check(r#"check = "tcp""#))
        + &scene.service("api", vip, "l2", Family::V4);
    let sluice = scene.lab.balancer().run_sluice(&config).unwrap();
    until_well(&sluice, "web");
    let client = scene.lab.client();
    let socket = RawSocket::open(client.namespace(), "eth0", Duration::from_secs(1)).unwrap();
    let macs = [scene.lab.balancer(), client].map(|host| host.interfaces()[0].mac());
    for spoofed in 0..4 * CAPACITY {
        for flag in flags {
            // TEST-NET-2, whose answers go nowhere.
            let [.., port, host] = spoofed.to_be_bytes();
            let from = (Ipv4Addr::new(198, 51, 100, host), 1024 + u16::from(port));
            let segment = segment(macs.as_flattened(), from, address(vip).port(), *flag);
            socket.send(&segment).unwrap();
        }
    }
    (scene, sluice)
}

/// All flows that a count tells of are at this service.
#[track_caller]
fn assert_all_at(count: &Value, service: &str) {
    let shares = count["by_backend"].as_array().unwrap();
    assert!(
        !shares.is_empty() && shares.iter().all(|share| share["service"] == service),
        "{count}"
    );
}

/// All flows that a count tells of are of these clients; who is in the table for other reasons
/// comes behind them.
#[track_caller]
fn assert_all_from(count: &Value, prefix: &str) {
    let clients = count["by_client"].as_array().unwrap();
    assert_eq!(clients[0]["clients"], prefix, "{count}");
    assert_eq!(clients[0]["flows"], count["matching"], "{count}");
    assert_eq!((clients.len() as u64, &count["client_prefixes"]), (1, &1.into()), "{count}");
}

/// Nobody is called ill for handshakes that can't be seen: in many looks, nor in any before.
#[track_caller]
fn assert_nobody_accused(sluice: &Sluice) {
    let probes = |status: &Value| status["probes"]["total"].as_u64().unwrap();
    let before = probes(&sluice.status().unwrap());
    // The daemon reads its counters as often as each of the three backends is probed.
    until("ten rounds of probes", DEADLINE, || {
        let status = sluice.status().unwrap();
        let mut troubles = status["troubles"].as_array().unwrap().iter();
        assert!(troubles.all(|trouble| trouble["kind"] != "backend_suspect"), "{status}");
        (probes(&status) >= before + 3 * 10).then_some(())
    })
    .unwrap();
    let events = sluice.cli_ok(&["events"]).unwrap();
    assert!(!events.contains("not answered"), "{events}");
}

#[test]
fn a_flood() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = flooded(&[SYN]);
    let says = [
        "\n\nFAULT   ",
        " flows are SYNs that nobody has followed up, a flood or clients who get no answer; the \
         flow table is ",
        "-> `sluice flows --count --state embryonic` shows at whom they aim, and from where",
    ];
    let text = until_status(&sluice, "flood", &says);
    let count = run_named(&sluice, &text, "sluice flows --count", true);
    assert_all_at(&count, "api");
    assert_all_from(&count, "198.51.100.0/24");
    assert_eq!(scene.request(VIP4, 100).failed(), 0, "clients are served meanwhile");
    assert_nobody_accused(&sluice);
}

#[test]
fn an_exhausted_table() {
    if !is_privileged() {
        return;
    }
    let (scene, sluice) = flooded(&[SYN, ACK]);
    let says = [
        "\n\nFAULT   the flow table is ",
        " % full; new connections still work, but those that find no place break when backends \
         change\n",
        "\n        -> `sluice flows --count` shows whose they are, by backend and by client: have abuse \
         filtered\n        -> shorten the idle_timeout of services",
        "\n        -> if all are wanted, set `flow_capacity = 2048` and start anew: `sluice detach` stops \
         forwarding and breaks connections",
        "; overflow (no place: untracked, nat refused): ",
    ];
    let text = until_status(&sluice, "flow_table", &says);
    let doctor = sluice.cli_ok(&["doctor"]).unwrap();
    println!("{doctor}");
    let about = doctor.lines().find(|line| line.starts_with("instance ")).unwrap();
    assert!(about.contains(" doubt  the flow table is "), "{doctor}");
    let count = run_named(&sluice, &text, "sluice flows --count", true);
    assert_all_at(&count, "api");
    assert_all_from(&count, "198.51.100.0/24");
    // Their handshakes are completed, and few of them are seen.
    assert_eq!(scene.request(VIP4, 100).failed(), 0, "clients are served meanwhile");
    assert_nobody_accused(&sluice);
}
