//! The way to a server of the hub: one TCP connection, through a proxy if there is one, over whichever of the
//! addresses answers first.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use data_encoding::BASE64;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::HubError;
use crate::config::{Cloud, Via};
use crate::reach::{self, Memory};

/// For name resolution, TCP, and the proxy's answer, each.
const REACHED_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of an answer's head.
pub(super) const HEAD_LIMIT: usize = 16 * 1024;

/// A connection to `host`, and the address that it leads to: the proxy's, if there is one.
pub(super) async fn connect(
    cloud: &Cloud,
    host: &str,
    port: u16,
    memory: &Memory,
) -> Result<(TcpStream, Option<SocketAddr>), HubError> {
    let address = format!("{host}:{port}");
    let stream = match cloud.proxy.to(host, port) {
        None => reach::connect(host, port, REACHED_WITHIN, memory)
            .await
            .map_err(|why| HubError::Unreachable { address, cause: why.to_string() })?,
        Some(via) => through(via, host, port, memory).await?,
    };
    let remote = stream.peer_addr().ok();
    Ok((stream, remote))
}

async fn through(via: &Via, host: &str, port: u16, memory: &Memory) -> Result<TcpStream, HubError> {
    let proxy = via.address();
    let reached = reach::connect(&via.host, via.port, REACHED_WITHIN, memory).await;
    let mut stream =
        reached.map_err(|why| HubError::ProxyUnreachable { proxy: proxy.clone(), cause: why.to_string() })?;
    let unanswered =
        |cause: &str| HubError::ProxyUnreachable { proxy: proxy.clone(), cause: cause.to_owned() };
    let answer = match timeout(REACHED_WITHIN, asked(&mut stream, via, host, port)).await {
        Ok(answer) => answer.map_err(|error| unanswered(&error.to_string()))?,
        Err(_) => return Err(unanswered("it does not answer")),
    };
    match status(&answer) {
        Some(200..=299) => Ok(stream),
        status => Err(refused(status, proxy, format!("{host}:{port}"))),
    }
}

/// The head of the proxy's answer. What it would lead to says nothing before we do.
async fn asked(stream: &mut TcpStream, via: &Via, host: &str, port: u16) -> io::Result<Vec<u8>> {
    let login = via.login.as_ref().map(|(user, password)| {
        let login = BASE64.encode(format!("{}:{}", user.expose(), password.expose()).as_bytes());
        format!("Proxy-Authorization: Basic {login}\r\n")
    });
    let login = login.unwrap_or_default();
    let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{login}\r\n");
    stream.write_all(request.as_bytes()).await?;
    head(stream).await
}

/// The head of an HTTP answer, and what came along with it.
pub(super) async fn head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    // Some end their lines without a carriage return.
    while !head.windows(2).any(|end| end == b"\n\n") && !head.windows(3).any(|end| end == b"\n\r\n") {
        if head.len() >= HEAD_LIMIT || stream.read_buf(&mut head).await? == 0 {
            return Err(io::Error::other("its answer has no end, or is none"));
        }
    }
    Ok(head)
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

fn refused(status: Option<u16>, proxy: String, address: String) -> HubError {
    match status {
        Some(407) => HubError::ProxyLogin { proxy },
        status => {
            let cause = status.map_or("it speaks no HTTP".to_owned(), |status| format!("status {status}"));
            HubError::ProxyRefused { proxy, address, cause }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What comes of a proxy that answers so, and how many bytes it could send.
    async fn asked(answer: &[u8]) -> (Result<TcpStream, HubError>, usize) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let via = Via { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port(), login: None };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            assert!(request.starts_with(b"CONNECT hub.example:8883 HTTP/1.1\r\nHost: hub.example:8883\r\n"));
            let mut sent = 0;
            for part in answer.chunks(4096) {
                match stream.write_all(part).await {
                    Ok(()) => sent += part.len(),
                    Err(_) => break,
                }
            }
            sent
        };
        let memory = Memory::default();
        tokio::join!(through(&via, "hub.example", 8883, &memory), serve)
    }

    #[tokio::test]
    async fn a_proxy_that_opens_the_way_is_understood_however_it_says_so() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-Node: proxy\r\n".repeat(40));
        for good in [
            "HTTP/1.1 200 Connection established\r\n\r\n",
            "HTTP/1.0 200\r\nProxy-Agent: old\r\n\r\n",
            "HTTP/1.1 200 OK\n\n",
            "HTTP/1.1 202 Accepted\r\n\r\n",
            &many,
        ] {
            let (opened, _) = asked(good.as_bytes()).await;
            assert!(opened.is_ok(), "{good}: {opened:?}");
        }
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_told_and_none_floods() {
        for (odd, word) in [
            (&b"HTTP/1.1 403 Zugriff nicht m\xf6glich\r\n\r\n"[..], "status 403"),
            (b"HTTP/1.1 407 Login\r\n\r\n", "wants a user and password"),
            (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 1\r\n\r\nx", "status 502"),
            (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", "status 301"),
            (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "speaks no HTTP"),
            (b"HTTP/1.1 200 OK\r\nX-Cut", "has no end"),
            (b"", "cannot be reached"),
        ] {
            let (refused, _) = asked(odd).await;
            let refused = refused.unwrap_err();
            assert!(refused.to_string().contains(word), "{word}: {refused}");
            assert!(!refused.is_refusal() && !refused.is_denial(), "the hub did not say it");
        }
        let (refused, sent) = asked(&vec![b'x'; 64 << 20]).await;
        assert!(refused.is_err() && sent < 16 << 20, "{sent} bytes were taken");
    }
}
