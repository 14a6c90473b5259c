//! A client of the admin API: sends one request over the socket of a data directory and reads the answer.

use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::time::Duration;

use axum::body::Body;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request as HttpRequest, Response};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{Failure, FailureCode, Reply, Request, Status, socket};

/// Longest silence of a node: for a status it asks every shard, for a change it waits for a majority.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest document, and longest line of a streamed answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nothing listens on the socket, or this user may not open it.
    #[error(transparent)]
    Unreachable(io::Error),
    /// The node refused.
    #[error("{}", .0.text)]
    Failed(Failure),
    /// The answer was not understood, or did not come.
    #[error("{0}")]
    Broken(String),
}

/// The connection's work, which must be polled while the caller waits; `None` once it has ended.
type Connection = Option<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// A request that was sent, with the answer as it comes.
pub(super) struct Call {
    connection: Connection,
    answer: Incoming,
    /// The answer is a stream of lines, the last of which is the outcome.
    is_lines: bool,
    is_good: bool,
    read: Vec<u8>,
}

/// Asks the node of a data directory for the status of its cluster.
///
/// # Errors
/// [`CallError`].
pub async fn status(data_dir: &Path) -> Result<Status, CallError> {
    let mut call = Call::begin(data_dir, &Request::Status).await?;
    match call.next().await? {
        Reply::Done(status) => serde_json::from_value(status).map_err(|error| broken(&error)),
        Reply::Progress(_) => Err(CallError::Broken("a status does not take its time".to_owned())),
        Reply::Failed(failure) => Err(CallError::Failed(failure)),
    }
}

impl Call {
    /// Sends a request to the node of a data directory.
    ///
    /// # Errors
    /// [`CallError`].
    pub(super) async fn begin(data_dir: &Path, request: &Request) -> Result<Self, CallError> {
        let stream = socket::connect(data_dir).await.map_err(CallError::Unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        // The answer meets the same error.
        let mut connection: Connection = Some(Box::pin(async move { drop(connection.await) }));
        let (method, path, body) = request.as_http();
        let request = HttpRequest::builder()
            .method(method)
            .uri(path)
            .header(HOST, "natter")
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .map_err(|error| broken(&error))?;
        let answer = beside(&mut connection, sender.send_request(request));
        let answer = timeout(PATIENCE, answer).await.map_err(|_| silent())?;
        let answer: Response<Incoming> = answer.map_err(|error| broken(&error))?;
        let is_lines =
            answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/x-ndjson");
        let is_good = answer.status().is_success();
        Ok(Self { connection, answer: answer.into_body(), is_lines, is_good, read: Vec::new() })
    }

    /// The node's next reply; after an outcome comes none. Cancel safe.
    ///
    /// # Errors
    /// [`CallError`].
    pub(super) async fn next(&mut self) -> Result<Reply, CallError> {
        loop {
            if self.is_lines
                && let Some(end) = self.read.iter().position(|byte| *byte == b'\n')
            {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| broken(&error));
            }
            if self.read.len() > ANSWER_BYTES_MAX {
                return Err(CallError::Broken("the answer is too long".to_owned()));
            }
            let frame = poll_fn(|cx| Pin::new(&mut self.answer).poll_frame(cx));
            let frame = beside(&mut self.connection, frame);
            match timeout(PATIENCE, frame).await.map_err(|_| silent())? {
                Some(Ok(frame)) => {
                    self.read.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                }
                Some(Err(error)) => return Err(broken(&error)),
                None => return self.document(),
            }
        }
    }

    /// The answer as one document, once it has ended.
    fn document(&mut self) -> Result<Reply, CallError> {
        let read = std::mem::take(&mut self.read);
        if self.is_lines || read.is_empty() {
            return Err(CallError::Broken("the node has closed the connection".to_owned()));
        }
        if self.is_good {
            return serde_json::from_slice(&read).map(Reply::Done).map_err(|error| broken(&error));
        }
        let failure = serde_json::from_slice(&read).unwrap_or_else(|_| {
            Failure::new(FailureCode::Malformed, String::from_utf8_lossy(&read).into_owned())
        });
        Ok(Reply::Failed(failure))
    }
}

/// Waits for `work` and polls `connection` meanwhile.
async fn beside<T>(connection: &mut Connection, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if connection.as_mut().is_some_and(|running| running.as_mut().poll(cx).is_ready()) {
            *connection = None;
        }
        work.as_mut().poll(cx)
    })
    .await
}

fn silent() -> CallError {
    CallError::Broken("the node does not answer".to_owned())
}

fn broken(error: &dyn std::error::Error) -> CallError {
    CallError::Broken(error.to_string())
}
