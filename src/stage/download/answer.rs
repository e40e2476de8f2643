//! What an answer to a range request means. Nothing here decides that an update ends: one server's one answer is not
//! final where another connection may bring a better one (`doubt`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use url::Url;

use crate::clock::Clock;
use crate::stage::download::budget::Meter;
use crate::stage::download::connect::Count;
use crate::stage::download::expiry::{date, expired};
use crate::stage::error::StageError;

/// What may be on its way, at most, when an answer is refused, bytes: it is paid for too.
const ON_ITS_WAY: u64 = 64 * 1024;

/// One version of a file, as its server tells versions apart.
#[derive(Debug, Clone)]
pub struct Version {
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
    pub fn is(&self, other: &Version) -> bool {
        let same = match (&self.etag, &other.etag) {
            (Some(one), Some(two)) => one == two,
            _ => self.modified == other.modified,
        };
        same && self.size == other.size
    }

    /// Whether both carry one tag: then nothing of the file changed.
    pub fn has_tag_of(&self, other: &Version) -> bool {
        self.etag.is_some() && self.etag == other.etag
    }

    /// The header that makes the server refuse (412) to answer from another version.
    pub fn condition(&self) -> Option<(HeaderName, HeaderValue)> {
        let by_tag = self.etag.clone().map(|tag| (header::IF_MATCH, tag));
        by_tag.or_else(|| self.modified.clone().map(|date| (header::IF_UNMODIFIED_SINCE, date)))
    }
}

/// What one attempt ended with.
#[derive(Debug)]
pub enum Trouble {
    /// Of our own rules, which no server can change.
    Final(StageError),
    /// Final if other connections bring the same for a while.
    Doubtful(StageError),
    /// Only a fresh link helps; the error is for the end of the patience.
    Expired(StageError),
    /// Worth another attempt, no sooner than `after`.
    Passing { reason: String, after: Duration },
    /// The server holds another version than that of this generation.
    Changed(u32),
}

impl From<StageError> for Trouble {
    fn from(error: StageError) -> Trouble {
        Trouble::Final(error)
    }
}

pub fn passing(reason: impl Into<String>) -> Trouble {
    Trouble::Passing { reason: reason.into(), after: Duration::ZERO }
}

/// An answer on its way. Once it is dropped, what came with it and was not handed out is counted as waste.
pub struct HttpAnswer {
    response: Response<Incoming>,
    meter: Arc<Meter>,
}

impl Drop for HttpAnswer {
    fn drop(&mut self) {
        if let Some(count) = self.count() {
            count.settle();
        }
    }
}

impl HttpAnswer {
    pub fn new(response: Response<Incoming>, meter: Arc<Meter>) -> HttpAnswer {
        let answer = HttpAnswer { response, meter };
        if let Some(count) = answer.count() {
            count.begin_body();
        }
        answer
    }

    pub fn count(&self) -> Option<&Arc<Count>> {
        self.response.extensions().get()
    }

    /// Whether the address that it came from was of use.
    pub fn judge(&self, useful: bool) {
        if let Some(count) = self.count() {
            count.judge(useful);
        }
    }

    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next bytes of the body; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        while let Some(frame) = self.response.body_mut().frame().await {
            if let Some(bytes) = frame?.into_data().ok().filter(|bytes| !bytes.is_empty()) {
                if let Some(count) = self.count() {
                    count.used(bytes.len() as u64);
                }
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Nobody wants its body.
    pub fn refuse(self) {
        let coming = self.response.body().size_hint().upper();
        let here = self.count().map_or(0, |count| count.settle());
        let coming = coming.unwrap_or(ON_ITS_WAY).saturating_sub(here).min(ON_ITS_WAY);
        self.meter.waste(coming);
    }

    /// It is given up for a reason that is not the server's: what lies in the buffer is not held against it.
    pub fn leave(self) {
        if let Some(count) = self.count() {
            count.forgive();
        }
    }

    pub fn code(&self) -> u16 {
        self.status().as_u16()
    }
}

#[derive(Debug)]
pub struct Content {
    /// One after the last byte that it brings, if that is before the end of what was asked for.
    pub after: u64,
    pub version: Version,
}

/// What `answer` to a request of `start..end` brings. `link`: what the update was called with.
pub fn judge(
    answer: &HttpAnswer,
    (link, clock): (&Url, &Clock),
    shown: &str,
    start: u64,
    end: u64,
) -> Result<Content, Trouble> {
    let (url, status) = (shown.to_owned(), answer.code());
    let odd = |reason: String| Trouble::Doubtful(StageError::Download { url: url.clone(), reason });
    match answer.status() {
        StatusCode::PARTIAL_CONTENT => part(answer.headers(), start, end).map_err(odd),
        StatusCode::OK => Err(odd("the server ignores byte ranges, which this update needs".into())),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(match expired(link, answer.headers(), clock) {
                Some(at) => Trouble::Expired(StageError::Expired { url, status, at }),
                None => Trouble::Doubtful(StageError::Forbidden { url, status }),
            })
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            let reason = format!("the server answered {status}");
            Err(Trouble::Doubtful(StageError::NotFound { url, reason }))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(busy(answer)),
        status if status.is_server_error() => Err(busy(answer)),
        StatusCode::RANGE_NOT_SATISFIABLE => {
            Err(odd("the file is shorter than a bundle of its kind must be (416)".into()))
        }
        _ => Err(odd(format!("the server answered {status}"))),
    }
}

/// A 206 is taken if it begins where it was asked to, and is not packed. It may bring less.
fn part(headers: &HeaderMap, start: u64, end: u64) -> Result<Content, String> {
    if let Some(coding) = headers.get_all(header::CONTENT_ENCODING).iter().find(|value| !is_plain(value)) {
        let coding = String::from_utf8_lossy(coding.as_bytes()).chars().take(20).collect::<String>();
        return Err(format!("the server packed a byte range ({coding}) although asked not to"));
    }
    let text = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some((first, after, size)) = content_range(text) else {
        return Err("the server answered a byte range without a valid Content-Range".into());
    };
    if first != start {
        let (last, asked) = (after.saturating_sub(1), format!("bytes {start}-{}", end.saturating_sub(1)));
        return Err(format!("the server answered bytes {first}-{last} when asked for {asked}"));
    }
    Ok(Content { after: after.min(end), version: Version::of(headers, size) })
}

/// Codings that leave the bytes as they are: none, `identity`, and the one that object stores name after an upload in
/// pieces.
fn is_plain(codings: &HeaderValue) -> bool {
    let plain = |coding: &str| {
        let coding = coding.trim();
        coding.is_empty()
            || ["identity", "aws-chunked"].iter().any(|known| coding.eq_ignore_ascii_case(known))
    };
    codings.to_str().is_ok_and(|codings| codings.split(',').all(plain))
}

/// `bytes FIRST-LAST/SIZE` (RFC 9110, 14.4) as first, one after last, and size unless it is `*`; the unit in any case,
/// with spaces where servers put them.
pub fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (unit, rest) = text.trim().split_at_checked("bytes".len())?;
    let rest = rest.strip_prefix('=').or(rest.strip_prefix(' '))?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, size) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, after) = (number(first)?, number(last)?.checked_add(1)?);
    let size = match size.trim() {
        "*" => None,
        size => Some(number(size)?),
    };
    (first < after && size.is_none_or(|size| after <= size)).then_some((first, after, size))
}

/// Digits alone: `parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn busy(answer: &HttpAnswer) -> Trouble {
    let after = retry_after(answer.headers()).unwrap_or_default();
    Trouble::Passing { reason: format!("the server answered {}", answer.code()), after }
}

/// `Retry-After` in seconds, or as a date against the server's own clock: ours may be wrong.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    if let Some(seconds) = number(text) {
        return Some(Duration::from_secs(seconds));
    }
    date(headers, header::RETRY_AFTER)?.duration_since(date(headers, header::DATE)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_as_servers_write_them() {
        for good in ["bytes 0-9/10", "Bytes 0-9/10", "BYTES  0-9/10", "bytes=0-9/10", " bytes 0 - 9 / 10 "] {
            assert_eq!(content_range(good), Some((0, 10, Some(10))), "{good}");
        }
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 10, None)));
        let max = u64::MAX;
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 9-5/10",
            "bytes 0-10/10",
            "items 0-9/10",
            "bytes0-9/10",
            "bytes 0-9",
            "bytes -1-9/10",
            "bytes +1-9/10",
            "bytes 0-+9/10",
            "bytes 1 0-19/20",
            "byt\u{e9}s 0-9/10",
            &format!("bytes 0-{max}/*"),
            &format!("bytes 0-{max}0/*"),
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn codings_that_change_nothing_are_plain() {
        let plain = |text: &'static str| is_plain(&HeaderValue::from_static(text));
        for good in ["", " ", "identity", "Identity", "IDENTITY", "aws-chunked", "AWS-Chunked, identity", ","]
        {
            assert!(plain(good), "{good:?}");
        }
        for bad in ["gzip", "br", "identity, gzip", "aws-chunked,deflate", "x"] {
            assert!(!plain(bad), "{bad:?}");
        }
    }

    fn after(lines: &[(&'static str, &str)]) -> Option<Duration> {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        retry_after(&lines.iter().map(pair).collect())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_of_the_servers_clock() {
        assert_eq!(after(&[("retry-after", "120")]), Some(Duration::from_secs(120)));
        let then = ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT");
        for now in
            ["Sun, 06 Nov 1994 08:49:07 GMT", "Sunday, 06-Nov-94 08:49:07 GMT", "Sun Nov  6 08:49:07 1994"]
        {
            assert_eq!(after(&[then, ("date", now)]), Some(Duration::from_secs(30)), "{now}");
        }
        // In the past, without the server's clock, or nonsense: no wish.
        assert_eq!(after(&[then, ("date", "Sun, 06 Nov 1994 08:50:07 GMT")]), None);
        assert_eq!(after(&[then]), None);
        for nonsense in ["soon", "", "-5", "+5", "1e9", "99999999999999999999", "1.5"] {
            assert_eq!(after(&[("retry-after", nonsense)]), None, "{nonsense}");
        }
    }

    #[test]
    fn dates_of_nested_comments_are_no_dates() {
        let nested = format!("{}Sun, 06 Nov 1994 08:49:37 GMT{}", "(".repeat(30_000), ")".repeat(30_000));
        assert_eq!(after(&[("retry-after", &nested), ("date", "Sun, 06 Nov 1994 08:49:07 GMT")]), None);
        assert_eq!(after(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), ("date", &nested)]), None);
    }
}
