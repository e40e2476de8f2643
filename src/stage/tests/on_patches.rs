//! Stories about patches: an update from a base that the bundle knows, from one that changed, and from others.

use std::convert::Infallible;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::bundle::testing as bundles;
use crate::bundle::{Chunk, Index, PatchFrame, PatchIndex};
use crate::manifest::Body;
use crate::stage::testing::*;
use crate::stage::*;

fn free() -> Meter {
    Meter::new(0, None, None)
}

/// A bench whose bundle has a patch from an old image, which differs from the new one in every chunk or so.
struct Pair {
    bench: Bench,
    base: Vec<u8>,
    seed: PathBuf,
    index: Index,
    patch: PatchIndex,
    layout: crate::bundle::Layout,
}

impl Pair {
    /// `output`: bytes a frame.
    async fn new(seed: u64, output: usize) -> Pair {
        let image = image(seed, 6);
        let mut base = image.clone();
        // Frames that are longer than a gap between two requests.
        base.chunks_mut(5000).flat_map(|part| &mut part[..100]).for_each(|byte| *byte ^= 1);
        let parts = parts(&image).with_base(&image, &base, output);
        let file = parts.join();
        let body = Body::parse(&parts.manifest).unwrap();
        let index = Index::parse(parts.index.clone(), &body.image).unwrap();
        let patch = PatchIndex::parse(parts.patches[0][0].clone(), 0, &body, &index).unwrap();
        let layout = crate::bundle::head(&file).unwrap().layout(&body).unwrap();
        let bench = Bench::serving(image, file, 0).await;
        let seed = bench.folder.path().join("seed");
        std::fs::write(&seed, &base).unwrap();
        Pair { bench, base, seed, index, patch, layout }
    }

    /// What the estimate says for a device that holds `seed`.
    fn cost(&self, seed: &[u8], number: Option<usize>) -> Cost {
        let held = bundles::digests(seed);
        let has = |chunk: &Chunk| held.contains(&chunk.digest);
        cost(&self.layout, &self.index, has, number, |_| Ok::<_, Infallible>(self.patch.clone())).unwrap()
    }

    fn known(&self) -> Booted<'_> {
        Booted { path: &self.seed, image: Some(Digest::of(&self.base)) }
    }

    /// An update of a slot with nothing in it; returns what the server sent.
    async fn update(&self, seed: Option<Booted<'_>>, meter: Meter) -> Result<u64, StageError> {
        std::fs::write(&self.bench.slot, vec![0xaa; self.bench.image.len()]).unwrap();
        let before = self.bench.server.served.sent();
        let http = self.bench.server.http();
        self.bench.update_from(&http, seed, meter, &CancellationToken::new()).await?;
        self.bench.assert_complete();
        let progress = *self.bench.progress.borrow();
        assert_eq!(progress.downloaded, progress.expected_download);
        Ok(self.bench.server.served.sent() - before)
    }

    /// Where the frames of the patch begin in the file.
    fn frames_at(&self) -> u64 {
        self.layout.patch_span(0).unwrap().end
    }

    fn frames(&self) -> Vec<PatchFrame> {
        self.patch.frames().collect()
    }

    /// Writes another byte into the seed where `frame` wants it.
    fn spoil(&self, frame: &PatchFrame) {
        let mut base = self.base.clone();
        base[frame.blocks[0].start as usize * 4096 + 9] ^= 1;
        std::fs::write(&self.seed, base).unwrap();
    }
}

#[tokio::test]
async fn an_update_from_the_base_fetches_the_patch_and_what_was_estimated_to_the_byte() {
    let pair = Pair::new(70, 1 << 19).await;
    let plain = pair.update(None, free()).await.unwrap();
    assert_eq!(plain, pair.cost(&[], None).total());
    let cost = pair.cost(&pair.base, Some(0));
    assert!(cost.total() * 10 < plain && cost.patch > cost.frames, "{cost:?} {plain}");
    // By what the gateway's record says of the slot, and by its content.
    for seed in [pair.known(), Booted::from(pair.seed.as_path())] {
        assert_eq!(pair.update(Some(seed), free()).await.unwrap(), cost.total());
    }
}

#[tokio::test]
async fn other_bases_are_served_as_if_there_were_no_patch() {
    let pair = Pair::new(71, 1 << 20).await;
    let mut other = pair.base.clone();
    other[100] ^= 1;
    std::fs::write(&pair.seed, &other).unwrap();
    let elsewhere = Booted { path: &pair.seed, image: Some(Digest::of(&other)) };
    for seed in [Booted::from(pair.seed.as_path()), elsewhere] {
        let sent = pair.update(Some(seed), free()).await.unwrap();
        assert_eq!(sent, pair.cost(&other, None).total());
    }
    std::fs::write(&pair.seed, &other[..4096]).unwrap();
    pair.update(Some(Booted::from(pair.seed.as_path())), free()).await.unwrap();
    let patch = pair.layout.patch_span(0).unwrap().start;
    let requests = pair.bench.server.served.requests.lock().unwrap();
    assert!(requests.iter().all(|request| request.range.is_some_and(|(_, end)| end <= patch)));
}

#[tokio::test]
async fn of_several_bases_the_one_in_the_slot_is_found_whatever_follows_it_there() {
    let image = image(79, 4);
    let mut base = image.clone();
    base.chunks_mut(5000).flat_map(|part| &mut part[..100]).for_each(|byte| *byte ^= 1);
    let output = 1 << 20;
    // The image itself is no base, for nothing would be missing; a beginning and a stranger are.
    let parts = parts(&image).with_base(&image, &base[..1 << 20], output);
    let parts = parts.with_base(&image, &vec![7; 2 << 20], output).with_base(&image, &base, output);
    let body = Body::parse(&parts.manifest).unwrap();
    let file = parts.join();
    let layout = crate::bundle::head(&file).unwrap().layout(&body).unwrap();
    let bench = Bench::serving(image, file, 0).await;
    let seed = bench.folder.path().join("seed");
    std::fs::write(&seed, [base, vec![9; 1 << 20]].concat()).unwrap();
    bench.update_with(&bench.server.http(), Some(&seed), free()).await.unwrap();
    bench.assert_complete();
    let requests = bench.server.served.requests.lock().unwrap();
    let asked = |number| {
        let span = layout.patch_span(number).unwrap();
        requests.iter().any(|request| request.range.is_some_and(|(first, _)| first == span.start))
    };
    assert_eq!([0, 1, 2].map(asked), [false, false, true]);
}

#[tokio::test]
async fn a_base_that_changed_costs_plain_frames_and_never_truth() {
    let pair = Pair::new(72, 1 << 18).await;
    let frames = pair.frames();
    let whole = pair.update(Some(pair.known()), free()).await.unwrap();
    pair.spoil(&frames[3]);
    let before = pair.bench.server.served.count();
    let sent = pair.update(Some(pair.known()), free()).await.unwrap();
    assert!(sent > whole && sent < whole + (1 << 19), "{sent} {whole}");
    // Its frame was not even asked for; the others were.
    let spoilt = pair.layout.patch_frame(0, &frames[3]).unwrap();
    let requests = pair.bench.server.served.requests.lock().unwrap();
    let ranges = || requests.iter().skip(before).filter_map(|request| request.range);
    assert!(ranges().all(|(first, end)| end <= spoilt.start || first >= spoilt.end));
    assert!(ranges().any(|(first, end)| first < spoilt.start && end == spoilt.start));
}

#[tokio::test]
async fn what_the_base_lost_since_it_was_looked_at_is_fetched_plainly_within_the_budget() {
    let pair = Pair::new(73, 1 << 18).await;
    let (frames, cost) = (pair.frames(), pair.cost(&pair.base, Some(0)));
    for (limit, ends_well) in [(None, true), (Some(cost.total()), false)] {
        std::fs::write(&pair.seed, &pair.base).unwrap();
        let (begin, seed) = (pair.frames_at(), pair.seed.clone());
        let mut spoilt = pair.base.clone();
        spoilt[frames[2].blocks[0].start as usize * 4096 + 9] ^= 1;
        pair.bench.server.served.script(move |request| {
            if request.range.is_some_and(|(first, _)| first >= begin) {
                std::fs::write(&seed, &spoilt).unwrap();
            }
            Act::Serve
        });
        match pair.update(Some(pair.known()), Meter::new(0, limit, None)).await {
            Ok(sent) => assert!(ends_well && sent > cost.total()),
            Err(StageError::Budget { need, limit }) => assert!(!ends_well && need > limit),
            Err(error) => panic!("{error}"),
        }
    }
    pair.bench.assert_not_loadable();
}

#[tokio::test]
async fn the_budget_counts_the_patch_to_the_byte() {
    let pair = Pair::new(74, 1 << 20).await;
    let total = pair.cost(&pair.base, Some(0)).total();
    let sent = pair.update(Some(pair.known()), Meter::new(0, Some(total), None)).await.unwrap();
    assert_eq!(sent, total);
    let begin = pair.frames_at();
    pair.bench.server.served.script(move |request| match request.range {
        Some((first, _)) if first >= begin => panic!("a frame was asked for"),
        _ => Act::Serve,
    });
    let refused = pair.update(Some(pair.known()), Meter::new(0, Some(total - 1), None)).await;
    assert!(matches!(refused, Err(StageError::Budget { need, .. }) if need == total), "{refused:?}");
    assert!(pair.bench.written().iter().all(|byte| *byte == 0xaa), "what is refused changes nothing");
}

#[tokio::test]
async fn an_interrupted_patch_goes_on_with_the_frame_where_it_stopped() {
    let pair = Pair::new(75, 1 << 18).await;
    let whole = pair.update(Some(pair.known()), free()).await.unwrap();
    let frames = pair.frames();
    let middle = frames.len() / 2;
    let silent = pair.layout.patch_frame(0, &frames[middle]).unwrap().start + 10;
    let begin = pair.frames_at();
    pair.bench.server.served.script(move |request| match request.range {
        Some((first, _)) if first >= begin => Act::Stall((silent - first) as usize),
        _ => Act::Serve,
    });
    std::fs::write(&pair.bench.slot, vec![0xaa; pair.bench.image.len()]).unwrap();
    let lengths =
        |frame: &PatchFrame| frame.chunks(&pair.index).map(|(_, chunk)| u64::from(chunk.length)).sum::<u64>();
    let written: u64 = frames[..middle].iter().map(lengths).sum();
    let (cancel, http) = (CancellationToken::new(), pair.bench.server.http());
    let mut seen = pair.bench.progress.subscribe();
    seen.mark_unchanged();
    let waiter = async {
        seen.wait_for(|p| p.step == Step::Writing && p.done >= written).await.unwrap();
        cancel.cancel();
    };
    let update = pair.bench.update_from(&http, Some(pair.known()), free(), &cancel);
    let (result, ()) = tokio::join!(update, waiter);
    assert!(matches!(result, Err(StageError::Cancelled)), "{result:?}");
    pair.bench.assert_not_loadable();
    pair.bench.server.served.script(|_| Act::Serve);
    let before = pair.bench.server.served.sent();
    pair.bench.update_with(&http, Some(&pair.seed), free()).await.unwrap();
    pair.bench.assert_complete();
    let rest = pair.bench.server.served.sent() - before;
    // Only the frames whose chunks are withheld until the end come twice.
    let twice = |frame: &&PatchFrame| frame.chunks(&pair.index).any(|(_, chunk)| chunk.offset < GUARD);
    let again: u64 = frames.iter().filter(twice).map(|frame| u64::from(frame.length)).sum();
    let spared: u64 = frames[..middle].iter().map(|frame| u64::from(frame.length)).sum();
    assert!(spared > again && rest <= whole - spared + again, "{rest} {whole} {spared} {again}");
}

#[tokio::test]
async fn links_that_drop_cost_no_bytes_with_a_patch_either() {
    let pair = Pair::new(76, 1 << 18).await;
    let total = pair.cost(&pair.base, Some(0)).total();
    pair.bench.server.served.script(|request| match request.number % 3 {
        0 => Act::Status(500, String::new()),
        1 => Act::Cut(1000),
        _ => Act::Serve,
    });
    pair.update(Some(pair.known()), free()).await.unwrap();
    assert_eq!(pair.bench.progress.borrow().downloaded, total);
}

#[tokio::test]
async fn a_damaged_patch_is_never_written() {
    let pair = Pair::new(77, 1 << 20).await;
    let span = pair.layout.patch_span(0).unwrap();
    for place in [span.start, span.end] {
        pair.bench.server.served.script(move |request| match request.range {
            Some((first, _)) if first == place => Act::Flip(5),
            _ => Act::Serve,
        });
        let ended = pair.update(Some(pair.known()), free()).await;
        // A damaged list of frames is seen before anything changes, and what frames do not bring is fetched plainly.
        match place == span.start {
            true => {
                assert!(matches!(ended, Err(StageError::Bundle { .. })), "{ended:?}");
                assert!(pair.bench.written().iter().all(|byte| *byte == 0xaa));
            }
            false => pair.bench.assert_complete(),
        }
    }
}

#[tokio::test]
async fn a_patch_is_not_asked_for_when_less_is_missing_than_its_index_has() {
    let pair = Pair::new(78, 1 << 20).await;
    // The slot lacks its first MiB, as always, and one chunk of text. The seed has everything but the text.
    let (mut slot, mut seed) = (pair.bench.image.clone(), pair.bench.image.clone());
    slot[(2 << 20) + (6 << 17) + 5000] ^= 1;
    seed.chunks_mut(1 << 17).skip(6).step_by(8).for_each(|text| text.fill(0xee));
    std::fs::write(&pair.bench.slot, slot).unwrap();
    std::fs::write(&pair.seed, seed).unwrap();
    let (http, cancel) = (pair.bench.server.http(), CancellationToken::new());
    pair.bench.update_from(&http, Some(pair.known()), free(), &cancel).await.unwrap();
    pair.bench.assert_complete();
    let requests = pair.bench.server.served.requests.lock().unwrap();
    let patch = pair.layout.patch_span(0).unwrap().start;
    assert!(requests.len() > 2, "nothing was missing");
    assert!(requests.iter().all(|request| request.range.is_some_and(|(_, end)| end <= patch)));
}
