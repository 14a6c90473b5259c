//! PINs to an operator's HTTP gateway.
//!
//! ```text
//! POST <url>
//! content-type: application/json
//! x-natter-timestamp: 1767225600000
//! x-natter-signature: sha256=<hex of HMAC-SHA256(secret, "<timestamp>.<body>")>
//!
//! {"id":"<32 hex digits>","alias":"+4915112345678","kind":"phone","pin":"123456","sent_at_ms":1767225600000}
//! ```
//!
//! **Invariant:** all tries of one PIN carry the same id, body and signature, so that a gateway can
//! tell a retry from a new PIN.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::hmac;
use proto::Alias;
use reqwest::{Client, StatusCode};
use serde::Serialize;
use tracing::debug;

use super::{PinError, kind_name};
use crate::keys::identity::hex;
use crate::{clock, config, tls};

/// How often one PIN is posted at most.
const TRIES: u32 = 3;

/// Wait before the second try; each further wait is three times longer. Between half and one and a
/// half of it is chosen at random, so that many nodes do not come back together.
const FIRST_WAIT: Duration = Duration::from_millis(200);

const SENDER: &str = "webhook";

/// A gateway that takes PINs.
pub struct Webhook {
    client: Client,
    url: reqwest::Url,
    key: hmac::Key,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Body<'a> {
    id: String,
    alias: &'a str,
    kind: &'static str,
    pin: &'a str,
    sent_at_ms: u64,
}

/// What is posted, the same for each try.
struct Letter {
    timestamp: String,
    signature: String,
    body: Vec<u8>,
}

impl Webhook {
    /// Sets up the client; nothing is sent.
    ///
    /// # Errors
    /// [`PinError::Setup`].
    pub(super) fn open(config: &config::Webhook) -> Result<Self, PinError> {
        tls::install_provider();
        let client = Client::builder()
            .timeout(config.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| setup(error.into()))?;
        let url = config.url.parse().map_err(|_| setup("the URL cannot be parsed".into()))?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, config.secret.reveal().as_bytes());
        Ok(Self { client, url, key })
    }

    pub(super) async fn send(&self, alias: &Alias, pin: &str) -> Result<(), PinError> {
        let letter = self.write(alias, pin)?;
        let mut wait = FIRST_WAIT;
        let mut tried = 0;
        loop {
            tried += 1;
            let last = match self.post(&letter).await {
                Ok(status) if status.is_success() => return Ok(()),
                Ok(status) if is_passing(status) => status.to_string(),
                Ok(status) => return Err(PinError::GatewayRefused { status: status.as_u16() }),
                Err(reason) => reason.to_owned(),
            };
            if tried == TRIES {
                return Err(PinError::GatewayUnavailable { tries: tried, last });
            }
            debug!(tried, last, "PIN gateway will be tried again");
            tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.5))).await;
            wait *= 3;
        }
    }

    fn write(&self, alias: &Alias, pin: &str) -> Result<Letter, PinError> {
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id)
            .map_err(|_| setup("no randomness on this machine".into()))?;
        let sent_at_ms = clock::now_ms();
        let kind = kind_name(alias.kind());
        let body = Body { id: hex(&id), alias: alias.as_str(), kind, pin, sent_at_ms };
        // The serializer's error could quote what it serializes.
        let body = serde_json::to_vec(&body).map_err(|_| setup("no JSON of a PIN".into()))?;
        let timestamp = sent_at_ms.to_string();
        let mut signing = hmac::Context::with_key(&self.key);
        signing.update(timestamp.as_bytes());
        signing.update(b".");
        signing.update(&body);
        let signature = format!("sha256={}", hex(signing.sign().as_ref()));
        Ok(Letter { timestamp, signature, body })
    }

    /// Posts once. The error is chosen from our own words: the client's could name the URL, which
    /// may hold a token.
    async fn post(&self, letter: &Letter) -> Result<StatusCode, &'static str> {
        let sent = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("x-natter-timestamp", &letter.timestamp)
            .header("x-natter-signature", &letter.signature)
            .body(letter.body.clone())
            .send()
            .await;
        match sent {
            Ok(answer) => Ok(answer.status()),
            Err(error) if error.is_timeout() => Err("no answer in time"),
            Err(error) if error.is_connect() => Err("cannot connect"),
            Err(_) => Err("the connection broke"),
        }
    }
}

/// Whether the same request may succeed later.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

fn setup(source: Box<dyn std::error::Error + Send + Sync>) -> PinError {
    PinError::Setup { sender: SENDER, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    use axum::Router;
    use axum::body::Bytes;
    use axum::http::HeaderMap;
    use axum::routing::post;
    use supervision::TaskGroup;

    use crate::config::Secret;

    const SECRET: &str = "a secret of enough letters";

    type Posts = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

    /// A gateway that gives these answers in turn, then 200.
    async fn gateway(answers: &[u16]) -> (TaskGroup, Posts, Webhook) {
        let posts = Posts::default();
        let (kept, mut answers) = (posts.clone(), answers.to_vec());
        answers.reverse();
        let answers = Arc::new(Mutex::new(answers));
        let answer = move |headers: HeaderMap, body: Bytes| async move {
            kept.lock().push((headers, body));
            let status = answers.lock().pop().unwrap_or(200);
            if status == 0 {
                std::future::pending::<()>().await;
            }
            StatusCode::from_u16(status).unwrap()
        };
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/pins?token=hush", socket.local_addr().unwrap());
        let group = TaskGroup::new();
        let router = Router::new().route("/pins", post(answer));
        group.spawn("gateway", async move { axum::serve(socket, router).await.unwrap() });
        let webhook = Webhook::open(&config::Webhook {
            url,
            secret: Secret::new(SECRET.into()),
            timeout: Duration::from_millis(500),
            ..config::Webhook::default()
        });
        (group, posts, webhook.unwrap())
    }

    fn ada() -> Alias {
        Alias::parse("+4915112345678").unwrap()
    }

    #[tokio::test]
    async fn a_pin_is_posted_with_a_signature_that_the_gateway_can_check() {
        let (_group, posts, webhook) = gateway(&[]).await;
        webhook.send(&ada(), "123456").await.unwrap();
        let (headers, body) = posts.lock()[0].clone();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["alias"], "+4915112345678");
        assert_eq!((&json["kind"], &json["pin"]), (&"phone".into(), &"123456".into()));
        assert_eq!(json["id"].as_str().unwrap().len(), 32);
        let timestamp = headers["x-natter-timestamp"].to_str().unwrap();
        assert_eq!(json["sent_at_ms"].to_string(), timestamp);
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        let signed = [timestamp.as_bytes(), b".", &body].concat();
        let expected = format!("sha256={}", hex(hmac::sign(&key, &signed).as_ref()));
        assert_eq!(headers["x-natter-signature"], expected.as_str());
    }

    #[tokio::test]
    async fn a_gateway_in_trouble_is_tried_again_with_the_same_letter() {
        let (_group, posts, webhook) = gateway(&[503, 0]).await;
        webhook.send(&ada(), "123456").await.unwrap();
        let posts = posts.lock();
        assert_eq!(posts.len(), 3);
        assert!(posts.iter().all(|(_, body)| *body == posts[0].1));
    }

    #[tokio::test]
    async fn tries_end_and_the_error_tells_no_pin_and_no_token() {
        let (_group, posts, webhook) = gateway(&[500, 502, 503, 504]).await;
        let error = webhook.send(&ada(), "123456").await.unwrap_err();
        assert_eq!(posts.lock().len(), 3);
        let text = format!("{error} {error:?} {webhook:?}");
        assert!(text.contains("3 tries") && text.contains("503"), "{text}");
        for hidden in ["123456", "hush", SECRET] {
            assert!(!text.contains(hidden), "{text}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_final() {
        let (_group, posts, webhook) = gateway(&[403]).await;
        let error = webhook.send(&ada(), "123456").await.unwrap_err();
        assert!(matches!(error, PinError::GatewayRefused { status: 403 }));
        assert_eq!(posts.lock().len(), 1);
    }

    #[tokio::test]
    async fn a_gateway_that_is_not_there_is_an_error_soon() {
        let (group, _posts, webhook) = gateway(&[]).await;
        group.finish(Duration::ZERO).await;
        let error = webhook.send(&ada(), "123456").await.unwrap_err();
        assert!(matches!(error, PinError::GatewayUnavailable { tries: 3, .. }), "{error}");
    }
}
