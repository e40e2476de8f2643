//! The way through an HTTP proxy: CONNECT, for the hub and for downloads. A proxy is as odd as servers are: its answer has
//! a bound, and what it refuses with is told.

use std::io;

use data_encoding::BASE64;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::config::Via;

/// Bytes of an answer's head.
pub const HEAD_LIMIT: usize = 16 * 1024;

/// Why a proxy does not open the way; completes "the proxy ...".
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("wants a user and password that it knows (407): set them in cloud.proxy")]
    Login,
    #[error("refuses with status {0}: have it allow this host and port")]
    Refused(u16),
    #[error("speaks no HTTP")]
    NoHttp,
    #[error("gives no answer ({0})")]
    Broken(#[from] io::Error),
}

/// Has the proxy at the other end of `stream` open the way to `host`, which says nothing before we do. An IPv6 address
/// stands in brackets.
pub async fn open(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    via: &Via,
    host: &str,
    port: u16,
) -> Result<(), TunnelError> {
    let login = via.login.as_ref().map(|(user, password)| {
        let login = BASE64.encode(format!("{}:{}", user.expose(), password.expose()).as_bytes());
        format!("Proxy-Authorization: Basic {login}\r\n")
    });
    let login = login.unwrap_or_default();
    let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{login}\r\n");
    stream.write_all(request.as_bytes()).await?;
    match status(&head(stream).await?) {
        Some(200..=299) => Ok(()),
        Some(407) => Err(TunnelError::Login),
        Some(status) => Err(TunnelError::Refused(status)),
        None => Err(TunnelError::NoHttp),
    }
}

/// The head of an HTTP answer, and what came along with it.
pub async fn head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a proxy that answers so, and how many bytes it could send.
    async fn asked(answer: &[u8]) -> (Result<(), TunnelError>, usize) {
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
        let mut stream = tokio::net::TcpStream::connect((via.host.as_str(), via.port)).await.unwrap();
        let client = async move { open(&mut stream, &via, "hub.example", 8883).await };
        tokio::join!(client, serve)
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
            (b"", "gives no answer"),
        ] {
            let (refused, _) = asked(odd).await;
            let refused = refused.unwrap_err();
            assert!(refused.to_string().contains(word), "{word}: {refused}");
        }
        let (refused, sent) = asked(&vec![b'x'; 64 << 20]).await;
        assert!(refused.is_err() && sent < 16 << 20, "{sent} bytes were taken");
    }
}
