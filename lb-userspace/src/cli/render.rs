//! What people read: pure functions of what `--json` prints.

use std::collections::BTreeMap;

use lb_common::{flow::State, reason::Class};

use super::{
    figures::{bytes, exact, plural, short},
    table::{
        Cell, Palette,
        Side::{Left, Right},
        Table, Tone,
    },
};
use crate::{
    control::api::{self, TroubleKind},
    health::Because,
};

/// `: 3 embryonic, 1,131 old`, or nothing.
pub fn by_state(counts: &BTreeMap<String, u64>) -> String {
    let states = State::ALL.map(State::name).into_iter().filter_map(|state| {
        let count = *counts.get(state)?;
        (count > 0).then(|| format!("{} {state}", exact(count)))
    });
    let states: Vec<String> = states.collect();
    if states.is_empty() { String::new() } else { format!(": {}", states.join(", ")) }
}

/// What a mend says to do, or to look for, one thing after the other.
pub fn steps(mend: &str) -> impl Iterator<Item = &str> {
    mend.split("; ")
}

/// One row a service.
pub fn services(services: &[api::Service], palette: Palette) -> String {
    if services.is_empty() {
        return "no service\n".to_owned();
    }
    let mut table = Table::new(&[
        ("SERVICE", Left),
        ("VIP", Left),
        ("FORWARDING", Left),
        ("AFFINITY", Left),
        ("SLOTS", Right),
        ("BACKENDS", Left),
        ("FLOWS", Right),
        ("NEW", Right),
        ("PACKETS", Right),
        ("BYTES", Right),
    ]);
    for service in services {
        let sum = |count: fn(&api::Backend) -> u64| service.backends.iter().map(count).sum();
        table.row([
            (*service.name).into(),
            (*service.vip).into(),
            (*service.forwarding).into(),
            (*service.affinity).into(),
            exact(service.slots.into()).into(),
            backends_in_brief(service),
            short(sum(|b| b.active_flows)).into(),
            short(sum(|b| b.new_flows_total)).into(),
            short(sum(|b| b.packets_total)).into(),
            bytes(sum(|b| b.bytes_total)).into(),
        ]);
    }
    table.render(palette)
}

fn backends_in_brief(service: &api::Service) -> Cell {
    let ill = service
        .backends
        .iter()
        .filter(|b| matches!(b.health, api::Health::Unhealthy | api::Health::Unreachable))
        .count();
    let all = service.backends.len();
    match ill {
        0 if all == 0 => Cell::toned(Tone::Bad, "none"),
        0 => exact(all as u64).into(),
        _ => Cell::toned(Tone::Bad, format!("{}, {ill} down", exact(all as u64))),
    }
}

/// One row a backend.
///
/// `doubt` is what is wrong with the flow table, if anything: backends may look ill for it.
pub fn backends<'a>(
    services: impl IntoIterator<Item = &'a api::Service>,
    doubt: Option<TroubleKind>,
    palette: Palette,
) -> String {
    let mut table = Table::new(&[
        ("SERVICE", Left),
        ("BACKEND", Left),
        ("ADDRESS", Left),
        ("PORT", Right),
        ("WEIGHT", Right),
        ("ADMIN", Left),
        ("HEALTH", Left),
        ("FLOWS", Right),
        ("NEW", Right),
        ("RESET", Right),
        ("SYN AGAIN", Right),
        ("PACKETS", Right),
        ("BYTES", Right),
        ("NEXT HOP", Left),
    ]);
    let mut empty = true;
    for service in services {
        for backend in &service.backends {
            empty = false;
            table.row([
                (*service.name).into(),
                (*backend.name).into(),
                backend.address.to_string().into(),
                backend.port_text().into(),
                weight(backend).into(),
                admin(backend),
                health(backend),
                short(backend.active_flows).into(),
                short(backend.new_flows_total).into(),
                short(backend.reset_flows_total).into(),
                short(backend.syn_retransmissions_total).into(),
                short(backend.packets_total).into(),
                bytes(backend.bytes_total).into(),
                (*backend.next_hop).into(),
            ]);
            if let Some(remark) = remark(backend, doubt) {
                table.remark(1, remark);
            }
        }
    }
    if empty { "no backend\n".to_owned() } else { table.render(palette) }
}

/// What holds; and what the file says, if that is something else.
pub fn weight(backend: &api::Backend) -> String {
    match backend.declared_weight {
        Some(declared) if declared != backend.weight => {
            format!("{} (file: {declared})", backend.weight)
        }
        _ => backend.weight.to_string(),
    }
}

fn admin(backend: &api::Backend) -> Cell {
    let tone = match backend.admin {
        api::Admin::Enabled => Tone::Plain,
        api::Admin::Draining | api::Admin::Drained | api::Admin::Disabled => Tone::Doubtful,
    };
    let name = backend.admin.name();
    match (backend.leaving, backend.backup) {
        (true, _) => Cell::toned(tone, format!("{name}, leaving")),
        (false, true) => Cell::toned(tone, format!("{name}, backup")),
        (false, false) => Cell::toned(tone, name),
    }
}

fn health(backend: &api::Backend) -> Cell {
    let tone = match backend.health {
        api::Health::Unknown => Tone::Plain,
        api::Health::Healthy => Tone::Good,
        api::Health::Unhealthy | api::Health::Unreachable => Tone::Bad,
    };
    match backend.stale {
        true => Cell::toned(tone, format!("{}, stale", backend.health.name())),
        false => Cell::toned(tone, backend.health.name()),
    }
}

/// Why a backend takes no new flows, or takes them though it is not simply well; and what its
/// clients' packets say against it.
fn remark(backend: &api::Backend, doubt: Option<TroubleKind>) -> Option<Cell> {
    let mut says = Vec::new();
    let tone = match backend.takes_new_flows {
        false if backend.admin == api::Admin::Enabled && !backend.leaving => Tone::Bad,
        false | true => Tone::Doubtful,
    };
    match (backend.takes_new_flows, &*backend.why) {
        (_, "") => {}
        (false, why) => says.push(format!("no new flows: {why}")),
        (true, why) if why == Because::Healthy.to_string() => {}
        (true, why) => says.push(why.to_owned()),
    }
    if backend.suspect {
        says.push("clients' SYNs are not answered".to_owned());
    }
    let is_outlier = backend.outlier && backend.takes_new_flows;
    if is_outlier {
        says.push("it completes far fewer handshakes than its pool".to_owned());
    }
    let caveat = match doubt.filter(|_| backend.suspect || is_outlier) {
        None => None,
        Some(TroubleKind::Flood) => {
            Some("in doubt: forged SYNs look the same, and there is a flood")
        }
        Some(_) => Some("in doubt: the flow table is full, and not all handshakes are seen"),
    };
    says.extend(caveat.map(str::to_owned));
    (!says.is_empty()).then(|| Cell::toned(tone, says.join("; ")))
}

/// What became of every frame; reasons that never happened only if `all` are wanted.
pub fn reasons(reasons: &api::Reasons, all: bool, palette: Palette) -> String {
    let mut table =
        Table::new(&[("VERDICT", Left), ("REASON", Left), ("FRAMES", Right), ("", Left)]);
    table.row([
        Cell::toned(Tone::Good, "forward"),
        "".into(),
        exact(reasons.forwarded).into(),
        "Sent to a backend.".into(),
    ]);
    for reason in reasons.reasons.iter().filter(|reason| all || reason.count > 0) {
        let drop = reason.class == Class::Drop.name();
        table.row([
            Cell::toned(if drop { Tone::Bad } else { Tone::Plain }, &*reason.class),
            (*reason.name).into(),
            exact(reason.count).into(),
            (*reason.help).into(),
        ]);
    }
    let mut text = table.render(palette);
    let silent = reasons.reasons.iter().filter(|reason| reason.count == 0).count() as u64;
    text += &format!("\n{}", sum(reasons));
    let names = reasons.interfaces.iter().map(|interface| &*interface.name);
    for name in names.filter(|_| reasons.interfaces.len() > 1) {
        if let Ok(own) = reasons.of_interface(name) {
            text += &format!("{name}: {}", sum(&own));
        }
    }
    if silent > 0 && !all {
        text += &format!("{} never happened: `--all` shows them too\n", plural(silent, "reason"));
    }
    text
}

/// That each frame has one verdict.
fn sum(reasons: &api::Reasons) -> String {
    let mut text = format!(
        "{} frames received = {} forwarded + {} passed to the kernel + {} dropped + {} answered\n",
        exact(reasons.received),
        exact(reasons.forwarded),
        exact(reasons.of_class(Class::Pass)),
        exact(reasons.of_class(Class::Drop)),
        exact(reasons.of_class(Class::Answer)),
    );
    if reasons.unexplained != 0 {
        text += &format!(
            "{} frames more were received than have a verdict: see `sluice events`\n",
            reasons.unexplained
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::sample;

    const PLAIN: Palette = Palette { colours: false };

    #[test]
    fn services_are_summed_up() {
        let mut some = sample::status().services;
        some[0].backends.clear();
        insta::assert_snapshot!(services(&some, PLAIN), @"
        SERVICE  VIP                 FORWARDING  AFFINITY   SLOTS  BACKENDS   FLOWS    NEW  PACKETS    BYTES
        api      [2001:db8::10]:443  ipip        none      65,537  none           0      0        0      0 B
        web      203.0.113.10:80     l2          none      65,537  2, 1 down     12  3,456   99,999  12.3 MB
        ");
        assert_eq!(services(&[], PLAIN), "no service\n");
    }

    #[test]
    fn backends_show_their_next_hop() {
        insta::assert_snapshot!(backends(&sample::status().services, None, PLAIN), @"
        SERVICE  BACKEND  ADDRESS         PORT  WEIGHT  ADMIN    HEALTH       FLOWS    NEW  RESET  SYN AGAIN  PACKETS    BYTES  NEXT HOP
        api      api-1    2001:db8:1::11    80     100  enabled  healthy          0      0      0          0        0      0 B  eth0 02:00:00:00:00:01
        web      web-1    10.0.0.11         80     100  enabled  healthy         12  3,456      0          0   99,999  12.3 MB  eth0 02:00:00:00:00:01
        web      web-2    10.0.0.12         80      50  enabled  unreachable      0      0      7          0        0      0 B  no answer to ARP on eth0
                 no new flows: no answer to SYN within 1s; clients' SYNs are not answered
        ");
        assert_eq!(backends(&[], None, PLAIN), "no backend\n");
    }

    #[test]
    fn what_is_simply_well_has_no_remark() {
        let web = sample::status().services.remove(1);
        let well = web.backends[0].clone();
        let said =
            |backend: &api::Backend| remark(backend, None).map(|remark| remark.text().to_owned());
        assert_eq!(said(&well), None);
        let slow = "healthy; slow start: weight 20 of 100";
        let cases = [
            (api::Backend { why: slow.to_owned(), ..well.clone() }, slow),
            (
                api::Backend { outlier: true, ..well.clone() },
                "it completes far fewer handshakes than its pool",
            ),
            (
                api::Backend {
                    admin: api::Admin::Draining,
                    takes_new_flows: false,
                    why: "draining".to_owned(),
                    ..well.clone()
                },
                "no new flows: draining",
            ),
        ];
        for (backend, expected) in cases {
            assert_eq!(said(&backend).as_deref(), Some(expected));
        }
        // As `status` says it, so that nobody drains who is well.
        let flood = "clients' SYNs are not answered; in doubt: forged SYNs look the same, and there \
                     is a flood";
        let suspect = api::Backend { suspect: true, ..well.clone() };
        for (backend, doubt, expected) in [
            (&suspect, TroubleKind::Flood, Some(flood)),
            (
                &api::Backend { outlier: true, ..well.clone() },
                TroubleKind::FlowTable,
                Some(
                    "it completes far fewer handshakes than its pool; in doubt: the flow table is \
                     full, and not all handshakes are seen",
                ),
            ),
            (&well, TroubleKind::Flood, None),
        ] {
            let said = remark(backend, Some(doubt)).map(|remark| remark.text().to_owned());
            assert_eq!(said.as_deref(), expected);
        }
        let stale = api::Backend { stale: true, ..well };
        assert_eq!(health(&stale).text(), "healthy, stale");
    }

    #[test]
    fn reasons_add_up_to_what_was_received() {
        let mut some = sample::reasons();
        some.reasons.retain(|reason| reason.count > 0 || reason.class == Class::Answer.name());
        for reason in &mut some.reasons {
            reason.help = format!("Help for {}.", reason.name);
        }
        insta::assert_snapshot!(reasons(&some, false, PLAIN), @"
        VERDICT  REASON         FRAMES
        forward                 99,999  Sent to a backend.
        pass     not_ip            321  Help for not_ip.
        pass     not_vip     1,234,567  Help for not_vip.
        drop     fragment            4  Help for fragment.
        answer   no_backend         56  Help for no_backend.

        1,334,947 frames received = 99,999 forwarded + 1,234,888 passed to the kernel + 4 dropped + 56 answered
        eth0: 1,324,874 frames received = 90,000 forwarded + 1,234,820 passed to the kernel + 4 dropped + 50 answered
        eth1: 10,073 frames received = 9,999 forwarded + 68 passed to the kernel + 0 dropped + 6 answered
        5 reasons never happened: `--all` shows them too
        ");
        let all = reasons(&sample::reasons(), true, PLAIN);
        assert!(lb_common::reason::Reason::ALL.iter().all(|reason| all.contains(reason.name())));
        let own = sample::reasons().of_interface("eth1").expect("it is there");
        insta::assert_snapshot!(sum(&own), @"10,073 frames received = 9,999 forwarded + 68 passed to the kernel + 0 dropped + 6 answered");
        let nobody = sample::reasons().of_interface("eth2").expect_err("it is not");
        assert_eq!(nobody, "no interface \"eth2\"; there are: eth0, eth1");
    }
}
