//! A bundle on a web server or in a file: what is known of it, whichever way it is read.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, PoisonError};

use crate::manifest::Digest;
use crate::stage::download::budget::Meter;
use crate::stage::download::http::{BundleSource, Http};
use crate::stage::download::web::Web;
use crate::stage::error::{StageError, finished};

/// One bundle, opened for reading by ranges.
#[derive(Debug)]
pub(in crate::stage) struct Remote {
    name: String,
    pub kind: RemoteKind,
    meter: Arc<Meter>,
}

#[derive(Debug)]
pub(in crate::stage) enum RemoteKind {
    File { file: Arc<File>, size: u64 },
    Http(Box<Web>),
}

impl Remote {
    /// Opens a file; a URL is only checked.
    pub async fn new(source: BundleSource, http: &Http, meter: Arc<Meter>) -> Result<Remote, StageError> {
        let name = source.to_string();
        let kind = match source {
            BundleSource::File(path) => {
                finished(tokio::task::spawn_blocking(move || open_file(&path))).await?
            }
            BundleSource::Http(url) => {
                let reason = http.hosts.check(&url);
                reason.map_err(|reason| StageError::NotPermitted { url: name.clone(), reason })?;
                RemoteKind::Http(Box::new(Web::new(http.clone(), url, meter.clone())))
            }
        };
        Ok(Remote { name, kind, meter })
    }

    /// The source, redacted: for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Refuses what the data budget does not cover, if reading costs data.
    pub fn afford(&self, bytes: u64) -> Result<(), StageError> {
        if self.is_metered() { self.meter.afford(bytes) } else { Ok(()) }
    }

    pub fn is_metered(&self) -> bool {
        matches!(self.kind, RemoteKind::Http(_))
    }

    /// Size of the whole bundle, if it is known yet.
    pub fn size(&self) -> Option<u64> {
        match &self.kind {
            RemoteKind::File { size, .. } => Some(*size),
            RemoteKind::Http(web) => web.size.get().copied().or_else(|| web.seen().known?.size),
        }
    }

    /// Remembers the verified first bytes and the size of the bundle: should servers tell another version of it, reading
    /// goes on only if it still begins with them.
    pub fn remember(&self, head: &[u8], size: u64) {
        if let RemoteKind::Http(web) = &self.kind {
            *web.head.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((head.len() as u64, Digest::of(head)));
            web.size.set(size).ok();
        }
    }

    pub(in crate::stage) fn is_verified(&self) -> bool {
        matches!(&self.kind, RemoteKind::Http(web) if web.is_verified())
    }

    pub(in crate::stage) fn failed(&self, reason: impl Into<String>) -> StageError {
        StageError::Download { url: self.name.clone(), reason: reason.into() }
    }
}

/// Only a regular file is opened: others may block, or do something.
fn open_file(path: &Path) -> Result<RemoteKind, StageError> {
    let failed = |error: io::Error| {
        // The agent has a user of its own.
        let who = match error.kind() {
            io::ErrorKind::PermissionDenied => ": the user that the agent runs as must be able to read it",
            _ => "",
        };
        let (url, reason) = (path.display().to_string(), format!("{error}{who}"));
        match error.kind() {
            io::ErrorKind::NotFound => StageError::NotFound { url, reason },
            _ => StageError::Download { url, reason },
        }
    };
    let regular = |metadata: std::fs::Metadata| match metadata.is_file() {
        true => Ok(metadata.len()),
        false => {
            Err(failed(io::Error::other(format!("it is {}, and a bundle is a file", kind_of(&metadata)))))
        }
    };
    regular(std::fs::metadata(path).map_err(failed)?)?;
    // Between the two looks it may have become something else.
    let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
    let size = regular(file.metadata().map_err(failed)?)?;
    Ok(RemoteKind::File { size, file: Arc::new(file) })
}

fn kind_of(metadata: &std::fs::Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "no regular file",
    }
}
