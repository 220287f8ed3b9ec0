//! Serving HTTP/1 within bounds: so many connections, so long each. `axum::serve` sets none.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Connections at once; more wait in the listener's backlog.
const CONNECTIONS: usize = 64;
/// From the first byte of a request to the end of its headers; also an idle connection's life.
const HEADERS: Duration = Duration::from_secs(30);
/// A connection's whole life: who does not read the answer does not keep his place.
const LIFE: Duration = Duration::from_secs(300);
/// Time to finish what was begun when the daemon stops or a connection's life is over.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves until `shutdown`; then lets running requests finish, but not for long.
/// `router` makes the pages for one peer.
pub async fn serve_connections<L: Listener>(
    mut listener: L,
    mut router: impl FnMut(L::Addr) -> Router,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            (place, (io, peer)) = accepted => {
                let (pages, stopped) = (router(peer), stopped.clone());
                connections.spawn(async move {
                    serve_one::<L>(io, pages, stopped).await;
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    drop(stop);
    while connections.join_next().await.is_some() {}
}

async fn serve_one<L: Listener>(io: L::Io, pages: Router, mut stopped: watch::Receiver<()>) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADERS);
    let connection = server.serve_connection(TokioIo::new(io), TowerToHyperService::new(pages));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        result = connection.as_mut() => Ok(result),
        // The sender never sends; it is dropped at shutdown.
        _ = stopped.changed() => Err(()),
        () = sleep(LIFE) => Err(()),
    };
    let result = match ended {
        Ok(result) => result,
        Err(()) => {
            connection.as_mut().graceful_shutdown();
            timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        // A client that went away, or spoke no HTTP: its matter.
        tracing::debug!("HTTP connection ended: {error}");
    }
}
