//! `inspect` and `verify`.

use std::path::{Path, PathBuf};

use fwupdate::bundle::{BundleError, Chunk, Decoder, Index, PrefixDigest};
use fwupdate::cli::amount::size;
use fwupdate::failure::{Code, Failure};
use fwupdate::manifest::{Digest, KeyError, TrustedKeys};
use serde_json::json;
use sha2::Digest as _;
use time::format_description::well_known::Rfc3339;

use crate::output::{Output, Result};
use crate::patch::ImageFile;
use crate::progress::ProgressLine;
use crate::reader::BundleFile;
use crate::{files, keys};

/// Shows the manifest, who is said to have signed it, and what the index holds.
pub fn inspect(path: &Path) -> Result<Output> {
    let bundle = BundleFile::open(path)?;
    let (index, list) = (bundle.index()?, bundle.signature_list()?);
    let digest = Digest::of(&bundle.manifest);
    let zero = index.iter().filter(|chunk| index.is_zero(chunk)).count();
    let signers: Vec<_> =
        list.signatures.iter().map(|s| json!({"keyId": s.key_id, "algorithm": s.algorithm})).collect();
    let json = json!({
        "manifestSha256": digest,
        "manifest": bundle.body,
        "signatures": signers,
        "chunks": index.len(),
        "zeroChunks": zero,
        "headSize": bundle.layout.payload().start,
        "bundleSize": bundle.layout.file_size(),
    });
    Ok(Output { text: describe(&bundle, &index, zero, digest)?, json })
}

fn describe(bundle: &BundleFile, index: &Index, zero: usize, digest: Digest) -> Result<String> {
    let body = &bundle.body;
    let created = body.created.format(&Rfc3339).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
    let mut text = format!(
        "board             {}\nversion           {}\nsecurity version  {}\ncreated           {created}\n\
         manifest          {digest}\nimage             {} ({})\nimage digest      {}\n\
         chunks            {} ({zero} of zeros)\nbundle            {}\n",
        body.compatible,
        body.version,
        body.security_version,
        body.image.size,
        size(body.image.size),
        body.image.sha256,
        index.len(),
        size(bundle.layout.file_size()),
    );
    for (number, patch) in bundle.body.patches.iter().enumerate() {
        let frames = bundle.patch_index(number, index)?.frames().count();
        let bytes = size(patch.index_size + patch.payload_size);
        text += &format!("patch             from {}, {bytes} in {frames} frames\n", patch.base_sha256);
    }
    for signature in bundle.signature_list()?.signatures {
        text +=
            &format!("signature         key {} ({}), not checked\n", signature.key_id, signature.algorithm);
    }
    Ok(text)
}

/// Checks everything that a device would, and the rest of the file too.
///
/// Of a patch only the index can be checked without its base; each image of `bases` checks its patch's frames.
pub fn verify(path: &Path, trusted: &Path, required: usize, bases: &[PathBuf]) -> Result<Output> {
    let bundle = BundleFile::open_trusted(path, &load_trusted(trusted)?, required)?;
    let (body, digest) = (&bundle.body, Digest::of(&bundle.manifest));
    let index = bundle.index()?;
    check_end(&bundle)?;
    if image_digest(&bundle, &index)? != body.image.sha256 {
        let what = "the whole image is not what was signed (its SHA-256 differs); build the bundle again";
        return Err(files::wrong(Code::DigestMismatch, path, what));
    }
    for number in 0..body.patches.len() {
        bundle.patch_index(number, &index)?;
    }
    for base in bases {
        verify_patch(&bundle, &index, base)?;
    }
    let text = format!(
        "{}: good: {} {} for {}, {} chunks",
        path.display(),
        body.version,
        size(body.image.size),
        body.compatible,
        index.len()
    );
    let json = json!({"verified": true, "manifestSha256": digest, "version": body.version});
    Ok(Output { text, json })
}

/// Unpacks every chunk against its digest; returns the digest of them all.
fn image_digest(bundle: &BundleFile, index: &Index) -> Result<Digest> {
    let mut progress = ProgressLine::new("Verifying", bundle.body.image.size);
    let (mut decoder, mut hash) = (Decoder::default(), sha2::Sha256::new());
    let mut group = Vec::new();
    for chunk in index.iter() {
        progress.at(chunk.offset);
        let at = (chunk.offset - chunk.group_offset) as usize;
        group.resize(at + chunk.length as usize, 0);
        let block = bundle.read(bundle.layout.frame(&chunk))?;
        let (history, content) = group.split_at_mut(at);
        let unpacked = decoder.decode(&[(chunk, &block)], history, content);
        unpacked.map_err(files::in_file(&bundle.path))?;
        hash.update(content);
    }
    Ok(Digest(hash.finalize().into()))
}

/// Unpacks every frame of the patch from the image at `path`.
fn verify_patch(bundle: &BundleFile, index: &Index, path: &Path) -> Result<()> {
    let base = ImageFile::open(path)?;
    let sha256 = files::digest(&base.file).map_err(files::at(path))?;
    let number = bundle.body.patches.iter().position(|patch| patch.base_sha256 == sha256);
    let what = format!("the bundle has no patch from this image ({sha256})");
    let number = number.ok_or_else(|| files::wrong(Code::NotFound, path, what))?;
    let mut progress = ProgressLine::new("Verifying", bundle.body.image.size);
    for frame in bundle.patch_index(number, index)?.frames() {
        let (_, chunks): (Vec<_>, Vec<Chunk>) = frame.chunks(index).unzip();
        let offset = chunks.first().map_or(0, |chunk| chunk.offset);
        progress.at(offset);
        let prefix = base.blocks(&frame.blocks)?;
        let good = PrefixDigest::of(&prefix) == frame.prefix;
        let bad = BundleError::Chunk { offset, reason: "its patch names another prefix" };
        let bytes = bundle.read(bundle.layout.patch_frame(number, &frame).unwrap_or_default())?;
        let mut out = vec![0; chunks.iter().map(|chunk| chunk.length as usize).sum()];
        let unpacked = Decoder::default().patch(&bytes, &prefix, &chunks, &mut out);
        if good { unpacked } else { Err(bad) }.map_err(files::in_file(&bundle.path))?;
    }
    Ok(())
}

/// After each payload come zeros, and after the last one nothing.
fn check_end(bundle: &BundleFile) -> Result<()> {
    let length = bundle.file.metadata().map_err(files::at(&bundle.path))?.len();
    for (member, place) in bundle.layout.padding() {
        let zeros = bundle.read(place)?;
        if length != bundle.layout.file_size() || zeros.iter().any(|byte| *byte != 0) {
            return Err(files::in_file(&bundle.path)(BundleError::Padding { member }));
        }
    }
    Ok(())
}

/// Reads the trusted keys: every `*.pem` of a folder, or one file. A private key beside them, where `keygen`
/// puts it, is passed over.
fn load_trusted(path: &Path) -> Result<TrustedKeys> {
    let mut trusted = TrustedKeys::default();
    for path in &key_files(path)? {
        match trusted.add_pem(&keys::read(path)?) {
            Ok(()) | Err(KeyError::Private) => {}
            Err(error) => return Err(files::wrong(Code::MalformedRequest, path, error)),
        }
    }
    if trusted.is_empty() {
        let what = "no public key (*.pem) is there; name their folder";
        return Err(files::wrong(Code::NotFound, path, what));
    }
    Ok(trusted)
}

fn key_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries: std::io::Result<Vec<_>> = path.read_dir().and_then(Iterator::collect);
    let mut paths: Vec<_> = entries.map_err(files::at(path))?.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "pem"));
    Ok(paths)
}
