//! An HTTP proxy that knows CONNECT alone: it counts, can ask for a login, and can refuse.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::lock;

/// No honest request is longer.
const REQUEST_LIMIT: u64 = 8192;

/// One request, and what was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// `host:port`, as it was asked for.
    pub target: String,
    /// 200: it was opened.
    pub status: u16,
}

#[derive(Debug, Default)]
struct State {
    /// `Basic ...`, if a login is wanted.
    login: Option<String>,
    /// The status with which everything is refused.
    refusal: Mutex<Option<u16>>,
    tunnels: Mutex<Vec<Tunnel>>,
}

/// A running proxy on a loopback port of its own. It ends, with all its tunnels, when it is dropped.
#[derive(Debug)]
pub struct ConnectProxy {
    address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
}

impl ConnectProxy {
    /// `login`: user and password that it wants.
    pub async fn start(login: Option<(&str, &str)>) -> Result<ConnectProxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let login = login.map(|(user, password)| format!("{user}:{password}"));
        let login = login.map(|text| format!("Basic {}", BASE64.encode(text.as_bytes())));
        let state = Arc::new(State { login, ..State::default() });
        let (address, stop) = (listener.local_addr()?, CancellationToken::new());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, state.clone(), stop.clone())));
        Ok(ConnectProxy { address, state, stop })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Refuses everything with this status; `None`: no longer.
    pub fn refuse(&self, status: Option<u16>) {
        *lock(&self.state.refusal) = status;
    }

    /// Every request so far.
    pub fn tunnels(&self) -> Vec<Tunnel> {
        lock(&self.state.tunnels).clone()
    }

    /// How many tunnels to `target` were opened.
    pub fn opened(&self, target: &str) -> usize {
        self.tunnels().iter().filter(|tunnel| tunnel.target == target && tunnel.status == 200).count()
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    while let Ok((client, _)) = listener.accept().await {
        let tunnel = serve(client, state.clone());
        let logged = async {
            if let Err(error) = tunnel.await {
                tracing::debug!("tunnel ended: {error:#}");
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(logged));
    }
}

async fn serve(mut client: TcpStream, state: Arc<State>) -> Result<()> {
    let head = read_head(&mut client).await?;
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let target = target.context("the request is not CONNECT")?.to_owned();
    let login = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("proxy-authorization").then(|| value.trim().to_owned())
    });
    let refusal = *lock(&state.refusal);
    let status = match refusal {
        Some(status) => status,
        None if state.login.is_some() && login != state.login => 407,
        None => 200,
    };
    lock(&state.tunnels).push(Tunnel { target: target.clone(), status });
    if status != 200 {
        let answer =
            format!("HTTP/1.1 {status} No\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n");
        client.write_all(answer.as_bytes()).await?;
        return Ok(client.shutdown().await?);
    }
    let mut server = TcpStream::connect(&target).await?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// Up to the empty line and not a byte further: what follows belongs to the tunnel.
async fn read_head(client: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() as u64 >= REQUEST_LIMIT {
            bail!("the request is too long");
        }
        head.push(client.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}
