//! `digest` and `sign`: for a key that never leaves its HSM or key vault.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use fwupdate::bundle::MEMBERS;
use fwupdate::failure::Code;
use fwupdate::manifest::{Algorithm, Digest, PublicKey, Signature};
use fwupdate::pkcs11::ecdsa_signature;
use serde_json::json;

use crate::create::Archive;
use crate::files::{self, Replacement};
use crate::keys::{self, SigningKey};
use crate::output::{Output, Result};
use crate::reader::BundleFile;

/// More than any signature of the two kinds has.
const SIGNATURE_CAP: u64 = 256;

/// Prints the digest of the manifest, and writes the manifest itself when a file is named.
pub fn digest(path: &Path, manifest: Option<&Path>) -> Result<Output> {
    let bundle = BundleFile::open(path)?;
    if let Some(out) = manifest {
        files::check_output(out, [&bundle.path])?;
        let mut file = Replacement::of(out)?;
        file.file.write_all(&bundle.manifest).map_err(files::at(out))?;
        file.commit()?;
    }
    let digest = Digest::of(&bundle.manifest);
    Ok(Output { text: digest.to_string(), json: json!({"manifestSha256": digest}) })
}

/// Signs with a key that can be used here: a file, or a token's.
pub fn sign(path: &Path, key: &Path) -> Result<Output> {
    let bundle = BundleFile::open(path)?;
    add(&bundle, SigningKey::load(key)?.sign(&bundle.manifest)?)
}

/// Adds a signature that was made elsewhere, after it was found good.
pub fn attach(path: &Path, signature: &Path, public_key: &Path) -> Result<Output> {
    let bundle = BundleFile::open(path)?;
    let key = keys::load_public(public_key)?;
    let bytes = files::read(signature, SIGNATURE_CAP)?;
    let bytes = accept(&key, &bundle.manifest, bytes).ok_or_else(|| {
        let what = "this is no signature of manifest.json by that key; sign what `digest` gives for this very bundle";
        files::wrong(Code::UntrustedSignature, signature, what)
    })?;
    add(&bundle, Signature::by(&key, bytes))
}

/// Adds a signature, or replaces that of the same key.
fn add(bundle: &BundleFile, signature: Signature) -> Result<Output> {
    let key = signature.key_id.clone();
    let mut list = bundle.signature_list()?;
    list.signatures.retain(|other| other.key_id != key);
    list.signatures.push(signature);
    rewrite(bundle, &list.to_bytes()?)?;
    let text = format!("{}: signed by key {key}", bundle.path.display());
    Ok(Output { text, json: json!({"bundle": bundle.path, "keyId": key}) })
}

/// The signature in the form that devices take, if it is good in this or that form.
fn accept(key: &PublicKey, manifest: &[u8], bytes: Vec<u8>) -> Option<Vec<u8>> {
    if key.verifies(manifest, &bytes) {
        return Some(bytes);
    }
    // r and s as key vaults give them (RFC 7518, ES256).
    let is_raw = bytes.len() == 64 && key.algorithm() == Algorithm::EcdsaP256Sha256;
    let der = is_raw.then(|| ecdsa_signature(&bytes))?;
    key.verifies(manifest, &der).then_some(der)
}

/// Writes the bundle anew with other signatures; everything else keeps its bytes.
fn rewrite(bundle: &BundleFile, signatures: &[u8]) -> Result<()> {
    let mut out = Replacement::of(&bundle.path)?;
    let permissions = bundle.file.metadata().map(|metadata| metadata.permissions());
    permissions.and_then(|same| out.file.set_permissions(same)).map_err(files::at(&bundle.path))?;
    copy(bundle, signatures, &mut out.file).map_err(files::at(&bundle.path))?;
    out.commit()
}

fn copy(bundle: &BundleFile, signatures: &[u8], out: &mut std::fs::File) -> io::Result<()> {
    let mtime = u64::try_from(bundle.body.created.unix_timestamp()).unwrap_or_default();
    let mut archive = Archive { out: &mut *out, mtime };
    for (name, mut content) in MEMBERS.iter().zip([bundle.manifest.as_slice(), signatures]) {
        let size = content.len() as u64;
        archive.member(name, &mut content, size)?;
    }
    let mut rest = &bundle.file;
    rest.seek(SeekFrom::Start(bundle.layout.index_header()))?;
    io::copy(&mut rest, out).map(drop)
}
