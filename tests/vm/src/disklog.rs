//! QEMU's log of a disk's writes (blklogwrites, in the format of dm-log-writes: Documentation/admin-guide/
//! device-mapper/log-writes.rst), and what a disk may hold after power was cut somewhere in it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::examine::DATA;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const SECTOR: u64 = 512;
/// Flag of an entry: all before it is on the medium.
pub const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// What of the writes since the last flush is lost.
#[derive(Debug)]
pub enum Loss {
    /// All were written.
    Nothing,
    /// Each write is kept, lost, or cut short after some sectors; in any order.
    Random(fastrand::Rng),
}

/// How much a log holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub writes: usize,
    pub flushes: usize,
    /// Writes after the last flush, and how many of them did not survive whole.
    pub unflushed: usize,
    pub lost: usize,
}

/// One entry of the log.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Bytes on the disk.
    offset: u64,
    length: u64,
    /// Where the data lie in the log.
    data: u64,
    flags: u64,
}

/// One write with its data; a flush has none.
#[derive(Debug)]
pub struct Write {
    /// Bytes on the disk.
    pub offset: usize,
    pub data: Vec<u8>,
    pub flags: u64,
}

/// All of a log, in memory.
pub fn writes(log: &Path) -> Result<Vec<Write>> {
    let file = File::open(log).with_context(|| log.display().to_string())?;
    let load = |entry: Entry| {
        let mut data = vec![0; usize::try_from(entry.length)?];
        if entry.flags & DISCARD == 0 {
            file.read_exact_at(&mut data, entry.data)?;
        }
        Ok(Write { offset: usize::try_from(entry.offset)?, data, flags: entry.flags })
    };
    read(&file)?.into_iter().map(load).collect()
}

/// Carries the writes of `log` over to `disk`, without what `loss` takes away.
pub fn apply(log: &Path, disk: &Path, loss: &mut Loss) -> Result<Summary> {
    let file = File::open(log).with_context(|| log.display().to_string())?;
    let entries = read(&file)?;
    let disk = OpenOptions::new().write(true).open(disk)?;
    let durable = entries.iter().rposition(|entry| entry.flags & FLUSH != 0).map_or(0, |last| last + 1);
    let mut summary = Summary {
        writes: entries.iter().filter(|entry| entry.length > 0).count(),
        flushes: entries.iter().filter(|entry| entry.flags & FLUSH != 0).count(),
        ..Summary::default()
    };
    for (index, entry) in entries.iter().enumerate() {
        let mut entry = *entry;
        if index >= durable && entry.flags & FUA == 0 && entry.length > 0 {
            summary.unflushed += 1;
            let kept = kept(loss, entry.length, unit(entry.offset));
            summary.lost += usize::from(kept < entry.length);
            entry.length = kept;
        }
        copy(&file, &disk, entry)?;
    }
    Ok(summary)
}

/// What a disk writes at once, at this place. ext4 does not survive half a superblock (its checksum lies in the
/// second sector), so that on the data partition writes tear between pages; everywhere else between sectors.
pub fn unit(offset: u64) -> u64 {
    if offset < DATA.0 as u64 { SECTOR } else { 4096 }
}

/// How many bytes of a write of `length` survive.
fn kept(loss: &mut Loss, length: u64, unit: u64) -> u64 {
    match loss {
        Loss::Nothing => length,
        Loss::Random(rng) => survives(rng, length, unit),
    }
}

/// How many bytes of a write that was not flushed survive a cut: none, all, or a first part of whole units.
pub fn survives(rng: &mut fastrand::Rng, length: u64, unit: u64) -> u64 {
    match rng.u8(0..4) {
        0 => 0,
        1 => rng.u64(0..=length / unit) * unit,
        _ => length,
    }
}

fn copy(log: &File, disk: &File, entry: Entry) -> Result<()> {
    let (mut done, mut buffer) = (0, vec![0; 1 << 20]);
    while done < entry.length {
        let step = (entry.length - done).min(buffer.len() as u64);
        let bytes = buffer.get_mut(..usize::try_from(step)?).context("buffer")?;
        if entry.flags & DISCARD == 0 {
            log.read_exact_at(bytes, entry.data + done)?;
        } else {
            bytes.fill(0);
        }
        disk.write_all_at(bytes, entry.offset + done)?;
        done += step;
    }
    Ok(())
}

/// The entries that the log's superblock counts.
fn read(log: &File) -> Result<Vec<Entry>> {
    if log.metadata()?.len() < SECTOR {
        return Ok(Vec::new());
    }
    let mut head = [0; 28];
    log.read_exact_at(&mut head, 0)?;
    ensure!(number(&head, 0) == MAGIC, "this is no log of writes");
    let count = number(&head, 2);
    let mut place = SECTOR;
    let mut entries = Vec::new();
    for _ in 0..count {
        let mut bytes = [0; 32];
        log.read_exact_at(&mut bytes, place).context("the log ends too early")?;
        let (flags, length) = (number(&bytes, 2), number(&bytes, 1) * SECTOR);
        entries.push(Entry { offset: number(&bytes, 0) * SECTOR, length, data: place + SECTOR, flags });
        place += SECTOR + if flags & DISCARD == 0 { length } else { 0 };
    }
    Ok(entries)
}

/// The `index`th little-endian number.
fn number(bytes: &[u8], index: usize) -> u64 {
    bytes.chunks_exact(8).nth(index).and_then(|chunk| chunk.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of writes `(sector, bytes' value, flags)` of one sector each; a flush has no data.
    fn log(entries: &[(u64, u8, u64)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = Vec::new();
        let mut block = |fields: &[u64]| {
            let mut sector: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
            sector.resize(512, 0);
            bytes.extend(sector);
        };
        block(&[MAGIC, 1, entries.len() as u64, 512]);
        for (sector, value, flags) in entries {
            let count = u64::from(flags & FLUSH == 0);
            block(&[*sector, count, *flags, 0]);
            if count > 0 {
                block(&[u64::from_le_bytes([*value; 8]); 64]);
            }
        }
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn disk_after(entries: &[(u64, u8, u64)], loss: &mut Loss) -> (Vec<u8>, Summary) {
        let disk = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(disk.path(), vec![0; 4 * 512]).unwrap();
        let summary = apply(log(entries).path(), disk.path(), loss).unwrap();
        let content = std::fs::read(disk.path()).unwrap();
        (content.chunks(512).map(|sector| sector[0]).collect(), summary)
    }

    #[test]
    fn without_loss_every_write_is_carried_over_in_order() {
        let entries = [(0, 1, 0), (1, 2, 0), (0, 0, FLUSH), (1, 3, 0)];
        let (sectors, summary) = disk_after(&entries, &mut Loss::Nothing);
        assert_eq!(sectors, [1, 3, 0, 0]);
        assert_eq!(summary, Summary { writes: 3, flushes: 1, unflushed: 1, lost: 0 });
    }

    #[test]
    fn only_what_was_not_flushed_is_ever_lost() {
        let entries = [(0, 1, 0), (0, 0, FLUSH), (1, 2, 0), (2, 3, FUA), (3, 4, 0)];
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let (sectors, _) = disk_after(&entries, &mut Loss::Random(fastrand::Rng::with_seed(seed)));
            assert_eq!((sectors[0], sectors[2]), (1, 3), "flushed or forced to the medium");
            outcomes.insert((sectors[1], sectors[3]));
        }
        assert_eq!(outcomes.len(), 4, "later writes may survive earlier ones: {outcomes:?}");
    }
}
