//! `/metrics`: what the instance tells of itself, in Prometheus' text format.
//!
//! `list` is the one list of names, types, labels and help: the exposition is made from it, and
//! so is `docs/metrics.md`. A metric can't be on the list without saying where its samples come
//! from. Labels name services, backends, reasons and interfaces, never a client.
//!
//! The text is written by hand, because a registry filled anew for each scrape takes several
//! allocations a sample, and there are 22 to 40 samples a backend; the `prometheus` crate tells of
//! our own process.

mod list;
mod metric;
mod process;
#[cfg(test)]
mod reference;
mod samples;
mod text;

use self::text::Text;
use crate::control::api;

/// Everything that the metrics are made from: a copy, so that nobody waits for the text.
#[derive(Debug)]
pub struct Figures {
    /// What the instance is and does.
    pub status: api::Status,
    /// What became of every frame.
    pub reasons: api::Reasons,
    /// How drains go, or went.
    pub drains: Vec<api::Drain>,
}

/// Bytes that the text mostly takes without backends, and for each of them: so much is asked for
/// at the start, and it need not be moved while it grows.
const ROOM: usize = 64 << 10;
const ROOM_OF_BACKEND: usize = 4 << 10;

/// All metrics in Prometheus' text format, version 0.0.4.
pub fn exposition(figures: &Figures) -> String {
    let labelled = samples::Labelled::new(figures);
    let mut text = Text::with_room(ROOM + labelled.backends.len() * ROOM_OF_BACKEND);
    for metric in list::LIST.iter() {
        let mut family = text.family(metric);
        (metric.samples)(&labelled, &mut family);
    }
    process::append(&mut text);
    text.into_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::sample;

    fn sample() -> Figures {
        Figures { status: sample::status(), reasons: sample::reasons(), drains: sample::drains() }
    }

    #[track_caller]
    fn assert_lines(text: &str, expected: &[&str]) {
        for line in expected {
            assert!(text.lines().any(|l| l == *line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn metrics_tell_what_status_and_reasons_tell() {
        let text = exposition(&sample());
        assert_lines(
            &text,
            &[
                "sluice_build_info{version=\"0.1.0\"} 1",
                "sluice_ready 1",
                "sluice_problems 1",
                "sluice_interface_received_frames_total{interface=\"eth0\"} 1334947",
                "sluice_interface_xdp_statistics_total{interface=\"eth0\",statistic=\"rx_queue_xdp_tx_errors\"} 2",
                "sluice_frames_unexplained 0",
                "sluice_interface_frames_total{interface=\"eth1\",reason=\"forwarded\",verdict=\"forward\"} 9999",
                "sluice_interface_frames_total{interface=\"eth0\",reason=\"fragment\",verdict=\"drop\"} 4",
                "sluice_interface_frames_unexplained{interface=\"eth1\"} 0",
                "sluice_interface_attached{interface=\"eth0\"} 1",
                "sluice_losses_watched 1",
                "sluice_interface_exceptions_total{action=\"transmit\",interface=\"eth0\"} 5",
                "sluice_interface_exceptions_total{action=\"aborted\",interface=\"eth0\"} 0",
                "sluice_interface_redirect_errors_total{error=\"ENETDOWN\",interface=\"eth0\",target=\"eth1\"} 8",
                "sluice_interface_xdp_mode{interface=\"eth0\",mode=\"native\"} 1",
                "sluice_flow_capacity 1048576",
                "sluice_flows{state=\"old\"} 1131",
                "sluice_flow_evictions_total{state=\"young\"} 0",
                "sluice_flow_overflows_total 0",
                "sluice_service_info{affinity=\"none\",forwarding=\"l2\",service=\"web\",vip=\"203.0.113.10:80\"} 1",
                "sluice_service_tier{service=\"web\",tier=\"healthy\"} 1",
                "sluice_backend_active_flows{backend=\"web-1\",service=\"web\"} 12",
                "sluice_backend_weight{backend=\"web-2\",service=\"web\"} 50",
                "sluice_backend_eligible{backend=\"web-1\",service=\"web\"} 1",
                "sluice_backend_admin_state{backend=\"web-1\",service=\"web\",state=\"enabled\"} 1",
                "sluice_config_generation 7",
                "sluice_drift_repairs_total 0",
                "sluice_backend_packets_total{backend=\"web-1\",service=\"web\"} 99999",
                "sluice_backend_bytes_total{backend=\"web-1\",service=\"web\"} 12345678",
                "sluice_backend_new_flows_total{backend=\"web-1\",service=\"web\"} 3456",
                "sluice_backend_adopted_flows_total{backend=\"api-1\",service=\"api\"} 0",
                "sluice_backend_untracked_flows_total{backend=\"api-1\",service=\"api\"} 0",
                "sluice_backend_syn_retransmissions_total{backend=\"web-2\",service=\"web\"} 0",
                "sluice_backend_reset_flows_total{backend=\"web-2\",service=\"web\"} 7",
                "sluice_backend_handshakes_total{backend=\"web-1\",service=\"web\"} 3",
                "sluice_backend_client_resets_total{backend=\"web-1\",service=\"web\"} 1",
                "sluice_backend_second_tries_total{backend=\"web-1\",service=\"web\"} 2",
                "sluice_backend_health_state{backend=\"web-2\",service=\"web\",state=\"unreachable\"} 1",
                "sluice_backend_probes_total{backend=\"web-1\",service=\"web\",result=\"well\"} 400",
                "sluice_backend_probes_total{backend=\"web-2\",service=\"web\",result=\"failed\"} 5",
                "sluice_backend_probes_total{backend=\"web-2\",service=\"web\",result=\"not_made\"} 1",
                "sluice_backend_probe_age_seconds{backend=\"web-2\",service=\"web\"} 1.5",
                "sluice_backend_probe_duration_seconds{backend=\"web-1\",service=\"web\"} 0.00125",
                "sluice_backend_suspect{backend=\"web-1\",service=\"web\"} 0",
                "sluice_backend_suspect{backend=\"web-2\",service=\"web\"} 1",
                "sluice_backend_outlier{backend=\"web-2\",service=\"web\"} 0",
                "sluice_backend_drain_flows_at_start{backend=\"web-1\",service=\"web\"} 30",
                "sluice_backend_drain_flows_left{backend=\"web-1\",service=\"web\"} 2",
                "sluice_backend_drain_remaining_seconds{backend=\"web-1\",service=\"web\"} 287.5",
                "sluice_service_held{service=\"web\"} 0",
                "sluice_probes_late_total 2",
                "sluice_probes_running 1",
                "sluice_frames_total{reason=\"forwarded\",verdict=\"forward\"} 99999",
                "sluice_frames_total{verdict=\"answer\",reason=\"no_backend\"} 56",
            ],
        );
        let frames: u64 = text
            .lines()
            .filter(|line| line.starts_with("sluice_frames_total{"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum();
        assert_eq!(frames, sample::reasons().received);
    }

    #[test]
    fn a_backend_has_one_state_and_none_of_its_probes_is_made_up() {
        let mut figures = sample();
        let web = &mut figures.status.services[1];
        web.held = Some("2 of 2 backends fail at once, so the fault may be ours".to_owned());
        web.backends[0].last_probe = None;
        web.backends[0].outlier = true;
        let text = exposition(&figures);
        let of = |metric: &str| text.lines().filter(|line| line.starts_with(metric)).count();
        assert_eq!(of("sluice_backend_health_state{"), 3, "{text}");
        assert_eq!(of("sluice_backend_probes_total{"), 3 * 3, "{text}");
        assert_eq!(of("sluice_backend_probe_age_seconds{"), 2, "{text}");
        assert_eq!(of("sluice_backend_probe_duration_seconds{"), 2, "{text}");
        assert_lines(
            &text,
            &[
                "sluice_service_held{service=\"web\"} 1",
                "sluice_backend_outlier{backend=\"web-1\",service=\"web\"} 1",
            ],
        );
    }

    #[test]
    fn handshake_times_are_a_histogram() {
        let text = exposition(&sample());
        assert_lines(&text, &["# TYPE sluice_backend_handshake_seconds histogram"]);
        let histogram: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("sluice_backend_handshake_seconds_"))
            .collect();
        assert!(histogram.iter().all(|line| line.contains("backend=\"web-1\",service=\"web\"")));
        assert_eq!(histogram.len(), 15 + 1 + 2, "{histogram:?}");
        for line in [
            "bucket{backend=\"web-1\",service=\"web\",le=\"0.004\"} 1",
            "bucket{backend=\"web-1\",service=\"web\",le=\"0.008\"} 2",
            "bucket{backend=\"web-1\",service=\"web\",le=\"0.016\"} 3",
            "bucket{backend=\"web-1\",service=\"web\",le=\"65.536\"} 3",
            "bucket{backend=\"web-1\",service=\"web\",le=\"+Inf\"} 3",
            "sum{backend=\"web-1\",service=\"web\"} 0.016",
            "count{backend=\"web-1\",service=\"web\"} 3",
        ] {
            assert!(histogram.contains(&line), "no {line} in {histogram:?}");
        }
    }

    #[test]
    fn an_instance_without_services_has_metrics_too() {
        let mut figures = sample();
        figures.status.services.clear();
        figures.drains.clear();
        let text = exposition(&figures);
        assert_lines(&text, &["sluice_ready 1"]);
        assert!(!text.contains("sluice_backend_"), "{text}");
    }

    #[test]
    fn samples_have_the_labels_that_the_list_names() {
        let text = exposition(&sample());
        let mut told = 0;
        for metric in list::LIST.iter() {
            let suffixes = ["", "_bucket", "_sum", "_count"].map(|s| format!("{}{s}", metric.name));
            for line in text.lines() {
                let (series, _) = line.rsplit_once(' ').expect("a value");
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                if !suffixes.iter().any(|wanted| wanted == name) {
                    continue;
                }
                // No name or value of the sample has a comma or a quote.
                let labels = labels.trim_end_matches('}').split(',');
                let mut labels: Vec<&str> = labels
                    .filter_map(|label| Some(label.split_once('=')?.0))
                    .filter(|label| *label != "le")
                    .collect();
                labels.sort_unstable();
                assert_eq!(labels, metric.labels, "{line}");
                told += 1;
            }
        }
        assert!(told > 100, "{told}");
    }

    #[test]
    fn no_series_is_told_twice_and_no_client_at_all() {
        let text = exposition(&sample());
        let mut series: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| Some(line.rsplit_once(' ')?.0))
            .collect();
        let all = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), all);
        assert!(!text.contains("198.51.100."), "{text}");
    }
}
