//! Files for the commands: errors that name the path, and output that appears whole or not at all.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fwupdate::failure::{Code, Failure};
use fwupdate::manifest::Digest;
use sha2::Digest as _;

use crate::output::Result;

/// What is wrong with the file at `path`.
pub fn wrong(code: Code, path: &Path, what: impl Display) -> Failure {
    Failure::new(code, format!("{}: {what}", path.display()))
}

pub fn at(path: &Path) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => Code::NotFound,
            io::ErrorKind::PermissionDenied => Code::Forbidden,
            _ => Code::Internal,
        };
        wrong(code, path, error)
    }
}

/// Puts the path before the message of a failure that came from its content.
pub fn in_file<E: Into<Failure>>(path: &Path) -> impl Fn(E) -> Failure + '_ {
    move |error| {
        let Failure { code, message, evidence } = error.into();
        Failure { evidence, ..wrong(code, path, message) }
    }
}

/// Opens a file or block device to read it. What else a path may name is not even opened: a pipe would wait for a
/// writer, a folder has no bytes.
pub fn open(path: &Path) -> Result<File> {
    match kind(path).map_err(at(path))? {
        None | Some(BLOCK_DEVICE) => File::open(path).map_err(at(path)),
        Some(what) => {
            Err(wrong(Code::MalformedRequest, path, format!("it is {what}; name a file or a block device")))
        }
    }
}

const BLOCK_DEVICE: &str = "a block device";

/// What a path names that is no file.
fn kind(path: &Path) -> io::Result<Option<&'static str>> {
    let kind = fs::metadata(path)?.file_type();
    Ok(match () {
        () if kind.is_file() => None,
        () if kind.is_block_device() => Some(BLOCK_DEVICE),
        () if kind.is_dir() => Some("a folder"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a character device"),
    })
}

/// Refuses a place that the rename at the end would rob of something else: what the command itself reads, or anything
/// that is no file.
pub fn check_output<'a>(output: &Path, read: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    if let Ok(Some(what)) = kind(output) {
        return Err(wrong(Code::MalformedRequest, output, format!("it is {what}; name a file to write")));
    }
    let same = |read: &PathBuf| {
        output.canonicalize().is_ok_and(|output| read.canonicalize().is_ok_and(|r| r == output))
    };
    match read.into_iter().find(|read| same(read)) {
        Some(read) => Err(wrong(
            Code::MalformedRequest,
            output,
            format!("it is {} itself; name another output", read.display()),
        )),
        None => Ok(()),
    }
}

pub fn read(path: &Path, cap: u64) -> Result<Vec<u8>> {
    let (mut bytes, file) = (Vec::new(), open(path)?);
    file.take(cap + 1).read_to_end(&mut bytes).map_err(at(path))?;
    if bytes.len() as u64 > cap {
        let what = format!("it has more than {cap} bytes; name the right file");
        return Err(wrong(Code::TooLarge, path, what));
    }
    Ok(bytes)
}

/// Bytes of a file or block device. Reading then begins at the start.
pub fn size(mut file: &File) -> io::Result<u64> {
    let size = file.seek(SeekFrom::End(0))?;
    file.rewind().map(|()| size)
}

/// SHA-256 of what follows in a file.
pub fn digest(file: &File) -> io::Result<Digest> {
    let (mut hash, mut reader) = (sha2::Sha256::new(), BufReader::with_capacity(1 << 20, file));
    io::copy(&mut reader, &mut hash)?;
    Ok(Digest(hash.finalize().into()))
}

/// Makes a file that must not exist yet, with these permissions, and syncs it.
pub fn create_new(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path).map_err(at(path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(at(path))
}

/// A scratch file for `what` in the folder of `path` that has no name: it is gone when we are, however we end.
pub fn scratch(path: &Path, what: &str) -> Result<File> {
    let name = beside(path, what);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&name).map_err(at(path))?;
    fs::remove_file(&name).map_err(at(&name))?;
    Ok(file)
}

fn beside(path: &Path, kind: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{kind}", std::process::id()))
}

/// A file that takes the place of `path` only when it is complete and on disk.
pub struct Replacement {
    path: PathBuf,
    name: PathBuf,
    pub file: File,
}

impl Replacement {
    pub fn of(path: &Path) -> Result<Replacement> {
        check_output(path, [])?;
        // Behind a symbolic link it is the file that is replaced, not the link.
        let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = beside(path, "new");
        let file = OpenOptions::new().write(true).create_new(true).open(&name).map_err(at(path))?;
        Ok(Replacement { path: path.to_owned(), name, file })
    }

    pub fn commit(self) -> Result<()> {
        self.file.sync_all().map_err(at(&self.name))?;
        fs::rename(&self.name, &self.path).map_err(at(&self.path))?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // After a commit the name is free; there is nobody to tell of a failure here.
        fs::remove_file(&self.name).unwrap_or_default();
    }
}
