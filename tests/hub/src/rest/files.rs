//! `/files/`: a static file server with byte ranges and strong etags (RFC 9110), and the faults that a test wants.
//!
//! It asks for no authorisation, as a blob store asks for none beyond what is in the URL.

use std::future::pending;
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{Peer, Scissors};
use crate::core::Core;
use crate::error::{HubError, Kind};
use crate::faults::{FileEffect, Served};

const CHUNK: usize = 64 * 1024;

/// Answers GET and HEAD.
pub async fn serve(
    State(core): State<Arc<Core>>,
    Extension(peer): Extension<Peer>,
    Path(path): Path<String>,
    request: Request,
) -> Response {
    let effect = core.faults.on_file(&path);
    let asked = Asked { core, path, effect, scissors: peer.scissors };
    if let Some(response) = asked.effect.as_ref().and_then(instead) {
        asked.note(response.status(), 0, 0);
        return response;
    }
    match open(&asked.core, &asked.path).await {
        Ok(found) => asked.answer(&request, found),
        Err(error) => {
            asked.note(StatusCode::NOT_FOUND, 0, 0);
            error.into_response()
        }
    }
}

/// A request of a file, and what shall go wrong with it.
struct Asked {
    core: Arc<Core>,
    /// Below `/files/`.
    path: String,
    effect: Option<FileEffect>,
    scissors: Scissors,
}

struct Found {
    file: File,
    size: u64,
    /// With its quotes.
    etag: String,
}

fn instead(effect: &FileEffect) -> Option<Response> {
    match effect {
        FileEffect::Status { status } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Some((status, "a fault that was asked for\n").into_response())
        }
        FileEffect::Redirect { to } => {
            Some((StatusCode::FOUND, [(header::LOCATION, to.clone())]).into_response())
        }
        _ => None,
    }
}

/// A regular file inside the folder.
async fn open(core: &Core, path: &str) -> Result<Found, HubError> {
    let missing =
        || HubError::new(Kind::NotFound, format!("there is no file {path:?} in the folder that is served"));
    let folder = core
        .www
        .as_ref()
        .ok_or_else(|| HubError::new(Kind::NotFound, "no folder is served: use --www FOLDER"))?;
    let folder = tokio::fs::canonicalize(folder).await.map_err(|_| missing())?;
    let inside = tokio::fs::canonicalize(folder.join(path)).await.map_err(|_| missing())?;
    if !inside.starts_with(&folder) {
        return Err(missing());
    }
    let file = File::open(&inside).await.map_err(|_| missing())?;
    let metadata = file.metadata().await.map_err(|_| missing())?;
    if !metadata.is_file() {
        return Err(missing());
    }
    let (size, seconds, nanoseconds) = (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    let etag = format!("\"{:x}-{size:x}-{seconds:x}.{nanoseconds:x}\"", metadata.ino());
    Ok(Found { file, size, etag })
}

impl Asked {
    fn answer(self, request: &Request, Found { file, size, etag }: Found) -> Response {
        let headers = request.headers();
        let size = match self.effect {
            Some(FileEffect::Truncate { length }) => size.min(length),
            _ => size,
        };
        let common = [
            (header::ETAG, etag.clone()),
            (header::ACCEPT_RANGES, "bytes".to_owned()),
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        ];
        if let Some(status) = precondition(headers, &etag) {
            self.note(status, 0, 0);
            return (status, common).into_response();
        }
        let whole = self.effect == Some(FileEffect::NoRanges);
        match if whole { Wanted::Whole } else { wanted(headers, &etag, size) } {
            Wanted::Whole => (common, self.content(request, StatusCode::OK, file, 0, size)).into_response(),
            Wanted::Part { offset, length } => {
                let range = format!("bytes {offset}-{}/{size}", offset + length - 1);
                let content = self.content(request, StatusCode::PARTIAL_CONTENT, file, offset, length);
                (common, [(header::CONTENT_RANGE, range)], content).into_response()
            }
            Wanted::Unsatisfiable => {
                self.note(StatusCode::RANGE_NOT_SATISFIABLE, 0, 0);
                let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
                (StatusCode::RANGE_NOT_SATISFIABLE, common, range).into_response()
            }
        }
    }

    /// Status, length and body; HEAD gets no body.
    fn content(
        self,
        request: &Request,
        status: StatusCode,
        file: File,
        offset: u64,
        length: u64,
    ) -> Response {
        self.note(status, offset, length);
        let body = if request.method() == Method::HEAD {
            Body::empty()
        } else {
            Body::from_stream(
                Sending { asked: self, file, position: offset, left: length, sent: 0 }.into_stream(),
            )
        };
        (status, [(header::CONTENT_LENGTH, length.to_string())], body).into_response()
    }

    fn note(&self, status: StatusCode, offset: u64, length: u64) {
        let served = Served { path: self.path.clone(), status: status.as_u16(), offset, length };
        self.core.faults.served(served);
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn lists(value: &str, etag: &str) -> bool {
    value.split(',').map(str::trim).any(|item| item == "*" || item == etag)
}

/// If-Match comes first, then If-None-Match (RFC 9110, 13.2.2).
fn precondition(headers: &HeaderMap, etag: &str) -> Option<StatusCode> {
    if text(headers, header::IF_MATCH).is_some_and(|value| !lists(value, etag)) {
        return Some(StatusCode::PRECONDITION_FAILED);
    }
    let unchanged = |value: &str| lists(&value.replace("W/", ""), etag);
    text(headers, header::IF_NONE_MATCH).is_some_and(unchanged).then_some(StatusCode::NOT_MODIFIED)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part { offset: u64, length: u64 },
    Unsatisfiable,
}

/// Several ranges at once, or a header that makes no sense, are answered with the whole file, as RFC 9110 allows.
fn wanted(headers: &HeaderMap, etag: &str, size: u64) -> Wanted {
    if text(headers, header::IF_RANGE).is_some_and(|value| value.trim() != etag) {
        return Wanted::Whole;
    }
    text(headers, header::RANGE).and_then(|range| parse_range(range, size)).unwrap_or(Wanted::Whole)
}

fn parse_range(range: &str, size: u64) -> Option<Wanted> {
    let (first, last) = range.trim().strip_prefix("bytes=")?.trim().split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    if first.is_empty() {
        let length = number(last)?.min(size);
        let part = Wanted::Part { offset: size - length, length };
        return Some(if length == 0 { Wanted::Unsatisfiable } else { part });
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    if first >= size {
        return Some(Wanted::Unsatisfiable);
    }
    Some(Wanted::Part { offset: first, length: last.min(size - 1) - first + 1 })
}

/// What a body has yet to send.
struct Sending {
    asked: Asked,
    file: File,
    /// In the file.
    position: u64,
    left: u64,
    sent: u64,
}

impl Sending {
    fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> {
        stream::try_unfold(self, |mut sending| async move {
            let chunk = sending.next().await?;
            Ok(chunk.map(|chunk| (chunk, sending)))
        })
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let allowed = self.allowed().await.min(self.left);
        let mut chunk = BytesMut::zeroed(usize::try_from(allowed).unwrap_or(CHUNK).min(CHUNK));
        if self.sent == 0 {
            self.file.seek(SeekFrom::Start(self.position)).await?;
        }
        self.file.read_exact(&mut chunk).await?;
        if let Some(FileEffect::Flip { offset }) = self.asked.effect {
            let place = offset.checked_sub(self.position).and_then(|place| usize::try_from(place).ok());
            if let Some(byte) = place.and_then(|place| chunk.get_mut(place)) {
                *byte = !*byte;
            }
        }
        let length = chunk.len() as u64;
        self.position += length;
        self.left -= length;
        self.sent += length;
        self.asked.core.faults.sent(&self.asked.path, length);
        Ok(Some(chunk.freeze()))
    }

    /// How much may be sent before a fault strikes; when it has struck, this never returns.
    async fn allowed(&self) -> u64 {
        match self.asked.effect {
            Some(FileEffect::Drop { after }) if self.sent >= after => {
                self.asked.scissors.cut();
                pending().await
            }
            Some(FileEffect::Stall { after }) if self.sent >= after => pending().await,
            Some(FileEffect::Hold { after }) if self.sent >= after => {
                self.asked.core.faults.released(&self.asked.path).await;
                u64::MAX
            }
            Some(FileEffect::Drop { after } | FileEffect::Stall { after } | FileEffect::Hold { after }) => {
                after - self.sent
            }
            _ => u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |offset, length| Some(Wanted::Part { offset, length });
        assert_eq!(parse_range("bytes=0-9", 100), part(0, 10));
        assert_eq!(parse_range("bytes=90-", 100), part(90, 10));
        assert_eq!(parse_range("bytes=90-1000", 100), part(90, 10));
        assert_eq!(parse_range("bytes=-10", 100), part(90, 10));
        assert_eq!(parse_range("bytes=-1000", 100), part(0, 100));
        assert_eq!(parse_range("bytes=100-", 100), Some(Wanted::Unsatisfiable));
        assert_eq!(parse_range("bytes=-0", 100), Some(Wanted::Unsatisfiable));
        assert_eq!(parse_range("bytes=0-", 0), Some(Wanted::Unsatisfiable));
        for nonsense in
            ["bytes=9-0", "bytes=a-b", "bytes=+1-2", "lines=0-9", "bytes=0-1,3-4", "bytes=", "bytes=-"]
        {
            assert_eq!(parse_range(nonsense, 100), None, "{nonsense}");
        }
    }

    #[test]
    fn preconditions() {
        let check = |name: &'static str, value: &str| {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
            precondition(&headers, "\"a\"").map(|status| status.as_u16())
        };
        assert_eq!(check("if-match", "\"a\""), None);
        assert_eq!(check("if-match", "\"b\", \"a\""), None);
        assert_eq!(check("if-match", "*"), None);
        assert_eq!(check("if-match", "\"b\""), Some(412));
        assert_eq!(check("if-match", "W/\"a\""), Some(412));
        assert_eq!(check("if-none-match", "W/\"a\""), Some(304));
    }
}
