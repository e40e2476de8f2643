//! Byte ranges of a bundle, from a web server or a file. One range may take many connections: whatever broke
//! is asked for again from the first byte that is missing, until nothing came for `download.patience`. What
//! cannot get better (403, 404, a server without ranges, a file that changed) ends at once and says so.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout};
use url::Url;

use super::StageError;
use super::hosts::{Hosts, Refused, Resolver};
use crate::config::Download;
use crate::manifest::Digest;

const REDIRECTS: usize = 5;
/// Pauses between attempts: drawn between nothing and a bound that starts here, doubles, and ends there.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Read size for bundles that are local files.
const FILE_STEP: u64 = 256 * 1024;

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
    client: reqwest::Client,
    hosts: Arc<Hosts>,
    download: Download,
    pub(super) first_pause: Duration,
}

impl Http {
    /// `tls` says whom to trust as a server; `allowed_hosts` is `trust.allowed_hosts`. Fails if `tls` is
    /// unusable.
    pub fn new(
        tls: rustls::ClientConfig,
        allowed_hosts: &[String],
        download: Download,
    ) -> Result<Http, StageError> {
        let hosts = Arc::new(Hosts::new(allowed_hosts));
        let client = reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .http1_only()
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(Arc::new(Resolver(hosts.clone())))
            .connect_timeout(download.stall_timeout)
            .tcp_keepalive(Duration::from_secs(30))
            .user_agent(concat!("fwupdated/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| StageError::Download { url: "https".into(), reason: chain(&e) })?;
        Ok(Http { client, hosts, download, first_pause: FIRST_PAUSE })
    }
}

/// Counts the body bytes of one operation against its budget, and paces them.
#[derive(Debug)]
pub struct Meter {
    spent: AtomicU64,
    limit: Option<u64>,
    rate: Option<u64>,
    /// When the next body byte may be read under `rate`.
    free_at: Mutex<Option<Instant>>,
}

impl Meter {
    /// `spent`: what earlier runs of this operation received. `limit`: its data budget. `rate`: bytes per
    /// second.
    pub fn new(spent: u64, limit: Option<u64>, rate: Option<u64>) -> Meter {
        Meter { spent: AtomicU64::new(spent), limit, rate, free_at: Mutex::new(None) }
    }

    /// Body bytes received so far, earlier runs included.
    pub fn spent(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }

    /// Refuses a fetch of `more` bytes that the budget does not cover.
    pub fn afford(&self, more: u64) -> Result<(), StageError> {
        let need = self.spent().saturating_add(more);
        match self.limit {
            Some(limit) if need > limit => Err(StageError::Budget { need, limit }),
            _ => Ok(()),
        }
    }

    async fn count(&self, received: u64) {
        self.spent.fetch_add(received, Ordering::Relaxed);
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else { return };
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let start = free_at.map_or(Instant::now(), |at| at.max(Instant::now()));
            *free_at.insert(start + Duration::from_secs_f64(received as f64 / rate as f64))
        };
        tokio::time::sleep_until(until).await;
    }
}

/// One bundle, opened for reading by ranges.
#[derive(Debug)]
pub struct Remote {
    source: Source,
    name: String,
    kind: Kind,
    meter: Arc<Meter>,
}

#[derive(Debug)]
enum Kind {
    File { file: Arc<File>, size: u64 },
    Http(Box<Web>),
}

#[derive(Debug)]
struct Web {
    http: Http,
    url: Url,
    seen: Mutex<Seen>,
    /// Held while somebody finds out whether a changed file still is the same bundle.
    renewal: tokio::sync::Mutex<()>,
    renewals: AtomicU32,
    /// Length and digest of the bundle's first bytes, once they were verified.
    head: Mutex<Option<(u64, Digest)>>,
}

/// What identifies the file that the first answer was about.
#[derive(Debug, Clone, Default)]
struct Seen {
    generation: u32,
    known: Option<Version>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    /// A strong ETag, else the date of the last change.
    etag: Option<HeaderValue>,
    modified: Option<HeaderValue>,
    size: Option<u64>,
}

impl Version {
    fn of(headers: &HeaderMap, size: Option<u64>) -> Version {
        let strong = |tag: &&HeaderValue| tag.as_bytes().first() == Some(&b'"');
        let etag = headers.get(header::ETAG).filter(strong).cloned();
        Version { etag, modified: headers.get(header::LAST_MODIFIED).cloned(), size }
    }

    /// The header that makes the server refuse (412) to answer from another version.
    fn condition(&self) -> Option<(HeaderName, HeaderValue)> {
        let by_tag = self.etag.clone().map(|tag| (header::IF_MATCH, tag));
        by_tag.or_else(|| self.modified.clone().map(|date| (header::IF_UNMODIFIED_SINCE, date)))
    }
}

/// What one attempt ended with.
enum Trouble {
    Final(StageError),
    /// Worth another attempt, no sooner than `after`.
    Passing {
        reason: String,
        after: Duration,
    },
    /// The server holds another version than that of this generation.
    Changed(u32),
}

impl From<StageError> for Trouble {
    fn from(error: StageError) -> Trouble {
        Trouble::Final(error)
    }
}

fn passing(reason: impl Into<String>) -> Trouble {
    Trouble::Passing { reason: reason.into(), after: Duration::ZERO }
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
                Kind::Http(Box::new(Web {
                    http: http.clone(),
                    url: url.clone(),
                    seen: Mutex::default(),
                    renewal: tokio::sync::Mutex::default(),
                    renewals: AtomicU32::new(0),
                    head: Mutex::new(None),
                }))
            }
        };
        Ok(Remote { source, name, kind, meter })
    }

    /// The source, redacted: for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    pub fn meter(&self) -> &Meter {
        &self.meter
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

    /// Reads bytes `start..end`; fewer only if the bundle ends before.
    pub async fn read(&self, start: u64, end: u64) -> Result<Vec<u8>, StageError> {
        let mut bytes = Vec::new();
        let mut range = self.range(start, end);
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
            attempts: 0,
            alive: Instant::now(),
            check: true,
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
        let mut range = Range { check: false, ..self.range(0, length) };
        let mut head = Vec::new();
        while let Some(part) = range.next().await? {
            head.extend_from_slice(&part);
        }
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
#[derive(Debug)]
pub struct Range<'a> {
    remote: &'a Remote,
    at: u64,
    end: u64,
    response: Option<Response>,
    /// Attempts since the last byte came.
    attempts: u32,
    /// When the last byte came.
    alive: Instant,
    /// False while a changed file is being looked at.
    check: bool,
}

impl Range<'_> {
    /// The next bytes, never none; `None` when the range is complete or the bundle ends.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StageError> {
        loop {
            if self.remote.size().is_some_and(|size| self.at >= size.min(self.end)) || self.at >= self.end {
                return Ok(None);
            }
            let trouble = match &self.remote.kind {
                Kind::File { file, size } => return self.from_file(file.clone(), *size).await.map(Some),
                Kind::Http(web) => match self.from_web(web).await {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(trouble) => (trouble, web),
                },
            };
            self.response = None;
            match trouble {
                (Trouble::Final(error), _) => return Err(error),
                (Trouble::Passing { reason, after }, web) => self.pause(web, reason, after).await?,
                (Trouble::Changed(_), _) if !self.check => {
                    return Err(StageError::Changed { url: self.remote.name.clone() });
                }
                (Trouble::Changed(stale), web) => Box::pin(self.remote.renew(web, stale)).await?,
            }
        }
    }

    async fn from_file(&mut self, file: Arc<File>, size: u64) -> Result<Bytes, StageError> {
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

    async fn from_web(&mut self, web: &Web) -> Result<Bytes, Trouble> {
        let left = self.end - self.at;
        let response = match self.response.take() {
            Some(response) => response,
            None => {
                self.remote
                    .meter
                    .afford(self.remote.size().map_or(0, |size| left.min(size.saturating_sub(self.at))))?;
                web.ask(&self.remote.name, self.at, self.end).await?
            }
        };
        let stall = web.http.download.stall_timeout;
        let mut response = response;
        let bytes = match timeout(stall, response.chunk()).await {
            Err(_) => return Err(passing(format!("nothing came for {} s", stall.as_secs_f32()))),
            Ok(Err(error)) => return Err(passing(chain(&error))),
            Ok(Ok(None)) => return Err(passing("the connection was closed before the end")),
            Ok(Ok(Some(bytes))) => bytes,
        };
        let received = bytes.len() as u64;
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

    /// Waits before the next attempt, or gives up.
    async fn pause(&mut self, web: &Web, reason: String, after: Duration) -> Result<(), StageError> {
        let (patience, idle) = (web.http.download.patience, self.alive.elapsed());
        if idle >= patience || after > patience - idle {
            let patience = patience.as_secs_f32();
            return Err(self.remote.failed(format!("{reason}; gave up after {patience} s without progress")));
        }
        let bound = web.http.first_pause.saturating_mul(1u32 << self.attempts.min(20)).min(LONGEST_PAUSE);
        let pause = bound.mul_f64(fastrand::f64()).max(after).min(patience - idle);
        tracing::warn!(url = self.remote.name, reason, pause_ms = pause.as_millis() as u64, "download waits");
        self.attempts = self.attempts.saturating_add(1);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Web {
    fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_seen(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Asks for `start..end`, follows redirects, and returns an answer whose body begins at `start`.
    async fn ask(&self, name: &str, start: u64, end: u64) -> Result<Response, Trouble> {
        let seen = self.seen();
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS {
            let shown = redact(&url);
            let denied = |reason| StageError::NotPermitted { url: shown.clone(), reason };
            self.http.hosts.check(&url).map_err(denied)?;
            let response = self.send(&url, &seen, start, end).await?;
            if !response.status().is_redirection() {
                return self.judge(response, seen, shown, start, end);
            }
            url = redirected(&url, &response)?;
        }
        let reason = format!("it was redirected more than {REDIRECTS} times");
        Err(StageError::Download { url: name.to_owned(), reason }.into())
    }

    async fn send(&self, url: &Url, seen: &Seen, start: u64, end: u64) -> Result<Response, Trouble> {
        let mut request = self
            .http
            .client
            .get(url.clone())
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::RANGE, format!("bytes={start}-{}", end.saturating_sub(1)));
        if let Some((name, value)) = seen.known.as_ref().and_then(Version::condition) {
            request = request.header(name, value);
        }
        match timeout(self.http.download.stall_timeout, request.send()).await {
            Err(_) => Err(passing("no answer came in time")),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(match refusal(&error) {
                Some(refused) => {
                    StageError::NotPermitted { url: redact(url), reason: refused.to_string() }.into()
                }
                None => passing(chain(&error)),
            }),
        }
    }

    /// What a status other than a redirect means.
    fn judge(
        &self,
        response: Response,
        seen: Seen,
        url: String,
        start: u64,
        end: u64,
    ) -> Result<Response, Trouble> {
        let status = response.status();
        let failed = |reason: String| Trouble::Final(StageError::Download { url: url.clone(), reason });
        match status {
            StatusCode::PARTIAL_CONTENT => self.accept(response, seen, start, end, failed),
            StatusCode::OK => Err(failed("the server ignores byte ranges, which this update needs".into())),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(StageError::Forbidden { url, status: status.as_u16() }.into())
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                Err(StageError::NotFound { url, reason: format!("the server answered {}", status.as_u16()) }
                    .into())
            }
            StatusCode::PRECONDITION_FAILED => Err(Trouble::Changed(seen.generation)),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(busy(&response)),
            _ if status.is_server_error() => Err(busy(&response)),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Err(failed("the file ends before its own index says so".into()))
            }
            _ => Err(failed(format!("the server answered {}", status.as_u16()))),
        }
    }

    /// A 206 is taken only if it is the range that was asked for, of the file that was seen first.
    fn accept(
        &self,
        response: Response,
        seen: Seen,
        start: u64,
        end: u64,
        failed: impl Fn(String) -> Trouble,
    ) -> Result<Response, Trouble> {
        let headers = response.headers();
        let encoding = headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes);
        if encoding.is_some_and(|encoding| encoding != b"identity") {
            return Err(failed("the server compressed a byte range although asked not to".into()));
        }
        let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let Some((first, after, size)) = range.and_then(content_range) else {
            return Err(failed("the server answered a byte range without a valid Content-Range".into()));
        };
        if first != start || after != size.map_or(end, |size| end.min(size)) {
            let asked = format!("bytes {start}-{}", end.saturating_sub(1));
            return Err(failed(format!(
                "the server answered {} when asked for {asked}",
                range.unwrap_or_default()
            )));
        }
        let version = Version::of(headers, size);
        match seen.known {
            Some(known) if known != version => return Err(Trouble::Changed(seen.generation)),
            Some(_) => {}
            None => self.set_seen(Seen { generation: seen.generation, known: Some(version) }),
        }
        Ok(response)
    }
}

/// Where a redirect leads.
fn redirected(from: &Url, response: &Response) -> Result<Url, StageError> {
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    location.and_then(|text| from.join(text).ok()).ok_or_else(|| StageError::Download {
        url: redact(from),
        reason: format!("the server answered {} without a usable Location", response.status().as_u16()),
    })
}

/// `bytes FIRST-LAST/SIZE` (RFC 9110, 14.4) as first, one after last, and size unless it is `*`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, after) = (first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?);
    let size = match size {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    (first < after && size.is_none_or(|size| after <= size)).then_some((first, after, size))
}

fn busy(response: &Response) -> Trouble {
    let after = retry_after(response.headers()).unwrap_or_default();
    Trouble::Passing { reason: format!("the server answered {}", response.status().as_u16()), after }
}

/// `Retry-After` in seconds, or as a date against the server's own clock: ours may be wrong.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date =
        |text: &str| time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822).ok();
    let now = date(headers.get(header::DATE)?.to_str().ok()?)?;
    (date(text)? - now).try_into().ok()
}

/// Finds the resolver's verdict inside a connection error.
fn refusal(error: &reqwest::Error) -> Option<&Refused> {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(refused) = inner.downcast_ref() {
            return Some(refused);
        }
        source = inner.source();
    }
    None
}

/// The innermost reasons of an error, never its URL, which may carry a token.
fn chain(error: &reqwest::Error) -> String {
    let mut reasons = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        reasons.push(inner.to_string());
        source = inner.source();
    }
    if reasons.is_empty() { "the connection failed".into() } else { reasons.join(": ") }
}
