//! The log of commands that stay: to stderr, or, under systemd, to the journal with its fields.

use std::{io, os::fd::AsFd};

use clap::ValueEnum;
use nix::sys::stat::fstat;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, filter::LevelFilter, fmt::MakeWriter, layer::SubscriberExt as _,
    registry::LookupSpan, util::SubscriberInitExt as _,
};

/// What the fields are called in the journal: `SLUICE_SERVICE`, `SLUICE_BACKEND` and so on.
const PREFIX: &str = "SLUICE";

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The journal if stderr leads there, else text
    #[default]
    Auto,
    /// Lines for people, to stderr
    Text,
    /// One JSON object a line, to stderr
    Json,
    /// systemd's journal, with fields: journalctl SLUICE_SERVICE=web
    Journal,
}

/// From now on what happens is logged; `RUST_LOG` chooses how much.
pub fn start(format: Format) {
    let leads_to_journal =
        || std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&io::stderr(), &stream));
    let to_journal = match format {
        Format::Auto => leads_to_journal(),
        Format::Journal => true,
        Format::Text | Format::Json => false,
    };
    let journal = to_journal.then(|| {
        tracing_journald::layer().map(|layer| layer.with_field_prefix(Some(PREFIX.to_owned())))
    });
    let (journal, refused) = match journal {
        Some(Ok(layer)) => (Some(layer), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let stderr = journal.is_none().then(|| to_stream(io::stderr, format));
    let filter =
        EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    // Fails only if the log has already been set up.
    let _ = tracing_subscriber::registry().with(filter).with(journal).with(stderr).try_init();
    if let Some(error) = refused {
        tracing::warn!("can't log to the journal: {error}; stderr has it");
    }
}

/// Lines into a stream.
fn to_stream<S, W>(writer: W, format: Format) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        Format::Json => layer.json().flatten_event(true).boxed(),
        Format::Auto | Format::Text | Format::Journal => {
            layer.with_ansi(super::colours(&io::stderr())).boxed()
        }
    }
}

/// Whether this is the stream that `JOURNAL_STREAM` names, as `DEVICE:INODE` (systemd.exec(5)): the
/// variable is inherited, and stderr may lead elsewhere by now.
fn is_stream(stream: &impl AsFd, named: &str) -> bool {
    let Some((device, inode)) = named.split_once(':') else { return false };
    let Ok(is) = fstat(stream) else { return false };
    device.parse() == Ok(is.st_dev) && inode.parse() == Ok(is.st_ino)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{
        control::{Peer, api::EventKind},
        journal::{Entry, Journal},
    };

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_of_json_with_its_fields() {
        let directory = tempfile::tempdir().expect("a directory");
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = to_stream(move || writer.clone(), Format::Json);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let peer = Peer { pid: Some(7), uid: 1000, gid: 1000 };
            let entry = Entry::new("enabled -> draining").about(Some("web"), Some("web-1"));
            Journal::of(directory.path()).note(EventKind::Change, entry.by(&peer, 3));
        });
        let bytes = lines.0.lock().expect("no panic").clone();
        let text = String::from_utf8(bytes).expect("text");
        let line: serde_json::Value = serde_json::from_str(&text).expect("one object");
        assert_eq!((&line["level"], &line["kind"]), (&"INFO".into(), &"change".into()), "{line}");
        assert_eq!((&line["service"], &line["backend"]), (&"web".into(), &"web-1".into()));
        assert_eq!(
            (&line["uid"], &line["pid"], &line["generation"]),
            (&1000.into(), &7.into(), &3.into())
        );
        assert_eq!(line["message"], "web/web-1: enabled -> draining");
    }

    #[test]
    fn the_journal_is_known_by_what_the_stream_is() {
        let file = tempfile::tempfile().expect("a file");
        let is = fstat(&file).expect("what it is");
        assert!(is_stream(&file, &format!("{}:{}", is.st_dev, is.st_ino)));
        for other in
            [format!("{}:{}", is.st_dev, is.st_ino + 1), "x".into(), "1:".into(), "".into()]
        {
            assert!(!is_stream(&file, &other), "{other}");
        }
    }
}
