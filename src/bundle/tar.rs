//! ustar headers (POSIX.1-1988), as strict as can be: a header is good only if it is, byte for byte, the one
//! that we would have written for its name, size and time. No links, no long names, no extensions.

use super::error::BundleError;

/// Headers and padded contents come in units of so many bytes.
pub const BLOCK: usize = 512;
/// Zero bytes after the last member.
pub const END: usize = 2 * BLOCK;

const NAME: usize = 100;

pub fn padded(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX)
}

/// The header of a regular file of root's, mode 0644. `None` if the name is longer than 99 bytes, or size or
/// time (seconds since 1970) need more than eleven octal digits.
pub fn build(name: &str, size: u64, mtime: u64) -> Option<[u8; BLOCK]> {
    if name.len() >= NAME {
        return None;
    }
    let fields: [(usize, &[u8]); 15] = [
        (NAME, name.as_bytes()),
        (8, b"0000644"),
        (8, b"0000000"),
        (8, b"0000000"),
        (12, &octal(size)?),
        (12, &octal(mtime)?),
        (8, b"        "),
        (1, b"0"),
        (100, b""),
        (6, b"ustar"),
        (2, b"00"),
        (32, b""),
        (32, b""),
        (8, b"0000000"),
        (8, b"0000000"),
    ];
    let mut header = Vec::with_capacity(BLOCK);
    for (width, text) in fields {
        let end = header.len().saturating_add(width);
        header.extend_from_slice(text);
        header.resize(end, 0);
    }
    header.resize(BLOCK, 0);
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header.get_mut(148..156)?.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.try_into().ok()
}

fn octal(number: u64) -> Option<[u8; 11]> {
    format!("{number:011o}").into_bytes().try_into().ok()
}

/// The size that the header of `member` gives.
pub(super) fn parse(header: &[u8], member: &'static str) -> Result<u64, BundleError> {
    let bad = |reason| BundleError::Header { member, reason };
    if header.get(257..265) != Some(b"ustar\x0000") {
        return Err(bad("no ustar header is there"));
    }
    let mut name = [0; NAME];
    name.iter_mut().zip(member.bytes()).for_each(|(to, from)| *to = from);
    if header.get(..NAME) != Some(&name) {
        return Err(bad("the name there is another one"));
    }
    let number = |at: usize| header.get(at..at.saturating_add(11)).and_then(parse_octal);
    let (size, mtime) = number(124).zip(number(136)).ok_or_else(|| bad("its size or time is no number"))?;
    let canonical = build(member, size, mtime).ok_or_else(|| bad("its header is out of range"))?;
    if canonical != header {
        return Err(bad("its header is damaged or not in canonical form"));
    }
    Ok(size)
}

fn parse_octal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(digit & 7)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> [u8; BLOCK] {
        build("rootfs.zst", 0o1234, 1_700_000_000).unwrap()
    }

    #[test]
    fn a_header_comes_back() {
        assert_eq!(parse(&header(), "rootfs.zst"), Ok(0o1234));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        for bit in 0..8 * BLOCK {
            let mut flipped = header();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&flipped, "rootfs.zst").is_err(), "bit {bit}");
        }
    }

    /// Puts `bytes` at `at` and makes the checksum right again.
    fn forged(at: usize, bytes: &[u8]) -> [u8; BLOCK] {
        let mut header = header();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    #[test]
    fn forged_headers_with_right_checksums_are_refused() {
        assert_eq!(parse(&forged(0, b"rootfs.zst"), "rootfs.zst"), Ok(0o1234));
        for (at, bytes) in [
            (0, b"rootfs.zs2".as_slice()),
            (10, b"x"),
            (20, b"hidden"),
            (100, b"0000755"),
            (124, b"\x80\0\0\0\0\0\0\0\0\0\x02\x9c"),
            (124, b" 00000001234"),
            (124, b"0000001234 \0"),
            (135, b" "),
            (156, b"\0"),
            (156, b"2"),
            (156, b"L"),
            (156, b"x"),
            (157, b"/etc/passwd"),
            (257, b"ustar  \0"),
            (345, b"prefix"),
            (500, b"x"),
        ] {
            assert!(parse(&forged(at, bytes), "rootfs.zst").is_err(), "{bytes:?} at {at}");
        }
    }

    #[test]
    fn what_a_header_cannot_say_is_not_written() {
        assert!(build("x", 0o777_7777_7777, 0).is_some());
        assert!(build("x", 0o1_0000_0000_0000, 0).is_none());
        assert!(build("x", 0, u64::MAX).is_none());
        assert!(build(&"x".repeat(100), 0, 0).is_none());
    }
}
