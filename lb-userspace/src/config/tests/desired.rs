//! Data plane, services and backends: what is refused, and what becomes of the rest.

use super::*;

#[test]
fn dataplane_errors_name_the_way_out() {
    const NO_INTERFACE: &str = "no interface: name those where clients' frames arrive, as in \
                                `[dataplane]` `interfaces = [\"eth0\"]`";
    assert_refused(&[
        (String::new(), &format!("lb.toml:1:1: {NO_INTERFACE}")),
        ("[dataplane]\nown_vips = true".into(), &format!("lb.toml:1:1: {NO_INTERFACE}")),
        ("\n[dataplane]\ninterfaces = []".into(), &format!("lb.toml:3:14: {NO_INTERFACE}")),
        (
            "[dataplane]\ninterfaces = [\"eth0\", \"a-name-too-long0\"]".into(),
            "lb.toml:2:23: interface \"a-name-too-long0\": a name has 1 to 15 characters, without \
             blanks, `/` and `:`; see `ip link`",
        ),
        (
            "[dataplane]\ninterfaces = [\n\"eth0\",\n\"eth0\"]".into(),
            "lb.toml:4:1: interface \"eth0\" is already on line 3: name it once",
        ),
        (
            dataplane("xdp_mode = \"fast\""),
            "lb.toml:3:12: `xdp_mode = \"fast\"`: it is one of \"auto\", \"native\", \"generic\"",
        ),
        (
            dataplane("flow_capacity = 1023"),
            "lb.toml:3:17: `flow_capacity = 1023`: it goes from 1024 to 268435456",
        ),
        (
            dataplane("flow_capacity = 268_435_457"),
            "lb.toml:3:17: `flow_capacity = 268435457`: it goes from 1024 to 268435456",
        ),
        (
            dataplane("flow_capacity = -1"),
            "lb.toml:3:17: `flow_capacity = -1`: it goes from 1024 to 268435456",
        ),
        (
            dataplane("hash_seed = \"\""),
            "lb.toml:3:13: `hash_seed` has 0 bytes: it is a text of 1 to 256; leave it out and \
             one is made",
        ),
        (
            dataplane("tunnel_source = [\"10.255.0.0\"]"),
            "lb.toml:3:18: `tunnel_source` \"10.255.0.0\": write a prefix, as \"10.255.0.0/16\" or \
             \"fd00:255::/64\"",
        ),
        (
            dataplane("tunnel_source = [\"10.255.0.1/16\"]"),
            "lb.toml:3:18: `tunnel_source` \"10.255.0.1/16\" has bits beyond its length: write \
             \"10.255.0.0/16\"",
        ),
        (
            dataplane("tunnel_source = [\"224.0.0.0/4\"]"),
            "lb.toml:3:18: tunnel_source 224.0.0.0 is a multicast address: TCP needs the address \
             of one host",
        ),
        (
            dataplane("tunnel_source = [\"10.0.0.0/8\", \"fd00::/64\", \"fd01::/64\"]"),
            "lb.toml:3:45: `tunnel_source` has a second IPv6 prefix: at most one of each family",
        ),
        (
            "[dataplane]\ninterfaces = [\"eth0\"]\n[http]\nlisten = \"localhost:9180\"".into(),
            "lb.toml:4:10: `listen = \"localhost:9180\"`: write an address and a port, as \
             \"127.0.0.1:9180\", or \"off\"",
        ),
    ]);
}

#[test]
fn service_errors_name_the_way_out() {
    const TOP: &str = "[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\n";
    let vip = |vip: &str| format!("{TOP}name = \"web\"\nvip = \"{vip}\"");
    let second = |name: &str, vip: &str| {
        service(&format!("[[service]]\nname = \"{name}\"\nvip = \"{vip}\""))
    };
    assert_refused(&[
        (
            format!("{TOP}vip = \"203.0.113.10:80\""),
            "lb.toml:3:1: this [[service]] has no `name`: add `name = \"web\"`",
        ),
        (
            format!("{TOP}name = \"web\""),
            "lb.toml:3:1: service \"web\" has no `vip`: add `vip = \"203.0.113.10:80\"`",
        ),
        (
            format!("{TOP}name = \"w/b\""),
            "lb.toml:4:8: service name \"w/b\": use 1 to 63 of A-Z a-z 0-9 . _ -",
        ),
        (
            second("web", "203.0.113.11:80"),
            "lb.toml:7:8: service \"web\" is already on line 4: give each service a name of its own",
        ),
        (
            second("api", "203.0.113.10:80"),
            "lb.toml:8:7: VIP 203.0.113.10:80 is already on line 5: give each service a port or \
             an address of its own",
        ),
        (
            vip("203.0.113.10"),
            "lb.toml:5:7: `vip = \"203.0.113.10\"`: write an address and a port, as \
             \"203.0.113.10:80\" or \"[2001:db8::10]:443\", or `*` for any port; names are not \
             looked up",
        ),
        (
            vip("203.0.113.10:0"),
            "lb.toml:5:7: `vip = \"203.0.113.10:0\"`: clients can't connect to port 0; name the \
             port they use, or `*` for any",
        ),
        (
            vip("0.0.0.0:80"),
            "lb.toml:5:7: VIP 0.0.0.0 is no host's address: write out the one that clients or \
             frames go to",
        ),
        (
            vip("[::]:80"),
            "lb.toml:5:7: VIP :: is no host's address: write out the one that clients or frames \
             go to",
        ),
        (
            vip("127.0.0.1:80"),
            "lb.toml:5:7: VIP 127.0.0.1 is a loopback address, which never leaves its host: give \
             one that others reach",
        ),
        (
            vip("[::1]:80"),
            "lb.toml:5:7: VIP ::1 is a loopback address, which never leaves its host: give one \
             that others reach",
        ),
        (
            vip("[ff02::1]:80"),
            "lb.toml:5:7: VIP ff02::1 is a multicast address: TCP needs the address of one host",
        ),
        (
            vip("255.255.255.255:80"),
            "lb.toml:5:7: VIP 255.255.255.255 is the broadcast address: TCP needs the address of \
             one host",
        ),
        (
            vip("[fe80::1%2]:80"),
            "lb.toml:5:7: VIP fe80::1 is link-local, which means something else on every link: \
             give a global or a unique local (fd00::/8) address",
        ),
        (
            vip("[::ffff:203.0.113.10]:80"),
            "lb.toml:5:7: VIP ::ffff:203.0.113.10 is an IPv4 address written as IPv6: write \
             203.0.113.10",
        ),
        (
            service("forwarding = \"dsr\""),
            "lb.toml:6:14: `forwarding = \"dsr\"`: it is one of \"l2\", \"ipip\", \"nat\"",
        ),
        (
            service("affinity = \"cookie\""),
            "lb.toml:6:12: `affinity = \"cookie\"`: it is one of \"none\", \"source-ip\"",
        ),
        (
            service("icmp_echo = \"never\""),
            "lb.toml:6:13: `icmp_echo = \"never\"`: it is one of \"always\", \"healthy\"",
        ),
        (service("mss_clamp = 535"), "lb.toml:6:13: `mss_clamp = 535`: it goes from 536 to 65535"),
        (
            service("slots = 65_536"),
            "lb.toml:6:9: `slots = 65536` is not a prime: the next one is 65537",
        ),
        (service("slots = 1_048_574"), "lb.toml:6:9: `slots = 1048574`: it goes from 2 to 1048573"),
        (
            service(
                "slots = 2\nbackend = [{ name = \"a\", address = \"10.0.0.1\" }, \
                 { name = \"b\", address = \"10.0.0.2\" }, { name = \"c\", address = \"10.0.0.3\" }]",
            ),
            "lb.toml:6:9: service \"web\" has 3 backends in 2 slots: 100 slots a backend keep the \
             shares even, so set `slots = 307`",
        ),
        (
            service("drain_deadline = \"5\""),
            "lb.toml:6:18: `drain_deadline = \"5\"`: a duration has a number and a unit, as in \
             \"5m\"",
        ),
        (
            service("drain_deadline = \"1year\""),
            "lb.toml:6:18: `drain_deadline = \"1year\"`: it goes from 0s to 30days",
        ),
        (
            service("panic_threshold = 50"),
            "lb.toml:6:19: `panic_threshold = 50`: it is a share, from 0 to 1",
        ),
        (
            service("panic_threshold = nan"),
            "lb.toml:6:19: `panic_threshold = NaN`: it is a share, from 0 to 1",
        ),
        (
            service("panic_threshold = \"half\""),
            "lb.toml:6:19: invalid type: string \"half\", expected a number, in \
             `service.panic_threshold`",
        ),
        (
            service("slow_start = \"2h\""),
            "lb.toml:6:14: `slow_start = \"2h\"`: it goes from 0s to 1h",
        ),
        (
            service("outlier = \"kill\""),
            "lb.toml:6:11: `outlier = \"kill\"`: it is one of \"off\", \"report\", \"eject\"",
        ),
    ]);
}

#[test]
fn backend_errors_name_the_way_out() {
    let pair = |second: &str| {
        service(&format!("backend = [{{ name = \"a\", address = \"10.0.0.1\" }},\n{{ {second} }}]"))
    };
    assert_refused(&[
        (
            backend("address = \"10.0.0.1\""),
            "lb.toml:6:12: a backend of service \"web\" has no `name`: add `name = \"web-1\"`",
        ),
        (
            backend("name = \"a\""),
            "lb.toml:6:12: backend \"a\" has no `address`: add `address = \"10.0.0.11\"`",
        ),
        (
            backend("name = \"\", address = \"10.0.0.1\""),
            "lb.toml:6:21: backend name \"\": use 1 to 63 of A-Z a-z 0-9 . _ -",
        ),
        (
            pair("name = \"a\", address = \"10.0.0.2\""),
            "lb.toml:7:10: backend \"a\" of service \"web\" is already on line 6: give each a name \
             of its own",
        ),
        (
            pair("name = \"b\", address = \"10.0.0.1\", port = 80"),
            "lb.toml:7:25: a backend at 10.0.0.1 port 80 is already on line 6: give one server one \
             entry and its weight",
        ),
        (
            backend("name = \"a\", address = \"10.0.0.1:80\""),
            "lb.toml:6:36: `address = \"10.0.0.1:80\"`: write an IP address, as \"10.0.0.11\" or \
             \"2001:db8::11\"; names are not looked up, and the port has a field of its own",
        ),
        (
            backend("name = \"a\", address = \"127.0.0.2\""),
            "lb.toml:6:36: backend address 127.0.0.2 is a loopback address, which never leaves its \
             host: give one that others reach",
        ),
        (
            backend("name = \"a\", address = \"203.0.113.10\""),
            "lb.toml:6:36: backend address 203.0.113.10 is the VIP of line 5: give the server's \
             own address",
        ),
        (
            backend("name = \"a\", address = \"2001:db8::1\""),
            "lb.toml:6:36: backend \"a\" is IPv6, but the VIP 203.0.113.10:80 is IPv4: l2 keeps \
             the packet as it is; give it an IPv4 address, or use `forwarding = \"ipip\"`",
        ),
        (
            backend("name = \"a\", address = \"10.0.0.1\", port = 8080"),
            "lb.toml:6:55: backend \"a\" has port 8080, but the VIP's is 80: l2 keeps the packet's \
             port; leave `port` out and let the server listen on 80, or use `forwarding = \"nat\"`",
        ),
        (
            backend("name = \"a\", address = \"10.0.0.1\", port = 65536"),
            "lb.toml:6:55: `port = 65536`: it goes from 1 to 65535",
        ),
        (
            backend("name = \"a\", address = \"10.0.0.1\", weight = 1001"),
            "lb.toml:6:57: `weight = 1001`: it goes from 0 to 1000",
        ),
    ]);
}

#[test]
fn more_than_the_maps_hold_is_refused() {
    let mut text = dataplane("");
    for n in 0..=4096 {
        let (high, low) = (n / 256, n % 256);
        text += &format!("[[service]]\nname = \"s{n}\"\nvip = \"10.1.{high}.{low}:80\"\n");
    }
    assert_eq!(
        message(&text),
        "lb.toml:12291:1: this is service number 4097: one instance has at most 4096; use a \
         second one (`--instance`)"
    );

    let mut text = service("backend = [\n");
    for n in 0..65_536 {
        let (high, low) = (n / 256, n % 256);
        text += &format!("{{ name = \"b{n}\", address = \"10.1.{high}.{low}\" }},\n");
    }
    text += "]";
    let text = text.replacen("backend", "slots = 104_729\nbackend", 1);
    assert_eq!(
        message(&text),
        "lb.toml:65543:1: this is backend number 65536: one instance has at most 65535; use a \
         second one (`--instance`)"
    );
}

#[test]
fn what_is_left_out_gets_its_default() {
    let text = service("backend = [{ name = \"b\", address = \"10.0.0.2\" }]");
    let desired = parse(&text, "lb.toml").expect("a valid file");
    assert_eq!(desired.http, Some("127.0.0.1:9180".parse().expect("an address")));
    assert_eq!(desired.dataplane.xdp_mode, XdpMode::Auto);
    assert_eq!(desired.dataplane.flow_capacity, 1 << 20);
    assert_eq!(desired.dataplane.hash_seed, None);
    assert!(desired.dataplane.own_vips);
    assert!(desired.dataplane.tunnel_sources.is_empty());
    assert_eq!(desired.dataplane.nat_ports, PortRange::NAT);
    let web = &desired.services[0];
    assert_eq!(web.forwarding.name(), "l2");
    assert_eq!(web.client_address, ClientAddress::default());
    assert_eq!(web.affinity.name(), "none");
    assert_eq!(web.slots, 65_537);
    assert_eq!(web.drain_deadline.as_secs(), 300);
    assert_eq!(web.health, Some(HealthCheck::default()));
    assert_eq!(HealthCheck::default().via, Via::Vip);
    assert!(web.reset_unreachable);
    assert!((web.panic_threshold - 0.5).abs() < f64::EPSILON);
    assert_eq!((web.slow_start.as_secs(), web.outlier.name()), (0, "report"));
    assert_eq!((web.backends[0].port, web.backends[0].weight), (80, 100));
}

#[test]
fn services_and_backends_are_sorted_and_capacity_rounded_up() {
    let text = "[dataplane]\ninterfaces = [\"eth1\", \"eth0\"]\nflow_capacity = 100_000\n\
                [http]\nlisten = \"off\"\n\
                [[service]]\nname = \"z\"\nvip = \"203.0.113.10:80\"\n\
                [[service.backend]]\nname = \"y\"\naddress = \"10.0.0.1\"\n\
                [[service.backend]]\nname = \"x\"\naddress = \"10.0.0.2\"\n\
                [[service]]\nname = \"a\"\nvip = \"[2001:DB8:0::10]:80\"\nforwarding = \"ipip\"\n\
                backend = [{ name = \"m\", address = \"10.0.0.1\" }]\n";
    let desired = parse(text, "lb.toml").expect("a valid file");
    assert_eq!(desired.http, None);
    assert_eq!(desired.dataplane.flow_capacity, 131_072);
    assert_eq!(desired.dataplane.interfaces, ["eth1", "eth0"]);
    let services: Vec<_> = desired.services.iter().map(|s| (s.name.as_str(), s.vip)).collect();
    let vip = |text: &str| text.parse().expect("an address");
    assert_eq!(services, [("a", vip("[2001:db8::10]:80")), ("z", vip("203.0.113.10:80"))]);
    let backends: Vec<_> = desired.services[1].backends.iter().map(|b| &b.name).collect();
    assert_eq!(backends, ["x", "y"]);
}
