//! A node that does what the test says, frame by frame, over plain TCP or TLS.

use bytes::BytesMut;
use natter_sdk::{Client, ClientOptions, DeviceId, DeviceKey, Events, Identity, Store, UserId};
use proto::{
    frame,
    wire::{
        self, ClientFrame, ServerFrame, client_frame::Kind as Ask, deliver::Content,
        server_frame::Kind,
    },
};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// Longest wait for anything; reached only when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const USER: u64 = 77;
pub(crate) const NONCE: [u8; 32] = [9; 32];

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The listening side.
pub(crate) struct Node {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    pub(crate) heartbeat_s: u32,
}

/// The node's end of one connection.
pub(crate) struct Conn {
    io: Box<dyn Io>,
    buffer: BytesMut,
}

impl Node {
    pub(crate) async fn plain() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, tls: None, heartbeat_s: 60 }
    }

    /// A node with a certificate of its own, and that certificate in PEM.
    pub(crate) async fn tls() -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"natter/1".to_vec()];
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        (Self { tls, ..Self::plain().await }, made.cert.pem())
    }

    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// Takes the next connection and says `Welcome`.
    pub(crate) async fn accept(&self) -> Conn {
        let (socket, _) = timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
        socket.set_nodelay(true).unwrap();
        let io: Box<dyn Io> = match &self.tls {
            Some(tls) => Box::new(tls.accept(socket).await.unwrap()),
            None => Box::new(socket),
        };
        let mut conn = Conn { io, buffer: BytesMut::new() };
        let welcome = wire::Welcome {
            nonce: NONCE.to_vec().into(),
            frame_bytes_max: 256 * 1024,
            unanswered_max: 64,
            heartbeat_s: self.heartbeat_s,
            ..wire::Welcome::default()
        };
        conn.say(0, Kind::Welcome(welcome)).await;
        conn
    }

    /// Takes a connection and lets it log in, by ticket or key.
    pub(crate) async fn accept_login(&self) -> Conn {
        let mut conn = self.accept().await;
        let (id, ask) = conn.hear().await;
        let acknowledged = match ask {
            Ask::Login(login) => login.acknowledged,
            Ask::Resume(resume) => resume.acknowledged,
            other => panic!("expected a login, got {other:?}"),
        };
        conn.logged_in(id, acknowledged).await;
        conn
    }
}

impl Conn {
    pub(crate) async fn say(&mut self, id: u64, kind: Kind) {
        let mut bytes = Vec::new();
        frame::encode(&ServerFrame { id, kind: Some(kind) }, &mut bytes);
        self.io.write_all(&bytes).await.unwrap();
        self.io.flush().await.unwrap();
    }

    pub(crate) async fn say_bytes(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// The next frame, or `None` when the client hangs up.
    pub(crate) async fn try_hear(&mut self) -> Option<(u64, Ask)> {
        loop {
            let whole: Option<ClientFrame> = frame::decode(&mut self.buffer, 1 << 20).unwrap();
            if let Some(whole) = whole {
                return Some((whole.id, whole.kind.unwrap()));
            }
            let read = timeout(PATIENCE, self.io.read_buf(&mut self.buffer)).await;
            if !matches!(read.expect("the client sent nothing"), Ok(1..)) {
                return None;
            }
        }
    }

    pub(crate) async fn hear(&mut self) -> (u64, Ask) {
        self.try_hear().await.expect("the client hung up")
    }

    /// The next frame, which must be a send: its id and body.
    pub(crate) async fn hear_send(&mut self) -> (u64, Vec<u8>) {
        match self.hear().await {
            (id, Ask::Send(send)) => (id, send.body.to_vec()),
            other => panic!("expected a send, got {other:?}"),
        }
    }

    /// Bodies of the next `count` sends, none of which is answered.
    pub(crate) async fn hear_bodies(&mut self, count: usize) -> Vec<String> {
        let mut bodies = Vec::new();
        for _ in 0..count {
            bodies.push(String::from_utf8(self.hear_send().await.1).unwrap());
        }
        bodies
    }

    /// Reads until an acknowledgement comes.
    pub(crate) async fn hear_ack(&mut self) -> u64 {
        loop {
            if let (0, Ask::Ack(ack)) = self.hear().await {
                return ack.seq;
            }
        }
    }

    pub(crate) async fn logged_in(&mut self, id: u64, acknowledged: u64) {
        let logged_in = wire::LoggedIn {
            ticket: b"ticket".to_vec().into(),
            acknowledged,
            user: USER,
            device: 1,
            resync: false,
        };
        self.say(id, Kind::LoggedIn(logged_in)).await;
    }

    pub(crate) async fn accept_send(&mut self, id: u64) {
        self.say(id, Kind::Accepted(wire::Accepted { at_ms: 1000 + id, user: 0 })).await;
    }

    pub(crate) async fn refuse(&mut self, id: u64, code: proto::Code, retry_after_ms: u32) {
        let code = code.number();
        let refused = wire::Refused { code, text: "as the test says".into(), retry_after_ms };
        self.say(id, Kind::Refused(refused)).await;
    }

    pub(crate) async fn deliver(&mut self, seq: u64, after: Option<u64>) {
        let message = wire::Message {
            from: 5,
            from_device: 1,
            send_id: seq,
            body: format!("m{seq}").into_bytes().into(),
        };
        let content = Some(Content::Message(message));
        self.say(0, Kind::Deliver(wire::Deliver { seq, after, at_ms: seq, content })).await;
    }
}

pub(crate) fn identity() -> Identity {
    let key = DeviceKey::generate().unwrap();
    Identity { user: UserId(USER), device: DeviceId(1), key }
}

pub(crate) fn options(node: &Node) -> ClientOptions {
    let mut options = ClientOptions::plain(node.address());
    options.backoff_min = Duration::from_millis(10);
    options.backoff_max = Duration::from_millis(50);
    options.request_timeout = Duration::from_secs(5);
    options
}

pub(crate) fn start(node: &Node, store: impl Store) -> (Client, Events) {
    Client::login(options(node), identity(), store).unwrap()
}

/// The next event for which `pick` has a value.
pub(crate) async fn next<T>(
    events: &mut Events,
    mut pick: impl FnMut(natter_sdk::Event) -> Option<T>,
) -> T {
    timeout(PATIENCE, async {
        loop {
            if let Some(found) = pick(events.next().await.expect("no more events")) {
                return found;
            }
        }
    })
    .await
    .expect("the event did not come")
}
