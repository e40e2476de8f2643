//! What is in a file that shall become a slot's content, told by its first bytes. A slot holds a file system as the
//! kernel mounts it; a whole disk, an archive or a compressed image in its place makes a gateway that does not boot.
//! What is not known passes: a slot may hold what this program has never heard of.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use fwupdate::failure::Code;
use fwupdate::manifest::BLOCK;

use crate::files;
use crate::output::Result;

/// Bytes that are looked at: the magic of btrfs is the last, behind 64 KiB.
const HEAD: usize = 68 * 1024;

/// Bytes at a place, what they mean, and what to do about it.
type Magic = (usize, &'static [u8], &'static str, &'static str);

const PARTITION: &str = ": take the partition of the root file system";
const UNPACK: &str = ": unpack it, a bundle is compressed anyway";
const CONVERT: &str = ": convert it with `qemu-img convert -O raw`";
const BLOCK_DEVICE: &str = ": a slot is a block device";
const FILES: &str = ": a file system is made of its files";

/// What is no file system.
const FOREIGN: &[Magic] = &[
    // Behind the first block, of either size.
    (512, b"EFI PART", "a whole disk with a GPT partition table", PARTITION),
    (4096, b"EFI PART", "a whole disk with a GPT partition table", PARTITION),
    (0, b"\x3a\xff\x26\xed", "an Android sparse image", ": unpack it with simg2img"),
    (0, b"\x1f\x8b\x08", "compressed with gzip", UNPACK),
    (0, b"\xfd7zXZ\0", "compressed with xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (4, b"1AY&SY", "compressed with bzip2", UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK),
    (0, b"\x02\x21\x4c\x18", "compressed with lz4", UNPACK),
    (0, b"\x5d\0\0", "compressed with lzma", UNPACK),
    (0, b"LZIP", "compressed with lzip", UNPACK),
    (0, b"\x89LZO\0\r\n", "compressed with lzop", UNPACK),
    (0, b"\x1f\x9d\x90", "compressed with compress", UNPACK),
    (0, b"PK\x03\x04", "a zip archive", ": unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", ": unpack it"),
    (0, b"Rar!", "a rar archive", ": unpack it"),
    (0, b"xar!", "a xar archive", ": unpack it"),
    (0, b"MSCF", "a cabinet archive", ": unpack it"),
    (0, b"!<arch>\n", "a package or an archive of ar", ""),
    (0, b"\xed\xab\xee\xdb", "an rpm package", ""),
    (0, b"070701", "a cpio archive", FILES),
    (0, b"070702", "a cpio archive", FILES),
    (0, b"070707", "a cpio archive", FILES),
    (0, b"\xc7\x71", "a cpio archive", FILES),
    (0, b"\x71\xc7", "a cpio archive", FILES),
    (0, b"QFI\xfb", "a qcow2 disk of a virtual machine", CONVERT),
    (0, b"QED\0", "a qed disk of a virtual machine", CONVERT),
    (0, b"KDMV", "a vmdk disk of a virtual machine", CONVERT),
    (0, b"COWD", "a vmdk disk of a virtual machine", CONVERT),
    (0, b"# Disk DescriptorFile", "a vmdk disk of a virtual machine", CONVERT),
    (0, b"conectix", "a vhd disk of a virtual machine", CONVERT),
    (0, b"vhdxfile", "a vhdx disk of a virtual machine", CONVERT),
    (64, b"\x7f\x10\xda\xbe", "a vdi disk of a virtual machine", CONVERT),
    (32769, b"CD001", "an ISO 9660 image, as for a CD", ": take the root file system in it"),
    (0, b"\x7fELF", "an ELF program", ""),
    (0, b"UBI#", "an image of UBI volumes for raw flash", BLOCK_DEVICE),
    (0, b"\x31\x18\x10\x06", "an image of UBIFS for raw flash", BLOCK_DEVICE),
    (0, b"\x85\x19\x03\x20", "an image of JFFS2 for raw flash", BLOCK_DEVICE),
    (0, b"ANDROID!", "an Android boot image", ""),
    (0, b"\x27\x05\x19\x56", "a U-Boot image of a kernel or a RAM disk", ""),
    (4086, b"SWAPSPACE2", "swap space", ""),
    (0, b"%PDF-", "a PDF document", ""),
    (0, b"\x89PNG\r\n", "a PNG picture", ""),
];

/// Where a file system notes its size: the magic and its place, and how the size is read.
type Sized = (usize, &'static [u8], fn(&[u8]) -> Option<u64>, &'static str);

const SIZED: &[Sized] = &[
    (1080, b"\x53\xef", ext_size, "an ext2, ext3 or ext4 file system"),
    (0, b"hsqs", |head| number(head, 40), "a squashfs file system"),
    (1024, b"\xe2\xe1\xf5\xe0", erofs_size, "an EROFS file system"),
    (65600, b"_BHRfS_M", |head| number(head, 65536 + 112), "a btrfs file system"),
    (1024, b"\x10\x20\xf5\xf2", |head| number(head, 1024 + 36)?.checked_shl(12), "an F2FS file system"),
    (0, b"XFSB", xfs_size, "an XFS file system"),
];

/// Refuses what is no image for a slot.
pub fn check(path: &Path) -> Result<()> {
    let file = files::open(path)?;
    let size = files::size(&file).map_err(files::at(path))?;
    let wrong = |what: String| Err(files::wrong(Code::MalformedRequest, path, what));
    let refused = |what: String| wrong(format!("it is {what}; --any-content takes it all the same"));
    if size == 0 {
        return wrong(format!("it is empty; an image is a positive multiple of {BLOCK} bytes"));
    }
    let mut head = Vec::with_capacity(HEAD);
    (&file).take(HEAD as u64).read_to_end(&mut head).map_err(files::at(path))?;
    if let Some((what, advice)) = foreign(&head) {
        return refused(format!("{what}{advice}"));
    }
    if let Some((what, whole)) = cut_short(&head, size) {
        return refused(format!("{what} of {whole} bytes of which only {size} are there: copy it again"));
    }
    match head.first() {
        Some(byte @ (0 | 0xff)) if is_blank(&file, *byte).map_err(files::at(path))? => {
            refused(format!("nothing but bytes of {byte:#04x}"))
        }
        _ => Ok(()),
    }
}

/// What it is, and what to do about it.
fn foreign(head: &[u8]) -> Option<(&'static str, &'static str)> {
    if let Some(told) = tar(head) {
        return Some(told);
    }
    // A cut or mistaken start must not be taken for a file system: what is one has a mark of its own.
    if SIZED.iter().any(|(at, magic, ..)| has(head, *at, magic)) && !has(head, 512, b"EFI PART") {
        return None;
    }
    let found = FOREIGN.iter().find(|(at, magic, ..)| has(head, *at, magic));
    let mbr = || has_partitions(head).then_some(("a whole disk with an MBR partition table", PARTITION));
    let text = || is_text(head).then_some(("a text", ""));
    found.map(|(.., what, advice)| (*what, *advice)).or_else(mbr).or_else(text)
}

fn has(head: &[u8], at: usize, magic: &[u8]) -> bool {
    head.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// A tar, by the checksum of its first header, which old ones without a magic have, too. Among them bundles.
fn tar(head: &[u8]) -> Option<(&'static str, &'static str)> {
    let header = head.get(..512)?;
    let field = std::str::from_utf8(header.get(148..156)?).ok()?;
    let wanted = u32::from_str_radix(field.trim_matches(['\0', ' ']), 8).ok()?;
    let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) };
    if header.iter().enumerate().map(byte).sum::<u32>() != wanted {
        return None;
    }
    Some(match header.starts_with(b"manifest.json\0") {
        true => ("a bundle already", ": it needs no packing, and the image in it is the member rootfs.zst"),
        false => ("a tar archive", FILES),
    })
}

/// A partition table as PCs have it, and not the boot sector of a FAT or NTFS, which ends in the same two bytes.
fn has_partitions(head: &[u8]) -> bool {
    let names: [(usize, &[u8]); 5] =
        [(54, b"FAT"), (82, b"FAT"), (3, b"NTFS"), (3, b"EXFAT"), (3, b"-FVE-FS-")];
    if !has(head, 510, b"\x55\xaa") || names.iter().any(|(at, name)| has(head, *at, name)) {
        return false;
    }
    let entries: Vec<_> = head.get(446..510).unwrap_or_default().chunks(16).collect();
    let used = |entry: &&[u8]| {
        entry.get(4).is_some_and(|kind| *kind != 0) && entry.get(12..).is_some_and(|n| n != [0; 4])
    };
    entries.iter().all(|entry| matches!(entry.first(), Some(0 | 0x80))) && entries.iter().any(used)
}

/// Lines of letters, as scripts, checksums and hex dumps have them.
fn is_text(head: &[u8]) -> bool {
    let start = head.get(..head.len().min(4096)).unwrap_or_default();
    let end = start.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    let text = start.get(..end).unwrap_or_default();
    // The last letter may be cut.
    let valid = std::str::from_utf8(text).map_or_else(|error| error.valid_up_to() + 4 > text.len(), |_| true);
    let control = |byte: &u8| *byte < b' ' && !matches!(*byte, b'\n' | b'\r' | b'\t' | 0x0c | 0x1b);
    valid && text.contains(&b'\n') && !text.iter().any(control)
}

/// A file system that says itself to be larger than the file.
fn cut_short(head: &[u8], size: u64) -> Option<(&'static str, u64)> {
    let (.., read, what) = SIZED.iter().find(|(at, magic, ..)| has(head, *at, magic))?;
    read(head).filter(|whole| *whole > size).map(|whole| (*what, whole))
}

/// Blocks, and their size as a power of two above 1024 bytes (ext4's disk layout, struct ext4_super_block).
fn ext_size(head: &[u8]) -> Option<u64> {
    let (blocks, shift) = (short(head, 1024 + 4)?, short(head, 1024 + 24)?);
    (shift <= 6).then(|| u64::from(blocks) << (10 + shift))
}

/// Blocks, and their size as a power of two (struct erofs_super_block).
fn erofs_size(head: &[u8]) -> Option<u64> {
    let (blocks, shift) = (short(head, 1024 + 36)?, *head.get(1024 + 12)?);
    (9..=16).contains(&shift).then(|| u64::from(blocks) << shift)
}

/// Blocks, and their size in bytes, both in network order (struct xfs_dsb).
fn xfs_size(head: &[u8]) -> Option<u64> {
    number(head, 8)?.swap_bytes().checked_mul(short(head, 4)?.swap_bytes().into())
}

fn short(head: &[u8], at: usize) -> Option<u32> {
    head.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn number(head: &[u8], at: usize) -> Option<u64> {
    head.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

/// Whether every byte is this one; ends at the first other.
fn is_blank(file: &File, byte: u8) -> io::Result<bool> {
    let (mut buffer, mut at) = (vec![0; 1 << 20], 0);
    loop {
        let read = file.read_at(&mut buffer, at)?;
        if read == 0 {
            return Ok(true);
        }
        if buffer.get(..read).unwrap_or_default().iter().any(|found| *found != byte) {
            return Ok(false);
        }
        at = at.saturating_add(read as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0xa5; HEAD];
        head[at..at + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn each_magic_is_told_and_noise_passes() {
        for (at, magic, what, _) in FOREIGN {
            assert_eq!(foreign(&with(*at, magic)).map(|(told, _)| &told[..8]), Some(&what[..8]));
        }
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..50 {
            let mut noise = vec![0; HEAD];
            random.fill(&mut noise);
            // Two bytes of a magic may be met by chance.
            noise[0] = 0;
            assert_eq!(foreign(&noise), None);
        }
        assert_eq!(foreign(&[]), None);
    }

    #[test]
    fn a_partition_table_is_no_boot_sector() {
        let mut disk = with(510, b"\x55\xaa");
        disk[446..510].fill(0);
        assert!(!has_partitions(&disk), "no partition");
        disk[446 + 4] = 0x83;
        disk[446 + 13] = 8;
        assert!(has_partitions(&disk));
        disk[82..85].copy_from_slice(b"FAT");
        assert!(!has_partitions(&disk));
    }

    #[test]
    fn text_has_lines_and_letters() {
        let padded = [b"#!/bin/sh\necho ok\n".as_slice(), &[0; 100]].concat();
        assert!(is_text(&padded) && is_text("Größe\n".as_bytes()));
        assert!(
            !is_text(b"aaaa")
                && !is_text(&[0; 4096])
                && !is_text(b"a\n\x01")
                && !is_text(b"\xff\n\xff\xff\xff\xff")
        );
    }
}
