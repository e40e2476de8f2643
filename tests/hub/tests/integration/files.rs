//! Ranges, conditions and faults of the file server.

use std::time::Duration;

use fwupdate_hub::faults::{FileEffect, FileRule};
use reqwest::Response;

use crate::client::Site;

const SIZE: usize = 300_000;

fn content() -> Vec<u8> {
    (0..SIZE).map(|n| (n * 7 % 251) as u8).collect()
}

async fn site() -> Site {
    let site = Site::new().await;
    std::fs::create_dir(site.folder.path().join("www/deep")).unwrap();
    std::fs::write(site.folder.path().join("www/deep/a.bin"), content()).unwrap();
    site
}

async fn get(site: &Site, headers: &[(&str, &str)]) -> Response {
    let request =
        headers.iter().fold(site.web().get(site.hub.files_url("deep/a.bin")), |request, (name, value)| {
            request.header(*name, *value)
        });
    request.send().await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers()[name].to_str().unwrap()
}

#[tokio::test]
async fn whole_files_ranges_and_heads() {
    let site = site().await;
    let whole = get(&site, &[]).await;
    assert_eq!((whole.status().as_u16(), header(&whole, "accept-ranges")), (200, "bytes"));
    assert_eq!(whole.bytes().await.unwrap(), content());

    let part = get(&site, &[("range", "bytes=1000-200999")]).await;
    assert_eq!((part.status().as_u16(), header(&part, "content-range")), (206, "bytes 1000-200999/300000"));
    assert_eq!(part.bytes().await.unwrap(), content()[1000..201_000]);

    let past = get(&site, &[("range", "bytes=300000-")]).await;
    assert_eq!((past.status().as_u16(), header(&past, "content-range")), (416, "bytes */300000"));

    let head = site.web().head(site.hub.files_url("deep/a.bin")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "300000"));
    let count = site.hub.faults().count("deep/a.bin");
    assert_eq!((count.requests, count.body_bytes), (4, 500_000));
    let log = site.hub.faults().log();
    assert_eq!((log[1].status, log[1].offset, log[1].length), (206, 1000, 200_000));
}

#[tokio::test]
async fn conditions_follow_the_etag() {
    let site = site().await;
    let etag = header(&get(&site, &[]).await, "etag").to_owned();
    assert!(etag.starts_with('"'), "a strong etag: {etag}");
    let range = ("range", "bytes=0-9");
    assert_eq!(get(&site, &[range, ("if-match", &etag)]).await.status(), 206);
    assert_eq!(get(&site, &[range, ("if-match", "\"x\"")]).await.status(), 412);
    assert_eq!(get(&site, &[range, ("if-range", &etag)]).await.status(), 206);
    assert_eq!(get(&site, &[range, ("if-range", "\"x\"")]).await.status(), 200);
    assert_eq!(get(&site, &[("if-none-match", &etag)]).await.status(), 304);
    std::fs::write(site.folder.path().join("www/deep/a.bin"), b"changed").unwrap();
    assert_eq!(get(&site, &[range, ("if-match", &etag)]).await.status(), 412);
}

#[tokio::test]
async fn nothing_outside_the_folder_is_served() {
    let site = site().await;
    std::os::unix::fs::symlink(site.hub.dir(), site.folder.path().join("www/out")).unwrap();
    for path in
        ["missing", "deep", "out/hub.json", "%2e%2e/hub/hub.json", "..%2Fhub%2Fhub.json", "%2Fetc%2Fpasswd"]
    {
        assert_eq!(site.web().get(site.hub.files_url(path)).send().await.unwrap().status(), 404, "{path}");
    }
}

#[tokio::test]
async fn a_cut_connection() {
    let site = site().await;
    site.hub.faults().file(FileRule::next(1, "deep/a.bin", FileEffect::Drop { after: 100_000 }));
    let mut cut = get(&site, &[]).await;
    let mut received = 0;
    let error = loop {
        match cut.chunk().await {
            Ok(Some(chunk)) => received += chunk.len(),
            Ok(None) => panic!("the body should have been cut"),
            Err(error) => break error,
        }
    };
    assert_eq!(received, 100_000, "before {error}");
    assert_eq!(site.hub.faults().count("deep/a.bin").body_bytes, 100_000);
    assert_eq!(get(&site, &[]).await.bytes().await.unwrap(), content());
}

#[tokio::test]
async fn a_stalled_body() {
    let site = site().await;
    site.hub.faults().file(FileRule::always("*", FileEffect::Stall { after: 10 }));
    let mut stalled = get(&site, &[]).await;
    assert_eq!(stalled.chunk().await.unwrap().unwrap().len(), 10);
    let next = tokio::time::timeout(Duration::from_millis(100), stalled.chunk()).await;
    assert!(next.is_err(), "nothing more should come");
}

#[tokio::test]
async fn bad_answers() {
    let site = site().await;
    let faults = site.hub.faults();
    faults.file(FileRule::next(2, "*", FileEffect::Status { status: 503 }));
    assert_eq!(get(&site, &[]).await.status(), 503);
    assert_eq!(get(&site, &[]).await.status(), 503);

    let range = ("range", "bytes=100-199");
    faults.file(FileRule::next(1, "*", FileEffect::Flip { offset: 150 }));
    let flipped = get(&site, &[range]).await.bytes().await.unwrap();
    let wrong: Vec<usize> = (0..100).filter(|n| flipped[*n] != content()[100 + n]).collect();
    assert_eq!(wrong, [50]);

    faults.file(FileRule::next(1, "*", FileEffect::Truncate { length: 120 }));
    let short = get(&site, &[range]).await;
    assert_eq!(header(&short, "content-range"), "bytes 100-119/120");

    faults.file(FileRule::next(1, "*", FileEffect::NoRanges));
    let whole = get(&site, &[range]).await;
    assert_eq!((whole.status().as_u16(), header(&whole, "content-length")), (200, "300000"));

    faults.file(FileRule::next(1, "*", FileEffect::Redirect { to: "http://169.254.169.254/x".into() }));
    let elsewhere = get(&site, &[range]).await;
    assert_eq!(
        (elsewhere.status().as_u16(), header(&elsewhere, "location")),
        (302, "http://169.254.169.254/x")
    );
    assert_eq!(get(&site, &[range]).await.status(), 206);
}
