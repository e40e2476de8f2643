//! Stories about servers, and what stands between: odd answers, pools that disagree, portals, trickles and floods.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::bundle::testing as bundles;
use crate::config::Download;
use crate::failure::{Code, Failure};
use crate::stage::testing::*;
use crate::stage::*;

fn free() -> Meter {
    Meter::new(0, None, None)
}

fn code<T: std::fmt::Debug>(result: Result<T, StageError>) -> (Code, String) {
    let failure = Failure::from(result.unwrap_err());
    assert!(!failure.message.contains("secret"), "{failure}");
    (failure.code, failure.message)
}

/// What one server says is doubted for longer than any test takes.
fn doubting() -> Download {
    Download { final_after: Duration::from_secs(60), patience: Duration::from_secs(600), ..download() }
}

/// A whole update in which one answer is never final.
async fn update(bench: &Bench) -> Result<(), StageError> {
    bench.update_with(&bench.server.http_with(&["127.0.0.1"], doubting()), None, free()).await
}

/// Answers that are no good, whatever was asked for.
fn odd_answers() -> Vec<Act> {
    let mut acts: Vec<Act> = [204, 301, 304, 400, 401, 403, 404, 406, 410, 412, 416, 418, 421, 451, 500, 501]
        .map(|status| Act::Status(status, String::new()))
        .into();
    let status = |status: u16, lines: &str| Act::Status(status, lines.into());
    acts.extend([
        status(302, "Location: https://portal.example/login\r\n"),
        status(307, "Location: http://127.0.0.1/\r\n"),
        status(302, "Location: https://192.168.1.1/login\r\n"),
        status(302, "Location: https://[\r\n"),
        status(503, "Retry-After: -1\r\nDate: (((\r\n"),
        Act::Page("<html>Please log in</html>".into()),
        Act::Whole,
        Act::WrongRange,
        Act::Range("bytes */1000".into()),
        Act::Range("bytes 0-0/1".into()),
        Act::Range("lines 1-2/3".into()),
        Act::With("Content-Encoding: gzip\r\n".into()),
        Act::With(format!("X-Long: {}\r\n", "x".repeat(100_000))),
        Act::Cut(0),
    ]);
    acts
}

#[tokio::test]
async fn one_odd_answer_ends_nothing_neither_at_first_nor_later() {
    let bench = Bench::new(image(40, 4), 0).await;
    bench.update().await.unwrap();
    let whole = bench.progress.borrow().downloaded;
    for act in odd_answers() {
        let before = bench.server.served.count();
        let shown = format!("{act:.40?}");
        // In the first, the third and the last of the requests.
        bench.server.served.script(move |request| match request.number - before {
            0 | 3 | 6 => act.clone(),
            _ => Act::Serve,
        });
        std::fs::write(&bench.slot, vec![0; 4 << 20]).unwrap();
        let done = update(&bench).await;
        assert!(done.is_ok(), "{shown}: {done:?}");
        bench.assert_complete();
        assert!(bench.server.served.count() - before > 6, "{shown}");
        // Small refusals are free; what came with them and was not wanted is paid for.
        let downloaded = bench.progress.borrow().downloaded;
        let most = if shown.starts_with("Status") { whole } else { whole + 3 * 65 * 1024 };
        assert!((whole..=most).contains(&downloaded), "{shown}: {downloaded} for {whole}");
    }
}

#[tokio::test]
async fn right_answers_in_another_dress_are_taken() {
    let bench = Bench::new(image(41, 3), 0).await;
    bench.update().await.unwrap();
    let whole = bench.progress.borrow().downloaded;
    let size = bench.server.served.file.lock().unwrap().len() as u64;
    let with = |line: &str| {
        let line = format!("{line}\r\n");
        Box::new(move |_: &Request| Act::With(line.clone())) as Box<dyn Fn(&Request) -> Act + Send + Sync>
    };
    let range = |show: fn(u64, u64, u64) -> String| {
        Box::new(move |request: &Request| match request.range {
            Some((first, end)) => Act::Range(show(first, end.min(size) - 1, size)),
            None => Act::Serve,
        }) as Box<dyn Fn(&Request) -> Act + Send + Sync>
    };
    for script in [
        with("Content-Encoding: "),
        with("Content-Encoding: Identity"),
        with("Content-Encoding: aws-chunked"),
        with("Content-Encoding: identity, aws-chunked"),
        range(|first, last, size| format!("BYTES {first}-{last}/{size}")),
        range(|first, last, size| format!(" bytes  {first} - {last} / {size} ")),
        range(|first, last, size| format!("bytes={first}-{last}/{size}")),
        range(|first, last, _| format!("Bytes {first}-{last}/*")),
        Box::new(|_: &Request| Act::Short(70_000)),
        with("Content-Type: multipart/byteranges"),
        with("Accept-Ranges: none"),
        with("Connection: close"),
        with("X-A: \u{e9}"),
        with("eTaG: W/\"one\""),
        with("Content-Length-Hint: 0\r\nAge: -1\r\nRetry-After: 99999999999999999999999"),
    ] {
        std::fs::write(&bench.slot, vec![0; 3 << 20]).unwrap();
        bench.server.served.script(script);
        bench.update().await.unwrap();
        bench.assert_complete();
        assert_eq!(bench.progress.borrow().downloaded, whole);
    }
}

#[tokio::test]
async fn http_chunks_of_one_byte_are_taken() {
    let bench = Bench::new(image(42, 1)[..256 << 10].to_vec(), 0).await;
    bench.server.served.script(|_| Act::Crumbs);
    bench.update().await.unwrap();
    bench.assert_complete();
    // Six bytes for one: that is paid for.
    let need = bench.progress.borrow().expected_download;
    std::fs::write(&bench.slot, vec![0; 256 << 10]).unwrap();
    let ended = bench.update_with(&bench.server.http(), None, Meter::new(0, Some(4 * need), None)).await;
    assert_eq!(code(ended).0, Code::DataBudgetExceeded);
}

#[tokio::test]
async fn nodes_of_a_pool_may_tell_versions_apart_that_are_none() {
    let bench = Bench::new(image(43, 6), 0).await;
    bench.update().await.unwrap();
    let whole = bench.progress.borrow().downloaded;
    let tags = ["\"a\"", "\"b\"", "W/\"c\"", "\"d\""];
    let dated = |request: &Request| {
        Act::With(format!("Last-Modified: Sun, 06 Nov 1994 08:49:{:02} GMT\r\n", request.number % 7))
    };
    for by_date in [false, true] {
        let before = bench.server.served.count();
        *bench.server.served.etag.lock().unwrap() = None;
        bench.server.served.script(move |request| match by_date {
            true => dated(request),
            false => Act::Tag(tags[request.number % tags.len()].into()),
        });
        std::fs::write(&bench.slot, vec![0; 6 << 20]).unwrap();
        update(&bench).await.unwrap();
        bench.assert_complete();
        let requests = bench.server.served.requests.lock().unwrap()[before..].to_vec();
        let heads =
            requests.iter().filter(|request| request.range.is_some_and(|(first, _)| first == 0)).count();
        assert!(heads <= 4, "the head was looked at {heads} times");
        assert!(bench.progress.borrow().downloaded < whole + 4 * 8192 + 4 * 64 * 1024);
    }
}

#[tokio::test]
async fn wrong_bytes_of_one_node_are_fetched_from_another() {
    let bench = Bench::new(image(44, 6), 0).await;
    let payload = bench.payload().await;
    // Every third answer is wrong at its end: manifest, index and payload.
    for first_wrong in 0..3 {
        let before = bench.server.served.count();
        bench.server.served.script(move |request| match request.range {
            Some((first, _)) if first > 0 && (request.number - before) % 3 == first_wrong => Act::Flip(1),
            _ => Act::Serve,
        });
        std::fs::write(&bench.slot, vec![0; 6 << 20]).unwrap();
        update(&bench).await.unwrap();
        bench.assert_complete();
    }
    // All of them: the chunk is what the update ends with.
    bench.server.served.script(|_| Act::Serve);
    bench.server.served.file.lock().unwrap()[payload as usize + (3 << 20)] ^= 1;
    std::fs::write(&bench.slot, vec![0; 6 << 20]).unwrap();
    let (code, message) = code(bench.update().await);
    assert_eq!(code, Code::DigestMismatch, "{message}");
    assert!(message.contains("is damaged"), "{message}");
    bench.assert_not_loadable();
}

#[tokio::test]
async fn a_bundle_that_is_replaced_is_told_by_its_digest_without_any_tag() {
    let bench = Bench::new(image(45, 3), 0).await;
    *bench.server.served.etag.lock().unwrap() = None;
    let bundle = bench.open(&bench.server.http(), free()).await.unwrap();
    let index = bundle.index().await.unwrap();
    *bench.server.served.file.lock().unwrap() = bundles::parts(&image(46, 3), "board", "2.0").join();
    let (target, cancel) = (bench.target(), Default::default());
    let ended = stage(&bundle, index, Staging::of(&target, &bench.progress, &cancel)).await;
    let (code, message) = code(ended);
    assert_eq!(code, Code::DownloadFailed);
    assert!(message.contains("changed on the server"), "{message}");
    bench.assert_not_loadable();
}

/// A place on the way where connection `number` (from 0) goes on to port `to(number)`. Returns its port.
async fn fork(to: impl Fn(usize) -> u16 + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((mut from, _)) = listener.accept().await else { break };
            let to = to(number);
            tokio::spawn(async move {
                let mut to = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                copy_bidirectional(&mut from, &mut to).await.ok();
            });
        }
    });
    port
}

#[tokio::test]
async fn a_portal_with_a_certificate_of_its_own_goes_away() {
    let bench = Bench::new(image(47, 1), 0).await;
    let stranger = Server::start(Vec::new()).await;
    let (foreign, own) = (stranger.port, bench.server.port);
    let port = fork(move |number| if number < 3 { foreign } else { own }).await;
    let url = format!("https://127.0.0.1:{port}/b.fwb").parse().unwrap();
    let http = bench.server.http_with(&["127.0.0.1"], doubting());
    let (meter, keys) = (Arc::new(free()), bundles::trust(1));
    opened(BundleSource::Http(url), &http, meter.clone(), &keys, None).await.unwrap();
    assert_eq!(meter.waiting(), None);
    assert_eq!((stranger.served.count(), bench.server.served.count()), (0, 1));
    assert!(stranger.served.connections.load(Ordering::SeqCst) >= 3);
}

/// What a node has that lags behind, or is broken: another release, one of another signer, half of a head.
fn stale_bundles() -> Vec<(&'static str, Vec<u8>)> {
    let old = bundles::parts(&image(60, 2), "board", "0.9");
    let foreign = bundles::Parts { signatures: bundles::sign(&old.manifest, &[2]), ..old.clone() };
    let mut broken = old.join();
    broken[257..262].fill(b'x');
    vec![("an older bundle", old.join()), ("another signer's", foreign.join()), ("a broken head", broken)]
}

#[tokio::test]
async fn one_stale_node_of_a_pool_does_not_end_a_pinned_update() {
    for (shown, stale) in stale_bundles() {
        let bench = Bench::new(image(61, 3), 0).await;
        let pin = Some(bench.open(&bench.server.http(), free()).await.unwrap().manifest().digest());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().port();
        let node = bench.server.another_at(listener);
        *node.file.lock().unwrap() = stale;
        *node.etag.lock().unwrap() = Some("\"old\"".into());
        // The first contact is with the stale one, and so is every other connection.
        let ports = [at, bench.server.port];
        let port = fork(move |number| ports[number % 2]).await;
        let source = BundleSource::Http(format!("https://127.0.0.1:{port}/b.fwb").parse().unwrap());
        let http = bench.server.http_with(&["127.0.0.1"], doubting());
        let (meter, keys) = (Arc::new(free()), bundles::trust(1));
        let bundle = opened(source, &http, meter.clone(), &keys, pin).await.unwrap();
        assert_eq!(meter.waiting(), None, "{shown}");
        assert!(node.count() > 0, "{shown}");
        let (index, cancel) = (bundle.index().await.unwrap(), Default::default());
        stage(&bundle, index, Staging::of(&bench.target(), &bench.progress, &cancel)).await.unwrap();
        bench.assert_complete();
    }
}

#[tokio::test]
async fn what_all_nodes_have_is_refused_for_what_it_is_and_told_before() {
    let (bench, pin) = (Bench::new(image(62, 1), 0).await, crate::manifest::Digest([7; 32]));
    for (keys, pin, word) in [(1, Some(pin), "pinned"), (2, None, "signature")] {
        let (served, meter) = (bench.server.served.clone(), Arc::new(free()));
        let (before, seen) = (served.count(), meter.clone());
        let told = Arc::new(std::sync::Mutex::new(String::new()));
        let tell = told.clone();
        served.script(move |_| {
            *tell.lock().unwrap() += &seen.waiting().unwrap_or_default();
            Act::Serve
        });
        let (source, keys) = (BundleSource::Http(bench.server.url()), bundles::trust(keys));
        let connections = served.connections.load(Ordering::SeqCst);
        let ended = opened(source, &bench.server.http(), meter.clone(), &keys, pin).await;
        let (_, message) = code(ended.map(drop));
        assert!(message.contains(word) && told.lock().unwrap().contains(&message), "{message} {told:?}");
        assert_eq!(meter.waiting(), None);
        let requests = served.count() - before;
        assert!((2..20).contains(&requests), "{requests}");
        assert!(served.connections.load(Ordering::SeqCst) - connections >= 2);
        assert!(meter.spent() <= requests as u64 * 8192);
    }
}

#[tokio::test]
async fn what_is_doubted_is_told_while_it_is_asked_again() {
    let bench = Bench::new(image(48, 1), 0).await;
    let (meter, keys) = (Arc::new(free()), bundles::trust(1));
    let (seen, told) = (meter.clone(), Arc::new(std::sync::Mutex::new(String::new())));
    let tell = told.clone();
    bench.server.served.script(move |request| match request.number {
        0 | 1 => {
            *tell.lock().unwrap() = seen.waiting().unwrap_or_default();
            Act::Status(404, String::new())
        }
        _ => Act::Serve,
    });
    let source = BundleSource::Http(bench.server.url());
    let http = bench.server.http_with(&["127.0.0.1"], doubting());
    opened(source, &http, meter.clone(), &keys, None).await.unwrap();
    assert!(told.lock().unwrap().contains("404"), "{told:?}");
    assert_eq!(meter.waiting(), None);
}

#[tokio::test]
async fn a_server_that_trickles_is_left_and_in_the_end_given_up() {
    let bench = Bench::new(image(49, 2), 0).await;
    let (stall_timeout, patience) = (Duration::from_millis(200), Duration::from_secs(2));
    let rules = Download { stall_timeout, patience, min_rate: 10_000, ..download() };
    let http = bench.server.http_with(&["127.0.0.1"], rules);
    // One connection alone: another one brings the rest.
    bench.server.served.script(|request| match request.number {
        1 | 3 => Act::Trickle(5),
        _ => Act::Serve,
    });
    bench.update_with(&http, None, free()).await.unwrap();
    bench.assert_complete();
    assert_eq!(bench.progress.borrow().downloaded, bench.progress.borrow().expected_download);

    bench.server.served.script(|_| Act::Trickle(5));
    let before = bench.server.served.connections.load(Ordering::SeqCst);
    let (code, message) = code(bench.update_with(&http, None, free()).await);
    assert_eq!(code, Code::DownloadFailed);
    for word in ["bytes came in", "download.min_rate is 10000", "gave up after 2 s"] {
        assert!(message.contains(word), "{message}");
    }
    assert!(bench.server.served.connections.load(Ordering::SeqCst) - before > 2);
}

#[tokio::test]
async fn answers_of_next_to_nothing_do_not_keep_a_gateway_asking() {
    let bench = Bench::new(image(50, 1), 0).await;
    let rules = Download { patience: Duration::from_secs(1), min_rate: 1 << 20, ..download() };
    let http = bench.server.http_with(&["127.0.0.1"], rules);
    bench.server.served.script(|_| Act::Short(1));
    let (code, message) = code(bench.update_with(&http, None, free()).await);
    assert_eq!(code, Code::DownloadFailed);
    assert!(message.contains("small pieces"), "{message}");
    // The pauses double.
    assert!(bench.server.served.count() < 40, "{}", bench.server.served.count());
}

#[tokio::test]
async fn floods_of_headers_are_cut_off_and_counted() {
    let bench = Bench::new(image(51, 1), 0).await;
    let rules = Download { patience: Duration::from_secs(1), ..download() };
    let http = bench.server.http_with(&["127.0.0.1"], rules);
    let flood = |kib: usize| Act::With(format!("X-Flood: {}\r\n", "x".repeat(kib << 10)));
    for act in [Act::Interim(50_000), flood(50_000), Act::Status(503, "A: b\r\n".repeat(1000))] {
        let shown = format!("{act:.40?}");
        let before = bench.server.served.count();
        bench.server.served.script(move |_| act.clone());
        let meter = Arc::new(free());
        let keys = bundles::trust(1);
        let open = async |meter| {
            let source = BundleSource::Http(bench.server.url());
            opened(source, &http, meter, &keys, None).await.map(drop)
        };
        let (ended, message) = code(open(meter.clone()).await);
        assert_eq!(ended, Code::DownloadFailed, "{shown}: {message}");
        assert!(message.contains("head"), "{shown}: {message}");
        let requests = (bench.server.served.count() - before) as u64;
        assert!(meter.spent() <= requests * (128 << 10), "{shown}: {} for {requests}", meter.spent());

        let limit = 20_000;
        let meter = Arc::new(Meter::new(0, Some(limit), None));
        let (ended, message) = code(open(meter.clone()).await);
        assert_eq!(ended, Code::DataBudgetExceeded, "{shown}: {message}");
        assert!(meter.spent() <= limit + (128 << 10), "{shown}: {}", meter.spent());
    }
}

#[tokio::test]
async fn bodies_that_nobody_wanted_count_against_the_budget() {
    let bench = Bench::new(image(52, 3), 0).await;
    let http = bench.server.http_with(&["127.0.0.1"], doubting());
    for act in [Act::Whole, Act::Page("x".repeat(60_000))] {
        let before = bench.server.served.count();
        bench.server.served.script(move |_| act.clone());
        let ended = bench.update_with(&http, None, Meter::new(0, Some(200_000), None)).await;
        assert_eq!(code(ended).0, Code::DataBudgetExceeded);
        assert!((2..=5).contains(&(bench.server.served.count() - before)));
    }
}
