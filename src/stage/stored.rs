//! The index of the image on disk, while it is staged: memory must not grow with the image.
//!
//! A list of chunks that can't be read to its end ends early, and what was concluded from it is worthless. So nobody gets
//! at the index but by `read` and `reading`, which return nothing else once that happened.

use std::sync::{Arc, OnceLock};

use crate::bundle::{BundleError, Chunk, Index, Keeper};
use crate::manifest::Image;
use crate::stage::error::StageError;
use crate::stage::workspace::{Broken, List};

/// A chunk list, kept elsewhere than in memory.
#[derive(Debug)]
pub struct StoredIndex {
    index: Index,
    broken: Arc<OnceLock<Broken>>,
}

#[derive(Debug)]
struct Kept {
    list: List,
    broken: Arc<OnceLock<Broken>>,
}

impl Keeper for Kept {
    fn size(&self) -> u64 {
        self.list.size()
    }

    fn read(&self, out: &mut [u8], offset: u64) -> bool {
        match self.list.read(out, offset) {
            Ok(()) => true,
            Err(broken) => self.broken.set(broken).is_err_and(|_| false),
        }
    }
}

impl StoredIndex {
    /// Takes over the bytes of `rootfs.index`; the inner error: they are not what was signed.
    pub(in crate::stage) fn open(
        list: List,
        image: &Image,
    ) -> Result<Result<StoredIndex, BundleError>, StageError> {
        let broken = Arc::default();
        let index = Index::open(Box::new(Kept { list, broken: Arc::clone(&broken) }), image);
        sound(&broken)?;
        Ok(index.map(|index| StoredIndex { index, broken }))
    }

    /// What `work` makes of the chunks.
    pub fn read<T>(&self, work: impl FnOnce(&Index) -> T) -> Result<T, StageError> {
        let done = work(&self.index);
        sound(&self.broken).map(|()| done)
    }

    /// The same for work that waits for others.
    pub(in crate::stage) async fn reading<'a, F: Future>(
        &'a self,
        work: impl FnOnce(&'a Index) -> F,
    ) -> Result<F::Output, StageError> {
        let done = work(&self.index).await;
        sound(&self.broken).map(|()| done)
    }

    #[cfg(test)]
    pub fn unchecked(&self) -> &Index {
        &self.index
    }

    /// Whether `content` is that of the chunk.
    pub(in crate::stage) fn has(&self, chunk: &Chunk, content: &[u8]) -> bool {
        self.index.has(chunk, content)
    }
}

fn sound(broken: &OnceLock<Broken>) -> Result<(), StageError> {
    broken.get().map_or(Ok(()), |broken| Err(broken.clone().into()))
}

impl From<Index> for StoredIndex {
    /// Of one in memory, which can always be read.
    fn from(index: Index) -> StoredIndex {
        StoredIndex { index, broken: Arc::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::testing as bundles;
    use crate::manifest::Body;
    use crate::stage::workspace::Workspace;

    #[test]
    fn nothing_comes_of_an_index_that_cannot_be_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let parts = bundles::parts(&crate::stage::testing::image(9, 12), "board", "1");
        let image = Body::parse(&parts.manifest).unwrap().image;
        let list = Workspace::on_disk(folder.path()).list(image.index_size);
        list.write(&parts.index, 0).unwrap();
        let file = list.file().unwrap();
        let stored = StoredIndex::open(list, &image).unwrap().unwrap();
        let count = stored.read(|index| (index.iter().count(), index.len())).unwrap();
        assert_eq!(count.0, count.1);
        // Most of it is gone.
        file.set_len(7000).unwrap();
        let error = stored.read(|index| index.iter().count()).unwrap_err();
        assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
        stored.read(|_| ()).unwrap_err();
    }
}
