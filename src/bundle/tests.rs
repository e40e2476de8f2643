//! Whole bundles: heads, layouts, members and what is refused of them.

use std::ops::Range;

use super::*;
use crate::manifest::{self, Body, MANIFEST_CAP, SIGNATURES_CAP};

#[test]
fn a_bundle_opens_and_unpacks_to_its_image() {
    let image: Vec<u8> = (0..600u32 * 1024).flat_map(|n| n.wrapping_mul(2654435761).to_le_bytes()).collect();
    let file = testing::parts(&image, "board", "1.0").join();
    let head = head(&file).unwrap();
    let manifest = manifest::open(head.manifest, head.signatures, &testing::trust(1), 1).unwrap();
    let layout = head.layout(&manifest).unwrap();
    assert_eq!(layout.file_size(), file.len() as u64);
    let at = |range: Range<u64>| &file[range.start as usize..range.end as usize];
    let index =
        Index::parse(layout.index(at(layout.index_span())).unwrap().to_vec(), &manifest.image).unwrap();
    let (mut decoder, mut unpacked) = (Decoder::default(), Vec::new());
    for chunk in index.iter() {
        let mut out = vec![0; chunk.length as usize];
        let history = &unpacked[chunk.group_offset as usize..];
        decoder.decode(&[(chunk, at(layout.frame(&chunk)))], history, &mut out).unwrap();
        unpacked.extend(out);
    }
    assert!(unpacked == image);
}

#[test]
fn every_beginning_of_a_head_asks_for_more() {
    let parts = testing::parts(&[9; 4096], "board", "1.0");
    let file = parts.join();
    let mut length = 0;
    // Following `need` from nothing leads to the head in a few steps, and never beyond `HEAD_MAX`.
    while let Err(BundleError::Short { need }) = head(&file[..length]) {
        assert!(need as usize > length && need as usize <= HEAD_MAX);
        length = need as usize;
    }
    head(&file[..length]).unwrap();
    let near = (0..=length / 512).flat_map(|n| [n * 512, n * 512 + 1, (n * 512).saturating_sub(1)]);
    for cut in near.filter(|cut| *cut < length) {
        assert!(matches!(head(&file[..cut]), Err(BundleError::Short { .. })), "cut at {cut}");
    }
}

#[test]
fn the_largest_head_fits_head_max() {
    let mut parts = testing::parts(&[9; 4096], "board", "1.0");
    parts.manifest.resize(MANIFEST_CAP, b' ');
    parts.signatures.resize(SIGNATURES_CAP, b' ');
    let file = parts.join();
    assert!(head(&file[..HEAD_MAX]).is_ok());
    assert!(matches!(head(&file[..HEAD_MAX - 1]), Err(BundleError::Short { .. })));
    parts.signatures.push(b' ');
    let expected = SIGNATURES_CAP as u64;
    let error = BundleError::Size { member: MEMBERS[1], found: expected + 1, expected, rule: "the limit" };
    assert_eq!(head(&parts.join()), Err(error));
}

#[test]
fn one_flipped_bit_outside_the_contents_is_noticed() {
    let parts = testing::parts(&[9; 4096], "board", "1.0");
    let (file, body) = (parts.join(), Body::parse(&parts.manifest).unwrap());
    let read = |file: &[u8]| {
        let (layout, same) =
            head(file).and_then(|head| Ok((head.layout(&body)?, head.manifest == parts.manifest)))?;
        let span = layout.index_span();
        let index = layout.index(&file[span.start as usize..span.end as usize])?;
        Ok::<_, BundleError>(same && index == parts.index)
    };
    assert_eq!(read(&file), Ok(true));
    let payload = head(&file).unwrap().layout(&body).unwrap().payload().start as usize;
    let signatures = 1024 + parts.manifest.len().next_multiple_of(512);
    let signatures = signatures..signatures + parts.signatures.len();
    for at in (0..payload).filter(|at| !signatures.contains(at)) {
        let mut flipped = file.clone();
        flipped[at] ^= 1 << (at % 8);
        assert_ne!(read(&flipped), Ok(true), "byte {at}");
    }
}

#[test]
fn headers_must_agree_with_signed_sizes() {
    let mut parts = testing::parts(&[9; 4096], "board", "1.0");
    let body = Body::parse(&parts.manifest).unwrap();
    parts.payload.push(0);
    let file = parts.join();
    let layout = head(&file).unwrap().layout(&body).unwrap();
    let span = layout.index_span();
    for length in 0..span.end - span.start {
        let cut = &file[span.start as usize..(span.start + length) as usize];
        assert!(matches!(layout.index(cut), Err(BundleError::Short { .. })), "{length}");
    }
    let error = layout.index(&file[span.start as usize..span.end as usize]).unwrap_err();
    assert!(matches!(error, BundleError::Size { member: "rootfs.zst", rule: "signed", .. }), "{error}");
    parts.index.push(0);
    let error = head(&parts.join()).unwrap().layout(&body).unwrap_err();
    assert!(matches!(error, BundleError::Size { member: "rootfs.index", .. }), "{error}");
}

#[test]
fn members_in_another_order_are_no_bundle() {
    let parts = testing::parts(&[9; 4096], "board", "1.0");
    let file = parts.join();
    let second = 512 + parts.manifest.len().next_multiple_of(512);
    let error = head(&file[second..]).unwrap_err();
    assert!(matches!(error, BundleError::Header { member: "manifest.json", .. }), "{error}");
    assert!(matches!(head(&vec![0; HEAD_MAX]), Err(BundleError::Header { .. })));
}

#[test]
fn patches_lie_where_the_signed_sizes_say() {
    let image: Vec<u8> = (0..600u32 * 1024).flat_map(|n| n.wrapping_mul(2654435761).to_le_bytes()).collect();
    let old = |at: usize| {
        let mut old = image.clone();
        old[at] ^= 1;
        old
    };
    let parts = testing::parts(&image, "board", "1.0");
    let parts = parts.with_base(&image, &old(5000), 1 << 20).with_base(&image, &old(1_000_000), 1 << 20);
    let (file, body) = (parts.join(), Body::parse(&parts.manifest).unwrap());
    let layout = head(&file).unwrap().layout(&body).unwrap();
    assert_eq!(layout.file_size(), file.len() as u64);
    for (_, place) in layout.padding() {
        assert!(file[place.start as usize..place.end as usize].iter().all(|byte| *byte == 0));
    }
    for (number, [index, payload]) in parts.patches.iter().enumerate() {
        let span = layout.patch_span(number).unwrap();
        let bytes = &file[span.start as usize..span.end as usize];
        assert_eq!(layout.patch_index(number, bytes).unwrap(), index);
        assert!(file[span.end as usize..].starts_with(payload));
        for at in 0..bytes.len() {
            let error = layout.patch_index(number, &bytes[..at]).unwrap_err();
            assert!(matches!(error, BundleError::Short { .. }), "{at}: {error}");
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1;
            assert_ne!(layout.patch_index(number, &flipped), Ok(index.as_slice()), "byte {at}");
        }
        assert!(layout.patch_index(1 - number, bytes).is_err());
    }
    assert_eq!(layout.patch_span(2), None);
    assert!(layout.patch_index(2, &file).is_err());
}
