//! What the options of `fwupdate-hub` take: each is read here, and refused before anything is done.

use std::path::{Path, PathBuf};

use fwupdate_hub::dps::read_certificate;
use fwupdate_hub::error::HubError;
use fwupdate_hub::registry::Identity;
use rustls::pki_types::ServerName;

pub fn folder(path: PathBuf) -> Result<PathBuf, String> {
    if path.is_dir() { Ok(path) } else { Err(format!("{} is no folder", path.display())) }
}

pub fn identity(text: &str) -> Result<Identity, HubError> {
    let identity = Identity::from(text);
    identity.check().map(|()| identity)
}

/// A name or address by which clients reach a hub, without a port.
pub fn host(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{text:?} is no host's name or address (without a port, letters in ASCII)")),
    }
}

/// In seconds; at most 90 days, as the policies of Azure.
pub fn lifetime(text: &str) -> Result<u64, String> {
    const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let seconds = UNITS.iter().find_map(|(unit, seconds)| {
        let digits = text.strip_suffix(*unit).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse::<u64>().ok()?.checked_mul(*seconds)
    });
    let fits = seconds.filter(|seconds| (1..=90 * 86_400).contains(seconds));
    fits.ok_or_else(|| "a lifetime is a number with s, m, h or d, from 1s to 90d".to_owned())
}

/// The text of a file with a certificate in PEM.
pub fn certificate(path: PathBuf) -> Result<String, String> {
    let content = std::fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    read_certificate(&content).map_err(|problem| format!("{} {problem}", path.display()))?;
    String::from_utf8(content).map_err(|_| not_text(&path))
}

fn not_text(path: &Path) -> String {
    format!("{} holds more than a certificate in PEM form: bytes that are no text", path.display())
}
