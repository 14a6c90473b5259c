//! Pages for operators and their machines: `/healthz`, `/readyz`, `/metrics`.
//!
//! One task, on a port of its own that is not for the public.
//!
//! **Invariant:** a page touches no actor, so it answers however busy the node is.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use supervision::Stopping;
use tokio::net::TcpListener;

use crate::telemetry::Metrics;

/// Whether clients should be sent here. Shared between whoever knows and `/readyz`; not ready at
/// first.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<RwLock<Result<(), String>>>);

impl Readiness {
    /// Not ready, because the node starts.
    pub fn new() -> Self {
        Self(Arc::new(RwLock::new(Err("starting".to_owned()))))
    }

    /// Clients are welcome from now on.
    pub fn ready(&self) {
        self.set(Ok(()));
    }

    /// Clients should go elsewhere; `reason` is shown to operators.
    pub fn not_ready(&self, reason: &str) {
        self.set(Err(reason.to_owned()));
    }

    fn set(&self, state: Result<(), String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn get(&self) -> Result<(), String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

/// Serves the pages until `stopping`.
///
/// # Errors
/// Those of the listening socket.
pub async fn serve(
    socket: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    stopping: Stopping,
) -> io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(page_of_metrics).with_state(metrics));
    // Open keep-alive connections do not hold up the end: dropping the server closes them.
    tokio::select! {
        () = stopping.wait() => Ok(()),
        ended = axum::serve(socket, router).into_future() => ended,
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    match readiness.get() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn page_of_metrics(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}

#[cfg(test)]
mod tests {
    use super::*;
    use supervision::{StopSource, TaskGroup};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn page(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    }

    #[tokio::test]
    async fn the_pages_say_whether_the_node_lives_and_whether_it_is_ready() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (source, stopping) = StopSource::new();
        let readiness = Readiness::new();
        let group = TaskGroup::new();
        let served = serve(socket, readiness.clone(), Metrics::for_test(), stopping);
        group.spawn("http", async move { served.await.unwrap() });

        assert!(page(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let starting = page(address, "/readyz").await;
        assert!(starting.starts_with("HTTP/1.1 503") && starting.contains("starting"));
        readiness.ready();
        assert!(page(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        readiness.not_ready("stopping");
        assert!(page(address, "/readyz").await.contains("not ready: stopping"));
        assert!(page(address, "/metrics").await.contains("text/plain; version=0.0.4"));
        assert!(page(address, "/nothing").await.starts_with("HTTP/1.1 404"));

        source.fire();
        assert_eq!(group.finish(std::time::Duration::from_secs(5)).await, 0, "ends when told");
    }
}
