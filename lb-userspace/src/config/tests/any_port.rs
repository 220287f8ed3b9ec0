//! VIPs of any port.

use super::*;
use crate::model::Vip;

const TOP: &str = "[dataplane]\ninterfaces = [\"eth0\"]\n";
const OFF: &str = "health = { check = \"none\" }";

/// A service at a VIP, with further lines.
fn at(name: &str, vip: &str, more: &str) -> String {
    format!("[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\n{more}\n")
}

#[test]
fn any_port_and_one_of_its_ports_are_two_services() {
    for address in ["203.0.113.10", "[2001:db8::10]"] {
        let own = if address.starts_with('[') { "2001:db8:1::1" } else { "10.0.0.1" };
        let backends = format!("backend = [{{ name = \"a\", address = \"{own}\" }}]");
        let any = at("any", &format!("{address}:*"), &format!("health.port = 22\n{backends}"));
        let web = at("web", &format!("{address}:80"), &backends);
        let text = format!("{TOP}{any}{web}");
        let desired = parse(&text, "lb.toml").expect("valid");
        let [any, web] = &desired.services[..] else { panic!("two services") };
        assert_eq!(any.vip.to_string(), format!("{address}:*"));
        assert_eq!((any.vip.port(), any.backends[0].port), (None, 0));
        assert_eq!((web.vip.port(), web.backends[0].port), (Some(80), 80));
        assert_ne!(any.key(), web.key());
        let port = |service: &crate::model::Service| {
            let (vip, own) = service.asked(&service.backends[0]);
            (vip.port(), own.port())
        };
        assert_eq!((port(any), port(web)), ((22, 22), (80, 80)));
        // As a file it is the same again.
        let written = export(&desired).expect("TOML");
        assert!(written.contains(&format!("vip = \"{address}:*\"")), "{written}");
        assert_eq!(parse(&written, "lb.toml").expect("valid"), desired);
    }
    let off = parse(&format!("{TOP}{}", at("any", "203.0.113.10:*", OFF)), "lb.toml");
    let off = off.expect("valid");
    assert_eq!(off.services[0].health, None);
    assert_eq!(off.services[0].vip, Vip::any_port([203, 0, 113, 10].into()));
}

#[test]
fn what_any_port_does_not_go_with_is_refused() {
    let any = |more: &str| format!("{TOP}{}", at("any", "203.0.113.10:*", more));
    let backend = "backend = [{ name = \"a\", address = \"10.0.0.1\", port = 80 }]";
    assert_refused(&[
        (
            format!("{}{}", any(OFF), at("other", "203.0.113.10:*", OFF)),
            "lb.toml:9:7: VIP 203.0.113.10:* is already on line 5: give each service a port or an \
             address of its own",
        ),
        (
            any("forwarding = \"nat\""),
            "lb.toml:5:7: service \"any\" has a VIP of any port, which `forwarding = \"nat\"` \
             can't translate: use \"l2\" or \"ipip\", or one service for each port",
        ),
        (
            any(""),
            "lb.toml:5:7: service \"any\" has the VIP 203.0.113.10:*, of any port: say which one \
             its checks ask, as `health = { port = 443 }`, or turn them off, \
             `health = { check = \"none\" }`",
        ),
        (
            any("health = { via = \"backend\" }"),
            "lb.toml:5:7: service \"any\" has the VIP 203.0.113.10:*, of any port: say which one \
             its checks ask, as `health = { port = 443 }`, or turn them off, \
             `health = { check = \"none\" }`",
        ),
        (
            any(&format!("{OFF}\n{backend}")),
            "lb.toml:7:55: backend \"a\" has port 80, but the VIP is 203.0.113.10:*: packets keep \
             the port that their client has asked for; leave `port` out",
        ),
    ]);
}
