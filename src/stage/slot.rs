//! The slot that is written: how it is held, written, withheld from bootloaders and read back.

pub mod frontier;
pub mod ioctl;
pub mod read_back;
pub mod target;
#[cfg(test)]
pub mod testing;
pub mod withheld;
