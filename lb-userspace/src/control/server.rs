//! The daemon's end of the control socket.
//!
//! To [`claim`] the socket is to be the instance: one process at a time, told apart by a lock
//! on the socket's directory, which dies with its holder however that dies.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{
        DefaultBodyLimit, Query, Request, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::Listener,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::{Gid, Group, chown},
};
use serde::Serialize;
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{Calls, Control, api, serve_connections};
use crate::{config, instance::Instance, intent::Refusal};

/// Members may talk to the daemon without being root.
pub const GROUP: &str = "sluice";

/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(30);

/// Why this process can't be the instance.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process is.
    #[error("instance {instance} is already running{}; stop it, or choose another name with \
             --instance", by(.pid))]
    Running {
        /// Its name.
        instance: String,
        /// Of the process, if it says so.
        pid: Option<i32>,
    },
    /// The socket or its directory can't be made.
    #[error("{attempt} {path}{}", way_out(.source))]
    Path {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn by(pid: &Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (run as root)",
        io::ErrorKind::ReadOnlyFilesystem => " (mount a tmpfs on /run)",
        _ => "",
    }
}

/// Who is on the other side of the control socket, as the kernel saw it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process.
    pub pid: Option<i32>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The control socket of an instance, ours as long as this lives.
#[derive(Debug)]
pub struct Claim {
    listener: UnixListener,
    socket: Socket,
}

/// Removes the socket, then its directory, before it lets that go.
#[derive(Debug)]
struct Socket {
    path: PathBuf,
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let removed = fs::remove_file(&self.path).and_then(|()| fs::remove_dir(&self.directory));
        if let Err(error) = removed {
            tracing::debug!("remove {}: {error}", self.path.display());
        }
    }
}

/// Becomes the instance: refused while another process is; the socket of a dead one is
/// replaced. Clients can connect from now on, and wait until [`serve`] answers.
pub async fn claim(instance: &Instance) -> Result<Claim, Error> {
    claim_directory(&instance.runtime(), &instance.control_socket(), instance.name()).await
}

pub(super) async fn claim_directory(
    directory: &Path,
    path: &Path,
    name: &str,
) -> Result<Claim, Error> {
    let Some(lock) = lock(directory)? else {
        let pid = listener_pid(path).await;
        return Err(Error::Running { instance: name.to_owned(), pid });
    };
    // We hold the lock: whoever bound this is dead.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("replace", path)(error));
        }
        _ => {}
    }
    // Nobody else comes in until the socket has its own mode.
    set_mode(directory, 0o700).map_err(failed("restrict", directory))?;
    let listener = UnixListener::bind(path).map_err(failed("bind", path))?;
    let socket = Socket { path: path.to_owned(), directory: directory.to_owned(), _lock: lock };
    set_mode(path, 0o660).map_err(failed("restrict", path))?;
    if let Some(gid) = group() {
        chown(path, None, Some(gid))
            .map_err(|errno| failed("give to a group", path)(errno.into()))?;
    }
    set_mode(directory, 0o755).map_err(failed("open up", directory))?;
    Ok(Claim { listener, socket })
}

/// Locks a directory, made if need be; `None` if somebody else has it.
fn lock(directory: &Path) -> Result<Option<Flock<File>>, Error> {
    loop {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let opened = File::open(directory).map_err(failed("open", directory))?;
        let lock = match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(failed("lock", directory)(errno.into())),
        };
        // Who had it before may have removed the directory as he ended.
        let ours = lock.metadata().map_err(failed("look at", directory))?;
        if fs::metadata(directory).is_ok_and(|there| there.ino() == ours.ino()) {
            return Ok(Some(lock));
        }
    }
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Path { attempt, path, source }
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn group() -> Option<Gid> {
    Group::from_name(GROUP).ok().flatten().map(|group| group.gid)
}

/// The process that listens there, as the kernel noted it.
async fn listener_pid(path: &Path) -> Option<i32> {
    let stream = UnixStream::connect(path).await.ok()?;
    stream.peer_cred().ok()?.pid()
}

/// Answers until `shutdown`; then lets running requests finish and removes the socket.
pub async fn serve(claim: Claim, control: Arc<dyn Control>, shutdown: impl Future<Output = ()>) {
    let Claim { listener, socket } = claim;
    serve_peers(Peers(listener), control, shutdown).await;
    drop(socket);
}

/// Answers peers, however they come, until `shutdown`; then lets running requests finish.
pub async fn serve_peers<L: Listener<Addr = Option<Peer>>>(
    listener: L,
    control: Arc<dyn Control>,
    shutdown: impl Future<Output = ()>,
) {
    let pages = pages(control);
    let for_peer = |peer| {
        tracing::debug!(?peer, "control connection");
        pages.clone().layer(Extension(peer))
    };
    serve_connections(listener, for_peer, shutdown).await;
}

/// A listener whose connections come with their peer's credentials.
struct Peers(UnixListener);

impl Listener for Peers {
    type Io = UnixStream;
    type Addr = Option<Peer>;

    async fn accept(&mut self) -> (UnixStream, Option<Peer>) {
        let (stream, _) = Listener::accept(&mut self.0).await;
        let credentials = stream.peer_cred().ok();
        let peer = credentials.map(|c| Peer { pid: c.pid(), uid: c.uid(), gid: c.gid() });
        (stream, peer)
    }

    fn local_addr(&self) -> io::Result<Option<Peer>> {
        Ok(None)
    }
}

/// Largest request: a config file, in JSON.
const MAX_REQUEST_BYTES: usize = 2 * config::MAX_FILE_BYTES as usize;

/// The pages, for those who ask for another.
const PAGES: &str = "GET /v1/status, /v1/flows, /v1/reasons, /v1/drains, /v1/events, /v1/export, and POST \
                     /v1/changes, /v1/apply, /v1/plan";

/// All pages.
fn pages(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows))
        .route("/v1/reasons", get(reasons))
        .route("/v1/drains", get(drains))
        .route("/v1/events", get(events))
        .route("/v1/export", get(export))
        .route("/v1/changes", post(change))
        .route("/v1/apply", post(apply))
        .route("/v1/plan", post(plan))
        .fallback(no_page)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn(bounded))
        .with_state(Calls::new(control))
}

async fn status(State(calls): State<Calls>) -> Result<Response, Failure> {
    answer(&calls, |control| Ok(control.status())).await
}

async fn reasons(State(calls): State<Calls>) -> Result<Response, Failure> {
    answer(&calls, |control| Ok(control.reasons())).await
}

async fn flows(
    State(calls): State<Calls>,
    filter: Result<Query<api::FlowFilter>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(filter) = filter.map_err(|rejection| Failure::wrong(rejection.body_text()))?;
    answer(&calls, move |control| {
        if filter.service.is_some() || filter.backend.is_some() {
            check_names(&control.status(), &filter).map_err(Failure::wrong)?;
        }
        Ok(control.flows(&filter))
    })
    .await
}

async fn drains(
    State(calls): State<Calls>,
    filter: Result<Query<api::DrainFilter>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(filter) = filter.map_err(|rejection| Failure::wrong(rejection.body_text()))?;
    answer(&calls, move |control| Ok(control.drains(&filter))).await
}

async fn events(
    State(calls): State<Calls>,
    filter: Result<Query<api::EventFilter>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(filter) = filter.map_err(|rejection| Failure::wrong(rejection.body_text()))?;
    answer(&calls, move |control| Ok(control.events(&filter))).await
}

async fn export(State(calls): State<Calls>) -> Result<Response, Failure> {
    answer(&calls, |control| control.export().map_err(|error| Failure::broken(&*error))).await
}

async fn change(
    State(calls): State<Calls>,
    Extension(peer): Extension<Option<Peer>>,
    asked: Result<Json<api::Transaction>, JsonRejection>,
) -> Result<Response, Failure> {
    let Json(asked) = asked.map_err(|rejection| Failure::wrong(rejection.body_text()))?;
    answer(&calls, move |control| Ok(control.change(&asked, &known(peer)?)?)).await
}

async fn apply(
    State(calls): State<Calls>,
    Extension(peer): Extension<Option<Peer>>,
    asked: Result<Json<api::ConfigFile>, JsonRejection>,
) -> Result<Response, Failure> {
    let Json(asked) = asked.map_err(|rejection| Failure::wrong(rejection.body_text()))?;
    answer(&calls, move |control| Ok(control.apply(&asked, &known(peer)?)?)).await
}

async fn plan(
    State(calls): State<Calls>,
    asked: Result<Json<api::ConfigFile>, JsonRejection>,
) -> Result<Response, Failure> {
    let Json(asked) = asked.map_err(|rejection| Failure::wrong(rejection.body_text()))?;
    answer(&calls, move |control| Ok(control.plan(&asked)?)).await
}

/// Who changes something must be known, for the log.
fn known(peer: Option<Peer>) -> Result<Peer, Failure> {
    peer.ok_or_else(|| Failure {
        status: StatusCode::FORBIDDEN,
        message: "the kernel does not tell who is asking, so nothing was changed".to_owned(),
    })
}

/// A name that nobody has is a slip of the pen, not an empty list.
fn check_names(status: &api::Status, filter: &api::FlowFilter) -> Result<(), String> {
    match (&filter.service, &filter.backend) {
        (Some(service), Some(backend)) => status.service(service)?.backend(backend).map(|_| ()),
        (Some(service), None) => status.service(service).map(|_| ()),
        (None, Some(name)) => {
            let found = status.services.iter().any(|service| service.backend(name).is_ok());
            found.then_some(()).ok_or_else(|| format!("no service has a backend {name:?}"))
        }
        (None, None) => Ok(()),
    }
}

/// An answer in JSON, made off the event loop.
async fn answer<T: Serialize>(
    calls: &Calls,
    call: impl FnOnce(&dyn Control) -> Result<T, Failure> + Send + 'static,
) -> Result<Response, Failure> {
    let made = calls.call(|control| {
        serde_json::to_vec(&call(control)?).map_err(|error| Failure::broken(&error))
    });
    let json = made.await.map_err(|panicked| Failure::broken(&panicked))??;
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from(json)).into_response())
}

async fn no_page(uri: Uri) -> Failure {
    let message = format!("no page {}; there are {PAGES}", uri.path());
    Failure { status: StatusCode::NOT_FOUND, message }
}

async fn no_method(method: Method, uri: Uri) -> Failure {
    let message = format!("{} is not for {method}; there are {PAGES}", uri.path());
    Failure { status: StatusCode::METHOD_NOT_ALLOWED, message }
}

async fn bounded(request: Request, next: Next) -> Response {
    let mut response = match timeout(REQUEST, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("no answer within {} s; try again", REQUEST.as_secs());
            Failure { status: StatusCode::SERVICE_UNAVAILABLE, message }.into_response()
        }
    };
    const SERVER: HeaderValue =
        HeaderValue::from_static(concat!("sluice/", env!("CARGO_PKG_VERSION")));
    response.headers_mut().insert(header::SERVER, SERVER);
    response
}

/// An answer that is none.
struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    /// The client's mistake.
    fn wrong(message: String) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message }
    }

    /// Ours.
    fn broken(error: &dyn std::error::Error) -> Self {
        tracing::error!("control request failed: {error}");
        let message = format!("internal error: {error}; see the daemon's log");
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message }
    }
}

impl From<Refusal> for Failure {
    /// What can't be understood is the client's mistake; what can, but must not be, a conflict.
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::TooFew { .. }
            | Refusal::Translation { .. }
            | Refusal::Ports(_)
            | Refusal::Host(_) => StatusCode::CONFLICT,
            Refusal::NoService { .. }
            | Refusal::NoBackend { .. }
            | Refusal::NoBackendAnywhere { .. } => StatusCode::NOT_FOUND,
            Refusal::Invalid(_)
            | Refusal::Weight { .. }
            | Refusal::Deadline { .. }
            | Refusal::File(_)
            | Refusal::FileTooLarge { .. } => StatusCode::BAD_REQUEST,
        };
        Self { status, message: refusal.to_string() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(api::Failure { error: self.message })).into_response()
    }
}
