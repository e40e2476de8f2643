//! The bytes of one copy of the record: a header line, JSON, and spaces up to the end of the file.

/// Bytes of each file; a record must fit with its header.
pub const CAPACITY: usize = 64 * 1024;

/// The format of the envelope. What the record holds changes additively and needs no new number.
const VERSION: u64 = 1;

const MAGIC: &str = "fwupdate-record";

/// A record and its place in the order of saves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCopy {
    pub sequence: u64,
    pub body: Vec<u8>,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Never written: nothing but spaces, or the zeros that some file systems leave after a cut.
    Blank,
    Valid(StoredCopy),
    Damaged,
    /// Whole, but of a format that this agent does not know.
    Newer(u64),
}

impl StoredCopy {
    /// Whether this copy was saved later: sequence numbers go round, so that none of them is the last.
    pub fn follows(&self, other: &StoredCopy) -> bool {
        let ahead = self.sequence.wrapping_sub(other.sequence);
        (1..u64::MAX / 2).contains(&ahead)
    }

    /// Header and body; `Err` gives the bytes that would be needed.
    pub fn render(&self) -> Result<Vec<u8>, usize> {
        let StoredCopy { sequence, body } = self;
        let head = format!("{MAGIC} {VERSION} seq={sequence} len={} crc32=", body.len());
        let mut bytes = format!("{head}{:08x}\n", checksum(&head, body)).into_bytes();
        bytes.extend_from_slice(body);
        bytes.push(b'\n');
        if bytes.len() > CAPACITY { Err(bytes.len()) } else { Ok(bytes) }
    }
}

/// Covers the header's fields too: a flipped bit in `seq` must not make an old record the newest.
fn checksum(head: &str, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head.as_bytes());
    hasher.update(body);
    hasher.finalize()
}

pub fn parse(bytes: &[u8]) -> CopyState {
    if bytes.iter().all(|byte| matches!(byte, b' ' | 0)) {
        return CopyState::Blank;
    }
    match parse_valid(bytes) {
        Some((VERSION, copy)) => CopyState::Valid(copy),
        Some((version, _)) => CopyState::Newer(version),
        None => CopyState::Damaged,
    }
}

/// The header's fields and checksum are the same in every version.
fn parse_valid(bytes: &[u8]) -> Option<(u64, StoredCopy)> {
    let newline = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = bytes.split_at_checked(newline)?;
    let line = std::str::from_utf8(line).ok()?;
    let (head, crc) = line.split_at_checked(line.rfind('=')?.checked_add(1)?)?;
    let mut fields = head.strip_prefix(MAGIC)?.strip_prefix(' ')?.split(' ');
    let version = fields.next()?.parse().ok()?;
    let sequence = fields.next()?.strip_prefix("seq=")?.parse().ok()?;
    let length = fields.next()?.strip_prefix("len=")?.parse().ok()?;
    let body = rest.get(1..)?.get(..length)?;
    let whole = u32::from_str_radix(crc, 16).ok()? == checksum(head, body);
    whole.then(|| (version, StoredCopy { sequence, body: body.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy() -> StoredCopy {
        StoredCopy { sequence: 12, body: b"{\"phase\":\"idle\"}".to_vec() }
    }

    #[test]
    fn a_copy_survives_the_round_trip_with_padding() {
        let mut bytes = copy().render().unwrap();
        assert!(bytes.starts_with(b"fwupdate-record 1 seq=12 len=16 crc32="));
        bytes.resize(CAPACITY, b' ');
        assert_eq!(parse(&bytes), CopyState::Valid(copy()));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = copy().render().unwrap();
        // The newline at the end is for people.
        for bit in 0..(bytes.len() - 1) * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Upper-case hexadecimal digits of the checksum mean the same.
            assert!(
                matches!(parse(&bad), CopyState::Damaged) || parse(&bad) == CopyState::Valid(copy()),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn every_prefix_is_damaged_or_blank() {
        let bytes = copy().render().unwrap();
        for end in 0..bytes.len() - 1 {
            let mut torn = bytes[..end].to_vec();
            torn.resize(CAPACITY, b' ');
            assert!(matches!(parse(&torn), CopyState::Damaged | CopyState::Blank), "{end}");
        }
        assert_eq!(parse(&[]), CopyState::Blank);
        assert_eq!(parse(&[0; 100]), CopyState::Blank);
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let head = "fwupdate-record 2 seq=1 len=2 crc32=";
        let bytes = format!("{head}{:08x}\n[]\n", checksum(head, b"[]"));
        assert_eq!(parse(bytes.as_bytes()), CopyState::Newer(2));
        assert_eq!(parse(bytes.replace("=1", "=3").as_bytes()), CopyState::Damaged);
    }

    #[test]
    fn the_largest_record_fits_and_one_byte_more_does_not() {
        let head = StoredCopy { sequence: 1, body: vec![b'x'; 60_000] }.render().unwrap().len() - 60_000;
        assert_eq!(
            StoredCopy { sequence: 1, body: vec![b'x'; CAPACITY - head] }.render().unwrap().len(),
            CAPACITY
        );
        assert_eq!(
            StoredCopy { sequence: 1, body: vec![b'x'; CAPACITY - head + 1] }.render(),
            Err(CAPACITY + 1)
        );
    }
}
