//! Pages for operators and their machines: `/healthz`, `/readyz`, `/metrics`.
//!
//! A task, and one for each connection, on a port of its own that is not for the public.
//!
//! # Invariants
//! 1. A page touches no actor, so it answers however busy the node is.
//! 2. A connection has one request and [`PAGE_TIMEOUT`], and there are few of them: whoever only
//!    holds connections open takes no descriptors from clients and none of a newcomer's places.
//! 3. No PROXY header is believed. From a network that `listen.proxy_from` names it may come and is read over,
//!    for probes of the same network have none; limits count the address that connected. So nobody gains by
//!    forging one.

use parking_lot::RwLock;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use supervision::{Stopping, TaskGroup};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use crate::listener::{Caller, Gate, Permit, Proxies, read_client};
use crate::observe::telemetry::Metrics;

/// Longest time of a connection: request, page and all.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for the request alone.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections at once. A balancer and a metrics server have one or two each.
const CONNECTIONS_MAX: u32 = 64;

/// The same from one address.
const CONNECTIONS_PER_ADDRESS: u32 = 32;

/// Wait after an accept that failed for want of something.
const PAUSE: Duration = Duration::from_millis(100);

/// What may be asked of a page.
const METHODS: &str = "GET, HEAD, OPTIONS";

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
        *self.0.write() = state;
    }

    fn get(&self) -> Result<(), String> {
        self.0.read().clone()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

/// Serves the pages until `stopping`. Connections of `proxies` may begin with a PROXY header.
///
/// # Errors
/// None; a want of descriptors is waited out.
pub async fn serve(
    socket: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    proxies: Proxies,
    stopping: Stopping,
) -> Result<(), Infallible> {
    let router = Router::new()
        .route("/healthz", page(get(|| async { "ok\n" })))
        .route("/readyz", page(get(readyz)).with_state(readiness))
        .route("/metrics", page(get(page_of_metrics)).with_state(metrics));
    let gate = Gate::for_pages(CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS);
    let connections = TaskGroup::new();
    loop {
        let accepted = tokio::select! {
            () = stopping.wait() => break,
            accepted = socket.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(listener = "http", %error, "cannot accept, will try again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = gate.admit(address.ip(), Caller::Client) else { continue };
        let (router, is_proxy) = (router.clone(), proxies.contain(address.ip()));
        connections.spawn("page", answer(stream, permit, is_proxy, router));
    }
    // Open connections do not hold up the end.
    connections.finish(Duration::ZERO).await;
    Ok(())
}

/// What is asked of a page beside its content: balancers probe with `OPTIONS`.
fn page<S: Clone + Send + Sync + 'static>(page: MethodRouter<S>) -> MethodRouter<S> {
    page.options(|| async { (StatusCode::NO_CONTENT, [(header::ALLOW, METHODS)]) })
}

/// One request of one connection.
async fn answer(mut stream: TcpStream, permit: Permit, is_proxy: bool, router: Router) {
    let answered = async {
        if is_proxy && begins_with_header(&stream).await? {
            let proxy = stream.peer_addr()?;
            let _unproven = read_client(&mut stream, proxy).await?;
        }
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT).keep_alive(false);
        let service = TowerToHyperService::new(router);
        server.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
    };
    tokio::select! {
        () = permit.evicted() => debug!("a connection for pages gave its place to another"),
        answered = tokio::time::timeout(PAGE_TIMEOUT, answered) => match answered {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "no page was asked for"),
            Err(_) => debug!("a page took too long"),
        },
    }
}

/// A request begins with `GET`, `HEAD` or `OPTIONS`; a PROXY header with another letter.
async fn begins_with_header(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    Ok(matches!(first, [b'P' | b'\r']))
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
    use supervision::StopSource;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn page(address: std::net::SocketAddr, path: &str) -> String {
        ask(address, "GET", path).await
    }

    /// Reads to the end: the node closes.
    async fn ask(address: std::net::SocketAddr, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n");
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
        let (metrics, proxies) = (Metrics::for_test(), Proxies::default());
        let served = serve(socket, readiness.clone(), metrics, proxies, stopping);
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
        let allowed = ask(address, "OPTIONS", "/healthz").await;
        assert!(allowed.starts_with("HTTP/1.1 204") && allowed.contains("allow: GET, HEAD"));
        let head = ask(address, "HEAD", "/readyz").await;
        assert!(head.starts_with("HTTP/1.1 503") && head.ends_with("\r\n\r\n"), "{head}");

        source.fire();
        assert_eq!(group.finish(Duration::from_secs(5)).await, 0, "ends when told");
    }

    /// Pages of a node that knows these proxies.
    async fn pages(proxies: &[&str]) -> (std::net::SocketAddr, StopSource, TaskGroup) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (source, stopping) = StopSource::new();
        let proxies = Proxies::new(&proxies.iter().map(ToString::to_string).collect::<Vec<_>>());
        let group = TaskGroup::new();
        let served = serve(socket, Readiness::new(), Metrics::for_test(), proxies, stopping);
        group.spawn("http", async move { served.await.unwrap() });
        (address, source, group)
    }

    /// Connects from `127.0.0.host` and sends `first`.
    async fn begin(to: std::net::SocketAddr, host: u8, first: &str) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, host], 0).into()).unwrap();
        let mut stream = socket.connect(to).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        stream
    }

    /// How many are open. Whoever had to leave is closed already; who stays waits for its time limit.
    async fn open(streams: &mut [TcpStream]) -> u32 {
        let mut open = 0;
        for stream in streams {
            let mut byte = [0];
            let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut byte));
            open += u32::from(read.await.is_err());
        }
        open
    }

    const REQUEST: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

    #[tokio::test]
    async fn silent_connections_are_few_and_a_page_is_served_beside_them() {
        let (address, source, group) = pages(&[]).await;
        let mut silent = Vec::new();
        for number in 0..200 {
            let host = u8::try_from(2 + number / 40).unwrap();
            silent.push(begin(address, host, "GET /healthz HTTP/1.1\r\n").await);
        }
        assert!(page(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let open = open(&mut silent).await;
        assert!(open <= CONNECTIONS_MAX, "{open}");
        source.fire();
        assert_eq!(group.finish(Duration::from_secs(5)).await, 0, "ends when told");
    }

    #[tokio::test]
    async fn a_proxy_header_is_read_over_and_a_forged_one_gains_no_place() {
        let (address, _source, _group) = pages(&["127.0.0.1"]).await;
        for (host, header, good) in [
            (1, "", true),
            (1, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", true),
            (1, "PROXY UNKNOWN\r\n", true),
            (1, "PROXY TCP4 nobody\r\n", false),
            (2, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", false),
        ] {
            let mut stream = begin(address, host, &format!("{header}{REQUEST}")).await;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok();
            assert_eq!(answer.starts_with("HTTP/1.1 200"), good, "{host} {header:?}: {answer}");
        }
        let mut forged = Vec::new();
        for number in 0..100 {
            let header = format!("PROXY TCP4 10.0.{number}.1 192.0.2.2 1 2\r\n");
            forged.push(begin(address, 1, &header).await);
        }
        let mut answer = String::new();
        begin(address, 3, REQUEST).await.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "others have their places: {answer}");
        let open = open(&mut forged).await;
        assert!(open <= CONNECTIONS_PER_ADDRESS, "{open}");
    }
}
