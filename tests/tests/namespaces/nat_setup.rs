//! What NAT needs of the balancer's host: ports of its own, and addresses.

use std::{fs, net::IpAddr};

use sluice_tests::lab::{
    DEADLINE, Family, Lab, Plan, dataplane, is_privileged, service_with, until,
};

use crate::{
    scene::{VIP4, VIP6, address},
    wrong_input::refused,
};

const PORTS: &str = "net.ipv4.ip_local_port_range";

fn nat(lab: &Lab, name: &str, vip: &str, lines: &str) -> String {
    let vip = address(vip);
    let lines = format!("health = {{ check = \"none\" }}\n{lines}\n");
    service_with(name, vip, "nat", lab.backends(), Family::of(vip.ip()), &lines)
}

#[test]
fn nat_begins_only_with_ports_of_its_own() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 2, ..Plan::default() }).unwrap();
    let balancer = lab.balancer();
    balancer.sysctl(PORTS, "20000 60999").unwrap();
    let with_nat = dataplane(&["eth0"]) + &nat(&lab, "web", VIP4, "");
    let path = lab.directory().join("nat.toml");
    fs::write(&path, &with_nat).unwrap();
    let file = path.to_str().unwrap();

    let named = ["nat_ports 1024-32767", "20000-60999", "\"32768 65535\"", "\"1024-19999\""];
    let mut command = balancer.sluice().unwrap();
    refused(
        "run",
        balancer,
        {
            command.args(["run", "--config", file]);
            command
        },
        1,
        &named,
    );
    let checked = balancer.sluice().unwrap().args(["check", file]).output().unwrap();
    let text = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && text.contains("warning: nat_ports 1024-32767"), "{text}");

    // Who keeps its clients' addresses needs no port.
    let kept = nat(&lab, "kept", VIP6, "nat = { client_address = \"keep\" }");
    let mut sluice = balancer.run_sluice(&(dataplane(&["eth0"]) + &kept)).unwrap();
    let add = ["service", "add", "more", "203.0.113.11:80", "--forwarding", "nat"];
    for arguments in [&["apply", file][..], &add] {
        let output = sluice.cli(arguments).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(named.iter().all(|part| error.contains(part)), "{arguments:?}: {error}");
    }
    let plan = sluice.json(&["plan", file]).unwrap();
    assert!(plan["refused"].as_str().is_some_and(|why| why.contains("20000-60999")), "{plan}");
    assert_eq!(sluice.status().unwrap()["services"].as_array().unwrap().len(), 1);

    balancer.sysctl(PORTS, "32768 60999").unwrap();
    sluice.cli_ok(&["apply", file]).unwrap();
    let ports = with_nat.replace("[[service]]", "nat_ports = \"2000-3000\"\n[[service]]");
    fs::write(&path, ports).unwrap();
    let warned = sluice.json(&["apply", file]).unwrap()["warnings"].to_string();
    assert!(warned.contains("nat_ports stays 1024-32767 until `sluice detach`"), "{warned}");

    // Where it has begun, it goes on, and says so.
    fs::write(&path, &with_nat).unwrap();
    sluice.cli_ok(&["apply", file]).unwrap();
    balancer.sysctl(PORTS, "20000 60999").unwrap();
    sluice.cli_ok(&["backend", "drain", "web", "web-1"]).unwrap();
    sluice.restart().unwrap();
    let problems = sluice.status().unwrap()["problems"].to_string();
    assert!(problems.contains("nat_ports 1024-32767"), "{problems}");
    let report = sluice.cli(&["doctor"]).unwrap();
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(report.contains("overlap"), "{report}");
}

#[test]
fn named_nat_addresses_come_and_go_as_vips_do() {
    if !is_privileged() {
        return;
    }
    let lab = Lab::start(Plan { backends: 1, ..Plan::default() }).unwrap();
    let balancer = lab.balancer();
    let [four, six]: [IpAddr; 2] =
        ["198.18.77.5", "2001:db8:77::5"].map(|text| text.parse().unwrap());
    let config = |four: &str, six: &str| {
        dataplane(&["eth0"]) + &nat(&lab, "four", VIP4, four) + &nat(&lab, "six", VIP6, six)
    };
    let named = [four, six].map(|address| format!("nat_addresses = [\"{address}\"]"));
    let mut sluice = balancer.run_sluice(&config(&named[0], &named[1])).unwrap();
    let has = |interface: &str, address: IpAddr| {
        balancer.addresses(interface).unwrap().contains(&address)
    };
    assert!(has("lo", four) && has("lo", six) && has("eth0", six));

    balancer.ip(&format!("address delete {four}/32 dev lo")).unwrap();
    until("the address to come back", DEADLINE, || has("lo", four).then_some(())).unwrap();
    sluice.reconfigure(&config("", &named[1])).unwrap();
    until("the address to go", DEADLINE, || (!has("lo", four)).then_some(())).unwrap();
    assert!(has("lo", address(VIP4).ip()) && has("eth0", six));

    // An address that an operator put there is not ours to take off.
    balancer.ip(&format!("address add {four}/32 dev lo")).unwrap();
    sluice.reconfigure(&config(&named[0], "")).unwrap();
    until("the address to go", DEADLINE, || (!has("lo", six) && !has("eth0", six)).then_some(()))
        .unwrap();
    sluice.reconfigure(&config("", "")).unwrap();
    sluice.restart().unwrap();
    assert!(has("lo", four));
}
