use std::time::{Duration, SystemTime};

use super::*;
use crate::control::sample;

const PLAIN: Palette = Palette { colours: false };
const SMALL: Screen = Screen { width: Some(80), height: 24 };

/// Of the sample's morning.
fn at(time: &str) -> SystemTime {
    humantime::parse_rfc3339(&format!("2026-05-01T{time}Z")).expect("a time")
}

fn trouble(severity: Severity, about: &str, says: &str) -> api::Trouble {
    api::Trouble {
        severity,
        about: about.to_owned(),
        says: says.to_owned(),
        ..sample::status().troubles[0].clone()
    }
}

#[test]
fn what_is_wrong_comes_first_with_its_age_and_its_mend() {
    let text = status(&sample::status(), at("07:54:15"), SMALL, PLAIN);
    insta::assert_snapshot!(text, @"
    forwarding: yes, 1 fault

    FAULT   backend web/web-2 is unreachable: 10.0.0.12 does not answer ARP on eth0
            since 2026-05-01T07:42:11Z, for 12m 4s
            -> `ip route get 10.0.0.12`, `ip neigh show 10.0.0.12`

    instance    default, sluice 0.1.0, daemon up 24m 15s
    config      /etc/sluice/sluice.toml, generation 7
    interfaces  eth0 (native)
    flows       1,254 of 1,048,576: 3 embryonic, 100 young, 1,131 old, 20 closing

    SERVICE  ADDRESS                  WEIGHT  STATE                 FLOWS    NEW
    api      [2001:db8::10]:443 ipip          1 of 1                    0      0
      api-1  2001:db8:1::11              100  healthy                   0      0
    web      203.0.113.10:80 l2               1 of 2                   12  3,456
      web-1  10.0.0.11                   100  healthy                  12  3,456
      web-2  10.0.0.12                    50  unreachable, suspect      0      0
    ");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.lines().count() <= 24, "{text}");
}

#[test]
fn each_step_of_a_mend_has_a_line_of_its_own() {
    let mend = "look at its log; if it is empty, start it; or give it up".to_owned();
    let one = api::Trouble { mend: Some(mend), ..sample::status().troubles[0].clone() };
    insta::assert_snapshot!(one_trouble(&one, at("07:54:15"), SMALL, PLAIN), @"
    FAULT   backend web/web-2 is unreachable: 10.0.0.12 does not answer ARP on eth0
            since 2026-05-01T07:42:11Z, for 12m 4s
            -> look at its log
            -> if it is empty, start it
            -> or give it up
    ");
}

#[test]
fn an_outage_is_said_in_the_first_line() {
    let mut wrong = sample::status();
    wrong.services[1].new_flows = "nobody".to_owned();
    wrong.services[1].backends.iter_mut().for_each(|backend| backend.takes_new_flows = false);
    wrong.services[1].backends[0].admin = api::Admin::Drained;
    wrong.services[0].held = Some("1 of 1 backends fail at once".to_owned());
    let refusing = "refuses new connections with a RST: no backend takes them";
    wrong.troubles = vec![
        trouble(Severity::Outage, "service web", refusing),
        trouble(Severity::Fault, "backend web/web-2", "is unreachable: no answer to SYN within 1s"),
        api::Trouble {
            since: None,
            ..trouble(Severity::Notice, "backend web/web-1", "is drained")
        },
    ];
    insta::assert_snapshot!(status(&wrong, at("07:54:15"), Screen::PAPER, PLAIN), @"
    forwarding: IN PART, 1 outage

    OUTAGE  service web refuses new connections with a RST: no backend takes them
            since 2026-05-01T07:42:11Z, for 12m 4s
            -> `ip route get 10.0.0.12`, `ip neigh show 10.0.0.12`
    FAULT   backend web/web-2 is unreachable: no answer to SYN within 1s
            since 2026-05-01T07:42:11Z, for 12m 4s
            -> `ip route get 10.0.0.12`, `ip neigh show 10.0.0.12`
    NOTICE  backend web/web-1 is drained
            since before this daemon started
            -> `ip route get 10.0.0.12`, `ip neigh show 10.0.0.12`

    instance    default, sluice 0.1.0, daemon up 24m 15s
    config      /etc/sluice/sluice.toml, generation 7
    interfaces  eth0 (native)
    flows       1,254 of 1,048,576: 3 embryonic, 100 young, 1,131 old, 20 closing

    SERVICE  ADDRESS                  WEIGHT  STATE                 FLOWS    NEW
    api      [2001:db8::10]:443 ipip          1 of 1, held              0      0
      api-1  2001:db8:1::11              100  healthy                   0      0
    web      203.0.113.10:80 l2               REFUSING                 12  3,456
      web-1  10.0.0.11                   100  drained                  12  3,456
      web-2  10.0.0.12                    50  unreachable, suspect      0      0
    ");
    let coloured = status(&wrong, at("07:54:15"), SMALL, Palette { colours: true });
    assert!(coloured.starts_with("\x1b[31;1mforwarding: IN PART, 1 outage\x1b[0m\n"), "{coloured}");
    wrong.ready = false;
    assert!(status(&wrong, at("07:54:15"), SMALL, PLAIN).starts_with("forwarding: NO\n"));
}

#[test]
fn well_is_short() {
    let mut well = sample::status();
    well.troubles.clear();
    well.services.clear();
    let embryonic = |state| 9000 * u64::from(state == State::Embryonic);
    well.flows = api::FlowTable::new(1 << 20, 9000, embryonic, &[12, 4000, 3, 0, 0, 0, 0, 0]);
    insta::assert_snapshot!(status(&well, at("09:30:00"), SMALL, PLAIN), @"
    forwarding: yes

    instance    default, sluice 0.1.0, daemon up 2h 0m
    config      /etc/sluice/sluice.toml, generation 7
    interfaces  eth0 (native)
    flows       9,000 of 1,048,576: 9,000 embryonic (most only a SYN: a flood?); evicted (gave way to newer): 4,000 embryonic, 3 young; overflow (no place: untracked, nat refused): 12

    no service: `sluice service add`, or `sluice apply FILE`
    ");
}

#[test]
fn many_backends_become_a_line_for_each_service() {
    let mut many = sample::status();
    many.troubles = (0..100)
        .map(|n| trouble(Severity::Fault, &format!("backend web/web-{n}"), "is unreachable"))
        .collect();
    let web = many.services[1].clone();
    many.services =
        (0..500).map(|n| api::Service { name: format!("web-{n}"), ..web.clone() }).collect();
    let text = status(&many, at("07:54:15"), Screen::PAPER, PLAIN);
    assert!(text.starts_with("forwarding: yes, 100 faults\n"), "{text}");
    assert!(text.contains("\n... and 92 more: sluice status --json\n"), "{text}");
    assert!(text.contains(" more services: sluice service list\n"), "{text}");
    assert!(text.lines().count() <= 50, "{text}");
}

#[test]
fn a_line_is_broken_at_blanks_and_nothing_is_lost() {
    let text = "run `sluice agent run --interface IF --vip 203.0.113.10` there, or else";
    for width in 1..80 {
        let lines = wrapped(text, Some(width));
        assert_eq!(lines.join(" "), text);
        let fits = |line: &String| line.chars().count() <= width || !line.contains(' ');
        assert!(lines.iter().all(fits), "{width}: {lines:?}");
    }
    assert_eq!(wrapped(text, None), [text]);
}

#[test]
fn the_state_of_a_backend_is_the_operators_word_and_what_is_seen() {
    let web = sample::status().services.remove(1);
    let (well, ill) = (&web.backends[0], &web.backends[1]);
    let drained = api::Admin::Drained;
    let cases = [
        (well.clone(), "healthy"),
        (ill.clone(), "unreachable, suspect"),
        (api::Backend { admin: drained, ..well.clone() }, "drained"),
        (api::Backend { admin: drained, suspect: false, ..ill.clone() }, "drained, unreachable"),
        (api::Backend { leaving: true, ..well.clone() }, "leaving"),
        (api::Backend { backup: true, stale: true, ..well.clone() }, "healthy, stale, backup"),
    ];
    for (backend, expected) in cases {
        assert_eq!(backend_state(&backend).text(), expected);
    }
}

#[test]
fn without_a_daemon_the_kernel_is_asked() {
    let last = sample::events().events.remove(0);
    let front =
        |fault: Option<&str>| Front { name: "eth0".to_owned(), fault: fault.map(Into::into) };
    let orphan = |interfaces| Orphan {
        instance: "default".to_owned(),
        kernel: Ok(Unattended {
            interfaces,
            services: 1,
            backends: 3,
            packets: 1234,
            during: Duration::from_millis(300),
        }),
        last: Some(last.clone()),
    };
    let say = |orphan: &Orphan| without_daemon(orphan, at("07:54:15"), SMALL, PLAIN);
    insta::assert_snapshot!(say(&orphan(vec![front(None)])), @"
    forwarding: yes, without a daemon
      eth0 runs the program
      1 service and 3 backends as they were last known; 1,234 packets forwarded in
      the last 300 ms
      no daemon answers: nobody looks after the backends, drains them, or takes
      changes
      its last word, 2026-05-01T07:30:00Z, 24m 14s ago: enabled -> draining
      -> start it: `sluice run --config FILE`, or the unit that does; it takes up
      what runs, without a gap
    ");
    let down = "is down: bring it up with `ip link set`";
    let text = say(&orphan(vec![front(Some(down))]));
    assert!(text.starts_with("forwarding: NO\n  eth0 is down: "), "{text}");
    let text = say(&orphan(Vec::new()));
    assert!(text.contains("instance default is not attached to any interface"), "{text}");
    let unknown = Orphan { kernel: Err("permission denied".to_owned()), ..orphan(Vec::new()) };
    assert!(say(&unknown).starts_with("forwarding: unknown\n  the kernel can't be asked: "));
}
