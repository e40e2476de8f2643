//! Ranges whose bytes come in every way that a body can.

use std::sync::atomic::Ordering;

use super::*;
use crate::config::Download;
use crate::stage::download::budget::Meter;
use crate::stage::download::http::BundleSource;

#[tokio::test]
async fn time_outside_the_windows_does_not_count_against_patience() {
    use crate::config::Window;
    use crate::plan::Now;
    use crate::stage::testing::*;
    let server = Server::start(vec![7; 50_000]).await;
    server.served.script(|request| match request.number {
        0 => Act::Status(503, String::new()),
        _ => Act::Serve,
    });
    let patience = Duration::from_secs(3600);
    let windows = vec![Window { start: 60, end: 120 }];
    let mut http = server.http_with(&["127.0.0.1"], Download { patience, windows, ..download() });
    let asked = std::sync::atomic::AtomicU32::new(0);
    http.gate.look = Duration::ZERO;
    // Closed at the first looks, then open.
    http.gate.now = Arc::new(move || {
        let minute = if asked.fetch_add(1, Ordering::SeqCst) < 4 { 59 } else { 60 };
        let time = time::OffsetDateTime::UNIX_EPOCH + Duration::from_secs(60 * minute);
        Now { time, synchronised: true }
    });
    let meter = Arc::new(Meter::new(0, None, None));
    let remote = Remote::new(BundleSource::Http(server.url()), &http, meter).await.unwrap();
    let mut range = remote.range(0, 50_000);
    let RemoteKind::Http(web) = &remote.kind else { panic!() };
    web.patience.use_up();
    let mut length = 0;
    while let Some(bytes) = range.next().await.unwrap() {
        length += bytes.len();
    }
    assert_eq!((length, server.served.count()), (50_000, 2));
}
