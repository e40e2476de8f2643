//! A bundle on a web server or in a file, to be read by ranges, and the rules for reaching it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use url::Url;

use crate::clock::Clock;
use crate::config::Download;
use crate::manifest::Digest;
use crate::stage::download::budget::Meter;
use crate::stage::download::doubt::{Doubt, Verdict};
use crate::stage::download::hosts::Hosts;
use crate::stage::download::range::Range;
use crate::stage::download::web::{Seen, Web};
use crate::stage::download::windows::Gate;
use crate::stage::error::StageError;
use crate::uri::shown;

/// Pauses between attempts: drawn between nothing and a bound that starts here, doubles, and ends there.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// So often another node is asked, where one does not have the version that another has, before digests alone decide.
const STALE: u32 = 16;
/// A connection that is silent for so long may be one of a network that the gateway has left.
const LOOK: Duration = Duration::from_secs(1);

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
            Source::Http(url) => f.write_str(&shown(url)),
            Source::File(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The rules for fetching; made once.
#[derive(Clone)]
pub struct Http {
    pub(in crate::stage) tls: Arc<rustls::ClientConfig>,
    pub(in crate::stage) hosts: Arc<Hosts>,
    pub(in crate::stage) download: Download,
    pub(in crate::stage) gate: Gate,
    /// By which certificates were judged.
    pub(in crate::stage) clock: Clock,
    pub(in crate::stage) first_pause: Duration,
    pub(in crate::stage) look: Duration,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("hosts", &self.hosts)
            .field("download", &self.download)
            .finish_non_exhaustive()
    }
}

impl Http {
    /// `tls` says whom to trust as a server; `allowed_hosts` is `trust.allowed_hosts`.
    pub fn new(tls: rustls::ClientConfig, allowed_hosts: &[String], download: Download) -> Http {
        let hosts = Arc::new(Hosts::new(allowed_hosts, download.proxy.clone()));
        let gate = Gate::new(download.windows.clone());
        let (tls, clock) = (Arc::new(tls), Clock::default());
        Http { tls, hosts, download, gate, clock, first_pause: FIRST_PAUSE, look: LOOK }
    }

    /// The same by another clock than the system's: windows open and close with it.
    pub fn on(mut self, clock: Clock) -> Http {
        self.gate.set_clock(clock.clone());
        self.clock = clock;
        self
    }

    /// Says why `url` may not be fetched, as far as its name tells.
    pub fn allows(&self, url: &Url) -> Result<(), String> {
        self.hosts.check(url)
    }
    /// The address of the proxy on the way to `url`, if there is one: for messages.
    pub(in crate::stage) fn proxy(&self, url: &Url) -> Option<String> {
        let via = self.download.proxy.to(url.host_str()?, url.port_or_known_default()?)?;
        Some(via.address())
    }

    /// How long an answer is doubted: at most half of the patience, so that it is told for what it is.
    pub(in crate::stage) fn doubt(&self) -> Duration {
        self.download.final_after.min(self.download.patience.checked_div(2).unwrap_or_default())
    }

    /// A pause before the attempt after so many in vain.
    pub(in crate::stage) fn pause(&self, attempts: u32) -> Duration {
        let bound = self.first_pause.saturating_mul(1u32 << attempts.min(20)).min(LONGEST_PAUSE);
        bound.mul_f64(fastrand::f64())
    }
}

/// One bundle, opened for reading by ranges.
#[derive(Debug)]
pub(in crate::stage) struct Remote {
    name: String,
    pub kind: Kind,
    meter: Arc<Meter>,
}

#[derive(Debug)]
pub(in crate::stage) enum Kind {
    File { file: Arc<File>, size: u64 },
    Http(Box<Web>),
}

impl Remote {
    /// Opens a file; a URL is only checked.
    pub async fn new(source: Source, http: &Http, meter: Arc<Meter>) -> Result<Remote, StageError> {
        let name = source.to_string();
        let kind = match source {
            Source::File(path) => {
                let opened = tokio::task::spawn_blocking(move || open_file(&path)).await;
                opened.map_err(|error| StageError::Thread(error.to_string()))??
            }
            Source::Http(url) => {
                let reason = http.hosts.check(&url);
                reason.map_err(|reason| StageError::NotPermitted { url: name.clone(), reason })?;
                Kind::Http(Box::new(Web::new(http.clone(), url, meter.clone())))
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
            Kind::Http(web) => web.size.get().copied().or_else(|| web.seen().known?.size),
        }
    }

    /// Reads bytes `start..end`, all into memory: for spans that a cap or a signature bounds. Fewer come only
    /// if the bundle ends before.
    pub async fn read(&self, start: u64, end: u64) -> Result<Vec<u8>, StageError> {
        self.range(start, end).read().await
    }

    /// The same at any time, also outside the windows for downloads.
    pub async fn read_at_once(&self, start: u64, end: u64) -> Result<Vec<u8>, StageError> {
        self.range(start, end).ungated().read().await
    }

    /// The bytes `start..end`, as they arrive.
    pub fn range(&self, start: u64, end: u64) -> Range<'_> {
        Range::new(self, start, end)
    }

    /// Remembers the verified first bytes and the size of the bundle: should servers tell another version of it, reading
    /// goes on only if it still begins with them.
    pub fn remember(&self, head: &[u8], size: u64) {
        if let Kind::Http(web) = &self.kind {
            *web.head.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((head.len() as u64, Digest::of(head)));
            web.size.set(size).ok();
        }
    }

    /// Called when the version of generation `stale` is told no more: goes on with what is told now, if the bundle begins
    /// as it did. Where that happens again, servers of one name tell versions apart that are none.
    pub async fn renew(&self, web: &Web, stale: u32) -> Result<(), StageError> {
        let _one_at_a_time = web.renewal.lock().await;
        let seen = web.seen();
        if seen.generation != stale {
            return Ok(());
        }
        let (is_same, known) = self.begins_as_before(web).await?;
        let renewals = web.renewals.fetch_add(1, Ordering::Relaxed);
        let both = seen.known.as_ref().zip(known.as_ref());
        // The version is still there: it was a stale node that does not have it.
        let is_elsewhere = renewals < STALE && both.is_some_and(|(seen, known)| seen.has_tag_of(known));
        if !is_same || is_elsewhere {
            return Err(StageError::Changed { url: self.name.clone() });
        }
        let unguarded = renewals > 0;
        web.set_seen(Seen { generation: stale.wrapping_add(1), known, unguarded });
        Ok(())
    }

    /// Whether the bundle begins with the bytes that were verified, and what its server calls it.
    async fn begins_as_before(
        &self,
        web: &Web,
    ) -> Result<(bool, Option<crate::stage::download::answer::Version>), StageError> {
        let known = *web.head.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((length, digest)) = known else { return Ok((false, None)) };
        let mut range = self.range(0, length).ungated().unguarded();
        let head = range.read_on().await?;
        Ok((Digest::of(&head) == digest, range.version()))
    }

    /// Attempts what needs bytes that a signature or a digest vouches for, until they are right or others, too, bring
    /// wrong ones.
    pub async fn insist<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, StageError>
    where
        F: Future<Output = Result<T, StageError>>,
    {
        use StageError::{Bundle, Changed, Manifest, Pin};
        let mut wrong = Wrong::new(self);
        loop {
            match attempt().await {
                Err(error @ (Bundle { .. } | Manifest { .. } | Pin { .. })) => wrong.again(error).await?,
                Err(error @ Changed { .. }) if !self.is_verified() => wrong.again(error).await?,
                done => return done,
            }
        }
    }

    pub(in crate::stage) fn is_verified(&self) -> bool {
        matches!(&self.kind, Kind::Http(web) if web.is_verified())
    }

    pub(in crate::stage) fn failed(&self, reason: impl Into<String>) -> StageError {
        StageError::Download { url: self.name.clone(), reason: reason.into() }
    }
}

/// What came was not what was signed.
#[derive(Debug)]
pub(in crate::stage) struct Wrong<'a> {
    remote: &'a Remote,
    doubt: Doubt,
    attempts: u32,
}

impl Drop for Wrong<'_> {
    /// What was said to be waited for is here, or will never be.
    fn drop(&mut self) {
        if self.attempts > 0 {
            self.remote.meter.wait_for(None);
        }
    }
}

impl<'a> Wrong<'a> {
    pub fn new(remote: &'a Remote) -> Wrong<'a> {
        Wrong { remote, doubt: Doubt::default(), attempts: 0 }
    }

    /// Less is wrong than before.
    pub fn is_less(&mut self) {
        self.doubt.clear();
    }

    /// Waits, and says so, before the bytes are fetched once more, over another connection; an error once that is of no
    /// use.
    pub async fn again(&mut self, error: StageError) -> Result<(), StageError> {
        let Remote { name, kind, meter } = self.remote;
        let Kind::Http(web) = kind else { return Err(error) };
        let number = web.number();
        let (error, left) = match self.doubt.weigh(error, number, web.http.doubt()) {
            Verdict::Final(error) => return Err(self.remote.blame(web, error).await),
            Verdict::Again(error, left) => (error, left),
        };
        meter.afford(0)?;
        web.elsewhere(number);
        if !web.is_verified() {
            web.forget(matches!(error, StageError::Changed { .. }));
        }
        let pause = web.http.pause(self.attempts).min(left);
        let reason = error.to_string();
        meter.wait_for(Some(&format!("{reason}; asked again, for one answer is not final")));
        tracing::warn!(url = name, reason, pause_ms = pause.as_millis() as u64, "fetched again");
        self.attempts = self.attempts.saturating_add(1);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Remote {
    /// Wrong bytes are those of another bundle, if it begins otherwise by now.
    async fn blame(&self, web: &Web, error: StageError) -> StageError {
        if !web.is_verified() {
            return error;
        }
        let limit = web.http.doubt().max(web.http.download.stall_timeout);
        match tokio::time::timeout(limit, self.begins_as_before(web)).await {
            Ok(Ok((false, _))) => StageError::Changed { url: self.name.clone() },
            _ => error,
        }
    }
}

/// Only a regular file is opened: others may block, or do something.
fn open_file(path: &Path) -> Result<Kind, StageError> {
    let failed = |error: io::Error| {
        let (url, reason) = (path.display().to_string(), error.to_string());
        match error.kind() {
            io::ErrorKind::NotFound => StageError::NotFound { url, reason },
            // The agent has a user of its own.
            io::ErrorKind::PermissionDenied => {
                let reason = format!("{reason}: the user that the agent runs as must be able to read it");
                StageError::Download { url, reason }
            }
            _ => StageError::Download { url, reason },
        }
    };
    let regular = |metadata: std::fs::Metadata| match metadata.is_file() {
        true => Ok(metadata.len()),
        false => {
            Err(failed(io::Error::other(format!("it is {}, and a bundle is a file", kind_of(&metadata)))))
        }
    };
    regular(std::fs::metadata(path).map_err(failed)?)?;
    // Between the two looks it may have become something else.
    let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
    let size = regular(file.metadata().map_err(failed)?)?;
    Ok(Kind::File { size, file: Arc::new(file) })
}

fn kind_of(metadata: &std::fs::Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "no regular file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_source_has_no_secrets() {
        let source = Source::Http("https://h.example/b?sig=s3cret".parse().unwrap());
        assert!(!format!("{source} {source:?}").contains("s3cret"));
    }
}
