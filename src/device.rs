//! What the kernel knows of block devices: which device a name means, and what a mounted file system really
//! stands on (through partitions, loop devices, device mapper and overlays).

/// A device or file, however it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// A block device by its number (`st_rdev`).
    Block { major: u64, minor: u64 },
    /// A regular file by the file system it lies on and its inode.
    File { device: u64, inode: u64 },
}
