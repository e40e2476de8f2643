//! `fw_env.config`, which says where U-Boot keeps its environment: one line a copy, `device offset size`
//! (libubootenv, docs/fw_env_config.md).

use std::fs;
use std::path::{Path, PathBuf};

use crate::boot::bootloader::BootError;
use crate::boot::raw;

/// Smallest and largest area that is taken for an environment, in bytes.
const SIZES: std::ops::RangeInclusive<usize> = 16..=1024 * 1024;

/// A configuration file is text of a few lines.
const MAX_CONFIG: u64 = 64 * 1024;

/// One copy of the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub path: PathBuf,
    /// Bytes from the start, or, if negative, from the end of the device.
    pub offset: i64,
    /// Bytes of the whole area, header included.
    pub size: usize,
    /// The line that says so.
    pub line: usize,
}

/// Reads the copies that `config` lists: one or two, all of one size.
pub fn load(config: &Path) -> Result<Vec<Location>, BootError> {
    let failed = raw::failed("read", config);
    if fs::metadata(config).map_err(&failed)?.len() > MAX_CONFIG {
        return Err(wrong(config, 1, "this is too long for an fw_env.config"));
    }
    parse(config, &String::from_utf8_lossy(&fs::read(config).map_err(&failed)?))
}

fn parse(config: &Path, text: &str) -> Result<Vec<Location>, BootError> {
    // Some editors begin a file with a byte order mark.
    let text = text.trim_start_matches('\u{feff}');
    let lines = text.lines().enumerate().map(|(index, line)| (index.saturating_add(1), line.trim()));
    let mut found = Vec::new();
    // Like U-Boot's own tools: what follows a second copy is not looked at.
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).take(2) {
        found.push(parse_line(line, number).map_err(|why| wrong(config, number, why))?);
        check_pair(&found).map_err(|why| wrong(config, number, why))?;
    }
    if found.is_empty() {
        return Err(wrong(config, 1, "no line says where the environment is"));
    }
    Ok(found)
}

fn wrong(config: &Path, line: usize, why: &str) -> BootError {
    BootError::Config { path: config.to_owned(), line, why: why.to_owned() }
}

/// `device offset size`; the fields that may follow (sector size and count) concern raw flash only.
fn parse_line(text: &str, line: usize) -> Result<Location, &'static str> {
    let mut fields = text.split_ascii_whitespace();
    let (Some(path), Some(offset), Some(size)) = (fields.next(), fields.next(), fields.next()) else {
        return Err("a line needs a device, an offset and a size");
    };
    let offset = parse_offset(offset).ok_or("the offset is no number")?;
    let size = parse_hex(size).and_then(|size| usize::try_from(size).ok());
    let size = size.filter(|size| SIZES.contains(size));
    let size = size.ok_or("the size must be a hexadecimal number between 0x10 and 0x100000")?;
    Ok(Location { path: PathBuf::from(path), offset, size, line })
}

/// As C's `%lli`: decimal, octal with a leading 0, hexadecimal with a leading 0x; with or without a sign.
fn parse_offset(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => parse_digits(hex, 16)?,
        None if digits.len() > 1 && digits.starts_with('0') => parse_digits(digits, 8)?,
        None => parse_digits(digits, 10)?,
    };
    let value = i64::try_from(value).ok()?;
    if negative { value.checked_neg() } else { Some(value) }
}

/// As C's `%zx`: hexadecimal whether or not 0x leads.
fn parse_hex(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    parse_digits(digits, 16)
}

fn parse_digits(digits: &str, radix: u32) -> Option<u64> {
    let plain = !digits.starts_with(['+', '-']);
    u64::from_str_radix(digits, radix).ok().filter(|_| plain)
}

fn check_pair(found: &[Location]) -> Result<(), &'static str> {
    let [first, second] = found else { return Ok(()) };
    if first.size != second.size {
        return Err("both copies must have the same size");
    }
    let same_end = (first.offset < 0) == (second.offset < 0);
    if first.path == second.path && same_end && first.offset.abs_diff(second.offset) < first.size as u64 {
        return Err("the two copies overlap");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Location>, BootError> {
        parse(Path::new("fw_env.config"), text)
    }

    #[test]
    fn two_lines_are_two_copies() {
        let text =
            "# MTD device\tOffset\tSize\n\n/dev/mmcblk0p2 0x0 0x4000\n/dev/mmcblk0p2\t0x4000  4000 200 1\n";
        let place = |offset, line| Location { path: "/dev/mmcblk0p2".into(), offset, size: 0x4000, line };
        assert_eq!(parsed(text).unwrap(), [place(0, 3), place(0x4000, 4)]);
    }

    #[test]
    fn offsets_are_c_numbers_and_sizes_always_hexadecimal() {
        for (text, offset, size) in [
            ("/e 64 64", 64, 0x64),
            ("/e 010 0X40", 8, 0x40),
            ("/e -0x2000 1000", -0x2000, 0x1000),
            ("/e +1 10", 1, 0x10),
            ("/e 0 10", 0, 0x10),
        ] {
            assert_eq!(
                parsed(text).unwrap(),
                [Location { path: "/e".into(), offset, size, line: 1 }],
                "{text}"
            );
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line) in [
            ("", 1),
            ("# only\n# comments", 1),
            ("/e 0x0", 1),
            ("\n/e x 0x40", 2),
            ("/e 0 0x8", 1),
            ("/e 0 0x100001", 1),
            ("/e 0 ffffffffffffffff", 1),
            ("/e 0x8000000000000000 40", 1),
            ("/e --1 40", 1),
            ("/e 0 +40", 1),
            ("/e 0 40\n/e 0x40 80", 2),
            ("/e 0 40\n/e 0x3f 40", 2),
        ] {
            match parsed(text) {
                Err(BootError::Config { line: found, .. }) => assert_eq!(found, line, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_boards_and_editors_write_is_read_or_refused_by_its_line() {
        for (text, offsets) in [
            ("/e 0x0 0x4000\r\n/e 0x4000 0x4000\r\n", vec![0, 0x4000]),
            ("/e 0x4000 0x4000\n/e 0x0 0x4000\n", vec![0x4000, 0]),
            ("/e 0x0 0x4000 0x4000 2 # first\n/e 0x4000 0x4000 0x4000 2 # second\n", vec![0, 0x4000]),
            ("  /e\t0 4000\n\t#/x 0 10\n/e 16384 4000", vec![0, 0x4000]),
            ("\u{feff}# made on a PC\n/e 0 4000\n", vec![0]),
            ("\u{feff}/e 0 4000\n", vec![0]),
        ] {
            let found = parsed(text).unwrap();
            assert_eq!(found.iter().map(|place| place.offset).collect::<Vec<_>>(), offsets, "{text:?}");
            assert!(found.iter().all(|place| place.path == Path::new("/e")), "{found:?}");
        }
        for (text, line) in [
            ("/dev/ubi0:env 4000\n", 1),
            ("uboot:\n  size: 0x4000\n  devices:\n", 1),
            ("/e 0,0x4000\n", 1),
            ("/e 0 16384\n/e 0x4000 0x16384\n", 2),
            ("/e 0 0x\n", 1),
            ("/e 0x 40\n", 1),
        ] {
            match parsed(text) {
                Err(BootError::Config { line: found, .. }) => assert_eq!(found, line, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }
}
