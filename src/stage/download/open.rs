//! A bundle's first bytes -> a verified manifest. Nothing behind the manifest is fetched here, so that a
//! bundle that is refused costs no more than its head.

use std::sync::Arc;

use crate::bundle::{self, BundleError, FIRST_READ, HEAD_MAX, Layout};
use crate::manifest::{self, Digest, Manifest, TrustedKeys};
use crate::stage::buffer::pieces;
use crate::stage::download::budget::Meter;
use crate::stage::download::frames::Frames;
use crate::stage::download::http::{BundleSource, Http};
use crate::stage::download::remote::Remote;
use crate::stage::error::StageError;
use crate::stage::stored::StoredIndex;
use crate::stage::workspace::Workspace;

/// A bundle whose manifest is trusted.
#[derive(Debug)]
pub struct Bundle {
    remote: Remote,
    manifest: Manifest,
    layout: Layout,
    workspace: Workspace,
}

#[derive(Debug)]
pub struct Opening<'a> {
    pub location: BundleSource,
    pub http: &'a Http,
    /// Goes on counting for this operation.
    pub meter: Arc<Meter>,
    pub keys: &'a TrustedKeys,
    /// So many signatures by different keys are demanded.
    pub required: usize,
    /// The digest of the manifest that the call pinned, if it did.
    pub pin: Option<Digest>,
    /// Where the bundle's lists are kept while it is staged.
    pub workspace: &'a Workspace,
}

pub async fn open(opening: Opening<'_>) -> Result<Bundle, StageError> {
    let Opening { location, http, meter, keys, required, pin, workspace } = opening;
    let remote = Remote::new(location, http, meter).await?;
    let (manifest, layout) = remote.insist(|| read_manifest(&remote, keys, required, pin)).await?;
    Ok(Bundle { remote, manifest, layout, workspace: workspace.clone() })
}

async fn read_manifest(
    remote: &Remote,
    keys: &TrustedKeys,
    required: usize,
    pin: Option<Digest>,
) -> Result<(Manifest, Layout), StageError> {
    let bytes = read_head(remote).await?;
    let from = || remote.name().to_owned();
    let malformed = |source| StageError::Bundle { from: from(), source };
    let head = bundle::head(&bytes).map_err(malformed)?;
    let found = Digest::of(head.manifest);
    if let Some(pinned) = pin.filter(|pinned| *pinned != found) {
        return Err(StageError::Pin { from: from(), found, pinned });
    }
    let manifest = manifest::open(head.manifest, head.signatures, keys, required)
        .map_err(|source| StageError::Manifest { from: from(), source })?;
    let layout = head.layout(&manifest).map_err(malformed)?;
    let need = layout.file_size();
    if remote.size().is_some_and(|size| size < need) {
        return Err(malformed(BundleError::Short { need }));
    }
    // Up to the index: what follows has digests of its own.
    let length = usize::try_from(layout.index_span().start).unwrap_or(usize::MAX).min(bytes.len());
    remote.remember(bytes.get(..length).unwrap_or_default(), need);
    Ok((manifest, layout))
}

impl Bundle {
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the bundle came from, redacted.
    pub fn name(&self) -> &str {
        self.remote.name()
    }

    /// Fetches and verifies the chunk list: the second step, after the manifest was accepted.
    pub async fn index(&self) -> Result<StoredIndex, StageError> {
        self.remote.insist(|| self.read_index()).await
    }

    async fn read_index(&self) -> Result<StoredIndex, StageError> {
        let (span, size) = (self.layout.index_span(), self.manifest.image.index_size);
        let (list, mut frames) = (self.workspace.list(size), Frames::new(&self.remote, span.clone()));
        let end = span.start.saturating_add(size);
        for (at, length) in pieces(span.start, size) {
            let part = frames.take(at..at.saturating_add(length as u64), |_| ()).await?;
            list.write(&part, at.saturating_sub(span.start))?;
        }
        let rest = frames.take(end..span.end, |_| ()).await?;
        self.layout.index_end(&rest).map_err(|source| self.malformed(source))?;
        StoredIndex::open(list, &self.manifest.image)?.map_err(|source| self.malformed(source))
    }

    pub(in crate::stage) fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    pub(in crate::stage) fn remote(&self) -> &Remote {
        &self.remote
    }

    pub(in crate::stage) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(in crate::stage) fn malformed(&self, source: BundleError) -> StageError {
        StageError::Bundle { from: self.name().to_owned(), source }
    }
}

/// Reads until the head is complete or refuses to become one.
async fn read_head(remote: &Remote) -> Result<Vec<u8>, StageError> {
    let mut bytes = remote.read_at_once(0, FIRST_READ).await?;
    while let Err(BundleError::Short { need }) = bundle::head(&bytes) {
        let have = bytes.len() as u64;
        let more = match need <= HEAD_MAX as u64 {
            true => remote.read_at_once(have, need).await?,
            false => Vec::new(),
        };
        if more.is_empty() {
            break;
        }
        bytes.extend_from_slice(&more);
    }
    Ok(bytes)
}
