//! The routes of the admin API: HTTP requests become [`Request`]s, what comes of them becomes JSON.
//!
//! ```text
//! GET  /cluster                 how things stand
//! POST /cluster/join            {"seed":"10.0.0.1:7403"}
//! POST /cluster/leave           {"wait":true}
//! POST /cluster/drain           {"node":"ada","undo":false,"force":false,"wait":true}
//! POST /cluster/rebalance       {"wait":true}
//! POST /cluster/remove          {"node":"ada","wait":true}
//! GET  /settings                all that are set for the cluster; /settings/KEY for one
//! PUT  /settings/KEY            {"value":"8"}; an empty value takes the setting back
//! ```
//!
//! The answer is one JSON document. A failure has the status of its kind and says `{"kind":..,"text":..}`. Who
//! waits (`"wait":true`) gets status 200 and lines of JSON, as things go on:
//!
//! ```text
//! {"progress":["leads 3 groups"]}
//! {"done":{"node":"00f1..","name":"ada","waited":true}}
//! {"failed":{"kind":"still_going","text":".."}}
//! ```
//!
//! **Invariant:** nothing here knows through which socket a request came.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use futures_util::stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::answer::{Begun, Waiting, begin};
use super::control::Control;
use super::{Failure, FailureKind, Request};

/// Longest body of a request.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// Longest wait for the body of a request.
const PATIENCE: Duration = Duration::from_secs(10);

type Shared = State<Arc<dyn Control>>;

/// The routes of a node.
pub(super) fn routes(control: Arc<dyn Control>) -> Router {
    let status = async |State(control): Shared| run(control, Ok(Request::Status)).await;
    let join = async |State(control): Shared, body: Body| {
        run(control, read(body).await.map(Request::Join)).await
    };
    let leave = async |State(control): Shared, body: Body| {
        run(control, read(body).await.map(Request::Leave)).await
    };
    let drain = async |State(control): Shared, body: Body| {
        run(control, read(body).await.map(Request::Drain)).await
    };
    let rebalance = async |State(control): Shared, body: Body| {
        run(control, read(body).await.map(Request::Rebalance)).await
    };
    let remove = async |State(control): Shared, body: Body| {
        run(control, read(body).await.map(Request::Remove)).await
    };
    let all = async |State(control): Shared| run(control, Ok(Request::Get { key: None })).await;
    let one = async |State(control): Shared, Path(key): Path<String>| {
        run(control, Ok(Request::Get { key: Some(key) })).await
    };
    let set = async |State(control): Shared, Path(key): Path<String>, body: Body| {
        run(control, read(body).await.map(|set| Request::Set { key, set })).await
    };
    Router::new()
        .route("/cluster", get(status))
        .route("/cluster/join", post(join))
        .route("/cluster/leave", post(leave))
        .route("/cluster/drain", post(drain))
        .route("/cluster/rebalance", post(rebalance))
        .route("/cluster/remove", post(remove))
        .route("/settings", get(all))
        .route("/settings/{key}", get(one).merge(put(set)))
        .fallback(async || failed(&Failure::new(FailureKind::Malformed, "there is no such route")))
        .with_state(control)
}

/// Answers everybody with the same failure.
pub(super) fn refuse(failure: Failure) -> Router {
    Router::new().fallback(async move || failed(&failure))
}

/// The body of a request.
async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    let malformed = |text: String| {
        Failure::new(FailureKind::Malformed, format!("the node does not understand this: {text}"))
    };
    let body = timeout(PATIENCE, axum::body::to_bytes(body, BODY_BYTES_MAX)).await;
    let body = body.map_err(|_| malformed("the body did not come".to_owned()))?;
    let body = body.map_err(|error| malformed(error.to_string()))?;
    serde_json::from_slice(&body).map_err(|error| malformed(error.to_string()))
}

async fn run(control: Arc<dyn Control>, request: Result<Request, Failure>) -> Response {
    let begun = match request {
        Ok(request) => begin(&control, request).await,
        Err(failure) => Err(failure),
    };
    match begun {
        Ok(Begun::Done(value)) => json(StatusCode::OK, &value),
        Ok(Begun::Under { goal, done }) => lines(Waiting::new(control, goal, done)),
        Err(failure) => failed(&failure),
    }
}

/// Replies as lines of JSON, until the last one. If whoever asked has left, the body is dropped.
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
    json(failure.kind.status(), failure)
}
