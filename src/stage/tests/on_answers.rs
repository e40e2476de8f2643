//! Stories about what one server answers: errors, refusals, redirects, other versions, and nothing at all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{code, free};
use crate::bundle::testing as bundles;
use crate::failure::Code;
use crate::stage::testing::*;
use crate::stage::*;

#[tokio::test]
async fn bursts_of_server_errors_are_waited_out() {
    let bench = Bench::new(image(10, 2), 0).await;
    bench.server.served.script(|request| match request.number % 4 {
        0 => Act::Status(503, "Retry-After: 0\r\n".into()),
        1 => Act::Status(429, String::new()),
        2 => Act::Status(500, String::new()),
        _ => Act::Serve,
    });
    bench.update().await.unwrap();
    bench.assert_complete();
}

#[tokio::test]
async fn what_several_connections_say_for_a_while_is_final() {
    let bench = Bench::new(image(11, 1), 0).await;
    let cases = [
        (401, Code::Forbidden),
        (403, Code::Forbidden),
        (404, Code::NotFound),
        (410, Code::NotFound),
        (418, Code::DownloadFailed),
    ];
    for (status, expected) in cases {
        let before = bench.server.served.count();
        bench.server.served.script(move |_| Act::Status(status, String::new()));
        let connections = bench.server.served.connections.load(Ordering::SeqCst);
        assert_eq!(code(bench.update().await), expected, "{status}");
        let connections = bench.server.served.connections.load(Ordering::SeqCst) - connections;
        let requests = bench.server.served.count() - before;
        assert!(connections >= 2 && (2..40).contains(&requests), "{status}: {requests} on {connections}");
    }
    for act in [Act::Whole, Act::WrongRange] {
        let before = bench.server.served.count();
        bench.server.served.script(move |_| act.clone());
        assert_eq!(code(bench.update().await), Code::DownloadFailed);
        assert!(bench.server.served.count() > before + 1);
    }
}

#[tokio::test]
async fn a_server_that_is_not_trusted_gets_no_request() {
    let bench = Bench::new(image(31, 1), 0).await;
    let stranger = Server::start(Vec::new()).await;
    let result = bench.update_with(&stranger.http(), None, free()).await;
    assert!(result.as_ref().unwrap_err().to_string().contains("ca_file"), "{result:?}");
    assert_eq!(code(result), Code::DownloadFailed);
    assert!(bench.server.served.connections.load(Ordering::SeqCst) > 1);
    assert_eq!(bench.server.served.count(), 0);
}

#[tokio::test]
async fn patience_ends() {
    let bench = Bench::new(image(11, 1), 0).await;
    bench.server.served.script(|_| Act::Status(503, String::new()));
    let mut rules = download();
    rules.patience = Duration::from_millis(400);
    let http = bench.server.http_with(&["127.0.0.1"], rules.clone());
    assert_eq!(code(bench.update_with(&http, None, free()).await), Code::DownloadFailed);
    assert!(bench.server.served.count() >= 2);
    // A server that asks for more patience than there is gets all that there is, and is asked once more.
    let before = bench.server.served.count();
    bench.server.served.script(|_| Act::Status(503, "Retry-After: 86400\r\n".into()));
    let http = bench.server.http_with(&["127.0.0.1"], rules);
    let error = bench.update_with(&http, None, free()).await.unwrap_err();
    assert!(error.to_string().contains("the server answered 503; gave up after 0.4 s"), "{error}");
    assert_eq!(bench.server.served.count() - before, 2);
    bench.server.served.script(move |request| match request.number {
        n if n == before + 2 => Act::Status(503, "Retry-After: 86400\r\n".into()),
        _ => Act::Serve,
    });
    bench.update_with(&http, None, free()).await.unwrap();
    bench.assert_complete();
}

#[tokio::test]
async fn a_stalled_transfer_is_broken_off_and_goes_on() {
    let bench = Bench::new(image(12, 2), 0).await;
    let mut rules = download();
    rules.stall_timeout = Duration::from_millis(200);
    let http = bench.server.http_with(&["127.0.0.1"], rules);
    bench.server.served.script(|request| match request.number {
        2 => Act::Stall(5000),
        3 => Act::Silent,
        _ => Act::Serve,
    });
    bench.update_with(&http, None, free()).await.unwrap();
    bench.assert_complete();
    assert_eq!(bench.progress.borrow().downloaded, bench.progress.borrow().expected_download);
}

#[tokio::test]
async fn redirects_are_followed_within_the_rules() {
    let bench = Bench::new(image(13, 1), 0).await;
    let port = bench.server.port;
    let hops = |most: usize| {
        move |request: &Request| {
            let hop: usize = request.path.trim_start_matches("/hop").parse().unwrap_or(0);
            match hop < most {
                true => Act::Status(302, format!("Location: /hop{}\r\n", hop + 1)),
                false => Act::Serve,
            }
        }
    };
    for to in ["./a/../c.fwb", "?other", "caf\u{e9}/b\u{fc}ndel.fwb?t=1#x", &format!("//127.0.0.1:{port}/c")]
    {
        let line = format!("Location: {to}\r\nContent-Location: /x\r\n");
        bench.server.served.script(move |request| match request.path.starts_with("/b.fwb?sig") {
            true => Act::Status(308, line.clone()),
            false => Act::Serve,
        });
        std::fs::write(&bench.slot, vec![0; 1 << 20]).unwrap();
        bench.update().await.unwrap();
        bench.assert_complete();
    }
    bench.server.served.script(hops(5));
    bench.update().await.unwrap();
    bench.assert_complete();
    bench.server.served.script(hops(6));
    assert_eq!(code(bench.update().await), Code::DownloadFailed);

    let cases = [
        format!("http://127.0.0.1:{port}/b"),
        "https://169.254.169.254/latest".into(),
        "https://[::ffff:169.254.169.254]/latest".into(),
        "https://example.com/b".into(),
        "https://[::1]/b".into(),
    ];
    for to in cases {
        let line = format!("Location: {to}\r\n");
        bench.server.served.script(move |_| Act::Status(307, line.clone()));
        assert_eq!(code(bench.update().await), Code::NotPermitted, "{to}");
    }
}

#[tokio::test]
async fn loopback_must_be_named_even_behind_a_host_name() {
    let bench = Bench::new(image(14, 1), 0).await;
    let url = format!("https://localhost:{}/b?sig=secret", bench.server.port);
    let open = async |allowed: &[&str]| {
        let http = bench.server.http_with(allowed, download());
        let source = BundleSource::Http(url.parse().unwrap());
        opened(source, &http, Arc::new(free()), &bundles::trust(1), None).await.map(drop)
    };
    assert_eq!(code(open(&[]).await), Code::NotPermitted);
    assert_eq!(bench.server.served.count(), 0);
    open(&["localhost"]).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_uploaded_again_is_read_on_and_another_one_is_not() {
    let bench = Bench::new(image(20, 3), 0).await;
    let swap = |tag: &str| *bench.server.served.etag.lock().unwrap() = Some(tag.into());
    let cancel = CancellationToken::new();
    let bundle = bench.open(&bench.server.http(), free()).await.unwrap();
    let index = bundle.index().await.unwrap();
    // The same bytes under another tag: goes on.
    swap("\"two\"");
    let target = bench.target();
    stage(&bundle, index, Staging::of(&target, &bench.progress, &cancel)).await.unwrap();
    bench.assert_complete();
    let requests = bench.server.served.requests.lock().unwrap().clone();
    assert!(requests.iter().skip(1).any(|request| header(&request.headers, "if-match") == Some("\"one\"")));
    assert_eq!(header(&requests.last().unwrap().headers, "if-match"), Some("\"two\""));

    // Another bundle under another tag: ends.
    let bundle = bench.open(&bench.server.http(), free()).await.unwrap();
    *bench.server.served.file.lock().unwrap() = bundles::parts(&image(21, 3), "board", "2.0").join();
    swap("\"three\"");
    assert_eq!(code(bundle.index().await), Code::DownloadFailed);
}

#[tokio::test]
async fn without_a_strong_tag_the_date_guards() {
    let bench = Bench::new(image(22, 1), 0).await;
    *bench.server.served.etag.lock().unwrap() = Some("W/\"weak\"".into());
    *bench.server.served.modified.lock().unwrap() = Some("Sun, 06 Nov 1994 08:49:37 GMT".into());
    let bundle = bench.open(&bench.server.http(), free()).await.unwrap();
    *bench.server.served.file.lock().unwrap() = bundles::parts(&image(23, 1), "board", "2.0").join();
    *bench.server.served.modified.lock().unwrap() = Some("Sun, 06 Nov 1994 08:49:38 GMT".into());
    assert_eq!(code(bundle.index().await), Code::DownloadFailed);
}
