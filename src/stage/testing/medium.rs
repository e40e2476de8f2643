//! A slot file on a medium that fails as a test wants it to: a FUSE file system with this one file, so that the errors
//! come the way that a medium's errors come, through the kernel. Mounting needs root and /dev/fuse; without them a test
//! says so and passes over.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};
use tempfile::TempDir;

const SLOT: INodeNo = INodeNo(2);
const NAME: &str = "slot";
const TTL: Duration = Duration::MAX;

/// A transfer that the kernel asks for: at most 128 KiB.
pub struct Transfer<'a> {
    pub offset: u64,
    /// What a read would give, or what is to be written.
    pub bytes: &'a [u8],
    pub is_write: bool,
}

impl Transfer<'_> {
    /// Whether it has this byte of the file.
    pub fn has(&self, place: u64) -> bool {
        (self.offset..self.offset + self.bytes.len() as u64).contains(&place)
    }
}

/// What becomes of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Done,
    /// EIO.
    Failed,
    /// Done, says the medium, and did not write.
    Lost,
    /// Done as far as so many bytes.
    Short(usize),
}

type Rule = Box<dyn FnMut(&Transfer<'_>) -> Fate + Send>;

struct State {
    content: Vec<u8>,
    rule: Rule,
}

/// The mounted file.
pub struct Medium {
    state: Arc<Mutex<State>>,
    /// Unmounts, and only then the folder goes.
    _session: BackgroundSession,
    folder: TempDir,
}

impl Medium {
    /// A medium without faults. `None` where nothing can be mounted.
    pub fn holding(content: &[u8]) -> Option<Medium> {
        let state = State { content: content.to_vec(), rule: Box::new(|_| Fate::Done) };
        let (state, folder) = (Arc::new(Mutex::new(state)), tempfile::tempdir().unwrap());
        let mounted = fuser::spawn_mount(Files(state.clone()), folder.path(), &Config::default());
        let mounted =
            mounted.inspect_err(|error| eprintln!("skipped: no FUSE file system can be mounted: {error}"));
        Some(Medium { state, _session: mounted.ok()?, folder })
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join(NAME)
    }

    /// From now on `rule` decides.
    pub fn follow(&self, rule: impl FnMut(&Transfer<'_>) -> Fate + Send + 'static) {
        self.state().rule = Box::new(rule);
    }

    /// What it holds, whatever it says when it is read.
    pub fn content(&self) -> Vec<u8> {
        self.state().content.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

struct Files(Arc<Mutex<State>>);

impl Files {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let (kind, size) = match inode {
            SLOT => (FileType::RegularFile, self.0.lock().unwrap().content.len() as u64),
            _ => (FileType::Directory, 0),
        };
        let [atime, mtime, ctime, crtime] = [UNIX_EPOCH; 4];
        let (perm, nlink, uid, gid, rdev, flags, blksize) = (0o700, 1, 0, 0, 0, 0, 4096);
        let (ino, blocks) = (inode, size / 512);
        FileAttr {
            ino,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            crtime,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            flags,
            blksize,
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&TTL, &self.attributes(SLOT), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Every transfer is one of the medium, and may be a short one.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.0.lock().unwrap();
        let State { content, rule } = &mut *state;
        let start = (offset as usize).min(content.len());
        let bytes = &content[start..(start + size as usize).min(content.len())];
        match rule(&Transfer { offset, bytes, is_write: false }) {
            Fate::Done | Fate::Lost => reply.data(bytes),
            Fate::Short(length) => reply.data(&bytes[..length.min(bytes.len())]),
            Fate::Failed => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock().unwrap();
        let State { content, rule } = &mut *state;
        let length = match rule(&Transfer { offset, bytes, is_write: true }) {
            Fate::Done => bytes.len(),
            Fate::Short(length) => length.min(bytes.len()),
            Fate::Lost => return reply.written(bytes.len() as u32),
            Fate::Failed => return reply.error(Errno::EIO),
        };
        content[offset as usize..][..length].copy_from_slice(&bytes[..length]);
        reply.written(length as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }
}
