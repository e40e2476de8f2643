//! Opens a bundle file the way a device does: the head, then positions from the manifest's sizes.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fwupdate::bundle::{self, BundleError, HEAD_MAX, Head, Index, Layout, PatchIndex};
use fwupdate::manifest::{self, Body, ManifestError, SignatureList, TrustedKeys};

use crate::files;
use crate::output::Result;

/// An open bundle whose head was read. Nothing in it is trusted unless `open_trusted` made it.
pub struct BundleFile {
    pub path: PathBuf,
    pub file: File,
    /// The exact bytes of the first two members.
    pub manifest: Vec<u8>,
    pub signatures: Vec<u8>,
    pub body: Body,
    pub layout: Layout,
}

impl BundleFile {
    /// Opens without asking who signed.
    pub fn open(path: &Path) -> Result<BundleFile> {
        BundleFile::open_with(path, |head| Body::parse(head.manifest))
    }

    /// Opens as a device does: the signatures come before the manifest's parser.
    pub fn open_trusted(path: &Path, keys: &TrustedKeys, required: usize) -> Result<BundleFile> {
        BundleFile::open_with(path, |head| {
            manifest::open(head.manifest, head.signatures, keys, required)
                .map(|manifest| Body::clone(&manifest))
        })
    }

    fn open_with(path: &Path, read: impl FnOnce(&Head) -> Result<Body, ManifestError>) -> Result<BundleFile> {
        let file = files::open(path)?;
        let mut bytes = Vec::new();
        (&file).take(HEAD_MAX as u64).read_to_end(&mut bytes).map_err(files::at(path))?;
        let head = bundle::head(&bytes).map_err(files::in_file(path))?;
        let body = read(&head).map_err(files::in_file(path))?;
        let layout = head.layout(&body).map_err(files::in_file(path))?;
        let (manifest, signatures) = (head.manifest.to_vec(), head.signatures.to_vec());
        Ok(BundleFile { path: path.to_owned(), file, manifest, signatures, body, layout })
    }

    pub fn signature_list(&self) -> Result<SignatureList> {
        SignatureList::parse(&self.signatures).map_err(files::in_file(&self.path))
    }

    pub fn index(&self) -> Result<Index> {
        let bytes = self.read(self.layout.index_span())?;
        let index = self.layout.index(&bytes).map_err(files::in_file(&self.path))?;
        Index::parse(index.to_vec(), &self.body.image).map_err(files::in_file(&self.path))
    }

    /// Reads and checks the index of the patch of this number (from 0).
    pub fn patch_index(&self, number: usize, index: &Index) -> Result<PatchIndex> {
        let bytes = self.read(self.layout.patch_span(number).unwrap_or_default())?;
        let own = self.layout.patch_index(number, &bytes).map_err(files::in_file(&self.path))?;
        PatchIndex::parse(own.to_vec(), number, &self.body, index).map_err(files::in_file(&self.path))
    }

    /// These bytes of the file.
    pub fn read(&self, span: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (span.end - span.start) as usize];
        match self.file.read_exact_at(&mut bytes, span.start) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(files::in_file(&self.path)(BundleError::Short { need: span.end }))
            }
            Err(error) => Err(files::at(&self.path)(error)),
        }
    }
}
