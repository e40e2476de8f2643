//! Hands a connection that stands to the MQTT client, which has no place for one: it would resolve the host's name
//! itself and wait for the first address as long as there is patience. The client does know HTTP proxies, so it is
//! given one, here in this process and for this one connection; TLS still runs from the client to the hub.
//!
//! The proxy listens on loopback for as long as it takes the client to come, and admits only whoever knows the
//! password made for it: no other program gets hold of the connection.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ring::rand::{SecureRandom, SystemRandom};
use rumqttc::{Proxy, ProxyAuth, ProxyType};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// The client comes at once.
const COMES_WITHIN: Duration = Duration::from_secs(10);
/// When one side has closed, for the other to do so.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of the client's request for the connection.
const REQUEST_LIMIT: usize = 2048;
/// Strangers that may stand in the client's way.
const STRANGERS: usize = 32;

const USER: &str = "fwupdate";

/// The connection's way through this process.
#[derive(Debug)]
pub(super) struct Relay(JoinHandle<()>);

impl Relay {
    /// Waits until what was sent last has left, and both sides are closed. The client must be gone.
    pub async fn end(self) {
        if timeout(CLOSE_WITHIN.saturating_mul(2), self.0).await.is_err() {
            tracing::debug!("the hub did not close the connection");
        }
    }
}

/// The proxy through which the client gets `far`.
pub(super) async fn offer(far: TcpStream) -> io::Result<(Proxy, Relay)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let mut secret = [0; 16];
    SystemRandom::new().fill(&mut secret).map_err(|_| io::Error::other("no random numbers"))?;
    let password = HEXLOWER.encode(&secret);
    let pass = BASE64.encode(format!("{USER}:{password}").as_bytes());
    let task = tokio::spawn(async move {
        match timeout(COMES_WITHIN, admit(listener, &pass)).await {
            Ok(Ok(near)) => join(near, far).await,
            Ok(Err(error)) => tracing::debug!(%error, "the connection cannot be handed over"),
            Err(_) => {}
        }
    });
    let auth = ProxyAuth::Basic { username: USER.to_owned(), password };
    Ok((Proxy { ty: ProxyType::Http, auth, addr: Ipv4Addr::LOCALHOST.to_string(), port }, Relay(task)))
}

/// The first who knows the pass; a stranger who says nothing holds up nobody.
async fn admit(listener: TcpListener, pass: &str) -> io::Result<TcpStream> {
    let mut callers = FuturesUnordered::new();
    loop {
        tokio::select! {
            caller = listener.accept(), if callers.len() < STRANGERS => callers.push(examine(caller?.0, pass)),
            Some(known) = callers.next() => if let Some(mut near) = known {
                near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                return Ok(near);
            },
        }
    }
}

async fn examine(mut caller: TcpStream, pass: &str) -> Option<TcpStream> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if request.len() >= REQUEST_LIMIT || caller.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
    }
    let knows =
        String::from_utf8_lossy(&request).lines().any(|line| line.ends_with(&format!("Basic {pass}")));
    caller.set_nodelay(true).ok()?;
    knows.then_some(caller)
}

/// Passes bytes on until both sides are closed, or one of them for a while.
async fn join(near: TcpStream, far: TcpStream) {
    let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
    let out = async {
        let done = copy(&mut near_in, &mut far_out).await;
        done.and(far_out.shutdown().await)
    };
    let back = async {
        let done = copy(&mut far_in, &mut near_out).await;
        done.and(near_out.shutdown().await)
    };
    tokio::pin!(out, back);
    let ended = tokio::select! {
        ended = &mut out => ended.and(timeout(CLOSE_WITHIN, back).await.unwrap_or(Ok(()))),
        ended = &mut back => ended.and(timeout(CLOSE_WITHIN, out).await.unwrap_or(Ok(()))),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "the connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_http_proxy::{http_connect_tokio, http_connect_tokio_with_basic_auth};

    /// Both ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    #[tokio::test]
    async fn only_who_was_told_gets_the_connection_and_silent_strangers_hold_up_nobody() {
        let (far, mut hub) = pair().await;
        let (proxy, relay) = offer(far).await.unwrap();
        let door = (proxy.addr.as_str(), proxy.port);
        let silent = TcpStream::connect(door).await.unwrap();
        let mut stranger = TcpStream::connect(door).await.unwrap();
        assert!(http_connect_tokio(&mut stranger, "hub", 8883).await.is_err());
        let mut guesser = TcpStream::connect(door).await.unwrap();
        assert!(http_connect_tokio_with_basic_auth(&mut guesser, "hub", 1, USER, "guess").await.is_err());

        let ProxyAuth::Basic { username, password } = &proxy.auth else { panic!("no password") };
        let mut client = TcpStream::connect(door).await.unwrap();
        http_connect_tokio_with_basic_auth(&mut client, "hub", 8883, username, password).await.unwrap();
        assert!(TcpStream::connect(door).await.is_err(), "the door is closed behind the client");
        client.write_all(b"to the hub").await.unwrap();
        hub.write_all(b"from the hub").await.unwrap();
        let mut got = vec![0; 12];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, b"from the hub");
        // What was sent last arrives, and the end is passed on.
        client.write_all(b", bye").await.unwrap();
        drop((client, silent));
        let mut got = Vec::new();
        hub.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"to the hub, bye");
        drop(hub);
        relay.end().await;
    }

    #[tokio::test]
    async fn a_hub_that_never_closes_does_not_keep_the_connection() {
        let (far, mut hub) = pair().await;
        let (proxy, relay) = offer(far).await.unwrap();
        let ProxyAuth::Basic { username, password } = &proxy.auth else { panic!("no password") };
        let mut client = TcpStream::connect((proxy.addr.as_str(), proxy.port)).await.unwrap();
        http_connect_tokio_with_basic_auth(&mut client, "hub", 8883, username, password).await.unwrap();
        drop(client);
        relay.0.await.unwrap();
        assert_eq!(hub.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(hub.write_all(&[0; 1]).await.is_ok(), "it never noticed");
    }
}
