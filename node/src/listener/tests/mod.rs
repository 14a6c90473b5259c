//! What listeners and transports promise, over real sockets on loopback.

mod openings;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use proto::{Code, limits};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use supervision::StopSource;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::*;
use crate::config;
use crate::tls::{ALPN_CLIENT, ALPN_WEBSOCKET, Certificates};

/// A listener on a free port that hands out its connections.
struct Server {
    address: SocketAddr,
    certificates: Certificates,
    gate: Gate,
    arrived: mpsc::Receiver<(Transport, Peer)>,
    stopping: StopSource,
    listening: TaskGroup,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(kind: &str, change: impl FnOnce(&mut config::Limits)) -> Self {
        Self::behind(&[], kind, change)
    }

    /// With proxies in these networks.
    fn behind(proxy_from: &[String], kind: &str, change: impl FnOnce(&mut config::Limits)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates =
            Certificates::open(&config::Tls::default(), folder.path(), "cookie").unwrap();
        let security = match kind {
            "client" => Security::Tls(certificates.acceptor(ALPN_CLIENT).unwrap()),
            "websocket" => {
                let tls = certificates.acceptor(ALPN_WEBSOCKET).unwrap();
                Security::WebSocket(tls, Origins::default())
            }
            _ => Security::Plain,
        };
        let mut limits = config::Limits::default();
        change(&mut limits);
        let gate = Gate::new(&limits);
        let socket = bind("listen.client", "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let handshake_timeout = Arc::new(move || limits.handshake_timeout);
        let proxies = Proxies::new(proxy_from);
        let listener =
            Listener { socket, security, gate: gate.clone(), proxies, handshake_timeout };
        let (hand_over, arrived) = mpsc::channel(64);
        let (stopping, heard) = StopSource::new();
        let (listening, connections) = (TaskGroup::new(), TaskGroup::new());
        listening.spawn(
            "listener",
            listener.run(heard, connections, move |transport, peer| {
                let hand_over = hand_over.clone();
                async move { hand_over.send((transport, peer)).await.unwrap() }
            }),
        );
        Self { address, certificates, gate, arrived, stopping, listening, _folder: folder }
    }

    async fn tls(&self, alpn: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        self.tls_over(stream, alpn).await.unwrap()
    }

    async fn tls_over(
        &self,
        stream: TcpStream,
        alpn: &[u8],
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        let chain = CertificateDer::pem_file_iter(self.certificates.file()).unwrap();
        chain.for_each(|certificate| roots.add(certificate.unwrap()).unwrap());
        crate::tls::install_provider();
        let mut config =
            rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols =
            Some(alpn.to_vec()).filter(|alpn| !alpn.is_empty()).into_iter().collect();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    async fn accepted(&mut self) -> (Transport, Peer) {
        let wait = tokio::time::timeout(Duration::from_secs(10), self.arrived.recv());
        wait.await.expect("a connection in time").unwrap()
    }
}

/// Reads until `into` holds `bytes`.
async fn read(transport: &mut Transport, bytes: usize) -> BytesMut {
    let mut into = BytesMut::new();
    while into.len() < bytes {
        match next(transport, &mut into).await {
            ReadNow::Bytes(_) => {}
            end @ (ReadNow::WouldBlock
            | ReadNow::Closed
            | ReadNow::Farewell
            | ReadNow::Broken(_)) => {
                panic!("{end:?} after {} bytes", into.len())
            }
        }
    }
    into
}

/// What comes after waiting.
async fn next(transport: &mut Transport, into: &mut BytesMut) -> ReadNow {
    loop {
        let wait = tokio::time::timeout(Duration::from_secs(10), transport.readable());
        wait.await.expect("readable in time").unwrap();
        match transport.read_now(into, 64 * 1024).unwrap() {
            ReadNow::WouldBlock => {}
            found @ (ReadNow::Bytes(_)
            | ReadNow::Closed
            | ReadNow::Farewell
            | ReadNow::Broken(_)) => return found,
        }
    }
}

fn frame(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

#[tokio::test]
async fn frames_travel_both_ways_over_plain_tcp() {
    let mut server = Server::start("plain", |_| {});
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let (mut transport, peer) = server.accepted().await;
    assert_eq!(peer.address, client.local_addr().unwrap());
    client.write_all(&frame(b"hello")).await.unwrap();
    assert_eq!(read(&mut transport, 6).await, frame(b"hello"));
    transport.write(&frame(b"hi")).await.unwrap();
    let mut answer = [0; 3];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..], frame(b"hi"));
    drop(client);
    assert_eq!(next(&mut transport, &mut BytesMut::new()).await, ReadNow::Closed);
}

#[tokio::test]
async fn a_client_that_trusts_the_development_certificate_speaks_tls_1_3() {
    let mut server = Server::start("client", |_| {});
    let mut client = server.tls(ALPN_CLIENT).await;
    let session = client.get_ref().1;
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.alpn_protocol(), Some(ALPN_CLIENT));
    let (mut transport, _peer) = server.accepted().await;
    let long = frame(&vec![7; 200_000]);
    let letter = long.clone();
    let send = async {
        client.write_all(&letter).await.unwrap();
        client.flush().await.unwrap();
    };
    let ((), received) = tokio::join!(send, read(&mut transport, long.len()));
    assert_eq!(received, long);
    let echo = async { transport.write(&long).await.unwrap() };
    let mut answer = vec![0; long.len()];
    let ((), got) = tokio::join!(echo, client.read_exact(&mut answer));
    assert_eq!((got.unwrap(), answer), (long.len(), long));
    client.shutdown().await.unwrap();
    assert_eq!(next(&mut transport, &mut BytesMut::new()).await, ReadNow::Closed);
}

#[tokio::test]
async fn a_client_of_another_protocol_is_refused_in_the_handshake() {
    let server = Server::start("client", |_| {});
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[..1], [21], "a TLS alert");
}

#[tokio::test]
async fn decrypted_bytes_are_not_forgotten_when_little_is_read_at_once() {
    let mut server = Server::start("client", |_| {});
    let mut client = server.tls(ALPN_CLIENT).await;
    let (mut transport, _peer) = server.accepted().await;
    client.write_all(&[3; 10_000]).await.unwrap();
    client.flush().await.unwrap();
    let mut into = BytesMut::new();
    while into.len() < 10_000 {
        let wait = tokio::time::timeout(Duration::from_secs(5), transport.readable());
        wait.await.expect("bytes that wait inside wake the reader").unwrap();
        let before = into.len();
        transport.read_now(&mut into, 64).unwrap();
        assert!(into.len() - before <= 64);
    }
}

#[tokio::test]
async fn waiting_for_a_silent_client_does_not_spin() {
    for kind in ["plain", "client"] {
        let mut server = Server::start(kind, |_| {});
        let mut stream: Box<dyn tokio::io::AsyncWrite + Unpin> = match kind {
            "client" => Box::new(server.tls(ALPN_CLIENT).await),
            _ => Box::new(TcpStream::connect(server.address).await.unwrap()),
        };
        let (mut transport, _peer) = server.accepted().await;
        stream.write_all(b"\x02hi").await.unwrap();
        stream.flush().await.unwrap();
        read(&mut transport, 3).await;
        let mut into = BytesMut::new();
        let mut rounds = 0;
        let spin = async {
            loop {
                transport.readable().await.unwrap();
                assert_eq!(transport.read_now(&mut into, 4096).unwrap(), ReadNow::WouldBlock);
                rounds += 1;
            }
        };
        tokio::time::timeout(Duration::from_millis(100), spin).await.unwrap_err();
        assert!(rounds < 3, "{kind}: {rounds} rounds");
    }
}

#[tokio::test]
async fn what_is_read_takes_no_more_memory_than_it_needs() {
    let mut server = Server::start("client", |_| {});
    let mut client = server.tls(ALPN_CLIENT).await;
    let (mut transport, _peer) = server.accepted().await;
    client.write_all(&frame(&[1; 100])).await.unwrap();
    client.flush().await.unwrap();
    let into = read(&mut transport, 101).await;
    assert!(into.capacity() <= 128, "{}", into.capacity());
}

#[tokio::test]
async fn the_last_frame_arrives_although_more_was_sent_to_us() {
    let mut server = Server::start("plain", |_| {});
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let (mut transport, peer) = server.accepted().await;
    client.write_all(&vec![0xff; 50_000]).await.unwrap();
    transport.write(&frame(b"bad frame")).await.unwrap();
    let leave = async move {
        transport.close().await;
        drop((transport, peer));
    };
    let mut answer = Vec::new();
    let ((), last) = tokio::join!(leave, client.read_to_end(&mut answer));
    last.unwrap();
    assert_eq!(answer, frame(b"bad frame"));
}

type WebClient = tokio_tungstenite::WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

async fn websocket(server: &Server, subprotocol: &'static str) -> Result<WebClient, String> {
    let stream = server.tls(ALPN_WEBSOCKET).await;
    websocket_over(stream, &[("sec-websocket-protocol", subprotocol)]).await
}

async fn websocket_over(
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    headers: &[(&'static str, &str)],
) -> Result<WebClient, String> {
    let mut request = "wss://localhost/".into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let opened = tokio_tungstenite::client_async(request, stream).await;
    let (client, response) = opened.map_err(|error| error.to_string())?;
    assert_eq!(response.headers()["sec-websocket-protocol"], SUBPROTOCOL);
    Ok(client)
}

#[tokio::test]
async fn a_websocket_message_is_a_frame() {
    let mut server = Server::start("websocket", |_| {});
    let mut client = websocket(&server, "other, natter.v1").await.unwrap();
    let (mut transport, _peer) = server.accepted().await;
    client.send(Message::Binary(Bytes::from_static(b"hello"))).await.unwrap();
    assert_eq!(read(&mut transport, 6).await, frame(b"hello"));
    transport.write(&[frame(b"a"), frame(&vec![5; 70_000])].concat()).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary("a".into()));
    assert_eq!(client.next().await.unwrap().unwrap().len(), 70_000);

    client.send(Message::Ping("?".into())).await.unwrap();
    assert_eq!(next(&mut transport, &mut BytesMut::new()).await, ReadNow::Bytes(7));
    assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong("?".into()));

    transport.set_frame_bytes_max(limits::FRAME_BYTES_MAX);
    client.send(Message::Binary(vec![1; limits::FRAME_BYTES_MAX].into())).await.unwrap();
    let bytes = read(&mut transport, limits::FRAME_BYTES_MAX + 3).await;
    assert_eq!(bytes, frame(&vec![1; limits::FRAME_BYTES_MAX]));

    let ((), farewell) = tokio::join!(transport.close(), client.next());
    assert!(matches!(farewell.unwrap().unwrap(), Message::Close(_)));
}

#[tokio::test]
async fn a_websocket_that_says_goodbye_is_closed() {
    let mut server = Server::start("websocket", |_| {});
    let mut client = websocket(&server, SUBPROTOCOL).await.unwrap();
    let (mut transport, _peer) = server.accepted().await;
    client.close(None).await.unwrap();
    let mut into = BytesMut::new();
    while next(&mut transport, &mut into).await != ReadNow::Farewell {}
    assert!(into.is_empty());
    let ((), answer) = tokio::join!(transport.close(), client.next());
    assert!(matches!(answer.unwrap().unwrap(), Message::Close(_)), "its goodbye is answered");
}

#[tokio::test]
async fn a_websocket_that_breaks_the_rules_is_told_the_code() {
    let mut server = Server::start("websocket", |_| {});
    for (message, code) in [
        (Message::Text("hello".into()), Code::BadFrame),
        (Message::Binary(vec![0; 5000].into()), Code::FrameTooLarge),
    ] {
        let mut client = websocket(&server, SUBPROTOCOL).await.unwrap();
        let (mut transport, _peer) = server.accepted().await;
        client.send(message).await.unwrap();
        let found = next(&mut transport, &mut BytesMut::new()).await;
        assert!(matches!(found, ReadNow::Broken(refusal) if refusal.code == code));
    }
    let refused = websocket(&server, "chat").await.unwrap_err();
    assert!(refused.contains("400"), "{refused}");
}

#[tokio::test]
async fn a_silent_client_loses_its_place_and_holds_nobody_up() {
    let mut server = Server::start("client", |limits| {
        limits.handshake_timeout = Duration::from_millis(300);
    });
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    server.tls(ALPN_CLIENT).await;
    drop(server.accepted().await);
    for mut stream in silent {
        let mut byte = [0];
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut byte)).await;
        assert!(matches!(end.expect("closed by the server"), Ok(0) | Err(_)));
    }
    wait_until(|| server.gate.counts() == Counts::default()).await;
}

#[tokio::test]
async fn over_its_limit_an_address_gives_up_its_oldest_connection_that_is_not_logged_in() {
    let mut server = Server::start("plain", |limits| limits.unauthenticated_per_address = 1);
    let _first = TcpStream::connect(server.address).await.unwrap();
    let (transport, mut peer) = server.accepted().await;
    let mut second = TcpStream::connect(server.address).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), second.read(&mut [0; 1])).await;
    assert!(matches!(end.unwrap(), Ok(0) | Err(_)), "the first has had no time yet");
    assert!(peer.permit.log_in());
    let _third = TcpStream::connect(server.address).await.unwrap();
    let (_, third) = server.accepted().await;
    let evicted = tokio::time::timeout(Duration::from_secs(10), third.permit.evicted());
    let fourth = async {
        loop {
            let _fourth = TcpStream::connect(server.address).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        evicted = evicted => evicted.expect("the third gives its place up"),
        () = fourth => {}
    }
    drop(transport);
}

#[tokio::test]
async fn a_listener_that_stops_leaves_its_connections_alone() {
    let mut server = Server::start("client", |_| {});
    let client = TcpStream::connect(server.address).await.unwrap();
    wait_until(|| server.gate.counts().open == 1).await;
    server.stopping.fire();
    wait_until(|| server.listening.count() == 0).await;
    TcpStream::connect(server.address).await.unwrap_err();
    // It has come before, and has not even shaken hands yet.
    let mut client = server.tls_over(client, ALPN_CLIENT).await.unwrap();
    let (mut transport, _peer) = server.accepted().await;
    client.write_all(&frame(b"x")).await.unwrap();
    assert_eq!(read(&mut transport, 2).await, frame(b"x"));
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_setting_and_the_cure() {
    let server = Server::start("plain", |_| {});
    let error = bind("listen.client", server.address).unwrap_err().to_string();
    for part in ["listen.client", &server.address.to_string(), "taken", "another port"] {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

#[tokio::test]
async fn a_replaced_certificate_is_used_and_a_broken_one_is_not() {
    let server = Server::start("client", |_| {});
    let file = server.certificates.file().to_owned();
    let before = std::fs::read(&file).unwrap();
    assert!(!server.certificates.reload().unwrap(), "nothing changed");

    std::fs::write(&file, "broken").unwrap();
    let error = server.certificates.reload().unwrap_err().to_string();
    assert!(error.contains("tls.certificate") && error.contains("cert.pem"), "{error}");
    assert!(!server.certificates.reload().unwrap(), "said once");
    std::fs::write(&file, &before).unwrap();
    assert!(server.certificates.reload().unwrap());
    server.tls(ALPN_CLIENT).await;

    let other = tempfile::tempdir().unwrap();
    let fresh = Certificates::open(&config::Tls::default(), other.path(), "cookie").unwrap();
    std::fs::copy(fresh.file(), &file).unwrap();
    let error = server.certificates.reload().unwrap_err().to_string();
    assert!(error.contains("do not fit"), "{error}");
    std::fs::copy(fresh.file().with_file_name("key.pem"), file.with_file_name("key.pem")).unwrap();
    assert!(server.certificates.reload().unwrap());
    server.tls(ALPN_CLIENT).await; // Trusts the new file.
}

async fn wait_until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time");
}

/// Bytes of what a function of three arguments waits with.
fn size_of_future<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_connection_keeps_no_room_for_what_it_seldom_waits_for() {
    let bytes = size_of_future(crate::client::connection::serve);
    // A login takes some 4 KiB, and each idle connection would keep them.
    assert!(bytes <= 1_100, "{bytes} bytes: box what it seldom waits for");
}
