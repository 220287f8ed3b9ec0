//! Both ends of the socket, talking.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::{
    Control, Peer, api,
    client::{Client, Error},
    sample::{self, Sample},
    server::{self, Claim},
};
use crate::{intent::Refusal, metrics::Figures};

/// A daemon's socket in a directory of its own.
struct Daemon {
    directory: TempDir,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Daemon {
    async fn start(control: impl Control) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let claim = claim(directory.path()).await.expect("a socket of our own");
        let (stop, stopped) = oneshot::channel();
        let control: Arc<dyn Control> = Arc::new(control);
        let task = tokio::spawn(server::serve(claim, control, async {
            let _ = stopped.await;
        }));
        Self { directory, stop, task }
    }

    fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }

    fn client(&self) -> Client {
        Client::at(&self.socket())
    }

    /// The whole answer to a plain request.
    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).await.expect("a connection");
        let request = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("a write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        timeout(Duration::from_secs(10), self.task).await.expect("an end").expect("no panic");
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("test/control.sock")
}

async fn claim(directory: &Path) -> Result<Claim, server::Error> {
    server::claim_directory(&directory.join("test"), &socket(directory), "test").await
}

#[tokio::test]
async fn what_the_daemon_knows_the_client_hears() {
    let daemon = Daemon::start(Sample::ready()).await;
    let client = daemon.client();
    assert_eq!(client.status().await.expect("a status"), sample::status());
    assert_eq!(client.reasons().await.expect("reasons"), sample::reasons());

    let filter = api::FlowFilter {
        service: Some("web".to_owned()),
        backend: Some("web-1".to_owned()),
        client: Some("2001:db8:7::/48".parse().expect("an address")),
        state: Some(api::FlowState::Closing),
        sort: Some(api::FlowOrder::Idle),
        limit: Some(5),
        by_client: Some(1),
    };
    let flows = client.flows(&filter).await.expect("flows");
    assert_eq!((flows.matching, flows.limit, flows.truncated), (1, 5, false));
    assert_eq!(flows.flows[0].client, "[2001:db8:7::1]:50000");
    assert_eq!((flows.by_client.len(), flows.client_prefixes), (1, 12), "both filters arrive");
    daemon.stop().await;
}

#[tokio::test]
async fn names_that_nobody_has_are_refused() {
    let daemon = Daemon::start(Sample::ready()).await;
    let cases = [
        (Some("no&such=1 %\"ä"), None, "no service \"no&such=1 %\\\"ä\"; there are: api, web"),
        (Some("web"), Some("x"), "no backend \"x\" in service \"web\"; there are: web-1, web-2"),
        (None, Some("x"), "no service has a backend \"x\""),
    ];
    for (service, backend, expected) in cases {
        let filter = api::FlowFilter {
            service: service.map(str::to_owned),
            backend: backend.map(str::to_owned),
            ..api::FlowFilter::default()
        };
        let error = daemon.client().flows(&filter).await.expect_err("a refusal");
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn errors_are_json_with_a_status() {
    let daemon = Daemon::start(Sample::ready()).await;
    let cases = [
        (
            "GET /v2/x",
            "HTTP/1.1 404 Not Found",
            "{\"error\":\"no page /v2/x; there are GET /v1/status, /v1/flows, /v1/reasons, \
             /v1/drains, /v1/events, /v1/export, and POST /v1/changes, /v1/apply, /v1/plan\"}",
        ),
        (
            "POST /v1/status",
            "HTTP/1.1 405 Method Not Allowed",
            "{\"error\":\"/v1/status is not for POST; there are GET /v1/status, /v1/flows, \
             /v1/reasons, /v1/drains, /v1/events, /v1/export, and POST /v1/changes, /v1/apply, /v1/plan\"}",
        ),
        (
            "GET /v1/flows?limit=many",
            "HTTP/1.1 400 Bad Request",
            "{\"error\":\"Failed to deserialize query string: limit: invalid digit found in \
             string\"}",
        ),
        (
            "GET /v1/flows?clinet=192.0.2.1",
            "HTTP/1.1 400 Bad Request",
            "{\"error\":\"Failed to deserialize query string: clinet: unknown field `clinet`, \
             expected one of `service`, `backend`, `client`, `state`, `sort`, `limit`, `by_client`\"}",
        ),
    ];
    for (request, status, body) in cases {
        let answer = daemon.raw(request).await;
        assert!(answer.starts_with(status), "{request}: {answer}");
        assert!(answer.ends_with(body), "{request}: {answer}");
        assert!(answer.contains("content-type: application/json\r\n"), "{request}: {answer}");
    }
}

/// Says nothing, and fails in saying it.
struct Broken;

impl Control for Broken {
    fn status(&self) -> api::Status {
        panic!("a defect")
    }

    fn flows(&self, _: &api::FlowFilter) -> api::Flows {
        std::thread::sleep(Duration::from_millis(500));
        api::Flows::default()
    }

    fn reasons(&self) -> api::Reasons {
        sample::reasons()
    }

    fn figures(&self) -> Figures {
        panic!("a defect")
    }

    fn drains(&self, _: &api::DrainFilter) -> Vec<api::Drain> {
        panic!("a defect")
    }

    fn events(&self, _: &api::EventFilter) -> api::Events {
        panic!("a defect")
    }

    fn export(&self) -> anyhow::Result<api::Exported> {
        anyhow::bail!("a defect")
    }

    fn plan(&self, _: &api::ConfigFile) -> Result<api::Plan, Refusal> {
        panic!("a defect")
    }

    fn apply(&self, _: &api::ConfigFile, _: &Peer) -> Result<api::Changed, Refusal> {
        panic!("a defect")
    }

    fn change(&self, _: &api::Transaction, _: &Peer) -> Result<api::Changed, Refusal> {
        panic!("a defect")
    }
}

#[tokio::test]
async fn what_is_asked_for_is_done_or_refused_with_the_reason() {
    let daemon = Daemon::start(Sample::ready()).await;
    let client = daemon.client();
    let target = api::Target { service: Some("web".to_owned()), backend: "web-1".to_owned() };
    let drain = api::Change::Drain { target, deadline_ms: Some(30_000) };
    let mut asked = api::Transaction { changes: vec![drain], force: false };
    let refused = client.change(&asked).await.expect_err("too few").to_string();
    assert_eq!(
        refused,
        "refused: service \"web\" would have 0 backends for new flows, its min_available is 1; \
         enable another one first, or use --force"
    );
    asked.force = true;
    assert_eq!(client.change(&asked).await.expect("forced").generation, 8);

    let file = api::ConfigFile { name: "x.toml".to_owned(), text: "ä".repeat(3), force: false };
    let text = format!("6 bytes from uid {}", nix::unistd::getuid());
    assert_eq!(client.apply(&file).await.expect("taken up").differences[0].text, text);
    assert_eq!(client.plan(&file).await.expect_err("no plan").to_string(), "x.toml:1:1: no");
    assert_eq!(client.export().await.expect("a file").text, "# all of it\n");

    let all = api::DrainFilter::default();
    assert_eq!(client.drains(&all).await.expect("drains"), sample::drains());
    let other = api::DrainFilter { backend: Some("web-2".to_owned()), ..all };
    assert_eq!(client.drains(&other).await.expect("drains"), []);

    let later = api::EventFilter {
        after: Some(1),
        service: None,
        kind: Some(api::EventKind::Drift),
        ..api::EventFilter::default()
    };
    assert_eq!(client.events(&later).await.expect("events").events, sample::events().events[1..]);
}

#[tokio::test]
async fn a_request_that_is_none_names_what_is_wrong() {
    let daemon = Daemon::start(Sample::ready()).await;
    let cases = [
        ("{\"changes\":[{\"change\":\"drian\"}]}", "unknown variant `drian`, expected one of"),
        ("{\"changes\":[{\"change\":\"weight\",\"backend\":\"b\"}]}", "missing field `weight`"),
        ("{\"changes\":[],\"froce\":true}", "unknown field `froce`"),
        ("{\"changes\":", "EOF while parsing"),
    ];
    for (body, expected) in cases {
        let request = format!(
            "POST /v1/changes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = UnixStream::connect(daemon.socket()).await.expect("a connection");
        stream.write_all(request.as_bytes()).await.expect("a write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body}: {answer}");
        assert!(answer.contains(expected), "{body}: {answer}");
    }
}

#[tokio::test]
async fn a_panic_in_one_answer_leaves_the_others() {
    let daemon = Daemon::start(Broken).await;
    for _ in 0..5 {
        let error = daemon.client().status().await.expect_err("a defect").to_string();
        assert!(error.starts_with("internal error: "), "{error}");
    }
    daemon.client().reasons().await.expect("an answer after a panic");
}

#[tokio::test]
async fn a_stop_lets_requests_finish_but_waits_for_no_idler() {
    let daemon = Daemon::start(Broken).await;
    let socket = daemon.socket();
    let idler = UnixStream::connect(&socket).await.expect("a connection");
    let client = daemon.client();
    let slow = tokio::spawn(async move { client.flows(&api::FlowFilter::default()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    daemon.stop().await;
    slow.await.expect("no panic").expect("the answer, though the daemon is stopping");
    assert!(!socket.exists());
    drop(idler);
}

#[tokio::test]
async fn the_socket_is_for_root_and_one_group() {
    let daemon = Daemon::start(Sample::ready()).await;
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.socket()), 0o660);
    assert_eq!(mode(&daemon.directory.path().join("test")), 0o755);
}

#[tokio::test]
async fn a_live_instance_is_refused_and_named() {
    let daemon = Daemon::start(Sample::ready()).await;
    let error = claim(daemon.directory.path()).await.expect_err("there is one already");
    assert_eq!(
        error.to_string(),
        format!(
            "instance test is already running (pid {}); stop it, or choose another name with \
             --instance",
            std::process::id()
        )
    );
    daemon.client().status().await.expect("the first one goes on");
}

#[tokio::test]
async fn a_dead_daemons_socket_is_replaced() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(directory.path().join("test")).expect("a directory");
    drop(UnixListener::bind(socket(directory.path())).expect("a socket"));
    let client = Client::at(&socket(directory.path()));
    let error = client.status().await.expect_err("nobody listens");
    assert!(matches!(error, Error::NotRunning { .. }), "{error}");

    let first = claim(directory.path()).await.expect("the socket of a dead one");
    drop(first);
    assert!(!directory.path().join("test").exists());
    claim(directory.path()).await.expect("free again");
}

#[tokio::test]
async fn without_a_daemon_the_client_says_that_forwarding_goes_on() {
    let error = Client::at(Path::new("/nonexistent/control.sock")).status().await;
    assert_eq!(
        error.expect_err("nobody is there").to_string(),
        "no daemon answers at /nonexistent/control.sock: is `sluice run` up? forwarding goes on \
         without it"
    );
}

/// Answers one connection with these bytes.
async fn answer_with(answer: &'static str) -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("control.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let _ = stream.read(&mut [0; 1024]).await;
        stream.write_all(answer.as_bytes()).await.expect("a write");
    });
    let error = Client::at(&path).status().await.expect_err("no status");
    let message = error.to_string().replace(&path.display().to_string(), "SOCKET");
    (directory, message)
}

#[tokio::test]
async fn another_version_is_told_from_garbage() {
    const OTHER: &str = "the daemon at SOCKET is sluice 9.9.9, this command is 0.1.0: start \
                         `sluice run` again with one binary for both; forwarding goes on meanwhile";
    let cases = [
        ("HTTP/1.1 200 OK\r\nserver: sluice/9.9.9\r\ncontent-length: 9\r\n\r\n{\"new\":1}", OTHER),
        (
            "HTTP/1.1 404 Not Found\r\nserver: sluice/9.9.9\r\ncontent-length: 13\r\n\r\n\
             {\"error\":\"x\"}",
            OTHER,
        ),
        (
            "HTTP/1.1 500 Oops\r\nserver: sluice/9.9.9\r\ncontent-length: 13\r\n\r\n{\"error\":\"x\"}",
            "x",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n7",
            "the answer from SOCKET is no sluice daemon's: invalid type: integer `7`, expected \
             struct Status at line 1 column 1",
        ),
        (
            "SSH-2.0-OpenSSH\r\n",
            "the answer from SOCKET is no sluice daemon's: invalid HTTP version parsed",
        ),
    ];
    for (answer, expected) in cases {
        assert_eq!(answer_with(answer).await.1, expected, "{answer}");
    }
}
