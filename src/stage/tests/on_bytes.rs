//! Stories about bytes: what a run fetches and writes, to the byte, when it is disturbed, cancelled or killed.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::bundle::{PatchIndex, runs};
use crate::config::Download;
use crate::stage::testing::*;
use crate::stage::*;

/// More than the longest frame of a chunk.
const FRAME: u64 = 132 * 1024;

fn free() -> Meter {
    Meter::new(0, None, None)
}

/// Body bytes that `bench` receives for a whole update of a slot with nothing in it, with the server as it is.
async fn fetched(bench: &Bench) -> u64 {
    std::fs::write(&bench.slot, vec![0; bench.image.len()]).unwrap();
    let before = bench.server.served.sent();
    bench.update().await.unwrap();
    bench.assert_complete();
    let progress = *bench.progress.borrow();
    assert_eq!(progress.downloaded, progress.expected_download);
    // What was sent and never received was paid for too.
    progress.downloaded.max(bench.server.served.sent() - before)
}

#[tokio::test]
async fn links_that_drop_and_servers_that_fail_cost_no_bytes() {
    let bench = Bench::new(image(9, 8), 0).await;
    let whole = fetched(&bench).await;
    assert!(whole > 6 << 20);
    let checked = async |fault: &str| {
        let requests = bench.server.served.count();
        let bytes = fetched(&bench).await;
        assert!(bytes * 100 <= whole * 102, "{fault}: {bytes} for {whole}");
        bench.server.served.count() - requests
    };
    // Every connection is cut as soon as it has carried 1 MiB, wherever that is.
    bench.server.served.script(|request| match request.range {
        Some((first, end)) if request.carried + (end - first) > 1 << 20 => {
            Act::Cut(((1 << 20) - request.carried) as usize)
        }
        _ => Act::Serve,
    });
    assert!(checked("1 MiB").await > 8);
    bench.server.served.script(|_| Act::Cut(100_000));
    assert!(checked("100 kB").await > 60);
    // Half of all requests fail, before or in the middle of the answer.
    bench.server.served.script(|request| match request.number % 4 {
        0 => Act::Status(500, String::new()),
        1 => Act::Cut(333_333),
        _ => Act::Serve,
    });
    assert!(checked("half").await > 10);
    bench.server.served.script(|request| match request.number % 2 {
        0 => Act::Cut(0),
        _ => Act::Serve,
    });
    assert!(checked("no answer").await > 10);
}

#[tokio::test]
async fn the_same_image_again_fetches_head_and_index_and_writes_nothing() {
    let bench = Bench::new(image(4, 4), 1 << 20).await;
    bench.update().await.unwrap();
    let modified = || std::fs::metadata(&bench.slot).unwrap().modified().unwrap();
    let (before, requests, sent) = (modified(), bench.server.served.count(), bench.server.served.sent());
    let bundle = bench.open(&bench.server.http(), free()).await.unwrap();
    let index = Arc::new(bundle.index().await.unwrap());
    let (target, cancel) = (bench.target(), CancellationToken::new());
    stage(&bundle, index, Staging::of(&target, &bench.progress, &cancel)).await.unwrap();
    let index = bundle.layout().index_span();
    assert_eq!(bench.server.served.sent() - sent, 8192 + (index.end - index.start));
    assert_eq!(bench.server.served.count(), requests + 2);
    assert_eq!((target.written(), modified()), (0, before));
    let progress = *bench.progress.borrow();
    assert_eq!((progress.reused, progress.done), (4 << 20, 4 << 20));
    assert_eq!(progress.downloaded, bench.server.served.sent() - sent);
}

#[tokio::test]
async fn what_an_image_has_twice_is_fetched_once() {
    // Copies behind their originals: in groups of their own, among other data, and in one group with them.
    let mut whole = image(6, 9);
    whole.copy_within(1 << 20..3 << 20, 4 << 20);
    whole.copy_within(1 << 20..3 << 19, 7 << 20);
    whole.copy_within(6 << 20..(6 << 20) + (1 << 18), (6 << 20) + (3 << 18));
    let bench = Bench::new(whole, 0).await;
    let fetched = || {
        let progress = *bench.progress.borrow();
        assert_eq!(progress.downloaded, progress.expected_download);
        progress.downloaded
    };
    bench.update().await.unwrap();
    bench.assert_complete();
    let bundle = bench.open(&bench.server.http(), free()).await.unwrap();
    let index = bundle.index().await.unwrap();
    let index = index.unchecked();
    let predicted = cost(bundle.layout(), index, |_| false, None, Err::<PatchIndex, _>).unwrap().total();
    assert_eq!(fetched(), predicted);
    let mut seen = std::collections::HashSet::new();
    let first = index.iter().filter(|chunk| seen.insert(chunk.digest));
    let once: u64 = first.map(|chunk| u64::from(chunk.frame_length)).sum();
    let all = bundle.manifest().image.payload_size;
    assert!(once + (1 << 20) < all, "{once} {all}");
    assert!(predicted < bundle.layout().head_bytes() + once + (64 << 10), "{predicted} {once}");

    // An original that is in place serves the copies that are not.
    let target = bench.target();
    target.write(&vec![0x5a; 1 << 20], 4 << 20).unwrap();
    drop(target);
    bench.update().await.unwrap();
    bench.assert_complete();
    // Its first MiB is fetched again in any case, and the chunks at the border of what was damaged.
    assert!(fetched() < bundle.layout().head_bytes() + (1 << 20) + (300 << 10), "{}", fetched());
}

/// A run whose network falls silent for good in the middle of a group.
struct Silence {
    bench: Bench,
    bundle: Bundle,
    index: Arc<StoredIndex>,
    /// Body bytes of an undisturbed run.
    whole: u64,
    /// Bytes of the payload that come before the silence.
    came: u64,
    /// Of those, what is not written before the end: the chunks of the first MiB.
    withheld: u64,
    /// Bytes of the image whose blocks have come as a whole.
    content: u64,
}

impl Silence {
    /// In the frame of the chunk that has byte `place` of the image.
    async fn at(seed: u64, place: u64) -> Silence {
        let bench = Bench::new(image(seed, 8), 0).await;
        let whole = fetched(&bench).await;
        std::fs::write(&bench.slot, vec![0x55; 8 << 20]).unwrap();
        // Silence is not noticed within a test's life.
        let rules = Download { stall_timeout: Duration::from_secs(3600), ..download() };
        let bundle =
            bench.open(&bench.server.http_with(&["127.0.0.1", "localhost"], rules), free()).await.unwrap();
        let index = Arc::new(bundle.index().await.unwrap());
        let list = index.unchecked();
        let chunk = list.get(list.position(place)).unwrap();
        assert!(chunk.offset - chunk.group_offset > 1 << 20, "not in the middle of a group");
        let silent = bundle.layout().frame(&chunk).start + 10;
        let payload = bundle.layout().payload();
        bench.server.served.script(move |request| match request.range {
            Some((first, end)) if first >= payload.start && end > silent => {
                Act::Stall(silent.saturating_sub(first) as usize)
            }
            _ => Act::Serve,
        });
        let came = runs(list, bundle.layout(), |_, chunk| !list.is_zero(chunk))
            .map(|run| run.span.end.min(silent).saturating_sub(run.span.start))
            .sum();
        let first = list.iter().take_while(|chunk| chunk.offset < GUARD);
        let withheld = first.map(|chunk| u64::from(chunk.frame_length)).sum();
        Silence { bench, bundle, index, whole, came, withheld, content: chunk.offset }
    }

    /// Prepares and stages, with the network as it is.
    async fn stage(&self, target: &Target, cancel: &CancellationToken) -> Result<(), StageError> {
        stage(&self.bundle, self.index.clone(), Staging::of(target, &self.bench.progress, cancel)).await
    }

    /// Waits until all has come that comes, and until all but `short` bytes of it were written.
    async fn fallen(&self, short: u64) {
        let spent = self.bundle.remote().meter().spent();
        let mut seen = self.bench.progress.subscribe();
        seen.mark_unchanged();
        let all = |p: &Progress| {
            p.step == Step::Writing && p.downloaded == spent + self.came && p.done + short >= self.content
        };
        seen.wait_for(all).await.unwrap();
    }

    /// Goes on with a network that works; returns what that fetched.
    async fn go_on(&self) -> u64 {
        self.bench.server.served.script(|_| Act::Serve);
        let before = self.bench.server.served.sent();
        self.bench.update().await.unwrap();
        self.bench.assert_complete();
        self.bench.server.served.sent() - before
    }
}

#[tokio::test]
async fn a_cancelled_run_is_resumed_without_fetching_anything_twice() {
    let silence = Silence::at(6, (4 << 20) + 1_300_000).await;
    let (target, cancel) = (silence.bench.target(), CancellationToken::new());
    let waiter = async {
        silence.fallen(8 << 20).await;
        cancel.cancel();
    };
    // That it ends at all shows that it does not wait for the network.
    let (result, ()) = tokio::join!(silence.stage(&target, &cancel), waiter);
    assert!(matches!(result, Err(StageError::Cancelled)), "{result:?}");
    drop(target);
    silence.bench.assert_not_loadable();
    // Lost are what was withheld and the block that was not whole yet.
    let rest = silence.go_on().await;
    let Silence { whole, came, withheld, .. } = silence;
    assert!(came > 3 << 20 && rest + came <= whole + withheld + FRAME, "{rest} and {came} of {whole}");
}

#[tokio::test]
async fn a_killed_run_is_resumed_in_the_middle_of_a_group() {
    let mut silence = Silence::at(7, (4 << 20) + 1_300_000).await;
    let piece = buffer::PIECE as u64;
    let (target, cancel) = (silence.bench.target(), CancellationToken::new());
    // Power fails at the moment when all that came was written, but for less than a piece.
    let left = silence.bench.folder.path().join("left");
    tokio::select! {
        done = silence.stage(&target, &cancel) => panic!("{done:?}"),
        () = silence.fallen(piece) => drop(std::fs::copy(&silence.bench.slot, &left).unwrap()),
    }
    silence.bench.slot = left;
    silence.bench.assert_not_loadable();
    let rest = silence.go_on().await;
    let Silence { whole, came, withheld, .. } = silence;
    let again = withheld + piece + FRAME;
    assert!(again - withheld < 1 << 20, "as much as of this group had come");
    assert!(came > 3 << 20 && rest + came <= whole + again, "{rest} and {came} of {whole}");
}
