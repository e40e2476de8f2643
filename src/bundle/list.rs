//! The header of the binary lists in a bundle: eight letters that name the list, the version, and the number of
//! entries.

use crate::manifest::LIST_HEADER;

pub(super) const HEADER: usize = LIST_HEADER as usize;
const VERSION: u32 = 1;

/// The header of a list whose entries were not counted yet.
pub(super) fn begin(magic: &[u8; 8]) -> Vec<u8> {
    [magic.as_slice(), &VERSION.to_le_bytes(), &[0; 4]].concat()
}

/// Notes the number of entries in the header.
pub(super) fn finish(mut bytes: Vec<u8>, count: u32) -> Vec<u8> {
    if let Some(place) = bytes.get_mut(HEADER.saturating_sub(4)..HEADER) {
        place.copy_from_slice(&count.to_le_bytes());
    }
    bytes
}

/// The number of entries that a header gives, and what follows it; `None` if it is no header of such a list.
pub(super) fn read<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> Option<(u32, &'a [u8])> {
    let (version, rest) = word(bytes.strip_prefix(magic)?)?;
    word(rest).filter(|_| version == VERSION)
}

/// The number that `bytes` begin with, and what follows it.
pub(super) fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*word), rest))
}
