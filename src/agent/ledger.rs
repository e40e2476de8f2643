//! The ledger: the record as it was decided, and as the medium holds it. Only what is saved is told.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff;
use crate::clock::Clock;
use crate::failure::Failure;
use crate::machine::{RECORD_VERSION, Record, SavedProgress};
use crate::store::Store;
use crate::uri::PackageUri;

/// Shortest and longest pause before a record that could not be saved is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

pub struct Ledger {
    store: Arc<Mutex<Store>>,
    clock: Clock,
    record: Record,
    /// The record as the medium holds it.
    saved: Record,
    /// Why the record could not be saved, while it cannot.
    unsaved: Option<Failure>,
    /// How often it failed in a row, and when it did last.
    failures: (u32, Instant),
}

impl Ledger {
    /// Errors only when another agent holds the state: what cannot be read is as good as no record, and the boot
    /// environment decides. Blocks.
    pub fn open(dir: &Path, clock: Clock) -> Result<Ledger, Failure> {
        let store = Store::open(dir)?;
        let mut record = match store.load::<Record>() {
            Ok(found) => found.unwrap_or_else(|| Record { fresh: true, ..Record::default() }),
            Err(error) => {
                tracing::error!("starting from the boot environment alone: {error}");
                Record::default()
            }
        };
        record.fit();
        clock.remember(record.synchronised_time);
        let (store, saved) = (Arc::new(Mutex::new(store)), record.clone());
        Ok(Ledger { store, clock, record, saved, unsaved: None, failures: (0, Instant::now()) })
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    pub fn saved(&self) -> &Record {
        &self.saved
    }

    pub fn unsaved(&self) -> Option<&Failure> {
        self.unsaved.as_ref()
    }

    /// The record is this one from now on; returns the one before.
    pub fn replace(&mut self, record: Record) -> Record {
        std::mem::replace(&mut self.record, record)
    }

    /// How far the operation that runs has come: bytes received, and what was staged.
    pub fn note(&mut self, spent: u64, staged: Option<SavedProgress>) {
        if !self.record.phase.is_idle() {
            self.record.downloaded = spent.max(self.record.downloaded);
            self.record.progress = staged.unwrap_or(self.record.progress);
        }
    }

    /// The operation that runs goes on with a new token for its package; false: that is none.
    pub fn renew_token(&mut self, uri: PackageUri) -> bool {
        match self.record.phase.operation_mut() {
            Some(running) if running.uri != uri && running.uri.is_same_package(&uri) => running.uri = uri,
            _ => return false,
        }
        true
    }

    /// Writes what the medium lacks, in both copies, one after the other, so that the loss of either loses nothing; blocks.
    /// `None`: it lacks nothing.
    pub fn draft(&mut self) -> Option<impl FnOnce() -> Result<(), Failure> + use<>> {
        self.record.synchronised_time = self.clock.worth_saving(self.record.synchronised_time);
        self.record.version = self.record.version.max(RECORD_VERSION);
        self.record.fit();
        let same =
            Record { synchronised_time: self.saved.synchronised_time, ..self.record.clone() } == self.saved;
        if same && !self.must_save_time() && self.unsaved.is_none() {
            return None;
        }
        let (store, record) = (self.store.clone(), self.record.clone());
        Some(move || {
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            (0..2).try_for_each(|_| store.save(&record)).map_err(Failure::from)
        })
    }

    /// What came of the draft that was made last.
    pub fn written(&mut self, outcome: &Result<(), Failure>) {
        self.unsaved = outcome.as_ref().err().cloned();
        if self.unsaved.is_some() {
            self.failures = (self.failures.0.saturating_add(1), Instant::now());
            return;
        }
        self.saved = self.record.clone();
        self.clock.remember(self.saved.synchronised_time);
        self.failures.0 = 0;
    }

    /// How soon it is to be tried again; `None`: all is saved.
    pub fn pace(&self) -> Option<Duration> {
        let pause = || backoff::ceiling(RETRY.0, self.failures.0, RETRY.1);
        self.unsaved.as_ref().map(|_| pause())
    }

    pub fn is_due(&self) -> bool {
        self.pace().is_some_and(|pause| self.failures.1.elapsed() >= pause)
    }

    /// The saved time is one that no power cut may bring back.
    pub fn must_save_time(&self) -> bool {
        self.clock.must_save(self.saved.synchronised_time)
    }
}
