//! Byte ranges of a bundle, from a web server or a file. One range may take many connections: whatever broke
//! is asked for again from the first byte that is missing, until nothing came for `download.patience`. What
//! cannot get better (403, 404, a server without ranges, a file that changed) ends at once and says so; a link that
//! expired waits for a fresh one.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use super::StageError;
use super::hosts::{Hosts, Resolver};
use super::meter::Meter;
use super::route::Route;
use super::web::{Seen, Trouble, Web, chain, passing};
use super::window::Gate;
use crate::clock::Clock;
use crate::config::{Download, Proxy};
use crate::manifest::Digest;

/// Pauses between attempts: drawn between nothing and a bound that starts here, doubles, and ends there.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A connection that is silent for so long may be one of a network that the gateway has left.
const LOOK: Duration = Duration::from_secs(1);
/// Read size for bundles that are local files.
const FILE_STEP: u64 = 64 * 1024;

/// Where a bundle is.
#[derive(Clone)]
pub enum Source {
    Http(Url),
    File(PathBuf),
}

impl fmt::Display for Source {
    /// Without query and user info.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Http(url) => f.write_str(&redact(url)),
            Source::File(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The URL as logs and reports may show it: no user info, no query, no fragment.
pub fn redact(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    match shown.set_username("").and_then(|()| shown.set_password(None)) {
        Ok(()) => shown.into(),
        // No host, so no place for user info; what the rest may hold is nobody's business.
        Err(()) => format!("{}:", url.scheme()),
    }
}

/// The HTTP client and the rules it obeys; made once.
#[derive(Debug, Clone)]
pub struct Http {
    tls: rustls::ClientConfig,
    pub(super) hosts: Arc<Hosts>,
    pub(super) download: Download,
    pub(super) gate: Gate,
    pub(super) first_pause: Duration,
    pub(super) look: Duration,
}

impl Http {
    /// `tls` says whom to trust as a server; `allowed_hosts` is `trust.allowed_hosts`. Fails if `tls` is
    /// unusable.
    pub fn new(
        tls: rustls::ClientConfig,
        allowed_hosts: &[String],
        download: Download,
    ) -> Result<Http, StageError> {
        let hosts = Arc::new(Hosts::new(allowed_hosts, download.proxy.clone()));
        let gate = Gate::new(download.windows.clone());
        let http = Http { tls, hosts, download, gate, first_pause: FIRST_PAUSE, look: LOOK };
        http.client().map(|_| http)
    }

    /// The same by another clock than the system's: windows open and close with it.
    pub fn on(mut self, clock: Clock) -> Http {
        self.gate.set_clock(clock);
        self
    }

    /// Says why `url` may not be fetched, as far as its name tells.
    pub fn allows(&self, url: &Url) -> Result<(), String> {
        self.hosts.check(url)
    }

    /// A client without any connection.
    pub(super) fn client(&self) -> Result<reqwest::Client, StageError> {
        // Never the library's own reading of the environment: the settings have it already.
        let mut builder = reqwest::Client::builder().no_proxy();
        if let Some(proxy) = client_proxy(&self.download.proxy) {
            builder = builder.proxy(proxy);
        }
        builder
            .use_preconfigured_tls(self.tls.clone())
            .http1_only()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(Arc::new(Resolver(self.hosts.clone())))
            .connect_timeout(self.download.stall_timeout)
            .tcp_keepalive(Duration::from_secs(30))
            .user_agent(concat!("fwupdated/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| StageError::Client(chain(&error)))
    }

    /// The address of the proxy on the way to `url`, if there is one: for messages.
    pub(super) fn proxy(&self, url: &Url) -> Option<String> {
        let via = self.download.proxy.to(url.host_str()?, url.port_or_known_default()?)?;
        Some(via.address())
    }
}

/// The proxy as the HTTP client wants it, which asks for each URL anew.
fn client_proxy(rule: &Proxy) -> Option<reqwest::Proxy> {
    let login = rule.login().cloned();
    rule.host()?;
    let rule = rule.clone();
    let proxy = reqwest::Proxy::custom(move |url| {
        let via = rule.to(url.host_str()?, url.port_or_known_default()?)?;
        Some(format!("http://{}", via.address()))
    });
    Some(match login {
        Some((user, password)) => proxy.basic_auth(user.expose(), password.expose()),
        None => proxy,
    })
}

/// One bundle, opened for reading by ranges.
#[derive(Debug)]
pub(super) struct Remote {
    name: String,
    kind: Kind,
    meter: Arc<Meter>,
}

#[derive(Debug)]
enum Kind {
    File { file: Arc<File>, size: u64 },
    Http(Box<Web>),
}

impl Remote {
    /// Opens a file; a URL is only checked.
    pub fn new(source: Source, http: &Http, meter: Arc<Meter>) -> Result<Remote, StageError> {
        let name = source.to_string();
        let kind = match &source {
            Source::File(path) => open_file(path)?,
            Source::Http(url) => {
                let reason = http.hosts.check(url);
                reason.map_err(|reason| StageError::NotPermitted { url: name.clone(), reason })?;
                Kind::Http(Box::new(Web::new(http.clone(), url.clone())?))
            }
        };
        Ok(Remote { name, kind, meter })
    }

    /// The source, redacted: for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Refuses what the data budget does not cover, if reading costs data.
    pub fn afford(&self, bytes: u64) -> Result<(), StageError> {
        if self.is_metered() { self.meter.afford(bytes) } else { Ok(()) }
    }

    /// Whether reading costs data.
    pub fn is_metered(&self) -> bool {
        matches!(self.kind, Kind::Http(_))
    }

    /// Size of the whole bundle, if it is known yet.
    pub fn size(&self) -> Option<u64> {
        match &self.kind {
            Kind::File { size, .. } => Some(*size),
            Kind::Http(web) => web.seen().known.and_then(|version| version.size),
        }
    }

    /// Reads bytes `start..end`, all into memory: for spans that a cap or a signature bounds. Fewer come only
    /// if the bundle ends before.
    pub async fn read(&self, start: u64, end: u64) -> Result<Vec<u8>, StageError> {
        self.read_all(self.range(start, end)).await
    }

    /// The same at any time, also outside the windows for downloads.
    pub async fn read_at_once(&self, start: u64, end: u64) -> Result<Vec<u8>, StageError> {
        self.read_all(Range { gated: false, ..self.range(start, end) }).await
    }

    async fn read_all(&self, mut range: Range<'_>) -> Result<Vec<u8>, StageError> {
        let length = range.end.saturating_sub(range.at);
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        while let Some(part) = range.next().await? {
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    /// The bytes `start..end`, as they arrive.
    pub fn range(&self, start: u64, end: u64) -> Range<'_> {
        Range {
            remote: self,
            at: start,
            end,
            response: None,
            route: None,
            attempts: 0,
            alive: Instant::now(),
            check: true,
            gated: true,
        }
    }

    /// Remembers the verified first bytes: should the file be replaced while it is read, reading goes on only
    /// if it still begins with them.
    pub fn remember_head(&self, head: &[u8]) {
        if let Kind::Http(web) = &self.kind {
            *web.head.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((head.len() as u64, Digest::of(head)));
        }
    }

    /// Called on a 412: adopts the new version once, if it is the same bundle.
    async fn renew(&self, web: &Web, stale: u32) -> Result<(), StageError> {
        let _one_at_a_time = web.renewal.lock().await;
        if web.seen().generation != stale {
            return Ok(());
        }
        let changed = || StageError::Changed { url: self.name.clone() };
        let known = *web.head.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((length, digest)) = known else {
            return Err(changed());
        };
        if web.renewals.fetch_add(1, Ordering::Relaxed) > 0 {
            return Err(changed());
        }
        web.set_seen(Seen { generation: stale.wrapping_add(1), known: None });
        let head = self.read_all(Range { check: false, gated: false, ..self.range(0, length) }).await?;
        if Digest::of(&head) != digest { Err(changed()) } else { Ok(()) }
    }

    fn failed(&self, reason: impl Into<String>) -> StageError {
        StageError::Download { url: self.name.clone(), reason: reason.into() }
    }
}

fn open_file(path: &Path) -> Result<Kind, StageError> {
    let failed = |error: io::Error| {
        let (url, reason) = (path.display().to_string(), error.to_string());
        match error.kind() {
            io::ErrorKind::NotFound => StageError::NotFound { url, reason },
            _ => StageError::Download { url, reason },
        }
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    Ok(Kind::File { size: metadata.len(), file: Arc::new(file) })
}

/// A range on its way.
pub(super) struct Range<'a> {
    remote: &'a Remote,
    at: u64,
    end: u64,
    response: Option<Response>,
    /// The way that it comes.
    route: Option<Route>,
    /// Attempts since the last byte came.
    attempts: u32,
    /// When the last byte came.
    alive: Instant,
    /// False while a changed file is being looked at.
    check: bool,
    /// Whether it keeps to the windows for downloads.
    gated: bool,
}

impl fmt::Debug for Range<'_> {
    /// A `Response` would show its URL with the token in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Range").field("at", &self.at).field("end", &self.end).finish_non_exhaustive()
    }
}

impl Range<'_> {
    /// The next bytes, never none; `None` when the range is complete or the bundle ends.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StageError> {
        loop {
            if self.remote.size().is_some_and(|size| self.at >= size.min(self.end)) || self.at >= self.end {
                return Ok(None);
            }
            let trouble = match &self.remote.kind {
                Kind::File { file, size } => return self.read_file(file.clone(), *size).await.map(Some),
                Kind::Http(web) => {
                    self.await_window(web).await;
                    match self.receive(web).await {
                        Ok(bytes) => return Ok(Some(bytes)),
                        Err(trouble) => (trouble, web),
                    }
                }
            };
            self.response = None;
            match trouble {
                (Trouble::Final(error), _) => return Err(error),
                (Trouble::Expired(error), web) => self.await_fresh_link(web, error).await?,
                (Trouble::Passing { reason, after }, web) => {
                    if !self.pause(web, &reason, after).await {
                        let patience = web.http.download.patience.as_secs_f32();
                        let reason = format!("{reason}; gave up after {patience} s without progress");
                        return Err(self.remote.failed(reason));
                    }
                }
                (Trouble::Changed(_), _) if !self.check => {
                    return Err(StageError::Changed { url: self.remote.name.clone() });
                }
                (Trouble::Changed(stale), web) => Box::pin(self.remote.renew(web, stale)).await?,
            }
        }
    }

    async fn read_file(&mut self, file: Arc<File>, size: u64) -> Result<Bytes, StageError> {
        let (at, end) = (self.at, self.end.min(size));
        let length = (end - at).min(FILE_STEP) as usize;
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; length];
            file.read_exact_at(&mut buffer, at).map(|()| buffer)
        });
        let buffer = read.await.map_err(|e| StageError::Thread(e.to_string()))?;
        let buffer = buffer.map_err(|error| self.remote.failed(error.to_string()))?;
        self.at += length as u64;
        Ok(buffer.into())
    }

    async fn receive(&mut self, web: &Web) -> Result<Bytes, Trouble> {
        let left = self.end - self.at;
        let mut response = match self.response.take() {
            Some(response) => response,
            None => {
                self.remote
                    .meter
                    .afford(self.remote.size().map_or(0, |size| left.min(size.saturating_sub(self.at))))?;
                let response = web.ask(&self.remote.name, self.at, self.end).await?;
                self.route = web.route();
                response
            }
        };
        let bytes = match web.patiently(self.route, response.chunk()).await? {
            Err(error) => return Err(passing(chain(&error))),
            Ok(None) => return Err(passing("the connection was closed before the end")),
            Ok(Some(bytes)) => bytes,
        };
        let received = bytes.len() as u64;
        if self.attempts > 0 {
            self.remote.meter.wait_for(None);
        }
        self.remote.meter.count(received).await;
        self.remote.meter.afford(0)?;
        if received > left {
            return Err(self.remote.failed("the server sent more than it was asked for").into());
        }
        self.at += received;
        self.attempts = 0;
        self.alive = Instant::now();
        self.response = Some(response);
        Ok(bytes)
    }

    /// Lets go of the connection while the windows are closed. The patience begins anew when one opens.
    async fn await_window(&mut self, web: &Web) {
        let closed = if self.gated { web.http.gate.closed() } else { None };
        if let Some(reason) = closed {
            self.response = None;
            web.http.gate.wait(reason, &self.remote.meter).await;
            (self.attempts, self.alive) = (0, Instant::now());
        }
    }

    /// A call with a fresh link starts the operation's effect anew and so ends this; until then only a wrong clock
    /// could make the old link good again.
    async fn await_fresh_link(&mut self, web: &Web, expired: StageError) -> Result<(), StageError> {
        let reason = expired.to_string();
        self.remote.meter.wait_for(Some(&reason));
        if self.pause(web, &reason, Duration::ZERO).await { Ok(()) } else { Err(expired) }
    }

    /// Waits before the next attempt; false: the patience is over.
    async fn pause(&mut self, web: &Web, reason: &str, after: Duration) -> bool {
        let (patience, idle) = (web.http.download.patience, self.alive.elapsed());
        if idle >= patience || after > patience - idle {
            return false;
        }
        let bound = web.http.first_pause.saturating_mul(1u32 << self.attempts.min(20)).min(LONGEST_PAUSE);
        let pause = bound.mul_f64(fastrand::f64()).max(after).min(patience - idle);
        tracing::warn!(url = self.remote.name, reason, pause_ms = pause.as_millis() as u64, "download waits");
        self.attempts = self.attempts.saturating_add(1);
        tokio::time::sleep(pause).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_url_has_no_secrets() {
        let cases = [
            ("https://user:pw@h.example/a/b.fwb?sig=s3cret#frag", "https://h.example/a/b.fwb"),
            ("https://h.example:8443", "https://h.example:8443/"),
            ("mailto:someone@example.com?s3cret", "mailto:"),
        ];
        for (url, shown) in cases {
            assert_eq!(redact(&url.parse().unwrap()), shown);
        }
        let source = Source::Http("https://h.example/b?sig=s3cret".parse().unwrap());
        assert!(!format!("{source} {source:?}").contains("s3cret"));
    }

    #[tokio::test]
    async fn time_outside_the_windows_does_not_count_against_patience() {
        use super::super::testing::*;
        use crate::config::Window;
        use crate::plan::Now;
        let server = Server::start(vec![7; 50_000]).await;
        server.served.script(|request| match request.number {
            0 => Act::Status(503, String::new()),
            _ => Act::Serve,
        });
        let patience = Duration::from_secs(3600);
        let windows = vec![Window { start: 60, end: 120 }];
        let mut http = server.http_with(&["127.0.0.1"], Download { patience, windows, ..download() });
        let asked = std::sync::atomic::AtomicU32::new(0);
        http.gate.look = Duration::ZERO;
        // Closed at the first looks, then open.
        http.gate.now = Arc::new(move || {
            let minute = if asked.fetch_add(1, Ordering::SeqCst) < 4 { 59 } else { 60 };
            let time = time::OffsetDateTime::UNIX_EPOCH + Duration::from_secs(60 * minute);
            Now { time, synchronised: true }
        });
        let meter = Arc::new(Meter::new(0, None, None));
        let remote = Remote::new(Source::Http(server.url()), &http, meter).unwrap();
        let mut range = remote.range(0, 50_000);
        // As if it had waited for a day.
        range.alive = Instant::now().checked_sub(Duration::from_secs(86_400)).unwrap_or(range.alive);
        let mut length = 0;
        while let Some(bytes) = range.next().await.unwrap() {
            length += bytes.len();
        }
        assert_eq!((length, server.served.count()), (50_000, 2));
    }
}
