//! Time windows for metered links: outside of them no byte of the index or the payload is fetched. The manifest is,
//! for a refusal should be told at once, and it has a few KiB.

use std::sync::Arc;
use std::time::Duration;

use time::format_description::well_known::Rfc3339;

use crate::clock::Clock;
use crate::config::Window;
use crate::plan::{self, Now, Wait};
use crate::stage::download::budget::Meter;

/// How often the clock is looked at while a window is closed: windows are minutes, and the clock may be set meanwhile.
const LOOK: Duration = Duration::from_secs(10);

/// Opens and closes with the clock.
#[derive(Clone)]
pub struct Gate {
    windows: Vec<Window>,
    pub now: Arc<dyn Fn() -> Now + Send + Sync>,
    pub look: Duration,
}

impl Gate {
    pub fn new(windows: Vec<Window>, clock: Clock) -> Gate {
        let now = Arc::new(move || Now { time: clock.now(), synchronised: clock.synchronised() });
        Gate { windows, now, look: LOOK }
    }

    /// Why nothing may be fetched now, as a sentence; `None`: it may.
    pub fn closed(&self) -> Option<String> {
        if self.windows.is_empty() {
            return None;
        }
        plan::download_wait(&self.windows, (self.now)()).map(|wait| match wait {
            Wait::Until(opens) => {
                let opens = opens.format(&Rfc3339).unwrap_or_default();
                format!("download.windows is closed; the download goes on at {opens}")
            }
            _ => "download.windows needs the time, and the clock is not synchronised yet".to_owned(),
        })
    }

    /// Waits while it is closed, for this reason and later ones, and says so meanwhile.
    pub async fn wait(&self, mut reason: String, meter: &Meter) {
        loop {
            if meter.waiting().as_ref() != Some(&reason) {
                tracing::info!(reason, "download waits");
            }
            meter.wait_for(Some(&reason));
            tokio::time::sleep(self.look).await;
            match self.closed() {
                Some(still) => reason = still,
                None => break,
            }
        }
        meter.wait_for(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio_util::sync::CancellationToken;

    use time::OffsetDateTime;

    use super::*;
    use crate::config::Download;
    use crate::stage::testing::*;
    use crate::stage::*;

    const NIGHT: Window = Window { start: 22 * 60, end: 6 * 60 };

    fn at(text: &str) -> Now {
        Now { time: OffsetDateTime::parse(text, &Rfc3339).unwrap(), synchronised: true }
    }

    /// A client with these windows whose clock is `now`, asked with the number of the question, from 0.
    fn client(bench: &Bench, now: impl Fn(usize) -> Now + Send + Sync + 'static) -> Http {
        let download = Download { windows: vec![NIGHT], ..download() };
        let mut http = bench.server.http_with(&["127.0.0.1"], download);
        let asked = Mutex::new(0);
        http.gate.look = Duration::from_millis(1);
        http.gate.now = Arc::new(move || {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            now(*asked - 1)
        });
        http
    }

    async fn stage_with(
        bench: &Bench,
        http: &Http,
        meter: Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<(), StageError> {
        let keys = crate::bundle::testing::trust(1);
        let bundle = opened(BundleSource::Http(bench.server.url()), http, meter, &keys, None).await?;
        let target = bench.target();
        let index = bundle.index().await?;
        stage(&bundle, index, Staging::of(&target, &bench.progress, cancel)).await
    }

    #[tokio::test]
    async fn nothing_but_the_manifest_is_fetched_before_the_window_opens() {
        let bench = Bench::new(image(80, 3), 0).await;
        let meter = Arc::new(Meter::new(0, None, None));
        let (served, told) = (bench.server.served.clone(), Arc::new(Mutex::new(Vec::new())));
        let (seen, counter) = (told.clone(), meter.clone());
        // An hour passes with each look, from nine in the morning to half past ten at night.
        let http = client(&bench, move |n| {
            let time = at("2026-03-01T09:30:00Z").time + Duration::from_secs(3600) * n.min(13) as u32;
            if n <= 13 {
                seen.lock().unwrap().push((served.count(), counter.waiting()));
            }
            Now { time, synchronised: n != 2 }
        });
        stage_with(&bench, &http, meter.clone(), &CancellationToken::new()).await.unwrap();
        bench.assert_complete();
        assert_eq!(meter.waiting(), None);
        let told = told.lock().unwrap();
        assert!(told.iter().all(|(requests, _)| *requests == 1), "{told:?}");
        let said = |n: usize| told[n].1.as_deref().unwrap();
        assert_eq!(said(1), "download.windows is closed; the download goes on at 2026-03-01T22:00:00Z");
        assert!(said(3).contains("not synchronised"), "{}", said(3));
        assert_eq!(said(13), said(1));
    }

    #[tokio::test]
    async fn a_window_that_closes_in_the_middle_interrupts_and_costs_no_byte() {
        let bench = Bench::new(image(81, 6), 0).await;
        let meter = Arc::new(Meter::new(0, None, None));
        // Closed at every second look: it closes again behind almost every read.
        let http =
            client(&bench, |n| at(if n % 2 == 1 { "2026-03-01T06:00:00Z" } else { "2026-03-01T05:59:59Z" }));
        stage_with(&bench, &http, meter.clone(), &CancellationToken::new()).await.unwrap();
        bench.assert_complete();
        let progress = *bench.progress.borrow();
        assert_eq!((progress.downloaded, meter.spent()), (progress.expected_download, progress.downloaded));
        let undisturbed = Bench::new(image(81, 6), 0).await;
        undisturbed.update().await.unwrap();
        assert_eq!(undisturbed.progress.borrow().downloaded, meter.spent());
        assert!(bench.server.served.count() > undisturbed.server.served.count());
    }

    #[tokio::test]
    async fn waiting_for_a_window_can_be_cancelled() {
        let bench = Bench::new(image(82, 3), 0).await;
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        // It closes when the payload is about to be fetched, and a later look comes with the cancel.
        let (progress, closed) = (bench.progress.clone(), Mutex::new(0));
        let http = client(&bench, move |_| {
            if progress.borrow().step != Step::Writing {
                return at("2026-03-01T00:00:00Z");
            }
            *closed.lock().unwrap() += 1;
            if *closed.lock().unwrap() > 20 {
                stop.cancel();
            }
            at("2026-03-01T12:00:00Z")
        });
        let ended = stage_with(&bench, &http, Arc::new(Meter::new(0, None, None)), &cancel).await;
        assert!(matches!(ended, Err(StageError::Cancelled)), "{ended:?}");
        bench.assert_not_loadable();
        // What was waited for is fetched by the next run.
        bench.update().await.unwrap();
        bench.assert_complete();
    }
}
