//! A folder on a medium that can be held up: a FUSE file system that passes everything on to another folder, and while
//! it is held answers to nothing that reads or writes. Mounting needs root and /dev/fuse; without them a test says so
//! and passes over.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

const ROOT: u64 = 1;
/// Nothing is cached: every transfer is one of the medium.
const TTL: Duration = Duration::ZERO;

/// A folder that was moved onto the medium, under the path that it had.
pub struct Medium {
    gate: Arc<Gate>,
    /// Unmounts.
    _session: BackgroundSession,
}

impl Medium {
    /// Puts `folder` on a medium of its own. `None` where nothing can be mounted.
    pub fn under(folder: &Path) -> Option<Medium> {
        let backing = folder.with_extension("backing");
        fs::rename(folder, &backing).unwrap();
        fs::create_dir(folder).unwrap();
        let gate = Arc::new(Gate::default());
        let files = Files::over(backing.clone(), gate.clone());
        match fuser::spawn_mount(files, folder, &Config::default()) {
            Ok(session) => Some(Medium { gate, _session: session }),
            Err(error) => {
                eprintln!("skipped: no FUSE file system can be mounted: {error}");
                fs::remove_dir(folder).unwrap();
                fs::rename(&backing, folder).unwrap();
                None
            }
        }
    }

    /// From now on it does not answer, until it is released.
    pub fn hold(&self) {
        self.gate.state().held = true;
    }

    pub fn release(&self) {
        self.gate.state().held = false;
        self.gate.changed.notify_all();
    }

    /// Returns once somebody waits for it.
    pub async fn awaited(&self) {
        let gate = self.gate.clone();
        tokio::task::spawn_blocking(move || {
            let mut state = gate.state();
            while state.waiting == 0 {
                state = gate.changed.wait(state).unwrap();
            }
        })
        .await
        .unwrap();
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        // What is held can't be unmounted.
        self.release();
    }
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    held: bool,
    waiting: u32,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn pass(&self) {
        let mut state = self.state();
        if !state.held {
            return;
        }
        state.waiting += 1;
        self.changed.notify_all();
        while state.held {
            state = self.changed.wait(state).unwrap();
        }
        state.waiting -= 1;
    }
}

struct Files {
    gate: Arc<Gate>,
    paths: Mutex<HashMap<u64, PathBuf>>,
    open: Mutex<HashMap<u64, Arc<File>>>,
    next: AtomicU64,
}

impl Files {
    fn over(backing: PathBuf, gate: Arc<Gate>) -> Files {
        let paths = Mutex::new(HashMap::from([(ROOT, backing)]));
        Files { gate, paths, open: Mutex::default(), next: AtomicU64::new(ROOT + 1) }
    }

    fn path(&self, inode: INodeNo) -> PathBuf {
        self.paths.lock().unwrap()[&inode.0].clone()
    }

    /// One inode a path, for as long as the path is not given away.
    fn inode(&self, path: &Path) -> u64 {
        let mut paths = self.paths.lock().unwrap();
        let known = paths.iter().find(|(_, known)| *known == path).map(|(inode, _)| *inode);
        known.unwrap_or_else(|| {
            let inode = self.next.fetch_add(1, Ordering::Relaxed);
            paths.insert(inode, path.to_owned());
            inode
        })
    }

    fn attributes(&self, inode: u64, path: &Path) -> io::Result<FileAttr> {
        let meta = fs::symlink_metadata(path)?;
        let kind = if meta.is_dir() { FileType::Directory } else { FileType::RegularFile };
        let [atime, mtime, ctime, crtime] = [UNIX_EPOCH; 4];
        let (ino, size, blocks) = (INodeNo(inode), meta.len(), meta.blocks());
        let (perm, nlink) = ((meta.mode() & 0o7777) as u16, meta.nlink() as u32);
        let (uid, gid, rdev, flags, blksize) = (meta.uid(), meta.gid(), 0, 0, 4096);
        Ok(FileAttr {
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
        })
    }

    fn entry(&self, path: &Path) -> io::Result<FileAttr> {
        let inode = self.inode(path);
        self.attributes(inode, path)
    }

    fn opened(&self, options: &OpenOptions, path: &Path) -> io::Result<FileHandle> {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap().insert(handle, Arc::new(options.open(path)?));
        Ok(FileHandle(handle))
    }

    fn file(&self, handle: FileHandle) -> Arc<File> {
        self.open.lock().unwrap()[&handle.0].clone()
    }
}

fn options(flags: OpenFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    let access = flags.0 & nix::libc::O_ACCMODE;
    options.read(access != nix::libc::O_WRONLY).write(access != nix::libc::O_RDONLY);
    options.truncate(flags.0 & nix::libc::O_TRUNC != 0);
    options
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.entry(&self.path(parent).join(name)) {
            Ok(found) => reply.entry(&TTL, &found, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode.0, &self.path(inode)) {
            Ok(found) => reply.attr(&TTL, &found),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let path = self.path(inode);
        let change = || {
            if let Some(mode) = mode {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&path)?.set_len(size)?;
            }
            self.attributes(inode.0, &path)
        };
        match change() {
            Ok(found) => reply.attr(&TTL, &found),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let path = self.path(parent).join(name);
        match fs::create_dir(&path).and_then(|()| self.entry(&path)) {
            Ok(found) => reply.entry(&TTL, &found, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match fs::remove_file(self.path(parent).join(name)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (self.path(parent).join(name), self.path(new_parent).join(new_name));
        match fs::rename(&from, &to) {
            Ok(()) => {
                let inode = self.inode(&from);
                let mut paths = self.paths.lock().unwrap();
                paths.retain(|_, path| *path != to);
                paths.insert(inode, to);
                reply.ok();
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.gate.pass();
        match self.opened(&options(flags), &self.path(inode)) {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.gate.pass();
        let path = self.path(parent).join(name);
        let opened = self.opened(options(OpenFlags(flags)).write(true).create(true), &path);
        match opened.and_then(|handle| Ok((handle, self.entry(&path)?))) {
            Ok((handle, found)) => {
                reply.created(&TTL, &found, Generation(0), handle, FopenFlags::FOPEN_DIRECT_IO)
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.gate.pass();
        let mut bytes = vec![0; size as usize];
        match self.file(handle).read_at(&mut bytes, offset) {
            Ok(length) => reply.data(&bytes[..length]),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.gate.pass();
        match self.file(handle).write_all_at(bytes, offset) {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.open.lock().unwrap().remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.gate.pass();
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.gate.pass();
        reply.ok();
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let path = self.path(inode);
        let entries = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap());
        let own = [(inode.0, FileType::Directory, ".".into()), (inode.0, FileType::Directory, "..".into())];
        let others = entries.map(|entry| {
            let kind = if entry.path().is_dir() { FileType::Directory } else { FileType::RegularFile };
            (self.inode(&entry.path()), kind, entry.file_name())
        });
        for (index, (inode, kind, name)) in own.into_iter().chain(others).enumerate().skip(offset as usize) {
            if reply.add(INodeNo(inode), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
