use super::*;
use crate::{
    explain::{Backend, Decision, Filter, Flow, NextHop, Sent, Service, Slot, Verdict},
    headers::Tunnel,
};

const PLAIN: Palette = Palette { colours: false };

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

fn member(name: &str, why: &str, takes_new_flows: bool) -> Member {
    let (admin, health) = (api::Admin::Enabled, api::Health::Healthy);
    Member { name: name.to_owned(), admin, health, takes_new_flows, why: why.to_owned() }
}

/// A SYN that is forwarded in a tunnel.
fn sample() -> Explanation {
    let (client, vip) = (at("198.51.100.7:40001"), at("203.0.113.10:80"));
    let decision = Decision {
        segment: Sent { client, vip, kind: Kind::Syn, bytes: 54 },
        filter: Filter { lets_through: true, is_vip: true },
        service: Some(Service { index: 3, affinity: "none", slots: 65_537, mss_clamp: Some(1360) }),
        flow: None,
        group_taken: 5,
        slot: Some(Slot { hash: "ce3294b31c4d6a97".to_owned(), slot: 52_787, backend: 2 }),
        backend: Some(Backend {
            index: 2,
            address: at("10.0.0.12:80"),
            forwarding: "ipip",
            state: "forward",
            sees: "client",
        }),
        next_hop: Some(NextHop {
            interface: 7,
            source_mac: "02:00:00:00:00:01".to_owned(),
            mac: "02:00:00:00:00:12".to_owned(),
            mtu: 1500,
            overhead: 20,
        }),
        leaves: Some(Headers {
            source_mac: "02:00:00:00:00:01".to_owned(),
            destination_mac: "02:00:00:00:00:12".to_owned(),
            tunnel: Some(Tunnel {
                source: at("10.0.0.1:0").ip(),
                destination: at("10.0.0.12:0").ip(),
            }),
            source: client,
            destination: vip,
            flags: 2,
            bytes: 74,
        }),
        verdict: Verdict {
            becomes: Becomes::Forwarded,
            interface: Some(7),
            reason: None,
            help: None,
        },
        events: vec!["new_flows"],
        state_after: Some("embryonic"),
    };
    Explanation {
        instance: "default".to_owned(),
        arrives_on: "eth0".to_owned(),
        decision,
        next_hop_by: Some("eth0".to_owned()),
        leaves_by: Some("eth0".to_owned()),
        daemon: Some(explain::Told {
            service: Some("web".to_owned()),
            backend: Some(member("web-2", "healthy", true)),
            flow_backend: None,
            slot_backend: Some("web-2".to_owned()),
            without_new_flows: vec![member("web-1", "drained", false)],
        }),
        check: Check::Agrees { other_build: false },
    }
}

#[test]
fn a_new_flow_is_followed_to_its_backend() {
    insta::assert_snapshot!(render(&sample(), PLAIN), @"
    This binary's copy of the kernel program's code decides on the live maps; nothing is sent, written or counted.

     1  parsed as   IPv4 TCP SYN 198.51.100.7:40001 -> 203.0.113.10:80, 54 bytes, arriving on eth0
     2  VIP filter  let through: 203.0.113.10 is a VIP
     3  flow        not known (5 of 16 places of its group are taken)
     4  service     web: 65,537 slots, affinity none, MSS of 1360 at most
     5  slot        52,787 of 65,537, by hash ce3294b31c4d6a97: web-2
     6  backend     web-2 at 10.0.0.12:80, by ipip
                    takes new flows: healthy; the program forwards its flows
                    not for new flows: web-1 (drained)
     7  next hop    02:00:00:00:00:12 by eth0, from 02:00:00:00:00:01, MTU 1,500
                    packets of up to 1,480 bytes fit into the tunnel
     8  leaves as   198.51.100.7:40001 -> 203.0.113.10:80, SYN, 74 bytes
                    in a tunnel 10.0.0.1 -> 10.0.0.12
                    MAC 02:00:00:00:00:01 -> 02:00:00:00:00:12
     9  verdict     forwarded to web-2 by eth0
    10  remembered  the entry would be embryonic
                    counted would be: new_flows
    11  program     it answers a test SYN of this client alike
    ");
}

#[test]
fn a_flow_whose_backend_is_gone_is_told_without_a_daemon() {
    let mut explanation = sample();
    explanation.daemon = None;
    let decision = &mut explanation.decision;
    decision.segment.kind = Kind::Ack;
    decision.flow = Some(Flow {
        word: 49_152,
        state: "old",
        backend: 2,
        standing: Standing::BackendGone,
        age_seconds: Some(3700.5),
        idle_seconds: 4.1,
        client_at_backend: Some(at("10.0.0.1:29186")),
    });
    if let Some(backend) = &mut decision.backend {
        backend.state = "reset";
    }
    decision.next_hop = None;
    decision.leaves = None;
    decision.verdict = Verdict {
        becomes: Becomes::Reset,
        interface: Some(7),
        reason: Some("backend_gone"),
        help: Some("The flow's backend is gone."),
    };
    decision.events = vec!["reset_flows"];
    decision.state_after = None;
    explanation.check = Check::Differs {
        interface: "eth0".to_owned(),
        expected: "dropped".to_owned(),
        seen: "passed".to_owned(),
    };
    let text = render(&explanation, PLAIN);
    for part in [
        "known, but its backend's flows are reset: at backend number 2, state old, begun 1h 1m ago",
        "its backend sees 10.0.0.1:29186 for the client",
        "no daemon answers: its health is not known; the program resets its flows",
        "next hop    not resolved",
        "verdict     the client gets a RST by eth0",
        "backend_gone: The flow's backend is gone.",
        "the entry, old, would be freed",
        "on eth0 it answers otherwise: a test SYN of this client should be dropped, and is passed",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn what_is_for_no_service_ends_early() {
    let mut explanation = sample();
    let decision = &mut explanation.decision;
    decision.filter = Filter { lets_through: false, is_vip: false };
    (decision.service, decision.slot, decision.backend) = (None, None, None);
    (decision.next_hop, decision.leaves, decision.state_after) = (None, None, None);
    decision.events.clear();
    decision.verdict = Verdict {
        becomes: Becomes::Passed,
        interface: None,
        reason: Some("not_vip"),
        help: Some("Ordinary traffic."),
    };
    explanation.check = Check::NotAsked;
    let text = render(&explanation, PLAIN);
    assert!(
        text.contains(" 2  VIP filter  not let through: 203.0.113.10 is no VIP\n 3  verdict"),
        "{text}"
    );
    assert!(!text.contains("service  "), "{text}");
}

#[test]
fn a_packet_has_one_family() {
    let ask = |client: &str, vip: &str| {
        let (client, vip) = (endpoint(client)?, endpoint(vip)?);
        let output = Output { json: false };
        let arguments = Arguments { client, vip, syn: false, ack: true, interface: None, output };
        arguments.ask().map_err(|error| error.to_string())
    };
    let error = ask("198.51.100.7:1", "[2001:db8::10]:80").expect_err("two families");
    assert!(error.contains("are of two families"), "{error}");
    let ask = ask("[::ffff:198.51.100.7]:1", "203.0.113.10:80").expect("one written as the other");
    assert_eq!((ask.client, ask.kind), (at("198.51.100.7:1"), Some(Kind::Ack)));
}
