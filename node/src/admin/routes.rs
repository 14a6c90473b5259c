//! The routes of the admin API: they turn HTTP requests into [`Request`]s, and outcomes into JSON.
//!
//! ```text
//! GET  /cluster                 members, groups, sessions
//! POST /cluster/join            {"seed":"10.0.0.1:7403"}
//! POST /cluster/leave           {"wait":true}
//! POST /cluster/drain           {"node":"ada","undo":false,"force":false,"wait":true}
//! POST /cluster/rebalance       {"wait":true}
//! POST /cluster/remove          {"node":"ada","wait":true}
//! GET  /settings                all settings of the cluster; /settings/KEY for one
//! PUT  /settings/KEY            {"value":"8"}; an empty value resets it to each node's own
//! ```
//!
//! Only `node`, `seed` and `value` must be there. The answer is one JSON document. A failure has the HTTP status of
//! its code and reads `{"code":"..","text":".."}`; the codes are in [`FailureCode`]. With `"wait":true` the answer has
//! status 200 and is a stream of JSON lines, one each time that the steps left change; the last line is the outcome:
//!
//! ```text
//! {"progress":["leads 3 groups"]}
//! {"done":{"node":"00f1..","name":"ada","waited":true}}
//! {"failed":{"code":"still_going","text":".."}}
//! ```
//!
//! **Invariant:** nothing here knows how a request came in. Whoever serves the routes decides who may use them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Path, Request as HttpRequest, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use futures_util::stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::answer::{Begun, Waiting, begin};
use super::control::Control;
use super::{Failure, FailureCode, Request};

/// Longest body of a request: a setting is the longest, a few hundred bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// Longest wait for the body of a request.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

type Shared = State<Arc<dyn Control>>;

type Key = Result<Path<String>, PathRejection>;

/// The routes of a node.
pub(super) fn routes(control: Arc<dyn Control>) -> Router {
    let status = async |State(control): Shared| run(control, Ok(Request::Status)).await;
    let all = async |State(control): Shared| run(control, Ok(Request::Get { key: None })).await;
    let one = async |State(control): Shared, key: Key| {
        run(control, read_key(key).map(|key| Request::Get { key: Some(key) })).await
    };
    let set = async |State(control): Shared, key: Key, body: HttpRequest| {
        let request = match read_key(key) {
            Ok(key) => read(body).await.map(|set| Request::Set { key, set }),
            Err(failure) => Err(failure),
        };
        run(control, request).await
    };
    Router::new()
        .route("/cluster", get(status))
        .route("/cluster/join", action(Request::Join))
        .route("/cluster/leave", action(Request::Leave))
        .route("/cluster/drain", action(Request::Drain))
        .route("/cluster/rebalance", action(Request::Rebalance))
        .route("/cluster/remove", action(Request::Remove))
        .route("/settings", get(all))
        .route("/settings/{key}", get(one).put(set))
        .fallback(async || failed(&Failure::new(FailureCode::UnknownRoute, "no such route")))
        .method_not_allowed_fallback(async || {
            failed(&Failure::new(FailureCode::MethodNotAllowed, "this route has other methods"))
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(control)
}

/// A request by `POST` with a JSON body.
fn action<T>(request: fn(T) -> Request) -> MethodRouter<Arc<dyn Control>>
where
    T: DeserializeOwned + Send + 'static,
{
    post(async move |State(control): Shared, body: HttpRequest| {
        let request = read(body).await.map(request);
        run(control, request).await
    })
}

/// Routes that answer every request with the same failure.
pub(super) fn refuse(failure: Failure) -> Router {
    Router::new().fallback(async move || failed(&failure))
}

fn malformed(text: &impl ToString) -> Failure {
    Failure::new(FailureCode::Malformed, format!("not understood: {}", text.to_string()))
}

fn read_key(key: Key) -> Result<String, Failure> {
    key.map(|Path(key)| key).map_err(|error| malformed(&error.body_text()))
}

/// The body of a request. No body at all is an empty object.
async fn read<T: DeserializeOwned>(request: HttpRequest) -> Result<T, Failure> {
    let bytes = match timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(bytes)) if bytes.is_empty() => Bytes::from_static(b"{}"),
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let text = format!("the body has more than {BODY_BYTES_MAX} bytes");
            return Err(Failure::new(FailureCode::TooLarge, text));
        }
        Ok(Err(error)) => return Err(malformed(&error.body_text())),
        Err(_) => return Err(Failure::new(FailureCode::TooSlow, "the body did not come in time")),
    };
    serde_json::from_slice(&bytes).map_err(|error| malformed(&error))
}

async fn run(control: Arc<dyn Control>, request: Result<Request, Failure>) -> Response {
    let begun = match request {
        Ok(request) => begin(&control, request).await,
        Err(failure) => Err(failure),
    };
    match begun {
        Ok(Begun::Done(value)) => json(StatusCode::OK, &value),
        Ok(Begun::Underway { goal, done }) => lines(Waiting::new(control, goal, done)),
        Err(failure) => failed(&failure),
    }
}

/// Replies as JSON lines, until the last one. The server drops the body if the client leaves.
fn lines(waiting: Waiting) -> Response {
    let replies = stream::unfold(waiting, async |mut waiting| {
        let reply = waiting.next().await?;
        let line = serde_json::to_vec(&reply).map(|mut line| {
            line.push(b'\n');
            Bytes::from(line)
        });
        Some((line, waiting))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::from_stream(replies)).into_response()
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => {
            (status, [(header::CONTENT_TYPE, "application/json")], text + "\n").into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn failed(failure: &Failure) -> Response {
    json(failure.code.status(), failure)
}
