//! A real TLS file server on loopback that misbehaves on demand and keeps count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use url::Url;

use crate::config::{Download, Proxy};
use crate::stage::Http;

/// One request as the server saw it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Counts from 0.
    pub number: usize,
    pub path: String,
    pub range: Option<(u64, u64)>,
    /// Body bytes that its connection has carried before.
    pub carried: u64,
    pub headers: String,
}

/// What the server does with a request.
#[derive(Debug, Clone)]
pub enum Act {
    Serve,
    /// Status and header lines, no body.
    Status(u16, String),
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// Sends so many bytes of the body and then nothing more, until the client gives up.
    Stall(usize),
    /// Takes the request and never answers.
    Silent,
    /// 200 with the whole file.
    Whole,
    /// A 206 whose Content-Range is one byte off.
    WrongRange,
    /// Serves, with this many bytes flipped at the end of the body.
    Flip(usize),
    /// Serves, with these header lines on top.
    With(String),
    /// A 206 with this Content-Range.
    Range(String),
    /// A 206 of so many bytes at most.
    Short(usize),
    /// As a node of a pool for which the file has this tag.
    Tag(String),
    /// Byte by byte, each after so many milliseconds.
    Trickle(u64),
    /// In HTTP chunks of one byte.
    Crumbs,
    /// So many interim answers (103) of 1 KiB before the answer.
    Interim(usize),
    /// 200 with this text, as a portal on the way answers.
    Page(String),
}

type Script = Box<dyn Fn(&Request) -> Act + Send + Sync>;

pub struct Served {
    pub file: Mutex<Vec<u8>>,
    pub etag: Mutex<Option<String>>,
    pub modified: Mutex<Option<String>>,
    pub script: Mutex<Script>,
    pub requests: Mutex<Vec<Request>>,
    pub connections: AtomicU64,
    /// Body bytes sent.
    pub sent: AtomicU64,
    /// All bytes sent, heads included.
    pub wire: AtomicU64,
}

impl Served {
    fn new(file: Vec<u8>) -> Arc<Served> {
        Arc::new(Served {
            file: Mutex::new(file),
            etag: Mutex::new(Some("\"one\"".into())),
            modified: Mutex::new(None),
            script: Mutex::new(Box::new(|_| Act::Serve)),
            requests: Mutex::default(),
            connections: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            wire: AtomicU64::new(0),
        })
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    pub fn script(&self, script: impl Fn(&Request) -> Act + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

pub struct Server {
    pub served: Arc<Served>,
    pub port: u16,
    acceptor: TlsAcceptor,
    roots: rustls::RootCertStore,
}

impl Server {
    pub async fn start(file: Vec<u8>) -> Server {
        Server::start_at("127.0.0.1", file).await
    }

    pub async fn start_at(address: &str, file: Vec<u8>) -> Server {
        let names = [address.to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.key_pair.serialize_der()).unwrap();
        let certificate = made.cert.der().clone();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (served, acceptor) = (Served::new(file), TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(accept(listener, acceptor.clone(), served.clone()));
        Server { served, port, acceptor, roots }
    }

    /// Another node of the same name, with the same file.
    pub fn another_at(&self, listener: TcpListener) -> Arc<Served> {
        let served = Served::new(self.served.file.lock().unwrap().clone());
        tokio::spawn(accept(listener, self.acceptor.clone(), served.clone()));
        served
    }

    pub fn url(&self) -> Url {
        format!("https://127.0.0.1:{}/b.fwb?sig=secret", self.port).parse().unwrap()
    }

    /// A client that trusts this server and may reach it.
    pub fn http(&self) -> Http {
        self.http_with(&["127.0.0.1", "localhost"], download())
    }

    pub fn http_with(&self, allowed: &[&str], download: Download) -> Http {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        let allowed: Vec<String> = allowed.iter().map(|host| host.to_string()).collect();
        let mut http = Http::new(tls, &allowed, download);
        http.first_pause = Duration::from_millis(2);
        http
    }
}

pub fn download() -> Download {
    let (patience, stall_timeout) = (Duration::from_secs(20), Duration::from_secs(5));
    let (min_rate, final_after) = (100, Duration::from_millis(50));
    let (proxy, rate_limit, max_bytes, windows) = (Proxy::default(), None, None, Vec::new());
    Download { proxy, patience, stall_timeout, min_rate, final_after, rate_limit, max_bytes, windows }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, served: Arc<Served>) {
    while let Ok((stream, _)) = listener.accept().await {
        served.connections.fetch_add(1, Ordering::SeqCst);
        let (tls, served) = (tls.clone(), served.clone());
        tokio::spawn(async move {
            // A client that goes away in the middle is part of the tests.
            if let Ok(mut stream) = tls.accept(stream).await {
                let mut carried = 0;
                while let Some(request) = receive(&mut stream, &served, carried).await {
                    let act = (served.script.lock().unwrap())(&request);
                    if answer(&mut stream, &served, &request, act, &mut carried).await.is_err() {
                        break;
                    }
                }
                stream.shutdown().await.ok();
            }
        });
    }
}

async fn receive(stream: &mut (impl AsyncRead + Unpin), served: &Served, carried: u64) -> Option<Request> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.ok()?);
    }
    let headers = String::from_utf8(text).unwrap().to_lowercase();
    let path = headers.split(' ').nth(1).unwrap().to_owned();
    let range = header(&headers, "range").and_then(|value| {
        let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse::<u64>().ok()? + 1))
    });
    let mut requests = served.requests.lock().unwrap();
    let request = Request { number: requests.len(), path, range, carried, headers };
    requests.push(request.clone());
    Some(request)
}

/// The value of a header, in lower case.
pub fn header<'a>(headers: &'a str, name: &str) -> Option<&'a str> {
    headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// By what the server tells one state of the file from another.
struct Tags {
    etag: Option<String>,
    modified: Option<String>,
}

impl Tags {
    fn of(served: &Served, act: &Act) -> Tags {
        let etag = match act {
            Act::Tag(tag) => Some(tag.clone()),
            _ => served.etag.lock().unwrap().clone(),
        };
        Tags { etag, modified: served.modified.lock().unwrap().clone() }
    }

    fn lines(&self) -> String {
        let etag = self.etag.iter().map(|tag| format!("ETag: {tag}\r\n"));
        etag.chain(self.modified.iter().map(|date| format!("Last-Modified: {date}\r\n"))).collect()
    }

    /// The request is for another state of the file.
    fn are_stale(&self, headers: &str) -> bool {
        let modified = self.modified.as_ref().map(|date| date.to_lowercase());
        header(headers, "if-match").is_some_and(|tag| Some(tag) != self.etag.as_deref())
            || header(headers, "if-unmodified-since").is_some_and(|date| Some(date) != modified.as_deref())
    }
}

/// First byte and end of what is asked for.
fn asked(request: &Request, size: u64) -> (u64, u64) {
    request.range.map_or((0, size), |(first, end)| (first, end.min(size)))
}

async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    served: &Served,
    request: &Request,
    act: Act,
    carried: &mut u64,
) -> std::io::Result<()> {
    let file = served.file.lock().unwrap().clone();
    let tags = Tags::of(served, &act);
    let (first, end) = asked(request, file.len() as u64);
    let act = match act {
        Act::Serve | Act::Tag(_) if tags.are_stale(&request.headers) => Act::Status(412, String::new()),
        Act::Serve | Act::Tag(_) if first >= end => Act::Status(416, String::new()),
        act => act,
    };
    match &act {
        Act::Status(status, lines) => {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{lines}\r\n");
            return put(stream, served, head.as_bytes()).await;
        }
        Act::Page(text) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            return put(stream, served, head.as_bytes()).await;
        }
        Act::Interim(count) => {
            let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "x".repeat(988));
            for _ in 0..*count {
                put(stream, served, hint.as_bytes()).await?;
            }
        }
        Act::Silent => return fall_silent(stream).await,
        _ => {}
    }
    let (head, body) = reply(&tags, request, &act, file);
    put(stream, served, head.as_bytes()).await?;
    match act {
        Act::Trickle(pause) => trickle(stream, served, &body, Duration::from_millis(pause)).await,
        Act::Crumbs => crumble(stream, served, &body).await,
        Act::Cut(_) => {
            pour(stream, served, &body, carried).await?;
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        Act::Stall(_) => {
            pour(stream, served, &body, carried).await?;
            fall_silent(stream).await
        }
        _ => pour(stream, served, &body, carried).await,
    }
}

/// Head and body of an answer with bytes of the file.
fn reply(tags: &Tags, request: &Request, act: &Act, file: Vec<u8>) -> (String, Vec<u8>) {
    let size = file.len() as u64;
    let (first, end) = asked(request, size);
    let mut body = match act {
        Act::Whole => file,
        _ => file[first as usize..end as usize].to_vec(),
    };
    if let Act::Short(most) = act {
        body.truncate(*most);
    }
    let (off, last) = (u64::from(matches!(act, Act::WrongRange)), first + body.len() as u64);
    let mut head = match act {
        Act::Whole => "HTTP/1.1 200 OK\r\n".to_owned(),
        Act::Range(range) => format!("HTTP/1.1 206 Partial Content\r\nContent-Range: {range}\r\n"),
        _ => {
            let range = format!("bytes {}-{}/{size}", first + off, last - 1);
            format!("HTTP/1.1 206 Partial Content\r\nContent-Range: {range}\r\n")
        }
    };
    head += &tags.lines();
    if let Act::With(lines) = act {
        head += lines;
    }
    head += &match act {
        Act::Crumbs => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        _ => format!("Content-Length: {}\r\n\r\n", body.len()),
    };
    match act {
        Act::Flip(count) => body.iter_mut().rev().take(*count).for_each(|byte| *byte ^= 1),
        Act::Cut(after) | Act::Stall(after) => body.truncate(*after),
        _ => {}
    }
    (head, body)
}

/// Waits for the client to give up.
async fn fall_silent(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
    stream.read_u8().await.and(Err(std::io::ErrorKind::BrokenPipe.into()))
}

async fn trickle(
    stream: &mut (impl AsyncWrite + Unpin),
    served: &Served,
    body: &[u8],
    pause: Duration,
) -> std::io::Result<()> {
    for byte in body {
        put(stream, served, &[*byte]).await?;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

async fn crumble(
    stream: &mut (impl AsyncWrite + Unpin),
    served: &Served,
    body: &[u8],
) -> std::io::Result<()> {
    for part in body.chunks(4096) {
        let crumbs: Vec<u8> = part.iter().flat_map(|byte| [b'1', 13, 10, *byte, 13, 10]).collect();
        put(stream, served, &crumbs).await?;
    }
    put(stream, served, b"0\r\n\r\n").await
}

/// Sends in small steps, so that a client that stops early is not counted for what it never took.
async fn pour(
    stream: &mut (impl AsyncWrite + Unpin),
    served: &Served,
    body: &[u8],
    carried: &mut u64,
) -> std::io::Result<()> {
    for part in body.chunks(16 * 1024) {
        put(stream, served, part).await?;
        served.sent.fetch_add(part.len() as u64, Ordering::SeqCst);
        *carried += part.len() as u64;
    }
    Ok(())
}

/// Sends, and counts what was sent.
async fn put(stream: &mut (impl AsyncWrite + Unpin), served: &Served, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await?;
    served.wire.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    Ok(())
}
