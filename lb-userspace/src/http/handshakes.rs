//! The histogram of handshake times. The kernel program has sorted them into buckets already,
//! which the client library's own histograms can't take; so the family is put together here.

use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use crate::control::api;

/// `sluice_backend_handshake_seconds`; `None` without a backend.
pub fn family(status: &api::Status) -> Option<MetricFamily> {
    let metrics: Vec<Metric> = super::backends(status)
        .map(|(service, backend)| {
            let mut metric = Metric::from_label(vec![
                label("backend", &backend.name),
                label("service", &service.name),
            ]);
            metric.set_histogram(histogram(&backend.handshake_times));
            metric
        })
        .collect();
    if metrics.is_empty() {
        return None;
    }
    let mut family = MetricFamily::default();
    family.set_name("sluice_backend_handshake_seconds".to_owned());
    family
        .set_help("Time from a client's SYN to its first ACK, to a tick of the kernel.".to_owned());
    family.set_field_type(MetricType::HISTOGRAM);
    family.set_metric(metrics);
    Some(family)
}

/// The last count has no bound: the text format's `+Inf` is the count of all.
fn histogram(times: &api::HandshakeTimes) -> Histogram {
    let mut below = 0;
    let buckets = times.bounds_seconds.iter().zip(&times.counts).map(|(bound, count)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(below);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(times.counts.iter().sum());
    histogram.set_sample_sum(times.sum_seconds);
    histogram
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}
