//! `manifestSha256` without being asked: whoever orders an update means the bundle that is at the URL now. So its
//! manifest is read from here if that is possible, and gateways then take that one alone, whatever is put in its place
//! and whoever signed it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use fwupdate::bundle::{self, BundleError, FIRST_READ, HEAD_MAX};
use fwupdate::cause;
use fwupdate::cli::usage;
use fwupdate::command;
use fwupdate::machine::Origin;
use fwupdate::manifest::{Body, Digest};
use fwupdate::uri::PackageUri;
use reqwest::header::RANGE;
use reqwest::redirect::Policy;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::args::{Args, Pinning};
use crate::error::Error;
use crate::service;

/// A server that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Redirects that are followed.
const REDIRECTS: usize = 5;

/// What a bundle says of itself.
#[derive(Debug)]
struct FoundManifest {
    digest: Digest,
    /// `None`: this release does not understand the manifest.
    version: Option<String>,
}

/// Adds `manifestSha256` to the fields of an update if the bundle can be read, and tells people which in one line. What
/// every gateway would refuse is ordered from none.
pub async fn add(args: &Args, pinning: &Pinning, fields: &mut Map<String, Value>) -> Result<(), Error> {
    command::update(&Value::Object(fields.clone()), Origin::Method, OffsetDateTime::now_utc())
        .map_err(|refused| Error::Usage(refused.message))?;
    if pinning.no_pin || fields.get("manifestSha256").is_some_and(|pin| !pin.is_null()) {
        return Ok(());
    }
    let uri = fields.get("fwPackageUri").and_then(Value::as_str).unwrap_or_default().to_owned();
    let found = match &pinning.bundle {
        Some(file) => Ok(of_file(file).map_err(|why| Error::Usage(format!("{}: {why}", file.display())))?),
        None => of_server(args, &uri).await,
    };
    match found {
        Ok(found) => {
            expected(&found, fields)?;
            let version = found.version.as_deref().unwrap_or("unknown");
            note(args, &format!("pinned to manifest {} (version {version})", found.digest));
            fields.insert("manifestSha256".into(), found.digest.to_string().into());
        }
        Err(why) => {
            let hint = "give --bundle FILE or --manifest-sha256, or --no-pin if that is meant";
            let shown = PackageUri::from(uri).shown();
            note(args, &format!("not pinned, for {shown} cannot be read from here ({why}): {hint}"));
        }
    }
    Ok(())
}

/// A gateway would refuse it.
fn expected(found: &FoundManifest, fields: &Map<String, Value>) -> Result<(), Error> {
    match (fields.get("version").and_then(Value::as_str), &found.version) {
        (Some(wanted), Some(version)) if wanted != version => Err(Error::Usage(format!(
            "the bundle has version {version}, not {wanted}: correct --version or the URL, or give --no-pin"
        ))),
        _ => Ok(()),
    }
}

/// For people alone: scripts read stderr as JSON.
fn note(args: &Args, text: &str) {
    if !args.json {
        usage::tell(&usage::error_sentence("fwupdate-cloud", text));
    }
}

fn of_file(path: &Path) -> Result<FoundManifest, String> {
    let is_file = std::fs::metadata(path).map_err(|why| why.to_string())?.is_file();
    let mut bytes = Vec::new();
    let file = if is_file { File::open(path) } else { return Err("it is no regular file".into()) };
    let read = file.and_then(|file| file.take(HEAD_MAX as u64).read_to_end(&mut bytes));
    read.map_err(|why| why.to_string())?;
    FoundManifest::of(&bytes).map_err(|why| why.to_string())
}

async fn of_server(args: &Args, uri: &str) -> Result<FoundManifest, String> {
    let asked = tokio::time::timeout(PATIENCE, fetch(args, uri)).await;
    asked.unwrap_or_else(|_| Err(format!("no answer in {} s", PATIENCE.as_secs())))
}

/// Reads from the start until the head is whole. A server that knows no ranges is left in the middle of its answer.
async fn fetch(args: &Args, uri: &str) -> Result<FoundManifest, String> {
    let http =
        service::client(args.ca.as_deref(), Policy::limited(REDIRECTS)).map_err(|why| why.to_string())?;
    let (mut bytes, mut until) = (Vec::new(), FIRST_READ);
    loop {
        let range = format!("bytes={}-{}", bytes.len(), until.saturating_sub(1));
        let asked = http.get(uri).header(RANGE, range).send().await;
        let answer = asked.map_err(|why| cause::chain(&why.without_url()))?;
        match answer.status().as_u16() {
            206 => {}
            200 => bytes.clear(),
            status => return Err(format!("status {status}")),
        }
        let whole = answer.status().as_u16() == 200;
        let limit = if whole { HEAD_MAX } else { usize::try_from(until).unwrap_or(HEAD_MAX).min(HEAD_MAX) };
        let before = bytes.len();
        read(answer, limit, &mut bytes).await?;
        match FoundManifest::of(&bytes) {
            Err(BundleError::Short { need }) if !whole && bytes.len() > before && need <= HEAD_MAX as u64 => {
                until = need;
            }
            found => return found.map_err(|why| why.to_string()),
        }
    }
}

async fn read(mut answer: reqwest::Response, limit: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
    while bytes.len() < limit {
        match answer.chunk().await.map_err(|why| cause::chain(&why.without_url()))? {
            Some(part) => bytes.extend_from_slice(&part),
            None => break,
        }
    }
    bytes.truncate(limit);
    Ok(())
}

impl FoundManifest {
    fn of(bytes: &[u8]) -> Result<FoundManifest, BundleError> {
        let head = bundle::head(bytes)?;
        let version = Body::parse(head.manifest).ok().map(|body| body.version);
        Ok(FoundManifest { digest: Digest::of(head.manifest), version })
    }
}
