//! Connections to web servers: HTTP/1.1 over TLS, directly or through a proxy. What they carry is counted where it is
//! decrypted, so that headers, refused answers and everything else that nobody asked for costs what it costs; and what
//! comes before an answer's body has a bound.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::Empty;
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::config::Proxy;
use crate::reach::{self, Memory};
use crate::stage::download::budget::Meter;
use crate::stage::download::hosts::Hosts;
use crate::stage::download::http::Http;
use crate::tunnel;

/// The longest head of an answer, and what is read at once, bytes: servers send one KiB or two.
const HEAD_MAX: usize = 32 * 1024;
/// What may come before the head of an answer is understood, interim answers (1xx) included, bytes; above what one read
/// may bring of the body along with the head.
const BEFORE_BODY: u64 = 2 * HEAD_MAX as u64 + 1024;
const IDLE: Duration = Duration::from_secs(60);

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type HttpClient = Client<Connector, Empty<Bytes>>;

/// A client without any connection.
pub fn client(http: &Http, meter: Arc<Meter>, memory: Memory) -> HttpClient {
    let tcp = Tcp { hosts: http.hosts.clone(), limit: http.download.stall_timeout, memory };
    let tls = TlsConnector::from(http.tls.clone());
    let connector = Connector { tcp, tls, proxy: http.download.proxy.clone(), meter };
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .http1_max_buf_size(HEAD_MAX)
        .build(connector)
}

/// Makes TCP connections to hosts that may be reached, also past addresses that swallow packets; what was of no use lately
/// comes last, so that another connection is one to another node.
#[derive(Clone)]
pub struct Tcp {
    hosts: Arc<Hosts>,
    limit: Duration,
    memory: Memory,
}

impl Tcp {
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, BoxError> {
        let addresses = self.hosts.resolve(host.trim_matches(['[', ']']), port).await?;
        Ok(reach::connect_to(addresses, self.limit, &self.memory).await?)
    }
}

#[derive(Clone)]
pub struct Connector {
    tcp: Tcp,
    tls: TlsConnector,
    proxy: Proxy,
    meter: Arc<Meter>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Counted>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(uri).await })
    }
}

impl Connector {
    async fn connect(&self, uri: Uri) -> Result<TokioIo<Counted>, BoxError> {
        let host = uri.host().unwrap_or_default().to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let stream = match self.proxy.to(&host, port) {
            None => self.tcp.connect(&host, port).await?,
            Some(via) => {
                let mut stream = self.tcp.connect(&via.host, via.port).await?;
                tunnel::open(&mut stream, via, &host, port).await?;
                stream
            }
        };
        let remote = stream.peer_addr().ok();
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
        let count = Count {
            remote,
            memory: self.tcp.memory.clone(),
            meter: self.meter.clone(),
            unsettled: 0.into(),
            forgiven: false.into(),
            head: 0.into(),
            in_body: false.into(),
        };
        let stream = self.tls.connect(name, stream).await?;
        count.begin_body();
        Ok(TokioIo::new(Counted { stream, count: Arc::new(count) }))
    }
}

/// The value of a header that logs in.
pub fn basic(user: &str, password: &str) -> Result<HeaderValue, BoxError> {
    let login = BASE64.encode(format!("{user}:{password}").as_bytes());
    let mut value = HeaderValue::try_from(format!("Basic {login}"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What a connection has carried; comes along with each answer. What nobody used is counted when an answer is dropped,
/// and at the latest when the connection and its last answer are gone.
#[derive(Debug)]
pub struct Count {
    /// The server, or the proxy on the way to it.
    pub remote: Option<SocketAddr>,
    memory: Memory,
    meter: Arc<Meter>,
    /// Bytes that came and were not handed out.
    unsettled: AtomicU64,
    /// What still comes for the latest request is nobody's fault.
    forgiven: AtomicBool,
    /// Bytes since the latest request that came before its answer was understood.
    head: AtomicU64,
    /// Nothing is awaited before a body: neither the TLS handshake nor the head of an answer.
    in_body: AtomicBool,
}

impl Drop for Count {
    fn drop(&mut self) {
        self.settle();
        if !*self.in_body.get_mut() {
            self.judge(false);
        }
    }
}

impl Count {
    /// Whether it was of use to have this address.
    pub fn judge(&self, useful: bool) {
        self.memory.judge(self.remote, useful);
    }

    /// The head of the answer is over.
    pub fn begin_body(&self) {
        self.in_body.store(true, Ordering::Relaxed);
    }

    /// So many bytes that came are used.
    pub fn used(&self, bytes: u64) {
        let left = self.unsettled.fetch_sub(bytes, Ordering::Relaxed).saturating_sub(bytes);
        // No more than one read is ahead of what is handed out: the rest was wrapping.
        if left > BEFORE_BODY {
            self.unsettled.fetch_sub(BEFORE_BODY / 2, Ordering::Relaxed);
            self.meter.waste(BEFORE_BODY / 2);
        }
    }

    /// What came and was not used came in vain.
    pub fn settle(&self) -> u64 {
        let vain = self.unsettled.swap(0, Ordering::Relaxed);
        if !self.forgiven.load(Ordering::Relaxed) {
            self.meter.waste(vain);
        }
        vain
    }

    /// What came for the latest request and was not used was not wanted any more.
    pub fn forgive(&self) {
        self.forgiven.store(true, Ordering::Relaxed);
    }

    fn received(&self, bytes: u64) -> io::Result<()> {
        self.unsettled.fetch_add(bytes, Ordering::Relaxed);
        if self.in_body.load(Ordering::Relaxed) {
            return Ok(());
        }
        let before = self.head.fetch_add(bytes, Ordering::Relaxed);
        match before.saturating_add(bytes) > BEFORE_BODY {
            true => {
                Err(io::Error::other(format!("its answer begins with more than {HEAD_MAX} bytes of headers")))
            }
            false => Ok(()),
        }
    }

    fn requested(&self) {
        self.head.store(0, Ordering::Relaxed);
        self.in_body.store(false, Ordering::Relaxed);
        self.forgiven.store(false, Ordering::Relaxed);
    }
}

pub struct Counted {
    stream: TlsStream<TcpStream>,
    count: Arc<Count>,
}

impl Connection for Counted {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.count.clone())
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
        let received = out.filled().len().saturating_sub(before);
        Poll::Ready(self.count.received(received as u64))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.count.requested();
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
