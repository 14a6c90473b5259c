//! The admin API as any HTTP client meets it: routes, statuses, failures as JSON, bounds of size and time.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::Instant;

use super::super::routes::routes;
use super::super::server::converse;
use super::super::socket::connect;
use super::super::{Reply, Request, Set, Wait};
use super::{Fake, Running};

/// An answer: its status, and its body as JSON.
fn parse(answer: &str) -> (u16, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, serde_json::from_str(body).unwrap_or_default())
}

/// Sends this to the socket of a node and reads the answer to its end.
async fn exchange(running: &Running, text: &str) -> String {
    let mut stream = connect(running.folder.path()).await.unwrap();
    // The node may close before all of it is written.
    stream.write_all(text.as_bytes()).await.ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8(answer).unwrap()
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn a_key_with_any_letters_is_one_setting() {
    let running = Running::start();
    for key in ["a/b", "\u{e9} ?#%2F"] {
        let set = Set { value: "7".to_owned() };
        running.ask(Request::Set { key: key.to_owned(), set }).await;
        let got = running.ask(Request::Get { key: Some(key.to_owned()) }).await;
        assert_eq!(got, Reply::Done(json!({ key: "7" })));
    }
}

#[tokio::test]
async fn each_failure_has_its_status_and_is_json_with_a_code() {
    let running = Running::start();
    let post = |path: &str, body: &str| request("POST", path, body);
    let set = |key: &str, body: &str| request("PUT", &format!("/settings/{key}"), body);
    for (text, status, code) in [
        (set("none", "{\"value\":\"1\"}"), 409, "refused"),
        (set("split", "{\"value\":\"1\"}"), 503, "no_majority"),
        (set("one", "{\"value\":1}"), 400, "malformed"),
        (set("one", "{\"value\":\"1\",\"more\":1}"), 400, "malformed"),
        (set("%ff", "{\"value\":\"1\"}"), 400, "malformed"),
        (request("GET", "/settings/two", ""), 404, "unknown_setting"),
        (post("/cluster/remove", "{\"node\":\"eve\"}"), 404, "unknown_node"),
        (post("/cluster/drain", "{}"), 400, "malformed"),
        (post("/cluster/drain", "no json"), 400, "malformed"),
        (post("/cluster/dance", "{}"), 404, "unknown_route"),
        (post("/cluster", "{}"), 405, "method_not_allowed"),
        (request("DELETE", "/settings/one", ""), 405, "method_not_allowed"),
        (post("/cluster/join", &"x".repeat(100_000)), 413, "too_large"),
    ] {
        let answer = exchange(&running, &text).await;
        let (got, body) = parse(&answer);
        assert_eq!((got, body["code"].as_str()), (status, Some(code)), "{text:.80}: {answer}");
        assert!(body["text"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
        assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    }
    let (status, body) = parse(&exchange(&running, &post("/cluster/rebalance", "")).await);
    assert_eq!((status, body), (200, json!({ "waited": false })), "no body is an empty object");
}

#[tokio::test]
async fn what_is_no_http_and_a_head_without_end_are_refused() {
    let running = Running::start();
    for text in [
        "{\"do\":\"status\"}\n\r\n\r\n".to_owned(),
        format!("GET /cluster HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(100_000)),
        "GET /cluster HTTP/1.1\r\n".to_owned() + &"a: b\r\n".repeat(100_000),
    ] {
        let (status, _) = parse(&exchange(&running, &text).await);
        assert!(status == 0 || (400..500).contains(&status), "{text:.40}: {status}");
    }
    let (status, _) = parse(&exchange(&running, &request("GET", "/cluster", "")).await);
    assert_eq!(status, 200, "others are served as before");
}

/// A client that sends this and no more; `read` says whether it reads. How long the node keeps the connection, and
/// the answer.
async fn keeps(text: &str, read: bool) -> (Duration, String) {
    let fake = Arc::new(Fake::default());
    *fake.left.lock() = vec!["to be moved: 3 groups".to_owned()];
    let (mut client, server): (DuplexStream, DuplexStream) = duplex(64);
    let began = Instant::now();
    let routes = routes(fake);
    let mut answer = Vec::new();
    let talk = async {
        client.write_all(text.as_bytes()).await.unwrap();
        if read {
            client.read_to_end(&mut answer).await.ok();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = converse(server, routes) => drop(ended),
        () = talk => {}
        () = tokio::time::sleep(Duration::from_hours(1)) => {}
    }
    drop(client);
    (began.elapsed(), String::from_utf8(answer).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_gives_its_place_back() {
    let (time, _) = keeps("GET /cluster HT", true).await;
    assert!(time <= Duration::from_secs(15), "half a head: {time:?}");

    let half = "POST /cluster/join HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{\"seed\":";
    let (time, _) = keeps(half, true).await;
    assert!(time <= Duration::from_secs(15), "half a body: {time:?}");

    for (method, path, body) in
        [("GET", "/cluster", ""), ("POST", "/cluster/rebalance", "{\"wait\":true}")]
    {
        let (time, _) = keeps(&request(method, path, body), false).await;
        assert!(time <= Duration::from_mins(2), "{path} and reads nothing: {time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_a_failure_with_a_code() {
    let fake = Arc::new(Fake::default());
    let (mut client, server) = duplex(4096);
    let half = "POST /cluster/join HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{\"seed\":";
    client.write_all(half.as_bytes()).await.unwrap();
    let (began, mut answer) = (Instant::now(), String::new());
    let (ended, read) =
        tokio::join!(converse(server, routes(fake)), client.read_to_string(&mut answer));
    drop((ended, read)); // An unread body may end both with an error.
    let (status, body) = parse(&answer);
    assert_eq!((status, &body["code"]), (408, &json!("too_slow")));
    assert!(began.elapsed() <= Duration::from_secs(15), "{:?}", began.elapsed());
}

#[tokio::test]
async fn connections_beyond_those_that_are_told_so_are_closed_at_once() {
    let running = Running::start();
    *running.fake.left.lock() = vec!["to be moved: 3 groups".to_owned()];
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut call = running.begin(Request::Rebalance(Wait { wait: true })).await;
        assert!(matches!(call.next().await.unwrap(), Reply::Progress(_)));
        held.push(call);
    }
    let status = request("GET", "/cluster", "");
    let (told, _) = parse(&exchange(&running, &status).await);
    assert_eq!(told, 429);
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(connect(running.folder.path()).await.unwrap());
    }
    assert_eq!(exchange(&running, &status).await, "");
    drop(silent);
}

#[tokio::test]
async fn every_id_in_the_answers_is_a_string_and_names_what_it_is() {
    let running = Running::start();
    let (_, status) = parse(&exchange(&running, &request("GET", "/cluster", "")).await);
    let meta = &status["groups"][16];
    assert_eq!(meta["group"], "meta", "{meta}");
    assert_eq!(status["groups"][3]["group"], "3");
    assert_eq!(status["node"], "00000000000000a1");
    assert_eq!(meta["leader"], "00000000000000a1");
    assert_eq!(meta["learners"], json!(["00000000000000b2"]));
    assert_eq!(status["members"][1]["node"], "00000000000000b2");
    assert!(status["cluster"].is_string(), "{status}");
}
