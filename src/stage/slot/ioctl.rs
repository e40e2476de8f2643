//! The two block-device requests that the kernel offers as ioctls only. This is the one module that may use
//! `unsafe`: nix's macros make unsafe functions, and each call below says why it is sound.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    // <linux/fs.h>: BLKSSZGET and BLKZEROOUT carry no size in their numbers.
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), nix::libc::c_int);
    nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// Logical sector size of a block device, bytes.
pub fn sector_size(device: &File) -> io::Result<u64> {
    let mut size: nix::libc::c_int = 0;
    // SAFETY: the descriptor is open for the whole call, and the kernel writes one int to `size`.
    unsafe { raw::blksszget(device.as_raw_fd(), &mut size) }?;
    u64::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Makes a sector-aligned range read as zeros, never by discarding it: a device may forget a discard.
pub fn zero_out(device: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: the descriptor is open for the whole call, and the kernel only reads the two u64 of `range`.
    unsafe { raw::blkzeroout(device.as_raw_fd(), &range) }?;
    Ok(())
}
