//! What the threads of one staging share.

use std::sync::Arc;

use tokio::sync::watch;

use crate::stage::buffer::Pool;
use crate::stage::progress::Progress;
use crate::stage::sources::seed::Seed;
use crate::stage::stored::StoredIndex;

/// What all threads share.
#[derive(Debug)]
pub struct Shared {
    /// The bundle's name, for messages.
    pub name: String,
    pub index: Arc<StoredIndex>,
    pub seed: Option<Seed>,
    /// Bytes of the longest group.
    pub group: usize,
    pub buffers: Pool,
    pub progress: watch::Sender<Progress>,
}
