//! The one list of metrics.

mod frames;

use std::sync::LazyLock;

use lb_common::counters::Event;

use super::{
    metric::{Kind, Metric},
    samples::{BACKEND, of_backend, of_drain, one},
};
use crate::control::api;

/// All of them, in the order in which they are told.
pub static LIST: LazyLock<Vec<Metric>> = LazyLock::new(|| {
    [
        instance(),
        frames::all(),
        frames::by_interface(),
        flow_table(),
        services(),
        backends(),
        health(),
        drains(),
    ]
    .into_iter()
    .flatten()
    .collect()
});

use Kind::{Counter, Gauge, Histogram, Summary};

fn instance() -> Vec<Metric> {
    vec![
        Metric::new(
            Gauge,
            "sluice_build_info",
            &["version"],
            "1; the label is the daemon's version.",
            |all, family| {
                family.sample_with("", ("version", &all.figures.status.version), true);
            },
        ),
        one(Gauge, "sluice_ready", "1 if attached and forwarding, else 0.", |figures| {
            figures.status.ready.into()
        }),
        one(
            Gauge,
            "sluice_problems",
            "Things that are wrong; `sluice status` names them.",
            |figures| (figures.status.problems.len() as u64).into(),
        ),
        one(
            Gauge,
            "sluice_config_generation",
            "Counts the changes of what is wanted; kept over restarts.",
            |figures| figures.status.generation.into(),
        ),
        Metric::new(
            Summary,
            "sluice_reconciliation_seconds",
            &[],
            "How long it took to write into the maps what had changed; since this daemon started.",
            |all, family| {
                let reconciliations = &all.figures.status.reconciliations;
                family.summary("", reconciliations.total, reconciliations.seconds_total);
            },
        ),
        one(
            Counter,
            "sluice_reconciliations_failed_total",
            "Those of them that a map refused; what is missing is tried again each second.",
            |figures| figures.status.reconciliations.failed_total.into(),
        ),
        one(
            Counter,
            "sluice_maglev_builds_total",
            "Maglev tables made and put in place since this daemon started.",
            |figures| figures.status.reconciliations.maglev_builds_total.into(),
        ),
        one(
            Counter,
            "sluice_drift_repairs_total",
            "Writes that mended what somebody else had changed in the maps.",
            |figures| figures.status.drift_repairs_total.into(),
        ),
    ]
}

fn flow_table() -> Vec<Metric> {
    vec![
        one(Gauge, "sluice_flow_capacity", "Flows that the flow table can hold.", |figures| {
            figures.status.flows.capacity.into()
        }),
        Metric::new(
            Gauge,
            "sluice_flows",
            &["state"],
            "Flows in the table; their sum is what is used of it.",
            |all, family| {
                for (state, count) in &all.figures.status.flows.by_state {
                    family.sample_with("", ("state", state), *count);
                }
            },
        ),
        Metric::new(
            Counter,
            "sluice_flow_evictions_total",
            &["state"],
            "Flows that gave way to new ones before their time, by the state that they were in: in a \
             flood embryonic ones, old ones never.",
            |all, family| {
                for (state, count) in &all.figures.status.flows.evicted_total {
                    family.sample_with("", ("state", state), *count);
                }
            },
        ),
        one(
            Counter,
            "sluice_flow_overflows_total",
            "New flows to which none gave way: they went by slot, or, translated, were refused.",
            |figures| figures.status.flows.overflows_total.into(),
        ),
    ]
}

fn services() -> Vec<Metric> {
    vec![
        Metric::new(
            Gauge,
            "sluice_service_info",
            &["affinity", "forwarding", "service", "vip"],
            "1; the labels are what the service is.",
            |all, family| {
                for (labels, api::Service { vip, forwarding, affinity, .. }) in &all.services {
                    let kind =
                        format!(r#"affinity="{affinity}",forwarding="{forwarding}",{labels}"#);
                    family.sample_with(&kind, ("vip", vip), true);
                }
            },
        ),
        Metric::new(
            Gauge,
            "sluice_service_tier",
            &["service", "tier"],
            "1; the label is who takes new flows: healthy, backup, fail-open or draining backends, \
             or nobody.",
            |all, family| {
                for (labels, service) in &all.services {
                    family.sample_with(labels, ("tier", &service.new_flows), true);
                }
            },
        ),
        Metric::new(
            Gauge,
            "sluice_service_held",
            &["service"],
            "1 if backends that are not well are kept because so many fail at once that the fault \
             may be ours, else 0.",
            |all, family| {
                for (labels, service) in &all.services {
                    family.sample(labels, service.held.is_some());
                }
            },
        ),
    ]
}

fn backends() -> Vec<Metric> {
    let mut list = vec![
        of_backend(
            Counter,
            "sluice_backend_packets_total",
            "Frames forwarded to this backend.",
            |backend| Some(backend.packets_total.into()),
        ),
        of_backend(
            Counter,
            "sluice_backend_bytes_total",
            "Bytes of these frames as received, Ethernet header included.",
            |backend| Some(backend.bytes_total.into()),
        ),
        of_backend(
            Counter,
            "sluice_backend_return_packets_total",
            "Frames forwarded from this backend to its clients; only with nat do they come by.",
            |backend| Some(backend.return_packets_total.into()),
        ),
        of_backend(
            Counter,
            "sluice_backend_return_bytes_total",
            "Bytes of these frames as received, Ethernet header included.",
            |backend| Some(backend.return_bytes_total.into()),
        ),
        of_backend(
            Gauge,
            "sluice_backend_nat_ports_used",
            "Ports of this host that flows to this backend take, on all NAT addresses together.",
            |backend| backend.nat_ports.map(|ports| ports.used.into()),
        ),
        of_backend(
            Gauge,
            "sluice_backend_nat_ports",
            "Ports of this host that flows to this backend can take.",
            |backend| backend.nat_ports.map(|ports| ports.capacity.into()),
        ),
    ];
    list.extend(Event::ALL.map(|event| {
        let name = format!("sluice_backend_{}_total", event.name());
        Metric::new(Counter, name, BACKEND, event.help(), move |all, family| {
            for (labels, backend) in &all.backends {
                family.sample(labels, backend.total(event));
            }
        })
    }));
    list.extend([
        Metric::new(
            Histogram,
            "sluice_backend_handshake_seconds",
            BACKEND,
            "Time from a client's SYN to its first ACK, to a tick of the kernel; of backends that \
             have completed a handshake.",
            |all, family| {
                for (labels, api::Backend { handshake_times, .. }) in &all.backends {
                    let api::HandshakeTimes { bounds_seconds, counts, sum_seconds } =
                        handshake_times;
                    if counts.iter().any(|count| *count > 0) {
                        family.histogram(labels, bounds_seconds, counts, *sum_seconds);
                    }
                }
            },
        ),
        of_backend(
            Gauge,
            "sluice_backend_active_flows",
            "Flows that this backend has now.",
            |backend| Some(backend.active_flows.into()),
        ),
        of_backend(
            Gauge,
            "sluice_backend_eligible",
            "1 if new flows may choose this backend, else 0.",
            |backend| Some(backend.takes_new_flows.into()),
        ),
        of_backend(
            Gauge,
            "sluice_backend_weight",
            "Share of new flows, relative to those of the service's other backends.",
            |backend| Some(u64::from(backend.weight).into()),
        ),
        Metric::new(
            Gauge,
            "sluice_backend_admin_state",
            &["backend", "service", "state"],
            format!(
                "1; the label is what the operator wants of this backend: {}.",
                api::Admin::ALL.map(api::Admin::name).join(", ")
            ),
            |all, family| {
                for (labels, backend) in &all.backends {
                    family.sample_with(labels, ("state", backend.admin.name()), true);
                }
            },
        ),
    ]);
    list
}

fn health() -> Vec<Metric> {
    vec![
        Metric::new(
            Gauge,
            "sluice_backend_health_state",
            &["backend", "service", "state"],
            format!(
                "1; the label is what is seen of this backend: {}.",
                api::Health::ALL.map(api::Health::name).join(", ")
            ),
            |all, family| {
                for (labels, backend) in &all.backends {
                    family.sample_with(labels, ("state", backend.health.name()), true);
                }
            },
        ),
        Metric::new(
            Counter,
            "sluice_backend_probes_total",
            &["backend", "result", "service"],
            "Probes of this backend by what came of them: well, failed, or not_made for a fault \
             of this host.",
            |all, family| {
                for (labels, backend) in &all.backends {
                    let api::ProbeTotals { well, failed, not_made } = backend.probes_total;
                    for (result, count) in
                        [("well", well), ("failed", failed), ("not_made", not_made)]
                    {
                        family.sample_with(labels, ("result", result), count);
                    }
                }
            },
        ),
        of_backend(
            Gauge,
            "sluice_backend_probe_age_seconds",
            "Time since the last probe of this backend ended.",
            |backend| Some(backend.last_probe.as_ref()?.age_seconds.into()),
        ),
        of_backend(
            Gauge,
            "sluice_backend_probe_duration_seconds",
            "How long the last probe of this backend took.",
            |backend| Some(backend.last_probe.as_ref()?.seconds.into()),
        ),
        of_backend(
            Gauge,
            "sluice_backend_suspect",
            "1 if SYNs go to this backend and none is answered, else 0.",
            |backend| Some(backend.suspect.into()),
        ),
        of_backend(
            Gauge,
            "sluice_backend_outlier",
            "1 if this backend completes far fewer handshakes than its pool, else 0.",
            |backend| Some(backend.outlier.into()),
        ),
        one(Counter, "sluice_probes_total", "Probes begun since this daemon started.", |figures| {
            figures.status.probes.total.into()
        }),
        one(
            Counter,
            "sluice_probes_late_total",
            "Probes begun more than 100 ms after they were due.",
            |figures| figures.status.probes.late_total.into(),
        ),
        one(Gauge, "sluice_probes_running", "Probes under way.", |figures| {
            figures.status.probes.running.into()
        }),
        one(Gauge, "sluice_probe_targets", "Backends that are probed.", |figures| {
            figures.status.probes.targets.into()
        }),
    ]
}

fn drains() -> Vec<Metric> {
    vec![
        of_drain(
            Gauge,
            "sluice_backend_drain_flows_at_start",
            "Flows of a backend that drains, or has drained, when new ones had been stopped.",
            |drain| drain.flows_at_start.map(Into::into),
        ),
        of_drain(
            Gauge,
            "sluice_backend_drain_flows_left",
            "Flows that are left of them.",
            |drain| Some(drain.flows_left.into()),
        ),
        of_drain(
            Gauge,
            "sluice_backend_drain_flows_cut",
            "Flows that the drain's deadline cut.",
            |drain| Some(drain.flows_cut.into()),
        ),
        of_drain(
            Gauge,
            "sluice_backend_drain_new_flows",
            "Flows that chose the backend since it drains; more than 0 only as the last resort.",
            |drain| Some(drain.new_flows_since_drain.into()),
        ),
        of_drain(
            Gauge,
            "sluice_backend_drain_seconds",
            "Time since the drain began, until it ended.",
            |drain| Some(drain.seconds.into()),
        ),
        of_drain(
            Gauge,
            "sluice_backend_drain_remaining_seconds",
            "Time until the drain's deadline resets the flows that are left.",
            |drain| Some(drain.deadline_seconds.into()),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `promtool check metrics` asks for, and more.
    #[test]
    fn names_follow_the_conventions() {
        let mut names: Vec<&str> = Vec::new();
        for Metric { name, kind, labels, help, .. } in LIST.iter() {
            assert!(name.starts_with("sluice_"), "{name}");
            assert_eq!(*kind == Counter, name.ends_with("_total"), "{name}");
            assert!(help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
            assert!(labels.is_sorted(), "{name}: {labels:?}");
            assert!(!labels.contains(&"client"), "{name}");
            names.push(name);
        }
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }
}
