//! How connections begin: headers of proxies, ALPN, the request that opens a WebSocket.

use super::*;

#[tokio::test]
async fn behind_a_proxy_the_client_is_who_its_header_names() {
    let networks = vec!["127.0.0.1".to_owned()];
    for kind in ["plain", "client", "websocket"] {
        let mut server = Server::behind(&networks, kind, |limits| {
            limits.unauthenticated_per_address = 1;
        });
        let mut open = Vec::new();
        for client in ["192.0.2.7:1000", "192.0.2.8:1001"] {
            let (ip, port) = client.split_once(':').unwrap();
            let header = format!("PROXY TCP4 {ip} 127.0.0.1 {port} 7400\r\n");
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(header.as_bytes()).await.unwrap();
            if kind == "plain" {
                stream.write_all(&frame(b"hello")).await.unwrap();
                let (mut transport, peer) = server.accepted().await;
                assert_eq!(read(&mut transport, 6).await, frame(b"hello"));
                assert_eq!(peer.address, client.parse().unwrap());
                open.push((peer, stream));
            } else {
                let alpn = if kind == "client" { ALPN_CLIENT } else { ALPN_WEBSOCKET };
                let stream = server.tls_over(stream, alpn).await.unwrap();
                if kind == "websocket" {
                    websocket_over(stream, &[("sec-websocket-protocol", SUBPROTOCOL)])
                        .await
                        .unwrap();
                }
                let (_, peer) = server.accepted().await;
                assert_eq!(peer.address, client.parse().unwrap());
            }
        }
    }
}

#[tokio::test]
async fn a_proxy_without_a_header_and_a_header_without_a_proxy_are_refused() {
    let networks = vec!["127.0.0.1".to_owned()];
    let server = Server::behind(&networks, "client", |_| {});
    let stream = TcpStream::connect(server.address).await.unwrap();
    server.tls_over(stream, ALPN_CLIENT).await.unwrap_err();

    let header = b"PROXY TCP4 192.0.2.7 127.0.0.1 1000 7400\r\n";
    for kind in ["client", "websocket"] {
        let server = Server::start(kind, |_| {});
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(header).await.unwrap();
        server.tls_over(stream, ALPN_CLIENT).await.unwrap_err();
    }
    // Over plain TCP it is left to the reader of frames: the first byte is no length that fits.
    let mut server = Server::start("plain", |_| {});
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(header).await.unwrap();
    let (mut transport, peer) = server.accepted().await;
    assert_eq!(peer.address, stream.local_addr().unwrap(), "it does not count");
    assert_eq!(read(&mut transport, header.len()).await[..], header[..]);
}

#[tokio::test]
async fn a_websocket_opens_with_a_short_request_of_a_page_that_may() {
    let mut server = Server::start("websocket", |_| {});
    let protocol = ("sec-websocket-protocol", SUBPROTOCOL);
    let long = "x".repeat(60 * 1024);
    for (header, part) in
        [(("origin", "https://evil.example"), "403"), (("x-long", long.as_str()), "closed")]
    {
        let stream = server.tls(ALPN_WEBSOCKET).await;
        let refused = websocket_over(stream, &[protocol, header]).await.unwrap_err();
        assert!(refused.contains(part) || part == "closed", "{refused}");
    }
    let stream = server.tls(ALPN_WEBSOCKET).await;
    let same = [protocol, ("origin", "https://localhost"), ("x-long", &long[..5000])];
    websocket_over(stream, &same).await.unwrap();
    let (transport, _) = server.accepted().await;
    assert!(transport.opening_bytes() > 5000, "they count before a login");
}

#[tokio::test]
async fn without_alpn_a_client_is_served_and_with_another_it_is_refused() {
    let mut server = Server::start("client", |_| {});
    let stream = TcpStream::connect(server.address).await.unwrap();
    let client = server.tls_over(stream, b"").await.unwrap();
    assert_eq!(client.get_ref().1.alpn_protocol(), None);
    server.accepted().await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let error = server.tls_over(stream, b"natter/9").await.unwrap_err().to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
}
