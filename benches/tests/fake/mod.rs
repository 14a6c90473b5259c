//! A node of a few hundred lines, in memory, for testing the load generator: registration, login,
//! tickets, mailboxes, receipts, and on demand one fault. Written for clearness, not for speed.
//!
//! **Invariant:** it checks what it is sent (PINs, signatures, acknowledgements), so that a client
//! that gets through speaks the protocol.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bytes::{Bytes, BytesMut};
use proto::wire::client_frame::Kind as Ask;
use proto::wire::deliver::Content;
use proto::wire::server_frame::Kind as Say;
use proto::wire::{self, ClientFrame, ServerFrame};
use proto::{Alias, Code, DeviceId, UserId, frame, signed};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedSender;

/// What goes wrong, once: with the message that is third in its mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Lose,
    Double,
    Swap,
    Refuse,
    Hole,
}

/// A fake that listens.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) tls: SocketAddr,
    pub(crate) plain: SocketAddr,
    pub(crate) ca: PathBuf,
    pub(crate) pins: PathBuf,
    _folder: tempfile::TempDir,
    shared: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    pins: File,
    aliases: HashMap<String, String>,
    users: HashMap<u64, User>,
    tickets: HashMap<Vec<u8>, u64>,
    counter: u64,
}

#[derive(Debug, Default)]
struct User {
    key: Vec<u8>,
    seq: u64,
    messages: u64,
    held: Option<Content>,
    entries: Vec<wire::Deliver>,
    outbox: Option<UnboundedSender<ServerFrame>>,
}

impl Fake {
    /// Starts one on a thread of its own; it lives as long as the test process.
    pub(crate) fn start(fault: Fault) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (ca, pins) = (folder.path().join("cert.pem"), folder.path().join("stdout"));
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&ca, cert.pem()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"natter/1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let shared = Arc::new(Mutex::new(State {
            fault,
            pins: File::create(&pins).unwrap(),
            aliases: HashMap::new(),
            users: HashMap::new(),
            tickets: HashMap::new(),
            counter: 0,
        }));
        let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (tls_listener, plain_listener) = (listen(), listen());
        let tls = tls_listener.local_addr().unwrap();
        let plain = plain_listener.local_addr().unwrap();
        let state = shared.clone();
        std::thread::spawn(move || run(tls_listener, plain_listener, &acceptor, &state));
        Self { tls, plain, ca, pins, _folder: folder, shared }
    }

    /// Mailbox entries that nobody acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.shared.lock().users.values().map(|user| user.entries.len()).sum()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(
    tls: std::net::TcpListener,
    plain: std::net::TcpListener,
    acceptor: &tokio_rustls::TlsAcceptor,
    state: &Arc<Mutex<State>>,
) {
    let wrap = |listener: std::net::TcpListener| {
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    };
    let (tls, plain) = (wrap(tls), wrap(plain));
    loop {
        tokio::select! {
            accepted = tls.accept() => {
                let (acceptor, state) = (acceptor.clone(), state.clone());
                spawn(async move {
                    let socket = accepted.unwrap().0;
                    socket.set_nodelay(true).unwrap();
                    if let Ok(stream) = acceptor.accept(socket).await {
                        serve(stream, state).await;
                    }
                });
            }
            accepted = plain.accept() => {
                let socket: TcpStream = accepted.unwrap().0;
                socket.set_nodelay(true).unwrap();
                spawn(serve(socket, state.clone()));
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a fake has no supervisor")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + 'static, state: Arc<Mutex<State>>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    #[allow(clippy::disallowed_methods, reason = "a fake has no limits")]
    let (outbox, mut inbox) = tokio::sync::mpsc::unbounded_channel();
    let mut session = Session { state, outbox, nonce: rand::random(), user: None };
    session.welcome();
    spawn(async move {
        let mut bytes = BytesMut::new();
        while let Some(said) = inbox.recv().await {
            frame::encode::<ServerFrame>(&said, &mut bytes);
            while let Ok(more) = inbox.try_recv() {
                frame::encode(&more, &mut bytes);
            }
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
            bytes.clear();
        }
    });
    let mut bytes = BytesMut::new();
    loop {
        while let Some(asked) = frame::decode::<ClientFrame>(&mut bytes, 300_000).unwrap() {
            session.asked(asked);
        }
        match reader.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    session.left();
}

struct Session {
    state: Arc<Mutex<State>>,
    outbox: UnboundedSender<ServerFrame>,
    nonce: [u8; 32],
    user: Option<u64>,
}

impl Session {
    fn say(&self, id: u64, kind: Say) {
        // The connection may be gone; its mailbox is not.
        let _sent = self.outbox.send(ServerFrame { id, kind: Some(kind) });
    }

    fn welcome(&self) {
        self.say(
            0,
            Say::Welcome(wire::Welcome {
                nonce: Bytes::copy_from_slice(&self.nonce),
                unanswered_max: 64,
                ..wire::Welcome::default()
            }),
        );
        self.say(0, Say::Ping(wire::Ping {}));
    }

    fn left(&self) {
        if let Some(user) = self.user {
            let mut state = self.state.lock();
            let user = state.users.get_mut(&user).unwrap();
            if user.outbox.as_ref().is_some_and(|outbox| outbox.same_channel(&self.outbox)) {
                user.outbox = None;
            }
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "what a fake need not know is a panic")]
    fn asked(&mut self, asked: ClientFrame) {
        let shared = self.state.clone();
        let mut state = shared.lock();
        match asked.kind.unwrap() {
            Ask::RegisterStart(start) => {
                state.counter += 1;
                let pin = format!("{:06}", state.counter);
                let line = format!("natter-pin alias={} pin={pin}\n", start.alias);
                state.pins.write_all(line.as_bytes()).unwrap();
                state.aliases.insert(start.alias, pin);
                let token = Bytes::from_static(b"token");
                self.say(
                    asked.id,
                    Say::PinSent(wire::PinSent { expires_s: 600, digits: 6, token }),
                );
            }
            Ask::RegisterProve(prove) => {
                let alias = Alias::parse(&prove.alias).unwrap();
                assert_eq!(state.aliases.get(alias.as_str()), Some(&prove.pin));
                let bytes = signed::register(&self.nonce, &alias);
                verify(&prove.device_key, &bytes, &prove.signature);
                assert_eq!(prove.token.as_ref(), b"token");
                state.counter += 1;
                let user = state.counter << 20;
                let key = prove.device_key.to_vec();
                state.users.insert(user, User { key, ..User::default() });
                let ticket = self.enter(&mut state, user);
                let registered = wire::Registered { user, device: 1, ticket, acknowledged: 0 };
                self.say(asked.id, Say::Registered(registered));
            }
            Ask::Login(login) => {
                let bytes = signed::login(&self.nonce, UserId(login.user), DeviceId(1));
                verify(&state.users[&login.user].key, &bytes, &login.signature);
                self.log_in(asked.id, &mut state, login.user);
            }
            Ask::Resume(resume) => {
                let user = state.tickets.remove(resume.ticket.as_ref()).expect("a good ticket");
                self.log_in(asked.id, &mut state, user);
            }
            Ask::Send(send) => self.sent(asked.id, &mut state, &send),
            Ask::Ack(ack) => {
                assert_eq!(asked.id, 0);
                acknowledged(&mut state, self.user.unwrap(), ack.seq);
            }
            Ask::Pong(_) => {}
            other => panic!("not in this fake: {other:?}"),
        }
    }

    fn enter(&mut self, state: &mut State, user: u64) -> Bytes {
        self.user = Some(user);
        state.users.get_mut(&user).unwrap().outbox = Some(self.outbox.clone());
        state.counter += 1;
        let ticket = state.counter.to_be_bytes();
        state.tickets.insert(ticket.to_vec(), user);
        Bytes::copy_from_slice(&ticket)
    }

    fn log_in(&mut self, id: u64, state: &mut State, user: u64) {
        let ticket = self.enter(state, user);
        let logged_in = wire::LoggedIn { ticket, acknowledged: 0, user, device: 1, resync: false };
        self.say(id, Say::LoggedIn(logged_in));
        let mailbox = &state.users[&user];
        for entry in &mailbox.entries {
            self.say(0, Say::Deliver(entry.clone()));
        }
        self.say(0, Say::CaughtUp(wire::CaughtUp { seq: mailbox.seq }));
    }

    fn sent(&self, id: u64, state: &mut State, send: &wire::Send) {
        let Some(wire::send::To::User(to)) = send.to else { panic!("{send:?}") };
        let fault = state.fault;
        let recipient = state.users.get_mut(&to).unwrap();
        recipient.messages += 1;
        let (third, fourth) = (recipient.messages == 3, recipient.messages == 4);
        if third && fault == Fault::Refuse {
            let code = Code::MailboxFull.number();
            let refused = wire::Refused { code, text: "full".into(), retry_after_ms: 30 };
            return self.say(id, Say::Refused(refused));
        }
        let from = self.user.unwrap();
        let body = send.body.clone();
        let message = wire::Message { from, from_device: 1, send_id: id, body };
        let content = Content::Message(message);
        match fault {
            Fault::Lose if third => {}
            Fault::Swap if third => recipient.held = Some(content),
            Fault::Double if third => {
                append(recipient, content.clone());
                append(recipient, content);
            }
            Fault::Hole if third => {
                recipient.seq += 1;
                append(recipient, content);
            }
            Fault::None
            | Fault::Lose
            | Fault::Double
            | Fault::Swap
            | Fault::Refuse
            | Fault::Hole => append(recipient, content),
        }
        if fourth && let Some(held) = recipient.held.take() {
            append(recipient, held);
        }
        self.say(id, Say::Accepted(wire::Accepted { at_ms: 1, user: 0 }));
    }
}

fn verify(key: &[u8], bytes: &[u8], signature: &[u8]) {
    UnparsedPublicKey::new(&ED25519, key).verify(bytes, signature).expect("a good signature");
}

/// Stores an entry and pushes it.
fn append(user: &mut User, content: Content) {
    user.seq += 1;
    let entry = wire::Deliver { seq: user.seq, after: None, at_ms: 1, content: Some(content) };
    user.entries.push(entry.clone());
    if let Some(outbox) = &user.outbox {
        // The connection may be gone; the entry is not.
        let _sent = outbox.send(ServerFrame { id: 0, kind: Some(Say::Deliver(entry)) });
    }
}

/// Deletes what is acknowledged and tells the senders.
fn acknowledged(state: &mut State, user: u64, seq: u64) {
    let mailbox = state.users.get_mut(&user).unwrap();
    assert!(seq <= mailbox.seq, "acknowledged {seq} of {}", mailbox.seq);
    let keep = mailbox.entries.partition_point(|entry| entry.seq <= seq);
    let gone: Vec<wire::Deliver> = mailbox.entries.drain(..keep).collect();
    let mut receipts: HashMap<u64, Vec<u64>> = HashMap::new();
    for entry in gone {
        if let Some(Content::Message(message)) = entry.content {
            receipts.entry(message.from).or_default().push(message.send_id);
        }
    }
    for (sender, send_ids) in receipts {
        let receipt = wire::Receipt { kind: 1, user, device: 1, send_ids };
        append(state.users.get_mut(&sender).unwrap(), Content::Receipt(receipt));
    }
}
