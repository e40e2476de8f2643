//! What a slot is remembered to hold: its chunk map, kept beside the record from the slot's own install or from a
//! scan, so that the next update finds chunks in the booted slot without reading and cutting all of it.
//!
//! A map is a hint and never believed: the survey reads each chunk that it wants of it. A file begins with a line
//! that names the chunking rules, for chunks of other rules are of no use; then 20 bytes a chunk: the block of
//! 4096 bytes where it begins, and its digest. Zeros are left out, as nobody looks for them.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::bundle::{ChunkDigest, Index};
use crate::config::open_regular;
use crate::durable;
use crate::manifest::{Chunking, INDEX_CAP};

const MAGIC: &str = "fwupdate-chunks 1";
const RECORD: usize = 20;
/// Longest first line, bytes.
const LINE: u64 = 1024;

/// Where the maps of the two slots are kept. They are replaced in one step, and none has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maps {
    pub booted: PathBuf,
    pub target: PathBuf,
}

/// Tells `note` of each chunk of the map at `path`: `true` if there is a whole one for these rules.
pub(in crate::stage) fn read(path: &Path, rules: &Chunking, mut note: impl FnMut(ChunkDigest, u32)) -> bool {
    let mut read = || -> io::Result<bool> {
        let file = open_regular(path)?;
        let length = file.metadata()?.len();
        let mut reader = BufReader::new(file);
        let mut line = String::new();
        (&mut reader).take(LINE).read_line(&mut line)?;
        let body = length.saturating_sub(line.len() as u64);
        if line != first_line(rules) || length > INDEX_CAP || body.checked_rem(RECORD as u64) != Some(0) {
            return Ok(false);
        }
        let mut record = [0; RECORD];
        for _ in 0..body.checked_div(RECORD as u64).unwrap_or(0) {
            reader.read_exact(&mut record)?;
            if let Some((block, digest)) = take_apart(&record) {
                note(digest, block);
            }
        }
        Ok(true)
    };
    read().unwrap_or_else(|error| {
        if error.kind() != ErrorKind::NotFound {
            tracing::warn!(
                "the chunk map can't be read; the slot is scanned instead: {}: {error}",
                path.display()
            );
        }
        false
    })
}

fn take_apart(record: &[u8; RECORD]) -> Option<(u32, ChunkDigest)> {
    let (block, digest) = record.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*block), ChunkDigest(digest.try_into().ok()?)))
}

fn first_line(rules: &Chunking) -> String {
    let Chunking { algorithm, block, min, average, max, group } = rules;
    format!("{MAGIC} {algorithm} {block} {min} {average} {max} {group}\n")
}

/// Keeps the map of a slot that holds the image of `index`.
pub(in crate::stage) fn keep(path: &Path, index: &Index, rules: &Chunking) {
    let draft = Draft::new(path, rules);
    for chunk in index.iter().filter(|chunk| !index.is_zero(chunk)) {
        chunk.block().into_iter().for_each(|block| draft.note(chunk.digest, block));
    }
    draft.finish();
}

/// Removes the map of a slot that is about to change, durably: one that came back would hide what is written now.
pub(in crate::stage) fn forget(path: &Path) {
    match fs::remove_file(path).and_then(|()| durable::sync_folder(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!("an old chunk map stays: {}: {error}", path.display());
        }
        _ => {}
    }
}

/// A map that is being written, beside the one that it will replace. An error costs the map, never the update.
pub(in crate::stage) struct Draft {
    path: PathBuf,
    file: Mutex<io::Result<BufWriter<File>>>,
}

impl Draft {
    pub(in crate::stage) fn new(path: &Path, rules: &Chunking) -> Draft {
        let begin = || {
            let mut file = BufWriter::new(durable::draft(path)?);
            file.write_all(first_line(rules).as_bytes())?;
            Ok(file)
        };
        Draft { path: path.to_owned(), file: Mutex::new(begin()) }
    }

    /// Adds a chunk; in any order, by any thread.
    pub(in crate::stage) fn note(&self, digest: ChunkDigest, block: u32) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match file.as_mut() {
            Ok(file) => file.write_all(&block.to_le_bytes()).and_then(|()| file.write_all(&digest.0)),
            Err(_) => return,
        };
        if let Err(error) = written {
            *file = Err(error);
        }
    }

    /// Puts the map in its place, durably: the old one or the new one, whenever the power fails.
    pub(in crate::stage) fn finish(self) {
        let file = self.file.into_inner().unwrap_or_else(PoisonError::into_inner);
        let kept = file.and_then(|file| {
            durable::put(&file.into_inner().map_err(io::IntoInnerError::into_error)?, &self.path)
        });
        if let Err(error) = kept {
            tracing::warn!(
                "no chunk map is kept; the slot will be scanned: {}: {error}",
                self.path.display()
            );
            forget(&durable::beside(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::chunker::default_chunking;

    fn all(path: &Path, rules: &Chunking) -> Option<Vec<(ChunkDigest, u32)>> {
        let mut found = Vec::new();
        read(path, rules, |digest, block| found.push((digest, block))).then_some(found)
    }

    #[test]
    fn a_map_is_whole_and_of_these_rules_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rules) = (folder.path().join("chunks.A"), default_chunking());
        assert_eq!(all(&path, &rules), None, "there is none yet");
        let chunks = [(ChunkDigest([1; 16]), 0), (ChunkDigest([2; 16]), u32::MAX)];
        let draft = Draft::new(&path, &rules);
        chunks.iter().for_each(|(digest, block)| draft.note(*digest, *block));
        assert!(!path.exists(), "it is not in its place before it is whole");
        draft.finish();
        assert_eq!(all(&path, &rules).unwrap(), chunks);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");

        let other = Chunking { max: rules.max / 2, ..rules.clone() };
        assert_eq!(all(&path, &other), None, "chunks of other rules are other chunks");
        let whole = fs::read(&path).unwrap();
        let line = first_line(&rules).len();
        for cut in (0..whole.len()).filter(|cut| *cut != line && *cut != line + RECORD) {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(all(&path, &rules), None, "cut at {cut}");
        }
        fs::write(&path, [b'x'; 5000]).unwrap();
        assert_eq!(all(&path, &rules), None);
        forget(&path);
        forget(&path);
        assert!(!path.exists());
    }

    #[test]
    fn what_cannot_be_kept_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        // A folder stands where the map should be: all is written, and can't be put in its place.
        let path = folder.path().join("chunks.A");
        fs::create_dir(&path).unwrap();
        let draft = Draft::new(&path, &default_chunking());
        draft.note(ChunkDigest([1; 16]), 1);
        draft.finish();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        Draft::new(&folder.path().join("none/chunks.A"), &default_chunking()).finish();
    }
}
