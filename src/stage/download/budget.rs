//! What an operation spends: bytes on the wire, counted against its data budget and paced; and what its fetch waits
//! for.
//!
//! What an honest server sends beside a body (headers, a refusal now and then) is a share of a percent, and a budget is
//! made from the sizes of files. So a small share is free; beyond it every byte that comes is counted, used or not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::stage::error::StageError;

/// Bytes beside the bodies that are free, and the share of the bodies that is free on top, as one part in so many.
const FREE: u64 = 16 * 1024;
const FREE_SHARE: u64 = 16;

/// Counts the bytes of one operation against its budget, and paces them.
#[derive(Debug)]
pub struct Meter {
    /// Those of bodies that are used.
    body: AtomicU64,
    /// All others: headers, refused answers, what comes in vain.
    wasted: AtomicU64,
    limit: Option<u64>,
    rate: Option<u64>,
    /// When the next body byte may be read under `rate`.
    free_at: Mutex<Option<Instant>>,
    waiting: Mutex<Option<String>>,
}

impl Meter {
    /// `spent`: what earlier runs of this operation received. `limit`: its data budget. `rate`: bytes per
    /// second.
    pub fn new(spent: u64, limit: Option<u64>, rate: Option<u64>) -> Meter {
        let (free_at, waiting) = Default::default();
        Meter { body: spent.into(), wasted: 0.into(), limit, rate, free_at, waiting }
    }

    /// Bytes received so far, earlier runs included: of bodies, and of all else what is more than is free.
    pub fn spent(&self) -> u64 {
        let body = self.body.load(Ordering::Relaxed);
        let free = FREE.saturating_add(body / FREE_SHARE);
        body.saturating_add(self.wasted.load(Ordering::Relaxed).saturating_sub(free))
    }

    /// Counts what came and was of no use.
    pub(in crate::stage) fn waste(&self, received: u64) {
        self.wasted.fetch_add(received, Ordering::Relaxed);
    }

    /// The fewest bytes a second that can be asked of a server under this pace.
    pub(in crate::stage) fn least(&self, wanted: u64) -> u64 {
        self.rate.map_or(wanted, |rate| wanted.min(rate / 2)).max(1)
    }

    /// Refuses a fetch of `more` bytes that the budget does not cover.
    pub fn afford(&self, more: u64) -> Result<(), StageError> {
        let need = self.spent().saturating_add(more);
        match self.limit {
            Some(limit) if need > limit => Err(StageError::Budget { need, limit }),
            _ => Ok(()),
        }
    }

    /// What somebody has to do before the fetch can go on, as a sentence; `None` while it goes on by itself.
    pub fn waiting(&self) -> Option<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(in crate::stage) fn wait_for(&self, what: Option<&str>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = what.map(str::to_owned);
    }

    pub(in crate::stage) async fn count(&self, received: u64) {
        self.body.fetch_add(received, Ordering::Relaxed);
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else { return };
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let start = free_at.map_or(Instant::now(), |at| at.max(Instant::now()));
            let takes = Duration::try_from_secs_f64(received as f64 / rate as f64).unwrap_or(Duration::MAX);
            *free_at.insert(clock::after(start, takes))
        };
        tokio::time::sleep_until(until).await;
    }
}
