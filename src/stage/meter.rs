//! What an operation spends: body bytes on the wire, counted against its data budget and paced; and what its fetch
//! waits for, while only a person can provide it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::StageError;

/// Counts the body bytes of one operation against its budget, and paces them.
#[derive(Debug)]
pub struct Meter {
    spent: AtomicU64,
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
        Meter { spent: AtomicU64::new(spent), limit, rate, free_at, waiting }
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

    /// What somebody has to do before the fetch can go on, as a sentence; `None` while it goes on by itself.
    pub fn waiting(&self) -> Option<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn wait_for(&self, what: Option<&str>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = what.map(str::to_owned);
    }

    pub(super) async fn count(&self, received: u64) {
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
