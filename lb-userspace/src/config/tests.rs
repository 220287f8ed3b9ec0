use proptest::prelude::*;

use super::*;
use crate::model::{
    CheckKind, ClientAddress, HealthCheck, HttpCheck, PortRange, StatusRange, Via, XdpMode,
};

mod nat;

pub(super) const EXAMPLE: &str = include_str!("../../../sluice.example.toml");

/// A file whose one service has these lines beside its name, VIP and mode.
fn service(lines: &str) -> String {
    format!(
        "[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
         vip = \"203.0.113.10:80\"\n{lines}"
    )
}

/// A file whose one service has this one backend, on line 6.
fn backend(fields: &str) -> String {
    service(&format!("backend = [{{ {fields} }}]"))
}

/// A file with these lines in its `[dataplane]`, from line 3 on.
fn dataplane(lines: &str) -> String {
    format!("[dataplane]\ninterfaces = [\"eth0\"]\n{lines}")
}

fn message(text: &str) -> String {
    match parse(text, "lb.toml") {
        Ok(desired) => panic!("accepted:\n{text}\n{desired:#?}"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn assert_refused(cases: &[(String, &str)]) {
    for (text, expected) in cases {
        assert_eq!(message(text), *expected, "\n{text}");
    }
}

#[test]
fn toml_errors_name_the_line_and_the_field() {
    assert_refused(&[
        ("[dataplane\n".into(), "lb.toml:1:11: unclosed table, expected `]`"),
        (
            dataplane("interface = [\"eth1\"]"),
            "lb.toml:3:1: unknown field `interface`, expected one of `interfaces`, `xdp_mode`, \
             `flow_capacity`, `hash_seed`, `own_vips`, `tunnel_source`, `nat_ports`, in \
             `dataplane`",
        ),
        (
            "[[services]]\nname = \"web\"".into(),
            "lb.toml:1:3: unknown field `services`, expected one of `dataplane`, `http`, \
             `service`",
        ),
        (
            backend("name = \"a\", address = \"10.0.0.1\", wight = 3"),
            "lb.toml:6:48: unknown field `wight`, expected one of `name`, `address`, `port`, \
             `weight`, `backup`, in `service.backend`",
        ),
        (
            service("health = { check = \"tcp\", every = \"1s\" }"),
            "lb.toml:6:27: unknown field `every`, expected one of `check`, `via`, `port`, `method`, \
             `path`, `host`, `headers`, `status`, `body`, `service`, `tls`, `server_name`, `verify`, \
             `ca_file`, `interval`, `timeout`, `rise`, `fall`, in `service.health`",
        ),
        (
            service("slots = \"many\""),
            "lb.toml:6:9: invalid type: string \"many\", expected a whole number, in \
             `service.slots`",
        ),
        (
            dataplane("flow_capacity = 1e6"),
            "lb.toml:3:17: invalid type: floating point `1000000.0`, expected a whole number, in \
             `dataplane.flow_capacity`",
        ),
        (service("slots ="), "lb.toml:6:8: a value is missing: write one, or leave the field out"),
        (
            service("affinity = none"),
            "lb.toml:6:12: `none` is neither a number nor true or false: a text needs quotes, as \
             \"none\"",
        ),
        (
            backend("name = \"a\", address = 10.0.0.1, weight = 3"),
            "lb.toml:6:36: `10.0.0.1` is neither a number nor true or false: a text needs quotes, \
             as \"10.0.0.1\"",
        ),
        (dataplane("own_vips = true\nown_vips = false"), "lb.toml:4:1: duplicate key"),
    ]);
}

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
             \"203.0.113.10:80\" or \"[2001:db8::10]:443\"; names are not looked up",
        ),
        (
            vip("203.0.113.10:0"),
            "lb.toml:5:7: `vip = \"203.0.113.10:0\"`: clients can't connect to port 0; name the \
             port they use",
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
fn health_errors_name_the_way_out() {
    let health = |fields: &str| service(&format!("health = {{ {fields} }}"));
    assert_refused(&[
        (
            health("check = \"icmp\""),
            "lb.toml:6:20: `check = \"icmp\"`: it is one of \"tcp\", \"http\", \"https\", \"grpc\", \
             \"none\"",
        ),
        (
            health("via = \"route\""),
            "lb.toml:6:18: `via = \"route\"`: it is one of \"vip\", \"backend\"",
        ),
        (
            health("port = 8080"),
            "lb.toml:6:19: `port` can't be asked through the VIP, of which only its own port is \
             forwarded: add `via = \"backend\"`, or leave `port` out",
        ),
        (
            health("via = \"backend\", port = 0"),
            "lb.toml:6:36: `port = 0`: it goes from 1 to 65535",
        ),
        (
            health("path = \"/healthz\""),
            "lb.toml:6:19: `path` is for `check = \"http\"` or \"https\", but this check is \
             \"tcp\": leave one of them out",
        ),
        (
            health("check = \"none\", via = \"vip\""),
            "lb.toml:6:34: `via` is for checks that ask, but this check is \"none\": leave one of \
             them out",
        ),
        (
            health("check = \"none\", fall = 2"),
            "lb.toml:6:35: `fall` is for checks that ask, but this check is \"none\": leave one of \
             them out",
        ),
        (
            health("check = \"grpc\", status = 200"),
            "lb.toml:6:37: `status` is for `check = \"http\"` or \"https\", but this check is \
             \"grpc\": leave one of them out",
        ),
        (
            health("check = \"http\", service = \"shop\""),
            "lb.toml:6:38: `service` is for `check = \"grpc\"`, but this check is \"http\": leave \
             one of them out",
        ),
        (
            health("check = \"http\", verify = false"),
            "lb.toml:6:37: `verify` is for `check = \"https\"` or \"grpc\", but this check is \
             \"http\": leave one of them out",
        ),
        (
            health("check = \"http\", tls = true"),
            "lb.toml:6:34: `tls` is for `check = \"grpc\"`: with HTTP, use `check = \"https\"`",
        ),
        (
            health("check = \"grpc\", ca_file = \"/ca.pem\""),
            "lb.toml:6:38: `ca_file` is about TLS, which this check does not speak: add \
             `tls = true`",
        ),
        (
            health("check = \"https\", verify = false, ca_file = \"/ca.pem\""),
            "lb.toml:6:55: `ca_file` has no use with `verify = false`: leave one of them out",
        ),
        (
            health("check = \"https\", ca_file = \"ca.pem\""),
            "lb.toml:6:39: `ca_file = \"ca.pem\"`: write the whole path, from `/` on",
        ),
        (
            health("check = \"https\", server_name = \"web.example:443\""),
            "lb.toml:6:43: `server_name = \"web.example:443\"`: write a host's name, as \
             \"web.example\", or an IP address; no port",
        ),
        (
            health("check = \"http\", method = \"get\""),
            "lb.toml:6:37: `method = \"get\"`: it is one of \"GET\", \"HEAD\", \"OPTIONS\"",
        ),
        (
            health("check = \"http\", method = \"HEAD\", body = \"ok\""),
            "lb.toml:6:52: no answer to `method = \"HEAD\"` has a body: use \"GET\", or leave \
             `body` out",
        ),
        (
            health("check = \"http\", body = \"\""),
            "lb.toml:6:35: `body` has 0 bytes: it is a text of 1 to 65536",
        ),
        (
            health("check = \"http\", host = \"a b\""),
            "lb.toml:6:35: `host = \"a b\"`: write a host's name, with a port if need be, as \
             \"web.example\"",
        ),
        (
            health("check = \"http\", status = \"2xx\""),
            "lb.toml:6:37: `status` \"2xx\": write codes from 100 to 599, as 204 or \"200-399\", or \
             a list of these",
        ),
        (
            health("check = \"http\", status = [200, \"399-200\"]"),
            "lb.toml:6:37: `status` \"399-200\": write codes from 100 to 599, as 204 or \
             \"200-399\", or a list of these",
        ),
        (
            health("check = \"http\", status = []"),
            "lb.toml:6:37: `status` \"\": write codes from 100 to 599, as 204 or \"200-399\", or a \
             list of these",
        ),
        (
            health("check = \"http\", status = true"),
            "lb.toml:6:37: invalid type: boolean `true`, expected a status code, a range as \
             \"200-399\", or a list of these, in `service.health.status`",
        ),
        (
            health("check = \"http\", headers = { Host = \"web\" }"),
            "lb.toml:6:40: header \"Host\" = \"web\": use the field `host`",
        ),
        (
            health("check = \"http\", headers = { \"X Y\" = \"z\" }"),
            "lb.toml:6:40: header \"X Y\" = \"z\": a name has letters, digits and -",
        ),
        (
            health("check = \"http\", headers = { Content-Length = \"5\" }"),
            "lb.toml:6:40: header \"Content-Length\" = \"5\": the probe says this itself; leave it \
             out",
        ),
        (
            health("check = \"http\", headers = { X-A = \"1\", x-a = \"2\" }"),
            "lb.toml:6:51: header \"x-a\" = \"2\": this name is there twice, for case makes no \
             difference; join the values",
        ),
        (
            health("check = \"http\", headers = { X-A = \"1\\r\\nX-B: 2\" }"),
            "lb.toml:6:40: header \"X-A\" = \"1\\r\\nX-B: 2\": a value has at most 1024 ASCII \
             characters, no blanks around them",
        ),
        (
            health("check = \"http\", path = \"healthz\""),
            "lb.toml:6:35: `path = \"healthz\"`: a path begins with `/` and has at most 1024 ASCII \
             characters, no blanks; write others as %20",
        ),
        (
            health("interval = \"10ms\""),
            "lb.toml:6:23: `interval = \"10ms\"`: it goes from 100ms to 1h",
        ),
        (
            health("timeout = \"3s\""),
            "lb.toml:6:22: `timeout` 3s is longer than `interval` 2s: a probe must end before the \
             next one; shorten it or lengthen `interval`",
        ),
        (health("rise = 0"), "lb.toml:6:19: `rise = 0`: it goes from 1 to 100"),
        (health("fall = 101"), "lb.toml:6:19: `fall = 101`: it goes from 1 to 100"),
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
fn columns_count_characters_and_crlf_is_a_line_end() {
    assert_eq!(
        message("[dataplane]\r\nhash_seed = \"ää\" \r\ninterfaces = [\"ää\", \"b c\"]\r\n"),
        "lb.toml:3:15: interface \"ää\": a name has 1 to 15 characters, without blanks, `/` and \
         `:`; see `ip link`"
    );
    assert!(message("[dataplane]\ninterfaces = [\"ä").starts_with("lb.toml:2:17: "));
}

#[test]
fn a_file_that_can_not_be_read_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("lb.toml");
    let chain = |error: Error| format!("{:#}", anyhow::Error::from(error));

    let error = load(&path).expect_err("there is no such file");
    assert_eq!(
        chain(error),
        format!("read {}: No such file or directory (os error 2)", path.display())
    );

    std::fs::write(&path, b"[dataplane]\n# \xff").expect("a write");
    let error = load(&path).expect_err("that is no text");
    assert_eq!(
        chain(error),
        format!("{}:2:3: not UTF-8: save the file as UTF-8 text", path.display())
    );

    let endless = load(Path::new("/dev/zero")).expect_err("that never ends");
    assert_eq!(chain(endless), "/dev/zero is larger than 16 MiB: is it a config file?");
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
fn a_status_is_a_code_a_range_or_a_list_of_both() {
    let range = |first, last| StatusRange { first, last };
    let cases = [
        ("204", vec![range(204, 204)]),
        ("\"200-299\"", vec![range(200, 299)]),
        ("[200, \"300 - 399\", \"404\"]", vec![range(200, 200), range(300, 399), range(404, 404)]),
    ];
    for (written, expected) in cases {
        let text = service(&format!("health = {{ check = \"https\", status = {written} }}"));
        let desired = parse(&text, "lb.toml").expect(written);
        let check = desired.services[0].health.as_ref().map(|health| &health.kind);
        let Some(CheckKind::Http(check)) = check else {
            panic!("no HTTP check: {desired:?}");
        };
        assert_eq!(check.status, expected, "{written}");
        assert!(check.tls.as_ref().is_some_and(|tls| tls.verify));
    }
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

#[test]
fn the_example_is_valid() {
    let desired = parse(EXAMPLE, "sluice.example.toml").expect("a valid example");
    let names: Vec<&str> = desired.services.iter().map(|service| &*service.name).collect();
    assert_eq!(names, ["api", "mail", "web"]);
    let check = desired.services[0].health.as_ref().map(|health| &health.kind);
    let expected = HttpCheck { path: "/healthz".to_owned(), ..HttpCheck::default() };
    assert_eq!(check, Some(&CheckKind::Http(expected)));
}

/// Uncomments the lines that show a default: the parsed file must not change.
#[test]
fn the_examples_commented_out_defaults_are_true() {
    let shows_default = |line: &str| {
        let Some((field, _)) = line.strip_prefix("# ").and_then(|rest| rest.split_once(" = "))
        else {
            return false;
        };
        field.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            && !matches!(field, "hash_seed" | "tunnel_source")
    };
    let mut shown = 0;
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        if shows_default(line) {
            shown += 1;
            text.push_str(&line[2..]);
        } else {
            text.push_str(line);
        }
        text.push('\n');
    }
    assert_eq!(shown, 18, "{text}");
    let plain = parse(EXAMPLE, "sluice.example.toml").expect("a valid example");
    assert_eq!(parse(&text, "uncommented").expect("valid defaults"), plain);
}

#[test]
fn warnings_tell_what_a_valid_file_does_not_get() {
    let told = |text: &str| warnings(&parse(text, "lb.toml").expect("a valid file"));
    assert_eq!(told(&dataplane("")), ["no service: every frame is left to the kernel"]);
    assert_eq!(
        told(&service("slots = 7")),
        ["service \"web\" has no backend: its clients get a RST"]
    );
    assert_eq!(
        told(&backend("name = \"a\", address = \"10.0.0.1\", weight = 0")),
        ["service \"web\" has only backends of weight 0: its new clients get a RST"]
    );
    let few = "slots = 7\nbackend = [{ name = \"a\", address = \"10.0.0.1\" }]";
    let text =
        service(few).replace("[[service]]", "tunnel_source = [\"10.9.0.0/16\"]\n[[service]]");
    assert_eq!(
        told(&text),
        [
            "service \"web\" has 1 backends in 7 slots: below 100 slots a backend the shares are \
             uneven",
            "tunnel_source has no effect: no service uses ipip",
        ]
    );
    let backend = "backend = [{ name = \"a\", address = \"10.0.0.1\" }]";
    let ports = |lines: &str| {
        let text = service(&format!("{lines}\n{backend}"));
        text.replace("[[service]]", "nat_ports = \"2000-3000\"\n[[service]]")
    };
    let no_effect = "nat_ports has no effect: no service uses nat, or those that do keep their \
                     clients' addresses";
    assert_eq!(told(&ports("")), [no_effect]);
    let keep = "forwarding = \"nat\"\nnat = { client_address = \"keep\" }";
    assert_eq!(told(&ports(keep)), [no_effect]);
    assert_eq!(told(&ports("forwarding = \"nat\"")), [""; 0]);
    assert_eq!(told(EXAMPLE), [""; 0]);
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = parse(&text, "any");
    }

    /// Half-valid files reach deeper than random ones.
    #[test]
    fn no_mutation_of_a_valid_file_panics(
        at in 0..EXAMPLE.len(), length in 0_usize..20, insert in "[\\PC\n]{0,8}|-?[0-9]{1,30}|\"|\\[|\\{",
    ) {
        let end = (at + length).min(EXAMPLE.len());
        let text = EXAMPLE.replace("# ", "");
        for text in [EXAMPLE, &text] {
            if let (Some(head), Some(tail)) = (text.get(..at), text.get(end..)) {
                let _ = parse(&format!("{head}{insert}{tail}"), "mutated");
            }
        }
    }
}
