//! What reads a web server's headers and the maps of slots, for the fuzzer (tests/fuzz): whether they were understood.

use std::path::Path;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use url::Url;

use crate::clock::Clock;
use crate::manifest::Chunking;
use crate::stage::download::{answer, expiry};
use crate::stage::sources::maps;

/// Header lines of an answer to a request for a range.
pub fn headers(lines: &str) -> bool {
    let pair = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value.trim()).ok()?))
    };
    let headers: HeaderMap = lines.lines().filter_map(pair).collect();
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let range = range.and_then(answer::content_range);
    assert!(range.is_none_or(|(first, after, size)| first < after && size.is_none_or(|size| after <= size)));
    let links = [
        "https://host/fw?se=2026-01-01T00:00:00Z",
        "https://host/fw?X-Amz-Date=20260101T000000Z&X-Amz-Expires=9",
    ];
    for link in links.iter().filter_map(|link| Url::parse(link).ok()) {
        tracing::trace!(expired = ?expiry::expired(&link, &headers, &Clock::default()));
    }
    answer::retry_after(&headers).is_some() || range.is_some()
}

/// The chunks of the map at `path`.
pub fn chunk_map(path: &Path, rules: &Chunking) -> Option<usize> {
    let mut chunks = 0usize;
    maps::read(path, rules, |_, _| chunks = chunks.saturating_add(1)).then_some(chunks)
}
