//! The node's side of the socket: accepts, checks who it is, and serves the routes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use supervision::{ProcessError, Stopping, TaskGroup};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::control::Control;
use super::routes::{refuse, routes};
use super::socket::Socket;
use super::{Failure, FailureKind};

/// Connections at once.
const CONNECTIONS_MAX: usize = 8;

/// Longest wait for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Longest wait for open connections at the end.
const LEAVE: Duration = Duration::from_millis(500);

/// Pause after an accept that failed, for want of file descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves the socket until `stopping`.
pub(super) async fn serve(
    socket: Socket,
    control: Arc<dyn Control>,
    stopping: Stopping,
) -> Result<(), ProcessError> {
    let listener = socket.listen()?;
    let (connections, places) = (TaskGroup::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    let routes = routes(control);
    loop {
        let accepted = tokio::select! {
            () = stopping.wait() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "admin connection not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let place = places.clone().try_acquire_owned();
        let routes = match (place.is_ok(), is_permitted(&stream)) {
            (_, false) => refuse(Failure::new(
                FailureKind::NotPermitted,
                "only the user that runs the node may do that",
            )),
            (false, true) => refuse(Failure::new(FailureKind::Busy, "too many are asking")),
            (true, true) => routes.clone(),
        };
        connections.spawn("admin", async move {
            if let Err(error) = converse(stream, routes).await {
                debug!(%error, "admin connection ended");
            }
            drop(place);
        });
    }
    connections.finish(LEAVE).await;
    Ok(())
}

/// One request of one connection.
async fn converse(stream: UnixStream, routes: axum::Router) -> io::Result<()> {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    server.max_buf_size(HEAD_BYTES_MAX);
    let service = TowerToHyperService::new(routes);
    server.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

/// Whether the other end is of the same user, or root.
fn is_permitted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}
