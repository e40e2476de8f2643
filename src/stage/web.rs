//! One attempt at one range over HTTPS: the request with its guards, the redirects, and what an answer means.

use std::fmt;
use std::pin::pin;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode};
use time::format_description::well_known::{Rfc2822, Rfc3339};
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::StageError;
use super::fetch::{Http, redact};
use super::hosts::Refused;
use super::route::Route;
use crate::manifest::Digest;

/// Hops that are followed.
const REDIRECTS: usize = 5;

/// A URL, and what is known of the file behind it.
pub(super) struct Web {
    pub http: Http,
    url: Url,
    /// Connections, all of one network.
    line: Mutex<Line>,
    seen: Mutex<Seen>,
    /// Held while somebody finds out whether a changed file still is the same bundle.
    pub renewal: tokio::sync::Mutex<()>,
    pub renewals: AtomicU32,
    /// Length and digest of the bundle's first bytes, once they were verified.
    pub head: Mutex<Option<(u64, Digest)>>,
}

impl fmt::Debug for Web {
    /// The URL may carry a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").field("url", &redact(&self.url)).finish_non_exhaustive()
    }
}

/// A client whose connections are alive as far as is known.
struct Line {
    client: reqwest::Client,
    /// How the latest answer came.
    route: Option<Route>,
}

/// What identifies the file that the first answer was about.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub generation: u32,
    pub known: Option<Version>,
}

/// One version of a file, as its server tells versions apart.
#[derive(Debug, Clone)]
pub(super) struct Version {
    /// Strong ones only: no other can guard a range.
    etag: Option<HeaderValue>,
    modified: Option<HeaderValue>,
    pub size: Option<u64>,
}

impl Version {
    fn of(headers: &HeaderMap, size: Option<u64>) -> Version {
        let strong = |tag: &&HeaderValue| tag.as_bytes().first() == Some(&b'"');
        let etag = headers.get(header::ETAG).filter(strong).cloned();
        Version { etag, modified: headers.get(header::LAST_MODIFIED).cloned(), size }
    }

    /// Servers behind one name may disagree on dates, so an ETag outranks them.
    fn is(&self, other: &Version) -> bool {
        let same = match (&self.etag, &other.etag) {
            (Some(one), Some(two)) => one == two,
            _ => self.modified == other.modified,
        };
        same && self.size == other.size
    }

    /// The header that makes the server refuse (412) to answer from another version.
    fn condition(&self) -> Option<(HeaderName, HeaderValue)> {
        let by_tag = self.etag.clone().map(|tag| (header::IF_MATCH, tag));
        by_tag.or_else(|| self.modified.clone().map(|date| (header::IF_UNMODIFIED_SINCE, date)))
    }
}

/// What one attempt ended with.
pub(super) enum Trouble {
    Final(StageError),
    /// Only a fresh link helps; the error is for the end of the patience.
    Expired(StageError),
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

pub(super) fn passing(reason: impl Into<String>) -> Trouble {
    Trouble::Passing { reason: reason.into(), after: Duration::ZERO }
}

impl Web {
    pub(super) fn new(http: Http, url: Url) -> Result<Web, StageError> {
        let (seen, head) = (Mutex::default(), Mutex::default());
        let line = Mutex::new(Line { client: http.client()?, route: None });
        Ok(Web { http, url, line, seen, renewal: Default::default(), renewals: AtomicU32::new(0), head })
    }

    /// How the latest answer came.
    pub(super) fn route(&self) -> Option<Route> {
        self.line().route
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for what a connection that goes the way `before` should bring: until the stall timeout, or until it is
    /// silent and a new one would go another way. Then no connection is used any more that the old network may have left behind.
    pub(super) async fn patiently<T>(
        &self,
        before: Option<Route>,
        coming: impl Future<Output = T>,
    ) -> Result<T, Trouble> {
        let stall = self.http.download.stall_timeout;
        let (give_up, mut coming) = (Instant::now() + stall, pin!(coming));
        let mut moved = false;
        loop {
            let look = give_up.min(Instant::now() + self.http.look);
            if let Ok(done) = timeout_at(look, &mut coming).await {
                return Ok(done);
            }
            // Twice, for what has arrived before the move may not have been read yet.
            if moved {
                self.move_on(before)?;
                return Err(passing("the gateway has moved to another network"));
            }
            moved = before.is_some_and(|route| route.moved());
            if Instant::now() >= give_up {
                return Err(passing(format!("nothing came for {} s", stall.as_secs_f32())));
            }
        }
    }

    /// Whoever notices first makes a new client for all.
    fn move_on(&self, before: Option<Route>) -> Result<(), StageError> {
        let mut line = self.line();
        if line.route == before {
            *line = Line { client: self.http.client()?, route: None };
        }
        Ok(())
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_seen(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Asks for `start..end`, follows redirects, and returns an answer whose body begins at `start`.
    pub(super) async fn ask(&self, name: &str, start: u64, end: u64) -> Result<Response, Trouble> {
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
        let (before, client) = {
            let line = self.line();
            (line.route, line.client.clone())
        };
        let mut request = client
            .get(url.clone())
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::RANGE, format!("bytes={start}-{}", end.saturating_sub(1)));
        if let Some((name, value)) = seen.known.as_ref().and_then(Version::condition) {
            request = request.header(name, value);
        }
        match self.patiently(before, request.send()).await? {
            Ok(response) => {
                self.line().route = response.remote_addr().and_then(Route::to);
                Ok(response)
            }
            Err(error) => Err(self.connect_trouble(url, seen, &error)),
        }
    }

    /// A connection that failed is tried again, unless it never may or never can succeed.
    fn connect_trouble(&self, url: &Url, seen: &Seen, error: &reqwest::Error) -> Trouble {
        if let Some(refused) = find::<Refused>(error) {
            return StageError::NotPermitted { url: redact(url), reason: refused.to_string() }.into();
        }
        // Once the server was known good, a foreign certificate is a portal on the way that will go away.
        match find::<rustls::Error>(error) {
            Some(rustls::Error::InvalidCertificate(fault)) if seen.known.is_none() && !is_of_time(fault) => {
                let reason = format!("its certificate is not trusted ({fault}); add its CA to ca_file");
                StageError::Download { url: redact(url), reason }.into()
            }
            _ => match self.http.proxy(url) {
                Some(proxy) => passing(format!("through the proxy {proxy}: {}", chain(error))),
                None => passing(chain(error)),
            },
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
                let status = status.as_u16();
                Err(match expired(&self.url, response.headers()) {
                    Some(at) => Trouble::Expired(StageError::Expired { url, status, at }),
                    None => StageError::Forbidden { url, status }.into(),
                })
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                Err(StageError::NotFound { url, reason: format!("the server answered {}", status.as_u16()) }
                    .into())
            }
            StatusCode::PRECONDITION_FAILED => Err(Trouble::Changed(seen.generation)),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(busy(&response)),
            _ if status.is_server_error() => Err(busy(&response)),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Err(failed("the file is shorter than a bundle of its kind must be".into()))
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
            Some(known) if !known.is(&version) => return Err(Trouble::Changed(seen.generation)),
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
pub(super) fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, after) = (first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?);
    let size = match size {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    (first < after && size.is_none_or(|size| after <= size)).then_some((first, after, size))
}

/// When the link `url` expired, if it names such a time and the server's clock (ours, if it tells none) is past it:
/// `se` of an Azure SAS token; `X-Amz-Date` and `X-Amz-Expires` of AWS Signature Version 4, `X-Goog-` of Google's.
pub(super) fn expired(url: &Url, headers: &HeaderMap) -> Option<OffsetDateTime> {
    let query = |key: &str| {
        url.query_pairs()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.into_owned())
    };
    let signed_for = |vendor: &str| {
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let date = PrimitiveDateTime::parse(&query(&format!("X-{vendor}-Date"))?, format).ok()?;
        let seconds = query(&format!("X-{vendor}-Expires"))?.parse::<u32>().ok()?;
        date.assume_utc().checked_add(time::Duration::seconds(seconds.into()))
    };
    let azure = query("se").and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok());
    let end = azure.or_else(|| signed_for("Amz")).or_else(|| signed_for("Goog"))?;
    let now =
        headers.get(header::DATE).and_then(|date| OffsetDateTime::parse(date.to_str().ok()?, &Rfc2822).ok());
    (now.unwrap_or_else(OffsetDateTime::now_utc) >= end).then_some(end)
}

fn busy(response: &Response) -> Trouble {
    let after = retry_after(response.headers()).unwrap_or_default();
    Trouble::Passing { reason: format!("the server answered {}", response.status().as_u16()), after }
}

/// `Retry-After` in seconds, or as a date against the server's own clock: ours may be wrong.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| OffsetDateTime::parse(text, &Rfc2822).ok();
    let now = date(headers.get(header::DATE)?.to_str().ok()?)?;
    (date(text)? - now).try_into().ok()
}

/// A fault that our own clock may be to blame for.
fn is_of_time(fault: &rustls::CertificateError) -> bool {
    use rustls::CertificateError::*;
    matches!(fault, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

/// Finds an error of type `E` among the causes of `error`.
fn find<E: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    let mut next = std::error::Error::source(error);
    while let Some(inner) = next {
        if let Some(found) = inner.downcast_ref() {
            return Some(found);
        }
        // An `io::Error` hides what it wraps from `source`.
        let wrapped = inner.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        next = wrapped.map(|wrapped| wrapped as &(dyn std::error::Error + 'static)).or(inner.source());
    }
    None
}

/// The innermost reasons of an error, never its URL, which may carry a token.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut reasons = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        reasons.push(inner.to_string());
        source = inner.source();
    }
    if reasons.is_empty() { "the connection failed".into() } else { reasons.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(content_range("bytes 0-9/10"), Some((0, 10, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 10, None)));
        let max = u64::MAX;
        for bad in [
            "",
            "bytes */10",
            "bytes 9-5/10",
            "bytes 0-10/10",
            "items 0-9/10",
            "bytes 0-9",
            "bytes -1-9/10",
            &format!("bytes 0-{max}/*"),
            &format!("bytes 0-{max}0/*"),
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_a_link_whose_own_time_is_over_has_expired() {
        let at = |query: &str, date: Option<&'static str>| {
            let url = format!("https://h.example/b.fwb?{query}").parse().unwrap();
            let date = date.map(|date| (header::DATE, HeaderValue::from_static(date)));
            expired(&url, &date.into_iter().collect())
        };
        let noon = Some("Tue, 15 Nov 1994 12:00:00 GMT");
        for over in [
            "sv=2022-11-02&se=1994-11-15T11%3A59%3A59Z&sp=r&sig=x",
            "X-Amz-Date=19941115T110000Z&X-Amz-Expires=3600&X-Amz-Signature=x",
            "X-Goog-Date=19941115T110000Z&X-Goog-Expires=60",
        ] {
            assert!(at(over, noon).is_some(), "{over}");
        }
        for good in [
            "se=1994-11-15T12%3A00%3A01Z&sig=x",
            "X-Amz-Date=19941115T110000Z&X-Amz-Expires=3601",
            "X-Amz-Date=19941115T110000Z",
            "se=tomorrow",
            "",
        ] {
            assert_eq!(at(good, noon), None, "{good}");
        }
        // Without the server's clock ours decides.
        assert!(at("se=1994-11-15T11%3A59%3A59Z", None).is_some());
        assert_eq!(at("se=9994-11-15T11%3A59%3A59Z", None), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_of_the_servers_clock() {
        let after = |lines: &[(&'static str, &'static str)]| {
            let pair = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            retry_after(&lines.iter().map(pair).collect())
        };
        assert_eq!(after(&[("retry-after", "120")]), Some(Duration::from_secs(120)));
        let date = ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(after(&[date, ("date", "Sun, 06 Nov 1994 08:49:07 GMT")]), Some(Duration::from_secs(30)));
        // In the past, without the server's clock, or nonsense: no wish.
        assert_eq!(after(&[date, ("date", "Sun, 06 Nov 1994 08:50:07 GMT")]), None);
        assert_eq!(after(&[date]), None);
        assert_eq!(after(&[("retry-after", "soon")]), None);
    }
}
