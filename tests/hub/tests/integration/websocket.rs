//! MQTT over WebSocket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::client::{Client, Site, TWIN_ANSWERS, tls};

#[tokio::test]
async fn a_device_talks_over_websocket() {
    let site = Site::new().await;
    let stream = TcpStream::connect(site.hub.https_addr()).await.unwrap();
    let connector = TlsConnector::from(tls(site.hub.ca_pem(), None));
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let url = format!("wss://localhost:{}/$iothub/websocket", site.hub.https_addr().port());
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "mqtt".parse().unwrap());
    let (socket, response) = client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "mqtt");

    let mut client = Client::new(Halves { socket, rest: Bytes::new() });
    assert_eq!(client.login(site.login("d")).await, Ok(false));
    client.subscribe(TWIN_ANSWERS).await;
    client.publish("$iothub/twin/GET/?$rid=1", "").await;
    assert_eq!(client.message().await.0, "$iothub/twin/res/200/?$rid=1");
    client.publish("nonsense", "").await;
    client.expect_closed().await;
}

#[tokio::test]
async fn a_plain_get_is_told_what_is_wanted() {
    let site = Site::new().await;
    let answer = site.web().get(site.url("/$iothub/websocket")).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.text().await.unwrap().contains("subprotocol mqtt"));
}

/// Sends every write in two messages, for MQTT packets need not align with them.
struct Halves {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    rest: Bytes,
}

impl AsyncRead for Halves {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes.into(),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {}
            }
        }
        let length = self.rest.len().min(out.remaining());
        out.put_slice(&self.rest.copy_to_bytes(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Halves {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).unwrap();
        let half = bytes.len().div_ceil(2);
        Pin::new(&mut self.socket).start_send(Message::Binary(bytes[..half].to_vec())).unwrap();
        Poll::Ready(Ok(half))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(io::Error::other)
    }
}
