//! The CLI's end of the control socket.

use std::{io, path::PathBuf, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
    http::request::Builder,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::{api, server::GROUP};
use crate::instance::Instance;

/// How long a whole question may take: longer than the server's own limit.
const PATIENCE: Duration = Duration::from_secs(40);
/// Largest answer read; the longest list of flows is well below.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no daemon answers at {socket}: is `sluice run` up? forwarding goes on without it")]
    NotRunning {
        /// Where.
        socket: PathBuf,
    },
    /// The socket is not for everybody.
    #[error("connect to {socket}: permission denied; be root, or a member of the group `{GROUP}`")]
    Permission {
        /// Where.
        socket: PathBuf,
    },
    /// Something else keeps us from connecting.
    #[error("connect to {socket}")]
    Connect {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It listens, and says nothing.
    #[error(
        "the daemon at {socket} does not answer within {} s: see its log; forwarding goes on \
         without it",
        PATIENCE.as_secs()
    )]
    Silent {
        /// Where.
        socket: PathBuf,
    },
    /// Daemon and CLI don't understand each other.
    #[error(
        "the daemon at {socket} is sluice {daemon}, this command is {}: start `sluice run` again \
         with one binary for both; forwarding goes on meanwhile",
        api::VERSION
    )]
    Version {
        /// Where.
        socket: PathBuf,
        /// What it is.
        daemon: String,
    },
    /// The daemon says why not.
    #[error("{}", .0.error)]
    Refused(api::Failure),
    /// What came back is no answer.
    #[error("the answer from {socket} is no sluice daemon's: {what}")]
    Garbled {
        /// Where.
        socket: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// Asks the daemon of one instance.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Connects with each question, not before.
    pub fn new(instance: &Instance) -> Self {
        Self { socket: instance.control_socket() }
    }

    #[cfg(test)]
    pub(super) fn at(socket: &std::path::Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The whole of it.
    pub async fn status(&self) -> Result<api::Status, Error> {
        self.get("/v1/status").await
    }

    /// Flows that match, and how many there are.
    pub async fn flows(&self, filter: &api::FlowFilter) -> Result<api::Flows, Error> {
        let fields = [
            ("service", filter.service.clone()),
            ("backend", filter.backend.clone()),
            ("client", filter.client.map(|client| client.to_string())),
            ("state", filter.state.and_then(written)),
            ("sort", filter.sort.and_then(written)),
            ("limit", filter.limit.map(|limit| limit.to_string())),
            ("by_client", filter.by_client.map(|prefixes| prefixes.to_string())),
        ];
        self.get(&format!("/v1/flows{}", query(fields))).await
    }

    /// What became of every frame.
    pub async fn reasons(&self) -> Result<api::Reasons, Error> {
        self.get("/v1/reasons").await
    }

    /// How drains go, or went.
    pub async fn drains(&self, filter: &api::DrainFilter) -> Result<Vec<api::Drain>, Error> {
        let fields = [("service", filter.service.clone()), ("backend", filter.backend.clone())];
        self.get(&format!("/v1/drains{}", query(fields))).await
    }

    /// What happened, and who asked for it.
    pub async fn events(&self, filter: &api::EventFilter) -> Result<api::Events, Error> {
        let fields = [
            ("after", filter.after.map(|id| id.to_string())),
            ("service", filter.service.clone()),
            ("backend", filter.backend.clone()),
            ("kind", filter.kind.and_then(written)),
            ("limit", filter.limit.map(|limit| limit.to_string())),
        ];
        self.get(&format!("/v1/events{}", query(fields))).await
    }

    /// What is wanted, as a file.
    pub async fn export(&self) -> Result<api::Exported, Error> {
        self.get("/v1/export").await
    }

    /// What a file would change.
    pub async fn plan(&self, file: &api::ConfigFile) -> Result<api::Plan, Error> {
        self.post("/v1/plan", file).await
    }

    /// Takes up a file.
    pub async fn apply(&self, file: &api::ConfigFile) -> Result<api::Changed, Error> {
        self.post("/v1/apply", file).await
    }

    /// Makes all changes of a transaction, or none.
    pub async fn change(&self, transaction: &api::Transaction) -> Result<api::Changed, Error> {
        self.post("/v1/changes", transaction).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.ask(Request::get(path), Bytes::new()).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let json = serde_json::to_vec(body).map_err(|error| self.garbled(&error))?;
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        self.ask(request, Bytes::from(json)).await
    }

    async fn ask<T: DeserializeOwned>(&self, request: Builder, body: Bytes) -> Result<T, Error> {
        match timeout(PATIENCE, self.exchange(request, body)).await {
            Ok(result) => result,
            Err(_) => Err(Error::Silent { socket: self.socket.clone() }),
        }
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        request: Builder,
        body: Bytes,
    ) -> Result<T, Error> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.no_connection(e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.garbled(&e))?;
        // Ends with the sender; what goes wrong on the way is told there too.
        tokio::spawn(connection);
        let request = request
            .header(header::HOST, "sluice")
            .body(Full::new(body))
            .map_err(|e| self.garbled(&e))?;
        let response = sender.send_request(request).await.map_err(|e| self.garbled(&e))?;
        let (status, daemon) = (response.status(), version(&response));
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        let bytes = body.collect().await.map_err(|e| self.garbled(&*e))?.to_bytes();
        let understood = if status == StatusCode::OK {
            serde_json::from_slice(&bytes).map(Ok)
        } else {
            serde_json::from_slice(&bytes).map(|failure| Err(Error::Refused(failure)))
        };
        match (understood, daemon) {
            // A page that only a newer daemon has, or an answer in another shape.
            (Err(_), Some(daemon)) if daemon != api::VERSION => Err(self.version(daemon)),
            (Ok(Err(_)), Some(daemon))
                if daemon != api::VERSION && status == StatusCode::NOT_FOUND =>
            {
                Err(self.version(daemon))
            }
            (Ok(answer), _) => answer,
            (Err(error), _) => Err(self.garbled(&error)),
        }
    }

    fn no_connection(&self, source: io::Error) -> Error {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::NotRunning { socket }
            }
            io::ErrorKind::PermissionDenied => Error::Permission { socket },
            _ => Error::Connect { socket, source },
        }
    }

    fn garbled(&self, error: &dyn std::error::Error) -> Error {
        Error::Garbled { socket: self.socket.clone(), what: error.to_string() }
    }

    fn version(&self, daemon: String) -> Error {
        Error::Version { socket: self.socket.clone(), daemon }
    }
}

/// What the daemon says it is.
fn version(response: &Response<Incoming>) -> Option<String> {
    let server = response.headers().get(header::SERVER)?.to_str().ok()?;
    server.strip_prefix("sluice/").map(str::to_owned)
}

/// The name by which JSON and queries have it.
fn written(name: impl Serialize) -> Option<String> {
    serde_json::to_value(name).ok()?.as_str().map(str::to_owned)
}

fn query<const N: usize>(fields: [(&str, Option<String>); N]) -> String {
    let mut query = String::new();
    for (name, value) in fields {
        if let Some(value) = value {
            query.push(if query.is_empty() { '?' } else { '&' });
            query.push_str(name);
            query.push('=');
            percent_encode(&mut query, &value);
        }
    }
    query
}

/// All but the unreserved characters (RFC 3986 §2.3).
fn percent_encode(query: &mut String, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                query.push(char::from(byte));
            }
            _ => query.push_str(&format!("%{byte:02X}")),
        }
    }
}
