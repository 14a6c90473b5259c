//! The node's side of the socket: accepts connections, checks their user, and serves the routes to them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use supervision::{ProcessError, Stopping, TaskGroup};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::control::Control;
use super::routes::{refuse, routes};
use super::socket::Socket;
use super::stalls::NoStalls;
use super::{Failure, FailureCode};

/// Connections at once. Clients have the other file descriptors.
const CONNECTIONS_MAX: usize = 8;

/// Connections beside them that are told that there are too many. More are closed at once.
const REFUSED_MAX: usize = 16;

/// Longest wait for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for which a client may read nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Longest wait for open connections when the node stops.
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
    let connections = TaskGroup::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let refusals = Arc::new(Semaphore::new(REFUSED_MAX));
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
        let admitted = if is_permitted(&stream) {
            let busy = |_| Failure::new(FailureCode::Busy, "too many requests at once; try again");
            places.clone().try_acquire_owned().map_err(busy)
        } else {
            let text = "only the user that runs the node may do that";
            Err(Failure::new(FailureCode::NotPermitted, text))
        };
        let (routes, place) = match admitted {
            Ok(place) => (routes.clone(), place),
            Err(failure) => {
                let Ok(place) = refusals.clone().try_acquire_owned() else { continue };
                (refuse(failure), place)
            }
        };
        connections.spawn("admin", async move {
            let _place = place;
            if let Err(error) = converse(stream, routes).await {
                debug!(%error, "admin connection ended");
            }
        });
    }
    connections.finish(LEAVE).await;
    Ok(())
}

/// Serves the one request of a connection.
pub(super) async fn converse<S>(stream: S, routes: axum::Router) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false);
    server.max_buf_size(HEAD_BYTES_MAX);
    let stream = TokioIo::new(NoStalls::new(stream, WRITE_TIMEOUT));
    let service = TowerToHyperService::new(routes);
    server.serve_connection(stream, service).await.map_err(io::Error::other)
}

/// Whether the other end is of the same user, or root.
fn is_permitted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}
