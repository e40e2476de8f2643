//! What the threads of one staging share.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::stage::error::StageError;
use crate::stage::progress::Progress;
use crate::stage::sources::seed::Seed;
use crate::stage::stored::StoredIndex;

#[derive(Debug)]
pub struct Shared {
    /// The bundle's name, for messages.
    pub name: String,
    pub index: Arc<StoredIndex>,
    pub seed: Option<Seed>,
    /// Bytes of the longest group.
    pub group: usize,
    pub progress: watch::Sender<Progress>,
    pub cancel: CancellationToken,
}

impl Shared {
    /// So many bytes were received by now.
    pub fn downloaded(&self, spent: u64) {
        self.progress.send_modify(|p| p.downloaded = spent);
    }

    pub fn check_cancelled(&self) -> Result<(), StageError> {
        if self.cancel.is_cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
    }
}
