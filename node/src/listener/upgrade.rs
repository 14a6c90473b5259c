//! The HTTP request that opens a WebSocket: bounded, and from pages that may.
//!
//! **Invariant:** no more than [`HEAD_BYTES_MAX`] bytes are read before the answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::config::host_of;

/// The subprotocol that client and node agree on.
pub const SUBPROTOCOL: &str = "natter.v1";

/// Longest request that opens a WebSocket. Browsers send less than 2 KiB, cookies of the same host
/// not counted; common HTTP servers allow 8 KiB.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Pages whose scripts may open a WebSocket. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Origins(Arc<[String]>);

impl Origins {
    /// Those of `listen.websocket_origins`. None: pages of the host that the client asked for.
    pub fn new(origins: &[String]) -> Self {
        Self(origins.iter().map(|origin| origin.to_ascii_lowercase()).collect())
    }

    /// Whether a page of `origin` may open a WebSocket to `host`. What is no browser names no origin.
    fn allow(&self, origin: Option<&str>, host: Option<&str>) -> bool {
        let Some(origin) = origin.map(str::to_ascii_lowercase) else { return true };
        if self.0.is_empty() {
            let of_page = host_of(&origin);
            let asked = host.and_then(|host| host_of(&format!("https://{host}")));
            return of_page.is_some() && of_page == asked;
        }
        self.0.iter().any(|allowed| *allowed == "*" || *allowed == origin)
    }
}

/// The answer to a request that does not open a WebSocket.
const NO_WEBSOCKET: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\
    content-type: text/plain\r\ncontent-length: 64\r\n\r\n\
    this is natter: open a WebSocket with the subprotocol natter.v1\n";

/// Answers the HTTP request that opens a WebSocket. With the stream comes how many bytes the request
/// took.
///
/// # Errors
/// Those of the socket, and of a client that asks for something else or for too long.
pub(super) async fn upgrade(
    stream: TlsStream<TcpStream>,
    origins: Origins,
) -> io::Result<(TlsStream<TcpStream>, usize)> {
    // The library's buffers live only as long as this handshake.
    let small = WebSocketConfig::default().read_buffer_size(1024);
    let mut stream = Bounded { inner: stream, bytes: 0 };
    #[allow(clippy::result_large_err, reason = "the library's callback")]
    let agree = move |request: &Request, response: Response| agree(&origins, request, response);
    let opening = tokio_tungstenite::accept_hdr_async_with_config(&mut stream, agree, Some(small));
    // What it says is dropped: the stream is ours.
    match opening.await.map(drop) {
        Ok(()) => Ok((stream.inner, stream.bytes)),
        Err(error) => {
            if matches!(error, Error::Protocol(_) | Error::HttpFormat(_)) {
                stream.write_all(NO_WEBSOCKET.as_bytes()).await?;
                stream.shutdown().await?;
            }
            Err(io::Error::other(error))
        }
    }
}

#[allow(clippy::result_large_err, reason = "the library's callback")]
fn agree(
    origins: &Origins,
    request: &Request,
    mut response: Response,
) -> Result<Response, ErrorResponse> {
    let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    if !origins.allow(text(header::ORIGIN), text(header::HOST)) {
        let text = "this page may not connect: see listen.websocket_origins of the node\n";
        return Err(refusal(StatusCode::FORBIDDEN, text.to_owned()));
    }
    let offers = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offered = offers
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .any(|name| name.trim() == SUBPROTOCOL);
    if !offered {
        let text = format!("this is natter: offer the subprotocol {SUBPROTOCOL}\n");
        return Err(refusal(StatusCode::BAD_REQUEST, text));
    }
    let agreed = HeaderValue::from_static(SUBPROTOCOL);
    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, agreed);
    Ok(response)
}

fn refusal(status: StatusCode, text: String) -> ErrorResponse {
    let mut refusal = ErrorResponse::new(Some(text));
    *refusal.status_mut() = status;
    refusal
}

/// A stream that ends with an error when more was read than a request may have.
struct Bounded<S> {
    inner: S,
    bytes: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.bytes += buf.filled().len() - before;
        if self.bytes > HEAD_BYTES_MAX {
            let text = "the request that opens a WebSocket is too long";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_host_may_connect_only_if_it_is_listed() {
        let (same, page) = (Origins::default(), Some("https://chat.example.org"));
        let host = Some("chat.example.org:7401");
        assert!(same.allow(None, host), "what is no browser");
        assert!(same.allow(page, host) && same.allow(Some("https://CHAT.example.org:8443"), host));
        for origin in ["https://evil.example", "null", "?", "https://chat.example.org.evil.example"]
        {
            assert!(!same.allow(Some(origin), host), "{origin}");
        }
        assert!(!same.allow(page, None));
        let listed = Origins::new(&["https://Chat.example.org".to_owned()]);
        assert!(listed.allow(page, Some("10.0.0.1:7401")) && listed.allow(None, host));
        assert!(!listed.allow(Some("https://evil.example"), Some("evil.example")));
        assert!(Origins::new(&["*".to_owned()]).allow(Some("https://evil.example"), host));
    }
}
