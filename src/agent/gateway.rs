//! The gateway as the agent sees it: settings, slots, boot environment, kernel. Gathers the facts that the
//! machine and the plan judge; decides nothing.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::boot::{self, Bootloader};
use crate::clock::Clock;
use crate::config::{Settings, open_regular};
use crate::device::{self, Identity, Kernel};
use crate::failure::{Code, Failure};
use crate::machine::Operation;
use crate::manifest::TrustedKeys;
use crate::pkcs11;
use crate::plan;
use crate::slot::Slot;
use crate::stage::{self, BundleSource, Http, Meter, Target};
use crate::tls;

/// Largest key file that is read, bytes.
const KEY_LIMIT: u64 = 64 * 1024;

/// Settings and edges, shared with the effect that runs.
pub struct Gateway {
    pub settings: Settings,
    pub bootloader: Box<dyn Bootloader>,
    /// True while there is an authenticated hub session.
    pub cloud: watch::Sender<bool>,
    /// The sentence with which the hub refuses this gateway's credentials, while it does.
    pub denied: watch::Sender<Option<String>>,
    /// How far staging has come.
    pub progress: watch::Sender<stage::Progress>,
    pub clock: Clock,
    pub kernel: Kernel,
    /// The health check that keeps failing on this trial, and why.
    pub failing: watch::Sender<Option<(String, String)>>,
    /// One takes hold of a slot at a time, so that a look at it is never taken for somebody else's use.
    taking: Mutex<()>,
}

/// The keys that may sign, and what is wrong with the files that hold none.
#[derive(Debug, Default)]
pub struct Keys {
    pub trusted: TrustedKeys,
    pub unusable: Vec<String>,
}

impl Gateway {
    pub fn new(settings: Settings) -> Gateway {
        let bootloader = boot::open(&settings.bootloader.kind);
        let kernel = Kernel { proc: settings.system.proc.clone(), sys: settings.system.sys.clone() };
        let clock = Clock::new(settings.system.clock.clone());
        if settings.cloud.is_some() {
            clock.demand_proof();
        }
        pkcs11::keep_in(&settings.state.dir);
        Gateway {
            bootloader,
            cloud: watch::Sender::new(false),
            denied: watch::Sender::new(None),
            progress: watch::Sender::new(stage::Progress::default()),
            clock,
            kernel,
            failing: watch::Sender::new(None),
            taking: Mutex::default(),
            settings,
        }
    }

    /// Why the hub refuses this gateway, while it does. By a clock that may be wrong good credentials are refused, too.
    pub fn denial(&self) -> Option<String> {
        self.denied.borrow().clone().filter(|_| !self.clock.wants_time())
    }

    pub(super) fn slots(&self) -> [(Slot, PathBuf); 2] {
        [Slot::A, Slot::B].map(|slot| (slot, self.device(slot)))
    }

    fn name(&self, slot: Slot) -> &str {
        match slot {
            Slot::A => &self.settings.slots.a,
            Slot::B => &self.settings.slots.b,
        }
    }

    /// Where a slot is. A name that means nothing yet is returned as it is: using it gives the error.
    pub fn device(&self, slot: Slot) -> PathBuf {
        let name = self.name(slot);
        device::resolve(name, &self.kernel).unwrap_or_else(|_| PathBuf::from(name))
    }

    /// Where the chunk map of a slot is kept.
    pub fn map(&self, slot: Slot) -> PathBuf {
        self.settings.state.dir.join(format!("chunks.{slot}"))
    }

    /// Takes hold of a slot that is not in use.
    pub fn acquire(&self, slot: Slot) -> Result<Target, Failure> {
        let _one = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        self.take(slot)
    }

    /// Bytes of a slot that could be taken hold of.
    pub fn capacity(&self, slot: Slot) -> Result<u64, Failure> {
        let _one = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        self.take(slot).map(|target| target.capacity())
    }

    fn take(&self, slot: Slot) -> Result<Target, Failure> {
        let path = device::resolve(self.name(slot), &self.kernel)
            .map_err(|error| Failure::new(Code::SlotWriteFailed, format!("slot {slot}: {error}")))?;
        if Identity::of(&path).is_ok_and(|device| self.kernel.is_read_only(device)) {
            let message = format!("slot {slot} ({}) {}", path.display(), device::READ_ONLY);
            return Err(Failure::new(Code::SlotWriteFailed, message));
        }
        let in_use = self.kernel.in_use().map_err(|error| internal(&error))?;
        if self.kernel.aliases(&path).is_ok_and(|aliases| !aliases.is_disjoint(&in_use)) {
            let message = format!("slot {slot} ({}) is mounted: unmount it first", path.display());
            return Err(Failure::new(Code::SlotBusy, message));
        }
        let in_use: Vec<Identity> = in_use.into_iter().collect();
        Ok(Target::acquire(&path, &in_use)?)
    }

    /// The keys that may sign. A file that holds none is passed over, for the others are as good as before.
    pub fn keys(&self) -> Result<Keys, Failure> {
        let dir = &self.settings.trust.keys;
        let untrusted = |message| Failure::new(Code::UntrustedSignature, message);
        let paths = pem_files(dir)
            .map_err(|error| untrusted(format!("the keys in {} cannot be read: {error}", dir.display())))?;
        let mut keys = Keys::default();
        for path in paths {
            let added =
                read_key(&path).and_then(|text| keys.trusted.add_pem(&text).map_err(|e| e.to_string()));
            keys.unusable.extend(added.err().map(|why| format!("{}: {why}", path.display())));
        }
        if keys.trusted.is_empty() {
            let dir = dir.display();
            let message = match keys.unusable.is_empty() {
                true => format!("{dir} holds no key (*.pem): put the public key of your releases there"),
                false => format!("{dir} holds no key that can be used ({})", keys.unusable.join("; ")),
            };
            return Err(untrusted(message));
        }
        Ok(keys)
    }

    /// Where the bundle of `operation` is read from.
    pub fn source(&self, operation: &Operation) -> Result<BundleSource, Failure> {
        let malformed = |why: String| Failure::new(Code::MalformedRequest, why);
        let url =
            operation.uri.url().cloned().ok_or_else(|| malformed("the package is named by no URL".into()))?;
        match url.scheme() {
            "file" => url
                .to_file_path()
                .map(BundleSource::File)
                .map_err(|()| malformed("the file must be given by its absolute path".into())),
            _ => Ok(BundleSource::Http(url)),
        }
    }

    /// A client for downloads; made for each use, so that renewed certificates are seen.
    pub fn http(&self) -> Result<Http, Failure> {
        let tls = tls::client_config(&self.settings.trust.roots, None, &self.clock)?;
        let http = Http::new(tls, &self.settings.trust.allowed_hosts, self.settings.download.clone());
        Ok(http.on(self.clock.clone()))
    }

    /// Counts the bytes of the running operation against its budget, earlier runs included.
    pub fn meter(&self, operation: &Operation, spent: u64) -> Arc<Meter> {
        let limit = operation.max_download_bytes.or(self.settings.download.max_bytes);
        Arc::new(Meter::new(spent, limit, self.settings.download.rate_limit))
    }

    /// Whether whoever asked for `operation` may, by this gateway's settings.
    pub fn permits(&self, operation: &Operation) -> Result<(), Failure> {
        plan::permitted(operation, &self.settings.policy, self.settings.download.max_bytes)
    }

    /// What the running system says of itself.
    pub fn os_release(&self) -> OsRelease {
        OsRelease::read(&self.settings.system.os_release)
    }
}

pub(super) fn internal(error: &dyn std::error::Error) -> Failure {
    Failure::new(Code::Internal, error.to_string())
}

fn pem_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "pem"));
    paths.sort();
    Ok(paths)
}

/// A folder of keys holds small files and nothing that reading could wait for.
fn read_key(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = open_regular(path).and_then(|file| file.take(KEY_LIMIT).read_to_string(&mut text));
    match read.map_err(|error| error.to_string())? as u64 {
        KEY_LIMIT => Err("it is no small file; a public key in PEM has about 100 bytes".to_owned()),
        _ => Ok(text),
    }
}

/// The fields of os-release(5) that matter here.
#[derive(Debug, Clone, Default)]
pub struct OsRelease {
    /// `IMAGE_VERSION`, else `VERSION_ID`.
    pub version: Option<String>,
    /// `FWUPDATE_SECURITY_VERSION`: the floor that this image brings along.
    pub security_version: u64,
    /// What stands there and is no number: it counts as 0.
    pub misread: Option<String>,
}

impl OsRelease {
    fn read(path: &Path) -> OsRelease {
        OsRelease::parse(&fs::read_to_string(path).unwrap_or_default())
    }

    fn parse(text: &str) -> OsRelease {
        let field = |name: &str| {
            let mut fields = text.lines().rev().filter_map(|line| line.split_once('='));
            let (_, value) = fields.find(|(key, _)| key.trim() == name)?;
            Some(value.trim().trim_matches(['"', '\'']))
        };
        let version = field("IMAGE_VERSION").or_else(|| field("VERSION_ID")).filter(|text| !text.is_empty());
        let number = field("FWUPDATE_SECURITY_VERSION").filter(|text| !text.is_empty());
        let security_version = number.and_then(|number| number.parse().ok());
        OsRelease {
            version: version.map(str::to_owned),
            misread: number.filter(|_| security_version.is_none()).map(str::to_owned),
            security_version: security_version.unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_names_version_and_floor() {
        let text = "ID=debian\nVERSION_ID=\"12\"\nIMAGE_VERSION='1.4.0'\nFWUPDATE_SECURITY_VERSION=3\n";
        let found = OsRelease::parse(text);
        assert_eq!((found.version.as_deref(), found.security_version), (Some("1.4.0"), 3));
        let plain = OsRelease::parse("VERSION_ID=\"12\"\n# comment\n=\n");
        assert_eq!((plain.version.as_deref(), plain.security_version), (Some("12"), 0));
        assert_eq!(OsRelease::parse("").version, None);
        for (text, misread) in
            [("", None), ("\"7\"\r", None), ("v3", Some("v3")), ("3.0", Some("3.0")), ("-1", Some("-1"))]
        {
            let found = OsRelease::parse(&format!("FWUPDATE_SECURITY_VERSION={text}\n"));
            assert_eq!(found.misread.as_deref(), misread, "{text:?}");
        }
    }
}
