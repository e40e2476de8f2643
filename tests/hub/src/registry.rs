//! The identity registry: devices and modules with their keys, twins and stored subscriptions, one JSON file each.
//!
//! The folder is the truth. `fwupdate-hub device add` writes a file while `serve` runs in another process, and the
//! server looks for the file at every lookup; since a file is only ever created or removed from outside, its
//! existence is all that has to be checked, and no lock is needed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::auth::normal_thumbprint;
use crate::configurations::Standing;
use crate::error::{HubError, Kind};
use crate::twin::Twin;
use crate::{clock, disk};

/// A device, or a module of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    pub device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

impl Identity {
    pub fn device(id: impl Into<String>) -> Identity {
        Identity { device: id.into(), module: None }
    }

    pub fn module(device: impl Into<String>, module: impl Into<String>) -> Identity {
        Identity { device: device.into(), module: Some(module.into()) }
    }

    /// The resource a token must name, without the host: `devices/d` or `devices/d/modules/m`.
    pub fn resource(&self) -> String {
        match &self.module {
            None => format!("devices/{}", self.device),
            Some(module) => format!("devices/{}/modules/{module}", self.device),
        }
    }

    /// Azure's rules for ids: at most 128 of a set of ASCII characters.
    pub fn check(&self) -> Result<(), HubError> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-.+%_#*?!(),:=@$'".contains(c);
        for id in [Some(&self.device), self.module.as_ref()].into_iter().flatten() {
            if id.is_empty() || id.len() > 128 || !id.chars().all(good) {
                let message = format!(
                    "the id {id:?} must have 1 to 128 characters of A-Z a-z 0-9 - . + % _ # * ? ! ( ) , : = @ $ '"
                );
                return Err(HubError::new(Kind::ArgumentInvalid, message));
            }
        }
        Ok(())
    }

    fn not_found(&self) -> HubError {
        let kind = if self.module.is_some() { Kind::ModuleNotFound } else { Kind::DeviceNotFound };
        HubError::new(kind, format!("{self} is not registered; make it with `fwupdate-hub device add`"))
    }

    fn file_name(&self) -> String {
        // What an id may hold is fine in a file's name too, but for a leading dot and our own escapes.
        const ESCAPED: &AsciiSet = &CONTROLS.add(b'/').add(b'.').add(b'%');
        format!("{}.json", utf8_percent_encode(&self.to_string(), ESCAPED))
    }

    fn from_file_name(name: &str) -> Option<Identity> {
        let name = percent_encoding::percent_decode_str(name.strip_suffix(".json")?).decode_utf8().ok()?;
        Some(Identity::from(&*name))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device)?;
        self.module.iter().try_for_each(|module| write!(f, "/{module}"))
    }
}

/// `d` or `d/m`, as client ids and file names have it; a slash cannot occur in an id.
impl From<&str> for Identity {
    fn from(text: &str) -> Identity {
        match text.split_once('/') {
            Some((device, module)) => Identity::module(device, module),
            None => Identity::device(text),
        }
    }
}

/// How an identity proves itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Credentials {
    #[serde(rename_all = "camelCase")]
    Sas { primary_key: String, secondary_key: String },
    /// Hex of SHA-1 or SHA-256 over the certificate's DER form.
    #[serde(rename_all = "camelCase")]
    SelfSigned { primary_thumbprint: String, secondary_thumbprint: Option<String> },
    /// By any certificate that the hub's authority issued for it.
    CertificateAuthority,
}

impl Credentials {
    pub fn new_keys() -> Credentials {
        Credentials::Sas { primary_key: clock::new_key(), secondary_key: clock::new_key() }
    }

    /// The kind and the thumbprints, as twins and devices show them.
    pub fn shown(&self) -> (&'static str, Value) {
        let thumbprints = |primary: Option<&String>, secondary: Option<&String>| json!({"primaryThumbprint": primary, "secondaryThumbprint": secondary});
        match self {
            Credentials::Sas { .. } => ("sas", thumbprints(None, None)),
            Credentials::SelfSigned { primary_thumbprint, secondary_thumbprint } => {
                ("selfSigned", thumbprints(Some(primary_thumbprint), secondary_thumbprint.as_ref()))
            }
            Credentials::CertificateAuthority => ("certificateAuthority", thumbprints(None, None)),
        }
    }

    /// By a certificate's SHA-1 or SHA-256 thumbprint in hex, colons and case being free.
    pub fn self_signed(thumbprint: &str) -> Result<Credentials, HubError> {
        let primary_thumbprint = normal_thumbprint(thumbprint).ok_or_else(|| {
            HubError::new(Kind::ArgumentInvalid, "a thumbprint has 40 (SHA-1) or 64 (SHA-256) hex digits")
        })?;
        Ok(Credentials::SelfSigned { primary_thumbprint, secondary_thumbprint: None })
    }
}

/// All that is kept about one identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub identity: Identity,
    pub generation_id: String,
    /// Rises with every change of the identity; its etag.
    pub revision: u32,
    pub enabled: bool,
    pub status_reason: Option<String>,
    pub status_updated: String,
    pub last_activity: String,
    pub credentials: Credentials,
    pub twin: Twin,
    /// MQTT topic filters with the granted quality of service; they outlive connections and the hub itself.
    pub subscriptions: Vec<(String, u8)>,
    /// How long a certificate that it asks for lasts, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issues: Option<u64>,
    /// Who made a module, by that one's own word.
    #[serde(default)]
    pub managed_by: Option<String>,
    /// What it is by its own word, said when it connects.
    #[serde(default)]
    pub model_id: String,
    /// When the token that was accepted last ends, Unix seconds; and the newest that counts as expired already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expired: Option<u64>,
    /// The automatic configurations that target it.
    #[serde(default)]
    pub configurations: BTreeMap<String, Standing>,
}

impl Entry {
    pub fn new(identity: Identity, credentials: Credentials) -> Entry {
        Entry {
            identity,
            generation_id: clock::unix().to_string(),
            revision: 1,
            enabled: true,
            status_reason: None,
            status_updated: clock::NEVER.to_owned(),
            last_activity: clock::NEVER.to_owned(),
            credentials,
            twin: Twin::new(&clock::now()),
            subscriptions: Vec::new(),
            issues: None,
            managed_by: None,
            model_id: String::new(),
            token: None,
            expired: None,
            configurations: BTreeMap::new(),
        }
    }

    /// Without quotes.
    pub fn etag(&self) -> String {
        data_encoding::BASE64.encode(&self.revision.to_be_bytes())
    }
}

/// Reads and writes entries; holds in memory what it has seen.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    seen: HashMap<Identity, Entry>,
}

impl Registry {
    /// The registry in `dir/devices`, made if need be.
    pub fn open(dir: &Path) -> Result<Registry> {
        let folder = dir.join("devices");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(Registry { folder, seen: HashMap::new() })
    }

    pub fn get(&mut self, identity: &Identity) -> Result<&Entry, HubError> {
        self.get_mut(identity).map(|entry| &*entry)
    }

    fn get_mut(&mut self, identity: &Identity) -> Result<&mut Entry, HubError> {
        let path = self.folder.join(identity.file_name());
        if !path.exists() {
            self.seen.remove(identity);
            return Err(identity.not_found());
        }
        if !self.seen.contains_key(identity) {
            self.seen.insert(identity.clone(), read(&path)?);
        }
        self.seen.get_mut(identity).ok_or_else(|| identity.not_found())
    }

    /// Every identity in order of its name; files that are no entries are left alone.
    pub fn list(&mut self) -> Result<Vec<Identity>, HubError> {
        let files = std::fs::read_dir(&self.folder)
            .with_context(|| format!("cannot read {}", self.folder.display()))?;
        let mut found: Vec<Identity> = files
            .flatten()
            .filter_map(|file| Identity::from_file_name(file.file_name().to_str()?))
            .filter(|identity| identity.check().is_ok())
            .collect();
        found.sort();
        Ok(found)
    }

    /// Registers a new identity.
    pub fn create(&mut self, entry: Entry) -> Result<(), HubError> {
        entry.identity.check()?;
        if entry.identity.module.is_some() {
            self.get(&Identity::device(&entry.identity.device))?;
        }
        let path = self.folder.join(entry.identity.file_name());
        if !disk::create(&path, &text(&entry)?)? {
            let message = format!("{} is registered already", entry.identity);
            return Err(HubError::new(Kind::DeviceAlreadyExists, message));
        }
        self.seen.insert(entry.identity.clone(), entry);
        Ok(())
    }

    /// Changes an entry, on disk before in memory; a refused or unsaved change leaves it as it was.
    pub fn update<T>(
        &mut self,
        identity: &Identity,
        change: impl FnOnce(&mut Entry) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let path = self.folder.join(identity.file_name());
        let entry = self.get_mut(identity)?;
        let mut next = entry.clone();
        let outcome = change(&mut next)?;
        disk::replace(&path, &text(&next)?, true)?;
        *entry = next;
        Ok(outcome)
    }

    /// Forgets a device with its modules, or one module; returns what was forgotten.
    pub fn remove(&mut self, identity: &Identity) -> Result<Vec<Identity>, HubError> {
        self.get(identity)?;
        let ours = |other: &Identity| {
            other == identity || (identity.module.is_none() && other.device == identity.device)
        };
        let gone: Vec<Identity> = self.list()?.into_iter().filter(ours).collect();
        for identity in &gone {
            let path = self.folder.join(identity.file_name());
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            self.seen.remove(identity);
        }
        Ok(gone)
    }
}

fn text(entry: &Entry) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(entry)?)
}

fn read(path: &Path) -> Result<Entry> {
    let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&content).with_context(|| {
        format!("{} is no registry entry; remove the file to forget the device", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> Entry {
        Entry::new(Identity::from(id), Credentials::new_keys())
    }

    #[test]
    fn entries_survive_and_are_seen_by_a_second_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Registry::open(dir.path()).unwrap();
        let mut tool = Registry::open(dir.path()).unwrap();
        let gateway = Identity::device("..gw#1");
        tool.create(Entry::new(gateway.clone(), Credentials::new_keys())).unwrap();
        assert!(server.get(&gateway).unwrap().enabled);
        assert_eq!(server.create(entry("..gw#1")).unwrap_err().kind, Kind::DeviceAlreadyExists);
        tool.remove(&gateway).unwrap();
        assert_eq!(server.get(&gateway).unwrap_err().kind, Kind::DeviceNotFound);
    }

    #[test]
    fn ids_are_azure_s_and_make_file_names_that_read_back() {
        for id in ["", "a/b/c", "ä", "a b", "a\0", &"x".repeat(129)] {
            assert!(Identity::from(id).check().is_err(), "{id:?}");
        }
        for id in ["..", "%2F", "-.+%_#*?!(),:=@$'", "d/m", &"x".repeat(128)] {
            let identity = Identity::from(id);
            identity.check().unwrap();
            let name = identity.file_name();
            assert!(!name.starts_with('.') && !name.contains('/'), "{name}");
            assert_eq!(Identity::from_file_name(&name), Some(identity));
        }
    }

    #[test]
    fn an_update_is_on_disk_and_a_refused_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(dir.path()).unwrap();
        registry.create(entry("a")).unwrap();
        let id = Identity::device("a");
        registry
            .update(&id, |entry| {
                entry.enabled = false;
                Ok(())
            })
            .unwrap();
        let refused = registry.update(&id, |entry| -> Result<(), HubError> {
            entry.enabled = true;
            Err(HubError::new(Kind::ArgumentInvalid, "no"))
        });
        assert_eq!(refused.unwrap_err().kind, Kind::ArgumentInvalid);
        assert!(!registry.get(&id).unwrap().enabled);
        assert!(!Registry::open(dir.path()).unwrap().get(&id).unwrap().enabled);
    }

    #[test]
    fn a_device_takes_its_modules_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(dir.path()).unwrap();
        assert_eq!(registry.create(entry("a/m")).unwrap_err().kind, Kind::DeviceNotFound);
        for id in ["a", "a/m", "ab"] {
            registry.create(entry(id)).unwrap();
        }
        assert_eq!(registry.remove(&Identity::device("a")).unwrap().len(), 2);
        assert_eq!(registry.list().unwrap(), [Identity::device("ab")]);
    }

    #[test]
    fn a_damaged_entry_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("devices/a.json"), "{").unwrap();
        let error = registry.get(&Identity::device("a")).unwrap_err();
        assert!(error.message.contains("a.json"), "{error}");
    }
}
