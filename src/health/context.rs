//! What the checks are told: the slot on trial, the machine before it, and whom to ask.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::systemd::Systemd;
use crate::slot::Slot;

/// What is on trial, and how the machine was before.
#[derive(Debug, Clone)]
pub struct Context {
    pub slot: Slot,
    pub version: String,
    pub operation: String,
    /// The units that had failed before the update, from [`Systemd::failed_units`]; `None`: not known, and so new
    /// failures can't be told from old ones and are not judged.
    pub baseline: Option<BTreeSet<String>>,
    pub systemd: Systemd,
    /// `None`: nothing is known that could be asked.
    pub next_update: Option<NextUpdate>,
}

/// Asks whether the image on trial could take the next update: the question and the sentence if it could not. It
/// blocks.
#[derive(Clone)]
pub struct NextUpdate(pub(super) Arc<dyn Fn() -> Option<(String, String)> + Send + Sync>);

impl NextUpdate {
    pub fn new(ask: impl Fn() -> Option<(String, String)> + Send + Sync + 'static) -> NextUpdate {
        NextUpdate(Arc::new(ask))
    }
}

impl std::fmt::Debug for NextUpdate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NextUpdate")
    }
}
