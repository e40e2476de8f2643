//! The two ports: listening, TLS, and HTTP on top of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

use crate::core::Core;
use crate::rest::{Peer, Scissors};

/// A TLS handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// How long a port may take to be free again.
const HANDOVER: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// Takes a port (0: any that is free) without listening: it stays ours while nobody listens on it, and no other
/// program is given it. `option` is the one that chooses it, for the advice in the error.
pub fn reserve(bind: IpAddr, port: u16, option: &str) -> Result<TcpSocket> {
    bound(SocketAddr::new(bind, port), option)
}

/// The same for a port on which this hub has listened just now.
pub async fn reserve_again(bind: IpAddr, port: u16, option: &str) -> Result<TcpSocket> {
    handed_over(|| reserve(bind, port, option)).await
}

/// Listens on a port that was reserved.
pub async fn listen(address: SocketAddr, option: &str) -> Result<TcpListener> {
    let listening = || bound(address, option).and_then(|socket| Ok(socket.listen(BACKLOG)?));
    handed_over(listening).await.with_context(|| format!("cannot listen on {address}"))
}

/// After a restart the old listener may live a moment longer: in a process that is being started, between fork and
/// exec.
async fn handed_over<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match attempt() {
            Err(_) if started.elapsed() < HANDOVER => tokio::time::sleep(Duration::from_millis(20)).await,
            outcome => return outcome,
        }
    }
}

fn bound(address: SocketAddr, option: &str) -> Result<TcpSocket> {
    let outcome = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let outcome = outcome.and_then(|socket| {
        // Two sockets may share a port while neither or one of them listens.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    });
    let advice = match outcome.as_ref().map_err(io::Error::kind) {
        Err(io::ErrorKind::AddrInUse) => {
            format!("another program does; choose another port with {option}, or --bind")
        }
        Err(io::ErrorKind::PermissionDenied) => format!("choose a port above 1023 with {option}"),
        _ => "choose an address of this machine with --bind".to_owned(),
    };
    outcome.with_context(|| format!("cannot listen on {address}: {advice}"))
}

/// Accepts until the hub stops; each connection is a task of its own, which the stop ends too.
pub fn accept<F, Fut>(core: &Arc<Core>, listener: TcpListener, config: Arc<ServerConfig>, serve: F)
where
    F: Fn(TlsStream<TcpStream>, Peer) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (owner, serve) = (core, Arc::new(serve));
    let core = owner.clone();
    let acceptor = TlsAcceptor::from(config);
    let accepting = async move {
        loop {
            let Ok((stream, address)) = listener.accept().await else {
                // Out of file descriptors, mostly: a connection that ends makes room.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            let connection = async move {
                match handshake(acceptor, stream, address).await {
                    Ok((stream, peer)) => serve(stream, peer).await,
                    Err(error) => tracing::info!(%address, "TLS handshake failed: {error:#}"),
                }
            };
            core.tasks.spawn(connection);
        }
    };
    owner.tasks.spawn(accepting);
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
) -> Result<(TlsStream<TcpStream>, Peer)> {
    stream.set_nodelay(true)?;
    let stream = timeout(HANDSHAKE, acceptor.accept(stream)).await.context("it took too long")??;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
    Ok((stream, Peer { address: from.ip(), chain, scissors: Scissors::default() }))
}

/// Serves requests on one connection until it ends.
pub async fn serve_http(router: Router, stream: TlsStream<TcpStream>, peer: Peer) {
    let stream = peer.scissors.around(stream);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(120));
    let served = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    if let Err(error) = served {
        tracing::debug!("HTTP connection ended: {error}");
    }
}
