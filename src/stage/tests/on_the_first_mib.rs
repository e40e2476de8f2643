//! The first MiB is written last: only when all the rest reads back.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bundle::Index;
use crate::bundle::testing as bundles;
use crate::manifest::Body;
use crate::stage::testing::*;
use crate::stage::*;

/// A step over a slot that holds all of `image` but its first MiB, which is zero.
fn unsealed(image: &[u8], slot: &Path) -> Blocking {
    let parts = bundles::parts(image, "board", "1");
    let image_of = Body::parse(&parts.manifest).unwrap().image;
    let mut bytes = image.to_vec();
    bytes[..GUARD as usize].fill(0);
    std::fs::write(slot, bytes).unwrap();
    let index = Arc::new(Index::parse(parts.index, &image_of).unwrap().into());
    let progress = watch::Sender::default();
    let cancel = CancellationToken::new();
    let shared = Shared { name: "b".into(), index, seed: None, group: 0, progress, cancel };
    Blocking {
        shared: Arc::new(shared),
        target: Target::acquire(slot, &[]).unwrap(),
        image: image_of,
        maps: None,
    }
}

#[test]
fn the_first_mib_is_written_only_when_all_the_rest_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let slot = folder.path().join("slot");
    let image = image(50, 3);
    let first = &image[..GUARD as usize];
    let seal = |staging: &Blocking, first: &[u8]| {
        let (target, frontier) = (staging.target.clone(), Frontier::default());
        let sink = Sink { target, withheld: Withheld::new(&Workspace::default(), first.len()), frontier };
        sink.write(first, 0).unwrap();
        staging.seal(&sink, None)
    };
    let staging = unsealed(&image, &slot);
    staging.target.write(&[1; 4096], 2 << 20).unwrap();
    assert!(matches!(seal(&staging, first), Err(StageError::ReadBack { .. })));
    assert!(staging.target.is_invalid().unwrap());
    drop(staging);

    let staging = unsealed(&image, &slot);
    staging.shared.cancel.cancel();
    assert!(matches!(seal(&staging, first), Err(StageError::Cancelled)));
    assert!(staging.target.is_invalid().unwrap());
    drop(staging);

    // Bytes in memory that are not the image's are not written either.
    let staging = unsealed(&image, &slot);
    assert!(matches!(seal(&staging, &image[4096..4096 + GUARD as usize]), Err(StageError::ReadBack { .. })));
    assert!(staging.target.is_invalid().unwrap());
    seal(&staging, first).unwrap();
    assert!(std::fs::read(&slot).unwrap() == image);
}
