//! What is seen of the backends, and how the prober itself does.

use prometheus::{
    GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, core::Collector,
};

use super::{backends, gauge, register};
use crate::control::api;

const OF_BACKEND: [&str; 2] = ["service", "backend"];

/// All of it.
pub fn register_all(registry: &Registry, status: &api::Status) -> Result<(), prometheus::Error> {
    register(registry, states(status)?)?;
    register(registry, probes(status)?)?;
    register(
        registry,
        of_last_probe(
            status,
            "sluice_backend_probe_age_seconds",
            "Time since the last probe of this backend ended.",
            |probe| probe.age_seconds,
        )?,
    )?;
    register(
        registry,
        of_last_probe(
            status,
            "sluice_backend_probe_duration_seconds",
            "How long the last probe of this backend took.",
            |probe| probe.seconds,
        )?,
    )?;
    register(
        registry,
        flag(
            status,
            "sluice_backend_suspect",
            "1 if SYNs go to this backend and none is answered, else 0.",
            |backend| backend.suspect,
        )?,
    )?;
    register(
        registry,
        flag(
            status,
            "sluice_backend_outlier",
            "1 if this backend completes far fewer handshakes than its pool, else 0.",
            |backend| backend.outlier,
        )?,
    )?;
    register(registry, held(status)?)?;
    let help = "Probes begun more than 100 ms after they were due.";
    let late = IntCounter::new("sluice_probes_late_total", help)?;
    late.inc_by(status.probes.late_total);
    register(registry, late)?;
    register(registry, gauge("sluice_probes_running", "Probes under way.", status.probes.running)?)
}

fn states(status: &api::Status) -> Result<impl Collector + use<>, prometheus::Error> {
    let names = api::Health::ALL.map(api::Health::name).join(", ");
    let help = format!("1; the label is what is seen of this backend: {names}.");
    let opts = Opts::new("sluice_backend_health_state", help);
    let states = IntGaugeVec::new(opts, &["service", "backend", "state"])?;
    for (service, backend) in backends(status) {
        let labels = [&*service.name, &*backend.name, backend.health.name()];
        states.with_label_values(&labels).set(1);
    }
    Ok(states)
}

fn probes(status: &api::Status) -> Result<impl Collector + use<>, prometheus::Error> {
    let help = "Probes of this backend by what came of them: well, failed, or not_made for a \
                fault of this host.";
    let opts = Opts::new("sluice_backend_probes_total", help);
    let probes = IntCounterVec::new(opts, &["service", "backend", "result"])?;
    for (service, backend) in backends(status) {
        let api::ProbeTotals { well, failed, not_made } = backend.probes_total;
        for (result, count) in [("well", well), ("failed", failed), ("not_made", not_made)] {
            probes.with_label_values(&[&*service.name, &*backend.name, result]).inc_by(count);
        }
    }
    Ok(probes)
}

/// A figure of the last probe; no sample of a backend that was not probed.
fn of_last_probe(
    status: &api::Status,
    name: &str,
    help: &str,
    figure: fn(&api::LastProbe) -> f64,
) -> Result<impl Collector + use<>, prometheus::Error> {
    let figures = GaugeVec::new(Opts::new(name, help), &OF_BACKEND)?;
    for (service, backend) in backends(status) {
        if let Some(probe) = &backend.last_probe {
            figures.with_label_values(&[&service.name, &backend.name]).set(figure(probe));
        }
    }
    Ok(figures)
}

fn flag(
    status: &api::Status,
    name: &str,
    help: &str,
    is_set: fn(&api::Backend) -> bool,
) -> Result<impl Collector + use<>, prometheus::Error> {
    let flags = IntGaugeVec::new(Opts::new(name, help), &OF_BACKEND)?;
    for (service, backend) in backends(status) {
        let labels = [&service.name, &backend.name];
        flags.with_label_values(&labels).set(is_set(backend).into());
    }
    Ok(flags)
}

fn held(status: &api::Status) -> Result<impl Collector + use<>, prometheus::Error> {
    let help = "1 if backends that are not well are kept because so many fail at once that the \
                fault may be ours, else 0.";
    let held = IntGaugeVec::new(Opts::new("sluice_service_held", help), &["service"])?;
    for service in &status.services {
        held.with_label_values(&[&service.name]).set(service.held.is_some().into());
    }
    Ok(held)
}
