//! The control socket: whatever is said there, each request has an answer, and what is wanted
//! afterwards can be written, kept and read again.
//!
//! An input is text: requests between lines of three dashes. A request is a line with method and
//! path, then the body; what does not begin so is sent as it is, and may be no HTTP at all.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::serve::Listener;
use lb_userspace::{
    choice::Condition,
    control::{Control, Peer, api, server},
    drain::Moment,
    intent::{Declared, Intent, Refusal, Take, diff, kept::Store},
    metrics::Figures,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    sync::mpsc,
};

use super::{runtime, state};

/// Requests of an input at most.
const REQUESTS: usize = 8;
/// More than any request of an input, or answer.
const ROOM: usize = 1 << 20;

/// One input.
///
/// # Panics
/// If an answer is none, or is an error of ours; or if what is wanted afterwards can't be written,
/// kept and read again.
pub fn run(input: &[u8]) {
    let kept = Store::restore(
        &state::directory().join("control"),
        "sluice.toml",
        state::CONFIG,
        Moment(0),
    );
    let kept = kept.expect("a start");
    let instance = Arc::new(Instance(Mutex::new(kept.intent)));
    let control: Arc<dyn Control> = Arc::clone(&instance) as Arc<dyn Control>;
    runtime().block_on(async {
        let (connections, listener) = mpsc::channel(1);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = server::serve_peers(InMemory(listener), control, async {
            let _ = stopped.await;
        });
        let asking = async {
            for request in parts(input).take(REQUESTS) {
                ask(&connections, request).await;
            }
            drop(stop);
        };
        tokio::join!(serving, asking)
    });
    let intent = instance.lock();
    state::telling(&intent);
    if intent.generation() > 1 {
        let directory = state::directory().join("control");
        std::fs::create_dir_all(&directory).expect("a directory");
        state::again(&directory, &kept.store, &intent);
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}

/// What stands between lines of three dashes.
fn parts(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    const BETWEEN: &[u8] = b"\n---\n";
    let mut rest = Some(input);
    std::iter::from_fn(move || {
        let all = rest?;
        match all.windows(BETWEEN.len()).position(|part| part == BETWEEN) {
            Some(at) => {
                rest = Some(&all[at + BETWEEN.len()..]);
                Some(&all[..at])
            }
            None => rest.take(),
        }
    })
}

/// Sends a request over a connection of its own, and reads the answer to its end.
async fn ask(connections: &mpsc::Sender<DuplexStream>, request: &[u8]) {
    let (mut ours, theirs) = duplex(ROOM);
    connections.send(theirs).await.expect("the server serves");
    let whole = whole(request);
    ours.write_all(whole.as_deref().unwrap_or(request)).await.expect("room");
    if whole.is_none() {
        ours.shutdown().await.expect("an end");
    }
    let mut answer = Vec::new();
    ours.read_to_end(&mut answer).await.expect("an end");
    if answer.is_empty() && whole.is_none() {
        return;
    }
    let says = String::from_utf8_lossy(&answer);
    let status = says.strip_prefix("HTTP/1.1 ").or_else(|| says.strip_prefix("HTTP/1.0 "));
    let status = status.and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
    let status = status.unwrap_or_else(|| panic!("no answer: {says:?}"));
    assert!(status < 500, "an error of ours: {says}");
    if whole.is_some()
        && let Some((head, body)) = says.split_once("\r\n\r\n")
        && head.contains("application/json")
    {
        let json: Result<serde_json::Value, _> = serde_json::from_str(body);
        assert!(json.is_ok(), "no JSON: {says}");
    }
}

/// A request of HTTP, if that is what is meant.
fn whole(request: &[u8]) -> Option<Vec<u8>> {
    let (line, body) = match request.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&request[..end], &request[end + 1..]),
        None => (request, &[][..]),
    };
    let (method, path) = str::from_utf8(line).ok()?.split_once(' ')?;
    let is_method = matches!(method, "GET" | "POST");
    let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_method || !is_path || path.contains(['#', '"', '<', '>', '\\', '^', '`', '{', '|', '}'])
    {
        return None;
    }
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    Some([head.as_bytes(), body].concat())
}

/// Connections in memory, from root.
struct InMemory(mpsc::Receiver<DuplexStream>);

impl Listener for InMemory {
    type Io = DuplexStream;
    type Addr = Option<Peer>;

    async fn accept(&mut self) -> (DuplexStream, Option<Peer>) {
        match self.0.recv().await {
            Some(stream) => (stream, Some(Peer { pid: Some(1), uid: 0, gid: 0 })),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Option<Peer>> {
        Ok(None)
    }
}

/// What is wanted, changed as the daemon changes it; there are no maps that follow, and nothing is
/// seen of backends.
struct Instance(Mutex<Intent>);

impl Instance {
    fn lock(&self) -> MutexGuard<'_, Intent> {
        self.0.lock().expect("nobody panicked with it")
    }

    fn take(intent: &mut Intent, next: Intent) -> api::Changed {
        let differences = diff(&intent.desired(), &next.desired());
        *intent = next;
        api::Changed {
            changed: !differences.is_empty(),
            generation: intent.generation(),
            differences,
            warnings: Vec::new(),
        }
    }

    fn declared(intent: &Intent, file: &api::ConfigFile) -> Result<Intent, Refusal> {
        let declared = Declared::parse(&file.name, &file.text)
            .map_err(|error| Refusal::File(error.to_string()))?;
        Ok(intent.declare(declared, Take::Apply, Moment(1_777_620_600_000)))
    }
}

impl Control for Instance {
    fn status(&self) -> api::Status {
        let intent = self.lock();
        api::Status {
            instance: "fuzz".to_owned(),
            version: String::new(),
            ready: false,
            since: String::new(),
            interfaces: Vec::new(),
            services: Vec::new(),
            flows: api::FlowTable::default(),
            probes: api::Probes { targets: 0, running: 0, total: 0, late_total: 0 },
            config: intent.declared().name().to_owned(),
            generation: intent.generation(),
            reconciliations: api::Reconciliations::default(),
            drift_repairs_total: 0,
            problems: Vec::new(),
            troubles: Vec::new(),
            losses: Vec::new(),
            losses_watched: false,
        }
    }

    fn flows(&self, filter: &api::FlowFilter) -> api::Flows {
        api::Flows {
            flows: Vec::new(),
            matching: 0,
            by_state: BTreeMap::new(),
            by_backend: Vec::new(),
            by_client: Vec::new(),
            client_prefixes: 0,
            oldest: None,
            limit: filter.limit.unwrap_or(0),
            truncated: false,
        }
    }

    fn reasons(&self) -> api::Reasons {
        api::Reasons {
            received: 0,
            forwarded: 0,
            unexplained: 0,
            reasons: Vec::new(),
            interfaces: Vec::new(),
        }
    }

    fn figures(&self) -> Figures {
        Figures { status: self.status(), reasons: self.reasons(), drains: Vec::new() }
    }

    fn drains(&self, _: &api::DrainFilter) -> Vec<api::Drain> {
        Vec::new()
    }

    fn events(&self, _: &api::EventFilter) -> api::Events {
        api::Events { events: Vec::new(), truncated: false }
    }

    fn export(&self) -> Result<api::Exported, anyhow::Error> {
        Ok(api::Exported { text: lb_userspace::config::export(&self.lock().desired())? })
    }

    fn plan(&self, file: &api::ConfigFile) -> Result<api::Plan, Refusal> {
        let intent = self.lock();
        let next = Self::declared(&intent, file)?;
        let differences = diff(&intent.desired(), &next.desired());
        Ok(api::Plan {
            changes: !differences.is_empty(),
            differences,
            flows: api::PlannedFlows::default(),
            slots: Vec::new(),
            refused: None,
            warnings: Vec::new(),
        })
    }

    fn apply(&self, file: &api::ConfigFile, _: &Peer) -> Result<api::Changed, Refusal> {
        let mut intent = self.lock();
        let next = Self::declared(&intent, file)?;
        if !file.force {
            intent.guard(&next, |_, _| Condition::Well)?;
        }
        Ok(Self::take(&mut intent, next))
    }

    fn change(&self, asked: &api::Transaction, _: &Peer) -> Result<api::Changed, Refusal> {
        let mut intent = self.lock();
        let now = Moment(1_777_620_600_000);
        let next = intent.change(asked, |_, _| Condition::Well, now)?;
        Ok(Self::take(&mut intent, next))
    }
}
