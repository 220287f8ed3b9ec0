use super::*;
use crate::model::MAX_NAT_ADDRESSES;

/// A file whose one service uses NAT and has these lines, from line 7 on.
fn nat(lines: &str) -> String {
    service(&format!("forwarding = \"nat\"\n{lines}"))
}

#[test]
fn nat_takes_other_ports_and_says_what_backends_see() {
    let of = |lines: &str| {
        let text = nat(&format!(
            "{lines}\nbackend = [{{ name = \"a\", address = \"10.0.0.1\", port = 8080 }}, \
             {{ name = \"b\", address = \"10.0.0.1\", port = 8081 }}, \
             {{ name = \"c\", address = \"10.0.0.1\" }}]"
        ));
        parse(&text, "lb.toml").expect(lines).services.remove(0)
    };
    let web = of("");
    assert_eq!(web.backends.iter().map(|b| b.port).collect::<Vec<_>>(), [8080, 8081, 80]);
    assert_eq!(web.client_address, ClientAddress::Replaced { by: Vec::new() });
    assert_eq!(web.health.map(|check| check.via), Some(Via::Backend));
    assert_eq!(of("nat = {}").client_address, ClientAddress::default());
    let replaced = of("nat = { client_address = \"replace\" }").client_address;
    assert_eq!(replaced, ClientAddress::default());
    let kept = of("nat = { client_address = \"keep\" }").client_address;
    assert_eq!(kept, ClientAddress::Kept);
    let by = ["198.18.0.9", "198.18.0.5"].map(|text| text.parse().expect("an address")).to_vec();
    let named = of("nat_addresses = [\"198.18.0.9\", \"198.18.0.5\"]").client_address;
    assert_eq!(named, ClientAddress::Replaced { by });
}

#[test]
fn what_is_said_of_nat_must_fit_the_mode() {
    assert_refused(&[
        (
            service("nat = { client_address = \"keep\" }"),
            "lb.toml:6:7: `nat` is for `forwarding = \"nat\"`, but this service's is \"l2\": leave \
             one of them out",
        ),
        (
            service("forwarding = \"ipip\"\nnat_addresses = []"),
            "lb.toml:7:17: `nat_addresses` is for `forwarding = \"nat\"`, but this service's is \
             \"ipip\": leave one of them out",
        ),
        (
            nat("nat = { client_address = \"hide\" }"),
            "lb.toml:7:26: `client_address = \"hide\"`: it is one of \"replace\", \"keep\"",
        ),
        (
            nat("nat = { clients = \"keep\" }"),
            "lb.toml:7:9: unknown field `clients`, expected `client_address`, in `service.nat`",
        ),
        (
            nat("nat = { client_address = \"keep\" }\nnat_addresses = [\"198.18.0.5\"]"),
            "lb.toml:8:17: `nat_addresses` have no use with `client_address = \"keep\"`: leave one \
             of them out",
        ),
        (
            nat("health = { via = \"vip\" }"),
            "lb.toml:7:18: `via = \"vip\"` is for l2 and ipip: with nat no backend has the VIP, and \
             its own address is the way of traffic; leave `via` out",
        ),
        (
            nat("backend = [{ name = \"a\", address = \"2001:db8::1\" }]"),
            "lb.toml:7:36: backend \"a\" is IPv6, but the VIP 203.0.113.10:80 is IPv4: nat does not \
             translate between families; give it an IPv4 address, or use `forwarding = \"ipip\"`",
        ),
        (
            nat("backend = [{ name = \"a\", address = \"10.0.0.1\", port = 0 }]"),
            "lb.toml:7:55: `port = 0`: it goes from 1 to 65535",
        ),
    ]);
}

#[test]
fn nat_addresses_are_this_hosts_and_nobody_elses() {
    let addresses = |list: &str| nat(&format!("nat_addresses = [{list}]"));
    let many: Vec<String> =
        (0..=MAX_NAT_ADDRESSES).map(|last| format!("\"198.18.0.{last}\"")).collect();
    let other = "\n[[service]]\nname = \"api\"\nvip = \"198.18.0.5:443\"\n\
                 backend = [{ name = \"a\", address = \"10.0.0.1\" }]";
    assert_refused(&[
        (
            addresses("\"198.18.0.0/24\""),
            "lb.toml:7:18: `nat_addresses` \"198.18.0.0/24\": write an IP address of this host's, \
             as \"198.18.0.5\" or \"2001:db8::5\"; it takes no prefix and no port",
        ),
        (
            addresses("\"127.0.0.1\""),
            "lb.toml:7:18: NAT address 127.0.0.1 is a loopback address, which never leaves its \
             host: give one that others reach",
        ),
        (
            addresses("\"2001:db8::5\""),
            "lb.toml:7:18: `nat_addresses` 2001:db8::5 is IPv6, but the VIP 203.0.113.10:80 is \
             IPv4: name addresses of its family",
        ),
        (
            addresses("\"198.18.0.5\", \"198.18.0.5\""),
            "lb.toml:7:32: NAT address 198.18.0.5 of this service is already on line 7: name it \
             once",
        ),
        (
            addresses(&many.join(", ")),
            "lb.toml:7:17: `nat_addresses` has 17 addresses: a service has at most 16",
        ),
        (
            addresses("\"203.0.113.10\""),
            "lb.toml:7:18: NAT address 203.0.113.10 is a VIP: name one that no client connects to",
        ),
        (
            addresses("\"198.18.0.5\"") + other,
            "lb.toml:7:18: NAT address 198.18.0.5 is a VIP: name one that no client connects to",
        ),
        (
            addresses("\"10.0.0.1\"") + other,
            "lb.toml:7:18: NAT address 10.0.0.1 is a backend's: name one of this host alone",
        ),
    ]);
    let most = addresses(&many[1..].join(", "));
    let desired = parse(&most, "lb.toml").expect("as many as there may be");
    assert_eq!(desired.services[0].client_address.named().len(), MAX_NAT_ADDRESSES);
    let shared = addresses("\"198.18.0.5\"")
        + &other.replace(
            "198.18.0.5:443\"",
            "203.0.113.11:443\"\nforwarding = \"nat\"\n\
                         nat_addresses = [\"198.18.0.5\"]",
        );
    let desired = parse(&shared, "lb.toml").expect("services may share an address");
    let own = desired.own_addresses().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(own, ["198.18.0.5", "203.0.113.10", "203.0.113.11"]);
    let text = shared.replacen("[[service]]", "own_vips = false\n[[service]]", 1);
    let desired = parse(&text, "lb.toml").expect("valid");
    assert!(desired.own_addresses().is_empty(), "the operator sees to them");
}

#[test]
fn nat_ports_are_a_range_above_the_servers() {
    let ports = |value: &str| dataplane(&format!("nat_ports = \"{value}\""));
    for (value, first, last) in
        [("1024-65535", 1024, 65_535), (" 2000 - 3000 ", 2000, 3000), ("5000-5000", 5000, 5000)]
    {
        let desired = parse(&ports(value), "lb.toml").expect(value);
        assert_eq!(desired.dataplane.nat_ports, PortRange { first, last });
    }
    for value in ["", "2000", "1023-2000", "3000-2000", "2000-65536", "2000-3000-4000", "a-b"] {
        let expected = format!(
            "lb.toml:3:13: `nat_ports = {value:?}`: write the first and the last port, as \
             \"1024-32767\"; they go from 1024 to 65535"
        );
        assert_refused(&[(ports(value), &expected)]);
    }
}
