//! Stories: whole updates of a file-backed slot from a real server, undisturbed and disturbed.

mod on_answers;
mod on_bad_media;
mod on_bytes;
mod on_devices;
mod on_faulty_media;
mod on_maps;
mod on_networks;
mod on_patches;
mod on_servers;
mod on_the_first_mib;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::bundle::testing as bundles;
use crate::failure::{Code, Failure};
use crate::stage::testing::*;
use crate::stage::*;

fn code<T: std::fmt::Debug>(result: Result<T, StageError>) -> Code {
    let failure = Failure::from(result.unwrap_err());
    assert!(!failure.message.contains("secret"), "{failure}");
    failure.code
}

fn free() -> Meter {
    Meter::new(0, None, None)
}

#[tokio::test]
async fn an_image_is_staged_and_counted_exactly() {
    let bench = Bench::new(image(1, 6), 3 << 20).await;
    bench.update().await.unwrap();
    bench.assert_complete();
    let progress = *bench.progress.borrow();
    assert_eq!(progress.step, Step::ReadingBack);
    assert_eq!((progress.done, progress.total), (6 << 20, 6 << 20));
    // The agent knew beforehand what it would fetch, and fetched exactly that.
    assert_eq!(progress.downloaded, progress.expected_download);
    assert_eq!(progress.downloaded, bench.server.served.sent());
    // Nobody may pack what is packed, nor shift the ranges by it; one version of the file from first to last.
    let requests = bench.server.served.requests.lock().unwrap().clone();
    for request in &requests {
        assert_eq!(header(&request.headers, "accept-encoding"), Some("identity"));
        let guard = (request.number > 0).then_some("\"one\"");
        assert_eq!(header(&request.headers, "if-match"), guard);
    }
    let middle = &bench.written()[(6 << 20)..(8 << 20)];
    assert!(middle.iter().all(|byte| *byte == 0xaa), "bytes between image and last MiB were touched");
}

#[tokio::test]
async fn scattered_damage_is_repaired_by_small_requests_on_few_connections() {
    let bench = Bench::new(image(30, 8), 0).await;
    let mut slot = bench.image.clone();
    slot[1 << 20..].iter_mut().step_by(700_000).for_each(|byte| *byte ^= 1);
    std::fs::write(&bench.slot, slot).unwrap();
    bench.update().await.unwrap();
    bench.assert_complete();
    let requests = bench.server.served.count();
    let connections = bench.server.served.connections.load(Ordering::SeqCst);
    assert!(
        requests > 8 && (connections as usize) < requests,
        "{requests} requests on {connections} connections"
    );
    assert_eq!(bench.progress.borrow().downloaded, bench.server.served.sent());
    assert!(bench.progress.borrow().downloaded < 5 << 20);
}

#[tokio::test]
async fn staging_runs_in_a_task_of_its_own() {
    let bench = Bench::new(image(32, 2), 0).await;
    let (target, progress, server) = (bench.target(), bench.progress.clone(), &bench.server);
    let (url, http, keys) = (server.url(), server.http(), bundles::trust(1));
    let task = tokio::spawn(async move {
        let bundle = opened(BundleSource::Http(url), &http, Arc::new(free()), &keys, None).await?;
        let index = bundle.index().await?;
        stage(&bundle, index, Staging::of(&target, &progress, &CancellationToken::new())).await
    });
    task.await.unwrap().unwrap();
    bench.assert_complete();
}

#[tokio::test]
async fn an_image_that_ends_inside_the_last_mib_is_left_alone_by_the_clearing() {
    for spare in [0, 4096, 512 * 1024 + 512] {
        let bench = Bench::new(image(2, 2), spare).await;
        bench.update().await.unwrap();
        bench.assert_complete();
    }
}

#[tokio::test]
async fn a_tiny_image_fits_into_the_withheld_part() {
    let bench = Bench::new(image(3, 1)[..40960].to_vec(), 0).await;
    bench.update().await.unwrap();
    bench.assert_complete();
}

#[tokio::test]
async fn a_slot_that_was_not_prepared_is_prepared_before_it_changes() {
    let bench = Bench::new(image(5, 3), 0).await;
    bench.update().await.unwrap();
    // The image is complete but for one chunk, so its head is loadable.
    let mut bytes = bench.written();
    bytes[2_500_000] ^= 1;
    std::fs::write(&bench.slot, bytes).unwrap();
    let bundle = bench.open(&bench.server.http(), free()).await.unwrap();
    let index = Arc::new(bundle.index().await.unwrap());
    bench.server.served.script(|_| Act::Status(404, String::new()));
    let cancel = CancellationToken::new();
    let target = bench.target();
    let result = stage(&bundle, index.clone(), Staging::of(&target, &bench.progress, &cancel)).await;
    assert_eq!(code(result), Code::NotFound);
    bench.assert_not_loadable();
    bench.server.served.script(|_| Act::Serve);
    stage(&bundle, index, Staging::of(&target, &bench.progress, &cancel)).await.unwrap();
    bench.assert_complete();
}

#[tokio::test]
async fn the_booted_slot_gives_what_it_has_wherever_it_lies() {
    let old = image(7, 6);
    // The new image: the old one moved by 40 KiB, with a changed block in the middle.
    let mut new = image(8, 1)[..40960].to_vec();
    new.extend_from_slice(&old);
    new[3 << 20..(3 << 20) + 4096].fill(0x11);
    let bench = Bench::new(new, 0).await;
    let seed = bench.folder.path().join("booted");
    std::fs::write(&seed, &old).unwrap();
    bench.update_with(&bench.server.http(), Some(&seed), free()).await.unwrap();
    bench.assert_complete();
    let progress = *bench.progress.borrow();
    assert_eq!(progress.downloaded, progress.expected_download);
    assert!(progress.downloaded < 1 << 20, "{progress:?}");
    assert!(progress.reused > 4 << 20, "{progress:?}");
}

#[tokio::test]
async fn what_estimate_predicts_is_what_is_fetched() {
    // Damage of every size, near and far apart, so that some gaps are fetched along and others are not.
    let old = image(61, 8);
    let mut new = old.clone();
    new.chunks_mut(300_000).enumerate().for_each(|(n, part)| part[..(n % 7) * 6_000].fill(n as u8));
    new.chunks_mut(33_000).skip(120).step_by(2).take(40).for_each(|part| part[0] ^= 1);
    let bench = Bench::new(new, 0).await;
    let seed = bench.folder.path().join("booted");
    std::fs::write(&seed, &old).unwrap();
    let parts = parts(&old);
    let held = crate::manifest::Body::parse(&parts.manifest).unwrap().image;
    let held = crate::bundle::Index::parse(parts.index, &held).unwrap();
    let held: std::collections::HashSet<_> = held.iter().map(|chunk| chunk.digest).collect();
    let bundle = bench.open(&bench.server.http(), free()).await.unwrap();
    let index = bundle.index().await.unwrap();
    let index = index.unchecked();
    let has = |chunk: &crate::bundle::Chunk| held.contains(&chunk.digest);
    let predicted =
        cost(bundle.layout(), index, has, None, Err::<crate::bundle::PatchIndex, _>).unwrap().total();
    drop(bundle);
    let before = bench.server.served.sent();
    bench.update_with(&bench.server.http(), Some(&seed), free()).await.unwrap();
    bench.assert_complete();
    assert_eq!(bench.server.served.sent() - before, predicted);
    let frames: u64 = index
        .iter()
        .filter(|chunk| !held.contains(&chunk.digest) && !index.is_zero(chunk))
        .map(|chunk| u64::from(chunk.frame_length))
        .sum();
    assert!(predicted > bench_head(&bench).await + frames, "no gap was fetched along");
}

/// What the bundle costs before its payload.
async fn bench_head(bench: &Bench) -> u64 {
    bench.open(&bench.server.http(), free()).await.unwrap().layout().head_bytes()
}

#[tokio::test]
async fn wrong_bytes_are_never_written() {
    let bench = Bench::new(image(15, 3), 0).await;
    let payload = bench.payload().await;
    bench.server.served.script(move |request| match request.range {
        Some((first, _)) if first >= payload => Act::Flip(1),
        _ => Act::Serve,
    });
    assert_eq!(code(bench.update().await), Code::DigestMismatch);
    bench.assert_not_loadable();
    let written = bench.written();
    let wrong = written
        .chunks(4096)
        .zip(bench.image.chunks(4096))
        .skip(256)
        .filter(|(found, expected)| found != expected && found.iter().any(|byte| *byte != 0xaa));
    assert_eq!(wrong.count(), 0, "a block holds neither the image's bytes nor the old ones");
}

#[tokio::test]
async fn untrusted_pinned_or_damaged_manifests_are_refused_for_the_price_of_the_head() {
    let bench = Bench::new(image(16, 4), 0).await;
    let open = async |keys, pin| {
        let source = BundleSource::Http(bench.server.url());
        opened(source, &bench.server.http(), Arc::new(free()), &keys, pin).await
    };
    assert_eq!(code(open(bundles::trust(2), None).await), Code::UntrustedSignature);
    let pin = crate::manifest::Digest([7; 32]);
    assert_eq!(code(open(bundles::trust(1), Some(pin)).await), Code::DigestMismatch);
    let digest = open(bundles::trust(1), None).await.unwrap().manifest().digest();
    open(bundles::trust(1), Some(digest)).await.unwrap();
    // A head for each time that it was asked for.
    let requests = bench.server.served.count() as u64;
    assert!(requests < 40 && bench.server.served.sent() <= requests * 8192, "{requests}");
    // One bit of the manifest, of the index.
    let good = bench.server.served.file.lock().unwrap().clone();
    bench.server.served.file.lock().unwrap()[600] ^= 1;
    assert_eq!(code(open(bundles::trust(1), None).await), Code::UntrustedSignature);
    let mut bad = good.clone();
    let index = good.windows(8).position(|bytes| bytes == b"fwuindex").unwrap();
    bad[index + 100] ^= 1;
    *bench.server.served.file.lock().unwrap() = bad;
    let bundle = open(bundles::trust(1), None).await.unwrap();
    assert_eq!(code(bundle.index().await), Code::DigestMismatch);
    assert_eq!(bench.written(), vec![0xaa; 4 << 20]);
}

#[tokio::test]
async fn a_truncated_bundle_is_refused_before_anything_is_written() {
    let bench = Bench::new(image(17, 2), 0).await;
    let good = bench.server.served.file.lock().unwrap().clone();
    for n in 0..20 {
        let length = good.len() * n / 20;
        *bench.server.served.file.lock().unwrap() = good[..length].to_vec();
        let result = bench.open(&bench.server.http(), free()).await.map(drop);
        let code = code(result);
        // An empty file has no range at all.
        assert_eq!(code, if n == 0 { Code::DownloadFailed } else { Code::MalformedBundle }, "{length}");
    }
}

#[tokio::test]
async fn an_image_larger_than_the_slot_is_refused() {
    let bench = Bench::new(image(18, 2), 0).await;
    std::fs::write(&bench.slot, vec![0xaa; (2 << 20) - 4096]).unwrap();
    assert_eq!(code(bench.update().await), Code::TooLarge);
}

#[tokio::test]
async fn the_budget_is_kept_across_runs() {
    let bench = Bench::new(image(19, 3), 0).await;
    bench.update().await.unwrap();
    let whole = bench.server.served.sent();
    let head = 8192 + 1024;
    let run = async |spent, limit| {
        std::fs::write(&bench.slot, vec![0; 3 << 20]).unwrap();
        let before = bench.server.served.sent();
        let result =
            bench.update_with(&bench.server.http(), None, Meter::new(spent, Some(limit), None)).await;
        (result, bench.server.served.sent() - before)
    };
    let (result, _) = run(0, whole).await;
    result.unwrap();
    let (result, _) = run(1000, whole + 1000).await;
    result.unwrap();
    for (spent, limit) in [(0, whole - 1), (1000, whole + 999)] {
        let (result, sent) = run(spent, limit).await;
        assert_eq!(code(result), Code::DataBudgetExceeded);
        // The head and the index tell; nothing of the payload was fetched.
        assert!(sent < head + 16 * 1024, "{sent}");
        bench.assert_not_loadable();
    }
    let (result, sent) = run(5, 6).await;
    assert_eq!(code(result), Code::DataBudgetExceeded);
    assert!(sent <= 8192);
}

#[tokio::test]
async fn a_local_file_is_a_source_too() {
    let bench = Bench::new(image(24, 2), 0).await;
    let path = bench.folder.path().join("b.fwb");
    std::fs::write(&path, &*bench.server.served.file.lock().unwrap()).unwrap();
    let meter = Arc::new(Meter::new(0, Some(0), None));
    let (http, keys) = (bench.server.http(), bundles::trust(1));
    let bundle = opened(BundleSource::File(path), &http, meter, &keys, None).await.unwrap();
    let index = bundle.index().await.unwrap();
    let cancel = CancellationToken::new();
    stage(&bundle, index, Staging::of(&bench.target(), &bench.progress, &cancel)).await.unwrap();
    bench.assert_complete();
    assert_eq!(bench.server.served.count(), 0);
    let missing =
        opened(BundleSource::File("/nonexistent".into()), &http, Arc::new(free()), &keys, None).await;
    assert_eq!(code(missing), Code::NotFound);
}

#[tokio::test]
async fn the_rate_limit_paces() {
    let server = Server::start(vec![1; 60_000]).await;
    let meter = Arc::new(Meter::new(0, None, Some(200_000)));
    let remote =
        download::remote::Remote::new(BundleSource::Http(server.url()), &server.http(), meter).await.unwrap();
    let start = std::time::Instant::now();
    assert_eq!(remote.read(0, 60_000).await.unwrap().len(), 60_000);
    assert!(start.elapsed() >= Duration::from_millis(280), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_held_slot_is_held_and_damage_is_found_when_it_is_read_back() {
    let bench = Bench::new(image(25, 2), 0).await;
    bench.update().await.unwrap();
    let target = bench.target();
    assert_eq!(code(Target::acquire(&bench.slot, &[])), Code::SlotBusy);
    let identity = target.identity();
    let digest = crate::manifest::Digest::of(&bench.image);
    let cancel = CancellationToken::new();
    read_back(&target, 2 << 20, digest, &bench.progress, &cancel).unwrap();
    let mut bytes = bench.written();
    bytes[1_500_000] ^= 4;
    std::fs::write(&bench.slot, bytes).unwrap();
    assert_eq!(code(read_back(&target, 2 << 20, digest, &bench.progress, &cancel)), Code::DigestMismatch);
    drop(target);
    assert_eq!(code(Target::acquire(&bench.slot, &[identity])), Code::SlotBusy);
    assert_eq!(code(Target::acquire(&bench.folder.path().join("none"), &[])), Code::SlotWriteFailed);
    assert_eq!(code(Target::acquire(bench.folder.path(), &[])), Code::SlotWriteFailed);
}

#[tokio::test]
async fn only_regular_files_are_opened() {
    let bench = Bench::new(image(53, 1), 0).await;
    let at = |name: &str| bench.folder.path().join(name);
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink(at("fifo"), at("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    for (path, kind) in [
        (at("fifo"), "a FIFO"),
        (at("link"), "a FIFO"),
        (at("socket"), "a socket"),
        (at(""), "a folder"),
        ("/dev/zero".into(), "a device"),
    ] {
        let (http, keys) = (bench.server.http(), bundles::trust(1));
        let opened = opened(BundleSource::File(path), &http, Arc::new(free()), &keys, None).await;
        let Failure { code, message, .. } = Failure::from(opened.unwrap_err());
        assert_eq!(code, Code::DownloadFailed);
        assert!(message.contains(&format!("it is {kind}, and a bundle is a file")), "{message}");
    }
}
