//! Frames: what became of them, and what interfaces and their drivers count.

use std::collections::BTreeMap;

use lb_common::reason::{Class, Reason};

use super::{
    super::{
        metric::Metric,
        samples::{of_interface, one},
        text::label,
    },
    Counter, Gauge,
};
use crate::control::api;

/// What became of them.
pub fn all() -> Vec<Metric> {
    let classes = [Class::Pass, Class::Drop, Class::Answer].map(Class::name).join(", ");
    let all = Metric::new(
        Counter,
        "sluice_frames_total",
        &["reason", "verdict"],
        format!(
            "Frames by what became of them (forward, {classes}) and why. The sum is what the \
             interfaces received, but for probe_undelivered."
        ),
        |all, family| {
            let reasons = &all.figures.reasons;
            family.sample(r#"reason="forwarded",verdict="forward""#, reasons.forwarded);
            for reason in &reasons.reasons {
                let verdict = format!(r#"verdict="{}""#, reason.class);
                family.sample_with(&verdict, ("reason", &reason.name), reason.count);
            }
        },
    );
    let unexplained = one(
        Gauge,
        "sluice_frames_unexplained",
        "Frames that the interfaces received and that got no verdict, for certain, since this \
         daemon started; less than 0: verdicts about frames that they do not tell of.",
        |figures| figures.reasons.unexplained.into(),
    );
    let of_interface = Metric::new(
        Counter,
        "sluice_interface_frames_total",
        &["interface", "reason", "verdict"],
        "The same of each interface of the config; answers to our own probes that arrived on others \
         are not among them.",
        |all, family| {
            for told in &all.figures.reasons.interfaces {
                let label = label("interface", &told.name);
                let forwarded = format!(r#"{label},reason="forwarded""#);
                family.sample_with(&forwarded, ("verdict", "forward"), told.forwarded);
                for reason in Reason::ALL {
                    let count = told.counts.get(reason.name()).copied().unwrap_or(0);
                    let labels = format!(r#"{label},reason="{}""#, reason.name());
                    family.sample_with(&labels, ("verdict", reason.class().name()), count);
                }
            }
        },
    );
    let unexplained_of_interface = Metric::new(
        Gauge,
        "sluice_interface_frames_unexplained",
        &["interface"],
        "Of these the interface's own.",
        |all, family| {
            for told in &all.figures.reasons.interfaces {
                family.sample(&label("interface", &told.name), told.unexplained);
            }
        },
    );
    vec![all, of_interface, unexplained, unexplained_of_interface]
}

/// What each interface tells.
pub fn by_interface() -> Vec<Metric> {
    let mut list = vec![
        of_interface(
            Gauge,
            "sluice_interface_attached",
            "1 if the program is on this interface, else 0.",
            |interface| Some(interface.attached.into()),
        ),
        Metric::new(
            Gauge,
            "sluice_interface_xdp_mode",
            &["interface", "mode"],
            "1; the label is the mode: native, or generic, which is slow.",
            |all, family| {
                for (labels, interface) in &all.interfaces {
                    family.sample_with(labels, ("mode", &interface.xdp_mode), true);
                }
            },
        ),
    ];
    type Counts = [(&'static str, &'static str, fn(&api::InterfaceCounts) -> u64); 9];
    let counts: Counts = [
        (
            "sluice_interface_received_frames_total",
            "Good frames that the driver took, those included that XDP or the host dropped; since \
             the interface was made, as all its counts.",
            |counts| counts.received_frames_total,
        ),
        ("sluice_interface_received_bytes_total", "Bytes of the frames received.", |counts| {
            counts.received_bytes_total
        }),
        ("sluice_interface_receive_errors_total", "Bad frames received.", |counts| {
            counts.receive_errors_total
        }),
        (
            "sluice_interface_receive_dropped_total",
            "Frames received that driver or host dropped: no room, or nobody wanted them.",
            |counts| counts.receive_dropped_total,
        ),
        (
            "sluice_interface_receive_missed_total",
            "Frames that the card dropped because the host did not take them.",
            |counts| counts.receive_missed_total,
        ),
        (
            "sluice_interface_sent_frames_total",
            "Frames sent; whether those of XDP are among them is the driver's matter.",
            |counts| counts.sent_frames_total,
        ),
        ("sluice_interface_sent_bytes_total", "Bytes of the frames sent.", |counts| {
            counts.sent_bytes_total
        }),
        ("sluice_interface_send_errors_total", "Frames that could not be sent.", |counts| {
            counts.send_errors_total
        }),
        ("sluice_interface_send_dropped_total", "Frames dropped on their way out.", |counts| {
            counts.send_dropped_total
        }),
    ];
    list.extend(counts.map(|(name, help, count)| {
        Metric::new(Counter, name, &["interface"], help, move |all, family| {
            for (labels, interface) in &all.interfaces {
                if let Some(counts) = &interface.counts {
                    family.sample(labels, count(counts));
                }
            }
        })
    }));
    list.push(Metric::new(
        Counter,
        "sluice_interface_xdp_statistics_total",
        &["interface", "statistic"],
        "What the driver counts of XDP, by its own names (`ethtool -S`), all queues together: look \
         for errors and for frames that it could not send.",
        |all, family| {
            for (labels, interface) in &all.interfaces {
                for (statistic, count) in interface.counts.iter().flat_map(|counts| &counts.xdp) {
                    family.sample_with(labels, ("statistic", statistic), *count);
                }
            }
        },
    ));
    list.extend(losses());
    list
}

/// What a program can answer with which a driver may fail.
const ACTIONS: [&str; 3] = ["aborted", "redirect", "transmit"];

/// What is lost after the program's decision.
fn losses() -> Vec<Metric> {
    vec![
        one(
            Gauge,
            "sluice_losses_watched",
            "1 if the kernel lets this daemon count exceptions and redirect errors, else 0.",
            |figures| figures.status.losses_watched.into(),
        ),
        Metric::new(
            Counter,
            "sluice_interface_exceptions_total",
            &["action", "interface"],
            "Frames that arrived here and with which the driver could not do what the program had \
             answered (tracepoint xdp_exception), since this daemon started.",
            |all, family| {
                let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
                for interface in &all.figures.status.interfaces {
                    // What has not happened yet is 0, or nobody would see it begin.
                    counts.extend(ACTIONS.map(|action| ((&*interface.name, action), 0)));
                }
                for loss in all.figures.status.losses.iter().filter(|loss| loss.error.is_none()) {
                    counts.insert((&*loss.interface, &*loss.action), loss.frames_total);
                }
                for ((interface, action), count) in counts {
                    let action = label("action", action);
                    family.sample_with(&action, ("interface", interface), count);
                }
            },
        ),
        Metric::new(
            Counter,
            "sluice_interface_redirect_errors_total",
            &["error", "interface", "target"],
            "Frames that arrived here and could not be handed to the target interface (tracepoint \
             xdp_redirect_err), by the kernel's error, since this daemon started.",
            |all, family| {
                for loss in &all.figures.status.losses {
                    if let (Some(error), Some(target)) = (&loss.error, &loss.target) {
                        let interface = label("interface", &loss.interface);
                        let labels = format!("{},{interface}", label("error", error));
                        family.sample_with(&labels, ("target", target), loss.frames_total);
                    }
                }
            },
        ),
    ]
}
