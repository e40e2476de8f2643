//! A range of a bundle on its way. It may take many connections: whatever broke is asked for again from the first byte
//! that is missing, as long as the patience lasts; a link that expired waits for a fresh one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::time::Instant;

use crate::manifest::Digest;
use crate::stage::download::answer::{HttpAnswer, Trouble, Version, passing};
use crate::stage::download::doubt::{Doubt, Flow};
use crate::stage::download::remote::{Remote, RemoteKind};
use crate::stage::download::route::Route;
use crate::stage::download::web::{LONGEST_WISH, Seen, Wanted, Web, reasons};
use crate::stage::error::{StageError, finished};

/// Read size for bundles that are local files.
const FILE_STEP: u64 = 64 * 1024;
/// What has come already is handed out together, up to so many bytes: servers may send it in crumbs.
const GATHER: usize = 64 * 1024;
/// An attempt that brings so many bytes was worth it; others make the pauses longer, so that no server can keep a
/// gateway asking.
const WORTH: u64 = 16 * 1024;

/// So often another node is asked, where one does not have the version that another has, before digests alone decide.
const STALE: u32 = 16;
impl Remote {
    /// Reads bytes `start..end`, all into memory: for spans that a cap or a signature bounds. Fewer come only
    /// if the bundle ends before.
    pub async fn read(&self, start: u64, end: u64) -> Result<Vec<u8>, StageError> {
        self.range(start, end).read().await
    }

    /// The same at any time, also outside the windows for downloads.
    pub async fn read_at_once(&self, start: u64, end: u64) -> Result<Vec<u8>, StageError> {
        RangeReader { gated: false, ..self.range(start, end) }.read().await
    }

    /// The bytes `start..end`, as they arrive.
    pub fn range(&self, start: u64, end: u64) -> RangeReader<'_> {
        RangeReader {
            remote: self,
            at: start,
            end,
            coming: None,
            doubt: Doubt::default(),
            attempts: 0,
            fresh: 0,
            waits: false,
            slow: None,
            guarded: true,
            gated: true,
            version: None,
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
            return Err(StageError::Changed { url: self.name().to_owned() });
        }
        let unguarded = renewals > 0;
        web.set_seen(Seen { generation: stale.wrapping_add(1), known, unguarded });
        Ok(())
    }

    /// Whether the bundle begins with the bytes that were verified, and what its server calls it.
    pub async fn begins_as_before(&self, web: &Web) -> Result<(bool, Option<Version>), StageError> {
        let known = *web.head.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((length, digest)) = known else { return Ok((false, None)) };
        let mut range = RangeReader { gated: false, guarded: false, ..self.range(0, length) };
        let head = range.read().await?;
        Ok((Digest::of(&head) == digest, range.version))
    }
}

pub struct RangeReader<'a> {
    remote: &'a Remote,
    at: u64,
    end: u64,
    coming: Option<Coming>,
    doubt: Doubt,
    /// Attempts in vain, one after the other.
    attempts: u32,
    /// Bytes since the latest that was not.
    fresh: u64,
    /// Something is said to be waited for.
    waits: bool,
    /// Why the rest is to be asked for over another connection.
    slow: Option<String>,
    /// False while a changed file is being looked at.
    guarded: bool,
    /// Whether it keeps to the windows for downloads.
    gated: bool,
    /// What the latest answer was of.
    version: Option<Version>,
}

/// An answer on its way.
struct Coming {
    answer: HttpAnswer,
    /// One after the last byte that it brings.
    after: u64,
    /// The way that it comes.
    route: Option<Route>,
    flow: Flow,
}

impl RangeReader<'_> {
    /// All that is left.
    async fn read(&mut self) -> Result<Vec<u8>, StageError> {
        let length = self.end.saturating_sub(self.at);
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        while let Some(part) = self.next().await? {
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    /// The next bytes, never none; `None` when the range is complete or the bundle ends.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StageError> {
        loop {
            let size = if self.guarded { self.remote.size() } else { None };
            if self.at >= size.unwrap_or(u64::MAX).min(self.end) {
                return Ok(None);
            }
            let web = match &self.remote.kind {
                RemoteKind::File { size, .. } if self.at >= *size => return Ok(None),
                RemoteKind::File { file, size } => return self.read_file(file, *size).await.map(Some),
                RemoteKind::Http(web) => web,
            };
            self.await_window(web).await;
            let received = match self.slow.take() {
                Some(reason) => Err(passing(reason)),
                None => self.receive(web).await,
            };
            match received {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => {}
                Err(trouble) => self.endure(web, trouble).await?,
            }
        }
    }

    async fn read_file(&mut self, file: &Arc<File>, size: u64) -> Result<Bytes, StageError> {
        let (file, at, end) = (file.clone(), self.at, self.end.min(size));
        let mut buffer = vec![0; end.saturating_sub(at).min(FILE_STEP) as usize];
        let read =
            tokio::task::spawn_blocking(move || Ok(file.read_exact_at(&mut buffer, at).map(|()| buffer)));
        let buffer = finished(read).await?.map_err(|error| self.remote.failed(error.to_string()))?;
        self.at = at.saturating_add(buffer.len() as u64);
        Ok(buffer.into())
    }

    /// The next bytes of the answer, which is asked for if there is none; `None` at the end of one that brought less
    /// than was asked for, and all that it promised.
    async fn receive(&mut self, web: &Web) -> Result<Option<Bytes>, Trouble> {
        let waiting = web.patience.wait();
        let mut coming = match self.coming.take() {
            Some(coming) => coming,
            None => self.ask(web).await?,
        };
        if self.at >= coming.after {
            // Bytes and promises end together, so the connection can serve again.
            coming.answer.next().now_or_never();
            return if self.fresh >= WORTH {
                Ok(None)
            } else {
                Err(passing("the server answers in small pieces"))
            };
        }
        let (least, half) = (web.least, web.http.download.stall_timeout.checked_div(2).unwrap_or_default());
        let asked = Instant::now();
        let bytes = web.patiently(coming.route, next(&mut coming.answer)).await.and_then(|bytes| bytes);
        let bytes = bytes.inspect_err(|_| coming.answer.judge(false))?;
        let slow = coming.flow.add(asked.elapsed(), bytes.len() as u64, half, least);
        drop(waiting);
        let bytes = self.take(web, bytes, coming.after).await?;
        if let Some((time, came)) = slow.filter(|_| self.at < self.end) {
            // What it brought is kept, and the rest asked for elsewhere.
            let time = time.as_secs_f32();
            let reason =
                format!("only {came} bytes came in {time} s, and download.min_rate is {least} a second");
            coming.answer.judge(false);
            self.slow = Some(reason);
            return Ok(Some(bytes));
        }
        self.coming = Some(coming);
        Ok(Some(bytes))
    }

    async fn ask(&mut self, web: &Web) -> Result<Coming, Trouble> {
        let size = self.remote.size().unwrap_or(self.at);
        self.remote.meter().afford(self.end.min(size).saturating_sub(self.at))?;
        let wanted = Wanted { start: self.at, end: self.end, guarded: self.guarded };
        let (answer, part) = web.ask(wanted).await?;
        self.version = Some(part.version);
        Ok(Coming { answer, after: part.after, route: web.route(), flow: Flow::default() })
    }

    /// Accounts for what came. What is more than was asked for is not taken.
    async fn take(&mut self, web: &Web, mut bytes: Bytes, after: u64) -> Result<Bytes, Trouble> {
        let came = bytes.len() as u64;
        bytes.truncate(usize::try_from(after.saturating_sub(self.at)).unwrap_or(usize::MAX));
        let received = bytes.len() as u64;
        self.remote.meter().waste(came.saturating_sub(received));
        if std::mem::take(&mut self.waits) {
            self.remote.meter().wait_for(None);
        }
        web.patience.earn(received);
        self.doubt.clear();
        self.at = self.at.saturating_add(received);
        self.fresh = self.fresh.saturating_add(received);
        if self.fresh >= WORTH {
            self.attempts = 0;
        }
        self.remote.meter().count(received).await;
        self.remote.meter().afford(0)?;
        Ok(bytes)
    }

    /// Lets go of the connection while the windows are closed. The patience begins anew when one opens.
    async fn await_window(&mut self, web: &Web) {
        let closed = if self.gated { web.http.gate.closed() } else { None };
        if let Some(reason) = closed {
            if let Some(coming) = self.coming.take() {
                coming.answer.leave();
            }
            web.http.gate.wait(reason, self.remote.meter()).await;
            self.attempts = 0;
            web.patience.refill();
        }
    }

    /// Waits before the next attempt; an error once there is none.
    async fn endure(&mut self, web: &Web, trouble: Trouble) -> Result<(), StageError> {
        let number = web.number();
        self.coming = None;
        self.remote.meter().afford(0)?;
        match trouble {
            Trouble::Final(error) => Err(error),
            // A call with a fresh link starts the operation's effect anew and so ends this; until then only a wrong
            // clock could make the old link good again.
            Trouble::Expired(error) => {
                let reason = error.to_string();
                self.wait_for(&reason);
                let goes_on = self.pause(web, &reason, Duration::ZERO, Duration::MAX).await;
                if goes_on { Ok(()) } else { Err(error) }
            }
            Trouble::Passing { reason, after } => {
                self.pause_or_end(web, &reason, after.min(LONGEST_WISH), Duration::MAX).await
            }
            Trouble::Doubtful(error) => self.doubt(web, error, number).await,
            Trouble::Changed(stale) => match Box::pin(self.remote.renew(web, stale)).await {
                Err(error @ StageError::Changed { .. }) if web.is_verified() => {
                    self.doubt(web, error, number).await
                }
                done => done,
            },
        }
    }

    /// Asks again elsewhere, unless that was done for long enough.
    async fn doubt(&mut self, web: &Web, error: StageError, number: u64) -> Result<(), StageError> {
        let (error, left) = self.doubt.weigh(error, number, web.http.doubt())?;
        web.elsewhere(number);
        let reason = error.to_string();
        self.wait_for(&format!("{reason}; asked again, for one answer is not final"));
        self.pause_or_end(web, &reason, Duration::ZERO, left).await
    }

    fn wait_for(&mut self, reason: &str) {
        self.waits = true;
        self.remote.meter().wait_for(Some(reason));
    }

    async fn pause_or_end(
        &mut self,
        web: &Web,
        reason: &str,
        after: Duration,
        most: Duration,
    ) -> Result<(), StageError> {
        let (least, patience) = (web.least, web.http.download.patience.as_secs_f32());
        match self.pause(web, reason, after, most).await {
            true => Ok(()),
            false => Err(self.remote.failed(format!(
                "{reason}; gave up after {patience} s without progress (less than {least} bytes a second)"
            ))),
        }
    }

    /// Waits before the next attempt, at least `after` and at most `most`; false: the patience is over.
    async fn pause(&mut self, web: &Web, reason: &str, after: Duration, most: Duration) -> bool {
        if web.patience.is_over() {
            return false;
        }
        let left = web.patience.left();
        let _waiting = web.patience.wait();
        let pause = web.http.pause(self.attempts).max(after).min(left).min(most);
        let url = self.remote.name();
        tracing::warn!(url, reason, pause_ms = pause.as_millis() as u64, "download waits");
        (self.attempts, self.fresh) = (self.attempts.saturating_add(1), 0);
        tokio::time::sleep(pause).await;
        true
    }
}

/// The next bytes of a body, and those behind them that are here already.
async fn next(answer: &mut HttpAnswer) -> Result<Bytes, Trouble> {
    let first = match answer.next().await {
        Err(error) => return Err(passing(reasons(&error))),
        Ok(None) => return Err(passing("the connection was closed before the end")),
        Ok(Some(bytes)) => bytes,
    };
    let mut gathered: Option<BytesMut> = None;
    let mut length = first.len();
    while length < GATHER {
        // An error comes again with the next call.
        let Some(Ok(Some(more))) = answer.next().now_or_never() else { break };
        length = length.saturating_add(more.len());
        gathered.get_or_insert_with(|| BytesMut::from(&*first)).extend_from_slice(&more);
    }
    Ok(gathered.map_or(first, BytesMut::freeze))
}

#[cfg(test)]
mod tests;
