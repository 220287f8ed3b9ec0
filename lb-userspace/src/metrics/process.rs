//! Our own process: processor time, memory, file descriptors, threads, start.

use std::sync::LazyLock;

use prometheus::{TextEncoder, core::Collector as _, process_collector::ProcessCollector};

use super::text::Text;

/// Names and help are the `prometheus` crate's, which are those of Prometheus' own libraries.
pub fn append(text: &mut Text) {
    static OURSELVES: LazyLock<ProcessCollector> = LazyLock::new(ProcessCollector::for_self);
    match TextEncoder::new().encode_to_string(&OURSELVES.collect()) {
        Ok(of_process) => text.append(&of_process),
        Err(error) => tracing::warn!("can't tell of our own process: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_tells_its_memory_and_time() {
        let mut text = Text::default();
        append(&mut text);
        let text = text.into_string();
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes"] {
            assert!(text.lines().any(|line| line.starts_with(&format!("{name} "))), "{text}");
        }
    }
}
