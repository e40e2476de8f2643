//! The hub's folder: what `serve` keeps there for its next start and for `fwupdate-hub device`.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::dps::Dps;
use crate::registry::{Credentials, Entry, Identity, Registry};
use crate::{SERVICE_POLICY, clock, disk};

/// `hub.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Setup {
    /// The name by which clients call the hub; part of every connection string.
    pub host: String,
    pub service_key: String,
}

impl Setup {
    /// What the folder says; `None` when no hub ever ran there.
    pub fn load(dir: &Path) -> Result<Option<Setup>> {
        let path = dir.join("hub.json");
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let setup = serde_json::from_slice(&content);
        setup
            .map(Some)
            .with_context(|| format!("{} is damaged; remove it to get a new service key", path.display()))
    }

    /// Loads or makes it, with this `host`; the folder must exist.
    pub fn prepare(dir: &Path, host: &str) -> Result<Setup> {
        let known = Setup::load(dir)?;
        let service_key = known.as_ref().map_or_else(clock::new_key, |setup| setup.service_key.clone());
        let setup = Setup { host: host.to_owned(), service_key };
        if known.as_ref() != Some(&setup) {
            disk::replace(&dir.join("hub.json"), &serde_json::to_vec_pretty(&setup)?, true)?;
        }
        Ok(setup)
    }

    /// For the service SDKs. Those for Python take a port in the host name, those for Node dial 443 and nothing else:
    /// with them the usual port must not be named.
    pub fn service_connection_string(&self, https_port: u16) -> String {
        let (host, key) = (&self.host, &self.service_key);
        let port = if https_port == 443 { String::new() } else { format!(":{https_port}") };
        format!("HostName={host}{port};SharedAccessKeyName={SERVICE_POLICY};SharedAccessKey={key}")
    }
}

/// Locks the folder, and makes it if need be: one server at a time, since each holds twins in memory.
pub fn claim(dir: &Path) -> Result<File> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let path = dir.join("lock");
    let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!("another hub serves {}; stop it, or use another --dir", dir.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// For the device SDKs, which take no port.
pub fn device_connection_string(host: &str, entry: &Entry) -> String {
    let Identity { device, module } = &entry.identity;
    let module = module.as_ref().map(|module| format!(";ModuleId={module}")).unwrap_or_default();
    let proof = match &entry.credentials {
        Credentials::Sas { primary_key, .. } => format!("SharedAccessKey={primary_key}"),
        Credentials::SelfSigned { .. } | Credentials::CertificateAuthority => "x509=true".to_owned(),
    };
    format!("HostName={host};DeviceId={device}{module};{proof}")
}

/// Opens the registry of an existing folder, for the commands that work on it from outside.
pub fn open_registry(dir: &Path) -> Result<(String, Registry)> {
    let setup = existing(dir)?;
    Ok((setup.host, Registry::open(dir)?))
}

/// The same for the provisioning service.
pub fn open_dps(dir: &Path) -> Result<Dps> {
    let setup = existing(dir)?;
    Dps::open(dir, &setup.host, &setup.service_key)
}

fn existing(dir: &Path) -> Result<Setup> {
    let Some(setup) = Setup::load(dir)? else {
        bail!(
            "{} is no hub's folder; start `fwupdate-hub serve --dir {}` first",
            dir.display(),
            dir.display()
        );
    };
    Ok(setup)
}
