//! What differs between two wishes, in words.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use humantime::format_duration;

use crate::{
    control::api::{Action, Difference},
    drain::Admin,
    model::{Backend, Desired, Identity, Service},
};

/// Every difference: of the instance first, then service by service.
pub fn diff(before: &Desired, after: &Desired) -> Vec<Difference> {
    let mut differences = of_instance(before, after);
    let [old, new] = [before, after].map(|desired| {
        staying(desired).map(|service| (&*service.name, service)).collect::<HashMap<_, _>>()
    });
    let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
    for name in names {
        match (old.get(name).copied(), new.get(name).copied()) {
            (None, Some(new)) => {
                let text = format!("{} {}", new.vip, new.forwarding.name());
                differences.push(difference(Action::Add, name, None, text));
                differences.extend(of_backends(None, Some(new), after));
            }
            (Some(old), None) => {
                differences.push(difference(Action::Remove, name, None, old.vip.to_string()));
                differences.extend(of_backends(Some(old), None, after));
            }
            (Some(old), Some(new)) if old == new => {}
            (Some(old), Some(new)) => {
                let changes = of_service(old, new);
                if !changes.is_empty() {
                    differences.push(difference(Action::Change, name, None, changes.join(", ")));
                }
                differences.extend(of_backends(Some(old), Some(new), after));
            }
            (None, None) => {}
        }
    }
    differences
}

fn of_instance(before: &Desired, after: &Desired) -> Vec<Difference> {
    let (old, new) = (&before.dataplane, &after.dataplane);
    let mut changes = Vec::new();
    if old.interfaces != new.interfaces {
        changes.push(format!(
            "interfaces {} -> {}",
            old.interfaces.join(", "),
            new.interfaces.join(", ")
        ));
    }
    if old.tunnel_sources != new.tunnel_sources {
        changes.push("tunnel_source".to_owned());
    }
    if old.own_vips != new.own_vips {
        changes.push(format!("own_vips {} -> {}", old.own_vips, new.own_vips));
    }
    changes
        .into_iter()
        .map(|text| Difference { action: Action::Change, service: None, backend: None, text })
        .collect()
}

fn of_service(old: &Service, new: &Service) -> Vec<String> {
    let mut changes = Vec::new();
    let mut compare = |what: &str, old: String, new: String| {
        if old != new {
            changes.push(format!("{what} {old} -> {new}"));
        }
    };
    compare("vip", old.vip.to_string(), new.vip.to_string());
    compare("forwarding", old.forwarding.name().into(), new.forwarding.name().into());
    compare("client_address", old.client_address.name().into(), new.client_address.name().into());
    compare("nat_addresses", nat_addresses(old), nat_addresses(new));
    compare("affinity", old.affinity.name().into(), new.affinity.name().into());
    compare("icmp_echo", old.icmp_echo.name().into(), new.icmp_echo.name().into());
    let mss = |service: &Service| service.mss_clamp.map_or("none".into(), |mss| mss.to_string());
    compare("mss_clamp", mss(old), mss(new));
    compare("slots", old.slots.to_string(), new.slots.to_string());
    compare("min_available", old.min_available.to_string(), new.min_available.to_string());
    compare("fail_open", old.fail_open.to_string(), new.fail_open.to_string());
    let resets = |service: &Service| service.reset_unreachable.to_string();
    compare("reset_unreachable", resets(old), resets(new));
    compare("panic_threshold", old.panic_threshold.to_string(), new.panic_threshold.to_string());
    compare("outlier", old.outlier.name().into(), new.outlier.name().into());
    let slow_start = |service: &Service| format_duration(service.slow_start).to_string();
    compare("slow_start", slow_start(old), slow_start(new));
    let deadline = |service: &Service| format_duration(service.drain_deadline).to_string();
    compare("drain_deadline", deadline(old), deadline(new));
    let idle = |service: &Service| {
        let [a, b, c] = [service.idle.embryonic, service.idle.established, service.idle.closing]
            .map(format_duration);
        format!("{a}/{b}/{c}")
    };
    compare("idle_timeout", idle(old), idle(new));
    if old.health != new.health {
        changes.push("health".to_owned());
    }
    changes
}

fn nat_addresses(service: &Service) -> String {
    match service.client_address.named() {
        [] => "none".to_owned(),
        named => named.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}

fn of_backends(old: Option<&Service>, new: Option<&Service>, after: &Desired) -> Vec<Difference> {
    let name = old.or(new).map_or("", |service| &*service.name);
    let (before, now) = (by_identity(old), by_identity(new));
    let mut differences = Vec::new();
    for (identity, backend) in &before {
        if !now.contains_key(identity) {
            let text = format!("{}: {}", place(*identity), how_it_goes(*identity, after));
            differences.push(difference(Action::Remove, name, Some(&backend.name), text));
        }
    }
    for (identity, backend) in &now {
        match before.get(identity) {
            None => {
                let text = format!("{} weight {}", place(*identity), backend.weight);
                differences.push(difference(Action::Add, name, Some(&backend.name), text));
            }
            Some(was) => {
                let changes = of_backend(was, backend);
                if !changes.is_empty() {
                    let text = changes.join(", ");
                    differences.push(difference(Action::Change, name, Some(&backend.name), text));
                }
            }
        }
    }
    differences
}

fn by_identity(service: Option<&Service>) -> BTreeMap<Identity, &Backend> {
    let backends = service.map(|service| {
        let staying = service.backends.iter().filter(|backend| !backend.leaving);
        staying.map(|backend| (service.identity(backend), backend)).collect()
    });
    backends.unwrap_or_default()
}

fn of_backend(old: &Backend, new: &Backend) -> Vec<String> {
    let mut changes = Vec::new();
    if old.name != new.name {
        changes.push(format!("name {} -> {}", old.name, new.name));
    }
    if old.weight != new.weight {
        changes.push(format!("weight {} -> {}", old.weight, new.weight));
    }
    if old.backup != new.backup {
        changes.push(format!("backup {} -> {}", old.backup, new.backup));
    }
    if old.admin.name() != new.admin.name() {
        changes.push(format!("{} -> {}", old.admin.name(), new.admin.name()));
    } else if let (Admin::Draining(was), Admin::Draining(is)) = (old.admin, new.admin)
        && was.deadline != is.deadline
    {
        changes.push("another deadline".to_owned());
    }
    changes
}

/// Where a backend is: its port too, if it is not the VIP's.
fn place((vip, backend): Identity) -> String {
    if backend.port() == vip.port().unwrap_or(0) {
        backend.ip().to_string()
    } else {
        backend.to_string()
    }
}

/// What becomes of a backend that is not wanted any more.
fn how_it_goes(identity: Identity, after: &Desired) -> &'static str {
    let leaving = after.services.iter().find_map(|service| {
        let mut leaving = service.backends.iter().filter(|backend| backend.leaving);
        leaving.find(|backend| service.identity(backend) == identity)
    });
    match leaving.map(|backend| backend.admin) {
        Some(Admin::Draining(_) | Admin::Enabled) => "drained, then removed",
        Some(Admin::Disabled) => "its flows are reset, then it is removed",
        Some(Admin::Drained(_)) | None => "removed",
    }
}

fn difference(action: Action, service: &str, backend: Option<&str>, text: String) -> Difference {
    Difference {
        action,
        service: Some(service.to_owned()),
        backend: backend.map(str::to_owned),
        text,
    }
}

fn staying(desired: &Desired) -> impl Iterator<Item = &Service> {
    desired.services.iter().filter(|service| !service.leaving)
}
