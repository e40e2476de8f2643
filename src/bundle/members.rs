//! The members of a bundle: their names and order, and what is checked around a content: its header, the padding
//! behind it and the header of the next member.

use std::ops::Range;

use super::error::BundleError;
use super::tar;
use crate::manifest::PATCHES_CAP;

/// The members, in the order in which they must come.
pub const MEMBERS: [&str; 4] = ["manifest.json", "manifest.sig", "rootfs.index", "rootfs.zst"];

/// The index and the frames of each patch: they follow, in the order of the manifest's list.
pub const PATCH_MEMBERS: [[&str; 2]; PATCHES_CAP] = [
    ["patch-1.index", "patch-1.zst"],
    ["patch-2.index", "patch-2.zst"],
    ["patch-3.index", "patch-3.zst"],
    ["patch-4.index", "patch-4.zst"],
    ["patch-5.index", "patch-5.zst"],
    ["patch-6.index", "patch-6.zst"],
    ["patch-7.index", "patch-7.zst"],
    ["patch-8.index", "patch-8.zst"],
];

/// A whole member at `at`, and where the next header is.
pub(super) fn small<'a>(
    bytes: &'a [u8],
    at: usize,
    member: &'static str,
    cap: usize,
) -> Result<(&'a [u8], usize), BundleError> {
    let size = tar::parse(slice(bytes, at, tar::BLOCK)?, member)?;
    let length = usize::try_from(size).ok().filter(|length| *length <= cap);
    let Some(length) = length else {
        let rule = "the limit";
        return Err(BundleError::Size { member, found: size, expected: cap as u64, rule });
    };
    let padded = length.next_multiple_of(tar::BLOCK);
    let start = at.saturating_add(tar::BLOCK);
    let (content, padding) = slice(bytes, start, padded)?.split_at(length);
    zeros(padding, member)?;
    Ok((content, start.saturating_add(padded)))
}

pub(super) fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], BundleError> {
    let end = at.saturating_add(length);
    bytes.get(at..end).ok_or(BundleError::Short { need: end as u64 })
}

fn zeros(padding: &[u8], member: &'static str) -> Result<(), BundleError> {
    if padding.iter().any(|byte| *byte != 0) {
        return Err(BundleError::Padding { member });
    }
    Ok(())
}

/// Takes apart a content, its padding and the header of the next member; returns the content.
pub(super) fn between<'a>(
    bytes: &'a [u8],
    own: (&'static str, &Range<u64>),
    next: (&'static str, &Range<u64>),
) -> Result<&'a [u8], BundleError> {
    let length = usize::try_from(own.1.end.saturating_sub(own.1.start)).unwrap_or(usize::MAX);
    let content = slice(bytes, 0, length)?;
    after(bytes.get(length..).unwrap_or_default(), own, next)?;
    Ok(content)
}

/// Checks what follows a content: its padding and the header of the next member.
pub(super) fn after(
    bytes: &[u8],
    (member, place): (&'static str, &Range<u64>),
    (next, next_place): (&'static str, &Range<u64>),
) -> Result<(), BundleError> {
    let padding = tar::padded(place.end).saturating_sub(place.end) as usize;
    zeros(slice(bytes, 0, padding)?, member)?;
    signed_size(slice(bytes, padding, tar::BLOCK)?, next, next_place)
}

/// The header of `member` must give the size of `place`.
pub(super) fn signed_size(
    header: &[u8],
    member: &'static str,
    place: &Range<u64>,
) -> Result<(), BundleError> {
    let (found, expected) = (tar::parse(header, member)?, place.end.saturating_sub(place.start));
    if found != expected {
        return Err(BundleError::Size { member, found, expected, rule: "signed" });
    }
    Ok(())
}
