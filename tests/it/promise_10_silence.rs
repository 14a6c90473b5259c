//! Promise 10: whoever opens connections and says nothing locks out nobody.

use crate::connections::websocket;
use crate::people::{Person, node};
use futures_util::StreamExt;
use proto::Code;
use proto::wire::{Ping, client_frame::Kind as Ask};
use std::net::{Ipv4Addr, SocketAddr};
use tests::wire::Wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Connections that come before anybody honest does.
const FIRST: usize = 4_000;

/// New ones each tenth of a second.
const NEW: usize = 40;

async fn silent(to: SocketAddr, host: u8) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).ok()?;
    socket.connect(to).await.ok()
}

/// Addresses of the attacker: together they may hold more places than there are.
const HOSTS: usize = 12;

/// True if the node has not hung up.
fn is_open(stream: &TcpStream) -> bool {
    match stream.try_read(&mut [0; 1024]) {
        Ok(bytes) => bytes > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

/// Holds silent connections from many addresses for as long as the node lets it, and opens more for ever.
async fn besiege(doors: Vec<SocketAddr>, opened: tokio::sync::watch::Sender<usize>) {
    let mut open = Vec::new();
    let mut paces = tokio::time::interval(std::time::Duration::from_millis(100));
    for number in 0_usize.. {
        let host = 2 + u8::try_from(number % HOSTS).unwrap();
        open.extend(silent(doors[number % doors.len()], host).await);
        opened.send_replace(number);
        if number % NEW == 0 {
            open.retain(is_open);
            if number >= FIRST {
                paces.tick().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_10_thousands_of_silent_connections_lock_nobody_out() {
    // Fewer places than silent connections come before their time ends, and more than one address may hold.
    let limits = "[limits]\nunauthenticated = 300\nunauthenticated_per_address = 60";
    let mut node = node(limits).await;
    let mut ada = Person::join(&node, "ada").await;
    let addresses = node.target().addresses().unwrap();
    let doors = [&addresses.client, &addresses.plain, &addresses.websocket];
    let doors: Vec<SocketAddr> = doors.iter().map(|door| door.parse().unwrap()).collect();
    let (sender, mut opened) = tokio::sync::watch::channel(0);
    let mut siege = tokio::task::JoinSet::new();
    siege.spawn(besiege(doors, sender));
    let first = opened.wait_for(|opened| *opened >= FIRST);
    tokio::time::timeout(tests::node::PATIENCE * 2, first).await.unwrap().unwrap();
    for round in 0..40 {
        ada.wire =
            ada.phone.login(&node.target()).await.unwrap_or_else(|e| panic!("{round}: {e:#}"));
        ada.still_served().await;
        Wire::plain(&node.target()).await.unwrap();
        websocket(&node).await.next().await.expect("a welcome").unwrap();
    }
    siege.abort_all();
    assert!(node.runs());
}

#[tokio::test]
async fn promise_10_a_proxy_header_of_a_stranger_is_an_error() {
    let node = node("").await;
    let (addresses, target) = (node.target().addresses().unwrap(), node.target());
    let header = "PROXY TCP4 192.0.2.7 127.0.0.1 1000 7400\r\n";
    for (door, protocol) in [(&addresses.client, "natter/1"), (&addresses.websocket, "http/1.1")] {
        let stream = begins_with(door, 1, header).await;
        assert!(tests::wire::tls_on(&target, stream, &[protocol]).await.is_err(), "{door}");
    }
    // On the port without TLS it is a frame that is none: what follows is not answered.
    let stream = begins_with(&addresses.plain, 1, header).await;
    let mut wire = Wire::welcome(Box::new(stream)).await.unwrap();
    for _ in 0..50 {
        wire.send(0, Ask::Ping(Ping {})).await.ok();
    }
    assert_eq!(wire.ended().await.unwrap(), Some(Code::BadFrame));
    let request = format!("{header}GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut stream = begins_with(&addresses.http, 1, &request).await;
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.ok();
    assert!(!String::from_utf8_lossy(&said).contains("200 OK"));
}

/// Connects to `to` from `127.0.0.host`, and begins with `first`.
async fn begins_with(to: &str, host: u8, first: &str) -> TcpStream {
    let mut stream = silent(to.parse().unwrap(), host).await.unwrap();
    stream.write_all(first.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn promise_10_behind_a_proxy_limits_hold_for_the_client_that_its_header_names() {
    let any = "\"127.0.0.1:0\"";
    let node = node(&format!(
        "[node]\ndata_dir = \"{{dir}}/data\"\n[listen]\nclient = {any}\nwebsocket = \"\"\nplain = {any}\n\
         http = {any}\nproxy_from = [\"127.0.0.1\"]\n[cluster]\nlisten = {any}\n\
         [limits]\nconnections_per_address = 1\n"
    ))
    .await;
    let plain = node.target().addresses().unwrap().plain;
    let header = |client| format!("PROXY TCP4 192.0.2.{client} 127.0.0.1 1000 7400\r\n");
    let welcomed = async |host, first: &str| {
        let stream = begins_with(&plain, host, first).await;
        Wire::welcome(Box::new(stream)).await
    };
    let seventh = welcomed(1, &header(7)).await.unwrap();
    assert!(welcomed(1, &header(7)).await.is_err(), "one connection of each client");
    let eighth = welcomed(1, &header(8)).await.unwrap();
    assert!(welcomed(1, "what a client says without a header").await.is_err());
    drop((seventh, eighth));
}
